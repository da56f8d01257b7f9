"""ContrastiveLoss: similar pairs close to each other, dissimilar ones a margin apart.

    L = 1/(2N) sum_i  s_i d_i^2 + (1 - s_i) max(0, margin - d_i)^2,    d_i = |a_i - b_i|

With ``legacy_version`` the second term is max(0, margin - d_i^2) (Hadsell et al. 2006; Caffe's
behaviour).

Bottoms: a and b [N, C] (or [N, C, 1, 1]), any floating type, both get gradients; N labels s, similar
unless their integer part is 0. Top: the loss, of shape (), in float32 or wider. No items: loss 0.

The gradient of a dissimilar pair is the published one: (margin - d)/(d + 1e-4) (a - b), at d = 0
therefore 0. For a margin of images' points see CorrespondenceContrastiveLoss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from .._engine.checks import BlobError, Shape
from .._engine.declared import Bottom, Role, Top, Trait
from .._engine.definition import Spec, define
from .._engine.layer import Layer
from .._engine.params import param
from .._engine.registry import register
from .._engine.samples import Sample, normal
from .._engine.wide import wide, wide_dtype
from ._losses import expect_items

EPSILON = 1e-4


@dataclass(frozen=True)
class Params:
    """``contrastive_loss_param``."""

    margin: float = param(1.0, doc="how far dissimilar pairs are to be apart")
    legacy_version: bool = param(False, doc="max(0, margin - d^2) for dissimilar pairs")


BOTTOMS = (
    Bottom("a", "[N, C]"),
    Bottom("b", "[N, C]"),
    Bottom("similar", "[N]", Role.LABEL),
)
TOPS = (Top("loss"),)


def infer(params: Params, a: Shape, b: Shape, similar: Shape) -> tuple[Shape, ...]:
    """The scalar top; raises BlobError where the bottoms do not fit."""
    n = expect_items(a=a, b=b, similar=similar)
    for name, shape in {"a": a, "b": b}.items():
        if len(shape) > 4 or any(dim != 1 for dim in shape[2:]):
            raise BlobError(f"expected {{{name}}} to be [N, C] or [N, C, 1, 1]", **{name: shape})
    if prod(a) != prod(b):
        raise BlobError("bottoms differ in channels: {a}, {b}", a=a, b=b)
    if prod(similar) != n:
        raise BlobError("expected one label for each pair, got {similar}", similar=similar)
    return ((),)


def meta(params: Params, a: Tensor, b: Tensor, similar: Tensor) -> Sequence[Spec]:
    """The loss; which pairs are similar ``[N]``."""
    return ((), wide_dtype(a.dtype)), (a.shape[:1], torch.bool)


def forward(params: Params, a: Tensor, b: Tensor, similar: Tensor) -> tuple[Tensor, Tensor]:
    n = a.shape[0]
    alike = similar.reshape(n).long() != 0
    squared = _difference(a, b).square().sum(1)
    gap = params.margin - (squared if params.legacy_version else squared.sqrt())
    hinge = gap.masked_fill(gap < 0, 0)  # NaN stays
    terms = torch.where(alike, squared, hinge if params.legacy_version else hinge.square())
    return terms.sum() / max(1, n) / 2, alike


def backward(
    params: Params,
    loss_gradient: Tensor,
    a: Tensor,
    b: Tensor,
    alike: Tensor,
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    difference = _difference(a, b)
    squared = difference.square().sum(1)
    distance = squared.sqrt()
    gap = params.margin - (squared if params.legacy_version else distance)
    pull = -torch.ones_like(gap) if params.legacy_version else -gap / (distance + EPSILON)
    factor = torch.where(alike, 1, pull.where(gap > 0, 0))
    found = (loss_gradient / max(1, a.shape[0]) * factor)[:, None] * difference
    return (
        found.reshape(a.shape).to(a.dtype) if wanted[0] else None,
        (-found).reshape(b.shape).to(b.dtype) if wanted[1] else None,
    )


def _difference(a: Tensor, b: Tensor) -> Tensor:
    n, channels = a.shape[0], prod(a.shape[1:])
    return wide(a).reshape(n, channels) - wide(b).reshape(n, channels)


definition = define(__name__, kept=("alike",), traced=True)


@register("ContrastiveLoss")
class ContrastiveLoss(Layer):
    """See the module's text."""

    definition = definition
    TRAITS = (Trait.LOSS,)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        """Distances of about 1000 about the margin: there the 1e-4 does not show in differences."""
        n, channels = {"small": (6, 3), "paper": (64, 256)}.get(size, (4096, 256))
        apart = normal(rng, (n, channels))
        apart *= torch.from_numpy(rng.choice([500.0, 1500.0], n))[:, None] / apart.norm(dim=1)[:, None]
        a = 100 * normal(rng, (n, channels))
        bottoms = (a, a - apart, torch.from_numpy(rng.integers(0, 2, n)))
        every = (Params(margin=1000.0), Params(margin=1e6, legacy_version=True))
        return [Sample(params, bottoms, (0, 1)) for params in every]
