"""The one file that knows CuPy: compiles the layers' CUDA text and owns every launch."""

from __future__ import annotations


def available() -> bool:
    """Whether the kernels can run here (CuPy with a CUDA device). None are written yet."""
    return False


def require() -> None:
    """Raise unless the kernels can run here."""
    if not available():
        raise RuntimeError('impl("cuda"): this version of cortado has no CUDA kernels yet')
