"""The displacements of RegularizedHoughMatching: their bins, the Gaussian, matches added up by them.

The match of a cell (r, c) of A with (r', c') of B has the displacement (r' - r, c' - c). Of H rows with
H' rows there are H + H' - 1 along y, the least first; likewise along x.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ._engine.checks import Shape
from ._engine.sizes import Size
from ._engine.wide import wide_dtype


def bins_of_displacements(
    kept: Sequence[slice], size_a: Size, size_b: Size, cells: float, jump: float
) -> list[tuple[np.ndarray, int]]:
    """The bin of each displacement ``[D]``, and how many bins there are; along y, then along x."""
    spans = [a + b for a, b in zip(size_a, size_b, strict=True)]
    cell = math.sqrt(math.prod(spans) / cells)
    found = []
    for a, b, length, span in zip(kept[:2], kept[2:], size_a, spans, strict=True):
        step = np.arange(b.start - (a.stop - 1), b.stop - a.start, dtype=np.float32)
        offset = np.float32(length) + np.float32(jump) * step
        count = int(span / cell) + 1
        bins = np.clip(offset / np.float32(cell), 0, count - 1)  # before the cast, which may overflow
        found.append((bins.astype(np.int64), count))
    return found


def smoothing(bins: np.ndarray, sigma: float, kernel_size: int) -> np.ndarray:
    """M ``[D, D]`` along an axis, float64: symmetric, from one displacement's sum to another's vote."""
    away, reach = np.abs(bins[:, None] - bins), kernel_size // 2
    weight = np.exp(-((np.arange(reach + 2) / sigma) ** 2) / 2)
    weight[reach + 1] = 0
    return (weight / (2 * weight.sum() - weight[0]))[np.minimum(away, reach + 1)]


def displacement_sums(columns: Iterable[Tensor], grid: Shape, like: Tensor) -> Tensor:
    """D ``[N, H + H' - 1, W + W' - 1]``: a row's matches are added up in float32 or wider, rows in
    float64.

    ``columns`` are those of A, ``[N, H, H', W']`` each; ``grid`` is [N, H, W, H', W']. The match of
    (r, c) with (r', c') counts at (r' - r + H - 1, c' - c + W - 1).
    """
    n, height, width, down, across = grid
    sheared = like.new_zeros(n, height, down, max(width + across - 1, 0), dtype=wide_dtype(like.dtype))
    for c, column in enumerate(columns):
        sheared.narrow(3, width - 1 - c, across).add_(column)
    sums = sheared.new_zeros(n, max(height + down - 1, 0), sheared.shape[3], dtype=torch.float64)
    for r, row in enumerate(sheared.unbind(1)):
        sums.narrow(1, height - 1 - r, down).add_(row)
    return sums


def looked_up(votes: Tensor, grid: Shape) -> Iterator[Tensor]:
    """The votes ``[N, DY, DX]`` of the matches of A's columns, ``[N, H, H', W']`` each, as
    :func:`displacement_sums` counts them."""
    _, height, width, down, across = grid
    if not height:
        return
    sheared = torch.stack([votes.narrow(1, height - 1 - r, down) for r in range(height)], 1)
    for c in range(width):
        yield sheared.narrow(3, width - 1 - c, across)
