"""One source of a layer's inputs for tests, gradient checks, benchmarks and timing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

SIZES = ("small", "paper", "large")


@dataclass(frozen=True)
class Sample:
    """Kink-free bottoms of one size.

    ``bottoms`` are CPU tensors in float64 (integers stay integers); ``differentiable`` are the
    indices of the bottoms that get a gradient, ``tops`` those of the tops that give one.
    ``check_gradient`` is false where differences would take long, or are another gradient.
    """

    params: Any
    bottoms: tuple[torch.Tensor, ...]
    differentiable: tuple[int, ...] = (0,)
    tops: tuple[int, ...] = (0,)
    name: str = ""
    check_gradient: bool = True


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    """N(0, 1)."""
    return torch.from_numpy(rng.standard_normal(shape))


def distinct(rng: np.random.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    """Different values in (-1, 1), none of them 0, in random order: no ties, no sign to change."""
    count = int(np.prod(shape))
    odd = 2 * rng.permutation(count) + 1 - count + count % 2
    return torch.from_numpy(odd / (count + 1)).view(shape)
