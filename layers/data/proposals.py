"""Region proposals of an image: see ``_runtime/proposals.py``, which says what each function gives."""

from .._runtime.proposals import random_uniform, randomized_prim, selective_search, sliding_window

__all__ = ["random_uniform", "randomized_prim", "selective_search", "sliding_window"]
