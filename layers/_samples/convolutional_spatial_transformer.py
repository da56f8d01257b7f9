"""Inputs of ConvolutionalSpatialTransformer: maps, and transforms that read no cell's centre."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .._engine.checks import Shape
from .._engine.samples import Sample
from ..convolutional_spatial_transformer import Params, ThetaMode, sampling_points


def samples(size: str, rng: np.random.Generator) -> list[Sample]:
    def sample(name: str, shape: Shape, channels: int, k: int, mode: str = "RELATIVE") -> Sample:
        params = Params(k, ThetaMode[mode])
        theta = _off_the_kinks(params, rng, (shape[0], channels, *shape[2:]))
        return Sample(params, (torch.from_numpy(rng.standard_normal(shape)), theta), (0, 1), name=name)

    if size == "paper":
        return [
            sample("3x3 at a quarter of KITTI", (1, 96, 95, 311), 4, 3),
            sample("5x5 at a quarter of KITTI", (1, 16, 95, 311), 4, 5),
        ]
    if size == "large":
        return [sample("3x3, a batch", (8, 96, 95, 311), 6, 3)]
    return [
        sample("3x3", (2, 2, 3, 4), 4, 3),
        sample("absolute, with translation", (1, 3, 4, 3), 6, 3, "ABSOLUTE"),
        sample("even", (1, 2, 3, 2), 4, 2),
        sample("even, with translation", (2, 1, 2, 2), 6, 4),
        sample("one tap", (1, 1, 5, 13), 6, 1),
        sample("one cell", (1, 2, 1, 1), 6, 3),
        sample("one row", (2, 2, 1, 5), 4, 5, "ABSOLUTE"),
        sample("many channels", (1, 37, 1, 2), 6, 2),
    ]


def _off_the_kinks(params: Params, rng: np.random.Generator, shape: Shape) -> Tensor:
    """Thetas none of whose points, but an untransformed centre, is within 0.01 cells of a kink."""
    n, channels, height, width = shape
    theta = torch.empty(channels, n * height * width, dtype=torch.float64)
    bad = torch.ones(theta.shape[1], dtype=torch.bool)
    while count := int(bad.sum()):
        drawn = torch.from_numpy(rng.uniform(-0.8, 0.8, (channels, count)))
        theta[:, bad] = drawn
        bad[bad.clone()] = _near_a_kink(drawn, params)
    return theta.view(channels, n, height, width).movedim(0, 1).contiguous()


def _near_a_kink(theta: Tensor, params: Params) -> Tensor:
    """Whether each of the thetas ``[4 or 6, L]`` is: cells being alike, they may stand in a row."""
    k, (channels, length) = params.kernel_size, theta.shape
    points = sampling_points(theta.view(1, channels, 1, length), params)
    cells = (points + 1) * torch.tensor((length / 2, 0.5), dtype=theta.dtype) - 0.5
    near = ((cells - cells.round()).abs() < 0.01).any(-1).view(k, length, k)
    if channels == 4 and k % 2:
        near[k // 2, :, k // 2] = False
    return near.any(2).any(0)
