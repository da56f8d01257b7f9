"""Hyperpixel Flow's layers on a GPU: five maps of a ResNet-50 of two images of 300 x 212 pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from cortado.layers._geometry.cells import CellParams
from cortado.layers.hyperpixel_correlation import hyperpixel_correlation
from cortado.layers.regularized_hough_matching import regularized_hough_matching
from cortado.tools import plain
from cortado.tools.measuring import nbytes
from cortado.tools.results import OURS, PLAIN
from torch import Tensor

from .gpu_cases import Draw, GpuCase

SIZE = (212, 300)
Map = tuple[int, int, int]


def hyperpixel_cases(small: bool = False) -> list[GpuCase]:
    """Every case; ``small`` is for trying them out."""
    if small:
        bases: list[tuple[Map, Map, CellParams]] = [
            ((3, 14, 19), (4, 7, 10), CellParams(16.0, 27, 16.0))
        ]
        deep: Map = (5, 4, 5)
    else:
        bases = [
            ((512, 27, 38), (512, 27, 38), CellParams(8.0, 43, 8.0)),
            ((256, 53, 75), (512, 27, 38), CellParams(4.0, 27, 4.0)),
        ]
        deep = (1024, 14, 19)
    return [
        case
        for base, second, cells in bases
        for case in (
            *(_correlation([base, second, deep, deep, deep], cells, tf32) for tf32 in (False, True)),
            _matching(base, cells),
        )
    ]


def _kept(base: Map, cells: CellParams) -> tuple[plain.Kept, str]:
    """The cells that take part of two images, and how many they are."""
    kept = (*cells.grid(base[1:], SIZE), *cells.grid(base[1:], SIZE))
    count = math.prod(part.stop - part.start for part in kept[:2])
    return kept, f"{count:,} x {count:,} cells"


def _correlation(maps: Sequence[Map], cells: CellParams, tf32: bool) -> GpuCase:
    kept, shown = _kept(maps[0], cells)
    sides = [count * h * w for count, h, w in maps[1:]]
    base = maps[0][0] * math.prod(part.stop - part.start for part in kept)
    flops = 2.0 * (base + sum(side * h * w for side, (_, h, w) in zip(sides, maps[1:], strict=True)))

    def ours(*leaves: Tensor) -> Tensor:
        return hyperpixel_correlation(leaves[:5], leaves[5:], SIZE, SIZE, **vars(cells))

    return GpuCase(
        "HyperpixelCorrelation",
        f"{shown}, TF32" if tf32 else shown,
        lambda draw: tuple(draw.normal(1, *shape) for shape in (*maps, *maps)),
        {OURS: ours, PLAIN: lambda *leaves: plain.correlated(leaves[:5], leaves[5:], kept)},
        lambda leaves, top: (nbytes(*leaves, top), 2 * nbytes(*leaves) + nbytes(top)),
        tuple(range(10)),
        flops=flops,
        backward_flops=2 * flops,
        tf32=tf32,
        tolerance=1e-2 if tf32 else 1e-3,
        compiled=not tf32,
    )


def _matching(base: Map, cells: CellParams) -> GpuCase:
    kept, shown = _kept(base, cells)

    def draw(draw: Draw) -> tuple[Tensor, ...]:
        return ((draw.uniform(1, *base[1:], *base[1:]) ** 3).to(draw.dtype),)

    return GpuCase(
        "RegularizedHoughMatching",
        shown,
        draw,
        {
            OURS: partial(regularized_hough_matching, size_a=SIZE, size_b=SIZE, **vars(cells)),
            PLAIN: partial(plain.matched, size_a=SIZE, size_b=SIZE, kept=kept, jump=cells.jump),
        },
        lambda leaves, top: (2 * nbytes(*leaves) + nbytes(top), 2 * nbytes(top) + 2 * nbytes(*leaves)),
    )
