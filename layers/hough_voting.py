"""HoughVoting: matches whose offset many others share score higher; SCNet's layer "xK".

A match m of a region r of image A with a region s of image B has an offset, a change of position and
scale, whose bin is h(m) (SCNet, Eqs. 7, 8). With f the appearance score and f_g the score that votes,
which may be the same,

    votes(m) = sum of f_g(m') over m' where h(m') = h(m),    z(m) = f(m) votes(m)    (Eqs. 9, 12)

Bottoms: ``scores`` f ``[P, S]``, any floating type; ``rois_a`` ``[P, 5]`` and ``rois_b`` ``[S, 5]``,
or boxes without the batch column ``[P, 4]``, ``[S, 4]``, in image pixels (the column is not read: a
call is one pair of images); ``size_a`` and ``size_b``, each an image ``[N, C, H, W]``, of which only
the shape is read, or two values (H, W); and optionally ``votes``, f_g ``[P, S]``. Top ``[P, S]``: z,
or with ``output: VOTES`` the votes alone. Bins are found in float64, sums are in float64.

**Offsets.** A box of centre (xc, yc) and half extents (ax, ay) carries the lower right corner of A
along: from r, u = (W_A - 1 - xc) / ax and v = (H_A - 1 - yc) / ay; to s, x = xc + ax u and
y = yc + ay v; scale = log2 of the areas' ratio, s over r, which is exact where that is a power of 2.

**Bins.** cell = max(sqrt(2 W_B 2 H_B / cells), least_cell), in pixels. x has
round(2 W_B / cell * bins_per_cell) equal bins from 0 to 2 W_B - 1, y likewise of H_B (1 to 2 W_B in
the released code, which counts pixels from 1), scale ``scale_bins`` from -scale_range to
scale_range, each without its upper edge. A match outside, or of a box without area, has no bin.

=========  ================================================  =======================================
rule       votes                                             a match without a bin
=========  ================================================  =======================================
PAPER      as above                                          0
RELEASED   ``added`` + sum of max(f_g - ``threshold``, 0)    ``added``; also where the aspects ax / ay
                                                             differ by ``max_aspect_ratio`` or more
=========  ================================================  =======================================

Backward, with g the top's gradient and w = g f (g for VOTES): f gets g votes(m), f_g gets the sum of
w over its bin, under RELEASED where f_g > threshold. ``grad: published``, the released layer's, is
not the derivative: it sums w over the bin's matches with f_g > threshold only, and gives nothing to
the first bin that has a match with w != 0, unless such a match has no bin.

Held for backward: a match's bin, int32, and sums by bin. The kernels take up to 3 bytes a match more
for partial sums, whose order depends on the shapes alone. In float32 they have to move 16 bytes a
match forward (the scores twice, bins, top) and 20 backward (the top's gradient twice, scores, bins,
gradient): 64 and 80 MB for 2000 x 2000 regions.

*Differs from the original:* PAPER has neither threshold, constant nor aspect filter.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._engine import cuda
from ._engine.checks import BlobError, Shape, expect_axes
from ._engine.declared import Bottom, Role, Top
from ._engine.definition import Spec, define
from ._engine.layer import Layer
from ._engine.operators import unbacked
from ._engine.params import Gradient, param
from ._engine.registry import register
from ._engine.samples import Sample
from ._engine.sizes import Size, expect_sizes
from ._engine.wide import wide_dtype
from ._geometry import boxes
from ._offset_bins import (
    Grid,
    bins,
    chunks,
    first_cuda,
    frames,
    frames_cuda,
    looked_up,
    sums_by_bin,
    table_cuda,
    without_the_first,
)

if TYPE_CHECKING:
    import numpy as np


class Rule(enum.Enum):
    """Eq. 9 over the bins, or what the released code makes of it."""

    PAPER = 0
    RELEASED = 1


class Output(enum.Enum):
    """The top: z, or the votes alone."""

    SCORES = 0
    VOTES = 1


@dataclass(frozen=True)
class Params:
    rule: Rule = param(Rule.PAPER, doc="what votes: Eq. 9, or what the released code makes of it")
    output: Output = param(Output.SCORES, doc="the top: z, or the votes alone")
    grad: Gradient = param(Gradient.exact, doc="published: the released layer's backward (RELEASED)")
    threshold: float = param(0.4, low=0, doc="a vote is what f_g exceeds it by (RELEASED)")
    added: float = param(0.01, low=0, doc="added to each match's votes (RELEASED)")
    max_aspect_ratio: float = param(
        2.0, above=1, infinite=True, doc="a match of aspects so different has no bin (RELEASED)"
    )
    cells: float = param(8000.0, above=0, doc="cells in an area of twice B's width and height")
    least_cell: float = param(5.0, above=0, unit="image pixels", doc="the least side of a cell")
    bins_per_cell: float = param(0.2, above=0, doc="bins of x, and of y, to a cell's side")
    scale_bins: int = param(40, low=1, doc="bins of scale")
    scale_range: float = param(
        4.0, above=0, unit="octaves of area", doc="the largest change of scale that has a bin"
    )

    def __post_init__(self) -> None:
        if self.grad is Gradient.published and self.rule is not Rule.RELEASED:
            raise ValueError("grad: published goes with rule: RELEASED")

    @property
    def released(self) -> bool:
        return self.rule is Rule.RELEASED

    @property
    def aspect_limit(self) -> float:
        """How far the aspects of a match with a bin may differ; PAPER has no limit."""
        return self.max_aspect_ratio if self.released else math.inf

    def grid(self, height: float, width: float) -> Grid:
        """The bins for an image B of this size."""
        cell = max(math.sqrt(2 * width * 2 * height / self.cells), self.least_cell)
        x, y = (
            max(math.floor(2 * size / cell * self.bins_per_cell + 0.5), 1) for size in (width, height)
        )
        grid = Grid(self.scale_bins, x, y)
        if grid.total >= 2**31:
            raise ValueError(f"{self.scale_bins} x {x} x {y} bins are more than 31 bits can count")
        return grid


BOTTOMS = (
    Bottom("scores", "[P, S]"),
    Bottom("rois_a", "[P, 5]", Role.TABLE),
    Bottom("rois_b", "[S, 5]", Role.TABLE, shared=True),
    Bottom("size_a", "[N, C, H, W]", Role.SIZE, shared=True),
    Bottom("size_b", "[N, C, H, W]", Role.SIZE, shared=True),
    Bottom("votes", "[P, S]", optional=True),
)
TOPS = (Top("top"),)


def infer(
    params: Params,
    scores: Shape,
    rois_a: Shape,
    rois_b: Shape,
    size_a: Shape,
    size_b: Shape,
    votes: Shape | None = None,
) -> tuple[Shape]:
    """The scores' shape; raises :class:`BlobError` for bottoms that do not fit together."""
    expect_axes("P S", scores=scores)
    boxes.expect_boxes(rois_a=rois_a, rois_b=rois_b)
    if scores != (rois_a[0], rois_b[0]):
        shapes = {"scores": scores, "rois_a": rois_a, "rois_b": rois_b}
        raise BlobError("expected {scores} to be a row for each of {rois_a} by {rois_b}", **shapes)
    expect_sizes(size_a=size_a, size_b=size_b)
    if votes is not None and params.output is Output.VOTES:
        raise BlobError("output: VOTES takes one blob of scores, not {votes} too", votes=votes)
    if votes is not None and votes != scores:
        raise BlobError("shapes differ: {scores}, {votes}", scores=scores, votes=votes)
    return (scores,)


def meta(params: Params, scores: Tensor, *_: Any) -> Sequence[Spec]:
    """The top; each match's bin ``[P, S]``; the votes by bin; the frames of A's and of B's boxes."""
    p, s = scores.shape
    return (
        ((p, s), scores.dtype),
        ((p, s), torch.int32),
        ((params.scale_bins + 2, unbacked(3), unbacked(3)), wide_dtype(scores.dtype)),
        ((4, p), torch.float64),
        ((6, s), torch.float64),
    )


def expect(params: Params, scores: Tensor, rois_a: Tensor, rois_b: Tensor, *_: Any) -> None:
    """Finite rois."""
    boxes.expect_finite(rois_a=rois_a)
    boxes.expect_finite(rois_b=rois_b)


def forward(
    params: Params,
    scores: Tensor,
    rois_a: Tensor,
    rois_b: Tensor,
    size_a: Size,
    size_b: Size,
    votes: Tensor | None = None,
) -> tuple[Tensor, ...]:
    grid = params.grid(*size_b)
    left, right = frames(rois_a, rois_b, size_a, size_b, grid, params.scale_range)
    at = bins(left, right, grid, params.aspect_limit)
    voters = scores if votes is None else votes

    def weight(rows: slice) -> Tensor:
        f_g = voters[rows]
        return (f_g.double() - params.threshold).clamp_(min=0) if params.released else f_g

    table = sums_by_bin(weight, at, grid)
    table = (table + params.added if params.released else table).to(wide_dtype(scores.dtype))
    top = torch.empty_like(scores, memory_format=torch.contiguous_format)
    for rows in chunks(at):
        found = looked_up(table, at[rows])
        top[rows] = found.mul_(scores[rows]) if params.output is Output.SCORES else found
    return top, at, table, left, right


def backward(
    params: Params,
    top_gradient: Tensor,
    scores: Tensor,
    votes: Tensor | None,
    at: Tensor,
    table: Tensor,
    left: Tensor,
    right: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """To f and, if it is not the same, to f_g; the kernels alone need the frames."""
    grid, wide = Grid.around(table), table.dtype
    voters = scores if votes is None else votes
    product, published = params.output is Output.SCORES, params.grad is Gradient.published

    def weight(rows: slice) -> Tensor:
        g = top_gradient[rows].to(wide)
        return g * scores[rows] if product else g

    def voted(rows: slice) -> Tensor:
        return voters[rows].double() > params.threshold

    if published:
        sums = sums_by_bin(lambda rows: weight(rows) * voted(rows), at, grid)
        sums = without_the_first(sums, lambda rows: weight(rows) != 0, at)
    else:
        sums = sums_by_bin(weight, at, grid)
    sums = sums.to(wide)
    to_scores = torch.empty_like(scores, memory_format=torch.contiguous_format)
    to_votes = None if votes is None else torch.empty_like(to_scores)
    for rows in chunks(
        at
    ):  # f's gradient is ``direct``, f_g's ``shared``; of one score it is their sum
        shared = looked_up(sums, at[rows])
        if params.released:
            shared *= voted(rows)
        direct = looked_up(table, at[rows]).mul_(top_gradient[rows]) if product else 0
        if to_votes is None:
            to_scores[rows] = shared.add_(direct)
        else:
            to_scores[rows], to_votes[rows] = direct, shared
    return to_scores, to_votes


kernels = cuda.Kernels(__file__)
SPAN = 8  # boxes of A a thread


def forward_cuda(
    params: Params,
    scores: Tensor,
    rois_a: Tensor,
    rois_b: Tensor,
    size_a: Size,
    size_b: Size,
    votes: Tensor | None = None,
) -> tuple[Tensor, ...]:
    scores = scores.contiguous()
    voters = scores if votes is None else votes.contiguous()
    grid = params.grid(*size_b)
    left, right = frames_cuda(kernels, params, rois_a, rois_b, size_a, size_b, grid)
    clipped, added = (True, params.added) if params.released else (False, 0)
    table = table_cuda(kernels, params, voters, left, right, grid, clipped=clipped, added=added)
    top, at = torch.empty_like(scores), torch.empty_like(scores, dtype=torch.int32)
    threads, (rows, columns) = cuda.threads(256), scores.shape
    kernels.launch(
        "hough_voting_forward",
        params,
        grid=-(-rows // SPAN) * -(-columns // threads),
        block=threads,
        scores=scores,
        left=left,
        right=right,
        table=table,
        at=at,
        top=top,
        product=params.output is Output.SCORES,
        rows=rows,
        columns=columns,
        span=SPAN,
        filtered=math.isfinite(params.aspect_limit),
        **grid._asdict(),
    )
    return top, at, table, left, right


def backward_cuda(
    params: Params,
    top_gradient: Tensor,
    scores: Tensor,
    votes: Tensor | None,
    at: Tensor,
    table: Tensor,
    left: Tensor,
    right: Tensor,
) -> tuple[Tensor, Tensor | None]:
    grid = Grid.around(table)
    top_gradient, scores = top_gradient.contiguous(), scores.contiguous()
    voters = scores if votes is None else votes.contiguous()
    times = scores if params.output is Output.SCORES else None
    published = params.grad is Gradient.published
    sums = table_cuda(
        kernels,
        params,
        top_gradient,
        left,
        right,
        grid,
        times=times,
        voters=voters if published else None,
        first=first_cuda(kernels, top_gradient, times, at, grid) if published else None,
    )
    to_scores = torch.empty_like(scores)
    to_votes = None if votes is None else torch.empty_like(scores)
    kernels.launch(
        "hough_voting_backward",
        params,
        over=scores.numel(),
        top_gradient=top_gradient,
        voters=voters if params.released else None,
        at=at,
        table=None if times is None else table,
        sums=sums,
        to_scores=to_scores,
        to_votes=to_votes,
        matches=scores.numel(),
    )
    return to_scores, to_votes


definition = define(__name__, kept=("at", "table", "left", "right"))


def hough_voting(
    scores: Tensor,
    rois_a: Tensor,
    rois_b: Tensor,
    size_a: Sequence[float] | Tensor,
    size_b: Sequence[float] | Tensor,
    votes: Tensor | None = None,
    rule: Rule | str = Params.rule,
    output: Output | str = Params.output,
    grad: Gradient | str = Params.grad,
    threshold: float = Params.threshold,
    added: float = Params.added,
    max_aspect_ratio: float = Params.max_aspect_ratio,
    **binning: Any,
) -> Tensor:
    """``scores`` f ``[P, S]`` of matches times the votes in their offset bins, ``[P, S]``.

    ``rois_a`` ``[P, 4 or 5]`` and ``rois_b`` ``[S, 4 or 5]`` end in (x1, y1, x2, y2), image pixels;
    ``size_a``, ``size_b`` are the images' (height, width) in pixels, or the images ``[N, C, H, W]``;
    ``votes`` f_g ``[P, S]`` votes in place of f. ``output="VOTES"`` gives the votes alone. ``rule``,
    ``grad``, the constants and the ``binning`` (cells, least_cell, bins_per_cell, scale_bins,
    scale_range) are the module's. Raises ``BlobError`` for shapes that do not fit and for rois that
    are not finite (on CUDA ``ValueError``, later); ``TypeError`` for dtypes and devices; ``ValueError``
    for sizes below a pixel. Sizes in a CUDA tensor wait for the device. Source: SCNet, Eqs. 7-9, 12.
    """
    params = definition.params(rule, output, grad, threshold, added, max_aspect_ratio, **binning)
    top: Tensor = definition(params, scores, rois_a, rois_b, size_a, size_b, votes)
    return top


@register("HoughVoting")
class HoughVoting(Layer):
    definition = definition

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        from ._samples import hough_voting as own

        return own.samples(size, rng)
