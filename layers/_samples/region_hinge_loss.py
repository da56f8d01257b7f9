"""Inputs of RegionHingeLoss: scores off the edges of the hinge."""

from __future__ import annotations

import numpy as np
import torch

from .._engine.checks import Shape
from .._engine.samples import Sample
from ..region_hinge_loss import Params


def samples(size: str, rng: np.random.Generator) -> list[Sample]:
    def sample(name: str, shape: Shape, margin: float = 1.0, least: float = 0.0) -> Sample:
        """Scores around both edges of the hinge, and none within 0.01 margins of them."""
        away = rng.uniform(0.01, 1.0, shape) * rng.choice((-1, 1), shape)
        edge = rng.choice((-1, 1), shape) if least < 0 else 1
        z = np.maximum(margin * (edge + away), least * margin)
        label = np.resize([1.0, 0.0, -1.0, 0.0], shape)
        bottoms = (torch.from_numpy(z), torch.from_numpy(label))
        return Sample(Params(margin), bottoms, name=name)

    if size == "paper":
        return [sample("500 x 500 regions", (500, 500))]
    if size == "large":
        return [sample("2000 x 2000 regions", (2000, 2000))]
    return [
        sample("rectified scores", (5, 6)),
        sample("both edges", (4, 7), 0.5, -3.0),
        sample("a list", (9,), 2.0),
        sample("several blocks", (33, 40)),
    ]
