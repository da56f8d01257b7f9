"""Inputs of ExtractFeature: points in and around the map."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .._engine.checks import Shape
from .._engine.samples import Sample
from ..extract_feature import Params


def samples(size: str, rng: np.random.Generator) -> list[Sample]:
    def sample(
        name: str,
        shape: Shape,
        points: int,
        *options: Any,
        beyond: float = 0.0,
        whole: bool = False,
        checked: bool = True,
    ) -> Sample:
        params = Params(5, *options)
        extent = params.downsampling_factor * np.array([shape[3], shape[2]] * 2)
        xy = rng.uniform(-beyond, 1 + beyond, (shape[0], points, 4)) * extent
        s = rng.integers(-1, 2, (shape[0], points, 1))
        pairs = np.concatenate((xy, s), axis=2)
        bottoms = (rng.standard_normal(shape), pairs.astype(np.int32) if whole else pairs)
        tensors = tuple(map(torch.from_numpy, bottoms))
        return Sample(params, tensors, name=name, check_gradient=checked)

    if size == "paper":
        return [sample("KITTI, 3k points", (2, 128, 95, 311), 3000)]
    if size == "large":
        return [sample("KITTI, 100k points", (2, 128, 95, 311), 100_000)]
    return [
        sample("bilinear", (2, 3, 4, 5), 6),
        sample("mostly outside", (2, 2, 3, 4), 9, 0, 4.0, beyond=1.0),
        sample("second image, shifted, nearest", (2, 2, 3, 4), 9, 2, 4.0, 4.0, False),
        sample("finer than the image", (1, 3, 4, 5), 5, 1, 0.5, -0.25),
        sample("one cell", (1, 2, 1, 1), 4),
        sample("one column", (2, 2, 4, 1), 4, beyond=0.2),
        sample("few points", (2, 32, 4, 8), 5, beyond=0.5, checked=False),
        sample("few points, nearest", (1, 2, 5, 8), 3, 0, 4.0, 0.0, False),
        sample("integers", (2, 2, 4, 5), 6, 1, whole=True),
        sample("several tiles", (2, 33, 5, 7), 34, 0, 4.0, -1.0, checked=False),
    ]
