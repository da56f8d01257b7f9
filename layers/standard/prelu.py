"""PReLU: max(0, x) + a min(0, x) with a learned slope (He et al. 2015, equation 1).

Bottom [N, C, ...], top of the same shape. Blob: the slopes a [C], or one of shape [] for all
channels with ``channel_shared``. The gradient at 0 is a.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._runtime.checks import BlobError, Shape
from .._runtime.fillers import FillerParams, FillerType, parameter
from .._runtime.layer import Layer
from .._runtime.params import param
from .._runtime.registry import register
from .._runtime.samples import Sample, distinct


@dataclass(frozen=True)
class Params:
    """``prelu_param``."""

    filler: FillerParams = param(FillerParams(value=0.25), doc="default: constant 0.25")
    channel_shared: bool = param(False, doc="one slope for all channels")


def infer(params: Params, bottom: Shape) -> tuple[Shape, ...]:
    """The top's shape is the bottom's; raises BlobError unless that has channels."""
    if len(bottom) < 2:
        raise BlobError("expected {bottom} to be [N, C, ...]", bottom=bottom)
    return (bottom,)


class Function(torch.autograd.Function):
    """x and slopes -> top. Both gradients at 0 are those of below, which torch does not promise."""

    @staticmethod
    def forward(x: Tensor, slope: Tensor) -> Tensor:
        return F.prelu(x, slope)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, slope = ctx.saved_tensors
        below = x.clamp(max=0).eq_(x).mul_(grad)
        to_x = to_slope = None
        if ctx.needs_input_grad[0]:
            beside = slope.reshape(-1, *(1,) * (x.dim() - 2))
            to_x = (grad - below).addcmul_(below, beside)
        if ctx.needs_input_grad[1]:
            others = (0, *range(2, x.dim())) if slope.dim() else tuple(range(x.dim()))
            to_slope = below.mul_(x).sum(others)
        return to_x, to_slope


@register("PReLU", block="prelu_param")
class PReLU(Layer):
    """See the module's text."""

    Params = Params
    bottom_names = ("bottom",)
    infer = staticmethod(infer)

    def __init__(
        self,
        params: Any,
        bottom_shapes: tuple[Shape, ...],
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(params, bottom_shapes, generator)
        (bottom,) = bottom_shapes
        infer(params, bottom)
        shape = () if params.channel_shared else (bottom[1],)
        self.blob_names = ("slope",)
        self.slope = parameter(shape, params.filler, generator)

    def forward(self, bottom: Tensor) -> Tensor:
        self.check(bottom)
        if self.slope.dim() and len(self.slope) != bottom.shape[1]:
            raise BlobError(
                f"{{bottom}} has {bottom.shape[1]} channels, the slopes are for {len(self.slope)}",
                bottom=bottom.shape,
            )
        top: Tensor = Function.apply(bottom, self.slope)
        return top

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        filler = FillerParams(FillerType.uniform, min=-0.3, max=0.5)
        shape = {"small": (2, 3, 4, 5), "paper": (2, 64, 64, 208)}.get(size, (2, 64, 128, 416))
        x = distinct(rng, shape)
        return [Sample(Params(filler), (x,)), Sample(Params(channel_shared=True), (x,), name="shared")]
