"""Inputs of HyperpixelFlow: confidences without ties, and images of zeros."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .._engine.checks import Shape
from .._engine.samples import Sample, distinct
from ..hyperpixel_flow import Params


def samples(size: str, rng: np.random.Generator) -> list[Sample]:
    if size == "paper":
        return [_sample(rng, "900 x 900 cells", (1, 28, 38, 28, 38), 8.0, 43, 8.0)]
    if size == "large":
        return [_sample(rng, "3300 x 3300 cells", (1, 53, 75, 53, 75), 4.0, 27, 4.0)]
    return [
        _sample(rng, "every cell", (2, 3, 4, 3, 4), 4.0, 5),
        _sample(rng, "a margin", (2, 5, 6, 4, 5), 4.0, 11, 2.0),
        _sample(rng, "holes", (1, 3, 3, 3, 2), 5.0, 3),
    ]


def _sample(rng: np.random.Generator, name: str, grid: Shape, *cells: Any) -> Sample:
    params = Params(*cells)
    sizes = [[int((count - 1) * params.jump) + 1 for count in part] for part in (grid[1:3], grid[3:])]
    images = [torch.zeros(1, 1, *size, dtype=torch.float64) for size in sizes]
    return Sample(params, (distinct(rng, grid), *images), differentiable=(), name=name)
