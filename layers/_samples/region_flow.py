"""Inputs of RegionFlow: random boxes, some across the border, and scores without ties."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .._engine.params import NoParams
from .._engine.samples import Sample, distinct


def samples(size: str, rng: np.random.Generator) -> list[Sample]:
    p, s, a, b = {
        "small": (7, 5, (13, 17), (11, 19)),
        "paper": (500, 500, (375, 500), (333, 500)),
        "large": (1000, 1000, (375, 500), (333, 500)),
    }[size]
    rois = [_rois(rng, count, height, width) for count, (height, width) in ((p, a), (s, b))]
    images = [torch.zeros(1, 3, *shape, dtype=torch.float64) for shape in (a, b)]
    return [Sample(NoParams(), (distinct(rng, (p, s)), *rois, *images), differentiable=())]


def _rois(rng: np.random.Generator, count: int, height: int, width: int) -> Tensor:
    low = rng.integers(-2, (width // 2, height // 2), (count, 2))
    high = low + rng.integers(0, (width // 2 + 3, height // 2 + 3), (count, 2))
    return torch.from_numpy(np.concatenate([np.zeros((count, 1)), low, high], 1))
