"""Inputs of RegionPairSampling: boxes, many of which overlap."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .._engine.samples import Sample
from ..region_pair_sampling import Params, Rule


def samples(size: str, rng: np.random.Generator) -> list[Sample]:
    def sample(name: str, p: int, s: int, *options: Any) -> Sample:
        """Boxes around a few centres, so that many overlap."""
        corner = rng.integers(0, 4, (p + s, 2)) * 20 + rng.integers(0, 8, (p + s, 2))
        table = np.concatenate((corner, corner + rng.integers(20, 32, (p + s, 2))), axis=1)
        truth = np.concatenate((table[:p], rng.choice((1, 1, -1), (p, 1))), axis=1)
        rois = np.concatenate((np.zeros((s, 1)), table[p:]), axis=1)
        bottoms = (rng.random((p, s)), rois, truth.astype(float))
        return Sample(Params(*options), tuple(map(torch.from_numpy, bottoms)), (), (), name=name)

    if size == "paper":
        return [sample("500 x 500 regions", 500, 500)]
    if size == "large":
        return [sample("2000 x 2000 regions", 2000, 2000)]
    return [
        sample("paper", 12, 30),
        sample("released", 12, 30, Rule.RELEASED),
        sample("few negatives", 9, 25, Rule.PAPER, 0.01, 0.01),
        sample("other thresholds", 10, 40, Rule.RELEASED, 0.3, 0.3),
    ]
