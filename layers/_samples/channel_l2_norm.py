"""Inputs of ChannelL2Norm: normal values."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .._engine.checks import Shape
from .._engine.samples import Sample
from ..channel_l2_norm import EpsilonMode, Params


def samples(size: str, rng: np.random.Generator) -> list[Sample]:
    def sample(name: str, shape: Shape, *options: Any, scale: float = 1.0) -> Sample:
        x = scale * rng.standard_normal(shape)
        return Sample(Params(*options), (torch.from_numpy(x),), name=name)

    if size == "paper":
        return [sample("features of KITTI", (2, 128, 95, 311))]
    if size == "large":
        return [sample("many channels", (8, 1024, 95, 311))]
    shape = (2, 3, 4, 5)
    return [
        sample("max", shape),
        sample("max, mostly below eps", shape, 3.0, EpsilonMode.MAX),
        sample("sqrt", shape, 0.1, EpsilonMode.SQRT),
        sample("SCNet", (7, 6, 1, 1), 1e-10, EpsilonMode.SQRT),
        sample("none", (2, 3, 5), 0.0, EpsilonMode.NONE, scale=100.0),
        sample("vectors", (4, 3)),
        sample("many channels", (1, 70, 3, 3)),
        sample("one channel, 3-D", (1, 1, 2, 2, 2), 0.5, EpsilonMode.SQRT),
    ]
