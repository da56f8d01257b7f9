"""CorrespondenceContrastiveLoss: true matches close in feature space, false ones a margin apart.

UCN, Eq. 1, with s = 1 for a true match (as in its equation; its text has it the other way round):

    L = 1/(2N) sum_i  s_i d_i^2 + (1 - s_i) max(0, margin - d_i)^2,    d_i = |F(x_i) - F'(x'_i)|

Bottoms: the maps ``feature1``, ``feature2`` ``[N, C, H, W]``, whose sizes may differ, any floating
type; the pair table ``[N, P, 5]``, rows (x1, y1, x2, y2, s) in image pixels, s = 1 a true match, 0 a
false one, -1 ignored; optionally ``positives`` ``[N, Q, 5]``, another such table, as
HardNegativeMining gives it, for the last top. N in Eq. 1 is the number of rows with s >= 0 in the
whole batch. Maps are read as by ExtractFeature.

Tops, scalars in float32 or wider, any number from the first: ``loss``; the number of pairs N; the
parts of the loss due to true and to false matches; the positive-only loss, half the mean d_i^2 of
the true matches of ``positives``, or of the pair table. Only ``loss`` has a gradient.

Backward fills both maps' gradients; F(x_i) gets ``c_i (F(x_i) - F'(x'_i))``, F'(x'_i) its negative:

    c_i = 1/N for s_i = 1,    -1/N (margin - d_i)/d_i for s_i = 0 and d_i < margin,    else 0

At d = 0 the gradient is 0. Without a row of s >= 0 loss and gradients are 0.

``form: PLAIN_HINGE``, an option of the released layer, has max(0, margin - d^2) for false matches:
c_i = -1/N where d_i^2 < margin.

*Differs from the original:* the released backward adds 1e-8 to d, and masks the plain hinge by
d < margin (``grad: published``).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ._engine import cuda, tiles
from ._engine.checks import BlobError, Shape, expect_axes, raise_if, value_flag
from ._engine.declared import Bottom, Role, Top, Trait
from ._engine.definition import Spec, define
from ._engine.layer import Layer
from ._engine.params import Gradient, param
from ._engine.registry import register
from ._engine.samples import Sample
from ._engine.wide import wide_dtype
from ._geometry import geometry
from ._geometry.geometry import Cells, cells_around, expect_finite, read, scatter
from ._geometry.labels import expect_labels

if TYPE_CHECKING:
    import numpy as np


class Form(enum.Enum):
    """What a false match costs: max(0, margin - d)^2 (Eq. 1) or max(0, margin - d^2)."""

    SQUARED_HINGE = 0
    PLAIN_HINGE = 1


@dataclass(frozen=True)
class Params:
    margin: float = param(1.0, low=0, unit="feature distance", doc="least d wanted of a false match")
    downsampling_factor: float = param(
        4.0,
        above=0,
        unit="image pixels per cell",
        doc="from a cell of the map to the next",
        aliases=("down_sampling_factor",),
    )
    bilinear_interpolation: bool = param(True, doc="read between cells; false: the nearest cell")
    coordinate_offset: float = param(0.0, unit="image pixels", doc="where cell 0 lies in the image")
    form: Form = param(Form.SQUARED_HINGE, doc="the cost of a false match")
    grad: Gradient = param(Gradient.exact, doc="published: the released layer's backward")


BOTTOMS = (
    Bottom("feature1", "[N, C, H, W]", partly=True),
    Bottom("feature2", "[N, C, H, W]", partly=True),
    Bottom("pairs", "[N, P, 5]", Role.TABLE),
    Bottom("positives", "[N, Q, 5]", Role.TABLE, optional=True),
)
WHY = "learn by the loss"
TOPS = (
    Top("loss", mean_of="num_pairs"),
    Top("num_pairs", "a count"),
    Top("positive_part", WHY, mean_of="num_pairs"),
    Top("negative_part", WHY, mean_of="num_pairs"),
    Top("positive_only_loss", WHY, mean_of="num_positives"),
)


class Tops(NamedTuple):
    loss: Tensor
    num_pairs: Tensor
    positive_part: Tensor
    negative_part: Tensor
    positive_only_loss: Tensor


def infer(
    params: Params, feature1: Shape, feature2: Shape, pairs: Shape, positives: Shape | None = None
) -> tuple[Shape, ...]:
    """Five scalars; raises :class:`BlobError` for bottoms that do not fit together."""
    maps = {"feature1": feature1, "feature2": feature2}
    expect_axes("N C H W", **maps)
    expect_axes("N P 5", pairs=pairs)
    if pairs[2] != 5:
        raise BlobError("expected {pairs} to have 5 columns: x1, y1, x2, y2, s", pairs=pairs)
    if feature1[1] != feature2[1]:
        raise BlobError("channels differ: {feature1}, {feature2}", **maps)
    if not feature1[0] == feature2[0] == pairs[0]:
        raise BlobError("batch sizes differ: {feature1}, {feature2}, {pairs}", **maps, pairs=pairs)
    if positives is not None and (len(positives) != 3 or positives[::2] != pairs[::2]):
        tables = {"positives": positives, "pairs": pairs}
        raise BlobError("expected {positives} to be a table as {pairs}", **tables)
    for name, shape in maps.items():
        if pairs[1] and not shape[2] * shape[3]:
            raise BlobError(f"no cell to read in {{{name}}}", **{name: shape})
    return ((),) * 5


def meta(
    params: Params, feature1: Tensor, feature2: Tensor, pairs: Tensor, positives: Tensor | None = None
) -> Sequence[Spec]:
    """The tops; the last one's number of true matches; the pairs' differences, their distances."""
    (n, channels, *_), points = feature1.shape, pairs.shape[1]
    wide = wide_dtype(feature1.dtype)
    scalars: list[Spec] = [((), wide)] * len(TOPS)
    return *scalars, ((), torch.int64), ((n, channels, points), wide), ((n, points), wide)


def expect(
    params: Params, feature1: Tensor, feature2: Tensor, pairs: Tensor, positives: Tensor | None = None
) -> None:
    """Finite coordinates and known labels."""
    for table in (pairs, positives):
        if table is not None:
            expect_finite(table[..., :4], pairs=table)
            s = table[..., 4]
            expect_labels(~((s < 0) | (s == 0) | (s == 1)), "1, 0 or -1", pairs=table)


def forward(
    params: Params, feature1: Tensor, feature2: Tensor, pairs: Tensor, positives: Tensor | None = None
) -> tuple[Tensor, ...]:
    if positives is not None:
        tables = pairs, positives
        return _with_last_of(*(forward(params, feature1, feature2, table) for table in tables))
    at1, at2 = _cells(params, pairs, feature1.shape, feature2.shape)
    difference = read(feature1, at1).sub_(read(feature2, at2))
    square = (difference * difference).sum(1)
    distance = square.sqrt()
    if params.form is Form.SQUARED_HINGE:
        hinge = (params.margin - distance).clamp_(min=0).square_()
    else:
        hinge = (params.margin - square).clamp_(min=0)
    s, zero = pairs[..., 4], square.new_zeros(())
    matched, unmatched = square.where(s == 1, zero).sum(), hinge.where(s == 0, zero).sum()
    num_pairs, num_positives = (s >= 0).sum().to(square.dtype), (s == 1).sum()
    share = 0.5 / num_pairs.clamp(min=1)
    positive, negative = matched * share, unmatched * share
    only = 0.5 * matched / num_positives.clamp(min=1)
    tops = positive + negative, num_pairs, positive, negative, only
    return *tops, num_positives, difference, distance


def _with_last_of(found: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What was found, but with the other table's last top and number of true matches."""
    last = len(TOPS) - 1
    return *found[:last], *other[last : last + 2], *found[last + 2 :]


def backward(
    params: Params,
    wanted: Sequence[bool],
    loss_gradient: Tensor,
    pairs: Tensor,
    num_pairs: Tensor,
    difference: Tensor,
    distance: Tensor,
    feature1_shape: Shape,
    feature2_shape: Shape,
    feature1_dtype: torch.dtype,
) -> tuple[Tensor | None, Tensor | None]:
    shapes = feature1_shape, feature2_shape
    published = params.grad is Gradient.published
    if params.form is Form.SQUARED_HINGE:
        safe = distance + 1e-8 if published else distance.where(distance > 0, 1)
        pull = -(params.margin - distance).clamp_(min=0) / safe
    else:
        pull = -(distance if published else distance.square()).lt(params.margin).to(distance.dtype)
    s = pairs[..., 4]
    pull = torch.where(s == 1, 1, pull.where(s == 0, 0))
    coefficient = pull * (loss_gradient / num_pairs.clamp(min=1))
    gradient = difference * coefficient[:, None]
    found: list[Tensor | None] = [None, None]
    for i, at in enumerate(_cells(params, pairs, *shapes)):
        if wanted[i]:
            own = gradient.neg_() if i else gradient
            found[i] = scatter(own, at, *shapes[i][2:]).to(feature1_dtype)
    return found[0], found[1]


def _cells(params: Params, pairs: Tensor, shape1: Shape, shape2: Shape) -> tuple[Cells, Cells]:
    def of(xy: Tensor, shape: Shape) -> Cells:
        factor, offset = params.downsampling_factor, params.coordinate_offset
        return cells_around(xy, shape[2], shape[3], factor, offset, params.bilinear_interpolation)

    return of(pairs[..., 0:2], shape1), of(pairs[..., 2:4], shape2)


kernels = cuda.Kernels(__file__)


def forward_cuda(
    params: Params, feature1: Tensor, feature2: Tensor, pairs: Tensor, positives: Tensor | None = None
) -> tuple[Tensor, ...]:
    if positives is not None:
        tables = pairs, positives
        return _with_last_of(*(forward_cuda(params, feature1, feature2, table) for table in tables))
    n, channels, *size1 = feature1.shape
    size2, points = feature2.shape[2:], pairs.shape[1]
    rows = geometry.rows_pay(2 * points, math.prod(size1) + math.prod(size2))
    maps = [tiles.to_rows(kernels, x) if rows else x.contiguous() for x in (feature1, feature2)]
    wide, flag = wide_dtype(feature1.dtype), value_flag(pairs)
    difference = feature1.new_empty(n, points, channels, dtype=wide)
    distance = difference.new_empty(n, points)
    blocks = tiles.blocks(n, 1, points)
    sums = difference.new_empty(blocks, 4, dtype=torch.float64)
    kernels.launch(
        "contrastive_forward",
        params,
        feature1=maps[0],
        feature2=maps[1],
        difference=difference,
        distance=distance,
        sums=sums,
        flag=flag,
        **cuda.sizes("_ points channels", difference),
        rows=rows,
        cells1=math.prod(size1),
        cells2=math.prod(size2),
        **_common(params, pairs, feature1.shape, feature2.shape),
        grid=blocks,
        block=cuda.threads(256),
    )
    tops = Tops(*(difference.new_empty(()) for _ in Tops._fields))
    num_positives = difference.new_empty((), dtype=torch.int64)
    kernels.launch(
        "contrastive_tops",
        scalar=feature1.dtype,
        sums=sums,
        **tops._asdict(),
        num_positives=num_positives,
        blocks=blocks,
        grid=1,
        block=cuda.threads(256),
    )
    raise_if(flag, "pairs: coordinates that are not finite, or s not 1, 0 or -1")
    return *tops, num_positives, difference.mT, distance


def backward_cuda(
    params: Params,
    wanted: Sequence[bool],
    loss_gradient: Tensor,
    pairs: Tensor,
    num_pairs: Tensor,
    difference: Tensor,
    distance: Tensor,
    feature1_shape: Shape,
    feature2_shape: Shape,
    feature1_dtype: torch.dtype,
) -> tuple[Tensor | None, Tensor | None]:
    n, channels, points = difference.shape
    shapes = feature1_shape, feature2_shape
    pull = torch.empty_like(distance)
    along, below = (distance.new_empty(2, n, points) for _ in range(2))
    keys = along.new_empty(along.shape, dtype=torch.int32)
    kernels.launch(
        "contrastive_pulls",
        params,
        scalar=feature1_dtype,
        distance=distance,
        loss_gradient=loss_gradient,
        num_pairs=num_pairs,
        pull=pull,
        keys=keys,
        along=along,
        below=below,
        total=n * points,
        published=params.grad is Gradient.published,
        **_common(params, pairs, *shapes),
        over=n * points,
    )
    rows, found = difference.mT.contiguous(), list[Tensor | None]([None, None])
    for i, shape in enumerate(shapes):
        if not wanted[i]:
            continue
        gradient = found[i] = distance.new_empty(shape, dtype=feature1_dtype)
        cells = math.prod(shape[2:])
        kernels.launch(
            "contrastive_backward",
            params,
            difference=rows,
            pull=pull,
            **geometry.by_cell(kernels, keys[i], cells, feature1_dtype),
            along=along[i],
            below=below[i],
            gradient=gradient,
            **cuda.sizes("_ channels height width", gradient),
            points=points,
            sign=1 - 2 * i,
            grid=tiles.blocks(n, channels, cells),
            block=cuda.threads(256),
        )
    return found[0], found[1]


def _common(params: Params, pairs: Tensor, shape1: Shape, shape2: Shape) -> dict[str, Any]:
    """What the kernels of forward and backward are both given."""
    return {
        **geometry.table_pointers(pairs.contiguous()),
        **dict(zip(("height1", "width1"), shape1[2:], strict=True)),
        **dict(zip(("height2", "width2"), shape2[2:], strict=True)),
        "plain": params.form is Form.PLAIN_HINGE,
    }


definition = define(__name__, kept=("num_positives", "difference", "distance"))


def correspondence_contrastive_loss(
    feature1: Tensor,
    feature2: Tensor,
    pairs: Tensor,
    margin: float = Params.margin,
    downsampling_factor: float = Params.downsampling_factor,
    bilinear_interpolation: bool = Params.bilinear_interpolation,
    coordinate_offset: float = Params.coordinate_offset,
    form: Form | str = Params.form,
    grad: Gradient | str = Params.grad,
) -> Tensor:
    """The loss, a scalar in float32 or wider, of maps ``[N, C, H, W]`` and pairs ``[N, P, 5]``.

    Rows of ``pairs`` are (x1, y1, x2, y2, s) in image pixels, s = 1 for a true match, 0 for a
    false one, -1 to ignore it; cell u lies at ``u downsampling_factor + coordinate_offset``.
    Raises ``BlobError`` for shapes that do not fit and for coordinates that are not finite or
    another s (on CUDA ``ValueError``, later); ``TypeError`` for dtypes and devices. Source: UCN,
    Eq. 1.
    """
    params = definition.params(
        margin, downsampling_factor, bilinear_interpolation, coordinate_offset, form, grad
    )
    tops: Tops = definition(params, feature1, feature2, pairs)
    return tops.loss


@register("CorrespondenceContrastiveLoss", aliases=("CorrespondenceContrastiveLosslayer",))
class CorrespondenceContrastiveLoss(Layer):
    definition = definition
    TRAITS = (Trait.LOSS,)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        from ._samples import correspondence_contrastive_loss as own

        return own.samples(size, rng)
