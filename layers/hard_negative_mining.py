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
HARD_NEG_TRIPLET               [N, P, 7]    (x, y, x+, y+, x-, y-, valid): x- the hard negative,
                                            valid 1; without one x- is x+ and valid 0
=============================  ===========  =====================================================

A random negative is the target of another true match of the image, each being taken once: the
targets move along one random cycle, a permutation without a fixed point. It is ignored (s = -1)
where it is nearer than ``random_negative_distance`` to the row's own target, or the same point.

Further tops: PCK ``[pck_radii]``, the share of true matches whose neighbour is closer than each
radius (0 without a true match); the number of true matches, and of hard negatives, in the first
top, int64 scalars over the whole batch; and ``positives`` ``[N, P, 5]``, the table with s = -1 in
all rows but the true matches. Nothing has a gradient.

*Differs from the original:* the released code gives the two numbers per image; lets a hard negative
overwrite any random one, so that some are lost where these are few; ignores only random negatives
at the very target (``random_negative_distance: 0``); measures the threshold in cells (4); and
declares three of the modes without implementing them.

Source: UCN, Section 4 (hard negative mining), 16 pixels.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._runtime import parallel
from ._runtime.checks import (
    BlobError,
    Shape,
    expect_axes,
    expect_floating,
    expect_same_device,
    kind_of,
    present,
    raise_if,
    shapes,
    valueless,
)
from ._runtime.geometry import expect_finite, to_points
from ._runtime.layer import Layer
from ._runtime.params import choice, param, valid
from ._runtime.registry import register
from ._runtime.samples import Sample


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
    mode: Mode = param(Mode.HARD_NEG_AND_RAND_NEG_AND_POS, aliases=("negative_type",))
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
        4.0, above=0, unit="image pixels per cell", aliases=("down_sampling_factor",)
    )
    coordinate_offset: float = param(0.0, unit="image pixels", doc="where cell 0 lies in the image")
    index_base: int = param(0, low=0, high=1, doc="index of the first cell; 1 as released")
    pck_radii: tuple[float, ...] = param((10.0,), above=0, unit="image pixels", infinite=True)
    seed: int | None = param(
        None, low=0, wide=True, doc="of the random negatives; torch's generator if not given"
    )


class Tops(NamedTuple):
    pairs: Tensor
    pck: Tensor
    num_positives: Tensor
    num_hard_negatives: Tensor
    positives: Tensor


def infer(
    params: Params, pairs: Shape, index: Shape, reference: Shape, num_coords: Shape | None = None
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
    if num_coords is not None and (num_coords[:1] != pairs[:1] or np.prod(num_coords) != pairs[0]):
        raise BlobError(f"expected {{num_coords}} to be [{pairs[0]}, 1]", num_coords=num_coords)
    rows = 2 * pairs[1] if params.mode in DOUBLED else pairs[1]
    columns = 7 if params.mode is Mode.HARD_NEG_TRIPLET else 5
    return (pairs[0], rows, columns), (len(params.pck_radii),), (), (), pairs


# Torch operations on CUDA too: none waits for the device, and beside KNN's time the tables are small.
def forward(
    params: Params,
    pairs: Tensor,
    cell: Tensor,
    width: int,
    valid: Tensor,
    generator: torch.Generator | None = None,
) -> Tops:
    """``cell`` ``[N, P]``, below 0 for none; ``valid`` ``[N, P]``, which rows are."""
    mode = params.mode
    dtype = torch.promote_types(pairs.dtype, torch.float32)
    label, target = pairs[..., 4].masked_fill(~valid, -1), pairs[..., 2:4].to(dtype)
    true = label == 1
    match = to_points(cell.clamp(min=0), width, params.downsampling_factor, params.coordinate_offset)
    match = match.to(dtype)
    distance = _apart(match, target).masked_fill_(cell < 0, torch.inf)
    hard = true & (cell >= 0) & (distance > params.pixel_threshold)
    kept, used = true, hard
    if mode is Mode.HARD_NEG_AND_POS:
        kept = true & ~hard
        table = _rows(pairs, label.masked_fill(hard, 0), match.where(hard[..., None], target))
    elif mode is Mode.HARD_NEG_TRIPLET:
        mined = match.where(hard[..., None], target).to(pairs.dtype)
        table = torch.cat((pairs[..., :4], mined, hard[..., None].to(pairs.dtype)), dim=2)
    else:
        table = _rows(pairs, label)
    if mode is Mode.NO_PROCESSING:
        used = torch.zeros_like(hard)
    elif mode is Mode.HARD_NEG_RETAIN_POS:
        mined = match.where(hard[..., None], target)
        table = torch.cat((table, _rows(pairs, hard.to(dtype) - 1, mined)), dim=1)
    elif mode is Mode.HARD_NEG_AND_RAND_NEG_AND_POS:
        other = _along_a_cycle(target, true, generator)
        apart = _apart(other, target)
        least = params.random_negative_distance
        least = params.pixel_threshold if least is None else least
        negative = hard | (true & (apart >= least) & (apart > 0))
        other = match.where(hard[..., None], other)
        table = torch.cat((table, _rows(pairs, negative.to(dtype) - 1, other)), dim=1)
    pck = _pck(distance, true, params.pck_radii)
    return Tops(table, pck, kept.sum(), used.sum(), _rows(pairs, 2 * true.to(dtype) - 1))


def _rows(pairs: Tensor, label: Tensor, second: Tensor | None = None) -> Tensor:
    """The table with other labels and second points."""
    table = pairs.clone(memory_format=torch.contiguous_format)
    table[..., 4] = label
    if second is not None:
        table[..., 2:4] = second
    return table


def _apart(a: Tensor, b: Tensor) -> Tensor:
    return torch.hypot(*(a - b).unbind(-1))


def _along_a_cycle(target: Tensor, true: Tensor, generator: torch.Generator | None) -> Tensor:
    """Each true row gets the target of the next in a random order, the last that of the first."""
    device = generator.device if generator else true.device
    pinned = true.is_cuda and device.type == "cpu"  # or the copy would wait for the device
    keys = parallel.own_rows(
        tuple(true.shape),
        lambda shape: torch.rand(shape, generator=generator, device=device, pin_memory=pinned),
    )
    keys = keys.to(true.device, non_blocking=True)
    order = keys.masked_fill(~true, 2).argsort(dim=1)
    following = torch.arange(1, true.shape[1] + 1, device=true.device).expand_as(order)
    following = following.masked_fill(following >= true.sum(1, keepdim=True), 0)
    source = torch.empty_like(order).scatter_(1, order, order.gather(1, following))
    return target.gather(1, source[..., None].expand_as(target))


def _pck(distance: Tensor, true: Tensor, radii: tuple[float, ...]) -> Tensor:
    share = distance.new_zeros(len(radii))
    for i, radius in enumerate(radii):
        share[i : i + 1] = ((distance < radius) & true).sum(dtype=distance.dtype)
    return share / true.sum(dtype=distance.dtype).clamp(min=1)


def hard_negative_mining(
    pairs: Tensor,
    index: Tensor,
    reference: Tensor,
    num_coords: Tensor | None = None,
    mode: Mode | str = Mode.HARD_NEG_AND_RAND_NEG_AND_POS,
    pixel_threshold: float = 16.0,
    random_negative_distance: float | None = None,
    downsampling_factor: float = 4.0,
    coordinate_offset: float = 0.0,
    index_base: int = 0,
    pck_radii: tuple[float, ...] = (10.0,),
    generator: torch.Generator | None = None,
) -> Tops:
    """A pair table with hard negatives in it, from each row's nearest neighbour.

    ``pairs`` ``[N, P, 5]`` in image pixels; ``index`` ``[N, k, P]`` or ``[N, P]`` (first of k) the
    neighbour of (x1, y1) among the cells of ``reference`` ``[N, C, H, W]``, as ``knn`` gives it;
    ``num_coords`` ``[N, 1]`` the number of valid rows (all, if not given). ``mode`` and the tops
    are the module's; distances are in image pixels; random negatives are drawn from ``generator``
    or from torch's own. Raises ``BlobError`` for shapes that do not fit and, on the CPU, coordinates
    that are not finite; ``TypeError`` for a table that is not floating point or an index that is;
    ``ValueError`` for an index past the map. Source: UCN, Section 4.
    """
    params = valid(
        Params(
            choice(Mode, mode, "mode"),
            pixel_threshold,
            random_negative_distance,
            downsampling_factor,
            coordinate_offset,
            index_base,
            pck_radii,
        )
    )
    return _mine(params, pairs, index, reference, num_coords, generator)


@torch.no_grad()
def _mine(
    params: Params,
    pairs: Tensor,
    index: Tensor,
    reference: Tensor,
    num_coords: Tensor | None,
    generator: torch.Generator | None,
) -> Tops:
    tensors = {"pairs": pairs, "index": index, "reference": reference}
    infer(params, **shapes("hard_negative_mining", **tensors, **present(num_coords=num_coords)))
    if not isinstance(generator, torch.Generator | None):
        raise TypeError(f"generator: expected a torch.Generator, got {kind_of(generator)}")
    expect_floating(pairs=pairs)
    expect_same_device(**tensors)
    if index.is_floating_point():
        raise TypeError(f"expected index to be of integers, got {index.dtype}")
    expect_finite(pairs[..., :4], pairs=pairs)
    height, width = reference.shape[2:]
    cell = (index if index.dim() == 2 else index[:, 0]).long() - params.index_base
    past = (cell >= height * width).any().reshape(1)
    raise_if(past, f"index: a cell past the map of {height} x {width} cells")
    valid = torch.ones_like(cell, dtype=torch.bool)
    if num_coords is not None:
        rows = torch.arange(cell.shape[1], device=cell.device)
        valid = rows < num_coords.reshape(-1, 1).to(cell.device, non_blocking=True)
    if valueless(pairs):  # nothing is drawn
        generator = None
    return forward(params, pairs, cell, max(width, 1), valid, generator)


@register("HardNegativeMining", aliases=("HardNegativeProcessingLayer",), bottoms=(3, 4), tops=(1, 5))
class HardNegativeMining(Layer):
    Params = Params
    bottom_names = ("pairs", "index", "reference", "num_coords")
    tables = (0,)
    partly_read = (2,)
    infer = staticmethod(infer)

    def __init__(
        self,
        params: Any = None,
        bottom_shapes: tuple[Shape, ...] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(params, bottom_shapes, generator)
        seed = self.params.seed
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)

    def forward(
        self, pairs: Tensor, index: Tensor, reference: Tensor, num_coords: Tensor | None = None
    ) -> Tops:
        return _mine(self.params, pairs, index, reference, num_coords, self.generator)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        def sample(n: int, p: int, shape: tuple[int, int], mode: Mode, **options: float) -> Sample:
            params = Params(mode, seed=0, **options)  # type: ignore[arg-type]
            extent = params.downsampling_factor * np.array((shape[1], shape[0]) * 2)
            s = rng.choice([1.0, 0.0, -1.0], (n, p, 1), p=(0.8, 0.1, 0.1))
            pairs = np.concatenate((rng.uniform(0, 1, (n, p, 4)) * extent, s), axis=2)
            cell = np.round(pairs[..., 2:4] / params.downsampling_factor).astype(int)
            cell = np.minimum(cell, np.array(shape[::-1]) - 1) @ (1, shape[1])
            wrong = rng.integers(0, shape[0] * shape[1], cell.shape)
            index = np.where(rng.random(cell.shape) < 0.5, cell, wrong)[:, None] + params.index_base
            counts = np.maximum(p - 2 * np.arange(n), 0)[:, None]
            bottoms = (pairs, index, np.zeros((n, 1, *shape)), counts)
            return Sample(params, tuple(map(torch.from_numpy, bottoms)), (), (), name=mode.name)

        if size == "paper":
            return [sample(2, 3000, (95, 311), Mode.HARD_NEG_AND_RAND_NEG_AND_POS)]
        if size == "large":
            return [sample(2, 100_000, (95, 311), Mode.HARD_NEG_AND_RAND_NEG_AND_POS)]
        plain = [sample(3, 7, (6, 8), mode) for mode in Mode]
        return [
            *plain,
            sample(2, 9, (20, 30), Mode.HARD_NEG_RETAIN_POS, index_base=1, coordinate_offset=4),
            sample(1, 5, (40, 40), Mode.HARD_NEG_AND_POS, pixel_threshold=0.5, downsampling_factor=0.5),
        ]
