"""MVN: each channel of each item (or each item, ``across_channels``) with mean 0 and variance 1.

    y = (x - mean) / (sqrt(variance) + eps)

with the biased variance, or x - mean without ``normalize_variance``. Bottom of at most 4 axes; the
top always has 4, the missing ones of length 1.

The gradient is Caffe's, which takes eps for a part of the standard deviation that moves with it:
that of the formula for a small eps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .._engine.checks import BlobError, Shape
from .._engine.declared import Bottom, Top, Trait
from .._engine.definition import Spec, define
from .._engine.layer import Layer
from .._engine.params import param
from .._engine.registry import register
from .._engine.samples import Sample, normal
from .._engine.wide import wide, wide_dtype


@dataclass(frozen=True)
class Params:
    """``mvn_param``."""

    normalize_variance: bool = param(True, doc="false: only subtract the mean")
    across_channels: bool = param(False, doc="the statistics of an item instead of its channels'")
    eps: float = param(1e-9, doc="added to the standard deviation")


BOTTOMS = (Bottom("bottom", "[N], [N, C], [N, C, H] or [N, C, H, W]"),)
TOPS = (Top("top"),)


def infer(params: Params, bottom: Shape) -> tuple[Shape]:
    """The top's shape; raises BlobError for more than 4 axes."""
    if len(bottom) > 4:
        raise BlobError("expected {bottom} to have at most 4 axes", bottom=bottom)
    return ((*bottom, *(1,) * (4 - len(bottom))),)


def rows_of(params: Params, bottom: Tensor) -> Tensor:
    """``[groups, elements]``, each row with statistics of its own, in float32 or wider."""
    ((*groups, height, width),) = infer(params, bottom.shape)
    if params.across_channels:
        groups, elements = groups[:1], groups[1] * height * width
    else:
        elements = height * width
    return wide(bottom.reshape(math.prod(groups), elements))


def meta(params: Params, bottom: Tensor) -> Sequence[Spec | None]:
    """The top; the same in the type of sums, unless it is that; what its rows were divided by."""
    (shape,) = infer(params, bottom.shape)
    dtype = wide_dtype(bottom.dtype)
    groups = shape[0] if params.across_channels else shape[0] * shape[1]
    y = None if bottom.dtype == dtype else (shape, dtype)
    return (shape, bottom.dtype), y, ((groups, 1), dtype)


def forward(params: Params, bottom: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    rows = rows_of(params, bottom)
    centred = rows - rows.mean(1, keepdim=True)
    std = centred.square().mean(1, keepdim=True).sqrt_().add_(params.eps)
    (shape,) = infer(params, bottom.shape)
    y = centred.div_(std).view(shape)
    return (y, None, std) if y.dtype == bottom.dtype else (y.to(bottom.dtype), y, std)


def backward(
    params: Params, top_gradient: Tensor, y: Tensor, std: Tensor, bottom_shape: Shape
) -> Tensor:
    """dx = (dy - mean(dy) - y mean(y dy)) / std."""
    g, rows = rows_of(params, top_gradient), rows_of(params, y)
    along = (g * rows).mean(1, keepdim=True).neg_()  # of addcmul's value compilers round otherwise
    found = (g - g.mean(1, keepdim=True)).addcmul_(rows, along)
    return found.div_(std).to(top_gradient.dtype).view(bottom_shape)


definition = define(__name__, kept=("y", "std"), traced=True, keeps_half=True)


@register("MVN")
class MVN(Layer):
    """See the module's text."""

    definition = definition
    TRAITS = (Trait.REREADS,)

    def forward(self, bottom: Tensor) -> Tensor:
        if self.params.normalize_variance:
            return definition(self.params, bottom)
        (shape,) = infer(self.params, bottom.shape)
        rows = rows_of(self.params, bottom)
        return (rows - rows.mean(1, keepdim=True)).to(bottom.dtype).reshape(shape)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        if size != "small":
            side = 64 if size == "paper" else 256
            return [Sample(Params(), (normal(rng, (2, 16, side, side)),))]
        x = normal(rng, (2, 3, 2, 4))
        return [
            Sample(Params(), (x,), name="channels"),
            Sample(Params(across_channels=True), (x,), name="items"),
            Sample(Params(normalize_variance=False), (x,), name="mean"),
            Sample(Params(eps=0.5), (x,), name="large eps", check_gradient=False),
        ]
