"""RegionHingeLoss: true matches of regions score a margin above 0, false ones as far below.

    L = 1 / (2 N) (sum over positives of max(0, margin - z) + sum over negatives of max(0, margin + z))

N is the number of positives; without any, loss and gradient are 0.

Bottoms: ``scores`` z of any shape, any floating type; ``label`` of the same shape and any type: 1 a
positive, 0 a negative, others are not counted (RegionPairSampling's top). Tops, scalars in float32 or
wider, any number from the first: ``loss``, the part of it due to positives, the part due to
negatives; only ``loss`` has a gradient.

Backward fills the scores' gradient: with g the loss' gradient, -g / (2 N) for a positive with
z < margin, g / (2 N) for a negative with z > -margin, else 0, also where z is margin or -margin.

Source: SCNet, Eq. 5 with the hinge; the division by 2 N is the released code's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ._engine.checks import BlobError, Shape
from ._engine.declared import Bottom, Role, Top, Trait
from ._engine.definition import Spec, define
from ._engine.layer import Layer
from ._engine.params import param
from ._engine.registry import register
from ._engine.samples import Sample
from ._engine.wide import wide, wide_dtype

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Params:
    margin: float = param(1.0, low=0, unit="score", doc="how far from 0 scores should lie")


BOTTOMS = (Bottom("scores", "of any shape"), Bottom("label", "of the same", Role.LABEL))
WHY = "learn by the loss"
TOPS = (
    Top("loss", mean_of="num_positives"),
    Top("positive_part", WHY, mean_of="num_positives"),
    Top("negative_part", WHY, mean_of="num_positives"),
)


class Tops(NamedTuple):
    loss: Tensor
    positive_part: Tensor
    negative_part: Tensor


def infer(params: Params, scores: Shape, label: Shape) -> tuple[Shape, ...]:
    """Three scalars; raises :class:`BlobError` unless the shapes are the same."""
    if scores != label:
        raise BlobError("shapes differ: {scores}, {label}", scores=scores, label=label)
    return ((),) * 3


def meta(params: Params, scores: Tensor, label: Tensor) -> Sequence[Spec]:
    """The tops; N."""
    scalars: list[Spec] = [((), wide_dtype(scores.dtype))] * len(TOPS)
    return *scalars, ((), torch.int64)


def forward(params: Params, scores: Tensor, label: Tensor) -> tuple[Tensor, ...]:
    z = wide(scores)
    positive, negative = label == 1, label == 0
    num_positives = positive.sum()
    share = _share(num_positives, z.dtype)
    parts = [
        (params.margin + sign * z).clamp_(min=0).mul_(chosen).sum() * share
        for sign, chosen in ((-1, positive), (1, negative))
    ]
    return parts[0] + parts[1], *parts, num_positives


def backward(
    params: Params, loss_gradient: Tensor, scores: Tensor, label: Tensor, num_positives: Tensor
) -> Tensor:
    share = _share(num_positives, wide_dtype(scores.dtype))
    pull = ((label == 0) & (scores > -params.margin)).to(share.dtype)
    pull.masked_fill_((label == 1) & (scores < params.margin), -1)
    return pull.mul_(loss_gradient * share).to(scores.dtype)


def _share(num_positives: Tensor, dtype: torch.dtype) -> Tensor:
    """1 / (2 N), without positives 0."""
    return 0.5 / num_positives.to(dtype).clamp(min=1) * (num_positives > 0)


definition = define(__name__, kept=("num_positives",), traced=True)


def region_hinge_loss(scores: Tensor, label: Tensor, margin: float = Params.margin) -> Tensor:
    """The loss, a scalar in float32 or wider, of ``scores`` z and ``label`` of one shape.

    A label of 1 is a positive, 0 a negative, any other is not counted. Raises ``BlobError`` for
    shapes that differ, ``TypeError`` unless ``scores`` is floating point on the label's device.
    Source: SCNet, Eq. 5.
    """
    tops: Tops = definition(definition.params(margin), scores, label)
    return tops.loss


@register("RegionHingeLoss")
class RegionHingeLoss(Layer):
    definition = definition
    TRAITS = (Trait.LOSS,)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        from ._samples import region_hinge_loss as own

        return own.samples(size, rng)
