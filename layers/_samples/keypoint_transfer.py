"""Inputs of KeypointTransfer: points inside of A and around it, some on the boxes' borders."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .._engine.checks import Shape
from .._engine.samples import Sample, distinct
from ..keypoint_transfer import Params


def samples(size: str, rng: np.random.Generator) -> list[Sample]:
    if size == "paper":
        return [_sample(rng, "900 x 900 cells", (1, 28, 38, 28, 38), 10, 8.0, 43, 8.0)]
    if size == "large":
        return [_sample(rng, "3300 x 3300 cells", (1, 53, 75, 53, 75), 10, 4.0, 27, 4.0)]
    return [
        _sample(rng, "every cell", (2, 4, 5, 3, 4), 9, 4.0, 5),
        _sample(rng, "a margin", (2, 5, 6, 4, 5), 9, 4.0, 11, 2.0),
        _sample(rng, "nothing left of B", (1, 4, 4, 1, 2), 5, 4.0, 7, 0.0),
    ]


def _sample(rng: np.random.Generator, name: str, grid: Shape, points: int, *cells: Any) -> Sample:
    params = Params(*cells)
    sizes = [[(count - 1) * params.jump + 1 for count in part] for part in (grid[1:3], grid[3:])]
    table = rng.uniform(-4, np.array(sizes[0][::-1]) + 4, (grid[0], points, 2))
    table[:, ::2] = table[:, ::2].round()
    bottoms = distinct(rng, grid), torch.from_numpy(table), *map(torch.tensor, sizes)
    return Sample(params, bottoms, differentiable=(), name=name)
