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
from torch.autograd.function import once_differentiable

from ._runtime import autocast, cuda, geometry, parallel, tiles
from ._runtime.checks import (
    BlobError,
    Shape,
    deferred,
    expect_axes,
    expect_floating,
    expect_same_device,
    present,
    raise_if,
    shapes,
    value_flag,
)
from ._runtime.dispatch import use_cuda
from ._runtime.geometry import Corners, corners, expect_finite, read, scatter
from ._runtime.layer import Layer
from ._runtime.params import choice, param, valid
from ._runtime.registry import register
from ._runtime.samples import Sample


class Form(enum.Enum):
    """What a false match costs: max(0, margin - d)^2 (Eq. 1) or max(0, margin - d^2)."""

    SQUARED_HINGE = 0
    PLAIN_HINGE = 1


class Gradient(enum.Enum):
    """The derivative of the forward, or the released layer's backward."""

    exact = 0
    published = 1


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


class Tops(NamedTuple):
    loss: Tensor
    num_pairs: Tensor
    positive_part: Tensor
    negative_part: Tensor
    positive_only_loss: Tensor


COUNTED = ("loss", "positive_part", "negative_part")


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


def forward(
    feature1: Tensor, feature2: Tensor, pairs: Tensor, params: Params
) -> tuple[Tops, Tensor, Tensor]:
    """The tops, the differences ``[N, C, P]`` and the distances ``[N, P]``."""
    at1, at2 = _corners(pairs, feature1.shape, feature2.shape, params)
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
    return Tops(positive + negative, num_pairs, positive, negative, only), difference, distance


def backward(
    loss_gradient: Tensor,
    pairs: Tensor,
    num_pairs: Tensor,
    difference: Tensor,
    distance: Tensor,
    shape1: Shape,
    shape2: Shape,
    params: Params,
    dtype: torch.dtype,
    wanted: tuple[bool, bool] = (True, True),
) -> tuple[Tensor | None, Tensor | None]:
    """The maps' gradients in their ``dtype``, where ``wanted``."""
    at1, at2 = _corners(pairs, shape1, shape2, params)
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
    first = scatter(gradient, at1, shape1[2], shape1[3]).to(dtype) if wanted[0] else None
    second = scatter(gradient.neg_(), at2, shape2[2], shape2[3]).to(dtype) if wanted[1] else None
    return first, second


def _corners(pairs: Tensor, shape1: Shape, shape2: Shape, params: Params) -> tuple[Corners, Corners]:
    def of(xy: Tensor, shape: Shape) -> Corners:
        factor, offset = params.downsampling_factor, params.coordinate_offset
        return corners(xy, shape[2], shape[3], factor, offset, params.bilinear_interpolation)

    return of(pairs[..., 0:2], shape1), of(pairs[..., 2:4], shape2)


kernels = cuda.Kernels(__file__)


def forward_cuda(
    feature1: Tensor, feature2: Tensor, pairs: Tensor, params: Params
) -> tuple[Tops, Tensor, Tensor]:
    n, channels, *size1 = feature1.shape
    size2, points = feature2.shape[2:], pairs.shape[1]
    rows = geometry.rows_pay(2 * points, math.prod(size1) + math.prod(size2))
    maps = [tiles.to_rows(kernels, x) if rows else x.contiguous() for x in (feature1, feature2)]
    wide, flag = cuda.accumulator_dtype(feature1.dtype), value_flag(pairs)
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
        **_common(pairs, size1, size2, params),
    )
    tops = Tops(*(difference.new_empty(()) for _ in Tops._fields))
    kernels.launch(
        "contrastive_tops",
        scalar=feature1.dtype,
        sums=sums,
        **tops._asdict(),
        blocks=blocks,
        grid=1,
        block=cuda.threads(256),
    )
    raise_if(flag, "pairs: coordinates that are not finite, or s not 1, 0 or -1")
    return tops, difference.mT, distance


def backward_cuda(
    loss_gradient: Tensor,
    pairs: Tensor,
    num_pairs: Tensor,
    difference: Tensor,
    distance: Tensor,
    shape1: Shape,
    shape2: Shape,
    params: Params,
    dtype: torch.dtype,
    wanted: tuple[bool, bool] = (True, True),
) -> tuple[Tensor | None, Tensor | None]:
    n, channels, points = difference.shape
    pull = torch.empty_like(distance)
    along, below = (distance.new_empty(2, n, points) for _ in range(2))
    keys = along.new_empty(along.shape, dtype=torch.int32)
    threads = cuda.threads(256)
    kernels.launch(
        "contrastive_pulls",
        scalar=dtype,
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
        **_common(pairs, shape1[2:], shape2[2:], params),
    )
    found: list[Tensor | None] = [None, None]
    for i, shape in enumerate((shape1, shape2)):
        if not wanted[i]:
            continue
        height, width = shape[2:]
        gradient = found[i] = distance.new_empty(shape, dtype=dtype)
        kernels.launch(
            "contrastive_backward",
            difference=difference.mT.contiguous(),
            pull=pull,
            **geometry.by_cell(kernels, keys[i], height * width, dtype),
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
    pairs: Tensor, size1: Sequence[int], size2: Sequence[int], params: Params
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


class Function(torch.autograd.Function):
    @staticmethod
    def forward(
        feature1: Tensor, feature2: Tensor, pairs: Tensor, params: Params
    ) -> tuple[Tensor, ...]:
        path = forward_cuda if use_cuda(feature1, feature2, pairs) else forward
        tops, difference, distance = path(feature1, feature2, pairs, params)
        return (*tops, difference, distance)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        feature1, feature2, pairs, ctx.params = inputs
        ctx.shapes = tuple(feature1.shape), tuple(feature2.shape)
        ctx.dtype = feature1.dtype
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(pairs, output[1], *output[5:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
        if loss_gradient is None:
            return (None,) * 4
        path = backward_cuda if use_cuda(loss_gradient, *ctx.saved_tensors) else backward
        options = (*ctx.shapes, ctx.params, ctx.dtype, ctx.needs_input_grad[:2])
        return *path(loss_gradient, *ctx.saved_tensors, *options), None, None


def correspondence_contrastive_loss(
    feature1: Tensor,
    feature2: Tensor,
    pairs: Tensor,
    margin: float = 1.0,
    downsampling_factor: float = 4.0,
    bilinear_interpolation: bool = True,
    coordinate_offset: float = 0.0,
    form: Form | str = Form.SQUARED_HINGE,
    grad: Gradient | str = Gradient.exact,
) -> Tensor:
    """The loss, a scalar in float32 or wider, of maps ``[N, C, H, W]`` and pairs ``[N, P, 5]``.

    Rows of ``pairs`` are (x1, y1, x2, y2, s) in image pixels, s = 1 for a true match, 0 for a
    false one, -1 to ignore it; cell u lies at ``u downsampling_factor + coordinate_offset``.
    Raises ``BlobError`` for shapes that do not fit and for coordinates that are not finite or
    another s (on CUDA ``ValueError``, later); ``TypeError`` for dtypes and devices. Source: UCN,
    Eq. 1.
    """
    params = valid(
        Params(
            margin,
            downsampling_factor,
            bilinear_interpolation,
            coordinate_offset,
            choice(Form, form, "form"),
            choice(Gradient, grad, "grad"),
        )
    )
    return _loss(params, feature1, feature2, pairs).loss


def _loss(
    params: Params, feature1: Tensor, feature2: Tensor, pairs: Tensor, positives: Tensor | None = None
) -> Tops:
    maps = {"feature1": feature1, "feature2": feature2}
    tables = {"pairs": pairs, **present(positives=positives)}
    infer(params, **shapes("correspondence_contrastive_loss", **maps, **tables))
    expect_floating(**maps)
    expect_same_device(feature1=feature1, **tables)
    tops = _tops(params, feature1, feature2, pairs)
    if positives is None:
        return tops
    own = _tops(params, feature1.detach(), feature2.detach(), positives)
    return tops._replace(positive_only_loss=own.positive_only_loss)


def _tops(params: Params, feature1: Tensor, feature2: Tensor, pairs: Tensor) -> Tops:
    pairs = pairs.detach()
    if not (deferred(pairs) and use_cuda(feature1, pairs)):  # the kernels look at what they read
        expect_finite(pairs[..., :4], pairs=pairs)
        _expect_labels(pairs)
    return _balanced(Tops(*autocast.apply(Function, feature1, feature2, pairs, params)[:5]), pairs)


def _balanced(tops: Tops, pairs: Tensor) -> Tops:
    """The tops of a batch that several processes share, each with rows of its own."""
    if parallel.place()[1] == 1:
        return tops
    parts = {name: parallel.balanced(getattr(tops, name), tops.num_pairs) for name in COUNTED}
    only = parallel.balanced(tops.positive_only_loss, (pairs[..., 4] == 1).sum())
    return tops._replace(**parts, positive_only_loss=only)


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


@register(
    "CorrespondenceContrastiveLoss",
    aliases=("CorrespondenceContrastiveLosslayer",),
    bottoms=(3, 4),
    tops=(1, 5),
)
class CorrespondenceContrastiveLoss(Layer):
    Params = Params
    bottom_names = ("feature1", "feature2", "pairs", "positives")
    tables = (2,)
    partly_read = (0, 1)
    is_loss = True
    infer = staticmethod(infer)

    def forward(
        self, feature1: Tensor, feature2: Tensor, pairs: Tensor, positives: Tensor | None = None
    ) -> Tops:
        return _loss(self.params, feature1, feature2, pairs, positives)

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
    _, _, distance = forward(maps[0], maps[1], pairs, Params(**options))
    middle = distance[pairs[..., 4] == 0].sort().values
    middle = middle[len(middle) // 4 : 3 * len(middle) // 4 + 2]
    widest = int(middle.diff().argmax())
    margin = float(middle[widest : widest + 2].mean())
    if options.get("form") is Form.PLAIN_HINGE:
        margin = margin**2
    params, bottoms = Params(margin=margin, **options), (maps[0], maps[1], pairs)
    return Sample(params, bottoms, differentiable=(0, 1), name=name, check_gradient=checked)
