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

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._runtime.checks import BlobError, Shape
from .._runtime.layer import Layer
from .._runtime.losses import expect_items, wide
from .._runtime.params import param
from .._runtime.registry import register
from .._runtime.samples import Sample, normal

EPSILON = 1e-4


@dataclass(frozen=True)
class Params:
    """``contrastive_loss_param``."""

    margin: float = param(1.0)
    legacy_version: bool = param(False, doc="max(0, margin - d^2) for dissimilar pairs")


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


class Function(torch.autograd.Function):
    """a and b [N, C], which pairs are similar [N], margin, legacy -> loss."""

    @staticmethod
    def forward(a: Tensor, b: Tensor, similar: Tensor, margin: float, legacy: bool) -> Tensor:
        squared = (a - b).square().sum(1)
        gap = margin - (squared if legacy else squared.sqrt())
        hinge = gap.masked_fill(gap < 0, 0)  # NaN stays
        terms = torch.where(similar, squared, hinge if legacy else hinge.square())
        return terms.sum() / max(1, len(a)) / 2

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.margin, ctx.legacy = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b, similar = ctx.saved_tensors
        difference = a - b
        squared = difference.square().sum(1)
        distance = squared.sqrt()
        gap = ctx.margin - (squared if ctx.legacy else distance)
        pull = -torch.ones_like(gap) if ctx.legacy else -gap / (distance + EPSILON)
        factor = torch.where(similar, 1, pull.where(gap > 0, 0))
        found = (grad / max(1, len(a)) * factor)[:, None] * difference
        return found, -found, None, None, None


@register("ContrastiveLoss", bottoms=3)
class ContrastiveLoss(Layer):
    """See the module's text."""

    Params = Params
    bottom_names = ("a", "b", "similar")
    is_loss = True
    labels = (2,)
    infer = staticmethod(infer)

    def forward(self, a: Tensor, b: Tensor, similar: Tensor) -> Tensor:
        infer(self.params, tuple(a.shape), tuple(b.shape), tuple(similar.shape))
        n, channels = a.shape[0], prod(a.shape[1:])
        pair = (wide(x).reshape(n, channels) for x in (a, b))
        alike = similar.reshape(n).long() != 0
        loss: Tensor = Function.apply(*pair, alike, self.params.margin, self.params.legacy_version)
        return loss

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
