"""HardNegativeMining: nearest neighbours that are wrong become the negatives of the next step.

Bottoms: the pair table ``pairs`` ``[N, P, 5]``, rows (x1, y1, x2, y2, s) in image pixels with s = 1
a true match, 0 a false one, -1 ignored; ``index`` ``[N, k, P]`` or ``[N, P]``, integers, of KNN:
the cell ``v W + u`` of the second image nearest to (x1, y1) of each row, of which the first of k
counts, -1 for none; the ``reference`` map ``[N, C, H, W]`` that it refers to; and optionally the
number of rows of each image that are valid, ``[N, 1]``: later rows have s = -1 in every top.

A true match whose neighbour is farther than ``pixel_threshold`` image pixels from (x2, y2) has a
hard negative (x1, y1, neighbour's image point, 0). By ``mode`` the first top holds

=============================  ===========  =====================================================
mode                           shape        rows
=============================  ===========  =====================================================
NO_PROCESSING                  [N, P, 5]    as they are
HARD_NEG_AND_POS               [N, P, 5]    a hard negative in place of its true match
HARD_NEG_RETAIN_POS            [N, 2 P, 5]  as they are; then hard negatives in their rows, else -1
HARD_NEG_AND_RAND_NEG_AND_POS  [N, 2 P, 5]  as they are; then a negative of each true match: the hard
                                            one or, where there is none, a random one
HARD_NEG_TRIPLET               [N, P, 7]    (x, y, x+, y+, x-, y-, 1): x- the hard negative;
                                            without one x- is x+ and the last number 0
=============================  ===========  =====================================================

A random negative is the target of another true match of the image, each being taken once: the
targets move along one random cycle, a permutation without a fixed point. It is ignored (s = -1)
where it is nearer than ``random_negative_distance`` to the row's own target, or the same point.

Further tops: PCK ``[pck_radii]``, the share of true matches whose neighbour is closer than each
radius (0 without a true match); the number of true matches, and of hard negatives, in the first
top, int64 scalars over the whole batch; and ``positives`` ``[N, P, 5]``, the table with s = -1 in
all rows but the true matches. Nothing has a gradient.

The random order comes of a seed, an int64: a generator of torch's on the CPU, seeded with it, draws a
number from 0 to 1 for each row of the batch. The layer's first seed is ``seed``, each later one the
next number of a generator x -> a x + c of 64 bits, whose state is a tensor of the layer; without
``seed`` each call draws its own from torch's default generator. Modes that need none draw none, nor
do bottoms without values.

*Differs from the original:* the released code gives the two numbers per image; lets a hard negative
overwrite any random one, so that some are lost where these are few; ignores only random negatives
at the very target (``random_negative_distance: 0``); measures the threshold in cells (4); and
declares three of the modes without implementing them.

Source: UCN, Section 4 (hard negative mining), 16 pixels.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from . import _seeds
from ._engine.checks import BlobError, Shape, expect_axes, kind_of, raise_if, valueless
from ._engine.declared import Bottom, Role, Top
from ._engine.definition import Spec, define
from ._engine.layer import Layer
from ._engine.params import param
from ._engine.registry import register
from ._engine.samples import Sample
from ._engine.wide import wide_dtype
from ._geometry.geometry import expect_finite, to_points

if TYPE_CHECKING:
    import numpy as np


class Mode(enum.Enum):
    """What the first top holds."""

    NO_PROCESSING = 0
    HARD_NEG_AND_POS = 1
    HARD_NEG_AND_RAND_NEG_AND_POS = 2
    HARD_NEG_TRIPLET = 3
    HARD_NEG_RETAIN_POS = 4


DOUBLED = (Mode.HARD_NEG_AND_RAND_NEG_AND_POS, Mode.HARD_NEG_RETAIN_POS)


@dataclass(frozen=True)
class Params:
    mode: Mode = param(
        Mode.HARD_NEG_AND_RAND_NEG_AND_POS, aliases=("negative_type",), doc="what the first top holds"
    )
    pixel_threshold: float = param(
        16.0, low=0, unit="image pixels", infinite=True, doc="farther is a hard negative"
    )
    random_negative_distance: float | None = param(
        None,
        low=0,
        unit="image pixels",
        infinite=True,
        doc="nearer is no negative; pixel_threshold if not given",
    )
    downsampling_factor: float = param(
        4.0,
        above=0,
        unit="image pixels per cell",
        doc="from a cell of the map to the next",
        aliases=("down_sampling_factor",),
    )
    coordinate_offset: float = param(0.0, unit="image pixels", doc="where cell 0 lies in the image")
    index_base: int = param(0, low=0, high=1, doc="index of the first cell; 1 as released")
    pck_radii: tuple[float, ...] = param(
        (10.0,), above=0, unit="image pixels", infinite=True, doc="a neighbour that is closer counts"
    )
    seed: int | None = param(
        None, low=0, wide=True, doc="of the random negatives; torch's generator if not given"
    )


BOTTOMS = (
    Bottom("pairs", "[N, P, 5]", Role.TABLE, numbers="floating"),
    Bottom("index", "[N, k, P]", Role.LABEL, numbers="integer"),
    Bottom(
        "reference",
        "[N, C, H, W]",
        why_no_gradient="its shape alone counts",
        partly=True,
        numbers="any",
    ),
    Bottom("num_coords", "[N, 1]", Role.COUNT, optional=True),
    Bottom("state", "[1]", Role.SEED, optional=True),
)
TOPS = (
    Top("pairs", "they are coordinates, not learned"),
    Top("pck", "it measures"),
    Top("num_positives", "it is a count"),
    Top("num_hard_negatives", "it is a count"),
    Top("positives", "they are coordinates, not learned"),
)


class Tops(NamedTuple):
    pairs: Tensor
    pck: Tensor
    num_positives: Tensor
    num_hard_negatives: Tensor
    positives: Tensor


def infer(
    params: Params,
    pairs: Shape,
    index: Shape,
    reference: Shape,
    num_coords: Shape | None = None,
    state: Shape | None = None,
) -> tuple[Shape, ...]:
    """The tops' shapes; raises :class:`BlobError` for bottoms that do not fit together."""
    expect_axes("N P 5", pairs=pairs)
    if pairs[2] != 5:
        raise BlobError("expected {pairs} to have 5 columns", pairs=pairs)
    if len(index) not in (2, 3) or (len(index) == 3 and not index[1]):
        raise BlobError("expected {index} to be [N, k, P] or [N, P]", index=index)
    expect_axes("N C H W", reference=reference)
    if (index[0], index[-1]) != pairs[:2]:
        raise BlobError("bottoms disagree on N or P: {pairs}, {index}", pairs=pairs, index=index)
    if reference[0] != pairs[0]:
        raise BlobError("batch sizes differ: {pairs}, {reference}", pairs=pairs, reference=reference)
    if num_coords is not None and (num_coords[:1] != pairs[:1] or math.prod(num_coords) != pairs[0]):
        raise BlobError(f"expected {{num_coords}} to be [{pairs[0]}, 1]", num_coords=num_coords)
    rows = 2 * pairs[1] if params.mode in DOUBLED else pairs[1]
    columns = 7 if params.mode is Mode.HARD_NEG_TRIPLET else 5
    return (pairs[0], rows, columns), (len(params.pck_radii),), (), (), pairs


def meta(
    params: Params, pairs: Tensor, index: Tensor, reference: Tensor, *_: Tensor | None
) -> Sequence[Spec]:
    """The tops."""
    shapes = infer(params, pairs.shape, index.shape, reference.shape)
    dtypes = (pairs.dtype, wide_dtype(pairs.dtype), torch.int64, torch.int64, pairs.dtype)
    return tuple(zip(shapes, dtypes, strict=True))


def expect(params: Params, pairs: Tensor, index: Tensor, reference: Tensor, *_: Tensor | None) -> None:
    """Finite coordinates; cells of the map."""
    expect_finite(pairs[..., :4], pairs=pairs)
    height, width = reference.shape[2:]
    past = (_first(index) >= height * width + params.index_base).any().reshape(1)
    raise_if(past, f"index: a cell past the map of {height} x {width} cells")


def _first(index: Tensor) -> Tensor:
    """Of k neighbours the first: ``[N, P]``."""
    return (index if index.dim() == 2 else index[:, 0]).long()


# Torch operations on CUDA too: none waits for the device, and beside KNN's time the tables are small.
def forward(
    params: Params,
    pairs: Tensor,
    index: Tensor,
    reference: Tensor,
    num_coords: Tensor | None = None,
    state: Tensor | None = None,
) -> Tops:
    """``state`` is the seed of what is drawn: the parameters' own, or any, if it is None."""
    mode, dtype = params.mode, wide_dtype(pairs.dtype)
    label, target = _label(pairs, num_coords), pairs[..., 2:4].to(dtype)
    cell, width = _first(index) - params.index_base, max(reference.shape[3], 1)
    match = to_points(cell.clamp(min=0), width, params.downsampling_factor, params.coordinate_offset)
    match = match.to(dtype)
    distance = _apart(match, target).masked_fill_(cell < 0, torch.inf)
    true = label == 1
    hard = true & (cell >= 0) & (distance > params.pixel_threshold)
    chosen = hard[..., None]
    kept, used = true, hard
    if mode is Mode.NO_PROCESSING:
        table, used = _rows(pairs, label), torch.zeros_like(hard)
    elif mode is Mode.HARD_NEG_AND_POS:
        table = _rows(pairs, label.masked_fill(hard, 0), match.where(chosen, target))
        kept = true & ~hard
    elif mode is Mode.HARD_NEG_TRIPLET:
        mined = match.where(chosen, target).to(pairs.dtype)
        table = torch.cat((pairs[..., :4], mined, chosen.to(pairs.dtype)), dim=2)
    elif mode is Mode.HARD_NEG_RETAIN_POS:
        mined = _rows(pairs, hard.to(dtype) - 1, match.where(chosen, target))
        table = torch.cat((_rows(pairs, label), mined), dim=1)
    else:
        other = _seeds.along_a_cycle(target, true, _seeds.generator(params.seed, state))
        apart, least = _apart(other, target), params.random_negative_distance
        least = params.pixel_threshold if least is None else least
        negative = hard | (true & (apart >= least) & (apart > 0))
        mined = _rows(pairs, negative.to(dtype) - 1, match.where(chosen, other))
        table = torch.cat((_rows(pairs, label), mined), dim=1)
    pck = _pck(distance, true, params.pck_radii)
    return Tops(table, pck, kept.sum(), used.sum(), _rows(pairs, 2 * true.to(dtype) - 1))


def _label(pairs: Tensor, num_coords: Tensor | None) -> Tensor:
    """The labels ``[N, P]``, -1 in rows that are not valid."""
    valid = torch.ones(pairs.shape[:2], dtype=torch.bool, device=pairs.device)
    if num_coords is not None:
        rows = torch.arange(pairs.shape[1], device=pairs.device)
        valid = rows < num_coords.reshape(-1, 1).to(pairs.device, non_blocking=pairs.is_cuda)
    return pairs[..., 4].masked_fill(~valid, -1)


def _rows(pairs: Tensor, label: Tensor, second: Tensor | None = None) -> Tensor:
    """The table with other labels and second points."""
    table = pairs.clone(memory_format=torch.contiguous_format)
    table[..., 4] = label
    if second is not None:
        table[..., 2:4] = second
    return table


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """Distances of points ``[N, P, 2]``."""
    return torch.hypot(*(a - b).unbind(-1))


def _pck(distance: Tensor, true: Tensor, radii: tuple[float, ...]) -> Tensor:
    """The share of the true rows that are nearer than each radius."""
    share = distance.new_zeros(len(radii))
    for i, radius in enumerate(radii):
        share[i : i + 1] = ((distance < radius) & true).sum(dtype=distance.dtype)
    return share / true.sum(dtype=distance.dtype).clamp(min=1)


definition = define(__name__)


def hard_negative_mining(
    pairs: Tensor,
    index: Tensor,
    reference: Tensor,
    num_coords: Tensor | None = None,
    mode: Mode | str = Params.mode,
    pixel_threshold: float = Params.pixel_threshold,
    random_negative_distance: float | None = Params.random_negative_distance,
    downsampling_factor: float = Params.downsampling_factor,
    coordinate_offset: float = Params.coordinate_offset,
    index_base: int = Params.index_base,
    pck_radii: tuple[float, ...] = Params.pck_radii,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = Params.seed,
) -> Tops:
    """A pair table with hard negatives in it, from each row's nearest neighbour.

    ``pairs`` ``[N, P, 5]`` in image pixels; ``index`` ``[N, k, P]`` or ``[N, P]`` (first of k) the
    neighbour of (x1, y1) among the cells of ``reference`` ``[N, C, H, W]``, as ``knn`` gives it;
    ``num_coords`` ``[N, 1]`` the number of valid rows (all, if not given). ``mode`` and the tops
    are the module's; distances are in image pixels. Random negatives come of ``seed``, an integer
    from 0 or a tensor int64 ``[1]`` on the CPU, or of one drawn from ``generator``, if there is
    neither from torch's own. Raises ``BlobError`` for shapes that do not fit and, on the CPU,
    coordinates that are not finite; ``TypeError`` for a table that is not floating point or an index
    that is; ``ValueError`` for an index past the map and for both a generator and a seed. Source: UCN,
    Section 4.
    """
    params = definition.params(
        mode,
        pixel_threshold,
        random_negative_distance,
        downsampling_factor,
        coordinate_offset,
        index_base,
        pck_radii,
    )
    bottoms = (pairs, index, reference, num_coords)
    if not isinstance(generator, torch.Generator | None):
        raise TypeError(f"generator: expected a torch.Generator, got {kind_of(generator)}")
    if generator is not None and seed is not None:
        raise ValueError("give generator or seed, not both")
    given = None if seed is None else _seeds.as_tensor(seed)
    return _mine(params, bottoms, lambda: _seeds.drawn(generator) if given is None else given)


def _mine(params: Params, bottoms: Sequence[Tensor | None], seed: Callable[[], Tensor]) -> Tops:
    """``seed`` is not asked for one before the bottoms fit, so that a refused call draws nothing."""
    if not torch.compiler.is_dynamo_compiling():
        definition.check(params, bottoms)
    tops: Tops = definition(params, *bottoms, seed() if _draws(params, bottoms[0]) else None)
    return tops


def _draws(params: Params, pairs: Any) -> bool:
    """Without values nothing is drawn: after a dry run a layer goes on as if there had been none."""
    random = params.mode is Mode.HARD_NEG_AND_RAND_NEG_AND_POS
    return random and (torch.compiler.is_compiling() or not valueless(pairs))


@register("HardNegativeMining", aliases=("HardNegativeProcessingLayer",))
class HardNegativeMining(Layer):
    definition = definition

    def __init__(
        self,
        params: Any = None,
        bottom_shapes: tuple[Shape, ...] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(params, bottom_shapes, generator)
        seed = self.params.seed
        with torch.inference_mode(False):  # whose tensors nobody may write to outside of it
            self.state = None if seed is None else torch.tensor([seed], device="cpu")

    def forward(
        self, pairs: Tensor, index: Tensor, reference: Tensor, num_coords: Tensor | None = None
    ) -> Tops:
        bottoms, state = (pairs, index, reference, num_coords), self.state
        if state is None:
            return _mine(self.params, bottoms, _seeds.drawn)
        tops = _mine(self.params, bottoms, lambda: state)
        if _draws(self.params, pairs) and not valueless(pairs):  # which an export may trace it with
            _seeds.advance(state)
        return tops

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        from ._samples import hard_negative_mining as own

        return own.samples(size, rng)
