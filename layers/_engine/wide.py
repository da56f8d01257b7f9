"""What sums are computed in: float32, or wider."""

from __future__ import annotations

import torch
from torch import Tensor


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for every other type."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def wide(x: Tensor) -> Tensor:
    """The tensor in that type: itself where it is of it already."""
    return x if x.dtype == torch.float64 else x.float()
