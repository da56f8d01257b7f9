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

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .._engine.checks import Shape
from .._engine.declared import Bottom, Top, Trait
from .._engine.definition import Definition, Spec
from .._engine.layer import Layer
from .._engine.params import Engine, param
from .._engine.registry import register
from .._engine.samples import Sample, distinct


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

    threshold: float = param(0.0, infinite=True, doc="what is larger becomes 1")


BOTTOMS = (Bottom("bottom"),)
TOPS = (Top("top"),)


def infer(params: object, bottom: Shape) -> tuple[Shape]:
    """The top's shape is the bottom's."""
    return (bottom,)


def meta(params: object, bottom: Tensor) -> Sequence[Spec]:
    return ((bottom.shape, bottom.dtype),)


def leaky_forward(params: ReLUParams, bottom: Tensor) -> tuple[Tensor]:
    return (F.leaky_relu(bottom, params.negative_slope),)


def leaky_backward(params: ReLUParams, top_gradient: Tensor, bottom: Tensor) -> Tensor:
    """The gradient at 0 that of below, whatever the slope."""
    below = bottom.clamp(max=0).eq_(bottom).mul_(top_gradient)
    return (top_gradient - below).add_(below, alpha=params.negative_slope)


def clip_forward(params: ClipParams, bottom: Tensor) -> tuple[Tensor]:
    # torch would have max, not min, win
    return (bottom.clamp(params.min, max(params.min, params.max)),)


def clip_backward(params: ClipParams, top_gradient: Tensor, bottom: Tensor) -> Tensor:
    """The gradient passes at both bounds too, where that of torch's clamp depends on the version."""
    return top_gradient * ((bottom >= params.min) & (bottom <= params.max))


def elu_forward(params: ELUParams, bottom: Tensor) -> tuple[Tensor]:
    return (F.elu(bottom, params.alpha),)


def elu_backward(params: ELUParams, top_gradient: Tensor, bottom: Tensor, top: Tensor) -> Tensor:
    """The gradient from the top, as Caffe has it: alpha + y below 0."""
    return top_gradient.where(bottom > 0, top_gradient * (top + params.alpha))


def swish_meta(params: SwishParams, bottom: Tensor) -> Sequence[Spec]:
    """The top; the sigmoids."""
    return (bottom.shape, bottom.dtype), (bottom.shape, bottom.dtype)


def swish_forward(params: SwishParams, bottom: Tensor) -> tuple[Tensor, Tensor]:
    sigmoid = torch.sigmoid(bottom * params.beta)
    return bottom * sigmoid, sigmoid


def swish_backward(params: SwishParams, top_gradient: Tensor, top: Tensor, sigmoid: Tensor) -> Tensor:
    """The gradient from the top and the sigmoid, as Caffe has it: beta y + s (1 - beta y)."""
    scaled = top * params.beta
    return top_gradient * (1 - scaled).mul_(sigmoid).add_(scaled)


leaky_relu = Definition(
    "leaky_relu",
    ReLUParams,
    BOTTOMS,
    TOPS,
    infer=infer,
    meta=meta,
    forward=leaky_forward,
    backward=leaky_backward,
    traced=True,
    keeps_half=True,
)
clip = Definition(
    "clip",
    ClipParams,
    BOTTOMS,
    TOPS,
    infer=infer,
    meta=meta,
    forward=clip_forward,
    backward=clip_backward,
    traced=True,
    keeps_half=True,
)
elu = Definition(
    "elu",
    ELUParams,
    BOTTOMS,
    TOPS,
    infer=infer,
    meta=meta,
    forward=elu_forward,
    backward=elu_backward,
    traced=True,
    keeps_half=True,
)
swish = Definition(
    "swish",
    SwishParams,
    BOTTOMS,
    TOPS,
    kept=("sigmoid",),
    infer=infer,
    meta=swish_meta,
    forward=swish_forward,
    backward=swish_backward,
    traced=True,
    keeps_half=True,
)


class Neuron(Layer):
    """What the neurons share."""

    BOTTOMS = (Bottom("bottom"),)
    TRAITS: ClassVar[tuple[Trait, ...]] = (Trait.REREADS,)
    infer = staticmethod(infer)
    sampled: ClassVar[tuple[object, ...]] = ()

    @classmethod
    def samples(cls, size: str, rng: np.random.Generator) -> list[Sample]:
        shape = {"small": (2, 3, 4, 5), "paper": (2, 64, 64, 208)}.get(size, (2, 64, 128, 416))
        x = 2 * distinct(rng, shape)
        return [Sample(params, (x,)) for params in cls.sampled or (cls.Params(),)]


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
        if 0 < slope <= 1:
            return F.leaky_relu(bottom, slope)
        return leaky_relu(self.params, bottom)


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

    TRAITS = (*Neuron.TRAITS, Trait.NOT_IN_PLACE)

    def forward(self, bottom: Tensor) -> Tensor:
        return bottom.abs()


@register("BNLL")
class BNLL(Neuron):
    """log(1 + exp(x)), the binomial normal log likelihood; x itself above 50."""

    def forward(self, bottom: Tensor) -> Tensor:
        return F.softplus(bottom, threshold=50)


@register("Clip")
class Clip(Neuron):
    """max(min(x, max), min)."""

    definition = clip
    sampled = (ClipParams(-1.2, 0.7),)


@register("ELU")
class ELU(Neuron):
    """x above 0, alpha (exp(x) - 1) below (Clevert et al. 2016, equation 15)."""

    definition = elu
    sampled = (ELUParams(0.6),)


@register("Swish")
class Swish(Neuron):
    """x sigmoid(beta x) (Ramachandran et al. 2017)."""

    definition = swish
    sampled = (SwishParams(), SwishParams(-1.7))


@register("Threshold")
class Threshold(Neuron):
    """1 above the threshold, else 0."""

    Params = ThresholdParams
    TRAITS = (*Neuron.TRAITS, Trait.NO_BACKWARD)

    def forward(self, bottom: Tensor) -> Tensor:
        return (bottom > self.params.threshold).to(bottom.dtype)

    @classmethod
    def samples(cls, size: str, rng: np.random.Generator) -> list[Sample]:
        return [replace(sample, differentiable=(), tops=()) for sample in super().samples(size, rng)]
