"""RegionHingeLoss: true matches of regions score a margin above 0, false ones as far below.

    L = 1 / (2 N) (sum over positives of max(0, margin - z) + sum over negatives of max(0, margin + z))

N is the number of positives. Bottoms: ``scores`` z of any shape, any floating type; ``label`` of the
same shape and any type: 1 a positive, 0 a negative, others do not count (RegionPairSampling's top).
Tops, scalars in float32 or wider, any number from the first: ``loss``, the part of it due to
positives, the part due to negatives; only ``loss`` has a gradient.

Backward fills the scores' gradient: with g the loss' gradient, -g / (2 N) for a positive with
z < margin, g / (2 N) for a negative with z > -margin, else 0, on the edge too. Without positives
loss and gradient are 0.

Source: SCNet, Eq. 5 with the hinge; the division by 2 N is the released code's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._runtime import autocast, parallel
from ._runtime.checks import BlobError, Shape, expect_floating, expect_same_device, shapes
from ._runtime.layer import Layer
from ._runtime.params import param, valid
from ._runtime.registry import register
from ._runtime.samples import Sample


@dataclass(frozen=True)
class Params:
    margin: float = param(1.0, low=0, unit="score")


class Tops(NamedTuple):
    loss: Tensor
    positive_part: Tensor
    negative_part: Tensor


def infer(params: Params, scores: Shape, label: Shape) -> tuple[Shape, ...]:
    """Three scalars; raises :class:`BlobError` unless the shapes are the same."""
    if scores != label:
        raise BlobError("shapes differ: {scores}, {label}", scores=scores, label=label)
    return ((),) * 3


def forward(scores: Tensor, label: Tensor, params: Params) -> tuple[Tops, Tensor]:
    """The tops, and 1 / (2 N)."""
    z = scores if scores.dtype == torch.float64 else scores.float()
    positive, negative = label == 1, label == 0
    share = 0.5 / positive.sum().to(z.dtype).clamp(min=1) * positive.any()
    parts = [
        (params.margin + sign * z).clamp_(min=0).mul_(chosen).sum() * share
        for sign, chosen in ((-1, positive), (1, negative))
    ]
    return Tops(parts[0] + parts[1], *parts), share


def backward(
    loss_gradient: Tensor, scores: Tensor, label: Tensor, share: Tensor, params: Params
) -> Tensor:
    """The scores' gradient."""
    pull = ((label == 0) & (scores > -params.margin)).to(share.dtype)
    pull[(label == 1) & (scores < params.margin)] = -1
    return pull.mul_(loss_gradient * share).to(scores.dtype)


class Function(torch.autograd.Function):
    @staticmethod
    def forward(scores: Tensor, label: Tensor, params: Params) -> tuple[Tensor, ...]:
        tops, share = forward(scores, label, params)
        return (*tops, share)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        scores, label, ctx.params = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(scores, label, output[3])

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, loss_gradient: Tensor | None, *_: Tensor | None
    ) -> tuple[Tensor | None, None, None]:
        if loss_gradient is None:
            return None, None, None
        scores, label, share = ctx.saved_tensors
        return backward(loss_gradient, scores, label, share, ctx.params), None, None


def region_hinge_loss(scores: Tensor, label: Tensor, margin: float = 1.0) -> Tensor:
    """The loss, a scalar in float32 or wider, of ``scores`` z and ``label`` of one shape.

    A label of 1 is a positive, 0 a negative, any other is not counted. Raises ``BlobError`` for
    shapes that differ, ``TypeError`` unless ``scores`` is floating point on the label's device.
    Source: SCNet, Eq. 5.
    """
    return _loss(valid(Params(margin)), scores, label).loss


def _loss(params: Params, scores: Tensor, label: Tensor) -> Tops:
    infer(params, **shapes("region_hinge_loss", scores=scores, label=label))
    expect_floating(scores=scores)
    expect_same_device(scores=scores, label=label)
    tops = Tops(*autocast.apply(Function, scores, label.detach(), params)[:3])
    if parallel.place()[1] == 1:
        return tops
    return Tops(*(parallel.balanced(top, (label == 1).sum()) for top in tops))


@register("RegionHingeLoss", bottoms=2, tops=(1, 3))
class RegionHingeLoss(Layer):
    Params = Params
    bottom_names = ("scores", "label")
    is_loss = True
    infer = staticmethod(infer)

    def forward(self, scores: Tensor, label: Tensor) -> Tops:
        return _loss(self.params, scores, label)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        def sample(name: str, shape: Shape, margin: float = 1.0, least: float = 0.0) -> Sample:
            """Scores around both edges of the hinge, and none within 0.01 margins of them."""
            away = rng.uniform(0.01, 1.0, shape) * rng.choice((-1, 1), shape)
            edge = rng.choice((-1, 1), shape) if least < 0 else 1
            z = np.maximum(margin * (edge + away), least * margin)
            label = np.resize([1.0, 0.0, -1.0, 0.0], shape)
            bottoms = (torch.from_numpy(z), torch.from_numpy(label))
            return Sample(Params(margin), bottoms, name=name)

        if size == "paper":
            return [sample("500 x 500 regions", (500, 500))]
        if size == "large":
            return [sample("2000 x 2000 regions", (2000, 2000))]
        return [
            sample("rectified scores", (5, 6)),
            sample("both edges", (4, 7), 0.5, -3.0),
            sample("a list", (9,), 2.0),
            sample("several blocks", (33, 40)),
        ]
