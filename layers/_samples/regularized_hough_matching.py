"""Inputs of RegularizedHoughMatching: random similarities, over two images' sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .._engine.checks import Shape
from .._engine.samples import Sample
from ..regularized_hough_matching import Params

BASE: dict[str, Any] = {"jump": 4.0, "receptive_field": 27, "margin": 4.0}
FAST: dict[str, Any] = {"jump": 8.0, "receptive_field": 43, "margin": 8.0}
SMALL: dict[str, Any] = {"jump": 4.0, "receptive_field": 11, "margin": 2.0}


def samples(size: str, rng: np.random.Generator) -> list[Sample]:
    if size == "paper":  # a real-time net's cells, and those of the others at 200 x 150 pixels
        return [_sample(rng, "900 x 900 cells", (1, 30, 38, 30, 38), (240, 300), (240, 300), **FAST)]
    if size == "large":
        return [_sample(rng, "3300 x 3300 cells", (1, 53, 75, 53, 75), (212, 300), (212, 300), **BASE)]
    return [
        _sample(rng, "every cell", (2, 3, 4, 4, 3), (11, 15), (15, 11), cells=40.0),
        _sample(rng, "a margin", (2, 4, 5, 5, 4), (12, 16), (16, 12), **SMALL, cells=60.0),
        _sample(rng, "bins of many", (1, 4, 4, 3, 5), (16, 16), (12, 20), cells=4.0),
        _sample(rng, "not smoothed", (1, 3, 4, 4, 3), (12, 16), (16, 12), kernel_size=1),
        _sample(
            rng,
            "a margin that leaves nothing",
            (1, 3, 3, 3, 3),
            (12, 12),
            (12, 12),
            False,
            margin=0.0,
        ),
        _sample(rng, "cells outside", (1, 3, 7, 4, 6), (5, 9), (5, 30), cells=30.0, jump=2.5),
        _sample(rng, "strips of columns", (2, 1, 33, 1, 31), (4, 132), (4, 124), False),
        _sample(rng, "pieces of rows", (1, 11, 2, 9, 2), (44, 8), (36, 8), cells=100.0, sigma=0.8),
    ]


def _sample(
    rng: np.random.Generator,
    name: str,
    grid: Shape,
    size_a: tuple[int, int],
    size_b: tuple[int, int],
    check: bool = True,
    **options: Any,
) -> Sample:
    similarity = torch.from_numpy(rng.random(grid) ** 3)
    images = (torch.zeros(1, 1, *size, dtype=torch.float64) for size in (size_a, size_b))
    return Sample(Params(**options), (similarity, *images), name=name, check_gradient=check)
