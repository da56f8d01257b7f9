"""AbsVal, BNLL, Clip, ELU, ReLU, Sigmoid, Swish, TanH, Threshold: functions of single elements.

Bottom and top of any shape, the same. Where the derivative jumps, the gradient is

========  ===================================
AbsVal    0 at 0
Clip      1 at both bounds
ELU       alpha at 0
ReLU      negative_slope at 0
========  ===================================

Threshold has no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._runtime.checks import Shape
from .._runtime.layer import Layer
from .._runtime.params import Engine, param
from .._runtime.registry import register
from .._runtime.samples import Sample, distinct


@dataclass(frozen=True)
class ReLUParams:
    """``relu_param``."""

    negative_slope: float = param(0.0, doc="factor below 0: leaky")
    engine: Engine = param(Engine.DEFAULT, doc="accepted, has no effect")


@dataclass(frozen=True)
class EngineParams:
    """``tanh_param`` and ``sigmoid_param``."""

    engine: Engine = param(Engine.DEFAULT, doc="accepted, has no effect")


@dataclass(frozen=True)
class ClipParams:
    """``clip_param``."""

    min: float = param(infinite=True, doc="what is smaller becomes this, everything if above max")
    max: float = param(infinite=True, doc="what is larger becomes this")


@dataclass(frozen=True)
class ELUParams:
    """``elu_param``."""

    alpha: float = param(1.0, doc="the limit far below 0 is -alpha")


@dataclass(frozen=True)
class SwishParams:
    """``swish_param``."""

    beta: float = param(1.0, doc="factor inside the sigmoid")


@dataclass(frozen=True)
class ThresholdParams:
    """``threshold_param``."""

    threshold: float = param(0.0, infinite=True)


def infer(params: object, bottom: Shape) -> tuple[Shape, ...]:
    """The top's shape is the bottom's."""
    return (bottom,)


class Neuron(Layer):
    """What the neurons share."""

    rereads = True
    bottom_names = ("bottom",)
    infer = staticmethod(infer)
    sampled: ClassVar[tuple[object, ...]] = ()

    @classmethod
    def samples(cls, size: str, rng: np.random.Generator) -> list[Sample]:
        shape = {"small": (2, 3, 4, 5), "paper": (2, 64, 64, 208)}.get(size, (2, 64, 128, 416))
        x = 2 * distinct(rng, shape)
        return [Sample(params, (x,)) for params in cls.sampled or (cls.Params(),)]


class LeakyFunction(torch.autograd.Function):
    """The gradient at 0 that of below, whatever the slope."""

    @staticmethod
    def forward(x: Tensor, slope: float) -> Tensor:
        return F.leaky_relu(x, slope)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        x, ctx.slope = inputs
        ctx.save_for_backward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        below = x.clamp(max=0).eq_(x).mul_(grad)
        return (grad - below).add_(below, alpha=ctx.slope), None


@register("ReLU", block="relu_param")
class ReLU(Neuron):
    """max(0, x) + negative_slope min(0, x)."""

    Params = ReLUParams

    @property
    def rereads_top(self) -> bool:
        return not self.params.negative_slope

    def forward(self, bottom: Tensor) -> Tensor:
        slope = self.params.negative_slope
        if not slope:
            return torch.relu(bottom)
        # At a kink torch promises the smaller of the gradients beside it: the slope, if that is 0 to 1.
        leaky = F.leaky_relu if 0 < slope <= 1 else LeakyFunction.apply
        return leaky(bottom, slope)


@register("TanH", block="tanh_param")
class TanH(Neuron):
    """The hyperbolic tangent."""

    Params = EngineParams

    def forward(self, bottom: Tensor) -> Tensor:
        return torch.tanh(bottom)


@register("Sigmoid")
class Sigmoid(Neuron):
    """1 / (1 + exp(-x))."""

    Params = EngineParams

    def forward(self, bottom: Tensor) -> Tensor:
        return torch.sigmoid(bottom)


@register("AbsVal")
class AbsVal(Neuron):
    """``|x|``."""

    in_place_refused = True

    def forward(self, bottom: Tensor) -> Tensor:
        return bottom.abs()


@register("BNLL")
class BNLL(Neuron):
    """log(1 + exp(x)), the binomial normal log likelihood; x itself above 50."""

    def forward(self, bottom: Tensor) -> Tensor:
        return F.softplus(bottom, threshold=50)


class ClipFunction(torch.autograd.Function):
    """The gradient passes at both bounds too, where that of torch's clamp depends on the version."""

    @staticmethod
    def forward(x: Tensor, least: float, most: float) -> Tensor:
        return x.clamp(least, max(least, most))  # torch would have most, not least, win

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, float], output: Tensor) -> None:
        x, ctx.least, ctx.most = inputs
        ctx.save_for_backward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return grad * ((x >= ctx.least) & (x <= ctx.most)), None, None


@register("Clip")
class Clip(Neuron):
    """max(min(x, max), min)."""

    Params = ClipParams
    sampled = (ClipParams(-1.2, 0.7),)

    def forward(self, bottom: Tensor) -> Tensor:
        top: Tensor = ClipFunction.apply(bottom, self.params.min, self.params.max)
        return top


class ELUFunction(torch.autograd.Function):
    """The gradient from the top, as Caffe has it: alpha + y below 0."""

    @staticmethod
    def forward(x: Tensor, alpha: float) -> Tensor:
        return F.elu(x, alpha)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        x, ctx.alpha = inputs
        ctx.save_for_backward(x, output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, y = ctx.saved_tensors
        return grad.where(x > 0, grad * (y + ctx.alpha)), None


class SwishFunction(torch.autograd.Function):
    """The gradient from the top and the sigmoid, as Caffe has it: beta y + s (1 - beta y)."""

    @staticmethod
    def forward(x: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        sigmoid = torch.sigmoid(x * beta)
        return x * sigmoid, sigmoid

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, Tensor]) -> None:
        ctx.beta = inputs[1]
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None]:
        y, sigmoid = ctx.saved_tensors
        scaled = y * ctx.beta
        return grad * (1 - scaled).mul_(sigmoid).add_(scaled), None


@register("ELU")
class ELU(Neuron):
    """x above 0, alpha (exp(x) - 1) below (Clevert et al. 2016, equation 15)."""

    Params = ELUParams
    sampled = (ELUParams(0.6),)

    def forward(self, bottom: Tensor) -> Tensor:
        top: Tensor = ELUFunction.apply(bottom, self.params.alpha)
        return top


@register("Swish")
class Swish(Neuron):
    """x sigmoid(beta x) (Ramachandran et al. 2017)."""

    Params = SwishParams
    sampled = (SwishParams(), SwishParams(-1.7))

    def forward(self, bottom: Tensor) -> Tensor:
        top, _ = SwishFunction.apply(bottom, self.params.beta)
        return top


@register("Threshold")
class Threshold(Neuron):
    """1 above the threshold, else 0."""

    Params = ThresholdParams
    backward_refused = True

    def forward(self, bottom: Tensor) -> Tensor:
        return (bottom > self.params.threshold).to(bottom.dtype)

    @classmethod
    def samples(cls, size: str, rng: np.random.Generator) -> list[Sample]:
        return [replace(sample, differentiable=(), tops=()) for sample in super().samples(size, rng)]
