"""The offset bins of HoughVoting: the bin of each match's offset, and sums of matches by bin.

First on the CPU, then by the kernels of ``hough_voting.cu``, which find the same bins to the last bit.
The kernels add up without a bin for each match: they rank B's boxes by area, and the matches of a box
of A in one bin of scale are then a range of the ranking.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._engine import cuda
from ._engine.checks import Shape, raise_if, value_flag
from ._engine.sizes import FAR
from ._engine.wide import wide_dtype
from ._geometry import boxes
from ._geometry.geometry import table_pointers

CHUNK = 1 << 15  # matches at a time: what stays in a core's cache
PIECES = 64  # of the rows, at most, each with sums of its own
TILE = 512  # bins of a plane that a warp sums in shared memory, 8 bytes each


class Grid(NamedTuple):
    """The number of bins by axis. Around them lies a border, one more at either end: no bin."""

    scale_bins: int
    x_bins: int
    y_bins: int

    @classmethod
    def around(cls, table: Tensor) -> Grid:
        """Of the sums by bin ``[scale + 2, x + 2, y + 2]``."""
        return cls(*(length - 2 for length in table.shape))

    @property
    def shape(self) -> Shape:
        return (self.scale_bins + 2, self.x_bins + 2, self.y_bins + 2)

    @property
    def total(self) -> int:
        return math.prod(self.shape)


def frames(
    rois_a: Tensor,
    rois_b: Tensor,
    size_a: Sequence[float],
    size_b: Sequence[float],
    grid: Grid,
    scale_range: float,
) -> tuple[Tensor, Tensor]:
    """What the bins of all matches are computed from, float64, finite whatever the rois hold.

    Of A ``[4, P]``: u, v, scale, aspect; of B ``[6, S]``: xc, ax, yc, ay, scale, aspect, in bins.
    """
    x, y, ax, ay, octave, aspect, flat = _box(rois_a)
    (height, width), factor = size_a, grid.scale_bins / (2 * scale_range)
    u, v = ((width - 1 - x) / ax).clamp(-FAR, FAR), ((height - 1 - y) / ay).clamp(-FAR, FAR)
    left = torch.stack((u, v, (octave * factor).masked_fill(flat, FAR), aspect))
    x, y, ax, ay, octave, aspect, flat = _box(rois_b)
    step_x, step_y = (2 * size_b[1] - 1) / grid.x_bins, (2 * size_b[0] - 1) / grid.y_bins
    scale = ((octave + scale_range) * factor).masked_fill(flat, -FAR)
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


def bins(left: Tensor, right: Tensor, grid: Grid, aspect_limit: float) -> Tensor:
    """The bin ``[P, S]`` int32 of each match, y innermost, scale outermost, the border included."""
    found = torch.empty(left.shape[1], right.shape[1], dtype=torch.int32, device=left.device)
    u, v, from_scale, from_aspect = left[:, :, None]
    x, ax, y, ay, to_scale, to_aspect = right
    scale_bins, x_bins, y_bins = grid
    for rows in chunks(found):
        index = (to_scale - from_scale[rows]).floor_().clamp_(-1, scale_bins)
        # not addcmul, which is rounded once or twice as the device likes
        column = torch.mul(u[rows], ax).add_(x).floor_().clamp_(-1, x_bins)
        row = torch.mul(v[rows], ay).add_(y).floor_().clamp_(-1, y_bins)
        index.mul_(x_bins + 2).add_(column).mul_(y_bins + 2).add_(row)
        index.add_(((x_bins + 2) + 1) * (y_bins + 2) + 1)  # the border begins at -1
        if math.isfinite(aspect_limit):
            aspect = from_aspect[rows]
            alike = (to_aspect < aspect_limit * aspect) & (aspect < aspect_limit * to_aspect)
            index.mul_(alike)
        found[rows] = index
    return found


def chunks(matches: Tensor) -> Iterator[slice]:
    """Some rows of matches after the other."""
    step = max(1, CHUNK // max(matches.shape[1], 1))
    return (slice(row, row + step) for row in range(0, len(matches), step))


def sums_by_bin(weight: Callable[[slice], Tensor], at: Tensor, grid: Grid) -> Tensor:
    """The ``weight`` of some rows of matches after the other, added up by bin in float64; 0 in the
    border."""
    return inside(_all_sums(weight, at, grid))


def _all_sums(weight: Callable[[slice], Tensor], at: Tensor, grid: Grid) -> Tensor:
    total = torch.zeros(grid.total, dtype=torch.float64, device=at.device)
    for rows in chunks(at):
        index, values = at[rows].flatten(), weight(rows).double().flatten()
        if at.is_cuda:  # bincount has no fixed order there; index_put_ sorts
            total.index_put_((index.long(),), values, accumulate=True)
        else:
            total += torch.bincount(index, values, grid.total)
    return total.view(grid.shape)


def inside(sums: Tensor) -> Tensor:
    """Sums by bin with 0 in the border."""
    kept, middle = torch.zeros_like(sums), (slice(1, -1),) * 3
    kept[middle] = sums[middle]
    return kept


def without_the_first(sums: Tensor, used: Callable[[slice], Tensor], at: Tensor) -> Tensor:
    """The sums with 0 for the first bin of a match in use, if all matches in use have a bin."""
    count = _all_sums(used, at, Grid.around(sums))
    if bool(((count > 0) & (inside(count) == 0)).any()):
        return sums
    first = count.flatten().nonzero()[:1, 0]
    return sums.flatten().index_fill(0, first, 0).view(sums.shape)


def looked_up(table: Tensor, at: Tensor) -> Tensor:
    """The table's values at the matches' bins."""
    return table.view(-1).index_select(0, at.flatten()).view(at.shape)


# ------------------------------------------------------------- by the kernels of hough_voting.cu


def frames_cuda(
    kernels: cuda.Kernels,
    params: Any,
    rois_a: Tensor,
    rois_b: Tensor,
    size_a: Sequence[float],
    size_b: Sequence[float],
    grid: Grid,
) -> tuple[Tensor, Tensor]:
    """:func:`frames`, which also notes rois that are not finite."""
    rows, columns = len(rois_a), len(rois_b)
    left, right = (
        torch.empty(kinds, count, dtype=torch.float64, device=rois_a.device)
        for kinds, count in ((4, rows), (6, columns))
    )
    a, b, flag = (*map(table_pointers, (rois_a.contiguous(), rois_b.contiguous())), value_flag(rois_a))
    kernels.launch(
        "hough_voting_frames",
        params,
        over=rows + columns,
        scalar=torch.float64,
        narrow_a=a["narrow"],
        wide_a=a["wide"],
        narrow_b=b["narrow"],
        wide_b=b["wide"],
        left=left,
        right=right,
        flag=flag,
        corner_x=size_a[1] - 1,
        corner_y=size_a[0] - 1,
        step_x=(2 * size_b[1] - 1) / grid.x_bins,
        step_y=(2 * size_b[0] - 1) / grid.y_bins,
        factor=params.scale_bins / (2 * params.scale_range),
        **cuda.sizes("rows columns_a", rois_a),
        **cuda.sizes("columns columns_b", rois_b),
    )
    raise_if(flag, "rois_a, rois_b: coordinates that are not finite")
    return left, right


def table_cuda(
    kernels: cuda.Kernels,
    params: Any,
    given: Tensor,
    left: Tensor,
    right: Tensor,
    grid: Grid,
    times: Tensor | None = None,
    voters: Tensor | None = None,
    first: Tensor | None = None,
    clipped: bool = False,
    added: float = 0,
) -> Tensor:
    """Weights of matches summed by bin, 0 in the border, plus ``added``; see Weight in the .cu.

    Without the bin ``first``, if one is given.
    """
    (rows, columns), plane = given.shape, grid.x_bins * grid.y_bins
    threads, device = cuda.threads(256), given.device
    ranked, order = torch.empty_like(right), torch.empty(columns, dtype=torch.int32, device=device)
    kernels.launch(
        "hough_voting_rank",
        over=32 * columns,
        scalar=given.dtype,
        right=right,
        ranked=ranked,
        order=order,
        columns=columns,
    )
    # 3 bytes a match, or what one table takes
    pieces = min(rows, PIECES, max(3 * rows * columns // (8 * grid.scale_bins * plane), 1))
    partial = torch.empty(pieces, grid.scale_bins, plane, dtype=torch.float64, device=device)
    tile = min(plane, TILE)
    kernels.launch(
        "hough_voting_sums",
        params,
        grid=pieces * grid.scale_bins * -(-plane // tile),
        block=threads,
        shared=threads // 32 * tile * 8,
        given=given,
        times=times,
        voters=voters,
        clipped=clipped,
        left=left,
        ranked=ranked,
        order=order,
        partial=partial,
        rows=rows,
        columns=columns,
        pieces=pieces,
        tile=tile,
        filtered=math.isfinite(params.aspect_limit),
        **grid._asdict(),
    )
    table = torch.empty(grid.shape, dtype=wide_dtype(given.dtype), device=device)
    kernels.launch(
        "hough_voting_table",
        over=grid.total,
        scalar=given.dtype,
        partial=partial,
        first=first,
        table=table,
        pieces=pieces,
        added=added,
        **grid._asdict(),
    )
    return table


def first_cuda(
    kernels: cuda.Kernels, given: Tensor, times: Tensor | None, at: Tensor, grid: Grid
) -> Tensor:
    """What :func:`without_the_first` leaves out, int32 ``[1]``; no bin's index if nothing."""
    first = torch.full((1,), 2**31 - 1, dtype=torch.int32, device=at.device)
    threads = cuda.threads(256)
    kernels.launch(
        "hough_voting_first",
        grid=min(cuda.blocks(at.numel(), threads), 8 * cuda.multiprocessors(at.device)),
        block=threads,
        given=given,
        times=times,
        bins=at,
        first=first,
        matches=at.numel(),
        **grid._asdict(),
    )
    return first
