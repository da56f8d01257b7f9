"""RegularizedHoughMatching: matches of cells whose offset many others share score higher.

A match of a cell p of image A's grid with a cell p' of image B's has a similarity s and an offset,
whose bin is h (Hyperpixel Flow, Eq. 3). All matches vote, and a Gaussian G smooths the bins b:

    H(b) = sum of s(p, p') over p, p' where h(p, p') = b
    V(b) = sum of G(b - a) H(a) over a,    c(p, p') = s(p, p') V(h(p, p'))

which is the paper's sum over all offsets x, read at the match's own bin.

Bottoms: ``similarity`` ``[N, H, W, H', W']``, any floating type; ``size_a`` and ``size_b``, each an
image ``[N, C, h, w]``, of which only the shape is read, or two values (height, width). Top: the
confidence c, of the similarity's shape and type. Cells that the margin leaves out
(``_geometry/cells.py``) neither vote nor match: they get 0, and no gradient.

**Bins.** With the images' widths W, W' and heights H, H' in pixels, cell = sqrt((W + W') (H + H') /
``cells``). The offset of a match along x is vx = W - x(p) + x'(p'), its bin vx / cell, in float32,
without the fraction; there are (W + W') / cell + 1 of them, the last one taking what lies beyond, the
first what lies before. Likewise along y. The Gaussian has ``kernel_size`` bins along each axis and the
deviation ``sigma``; its weights sum to 1, and beyond the bins lie zeros.

**How.** A bin along x depends on the difference of two columns alone, along y of two rows. So the
matches of one displacement are added up first, and the rest is done to a few thousand sums D:
V = M_y D M_x, whose symmetric M = B^T K B finds the bins (B), smooths (K) and looks up.

Backward, g the top's gradient: the similarity gets g V + M_y D(g s) M_x. A row's matches are added up
in float32 or wider, rows and bins in float64.

In float32 the least to move are 12 bytes a match forward (the similarity twice, the top) and 16
backward (the top's gradient twice, similarity, gradient): 131 and 174 MB for 3,300 cells a side.

Source: Hyperpixel Flow, section 3.2; the bins and the Gaussian are the released code's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ._displacements import bins_of_displacements, displacement_sums, looked_up, smoothing
from ._engine import cuda
from ._engine.checks import Shape, expect_axes, valueless
from ._engine.declared import Bottom, Role, Top, Trait
from ._engine.definition import Spec, define
from ._engine.dispatch import use_cuda
from ._engine.layer import Layer
from ._engine.operators import unbacked
from ._engine.params import param
from ._engine.registry import register
from ._engine.samples import Sample
from ._engine.sizes import Size, expect_sizes, size_of
from ._engine.wide import wide_dtype
from ._geometry.cells import CellParams, Kept, as_tensor, clear_others, counts, place

if TYPE_CHECKING:
    import numpy as np

CPU = torch.device("cpu")
SIGMA = 7 / 2 / 2.354  # the released one: at half its height the Gaussian is half a kernel wide


@dataclass(frozen=True)
class Params(CellParams):
    cells: float = param(8192.0, above=0, high=1e12, doc="bins in the space of offsets, about")
    sigma: float = param(SIGMA, above=0, unit="bins", doc="the Gaussian's deviation")
    kernel_size: int = param(7, low=1, unit="bins", doc="the Gaussian's side, odd; 1 smooths nothing")

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
    """The top; the votes by displacement ``[N, DY, DX]``; M along y and along x; an empty tensor whose
    shape says how many cells take part."""
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

    @classmethod
    def of(
        cls, params: Params, grid: Shape, size_a: Size, size_b: Size, device: torch.device = CPU
    ) -> Space:
        """For a grid [H, W, H', W'] over images of (height, width)."""
        kept = params.pair(grid, size_a, size_b)
        down, across = (
            as_tensor(smoothing(bins, params.sigma, params.kernel_size), torch.float64, device)
            for bins, _ in bins_of_displacements(kept, size_a, size_b, params.cells, params.jump)
        )
        return cls(kept, down, across)

    def votes(self, sums: Tensor) -> Tensor:
        """V at each displacement ``[N, DY, DX]``, of the sums D; its own transpose."""
        return self.down @ sums @ self.across


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
    """What backward needs of a space."""
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
    by_others, own = (looked_up(x, part.shape) for x in (indirect, votes))
    for g, a, b, out in zip(given, own, by_others, into, strict=False):
        torch.addcmul(b, g.to(wide), a, out=out)  # g V + M_y D(g s) M_x
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


definition = define(__name__, kept=("votes", "down", "across", "extent"))


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
        from ._samples import regularized_hough_matching as own

        return own.samples(size, rng)
