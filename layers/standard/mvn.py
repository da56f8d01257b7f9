"""MVN: each channel of each item (or each item, ``across_channels``) with mean 0 and variance 1.

    y = (x - mean) / (sqrt(variance) + eps)

with the biased variance, or x - mean without ``normalize_variance``. Bottom of at most 4 axes; the
top always has 4, the missing ones of length 1.

The gradient is Caffe's, which takes eps for a part of the standard deviation that moves with it:
that of the formula for a small eps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._runtime.checks import BlobError, Shape
from .._runtime.layer import Layer
from .._runtime.params import param
from .._runtime.registry import register
from .._runtime.samples import Sample, normal


@dataclass(frozen=True)
class Params:
    """``mvn_param``."""

    normalize_variance: bool = param(True, doc="false: only subtract the mean")
    across_channels: bool = param(False, doc="the statistics of an item instead of its channels'")
    eps: float = param(1e-9, doc="added to the standard deviation")


def infer(params: Params, bottom: Shape) -> tuple[Shape, ...]:
    """The top's shape; raises BlobError for more than 4 axes."""
    if len(bottom) > 4:
        raise BlobError("expected {bottom} to have at most 4 axes", bottom=bottom)
    return (bottom + (1,) * (4 - len(bottom)),)


def forward(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Normalised rows ``[groups, elements]``, and what they were divided by ``[groups, 1]``."""
    centred = x - x.mean(1, keepdim=True)
    std = centred.square().mean(1, keepdim=True).sqrt_().add_(eps)
    return centred.div_(std), std


def backward(grad: Tensor, y: Tensor, std: Tensor) -> Tensor:
    """dx = (dy - mean(dy) - y mean(y dy)) / std."""
    along = (grad * y).mean(1, keepdim=True)
    return (grad - grad.mean(1, keepdim=True)).addcmul_(y, along, value=-1).div_(std)


class Function(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return forward(x, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*output)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None]:
        return backward(grad, *ctx.saved_tensors), None


@register("MVN")
class MVN(Layer):
    """See the module's text."""

    Params = Params
    rereads = True
    bottom_names = ("bottom",)
    infer = staticmethod(infer)

    def forward(self, bottom: Tensor) -> Tensor:
        p: Params = self.params
        (shape,) = infer(p, tuple(bottom.shape))
        lead = shape[0] if p.across_channels else shape[0] * shape[1]
        rows = bottom.reshape(lead, bottom.numel() // max(1, lead))
        if bottom.dtype in (torch.float16, torch.bfloat16):
            rows = rows.float()
        if p.normalize_variance:
            top, _ = Function.apply(rows, p.eps)
        else:
            top = rows - rows.mean(1, keepdim=True)
        return top.to(bottom.dtype).reshape(shape)

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
