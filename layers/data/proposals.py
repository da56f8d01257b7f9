"""Region proposals of an image: see ``_data/proposals.py``, which says what each function gives."""

from .._data.proposals import random_uniform, randomized_prim, selective_search, sliding_window

__all__ = ["random_uniform", "randomized_prim", "selective_search", "sliding_window"]
