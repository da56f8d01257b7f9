"""One source of a layer's inputs for tests, gradient checks, benchmarks and timing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

SIZES = ("small", "paper", "large")


@dataclass(frozen=True)
class Sample:
    """Kink-free bottoms of one size.

    ``bottoms`` are CPU tensors in float64 (integers stay integers); ``differentiable`` are the
    indices of the bottoms that get a gradient, ``tops`` those of the tops that give one.
    """

    params: Any
    bottoms: tuple[torch.Tensor, ...]
    differentiable: tuple[int, ...] = (0,)
    tops: tuple[int, ...] = (0,)
    name: str = ""
