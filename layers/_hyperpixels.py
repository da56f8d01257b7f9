"""Hyperpixels that are never made: maps are multiplied at their own size, their products upsampled.

With U the upsampling of a map F (cells by channels) to the base's size, and U', F' the other image's,
the products of upsampled cells are U (F F'^T) U'^T. A squared length is the sum of (U F F^T U^T)(p, p)
over the maps: four cells of a map meet in p, so that it takes the products of each cell with itself and
with its neighbours to the right, below, and along both diagonals, once per image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._engine.checks import Shape
from ._engine.wide import wide_dtype
from ._geometry.cells import Kept, as_tensor

ROWS = 1 << 20  # matches at a time: what stays in a core's cache


class Axis(NamedTuple):
    """Along an axis, base cell i is ``1 - t[i]`` of a map's cell ``low[i]``, ``t[i]`` of the next."""

    cells: int
    low: np.ndarray
    t: np.ndarray

    @classmethod
    def of(cls, count: int, base: int, kept: slice) -> Axis:
        """For the cells of a base of ``base`` that are kept, of a map of ``count``."""
        at = np.arange(base)[kept] * ((count - 1) / max(base - 1, 1))
        low = np.clip(np.floor(at), 0, max(count - 2, 0)).astype(np.int64)
        return cls(count, low, at - low)

    def matrix(self, first: np.ndarray, second: np.ndarray, like: Tensor) -> Tensor:
        """``[kept, count]`` with ``first`` at the lower cell and ``second`` at the next."""
        found, rows = np.zeros((len(self.low), self.cells + 1)), np.arange(len(self.low))
        found[rows, self.low], found[rows, self.low + 1] = first, second
        return as_tensor(found[:, : self.cells], like.dtype, like.device)

    def up(self, like: Tensor) -> Tensor:
        """U."""
        return self.matrix(1 - self.t, self.t, like)

    def squares(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """What products of a cell with itself ``[kept, count]``, and with the next one
        ``[kept, count - 1]``, count in a squared length."""
        crossed = self.matrix(2 * self.t * (1 - self.t), 0 * self.t, like)
        return self.matrix((1 - self.t) ** 2, self.t**2, like), crossed[:, : self.cells - 1]


class Square(NamedTuple):
    """Squared lengths of a map's upsampled cells: sums of products of cells with their neighbours."""

    terms: list[tuple[tuple[slice, slice], tuple[slice, slice], Tensor, Tensor]]

    @classmethod
    def of(cls, x: Tensor, base: Shape, kept: Sequence[slice]) -> Square:
        """For a map ``[N, C, h, w]`` on the kept cells of a base (rows, columns)."""
        axes = (Axis.of(*each) for each in zip(x.shape[2:], base, kept, strict=True))
        (down, below), (across, beside) = (axis.squares(x) for axis in axes)
        every, first, last = slice(None), slice(0, -1), slice(1, None)
        terms = [((every, every), (every, every), down, across)]
        if x.shape[2:] != tuple(base):
            terms += [
                ((every, first), (every, last), down, beside),
                ((first, every), (last, every), below, across),
                ((first, first), (last, last), below / 2, beside),
                ((first, last), (last, first), below / 2, beside),
            ]
        return cls(terms)

    def __call__(self, x: Tensor) -> Tensor:
        """``[N, rows, columns]``."""
        found = (
            down @ (x[..., *one] * x[..., *other]).sum(1) @ across.mT
            for one, other, down, across in self.terms
        )
        return sum(found, x.new_zeros(()))

    def backward(self, gradient: Tensor, x: Tensor, into: Tensor) -> None:
        """Adds to the map's gradient that of its squared lengths."""
        for one, other, down, across in self.terms:
            weight = (down.mT @ gradient @ across)[:, None]
            into[..., *one] += weight * x[..., *other]
            into[..., *other] += weight * x[..., *one]


def squared_lengths(maps: Sequence[Tensor], kept: Sequence[slice]) -> Tensor:
    """L^2 ``[N, rows, columns]`` of the kept hyperpixels of an image's maps, the base first."""
    base = maps[0].shape[2:]
    found = (Square.of(x, base, kept)(x).clamp_(min=0) for x in maps)  # below 0 by rounding
    return sum(found, maps[0].new_zeros(()))


class Upsampling(NamedTuple):
    """U of a map of A and of one of B, along rows and columns, of the kept cells."""

    down_a: Tensor
    across_a: Tensor
    down_b: Tensor
    across_b: Tensor

    @classmethod
    def of(cls, sizes: Shape, grid: Shape, kept: Kept, like: Tensor) -> Upsampling:
        """From maps of (h, w, h', w') to a grid (H, W, H', W')."""
        return cls(*(Axis.of(*each).up(like) for each in zip(sizes, grid, kept, strict=True)))

    def columns(self, product: Tensor) -> Tensor:
        """A product ``[N, h, w, h', w']`` upsampled but for A's rows: ``[N, h, W H' W']``."""
        found = (self.down_b @ (product @ self.across_b.mT)).flatten(3)
        return (self.across_a @ found).flatten(2)

    def transposed(self, gradient: Tensor) -> Tensor:
        """The product's gradient ``[N, h, w, h', w']`` of that of the kept ``[N, H, W, H', W']``."""
        columns, *cells = gradient.shape[2:]
        found = (self.down_a.mT @ gradient.flatten(2)).unflatten(2, (columns, math.prod(cells)))
        return self.down_b.mT @ (self.across_a.mT @ found).unflatten(3, cells) @ self.across_b


class Group(NamedTuple):
    """The maps of one size: of A ``[N, C, h, w]``, of B ``[N, C, h', w']``, and which they are."""

    a: Tensor
    b: Tensor
    members: tuple[int, ...]

    @property
    def sizes(self) -> Shape:
        return (*self.a.shape[2:], *self.b.shape[2:])

    def cut(self, kept: Kept) -> Group:
        """The kept cells of the base's maps."""
        return self._replace(a=self.a[..., *kept[:2]], b=self.b[..., *kept[2:]])

    def up_to(self, grid: Shape, kept: Kept) -> Upsampling:
        return Upsampling.of(self.sizes, grid, kept, self.a)


def groups(maps_a: Sequence[Tensor], maps_b: Sequence[Tensor]) -> list[Group]:
    """Maps of one size concatenated, in float32 or wider, the base's first."""
    found: dict[Shape, list[int]] = {}
    for i, (a, b) in enumerate(zip(maps_a, maps_b, strict=True)):
        found.setdefault((*a.shape[2:], *b.shape[2:]), []).append(i)
    wide = wide_dtype(maps_a[0].dtype)

    def joined(maps: Sequence[Tensor], members: list[int]) -> Tensor:
        chosen = [maps[i].to(wide) for i in members]
        return chosen[0] if len(chosen) == 1 else torch.cat(chosen, 1)

    return [Group(joined(maps_a, x), joined(maps_b, x), tuple(x)) for x in found.values()]


def product(a: Tensor, b: Tensor) -> Tensor:
    """``[N, h, w, h', w']``: F F'^T of maps ``[N, C, h, w]`` and ``[N, C, h', w']``."""
    found = a.flatten(2).mT @ b.flatten(2)
    return found.view(len(a), *a.shape[2:], *b.shape[2:])


Term = Callable[[slice, Tensor], None]
"""Adds the numerator's term of a group, for some rows of A, to ``[N, rows, W H' W']``."""


def base_term(base: Group, kept: Kept) -> Term:
    """Of maps of the base's size: their products, where cells are kept."""
    a, b = base.a[..., *kept[:2]], base.b[..., *kept[2:]].flatten(2)

    def add(rows: slice, numerator: Tensor) -> None:
        some = a[:, :, rows].flatten(2).mT
        numerator.view(len(a), some.shape[1], b.shape[2]).baddbmm_(some, b)

    return add


def upsampled_term(product: Tensor, grid: Shape, kept: Kept) -> Term:
    """Of maps of another size: their product ``[N, h, w, h', w']``, upsampled to the kept cells."""
    up, height = Upsampling.of(product.shape[1:], grid, kept, product), product.shape[1]
    low, columns = Axis.of(height, grid[0], kept[0]).low, dict[int, Tensor]()  # by rows of the product

    def add(rows: slice, numerator: Tensor) -> None:
        near = range(low[rows.start], min(low[rows.stop - 1] + 2, height))
        for row in columns.keys() - {*near}:
            del columns[row]
        for row in near:
            if row not in columns:
                columns[row] = up.columns(product[:, row : row + 1])
        part = up.down_a[rows, near.start : near.stop].expand(len(product), -1, -1)
        numerator.baddbmm_(part, torch.cat([columns[row] for row in near], 1))

    return add


def cosines(
    terms: Sequence[Term], lengths_a: Tensor, lengths_b: Tensor, eps: float
) -> Iterator[tuple[slice, Tensor]]:
    """Some rows of A after the other, and the rectified cosines ``[N, rows, W, H', W']`` of theirs.

    ``terms`` add up to the numerator; the squared lengths are ``[N, H, W]`` and ``[N, H', W']``.
    """
    n, height, width = lengths_a.shape
    one, other = (1 / x.sqrt().clamp(min=eps) for x in (lengths_a, lengths_b))
    matches = width * math.prod(other.shape[1:])  # of a row of A
    step = max(ROWS // max(n * matches, 1), 1)
    for first in range(0, height, step):
        rows = slice(first, min(first + step, height))
        numerator = other.new_zeros(n, rows.stop - first, matches)
        for add in terms:
            add(rows, numerator)
        cosine = numerator.unflatten(2, (width, *other.shape[1:]))
        cosine.mul_(one[:, rows, :, None, None]).mul_(other[:, None, None]).clamp_(0, 1)
        yield rows, cosine


Complete = Callable[[Tensor, Tensor, Shape, Sequence[slice], Tensor, torch.dtype], Tensor]
"""A map's gradient as :func:`completed` makes it, or kernels."""


def completed(
    gradient: Tensor,
    x: Tensor,
    base: Shape,
    kept: Sequence[slice],
    lengths: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """A map's gradient of that of its products, which has all of its cells or those kept, and that of
    its squared lengths."""
    whole = gradient.view_as(x) if gradient.numel() == x.numel() else _whole(gradient, x, kept)
    Square.of(x, base, kept).backward(lengths, x, whole)
    return whole.to(dtype)


def _whole(gradient: Tensor, x: Tensor, kept: Sequence[slice]) -> Tensor:
    found = torch.zeros_like(x, memory_format=torch.contiguous_format)
    part = found[..., kept[0], kept[1]]
    part.copy_(gradient.view_as(part))
    return found


def to_maps(
    numerator: Tensor,
    lengths: Sequence[Tensor],
    maps_a: Sequence[Tensor],
    maps_b: Sequence[Tensor],
    kept: Kept,
    complete: Complete = completed,
) -> list[Tensor]:
    """The maps' gradients, of those of the kept numerators and of both images' squared lengths."""
    base, *others = groups(maps_a, maps_b)
    count = len(maps_a)
    found: list[Tensor] = [torch.empty(0)] * (2 * count)
    for group in (base, *others):
        part = group.cut(kept) if group is base else group
        given = numerator if group is base else group.up_to(base.sizes, kept).transposed(numerator)
        matches = given.flatten(3).flatten(1, 2)
        sides = (part.b.flatten(2) @ matches.mT, group.a), (part.a.flatten(2) @ matches, group.b)
        for side, (gradient, x) in enumerate(sides):
            size, cells = (base.a, base.b)[side].shape[2:], kept[2 * side :][:2]
            whole = complete(gradient, x, size, cells, lengths[side], maps_a[0].dtype)
            channels = [maps_a[i].shape[1] for i in group.members]
            for i, piece in zip(group.members, whole.split(channels, 1), strict=True):
                found[side * count + i] = piece
    return found
