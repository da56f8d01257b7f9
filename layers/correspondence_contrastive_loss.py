"""CorrespondenceContrastiveLoss: true matches close in feature space, false ones a margin apart.

UCN, Eq. 1, with s = 1 for a true match (as in its equation; its text has it the other way round):

    L = 1/(2N) sum_i  s_i d_i^2 + (1 - s_i) max(0, margin - d_i)^2,    d_i = |F(x_i) - F'(x'_i)|

Bottoms: the maps ``feature1``, ``feature2`` ``[N, C, H, W]`` (of different sizes if need be), any
floating type; the pair table ``[N, P, 5]``, rows (x1, y1, x2, y2, s) in image pixels, s = 1 a true
match, 0 a false one, -1 ignored; and if wanted ``positives``, of any shape, whose sum is the
number of true matches (else they are counted). N in Eq. 1 is the number of rows with s >= 0 in the
whole batch. Maps are read as by ExtractFeature.

Tops, scalars in float32 or wider, any number from the first: ``loss``; the number of pairs N; the
parts of the loss due to true and to false matches; the positive-only loss, the first part with the
number of positives in place of N. Only ``loss`` has a gradient.

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
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._runtime import autocast
from ._runtime.checks import BlobError, Shape, expect_axes, expect_floating, expect_same_device
from ._runtime.geometry import Corners, corners, expect_finite, read, scatter
from ._runtime.layer import Layer
from ._runtime.params import choice, param
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
    margin: float = param(1.0, above=0, unit="feature distance")
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


def infer(
    params: Params, feature1: Shape, feature2: Shape, pairs: Shape, positives: Shape = ()
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
    for name, shape in maps.items():
        if pairs[1] and not shape[2] * shape[3]:
            raise BlobError(f"no cell to read in {{{name}}}", **{name: shape})
    return ((),) * 5


def forward(
    feature1: Tensor, feature2: Tensor, pairs: Tensor, positives: Tensor | None, params: Params
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
    count = (s == 1).sum() if positives is None else positives.sum(dtype=square.dtype)
    matched, unmatched = (square.where(s == 1, zero).sum(), hinge.where(s == 0, zero).sum())
    share = 0.5 / num_pairs.clamp(min=1)
    positive, negative = matched * share, unmatched * share
    only = 0.5 * matched / count.clamp(min=1)
    return Tops(positive + negative, num_pairs, positive, negative, only), difference, distance


def backward(
    loss_gradient: Tensor,
    pairs: Tensor,
    difference: Tensor,
    distance: Tensor,
    shape1: Shape,
    shape2: Shape,
    params: Params,
    wanted: tuple[bool, bool] = (True, True),
) -> tuple[Tensor | None, Tensor | None]:
    """The maps' gradients, where ``wanted``, in float32 or wider."""
    at1, at2 = _corners(pairs, shape1, shape2, params)
    published = params.grad is Gradient.published
    if params.form is Form.SQUARED_HINGE:
        safe = distance + 1e-8 if published else distance.where(distance > 0, 1)
        pull = -(params.margin - distance).clamp_(min=0) / safe
    else:
        pull = -(distance if published else distance.square()).lt(params.margin).to(distance.dtype)
    s = pairs[..., 4]
    pull = torch.where(s == 1, 1, pull.where(s == 0, 0))
    coefficient = pull * (loss_gradient / (s >= 0).sum().clamp(min=1))
    gradient = difference * coefficient[:, None]
    first = scatter(gradient, at1, shape1[2], shape1[3]) if wanted[0] else None
    second = scatter(gradient.neg_(), at2, shape2[2], shape2[3]) if wanted[1] else None
    return first, second


def _corners(pairs: Tensor, shape1: Shape, shape2: Shape, params: Params) -> tuple[Corners, Corners]:
    def of(xy: Tensor, shape: Shape) -> Corners:
        factor, offset = params.downsampling_factor, params.coordinate_offset
        return corners(xy, shape[2], shape[3], factor, offset, params.bilinear_interpolation)

    return of(pairs[..., 0:2], shape1), of(pairs[..., 2:4], shape2)


class Function(torch.autograd.Function):
    @staticmethod
    def forward(
        feature1: Tensor, feature2: Tensor, pairs: Tensor, positives: Tensor | None, params: Params
    ) -> tuple[Tensor, ...]:
        tops, difference, distance = forward(feature1, feature2, pairs, positives, params)
        return (*tops, difference, distance)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        feature1, feature2, pairs, _, ctx.params = inputs
        ctx.shapes = tuple(feature1.shape), tuple(feature2.shape)
        ctx.dtype = feature1.dtype
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(pairs, *output[5:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
        if loss_gradient is None:
            return (None,) * 5
        pairs, difference, distance = ctx.saved_tensors
        shape1, shape2 = ctx.shapes
        wanted = ctx.needs_input_grad[:2]
        found = backward(loss_gradient, pairs, difference, distance, shape1, shape2, ctx.params, wanted)
        first, second = (x if x is None else x.to(ctx.dtype) for x in found)
        return first, second, None, None, None


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
    Raises ``BlobError`` for shapes that do not fit and, on the CPU, for coordinates that are not
    finite or another s; ``TypeError`` for dtypes and devices. Source: UCN, Eq. 1.
    """
    params = Params(
        margin,
        downsampling_factor,
        bilinear_interpolation,
        coordinate_offset,
        choice(Form, form, "form"),
        choice(Gradient, grad, "grad"),
    )
    return _loss(params, feature1, feature2, pairs).loss


def _loss(
    params: Params, feature1: Tensor, feature2: Tensor, pairs: Tensor, positives: Tensor | None = None
) -> Tops:
    infer(params, tuple(feature1.shape), tuple(feature2.shape), tuple(pairs.shape))
    expect_floating(feature1=feature1, feature2=feature2)
    expect_same_device(feature1=feature1, pairs=pairs)
    pairs = pairs.detach()
    expect_finite(pairs[..., :4], pairs=pairs)
    _expect_labels(pairs)
    found = autocast.apply(Function, feature1, feature2, pairs, positives, params)
    return Tops(*found[:5])


def _expect_labels(pairs: Tensor) -> None:
    s = pairs[..., 4]
    known = (s < 0) | (s == 0) | (s == 1)
    if pairs.is_cuda or bool(known.all()):
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
        ]


def _sample(rng: np.random.Generator, name: str, shape: Shape, points: int, **options: Any) -> Sample:
    """Unit features and pairs around the border; the margin lies in a gap between the distances."""
    values = rng.standard_normal((2, *shape))
    maps = torch.from_numpy(values / np.linalg.norm(values, axis=2, keepdims=True))
    factor = options.get("downsampling_factor", 4.0)
    extent = factor * np.array([shape[3], shape[2]] * 2)
    xy = rng.uniform(-0.1, 1.1, (shape[0], points, 4)) * extent
    s = np.resize([1, 0, 0, -1], (shape[0], points, 1))
    pairs = torch.from_numpy(np.concatenate((xy, s), axis=2))
    _, _, distance = forward(maps[0], maps[1], pairs, None, Params(**options))
    middle = distance[pairs[..., 4] == 0].sort().values
    middle = middle[len(middle) // 4 : 3 * len(middle) // 4 + 2]
    widest = int(middle.diff().argmax())
    margin = float(middle[widest : widest + 2].mean())
    if options.get("form") is Form.PLAIN_HINGE:
        margin = margin**2
    return Sample(
        Params(margin=margin, **options), (maps[0], maps[1], pairs), differentiable=(0, 1), name=name
    )
