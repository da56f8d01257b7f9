"""Inputs of HyperpixelCorrelation: maps of two images, some with the images' sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .._engine.checks import Shape
from .._engine.samples import Sample, normal
from ..hyperpixel_correlation import Params


def samples(size: str, rng: np.random.Generator) -> list[Sample]:
    if size == "paper":  # Table 4's real-time net: res3a, res3d, res4d, res4e, res4f
        return [_photographs(rng, "900 x 900 cells", (512, 28, 38), (512, 28, 38), 8.0, 43)]
    if size == "large":  # ResNet-50's best: res2b in place of res3a
        return [_photographs(rng, "3300 x 3300 cells", (256, 53, 75), (512, 27, 38), 4.0, 27)]
    small: dict[str, Any] = {"jump": 4.0, "receptive_field": 11, "margin": 2.0}
    return [
        _sample(
            rng,
            "two sizes",
            [(2, 4, 3), (3, 2, 2), (1, 2, 2)],
            [(2, 3, 4), (3, 2, 3), (1, 2, 3)],
            n=2,
        ),
        _sample(rng, "the base alone", [(3, 3, 4)], [(3, 4, 2)], exponent=1.0, n=2, signs=(1, -1)),
        _sample(rng, "one cell, one row", [(2, 3, 4), (2, 1, 1)], [(2, 1, 3), (2, 2, 1)], exponent=2.0),
        _sample(rng, "finer than the base", [(2, 2, 3), (2, 4, 5)], [(2, 3, 1), (2, 5, 3)]),
        _sample(rng, "one of one size", [(2, 3, 3), (2, 2, 2)], [(2, 2, 2), (2, 2, 2)], exponent=1.5),
        _sample(rng, "mostly below eps", [(3, 3, 3), (2, 2, 2)], [(3, 3, 2), (2, 2, 1)], eps=4.0),
        _sample(
            rng, "a margin", [(2, 4, 5), (1, 2, 3)], [(2, 5, 4), (1, 3, 2)], 2, images=True, **small
        ),
        _sample(
            rng,
            "many cells and channels",
            [(1, 5, 13), (65, 2, 3)],
            [(1, 3, 43), (65, 2, 2)],
            n=2,
            check=False,
        ),
        _sample(
            rng,
            "a margin that leaves nothing",
            [(2, 3, 3), (1, 2, 2)],
            [(2, 3, 3), (1, 2, 2)],
            images=True,
            check=False,
            margin=0.0,
        ),
        _sample(rng, "weights", [(3, 3, 2), (2, 2, 2)], [(3, 2, 3), (2, 2, 2)], channel_weights=True),
    ]


def _photographs(
    rng: np.random.Generator,
    name: str,
    base: Shape,
    second: Shape,
    jump: float,
    receptive_field: int,
) -> Sample:
    """Two images of 300 x 212 pixels, by five maps of a ResNet-50."""
    cells: dict[str, Any] = {"jump": jump, "receptive_field": receptive_field, "margin": jump}
    maps: list[Shape] = [base, second, *[(1024, 14, 19)] * 3]
    return _sample(rng, name, maps, maps, images=(212, 300), **cells)


def _sample(
    rng: np.random.Generator,
    name: str,
    maps_a: list[Shape],
    maps_b: list[Shape],
    n: int = 1,
    signs: tuple[int, ...] = (),
    images: bool | tuple[int, int] = False,
    check: bool = True,
    **options: Any,
) -> Sample:
    """Maps of any sign, or with ``signs`` positive ones, those of B times one for each item."""
    params = Params(**options)
    maps = [normal(rng, (n, *shape)) for shape in (*maps_a, *maps_b)]
    if signs:
        sign = torch.tensor(signs)[:, None, None, None]
        maps = [x.abs() * sign ** int(i >= len(maps_a)) for i, x in enumerate(maps)]
    sizes = (images, images) if isinstance(images, tuple) else ((12, 16), (16, 12))
    last = [torch.zeros(n, 1, *size, dtype=torch.float64) for size in sizes] if images else []
    return Sample(params, (*maps, *last), tuple(range(len(maps))), name=name, check_gradient=check)
