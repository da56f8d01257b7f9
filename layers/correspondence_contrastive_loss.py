"""CorrespondenceContrastiveLoss: true matches close in feature space, false ones a margin apart.

UCN, Eq. 1, with s = 1 for a true match (as in its equation; its text has it the other way round):

    L = 1/(2N) sum_i  s_i d_i^2 + (1 - s_i) max(0, margin - d_i)^2,    d_i = |F(x_i) - F'(x'_i)|

Bottoms: the maps ``feature1``, ``feature2`` ``[N, C, H, W]`` (of different sizes if need be), any
floating type; the pair table ``[N, P, 5]``, rows (x1, y1, x2, y2, s) in image pixels, s = 1 a true
match, 0 a false one, -1 ignored; and if wanted ``positives`` ``[N, Q, 5]``, another table, as
HardNegativeMining gives it, for the last top. N in Eq. 1 is the number of rows with s >= 0 in the
whole batch. Maps are read as by ExtractFeature.

Tops, scalars in float32 or wider, any number from the first: ``loss``; the number of pairs N; the
parts of the loss due to true and to false matches; the positive-only loss, half the mean d_i^2 of
the true matches of ``positives``, or of the pair table. Only ``loss`` has a gradient.

Backward fills both maps' gradients; F(x_i) gets ``c_i (F(x_i) - F'(x'_i))``, F'(x'_i) its negative:

    c_i = 1/N for s_i = 1,    -1/N (margin - d_i)/d_i for s_i = 0 and d_i < margin,    else 0

At d = 0 the gradient is 0. Without a valid pair loss and gradients are 0.

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
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._engine import cuda, tiles
from ._engine.checks import BlobError, Shape, deferred, expect_axes, raise_if, value_flag
from ._engine.declared import Bottom, Role, Top, Trait
from ._engine.definition import Definition, Spec
from ._engine.layer import Layer
from ._engine.params import Gradient, param
from ._engine.registry import register
from ._engine.samples import Sample
from ._engine.wide import wide_dtype
from ._geometry import geometry
from ._geometry.geometry import Corners, corners, expect_finite, read, scatter


class Form(enum.Enum):
    """What a false match costs: max(0, margin - d)^2 (Eq. 1) or max(0, margin - d^2)."""

    SQUARED_HINGE = 0
    PLAIN_HINGE = 1


@dataclass(frozen=True)
class Params:
    margin: float = param(1.0, low=0, unit="feature distance")
    downsampling_factor: float = param(
        4.0, above=0, unit="image pixels per cell", aliases=("down_sampling_factor",)
    )
    bilinear_interpolation: bool = param(True, doc="false: the nearest cell")
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
    expect_axes("N C H W", feature1=feature1, feature2=feature2)
    expect_axes("N P 5", pairs=pairs)
    if pairs[2] != 5:
        raise BlobError("expected {pairs} to have 5 columns: x1, y1, x2, y2, s", pairs=pairs)
    maps = {"feature1": feature1, "feature2": feature2}
    if feature1[1] != feature2[1]:
        raise BlobError("channels differ: {feature1}, {feature2}", **maps)
    if not feature1[0] == feature2[0] == pairs[0]:
        text = "batch sizes differ: {feature1}, {feature2}, {pairs}"
        raise BlobError(text, **maps, pairs=pairs)
    if positives is not None and (len(positives) != 3 or positives[::2] != pairs[::2]):
        raise BlobError(
            "expected {positives} to be a table as {pairs}", positives=positives, pairs=pairs
        )
    for name, shape in maps.items():
        if pairs[1] and not shape[2] * shape[3]:
            raise BlobError(f"no cell to read in {{{name}}}", **{name: shape})
    return ((),) * 5


def meta(
    params: Params,
    feature1: Tensor,
    feature2: Tensor,
    pairs: Tensor,
    positives: Tensor | None = None,
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
            _expect_labels(table)


def _expect_labels(pairs: Tensor) -> None:
    s = pairs[..., 4]
    known = (s < 0) | (s == 0) | (s == 1)
    if deferred(pairs):
        raise_if((~known).any().reshape(1), "pairs: s not 1, 0 or -1")
        return
    if bool(known.all()):
        return
    image, row = (~known).nonzero()[0].tolist()
    text = f"{{pairs}}: row {row} of image {image} has s = {s[image, row].item():g}, not 1, 0 or -1"
    raise BlobError(text, pairs=pairs.shape)


def forward(
    params: Params,
    feature1: Tensor,
    feature2: Tensor,
    pairs: Tensor,
    positives: Tensor | None = None,
) -> tuple[Tensor, ...]:
    if positives is not None:
        tables = pairs, positives
        return _with_last_of(*(forward(params, feature1, feature2, table) for table in tables))
    at1, at2 = _corners(params, pairs, feature1.shape, feature2.shape)
    difference = read(feature1, at1).sub_(read(feature2, at2))
    square = (difference * difference).sum(1)
    distance = square.sqrt()
    if params.form is Form.SQUARED_HINGE:
        hinge = (params.margin - distance).clamp_(min=0).square_()
    else:
        hinge = (params.margin - square).clamp_(min=0)
    s, zero = pairs[..., 4], square.new_zeros(())
    num_pairs = (s >= 0).sum().to(square.dtype)
    count = (s == 1).sum()
    matched, unmatched = (square.where(s == 1, zero).sum(), hinge.where(s == 0, zero).sum())
    share = 0.5 / num_pairs.clamp(min=1)
    positive, negative = matched * share, unmatched * share
    only = 0.5 * matched / count.clamp(min=1)
    return positive + negative, num_pairs, positive, negative, only, count, difference, distance


def _with_last_of(found: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What was found, but the last top and its count are those of the other table."""
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
    for i, at in enumerate(_corners(params, pairs, *shapes)):
        if wanted[i]:
            own = gradient.neg_() if i else gradient
            found[i] = scatter(own, at, *shapes[i][2:]).to(feature1_dtype)
    return found[0], found[1]


def _corners(params: Params, pairs: Tensor, shape1: Shape, shape2: Shape) -> tuple[Corners, Corners]:
    def of(xy: Tensor, shape: Shape) -> Corners:
        factor, offset = params.downsampling_factor, params.coordinate_offset
        return corners(xy, shape[2], shape[3], factor, offset, params.bilinear_interpolation)

    return of(pairs[..., 0:2], shape1), of(pairs[..., 2:4], shape2)


kernels = cuda.Kernels(__file__)


def forward_cuda(
    params: Params,
    feature1: Tensor,
    feature2: Tensor,
    pairs: Tensor,
    positives: Tensor | None = None,
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
        feature1=maps[0],
        feature2=maps[1],
        difference=difference,
        distance=distance,
        sums=sums,
        flag=flag,
        channels=channels,
        points=points,
        rows=rows,
        cells1=math.prod(size1),
        cells2=math.prod(size2),
        grid=blocks,
        block=cuda.threads(256),
        **_common(params, pairs, size1, size2),
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
    pull = torch.empty_like(distance)
    along, below = (distance.new_empty(2, n, points) for _ in range(2))
    keys = along.new_empty(along.shape, dtype=torch.int32)
    threads = cuda.threads(256)
    kernels.launch(
        "contrastive_pulls",
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
        grid=cuda.blocks(n * points, threads),
        block=threads,
        **_common(params, pairs, feature1_shape[2:], feature2_shape[2:]),
    )
    rows, found = difference.mT.contiguous(), list[Tensor | None]([None, None])
    for i, shape in enumerate((feature1_shape, feature2_shape)):
        if not wanted[i]:
            continue
        height, width = shape[2:]
        gradient = found[i] = distance.new_empty(shape, dtype=feature1_dtype)
        kernels.launch(
            "contrastive_backward",
            difference=rows,
            pull=pull,
            **geometry.by_cell(kernels, keys[i], height * width, feature1_dtype),
            along=along[i],
            below=below[i],
            gradient=gradient,
            channels=channels,
            points=points,
            height=height,
            width=width,
            bilinear=params.bilinear_interpolation,
            sign=1 - 2 * i,
            grid=tiles.blocks(n, channels, height * width),
            block=threads,
        )
    return found[0], found[1]


def _common(
    params: Params, pairs: Tensor, size1: Sequence[int], size2: Sequence[int]
) -> dict[str, Any]:
    return {
        **geometry.table_pointers(pairs.contiguous()),
        "height1": size1[0],
        "width1": size1[1],
        "height2": size2[0],
        "width2": size2[1],
        "factor": params.downsampling_factor,
        "offset": params.coordinate_offset,
        "bilinear": params.bilinear_interpolation,
        "plain": params.form is Form.PLAIN_HINGE,
        "margin": params.margin,
    }


definition = Definition(
    "correspondence_contrastive_loss",
    Params,
    BOTTOMS,
    TOPS,
    kept=("num_positives", "difference", "distance"),
    infer=infer,
    meta=meta,
    expect=expect,
    forward=forward,
    backward=backward,
    forward_cuda=forward_cuda,
    backward_cuda=backward_cuda,
    result=Tops,
)


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
        margin,
        downsampling_factor,
        bilinear_interpolation,
        coordinate_offset,
        form,
        grad,
    )
    tops: Tops = definition(params, feature1, feature2, pairs)
    return tops.loss


@register("CorrespondenceContrastiveLoss", aliases=("CorrespondenceContrastiveLosslayer",))
class CorrespondenceContrastiveLoss(Layer):
    definition = definition
    TRAITS = (Trait.LOSS,)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        if size == "paper":
            return [_sample(rng, "KITTI, 3k pairs", (2, 128, 95, 311), 3000)]
        if size == "large":
            return [_sample(rng, "KITTI, 100k pairs", (2, 128, 95, 311), 100_000)]
        plain, published = Form.PLAIN_HINGE, Gradient.published
        return [
            _sample(rng, "bilinear", (2, 3, 4, 5), 8),
            _sample(rng, "plain hinge, shifted", (2, 3, 4, 5), 8, coordinate_offset=4.0, form=plain),
            _sample(rng, "nearest", (2, 2, 3, 4), 8, bilinear_interpolation=False),
            _sample(rng, "1e-8 on d", (1, 3, 4, 3), 8, downsampling_factor=2.0, grad=published),
            _sample(rng, "one cell", (2, 3, 1, 1), 3),
            _sample(rng, "few pairs", (2, 32, 4, 8), 5, checked=False),
            _sample(rng, "few pairs, nearest", (1, 2, 5, 8), 3, bilinear_interpolation=False),
            _sample(rng, "published", (2, 3, 4, 5), 8, form=plain, grad=published, checked=False),
            _sample(rng, "integers", (2, 2, 4, 5), 6, whole=True),
            _sample(rng, "several tiles", (2, 33, 5, 7), 34, checked=False),
        ]


def _sample(
    rng: np.random.Generator,
    name: str,
    shape: Shape,
    points: int,
    *,
    whole: bool = False,
    checked: bool = True,
    **options: Any,
) -> Sample:
    """Unit features and pairs around the border; the margin lies in a gap between the distances."""
    values = rng.standard_normal((2, *shape))
    maps = torch.from_numpy(values / np.linalg.norm(values, axis=2, keepdims=True))
    factor = options.get("downsampling_factor", 4.0)
    extent = factor * np.array([shape[3], shape[2]] * 2)
    xy = rng.uniform(-0.1, 1.1, (shape[0], points, 4)) * extent
    s = np.resize([1, 0, 0, -1], (shape[0], points, 1))
    pairs = torch.from_numpy(np.concatenate((xy, s), axis=2))
    pairs = pairs.int() if whole else pairs
    *_, distance = forward(Params(**options), maps[0], maps[1], pairs)
    middle = distance[pairs[..., 4] == 0].sort().values
    middle = middle[len(middle) // 4 : 3 * len(middle) // 4 + 2]
    widest = int(middle.diff().argmax())
    margin = float(middle[widest : widest + 2].mean())
    if options.get("form") is Form.PLAIN_HINGE:
        margin = margin**2
    params, bottoms = Params(margin=margin, **options), (maps[0], maps[1], pairs)
    return Sample(params, bottoms, differentiable=(0, 1), name=name, check_gradient=checked)
