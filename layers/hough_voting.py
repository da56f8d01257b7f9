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

Nothing larger than a number per match is made: the matches' bins, int32, and sums by bin.

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
from torch.autograd.function import once_differentiable

from ._runtime import autocast, boxes
from ._runtime.checks import BlobError, Shape, expect_axes, expect_floating, expect_same_device
from ._runtime.layer import Layer
from ._runtime.params import choice, param, valid
from ._runtime.registry import register
from ._runtime.samples import Sample

FAR = 1e18  # pixels: beyond any bin, and finite in every product below
CHUNK = 1 << 15  # matches at a time: what stays in a core's cache


class Rule(enum.Enum):
    """Eq. 9 over the bins, or what the released code makes of it."""

    PAPER = 0
    RELEASED = 1


class Output(enum.Enum):
    """The top: z, or the votes alone."""

    SCORES = 0
    VOTES = 1


class Gradient(enum.Enum):
    """The derivative of the forward, or the released layer's backward."""

    exact = 0
    published = 1


@dataclass(frozen=True)
class Params:
    rule: Rule = param(Rule.PAPER)
    output: Output = param(Output.SCORES, doc="z, or the votes alone")
    grad: Gradient = param(Gradient.exact, doc="published: the released layer's backward (RELEASED)")
    threshold: float = param(0.4, low=0, doc="what does not vote (RELEASED)")
    added: float = param(0.01, low=0, doc="to each match's votes (RELEASED)")
    max_aspect_ratio: float = param(2.0, above=1, doc="of a match's two aspects (RELEASED)")
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
    for name, shape in (("size_a", size_a), ("size_b", size_b)):
        if len(shape) != 4 and math.prod(shape) != 2:
            raise BlobError(f"expected {{{name}}} to be [N, C, H, W] or [2]", **{name: shape})
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

    @property
    def shape(self) -> Shape:
        return (self.scale + 2, self.x + 2, self.y + 2)

    @property
    def total(self) -> int:
        return math.prod(self.shape)

    def inside(self, sums: Tensor) -> Tensor:
        """Sums by bin ``[total]`` with 0 in the border."""
        kept = torch.zeros_like(sums)
        middle = (slice(1, -1),) * 3
        kept.view(self.shape)[middle] = sums.view(self.shape)[middle]
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
    flat = (ax <= 0) | (ay <= 0) | (ax * ay == 0)
    ax, ay = ax.masked_fill(flat, 1), ay.masked_fill(flat, 1)
    # On a grid of 2^-40, areas whose ratio is a power of two differ by exactly its exponent.
    mantissa, exponent = torch.frexp(ax * ay)
    octave = exponent + (mantissa.log2() * 2**40).round() / 2**40
    return (x1 + x2) / 2, (y1 + y2) / 2, ax, ay, octave, ax / ay, flat


def bins(left: Tensor, right: Tensor, grid: Grid, max_aspect_ratio: float) -> Tensor:
    """The bin ``[P, S]`` int32 of each match, y innermost, scale outermost, the border included."""
    found = torch.empty(left.shape[1], right.shape[1], dtype=torch.int32, device=left.device)
    u, v, from_scale, from_aspect = left[:, :, None]
    x, ax, y, ay, to_scale, to_aspect = right
    for rows in _chunks(found):
        index = (to_scale - from_scale[rows]).floor_().clamp_(-1, grid.scale)
        column = torch.addcmul(x, u[rows], ax).floor_().clamp_(-1, grid.x)
        row = torch.addcmul(y, v[rows], ay).floor_().clamp_(-1, grid.y)
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
    """``values`` of some rows of matches after the other, added up by bin ``[total]``, in float64."""
    total = torch.zeros(grid.total, dtype=torch.float64, device=at.device)
    for rows in _chunks(at):
        index, weight = at[rows].flatten(), values(rows).double().flatten()
        if at.is_cuda:  # bincount has no fixed order there; index_put_ sorts
            total.index_put_((index.long(),), weight, accumulate=True)
        else:
            total += torch.bincount(index, weight, grid.total)
    return total


def forward(
    scores: Tensor,
    votes: Tensor | None,
    rois_a: Tensor,
    rois_b: Tensor,
    size_a: tuple[float, float],
    size_b: tuple[float, float],
    params: Params,
) -> tuple[Tensor, Tensor, Tensor]:
    """The top, each match's bin ``[P, S]`` int32, and the votes by bin (float32 or wider)."""
    grid = Grid.of(params, *size_b)
    left, right = frames(rois_a, rois_b, size_a, size_b, grid, params)
    at = bins(left, right, grid, params.max_aspect_ratio if params.released else math.inf)
    voters, wide = scores if votes is None else votes, _wide(scores)
    threshold = params.threshold if params.released else 0

    def voted(rows: slice) -> Tensor:
        return (voters[rows].double() - threshold).clamp_(min=0) if threshold else voters[rows]

    table = grid.inside(_sums(voted, at, grid))
    table = (table + params.added if params.released else table).to(wide)
    top = torch.empty_like(scores, memory_format=torch.contiguous_format)
    for rows in _chunks(at):
        found = table.index_select(0, at[rows].flatten()).view_as(at[rows])
        top[rows] = found.mul_(scores[rows]) if params.output is Output.SCORES else found
    return top, at, table


def backward(
    top_gradient: Tensor,
    scores: Tensor,
    votes: Tensor | None,
    at: Tensor,
    table: Tensor,
    grid: Grid,
    params: Params,
) -> tuple[Tensor, Tensor | None]:
    """The gradients of the scores and, if they are two, of the votes."""
    voters, wide = scores if votes is None else votes, table.dtype
    product, published = params.output is Output.SCORES, params.grad is Gradient.published

    def weight(rows: slice) -> Tensor:
        g = top_gradient[rows].to(wide)
        return g * scores[rows] if product else g

    def voted(rows: slice) -> Tensor:
        return voters[rows] > params.threshold

    sums = _sums(lambda rows: weight(rows) * voted(rows) if published else weight(rows), at, grid)
    if published:
        sums = _without_the_first(sums, _sums(lambda rows: weight(rows) != 0, at, grid), grid)
    sums = grid.inside(sums).to(wide)
    to_scores = torch.empty_like(scores, memory_format=torch.contiguous_format)
    to_votes = None if votes is None else torch.empty_like(to_scores)
    for rows in _chunks(at):
        index = at[rows].flatten()
        shared = sums.index_select(0, index).view_as(at[rows])
        if params.released:
            shared *= voted(rows)
        direct = table.index_select(0, index).view_as(shared).mul_(top_gradient[rows]) if product else 0
        to_scores[rows] = direct if to_votes is not None else shared.add_(direct)
        if to_votes is not None:
            to_votes[rows] = shared
    return to_scores, to_votes


def _without_the_first(sums: Tensor, used: Tensor, grid: Grid) -> Tensor:
    """0 for the first bin in use, if all matches in use have a bin."""
    if bool(((used > 0) & (grid.inside(used) == 0)).any()):
        return sums
    first = used.nonzero()[:1, 0]
    return sums.index_fill(0, first, 0)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class Function(torch.autograd.Function):
    @staticmethod
    def forward(
        scores: Tensor, votes: Tensor | None, *geometry_and_params: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        return forward(scores, votes, *geometry_and_params)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        scores, votes, _, _, _, size_b, ctx.params = inputs
        ctx.grid = Grid.of(ctx.params, *size_b)
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(scores, votes, *output[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        scores, votes, at, table = ctx.saved_tensors
        found = backward(top_gradient, scores, votes, at, table, ctx.grid, ctx.params)
        return *found, None, None, None, None, None


def hough_voting(
    scores: Tensor,
    rois_a: Tensor,
    rois_b: Tensor,
    size_a: Sequence[float] | Tensor,
    size_b: Sequence[float] | Tensor,
    votes: Tensor | None = None,
    rule: Rule | str = Rule.PAPER,
    output: Output | str = Output.SCORES,
    grad: Gradient | str = Gradient.exact,
    threshold: float = 0.4,
    added: float = 0.01,
    max_aspect_ratio: float = 2.0,
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
    kinds = choice(Rule, rule, "rule"), choice(Output, output, "output"), choice(Gradient, grad, "grad")
    params = valid(Params(*kinds, threshold, added, max_aspect_ratio, **binning))
    return _vote(params, scores, rois_a, rois_b, size_a, size_b, votes)


def _vote(
    params: Params,
    scores: Tensor,
    rois_a: Tensor,
    rois_b: Tensor,
    size_a: Sequence[float] | Tensor,
    size_b: Sequence[float] | Tensor,
    votes: Tensor | None,
) -> Tensor:
    sizes = [tuple(x.shape) if isinstance(x, Tensor) else (len(x),) for x in (size_a, size_b)]
    given = {"scores": scores} if votes is None else {"scores": scores, "votes": votes}
    more = () if votes is None else (tuple(votes.shape),)
    infer(params, tuple(scores.shape), tuple(rois_a.shape), tuple(rois_b.shape), *sizes, *more)
    expect_floating(**given)
    expect_same_device(scores=scores, rois_a=rois_a, rois_b=rois_b)
    rois_a, rois_b = rois_a.detach(), rois_b.detach()
    boxes.expect_finite(rois_a=rois_a)
    boxes.expect_finite(rois_b=rois_b)
    geometry = rois_a, rois_b, _size("size_a", size_a), _size("size_b", size_b)
    top: Tensor = autocast.apply(Function, scores, votes, *geometry, params)[0]
    return top


def _size(name: str, given: Sequence[float] | Tensor) -> tuple[float, float]:
    """(height, width) of an image's shape, or of two values."""
    if isinstance(given, Tensor):
        given = given.shape[2:] if given.dim() == 4 else given.flatten().tolist()
    height, width = given
    if not (1 <= height < FAR and 1 <= width < FAR):
        raise ValueError(f"{name}: expected a height and a width of at least 1, got {height}, {width}")
    return height, width


@register("HoughVoting", bottoms=(5, 6), tops=1)
class HoughVoting(Layer):
    Params = Params
    bottom_names = ("scores", "rois_a", "rois_b", "size_a", "size_b", "votes")
    tables = (1, 2, 3, 4)
    infer = staticmethod(infer)

    def forward(
        self,
        scores: Tensor,
        rois_a: Tensor,
        rois_b: Tensor,
        size_a: Tensor,
        size_b: Tensor,
        votes: Tensor | None = None,
    ) -> Tensor:
        return _vote(self.params, scores, rois_a, rois_b, size_a, size_b, votes)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        photo = (375, 500), (333, 500)
        if size == "paper":
            return [_sample(rng, "1000 x 1000 regions", 1000, 1000, *photo)]
        if size == "large":
            return [_sample(rng, "2000 x 2000 regions", 2000, 2000, *photo)]
        released, published = Rule.RELEASED, Gradient.published
        coarse: dict[str, Any] = {"cells": 200.0, "scale_bins": 6}
        small = (40, 60), (52, 48)
        return [
            _sample(rng, "Eq. 9", 6, 7, *small, **coarse),
            _sample(rng, "Eq. 12", 5, 6, *small, second=True, **coarse),
            _sample(rng, "votes alone", 6, 5, *small, output=Output.VOTES, **coarse),
            _sample(rng, "released", 8, 7, *small, rule=released, **coarse),
            _sample(rng, "released, two", 7, 5, *small, second=True, rule=released, **coarse),
            _sample(rng, "the bins of the paper", 9, 8, (64, 80), (80, 64)),
            _sample(rng, "one bin", 5, 9, *small, cells=1.0, least_cell=1e3, scale_bins=1),
            _sample(rng, "published", 7, 8, *small, rule=released, grad=published, **coarse),
            _sample(rng, "several blocks", 37, 40, *small, second=True, check=False, rule=released),
        ]


def _sample(
    rng: np.random.Generator,
    name: str,
    p: int,
    s: int,
    size_a: tuple[int, int],
    size_b: tuple[int, int],
    second: bool = False,
    check: bool = True,
    **options: Any,
) -> Sample:
    """Integer boxes, B's half of them like A's, A's last without area; scores off the threshold."""
    params = Params(**options)
    rois_a, rois_b = _rois(rng, p, size_a), _rois(rng, s, size_b)
    alike = min(p, s) // 2
    limit = np.array((size_b[1], size_b[0]) * 2) - 1
    rois_b[:alike, 1:] = np.minimum(rois_a[:alike, 1:] + rng.integers(0, 3, (alike, 1)), limit)
    rois_a[-1, 4] = rois_a[-1, 2]
    levels = rng.uniform(0.05, 0.35, (2, p, s)) + 0.4 * (rng.random((2, p, s)) < 0.5)
    images = [torch.zeros(1, 1, *size, dtype=torch.float64) for size in (size_a, size_b)]
    bottoms = [torch.from_numpy(x) for x in (levels[0], rois_a, rois_b)] + images
    if second:
        bottoms.append(torch.from_numpy(levels[1]))
    given = (0, 5) if second else (0,)
    check = check and params.grad is Gradient.exact
    return Sample(params, tuple(bottoms), given, name=name, check_gradient=check)


def _rois(rng: np.random.Generator, count: int, size: tuple[int, int]) -> np.ndarray:
    """Boxes of a quarter of the image and larger, (0, x1, y1, x2, y2)."""
    extent = np.array((size[1], size[0]))
    length = np.floor(rng.uniform(0.25, 0.9, (count, 2)) * extent)
    corner = np.floor(rng.random((count, 2)) * (extent - length))
    return np.concatenate((np.zeros((count, 1)), corner, corner + length - 1), axis=1)
