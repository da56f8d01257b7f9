"""Inputs of ROIPooling: maps without equal values, rois inside and outside of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .._engine.checks import Shape
from .._engine.samples import Sample, distinct
from ..roi_pooling import Edges, Params


def samples(size: str, rng: np.random.Generator) -> list[Sample]:
    def sample(
        name: str,
        shape: Shape,
        number: int,
        beyond: float,
        *options: Any,
        check: bool = True,
        whole: bool = False,
        ties: bool = False,
    ) -> Sample:
        """Rois whose corners are not near a half, some of them outside by ``beyond`` maps."""
        params, (height, width) = Params(*options), shape[2:]
        extent = np.array((width, height))
        corner = np.floor(rng.uniform(-beyond, 1 + beyond, (number, 2, 2)) * extent)
        corner = np.sort(corner, axis=1) + rng.uniform(-0.4, 0.4, corner.shape)
        image = rng.integers(0, shape[0], (number, 1))
        rois = np.concatenate((image, corner.reshape(-1, 4) / params.spatial_scale), axis=1)
        table = torch.from_numpy(rois)
        planes = [distinct(rng, (height, width)) for _ in range(shape[0] * shape[1])]
        data = torch.stack(planes).view(shape)
        bottoms = (2 * data).round() if ties else data, table.int() if whole else table
        return Sample(params, bottoms, name=name, check_gradient=check and not ties)

    if size == "paper":
        return [sample("VGG16, 1000 regions", (1, 512, 30, 40), 1000, 0.0, 7, 7, 1 / 16)]
    if size == "large":
        return [sample("two images, 2000 regions", (2, 512, 60, 80), 2000, 0.0, 7, 7, 1 / 16)]
    ramp = torch.linspace(-0.9, 1, 174, dtype=torch.float64).view(58, 3).T
    wide = torch.tensor([[0, 0, 0, 56, 2], [0, 0.8, 1, 57.3, 1]], dtype=torch.float64)
    uneven = torch.stack((ramp, -ramp))[None], wide  # 57 cells, where the edges differ
    middle = torch.tensor([[0.0, 44, 30, 47, 31]], dtype=torch.float64)  # where a block's band ends
    return [
        sample("two images", (2, 3, 6, 7), 5, 0.0, 2, 3, 0.25),
        sample("partly outside", (2, 2, 5, 4), 9, 0.8, 3, 2, 1.0),
        sample("more bins than cells", (1, 2, 3, 4), 4, 0.3, 5, 6, 0.1),
        sample("one bin", (3, 1, 6, 5), 4, 0.1, 1, 1, 1 / 16),
        sample("one cell", (1, 3, 1, 1), 2, 0.0, 2, 2, 0.5),
        Sample(Params(1, 7), uneven, name="exact edges"),
        Sample(Params(1, 7, 1.0, Edges.released), uneven, name="released edges"),
        sample("integers", (2, 2, 5, 6), 4, 0.2, 2, 2, 0.25, Edges.released, whole=True),
        sample("ties", (1, 2, 6, 5), 5, 0.1, 2, 2, 0.5, ties=True),
        sample("many rois", (2, 2, 4, 3), 70, 0.1, 1, 2, 0.5, check=False),
        sample("several blocks", (2, 33, 9, 11), 5, 0.1, 3, 3, 1 / 16, check=False),
        sample("whole blocks", (2, 32, 4, 8), 3, 0.1, 4, 8, 0.5, check=False),
        Sample(
            Params(2, 4),
            (distinct(rng, (1, 1, 61, 89)), middle),
            name="a large map",
            check_gradient=False,
        ),
    ]
