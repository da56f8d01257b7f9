"""The cells of a map over an image, as Hyperpixel Flow counts them.

Cell (row r, column c) lies at the image point (c jump, r jump), 0-based, in the middle of a square box
that reaches half the receptive field, rounded down, to each side. With a ``margin`` those cells take
part whose box reaches at most so many pixels beyond the image: x0 >= -margin and x1 < W + margin, rows
likewise. They are a rectangle of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .._engine.checks import Shape
from .._engine.params import param
from .._engine.sizes import Size

Kept = tuple[slice, slice, slice, slice]
"""The rows and columns that take part of a grid [H, W, H', W']."""


@dataclass(frozen=True)
class CellParams:
    """Where the cells lie; the fields that layers over a grid of cells share."""

    jump: float = param(4.0, above=0, unit="image pixels", doc="from a cell to the next")
    receptive_field: int = param(27, low=1, unit="image pixels", doc="side of a cell's box, and 1")
    margin: float | None = param(
        None, unit="image pixels", doc="how far a box may lie outside; not given: every cell counts"
    )

    @property
    def half(self) -> int:
        """From a cell's point to its box's sides."""
        return self.receptive_field // 2

    def kept(self, count: int, length: float) -> slice:
        """Which of ``count`` cells along an axis of so many pixels take part."""
        if self.margin is None:
            return slice(0, count)
        first = self.first(count)
        end = min(math.ceil((length + self.margin - self.half) / self.jump), count)
        return slice(first, max(end, first))

    def first(self, count: int) -> int:
        """The first of them, which is the same over every image."""
        if self.margin is None:
            return 0
        return min(max(math.ceil((self.half - self.margin) / self.jump), 0), count)

    def grid(self, counts: Shape, size: Size) -> tuple[slice, slice]:
        """The rows and columns that take part of a grid over an image of (height, width)."""
        return self.kept(counts[0], size[0]), self.kept(counts[1], size[1])

    def pair(self, grid: Shape, size_a: Size, size_b: Size) -> Kept:
        """Of a grid [H, W, H', W'] over two images."""
        return *self.grid(grid[:2], size_a), *self.grid(grid[2:], size_b)

    def pair_again(self, grid: Shape, counts: Shape) -> Kept:
        """The same, from how many cells take part along each axis."""
        starts = map(self.first, grid)
        a, b, c, d = (slice(x, x + count) for x, count in zip(starts, counts, strict=True))
        return a, b, c, d


def counts(kept: Sequence[slice]) -> list[int]:
    """How many cells are kept along each axis."""
    return [part.stop - part.start for part in kept]


def place(grid: Shape, kept: Sequence[slice]) -> dict[str, int]:
    """A grid [H, W, H', W'] and the part of it that is kept, as kernels name them."""
    sides = ("h_a", "w_a", "h_b", "w_b")
    starts = zip(("top_a", "left_a", "top_b", "left_b"), (part.start for part in kept), strict=True)
    lengths = zip((f"kept_{side}" for side in sides), counts(kept), strict=True)
    return dict(zip(sides, grid, strict=True)) | dict(starts) | dict(lengths)


def clear_others(blob: Tensor, kept: Sequence[slice]) -> Tensor:
    """The blob ``[N, H, W, ...]`` with 0 written wherever it is not kept along each axis; no more."""
    for axis, part in enumerate(kept, start=1):
        blob.narrow(axis, 0, part.start).zero_()
        blob.narrow(axis, part.stop, blob.shape[axis] - part.stop).zero_()
    return blob


def as_tensor(array: np.ndarray, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A small array on a device, without a wait for it: the array is read when this returns."""
    return torch.from_numpy(array).to(dtype).to(device, non_blocking=True)
