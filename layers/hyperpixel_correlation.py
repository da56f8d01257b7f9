"""HyperpixelCorrelation: how alike the hyperpixels of two images are, without ever making them.

A hyperpixel is what several maps of one net hold at a cell of the first of them, the base: the others
are upsampled to it bilinearly, corners on corners (``align_corners``), and all are concatenated along
their channels (Hyperpixel Flow, Eq. 1). Of a cell p of image A and a cell p' of image B (Eq. 4)

    s(p, p') = max(0, cos(f(p), f'(p'))) ^ exponent

Bottoms: the maps of image A, each ``[N, C_l, H_l, W_l]``, the base first; then as many of B,
``[N, C_l, H'_l, W'_l]``; one floating type. With a ``margin`` also the two images, or their sizes (two
values, height and width). Top: ``[N, H, W, H', W']`` over the cells of the bases, in that type. Cells
that the margin leaves out (``_geometry/cells.py``) are not computed: they get 0, and give no gradient.
With ``channel_weights`` the layer owns a blob ``[C_l]`` for each map, shared by A and B, which
multiplies its channels.

**How.** With U the upsampling of a map F to the base's size, the numerator is a sum over the maps,

    N = sum of U F^T F' U'^T:

maps of one size are multiplied at that size, their sum ``[h, w, h', w']`` is upsampled along its four
axes. The length is that of the upsampled, concatenated hyperpixel, whose square is the sum of
(U F F^T U^T)(p, p): four cells of a map meet in p, so that it takes the products of each cell with
itself and with its neighbours to the right, below, and along both diagonals, once per image. Lengths
below ``eps`` count as ``eps``, those whose square overflows (1.8e19 in float32) give NaN. Arithmetic is
in float32 or wider; what rounding leaves of hyperpixels that cancel stays within 0 to 1. On CUDA the
matrix products are torch's (cuBLAS), in float32, or TF32 where torch is told to; kernels do
what surrounds them.

Backward fills the gradients of all maps, and of the channel weights. With g the top's gradient,
h = exponent cos^(exponent - 1) where the cosine is positive, else 0, and L(p) the length of f(p),

    G(p, p') = g h / (L(p) L'(p')),    a(p) = -sum over p' of g h cos / L(p)^2,
    dF = U^T G U' F' + (U^T diag(a) U) F

(a = 0 where the length is held at eps), and likewise for B.

For ``res2b, res3d, res4d, res4e, res4f`` of a ResNet-50 and 3,300 cells a side (300 x 200 pixels) the
base takes 2.8 billion multiply-adds and everything else 1.3; 3,840 channels, upsampled and
concatenated, take 42.

*Differs from the original:* the same numbers, by linearity; and the original has no eps (0 / 0 is NaN).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._engine import cuda
from ._engine.checks import BlobError, Shape, expect_axes, expect_floating, kind_of, shapes
from ._engine.declared import Bottom, Role, Top, Trait
from ._engine.definition import Definition, Spec
from ._engine.fillers import FillerParams, parameter
from ._engine.layer import Layer
from ._engine.operators import unbacked
from ._engine.params import param
from ._engine.registry import register
from ._engine.samples import Sample, normal
from ._engine.sizes import Size, expect_sizes, shape_of
from ._engine.wide import wide_dtype
from ._geometry import cells
from ._geometry.cells import CellParams, as_tensor, clear_others, counts, place

Kept = cells.Kept
NOWHERE = 0.0, 0.0  # an image that is not given: without a margin none is looked at
ROWS = 1 << 20  # matches at a time: what stays in a core's cache


@dataclass(frozen=True)
class Params(CellParams):
    exponent: float = param(3.0, low=1, doc="of the rectified cosine")
    eps: float = param(1e-12, above=0, doc="the least length to divide by")
    channel_weights: bool = param(False, doc="a blob for each map that multiplies its channels")
    filler: FillerParams = param(  # compilers know of no instance that is a default
        factory=lambda: FillerParams(value=1.0), doc="of these; default: constant 1"
    )


BOTTOMS = (
    Bottom("maps", "[N, C, H, W]", many=True),
    Bottom("size_a", "[N, C, H, W]", Role.SIZE, optional=True),
    Bottom("size_b", "[N, C, H, W]", Role.SIZE, optional=True),
)
TOPS = (Top("top"),)


def split(bottoms: Sequence[Any], margin: bool) -> tuple[list[Any], list[Any], list[Any]]:
    """The maps of A, those of B, the sizes; raises BlobError for an odd number of maps."""
    count = len(bottoms) - 2 * margin
    if count < 2 or count % 2:
        sizes = " and two images" if margin else ""
        raise BlobError(f"expected as many maps of B as of A{sizes}, got {len(bottoms)} bottoms")
    return list(bottoms[: count // 2]), list(bottoms[count // 2 : count]), list(bottoms[count:])


def infer(params: Params, *bottoms: Shape) -> tuple[Shape]:
    """``[N, H, W, H', W']``; raises :class:`BlobError` for bottoms that do not fit together."""
    maps_a, maps_b, sizes = split(bottoms, params.margin is not None)
    count = len(maps_a)
    read_as = f"maps of A: {count}, of B: {count}, images: {len(sizes)}"
    named = {f"bottom{i}": shape for i, shape in enumerate(bottoms[: 2 * count])}
    expect_axes("N C H W", **named)
    for i, (name, shape) in enumerate(named.items()):
        other, base = f"bottom{i % count}", f"bottom{i - i % count}"
        if shape[1] != named[other][1]:
            raise BlobError(f"channels differ: {{{other}}}, {{{name}}} ({read_as})", **named)
        if shape[0] != maps_a[0][0]:
            raise BlobError(f"batch sizes differ: {{bottom0}}, {{{name}}} ({read_as})", **named)
        if 0 in shape[2:] and 0 not in named[base][2:]:
            raise BlobError(f"{{{name}}} has no cells for those of {{{base}}}", **named)
    images = {f"bottom{2 * count + i}": shape for i, shape in enumerate(sizes)}
    expect_sizes({"bottom0": maps_a[0]}, **images)
    return ((maps_a[0][0], *maps_a[0][2:], *maps_b[0][2:]),)


def meta(
    params: Params, maps: Sequence[Tensor], size_a: Tensor | None = None, size_b: Tensor | None = None
) -> Sequence[Spec]:
    """The top; the kept rectified cosines ``[N, P, Q]``; the squared lengths of both images' kept
    hyperpixels."""
    maps_a, maps_b = halves(maps)
    (n, _, *grid), dtype = maps_a[0].shape, maps_a[0].dtype
    grid += maps_b[0].shape[2:]
    kept = grid if params.margin is None else [unbacked() for _ in grid]
    wide = wide_dtype(dtype)
    return (
        ((n, *grid), dtype),
        ((n, *kept), wide),
        ((n, *kept[:2]), wide),
        ((n, *kept[2:]), wide),
    )


def halves(maps: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """The maps of A and those of B."""
    count = len(maps) // 2
    return maps[:count], maps[count:]


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
    """|f|^2 ``[N, rows, columns]`` of the kept hyperpixels of an image's maps, the base first."""
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


Add = Callable[[slice, Tensor], None]


def added(product: Tensor, grid: Shape, kept: Kept) -> Add:
    """Adds some rows of a product ``[N, h, w, h', w']``, upsampled to the kept cells of a grid, to a
    numerator ``[N, rows, W H' W']``."""
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
    terms: Sequence[Add], lengths_a: Tensor, lengths_b: Tensor, eps: float
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


class Group(NamedTuple):
    """The maps of one size: of A ``[N, C, h, w]``, of B ``[N, C, h', w']``, and which they are."""

    a: Tensor
    b: Tensor
    members: tuple[int, ...]

    @property
    def sizes(self) -> Shape:
        return (*self.a.shape[2:], *self.b.shape[2:])


def groups(maps_a: Sequence[Tensor], maps_b: Sequence[Tensor]) -> list[Group]:
    """Maps of one size put together, in float32 or wider, the base's first."""
    found: dict[Shape, list[int]] = {}
    for i, (a, b) in enumerate(zip(maps_a, maps_b, strict=True)):
        found.setdefault((*a.shape[2:], *b.shape[2:]), []).append(i)
    wide = wide_dtype(maps_a[0].dtype)

    def joined(maps: Sequence[Tensor], members: list[int]) -> Tensor:
        chosen = [maps[i].to(wide) for i in members]
        return chosen[0] if len(chosen) == 1 else torch.cat(chosen, 1)

    return [Group(joined(maps_a, x), joined(maps_b, x), tuple(x)) for x in found.values()]


def product(a: Tensor, b: Tensor) -> Tensor:
    """``[N, h, w, h', w']``: F^T F' of maps ``[N, C, h, w]`` and ``[N, C, h', w']``."""
    found = a.flatten(2).mT @ b.flatten(2)
    return found.view(len(a), *a.shape[2:], *b.shape[2:])


def forward(
    params: Params,
    maps: Sequence[Tensor],
    size_a: Size | None = None,
    size_b: Size | None = None,
    keep: bool = True,
) -> tuple[Tensor | None, ...]:
    base, *others = found = groups(*halves(maps))
    kept = params.pair(base.sizes, size_a or NOWHERE, size_b or NOWHERE)
    lengths_a = squared_lengths([x.a for x in found], kept[:2])
    lengths_b = squared_lengths([x.b for x in found], kept[2:])
    terms = [_base_term(base, kept), *(added(product(x.a, x.b), base.sizes, kept) for x in others)]
    top = clear_others(maps[0].new_empty(len(base.a), *base.sizes), kept)
    cosine = base.a.new_empty(len(base.a), *counts(kept)) if keep else None
    into = top[:, *kept]
    for rows, some in cosines(terms, lengths_a, lengths_b, params.eps):
        if cosine is not None:
            cosine[:, rows] = some
        into[:, rows] = some if params.exponent == 1 else some.pow_(params.exponent)
    return (top, cosine, lengths_a, lengths_b) if keep else (top, None, None, None)


def _base_term(base: Group, kept: Kept) -> Add:
    """Products of features of the base's size, some rows at a time."""
    a, b = base.a[..., *kept[:2]], base.b[..., *kept[2:]].flatten(2)

    def add(rows: slice, numerator: Tensor) -> None:
        some = a[:, :, rows].flatten(2).mT
        numerator.view(len(a), some.shape[1], b.shape[2]).baddbmm_(some, b)

    return add


def backward(
    params: Params,
    top_gradient: Tensor,
    maps: Sequence[Tensor],
    cosine: Tensor,
    lengths_a: Tensor,
    lengths_b: Tensor,
) -> list[Tensor]:
    kept = params.pair_again(top_gradient.shape[1:], cosine.shape[1:])
    slope = top_gradient[:, *kept].to(cosine.dtype) * (cosine > 0)
    if params.exponent != 1:
        slope = slope.mul_(cosine ** (params.exponent - 1)).mul_(params.exponent)
    along = slope * cosine
    own = [-along.sum((3, 4)), -along.sum((1, 2))]
    for i, squared in enumerate((lengths_a, lengths_b)):
        length = squared.sqrt()
        inverse = 1 / length.clamp(min=params.eps)
        own[i] = (own[i] / 2 / squared).masked_fill_(length <= params.eps, 0)
        slope *= inverse[..., None, None] if i == 0 else inverse[:, None, None]
    return _to_maps(slope, own, *halves(maps), kept, _completed)


Complete = Callable[[Tensor, Tensor, Shape, Sequence[slice], Tensor, torch.dtype], Tensor]


def _to_maps(
    numerator: Tensor,
    lengths: Sequence[Tensor],
    maps_a: Sequence[Tensor],
    maps_b: Sequence[Tensor],
    kept: Kept,
    completed: Complete,
) -> list[Tensor]:
    """The maps' gradients of those of the kept numerators and of the squared lengths."""
    base, *others = groups(maps_a, maps_b)
    count = len(maps_a)
    found: list[Tensor] = [torch.empty(0)] * (2 * count)
    for group in (base, *others):
        part = _cut(group, kept) if group is base else group
        given = numerator if group is base else _up(group, base, kept).transposed(numerator)
        matches = given.flatten(3).flatten(1, 2)
        sides = (part.b.flatten(2) @ matches.mT, group.a), (part.a.flatten(2) @ matches, group.b)
        for side, (gradient, x) in enumerate(sides):
            size, cells = (base.a, base.b)[side].shape[2:], kept[2 * side :][:2]
            whole = completed(gradient, x, size, cells, lengths[side], maps_a[0].dtype)
            channels = [maps_a[i].shape[1] for i in group.members]
            for i, piece in zip(group.members, whole.split(channels, 1), strict=True):
                found[side * count + i] = piece
    return found


def _completed(
    gradient: Tensor,
    x: Tensor,
    base: Shape,
    kept: Sequence[slice],
    lengths: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """A map's gradient of its products', which has all of its cells or those kept, and its lengths'."""
    whole = gradient.view_as(x) if gradient.numel() == x.numel() else _whole(gradient, x, kept)
    Square.of(x, base, kept).backward(lengths, x, whole)
    return whole.to(dtype)


def _up(group: Group, base: Group, kept: Kept) -> Upsampling:
    return Upsampling.of(group.sizes, base.sizes, kept, base.a)


def _cut(base: Group, kept: Kept) -> Group:
    return base._replace(a=base.a[..., *kept[:2]], b=base.b[..., *kept[2:]])


def _whole(gradient: Tensor, x: Tensor, kept: Sequence[slice]) -> Tensor:
    found = torch.zeros_like(x, memory_format=torch.contiguous_format)
    part = found[..., kept[0], kept[1]]
    part.copy_(gradient.view_as(part))
    return found


kernels = cuda.Kernels(__file__)
CHANNELS = 64  # of a map, that a block adds up
SPAN, COLUMNS = 64, 4  # of matches a block takes SPAN cells of A and 32 COLUMNS of B


def forward_cuda(
    params: Params,
    maps: Sequence[Tensor],
    size_a: Size | None = None,
    size_b: Size | None = None,
    keep: bool = True,
) -> tuple[Tensor | None, ...]:
    scalar = maps[0].dtype
    found = groups(*halves(_dense(maps)))
    kept = params.pair(found[0].sizes, size_a or NOWHERE, size_b or NOWHERE)
    lengths_a = _squared_lengths_cuda([x.a for x in found], kept[:2], scalar)
    lengths_b = _squared_lengths_cuda([x.b for x in found], kept[2:], scalar)
    base, *others = found
    cut = _cut(base, kept)
    numerator = product(cut.a, cut.b)
    for x in others:
        up = _up(x, base, kept)
        columns = up.columns(product(x.a, x.b))
        numerator.flatten(2).baddbmm_(up.down_a.expand(len(columns), -1, -1), columns)
    top = maps[0].new_empty(len(base.a), *base.sizes)
    kernels.launch(
        "hyperpixel_correlation_finish",
        numerator=numerator,
        squared_a=lengths_a,
        squared_b=lengths_b,
        top=top,
        keeps=keep,
        exponent=params.exponent,
        eps=params.eps,
        grid=math.prod(top.shape[:3]) * min(math.prod(top.shape[3:]), 1),
        block=cuda.threads(256),
        **place(base.sizes, kept),
    )
    return (top, numerator, lengths_a, lengths_b) if keep else (top, None, None, None)


def _squared_lengths_cuda(maps: Sequence[Tensor], kept: Sequence[slice], scalar: torch.dtype) -> Tensor:
    n, base = len(maps[0]), maps[0].shape[2:]
    threads = cuda.threads(256)
    squared = maps[0].new_empty(n, *counts(kept))
    for i, x in enumerate(maps):
        channels, height, width = x.shape[1:]
        pieces, tiles = -(-channels // CHANNELS), -(-height * width // 32)
        partial = x.new_empty(n, pieces, 4, height, width)
        kernels.launch(
            "hyperpixel_correlation_products",
            scalar=scalar,
            x=x,
            partial=partial,
            channels=channels,
            span=CHANNELS,
            pieces=pieces,
            tiles=tiles,
            height=height,
            width=width,
            grid=n * pieces * tiles,
            block=threads,
        )
        kernels.launch(
            "hyperpixel_correlation_lengths",
            scalar=scalar,
            products=partial.sum(1),
            squared=squared,
            adds=i > 0,
            total=squared.numel(),
            grid=cuda.blocks(squared.numel(), threads),
            block=threads,
            base_h=base[0],
            base_w=base[1],
            **_side(x, kept),
        )
    return squared


def backward_cuda(
    params: Params,
    top_gradient: Tensor,
    maps: Sequence[Tensor],
    cosine: Tensor,
    lengths_a: Tensor,
    lengths_b: Tensor,
) -> list[Tensor]:
    kept = params.pair_again(top_gradient.shape[1:], cosine.shape[1:])
    n, rows, columns = len(cosine), *(math.prod(x.shape[1:]) for x in (lengths_a, lengths_b))
    pieces, strips = -(-rows // SPAN), -(-columns // (32 * COLUMNS))
    slope = torch.empty_like(cosine)
    along_a, along_b = cosine.new_empty(n, strips, rows), cosine.new_empty(n, pieces, columns)
    kernels.launch(
        "hyperpixel_correlation_slope",
        top_gradient=top_gradient.contiguous(),
        cosine=cosine,
        squared_a=lengths_a,
        squared_b=lengths_b,
        slope=slope,
        along_a=along_a,
        along_b=along_b,
        exponent=params.exponent,
        eps=params.eps,
        span=SPAN,
        pieces=pieces,
        strips=strips,
        grid=n * pieces * strips,
        block=cuda.threads(256),
        constants={"COLUMNS": COLUMNS},
        **place(top_gradient.shape[1:], kept),
    )
    own = [torch.empty_like(x) for x in (lengths_a, lengths_b)]
    for partial, squared, found in zip((along_a, along_b), (lengths_a, lengths_b), own, strict=True):
        kernels.launch(
            "hyperpixel_correlation_own",
            scalar=top_gradient.dtype,
            partial=partial,
            squared=squared,
            own=found,
            total=found.numel(),
            pieces=partial.shape[1],
            cells=partial.shape[2],
            eps=params.eps,
            grid=cuda.blocks(found.numel(), cuda.threads(256)),
            block=cuda.threads(256),
        )
    return _to_maps(slope, own, *halves(_dense(maps)), kept, _completed_cuda)


def _completed_cuda(
    gradient: Tensor,
    x: Tensor,
    base: Shape,
    kept: Sequence[slice],
    lengths: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    threads = cuda.threads(256)
    stencil = x.new_empty(len(x), 4, *x.shape[2:])
    cells = stencil.numel() // 4
    kernels.launch(
        "hyperpixel_correlation_stencil",
        scalar=dtype,
        own=lengths,
        stencil=stencil,
        total=cells,
        grid=cuda.blocks(cells * 32, threads),
        block=threads,
        base_h=base[0],
        base_w=base[1],
        **_side(x, kept),
    )
    found = torch.empty_like(x, dtype=dtype)
    whole = gradient.numel() == x.numel()
    part = [slice(0, count) for count in x.shape[2:]] if whole else kept
    kernels.launch(
        "hyperpixel_correlation_gradient",
        product=gradient,
        x=x,
        stencil=stencil,
        gradient=found,
        total=found.numel(),
        channels=x.shape[1],
        grid=cuda.blocks(found.numel(), threads),
        block=threads,
        **_side(x, part),
    )
    return found


def _side(x: Tensor, kept: Sequence[slice]) -> dict[str, int]:
    """A map's size and the part of a grid that counts."""
    sizes = dict(zip(("height", "width"), x.shape[2:], strict=True))
    starts = dict(zip(("top", "left"), (part.start for part in kept), strict=True))
    return sizes | starts | dict(zip(("kept_h", "kept_w"), counts(kept), strict=True))


def _dense(maps: Sequence[Tensor]) -> list[Tensor]:
    return [x.contiguous() for x in maps]


class _Definition(Definition):
    """Its list of maps is spoken of as the two that a caller knows."""

    def check(self, params: Any, bottoms: Sequence[Any]) -> None:
        maps, *sizes = bottoms
        named, names = _named(*halves(maps)), ("size_a", "size_b")
        if all(size is None for size in sizes):
            sizes = []
        given = [shape_of(self.name, *each) for each in zip(names, sizes, strict=False)]
        infer(params, *shapes(self.name, **named).values(), *given)
        expect_floating(**named)


def _named(maps_a: Sequence[Tensor], maps_b: Sequence[Tensor]) -> dict[str, Tensor]:
    """The maps as the function's caller speaks of them."""
    sides = ("maps_a", maps_a), ("maps_b", maps_b)
    return {f"{name}[{i}]": x for name, maps in sides for i, x in enumerate(maps)}


definition = _Definition(
    "hyperpixel_correlation",
    Params,
    BOTTOMS,
    TOPS,
    kept=("cosine", "lengths_a", "lengths_b"),
    infer=infer,
    meta=meta,
    forward=forward,
    backward=backward,
    forward_cuda=forward_cuda,
    backward_cuda=backward_cuda,
)


def hyperpixel_correlation(
    maps_a: Sequence[Tensor],
    maps_b: Sequence[Tensor],
    size_a: Sequence[float] | Tensor | None = None,
    size_b: Sequence[float] | Tensor | None = None,
    exponent: float = Params.exponent,
    jump: float = Params.jump,
    receptive_field: int = Params.receptive_field,
    margin: float | None = Params.margin,
    weights: Sequence[Tensor] | None = None,
    eps: float = Params.eps,
) -> Tensor:
    """``max(0, cos)^exponent`` ``[N, H, W, H', W']`` of all hyperpixels of two images.

    ``maps_a`` are the maps ``[N, C_l, H_l, W_l]`` of one image, the base first, ``maps_b`` those of the
    other; ``weights`` ``[C_l]`` multiply their channels. ``size_a``, ``size_b`` are the images'
    (height, width) in pixels, or the images, which a ``margin`` (pixels) needs: cells lie ``jump``
    apart, and those whose box of the ``receptive_field`` lies further out get 0. Raises ``BlobError``
    for shapes that do not fit, ``TypeError`` unless all maps are of one floating type on one device,
    ``ValueError`` for a parameter out of range and sizes below a pixel. Source: Hyperpixel Flow,
    Eqs. 1, 4.
    """
    params = definition.params(jump, receptive_field, margin, exponent, eps, weights is not None)
    for name, maps in (("maps_a", maps_a), ("maps_b", maps_b)):
        if not isinstance(maps, (list, tuple)):
            text = f"expected {name} to be a list of tensors, got {kind_of(maps)}"
            raise TypeError(f"{definition.name}: {text}")
    if len(maps_a) != len(maps_b):
        raise BlobError(f"expected as many maps of B as of A, got {len(maps_a)} and {len(maps_b)}")
    sizes: tuple[Any, ...] = () if margin is None else (size_a, size_b)
    for name, size in zip(("size_a", "size_b"), sizes, strict=False):
        shape_of(definition.name, name, size)  # not None, as a layer without images has it
    try:
        return _correlate(params, [*maps_a, *maps_b], sizes, weights or ())
    except BlobError as error:
        arguments = *_named(maps_a, maps_b), "size_a", "size_b"
        names = {f"bottom{i}": name for i, name in enumerate(arguments)}
        names |= {f"weight{i}": f"weights[{i}]" for i in range(len(maps_a))}
        raise BlobError(error.named(names)) from None


def _correlate(
    params: Params, maps: Sequence[Tensor], sizes: Sequence[Any], weights: Sequence[Tensor]
) -> Tensor:
    if weights:
        definition.check(params, (maps, *sizes))
        _expect_weights(weights, maps)
        scale = [x[:, None, None] for x in weights] * 2
        scaled = [x * s for x, s in zip(maps, scale, strict=True)]
        maps = [x.to(scaled[0].dtype) for x in scaled]  # the weights' types may differ
    top: Tensor = definition(params, maps, *sizes)
    return top


def _expect_weights(weights: Sequence[Tensor], maps: Sequence[Tensor]) -> None:
    count = len(maps) // 2
    if len(weights) != count:
        raise BlobError(f"expected weights for each of {count} maps, got {len(weights)}")
    for i, x in enumerate(weights):
        shapes(definition.name, **{f"weights[{i}]": x})
        if x.shape != maps[i].shape[1:2]:
            text = f"expected {{weight{i}}} to be a value for each channel of {{bottom{i}}}"
            raise BlobError(text, **{f"weight{i}": x.shape, f"bottom{i}": maps[i].shape})


@register("HyperpixelCorrelation", bottoms=(2, None), tops=1)
class HyperpixelCorrelation(Layer):
    """How alike the hyperpixels of two images are; see the module."""

    definition = definition
    TRAITS = (Trait.NO_CELLS,)

    def __init__(
        self,
        params: Any = None,
        bottom_shapes: tuple[Shape, ...] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(params, bottom_shapes, generator)
        if self.params.channel_weights:
            first, _, _ = split(bottom_shapes, self.params.margin is not None)
            self.blob_names = tuple(f"weight{i}" for i in range(len(first)))
            for name, shape in zip(self.blob_names, first, strict=True):
                setattr(self, name, parameter(shape[1:2], self.params.filler, generator))

    def forward(self, *bottoms: Tensor) -> Tensor:
        count = len(bottoms) - (0 if self.params.margin is None else 2)
        if count < 2:  # which the definition refuses, whatever else they are
            count = len(bottoms)
        return _correlate(self.params, [*bottoms[:count]], bottoms[count:], self.blobs)

    @classmethod
    def multiply_adds(
        cls, params: Any, bottoms: Sequence[Shape], tops: Sequence[Shape], blobs: Sequence[Shape]
    ) -> int | None:
        maps_a, maps_b, _ = split(bottoms, params.margin is not None)
        pairs = zip(maps_a, maps_b, strict=True)
        return sum(a[0] * a[1] * math.prod(a[2:]) * math.prod(b[2:]) for a, b in pairs)

    @staticmethod
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
            _sample(
                rng, "one cell, one row", [(2, 3, 4), (2, 1, 1)], [(2, 1, 3), (2, 2, 1)], exponent=2.0
            ),
            _sample(rng, "finer than the base", [(2, 2, 3), (2, 4, 5)], [(2, 3, 1), (2, 5, 3)]),
            _sample(
                rng, "one of one size", [(2, 3, 3), (2, 2, 2)], [(2, 2, 2), (2, 2, 2)], exponent=1.5
            ),
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
            _sample(
                rng, "weights", [(3, 3, 2), (2, 2, 2)], [(3, 2, 3), (2, 2, 2)], channel_weights=True
            ),
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
