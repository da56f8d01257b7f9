"""RegularizedHoughMatching: matches of cells whose offset many others share score higher.

Hyperpixel Flow, Eq. 3, of a match of cell p of image A's grid with cell p' of image B's. Every match
votes with its similarity s for the bin h of its offset, the bins are smoothed, and

    c(p, p') = s(p, p') V(h(p, p')),    V = gaussian * H,    H(b) = sum of s over the matches of bin b

which is the paper's sum over all offsets x, read at the match's own bin.

Bottoms: ``similarity`` ``[N, H, W, H', W']``, any floating type; ``size_a`` and ``size_b``, each an
image ``[N, C, h, w]``, of which only the shape is read, or two values (height, width). Top: the
confidence, of the similarity's shape and type. Cells that the margin leaves out
(``_geometry/cells.py``) neither vote nor match: they get 0, and no gradient.

**Bins.** W and W' being the images' widths, H and H' their heights, in pixels,
cell = sqrt((W + W') (H + H') / ``cells``). The offset of a match along x is vx = W - x(p) + x'(p'), its
bin vx / cell, in float32, without the fraction; there are (W + W') / cell + 1 of them, the last one
taking what lies beyond, the first what lies before. Likewise along y. The Gaussian has ``kernel_size``
bins along each axis and the deviation ``sigma``; its weights sum to 1, and beyond the bins lie zeros.

A bin along x depends on the difference of two columns alone, along y of two rows: all matches of one
displacement are added up first, and what follows is done to those sums, a few thousand numbers. With D
the sums by displacement, V = M_y D M_x, whose M = B^T K B bins, smooths and looks up; it is symmetric.

Backward, g the top's gradient: the similarity gets g V + M_y D(g s) M_x. A row's matches are added up
in float32 or wider, rows and bins in float64.

In float32 the least to move are 12 bytes a match forward (the similarity twice, the top) and 16
backward (the top's gradient twice, similarity, gradient): 131 and 174 MB for 3,300 cells a side.

Source: Hyperpixel Flow, section 3.2; the bins and the Gaussian are the released code's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._engine import cuda
from ._engine.checks import Shape, expect_axes, valueless
from ._engine.declared import Bottom, Role, Top, Trait
from ._engine.definition import Definition, Spec
from ._engine.dispatch import use_cuda
from ._engine.layer import Layer
from ._engine.operators import unbacked
from ._engine.params import param
from ._engine.registry import register
from ._engine.samples import Sample
from ._engine.sizes import Size, expect_sizes, size_of
from ._engine.wide import wide_dtype
from ._geometry.cells import CellParams, Kept, as_tensor, clear_others, counts, place

CPU = torch.device("cpu")
SIGMA = 7 / 2 / 2.354  # half of the kernel is the width at half height


@dataclass(frozen=True)
class Params(CellParams):
    cells: float = param(8192.0, above=0, high=1e12, doc="of the space of offsets")
    sigma: float = param(SIGMA, above=0, unit="bins", doc="the Gaussian's deviation")
    kernel_size: int = param(7, low=1, unit="bins", doc="of the Gaussian, odd; 1 smooths nothing")

    def __post_init__(self) -> None:
        if isinstance(self.kernel_size, int) and self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {self.kernel_size}")


BOTTOMS = (
    Bottom("similarity", "[N, H, W, H', W']"),
    Bottom("size_a", "[N, C, h, w]", Role.SIZE, shared=True),
    Bottom("size_b", "[N, C, h, w]", Role.SIZE, shared=True),
)
TOPS = (Top("top"),)


def infer(params: Params, similarity: Shape, size_a: Shape, size_b: Shape) -> tuple[Shape]:
    """The similarity's shape; raises BlobError for bottoms that do not fit."""
    expect_axes("N H W H' W'", similarity=similarity)
    expect_sizes({"similarity": similarity}, size_a=size_a, size_b=size_b)
    return (similarity,)


def meta(params: Params, similarity: Tensor, size_a: Tensor, size_b: Tensor) -> Sequence[Spec]:
    """The top; the votes by displacement ``[N, DY, DX]``; M along y and along x; nothing, in the shape
    of the cells that take part."""
    n, *grid = similarity.shape
    kept = grid if params.margin is None else [unbacked() for _ in grid]
    down, across = unbacked(), unbacked()
    return (
        (similarity.shape, similarity.dtype),
        ((n, down, across), wide_dtype(similarity.dtype)),
        ((down, down), torch.float64),
        ((across, across), torch.float64),
        ((0, *kept), similarity.dtype),
    )


class Space(NamedTuple):
    """The matches that take part, and how sums by displacement become votes: M along y and along x."""

    kept: Kept
    down: Tensor
    across: Tensor

    def votes(self, sums: Tensor) -> Tensor:
        """V at each displacement ``[N, DY, DX]``, of the sums D; its own transpose."""
        return self.down @ sums @ self.across

    @classmethod
    def of(
        cls, params: Params, grid: Shape, size_a: Size, size_b: Size, device: torch.device = CPU
    ) -> Space:
        """For a grid [H, W, H', W'] over images of (height, width)."""
        kept = params.pair(grid, size_a, size_b)
        down, across = (
            as_tensor(_operator(params, bins), torch.float64, device)
            for bins, _ in offset_bins(params, kept, size_a, size_b)
        )
        return cls(kept, down, across)


def offset_bins(
    params: Params, kept: Sequence[slice], size_a: Size, size_b: Size
) -> list[tuple[np.ndarray, int]]:
    """The bin of each displacement ``[D]``, the least first, and the bins' number; along y, then x."""
    spans = [a + b for a, b in zip(size_a, size_b, strict=True)]
    cell = math.sqrt(math.prod(spans) / params.cells)
    found = []
    for a, b, length, span in zip(kept[:2], kept[2:], size_a, spans, strict=True):
        step = np.arange(b.start - (a.stop - 1), b.stop - a.start, dtype=np.float32)
        offset = np.float32(length) + np.float32(params.jump) * step
        count = int(span / cell) + 1
        bins = np.clip(offset / np.float32(cell), 0, count - 1)  # before the cast, which may overflow
        found.append((bins.astype(np.int64), count))
    return found


def _operator(params: Params, bins: np.ndarray) -> np.ndarray:
    """M ``[D, D]`` along an axis, float64: symmetric, from one displacement's sum to another's vote."""
    away, reach = np.abs(bins[:, None] - bins), params.kernel_size // 2
    weight = np.exp(-((np.arange(reach + 2) / params.sigma) ** 2) / 2)
    weight[reach + 1] = 0
    return (weight / (2 * weight.sum() - weight[0]))[np.minimum(away, reach + 1)]


def displacement_sums(columns: Iterable[Tensor], grid: Shape, like: Tensor) -> Tensor:
    """Matches added up by displacement, ``[N, H + H' - 1, W + W' - 1]``: a row's in float32 or wider,
    rows in float64.

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


def forward(
    params: Params, similarity: Tensor, size_a: Size, size_b: Size, over: bool = False
) -> tuple[Tensor, ...]:
    """``over``: the top is written over the similarity."""
    space = Space.of(params, similarity.shape[1:], size_a, size_b, similarity.device)
    part = similarity[:, *space.kept]
    columns = part.unbind(2)
    votes = space.votes(displacement_sums(columns, part.shape, part)).to(wide_dtype(similarity.dtype))
    top = clear_others(similarity if over else _empty_like(similarity), space.kept)
    into = top[:, *space.kept].unbind(2)
    for column, found, out in zip(columns, looked_up(votes, part.shape), into, strict=False):
        torch.mul(column, found, out=out)
    return top, votes, *_saved(similarity, space)


def _saved(similarity: Tensor, space: Space) -> tuple[Tensor, Tensor, Tensor]:
    """A space for backward: no memory is needed to say how many cells take part."""
    return space.down, space.across, similarity.new_empty(0, *counts(space.kept))


def backward(
    params: Params,
    top_gradient: Tensor,
    similarity: Tensor,
    votes: Tensor,
    down: Tensor,
    across: Tensor,
    extent: Tensor,
) -> Tensor:
    space = _space(params, similarity, down, across, extent)
    part, wide = similarity[:, *space.kept], votes.dtype
    columns, given = part.unbind(2), top_gradient[:, *space.kept].unbind(2)
    weights = (g.to(wide) * s for g, s in zip(given, columns, strict=True))
    indirect = space.votes(displacement_sums(weights, part.shape, part)).to(wide)
    gradient = clear_others(_empty_like(similarity), space.kept)
    into = gradient[:, *space.kept].unbind(2)
    found = (looked_up(x, part.shape) for x in (indirect, votes))
    for to_votes, direct, g, out in zip(*found, given, into, strict=False):
        torch.addcmul(to_votes, g.to(wide), direct, out=out)
    return gradient


def _space(params: Params, similarity: Tensor, down: Tensor, across: Tensor, extent: Tensor) -> Space:
    return Space(params.pair_again(similarity.shape[1:], extent.shape[1:]), down, across)


def _empty_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


kernels = cuda.Kernels(__file__)
PIECES = 8  # of A's rows, at most, each with sums of its own


def forward_cuda(params: Params, similarity: Tensor, size_a: Size, size_b: Size) -> tuple[Tensor, ...]:
    similarity = similarity.contiguous()
    space = Space.of(params, similarity.shape[1:], size_a, size_b, similarity.device)
    votes = space.votes(_sums_cuda(similarity, None, space)).to(wide_dtype(similarity.dtype))
    top = torch.empty_like(similarity)
    _launch("regularized_hough_matching_forward", space, similarity=similarity, votes=votes, top=top)
    return top, votes, *_saved(similarity, space)


def backward_cuda(
    params: Params,
    top_gradient: Tensor,
    similarity: Tensor,
    votes: Tensor,
    down: Tensor,
    across: Tensor,
    extent: Tensor,
) -> Tensor:
    space = _space(params, similarity, down, across, extent)
    top_gradient, similarity = top_gradient.contiguous(), similarity.contiguous()
    indirect = space.votes(_sums_cuda(top_gradient, similarity, space)).to(votes.dtype)
    gradient = torch.empty_like(similarity)
    _launch(
        "regularized_hough_matching_backward",
        space,
        top_gradient=top_gradient,
        votes=votes,
        indirect=indirect,
        gradient=gradient,
    )
    return gradient


def _sums_cuda(given: Tensor, times: Tensor | None, space: Space) -> Tensor:
    """displacement_sums of ``given``, or of it times ``times``, where both take part."""
    n, (down, across) = len(given), (len(x) for x in (space.down, space.across))
    pieces = max(min(PIECES, counts(space.kept)[0]), 1)
    partial = given.new_empty(n, pieces, down, across, dtype=torch.float64)
    threads = cuda.threads(256)
    kernels.launch(
        "regularized_hough_matching_sums",
        given=given,
        times=times,
        partial=partial,
        pieces=pieces,
        down=down,
        across=across,
        grid=partial.numel() // max(across, 1) * -(-across // threads),
        block=threads,
        **place(given.shape[1:], space.kept),
    )
    return partial.sum(1)


def _launch(kernel: str, space: Space, **tensors: Tensor) -> None:
    """A kernel with a block for each cell of A."""
    first = next(iter(tensors.values()))
    cells = math.prod(first.shape[:3]) * min(math.prod(first.shape[3:]), 1)
    where = place(first.shape[1:], space.kept)
    kernels.launch(kernel, **tensors, grid=cells, block=cuda.threads(256), **where)


definition = Definition(
    "regularized_hough_matching",
    Params,
    BOTTOMS,
    TOPS,
    kept=("votes", "down", "across", "extent"),
    infer=infer,
    meta=meta,
    forward=forward,
    backward=backward,
    forward_cuda=forward_cuda,
    backward_cuda=backward_cuda,
)


def regularized_hough_matching(
    similarity: Tensor,
    size_a: Sequence[float] | Tensor,
    size_b: Sequence[float] | Tensor,
    jump: float = Params.jump,
    receptive_field: int = Params.receptive_field,
    margin: float | None = Params.margin,
    cells: float = Params.cells,
    sigma: float = Params.sigma,
    kernel_size: int = Params.kernel_size,
) -> Tensor:
    """The confidence ``[N, H, W, H', W']`` of a ``similarity`` of that shape, of matches of cells.

    ``size_a``, ``size_b`` are the images' (height, width) in pixels, or the images ``[N, C, h, w]``.
    Cells lie ``jump`` pixels apart; with a ``margin`` (pixels) those whose box of the
    ``receptive_field`` lies further out take no part. ``cells``, ``sigma`` and ``kernel_size`` (bins)
    are the module's. Raises ``BlobError`` for shapes that do not fit, ``TypeError`` for a dtype,
    ``ValueError`` for a parameter out of range and sizes below a pixel. Source: Hyperpixel Flow, Eq. 3.
    """
    params = definition.params(jump, receptive_field, margin, cells, sigma, kernel_size)
    confidence: Tensor = definition(params, similarity, size_a, size_b)
    return confidence


@register("RegularizedHoughMatching")
class RegularizedHoughMatching(Layer):
    """The confidence of matches of cells; see the module.

    ``forward_over`` writes it over a similarity in float32 or float64 on the CPU.
    """

    definition = definition
    TRAITS = (Trait.NO_CELLS,)

    @torch.no_grad()
    def forward_over(self, *bottoms: Tensor) -> Tensor:
        similarity, size_a, size_b = bottoms
        definition.check(self.params, bottoms)
        elsewhere = torch.compiler.is_compiling() or valueless(similarity) or use_cuda(similarity)
        if elsewhere or similarity.dtype != wide_dtype(similarity.dtype):  # which autocast would widen
            confidence: Tensor = self(*bottoms)
            return confidence
        sizes = size_of("size_a", size_a), size_of("size_b", size_b)
        return forward(self.params, similarity, *sizes, over=True)[0]

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        if size == "paper":  # a real-time net's cells, and those of the others at 200 x 150 pixels
            return [
                _sample(rng, "900 x 900 cells", (1, 30, 38, 30, 38), (240, 300), (240, 300), **FAST)
            ]
        if size == "large":
            return [
                _sample(rng, "3300 x 3300 cells", (1, 53, 75, 53, 75), (212, 300), (212, 300), **BASE)
            ]
        return [
            _sample(rng, "every cell", (2, 3, 4, 4, 3), (11, 15), (15, 11), cells=40.0),
            _sample(rng, "a margin", (2, 4, 5, 5, 4), (12, 16), (16, 12), **SMALL, cells=60.0),
            _sample(rng, "bins of many", (1, 4, 4, 3, 5), (16, 16), (12, 20), cells=4.0),
            _sample(rng, "not smoothed", (1, 3, 4, 4, 3), (12, 16), (16, 12), kernel_size=1),
            _sample(
                rng,
                "a margin that leaves nothing",
                (1, 3, 3, 3, 3),
                (12, 12),
                (12, 12),
                False,
                margin=0.0,
            ),
            _sample(rng, "cells outside", (1, 3, 7, 4, 6), (5, 9), (5, 30), cells=30.0, jump=2.5),
            _sample(rng, "strips of columns", (2, 1, 33, 1, 31), (4, 132), (4, 124), False),
            _sample(rng, "pieces of rows", (1, 11, 2, 9, 2), (44, 8), (36, 8), cells=100.0, sigma=0.8),
        ]


BASE: dict[str, Any] = {"jump": 4.0, "receptive_field": 27, "margin": 4.0}
FAST: dict[str, Any] = {"jump": 8.0, "receptive_field": 43, "margin": 8.0}
SMALL: dict[str, Any] = {"jump": 4.0, "receptive_field": 11, "margin": 2.0}


def _sample(
    rng: np.random.Generator,
    name: str,
    grid: Shape,
    size_a: tuple[int, int],
    size_b: tuple[int, int],
    check: bool = True,
    **options: Any,
) -> Sample:
    similarity = torch.from_numpy(rng.random(grid) ** 3)
    images = (torch.zeros(1, 1, *size, dtype=torch.float64) for size in (size_a, size_b))
    return Sample(Params(**options), (similarity, *images), name=name, check_gradient=check)
