"""HoughVoting: matches whose offset many others share score higher; SCNet's layer "xK".

Each match m of a region r of image A with a region s of image B has an offset, position and scale
change, whose bin is h(m); B_h is the set of all matches of bin h (SCNet, Eqs. 7, 8). With f the
appearance score and f_g the voting one, which may be the same,

    votes(m) = sum of f_g(m') over m' in B_h(m),    z(m) = f(m) votes(m)        (Eqs. 9, 12)

Bottoms: ``scores`` f ``[P, S]``, any floating type; ``rois_a`` ``[P, 5]`` and ``rois_b`` ``[S, 5]``,
or boxes without the batch column ``[P, 4]``, ``[S, 4]``, in image pixels (the column is not read: a
call is one pair of images); ``size_a`` and ``size_b``, each an image ``[N, C, H, W]``, of which only
the shape is read, or two values (H, W); and if wanted ``votes``, f_g ``[P, S]``. Top ``[P, S]``: z,
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
w over its bin, under RELEASED where f_g > threshold. ``grad: published``, the released layer's,
is not the derivative of this: it sums w over the bin's matches with f_g > threshold only; and of the
bins of the matches with w != 0, "no bin" counting as the first, it leaves the first one out.

Nothing larger than a number per match is made: the matches' bins, int32, and sums by bin. The kernels
take up to 3 bytes a match more for partial sums, whose order depends on the shapes alone. In float32
they have to move 16 bytes a match forward (the scores twice, bins, top) and 20 backward (the top's
gradient twice, scores, bins, gradient): 64 and 80 MB for 2000 x 2000 regions.

*Differs from the original:* PAPER has neither threshold, constant nor aspect filter.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._engine import cuda
from ._engine.checks import BlobError, Shape, expect_axes, raise_if, value_flag
from ._engine.declared import Bottom, Role, Top
from ._engine.definition import Definition, Spec
from ._engine.layer import Layer
from ._engine.operators import unbacked
from ._engine.params import Gradient, param
from ._engine.registry import register
from ._engine.samples import Sample
from ._engine.sizes import FAR, Size, expect_sizes
from ._engine.wide import wide_dtype
from ._geometry import boxes
from ._geometry.geometry import table_pointers

CHUNK = 1 << 15  # matches at a time: what stays in a core's cache


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
    rule: Rule = param(Rule.PAPER)
    output: Output = param(Output.SCORES, doc="z, or the votes alone")
    grad: Gradient = param(Gradient.exact, doc="published: the released layer's backward (RELEASED)")
    threshold: float = param(0.4, low=0, doc="what does not vote (RELEASED)")
    added: float = param(0.01, low=0, doc="to each match's votes (RELEASED)")
    max_aspect_ratio: float = param(
        2.0, above=1, infinite=True, doc="of a match's two aspects (RELEASED)"
    )
    cells: float = param(8000.0, above=0, doc="cells in twice the size of B")
    least_cell: float = param(5.0, above=0, unit="image pixels")
    bins_per_cell: float = param(0.2, above=0, doc="along an axis")
    scale_bins: int = param(40, low=1)
    scale_range: float = param(4.0, above=0, unit="octaves of area")

    def __post_init__(self) -> None:
        if self.grad is Gradient.published and self.rule is not Rule.RELEASED:
            raise ValueError("grad: published goes with rule: RELEASED")

    @property
    def released(self) -> bool:
        return self.rule is Rule.RELEASED


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


class Grid(NamedTuple):
    """The number of bins by axis. Around them lies a border, one more at either end: no bin."""

    scale: int
    x: int
    y: int

    @classmethod
    def of(cls, params: Params, height: float, width: float) -> Grid:
        cell = max(math.sqrt(2 * width * 2 * height / params.cells), params.least_cell)
        x, y = (
            max(math.floor(2 * size / cell * params.bins_per_cell + 0.5), 1) for size in (width, height)
        )
        grid = cls(params.scale_bins, x, y)
        if grid.total >= 2**31:
            raise ValueError(f"{params.scale_bins} x {x} x {y} bins are more than 31 bits can count")
        return grid

    @classmethod
    def around(cls, table: Tensor) -> Grid:
        """Of the sums by bin ``[scale + 2, x + 2, y + 2]``."""
        return cls(*(length - 2 for length in table.shape))

    @property
    def shape(self) -> Shape:
        return (self.scale + 2, self.x + 2, self.y + 2)

    @property
    def total(self) -> int:
        return math.prod(self.shape)


def inside(sums: Tensor) -> Tensor:
    """Sums by bin with 0 in the border."""
    kept, middle = torch.zeros_like(sums), (slice(1, -1),) * 3
    kept[middle] = sums[middle]
    return kept


def frames(
    rois_a: Tensor,
    rois_b: Tensor,
    size_a: Sequence[float],
    size_b: Sequence[float],
    grid: Grid,
    params: Params,
) -> tuple[Tensor, Tensor]:
    """What the bins of all matches are computed from, float64, finite whatever the rois hold.

    Of A ``[4, P]``: u, v, scale, aspect; of B ``[6, S]``: xc, ax, yc, ay, scale, aspect, in bins.
    """
    x, y, ax, ay, octave, aspect, flat = _box(rois_a)
    (height, width), factor = size_a, params.scale_bins / (2 * params.scale_range)
    u, v = ((width - 1 - x) / ax).clamp(-FAR, FAR), ((height - 1 - y) / ay).clamp(-FAR, FAR)
    left = torch.stack((u, v, (octave * factor).masked_fill(flat, FAR), aspect))
    x, y, ax, ay, octave, aspect, flat = _box(rois_b)
    step_x, step_y = (2 * size_b[1] - 1) / grid.x, (2 * size_b[0] - 1) / grid.y
    scale = ((octave + params.scale_range) * factor).masked_fill(flat, -FAR)
    right = torch.stack((x / step_x, ax / step_x, y / step_y, ay / step_y, scale, aspect))
    return left, right


def _box(rois: Tensor) -> tuple[Tensor, ...]:
    """Centre, half extents, log2 of the area, aspect; and whether there is no area."""
    x1, y1, x2, y2 = boxes.corners(rois).double().nan_to_num().clamp(-FAR, FAR).unbind(-1)
    ax, ay = (x2 - x1) / 2, (y2 - y1) / 2
    area = ax.clamp(min=0) * ay.clamp(min=0)
    flat = area == 0
    ax, ay, area = (x.masked_fill(flat, 1) for x in (ax, ay, area))
    # On a grid of 2^-40, areas whose ratio is a power of two differ by exactly its exponent.
    mantissa, exponent = torch.frexp(area)
    octave = exponent + (mantissa.log2() * 2**40).round() / 2**40
    return (x1 + x2) / 2, (y1 + y2) / 2, ax, ay, octave, ax / ay, flat


def bins(left: Tensor, right: Tensor, grid: Grid, max_aspect_ratio: float) -> Tensor:
    """The bin ``[P, S]`` int32 of each match, y innermost, scale outermost, the border included."""
    found = torch.empty(left.shape[1], right.shape[1], dtype=torch.int32, device=left.device)
    u, v, from_scale, from_aspect = left[:, :, None]
    x, ax, y, ay, to_scale, to_aspect = right
    for rows in _chunks(found):
        index = (to_scale - from_scale[rows]).floor_().clamp_(-1, grid.scale)
        # not addcmul, which is rounded once or twice as the device likes
        column = torch.mul(u[rows], ax).add_(x).floor_().clamp_(-1, grid.x)
        row = torch.mul(v[rows], ay).add_(y).floor_().clamp_(-1, grid.y)
        index.mul_(grid.x + 2).add_(column).mul_(grid.y + 2).add_(row)
        index.add_(((grid.x + 2) + 1) * (grid.y + 2) + 1)  # the border begins at -1
        if math.isfinite(max_aspect_ratio):
            aspect = from_aspect[rows]
            alike = (to_aspect < max_aspect_ratio * aspect) & (aspect < max_aspect_ratio * to_aspect)
            index.mul_(alike)
        found[rows] = index
    return found


def _chunks(matches: Tensor) -> Iterator[slice]:
    step = max(1, CHUNK // max(matches.shape[1], 1))
    return (slice(row, row + step) for row in range(0, len(matches), step))


def _sums(values: Callable[[slice], Tensor], at: Tensor, grid: Grid) -> Tensor:
    """``values`` of some rows of matches after the other, added up by bin, in float64."""
    total = torch.zeros(grid.total, dtype=torch.float64, device=at.device)
    for rows in _chunks(at):
        index, weight = at[rows].flatten(), values(rows).double().flatten()
        if at.is_cuda:  # bincount has no fixed order there; index_put_ sorts
            total.index_put_((index.long(),), weight, accumulate=True)
        else:
            total += torch.bincount(index, weight, grid.total)
    return total.view(grid.shape)


def _without_the_first(sums: Tensor, used: Tensor) -> Tensor:
    """0 for the first bin in use, if all matches in use have a bin."""
    if bool(((used > 0) & (inside(used) == 0)).any()):
        return sums
    first = used.flatten().nonzero()[:1, 0]
    return sums.flatten().index_fill(0, first, 0).view(sums.shape)


def _looked_up(table: Tensor, bin: Tensor) -> Tensor:
    return table.view(-1).index_select(0, bin.flatten()).view(bin.shape)


def meta(
    params: Params,
    scores: Tensor,
    rois_a: Tensor,
    rois_b: Tensor,
    size_a: Tensor,
    size_b: Tensor,
    votes: Tensor | None = None,
) -> Sequence[Spec]:
    """The top; each match's bin ``[P, S]``; the votes by bin; the frames."""
    table = params.scale_bins + 2, unbacked(3), unbacked(3)
    return (
        (scores.shape, scores.dtype),
        (scores.shape, torch.int32),
        (table, wide_dtype(scores.dtype)),
        ((4, scores.shape[0]), torch.float64),
        ((6, scores.shape[1]), torch.float64),
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
    grid = Grid.of(params, *size_b)
    left, right = frames(rois_a, rois_b, size_a, size_b, grid, params)
    at = bins(left, right, grid, params.max_aspect_ratio if params.released else math.inf)
    voters = scores if votes is None else votes

    def voted(rows: slice) -> Tensor:
        given = voters[rows]
        return (given.double() - params.threshold).clamp_(min=0) if params.released else given

    table = inside(_sums(voted, at, grid))
    table = (table + params.added if params.released else table).to(wide_dtype(scores.dtype))
    top = torch.empty_like(scores, memory_format=torch.contiguous_format)
    for rows in _chunks(at):
        found = _looked_up(table, at[rows])
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
    """Of the scores and, if they are two, of the votes; the frames are the kernels'."""
    grid, wide = Grid.around(table), table.dtype
    voters = scores if votes is None else votes
    product, published = params.output is Output.SCORES, params.grad is Gradient.published

    def weight(rows: slice) -> Tensor:
        g = top_gradient[rows].to(wide)
        return g * scores[rows] if product else g

    def voted(rows: slice) -> Tensor:
        return voters[rows].double() > params.threshold

    sums = _sums(lambda rows: weight(rows) * voted(rows) if published else weight(rows), at, grid)
    if published:
        sums = _without_the_first(sums, _sums(lambda rows: weight(rows) != 0, at, grid))
    sums = inside(sums).to(wide)
    to_scores = torch.empty_like(scores, memory_format=torch.contiguous_format)
    to_votes = None if votes is None else torch.empty_like(to_scores)
    for rows in _chunks(at):
        shared = _looked_up(sums, at[rows])
        if params.released:
            shared *= voted(rows)
        direct = _looked_up(table, at[rows]).mul_(top_gradient[rows]) if product else 0
        to_scores[rows] = direct if to_votes is not None else shared.add_(direct)
        if to_votes is not None:
            to_votes[rows] = shared
    return to_scores, to_votes


kernels = cuda.Kernels(__file__)
PIECES = 64  # of the rows, at most, each with sums of its own
TILE = 512  # bins of a plane that a warp sums in shared memory, 8 bytes each
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
    grid = Grid.of(params, *size_b)
    left, right = frames_cuda(rois_a, rois_b, size_a, size_b, grid, params)
    voters = scores if votes is None else votes.contiguous()
    added = params.added if params.released else 0
    table = _table_cuda(voters, left, right, grid, params, clipped=params.released, added=added)
    top, at = torch.empty_like(scores), torch.empty_like(scores, dtype=torch.int32)
    threads = cuda.threads(256)
    rows, columns = scores.shape
    kernels.launch(
        "hough_voting_forward",
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
        grid=-(-rows // SPAN) * -(-columns // threads),
        block=threads,
        **_binning(grid, params),
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
    sums = _table_cuda(
        top_gradient,
        left,
        right,
        grid,
        params,
        times=times,
        voters=voters if published else None,
        first=_first_cuda(top_gradient, times, at, grid) if published else None,
    )
    to_scores = torch.empty_like(scores)
    to_votes = None if votes is None else torch.empty_like(scores)
    threads = cuda.threads(256)
    kernels.launch(
        "hough_voting_backward",
        top_gradient=top_gradient,
        voters=voters if params.released else None,
        at=at,
        table=None if times is None else table,
        sums=sums,
        to_scores=to_scores,
        to_votes=to_votes,
        matches=scores.numel(),
        threshold=params.threshold,
        grid=cuda.blocks(scores.numel(), threads),
        block=threads,
    )
    return to_scores, to_votes


def frames_cuda(
    rois_a: Tensor,
    rois_b: Tensor,
    size_a: Sequence[float],
    size_b: Sequence[float],
    grid: Grid,
    params: Params,
) -> tuple[Tensor, Tensor]:
    """:func:`frames`, which also notes rois that are not finite."""
    rows, columns = len(rois_a), len(rois_b)
    left, right = (
        torch.empty(kinds, count, dtype=torch.float64, device=rois_a.device)
        for kinds, count in ((4, rows), (6, columns))
    )
    a, b, flag = (*map(table_pointers, (rois_a.contiguous(), rois_b.contiguous())), value_flag(rois_a))
    threads = cuda.threads(256)
    kernels.launch(
        "hough_voting_frames",
        scalar=torch.float64,
        narrow_a=a["narrow"],
        wide_a=a["wide"],
        narrow_b=b["narrow"],
        wide_b=b["wide"],
        left=left,
        right=right,
        flag=flag,
        rows=rows,
        columns=columns,
        columns_a=rois_a.shape[1],
        columns_b=rois_b.shape[1],
        corner_x=size_a[1] - 1,
        corner_y=size_a[0] - 1,
        step_x=(2 * size_b[1] - 1) / grid.x,
        step_y=(2 * size_b[0] - 1) / grid.y,
        factor=params.scale_bins / (2 * params.scale_range),
        scale_range=params.scale_range,
        grid=cuda.blocks(rows + columns, threads),
        block=threads,
    )
    raise_if(flag, "rois_a, rois_b: coordinates that are not finite")
    return left, right


def _table_cuda(
    given: Tensor,
    left: Tensor,
    right: Tensor,
    grid: Grid,
    params: Params,
    times: Tensor | None = None,
    voters: Tensor | None = None,
    first: Tensor | None = None,
    clipped: bool = False,
    added: float = 0,
) -> Tensor:
    """The matches' weights summed by bin, as acc_t; see Weight in the .cu."""
    (rows, columns), plane = given.shape, grid.x * grid.y
    threads, device = cuda.threads(256), given.device
    ranked, order = torch.empty_like(right), torch.empty(columns, dtype=torch.int32, device=device)
    kernels.launch(
        "hough_voting_rank",
        scalar=given.dtype,
        right=right,
        ranked=ranked,
        order=order,
        columns=columns,
        grid=cuda.blocks(columns, threads // 32),
        block=threads,
    )
    # 3 bytes a match, or what one table takes
    pieces = min(rows, PIECES, max(3 * rows * columns // (8 * grid.scale * plane), 1))
    partial = torch.empty(pieces, grid.scale, plane, dtype=torch.float64, device=device)
    tile = min(plane, TILE)
    kernels.launch(
        "hough_voting_sums",
        given=given,
        times=times,
        voters=voters,
        threshold=params.threshold,
        clipped=clipped,
        left=left,
        ranked=ranked,
        order=order,
        partial=partial,
        rows=rows,
        columns=columns,
        pieces=pieces,
        tile=tile,
        shared=threads // 32 * tile * 8,
        grid=pieces * grid.scale * -(-plane // tile),
        block=threads,
        **_binning(grid, params),
    )
    table = torch.empty(grid.shape, dtype=wide_dtype(given.dtype), device=device)
    kernels.launch(
        "hough_voting_table",
        scalar=given.dtype,
        partial=partial,
        first=first,
        table=table,
        pieces=pieces,
        added=added,
        grid=cuda.blocks(grid.total, threads),
        block=threads,
        **_bins(grid),
    )
    return table


def _first_cuda(given: Tensor, times: Tensor | None, at: Tensor, grid: Grid) -> Tensor:
    """What :func:`_without_the_first` leaves out, int32 ``[1]``; no bin's index if nothing."""
    first = torch.full((1,), 2**31 - 1, dtype=torch.int32, device=at.device)
    threads = cuda.threads(256)
    kernels.launch(
        "hough_voting_first",
        given=given,
        times=times,
        bins=at,
        first=first,
        matches=at.numel(),
        grid=min(cuda.blocks(at.numel(), threads), 8 * cuda.multiprocessors(at.device)),
        block=threads,
        **_bins(grid),
    )
    return first


def _bins(grid: Grid) -> dict[str, int]:
    return {"scale_bins": grid.scale, "x_bins": grid.x, "y_bins": grid.y}


def _binning(grid: Grid, params: Params) -> dict[str, float]:
    return {
        **_bins(grid),
        "filtered": params.released and math.isfinite(params.max_aspect_ratio),
        "max_aspect_ratio": params.max_aspect_ratio,
    }


definition = Definition(
    "hough_voting",
    Params,
    BOTTOMS,
    TOPS,
    kept=("at", "table", "left", "right"),
    infer=infer,
    meta=meta,
    expect=expect,
    forward=forward,
    backward=backward,
    forward_cuda=forward_cuda,
    backward_cuda=backward_cuda,
)


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
        photo = (375, 500), (333, 500)
        if size == "paper":
            return [_sample(rng, "1000 x 1000 regions", 1000, 1000, *photo)]
        if size == "large":
            return [_sample(rng, "2000 x 2000 regions", 2000, 2000, *photo)]
        coarse: dict[str, Any] = {"cells": 200.0, "scale_bins": 6}
        released: dict[str, Any] = {**coarse, "rule": Rule.RELEASED}
        published = {**released, "grad": Gradient.published}
        pieces: dict[str, Any] = {"bins_per_cell": 0.7, "scale_bins": 1, "scale_range": 1.0}
        # 31 x 33 bins of a plane, whose middle one is the first of the second tile
        fine: dict[str, Any] = {"bins_per_cell": 1.6, "scale_bins": 2}
        small = (40, 60), (52, 48)
        return [
            _sample(rng, "Eq. 9", 6, 7, *small, **coarse),
            _sample(rng, "Eq. 12", 5, 6, *small, second=True, whole=True, **coarse),
            _sample(rng, "votes alone", 6, 5, *small, output=Output.VOTES, **coarse),
            _sample(rng, "released", 8, 7, *small, **released),
            _sample(rng, "released, two", 7, 5, *small, second=True, **released),
            _sample(rng, "the bins of the paper", 9, 8, (64, 80), (80, 64)),
            _sample(rng, "one bin", 5, 9, *small, cells=1.0, least_cell=1e3, scale_bins=1),
            _sample(rng, "tiles of a plane", 24, 30, *small, check=False, **fine),
            _sample(rng, "published", 7, 8, *small, **published),
            _sample(rng, "published, a first bin", 9, 10, *small, alone=0, **published),
            _sample(rng, "published, another", 9, 10, *small, alone=3, **published),
            _sample(
                rng, "several blocks", 37, 64, *small, second=True, check=False, rule=Rule.RELEASED
            ),
            _sample(rng, "pieces of rows", 75, 41, *small, check=False, **pieces),
        ]


def _sample(
    rng: np.random.Generator,
    name: str,
    p: int,
    s: int,
    size_a: tuple[int, int],
    size_b: tuple[int, int],
    second: bool = False,
    whole: bool = False,
    check: bool = True,
    alone: int | None = None,
    **options: Any,
) -> Sample:
    """Boxes of whole pixels, B's half of them like A's; scores off the threshold if they are checked.

    ``whole``: tables of integers, B's without the batch column. ``alone``: of the matches with a score
    that of this box with its like is alone in the lowest bin.
    """
    params = Params(**options)
    check = check and params.grad is Gradient.exact
    rois_a, rois_b = _tables(rng, p, s, size_a, size_b)
    levels = rng.uniform(0.05, 0.35, (2, p, s)) + 0.4 * (rng.random((2, p, s)) < 0.5)
    if not check:
        levels[:, 1] = params.threshold
    tables = torch.from_numpy(rois_a), torch.from_numpy(rois_b)
    f, f_g = torch.from_numpy(levels)
    if alone is not None:
        grid = Grid.of(params, *size_b)
        at = bins(*frames(*tables, size_a, size_b, grid, params), grid, params.max_aspect_ratio)
        f[(at <= at[alone, alone]) | (inside(torch.ones(grid.shape)).view(-1)[at] == 0)] = 0
        f[alone, alone] = 0.7
    if whole:
        tables = tables[0].int(), tables[1][:, 1:].int()
    images = [torch.zeros(1, 1, *size, dtype=torch.float64) for size in (size_a, size_b)]
    bottoms = (f, *tables, *images, *((f_g,) if second else ()))
    return Sample(params, bottoms, (0, 5) if second else (0,), name=name, check_gradient=check)


def _tables(
    rng: np.random.Generator, p: int, s: int, size_a: tuple[int, int], size_b: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Rois ``[p, 5]``, ``[s, 5]``: some alike, some of twice the other's aspect, some of B's outside of
    the image and A's last without area."""
    rois_a, rois_b = _rois(rng, p, size_a), _rois(rng, s, size_b)
    rois_a[1:3, 1:] = (32, 20, 48, 36), (20, 20, 52, 36)
    alike = min(p, s) // 2
    limit = np.array((size_b[1], size_b[0]) * 2) - 1
    rois_b[:alike, 1:] = np.minimum(rois_a[:alike, 1:] + rng.integers(0, 3, (alike, 1)), limit)
    rois_b[-4:, 1:] = (4, 8, 36, 24), (8, 8, 40, 40), (-30, 8, -8, 36), (8, -30, 36, -8)
    rois_a[-1, 4] = rois_a[-1, 2]
    return rois_a, rois_b


def _rois(rng: np.random.Generator, count: int, size: tuple[int, int]) -> np.ndarray:
    """Boxes of a quarter of the image and larger, (0, x1, y1, x2, y2)."""
    extent = np.array((size[1], size[0]))
    length = np.floor(rng.uniform(0.25, 0.9, (count, 2)) * extent)
    corner = np.floor(rng.random((count, 2)) * (extent - length))
    return np.concatenate((np.zeros((count, 1)), corner, corner + length - 1), axis=1)
