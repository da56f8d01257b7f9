"""Inputs of RectifiedCosine: descriptors whose cosines are far from 0."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .._engine.checks import Shape
from .._engine.samples import Sample
from ..rectified_cosine import Params, squeezed


def samples(size: str, rng: np.random.Generator) -> list[Sample]:
    def sample(
        name: str, a: Shape, b: Shape, *options: Any, scale: float = 1.0, check: bool = True
    ) -> Sample:
        """Elements of a descriptor have one sign, so that no cosine is near 0."""
        tables = []
        for shape in (a, b):
            lead = len(squeezed(shape)) - 1
            sign = rng.choice((-1, 1), (*shape[:lead], *(1,) * (len(shape) - lead)))
            tables.append(torch.from_numpy(scale * sign * np.abs(rng.standard_normal(shape))))
        return Sample(Params(*options), tuple(tables), (0, 1), name=name, check_gradient=check)

    if size == "paper":
        return [sample("1000 x 1000 regions", (1, 1000, 2048), (1, 1000, 2048))]
    if size == "large":
        return [sample("2000 x 2000 regions", (1, 2000, 2048), (1, 2000, 2048))]
    return [
        sample("batched", (2, 3, 4), (2, 5, 4), 1.5),
        sample("Eq. 6", (4, 6), (5, 6)),
        sample("cubed", (3, 5), (4, 5), 3.0),
        sample("unit vectors", (4, 5), (3, 5), 1.0, True, scale=0.5),
        sample("mostly below eps", (3, 4), (4, 4), 1.0, False, 2.0),
        sample("convolution's tops", (3, 4, 1, 1), (4, 4, 1, 1)),
        sample("long descriptors", (3, 300), (2, 300), 1.5, check=False),
    ]
