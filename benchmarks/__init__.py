"""The paper's layers at paper size against what a user would otherwise write.

``make bench`` measures under pytest-benchmark; ``python -m benchmarks --write`` writes the table to
``benchmarks/results/``.
"""
