"""ReLU, TanH, Sigmoid: functions of single elements.

Bottom and top of any shape, the same. The gradient of ReLU at 0 is ``negative_slope``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

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


def infer(params: object, bottom: Shape) -> tuple[Shape, ...]:
    """The top's shape is the bottom's."""
    return (bottom,)


class Neuron(Layer):
    """What the neurons share."""

    bottom_names = ("bottom",)
    infer = staticmethod(infer)

    @classmethod
    def samples(cls, size: str, rng: np.random.Generator) -> list[Sample]:
        shape = {"small": (2, 3, 4, 5), "paper": (2, 64, 64, 208)}.get(size, (2, 64, 128, 416))
        return [Sample(cls.Params(), (2 * distinct(rng, shape),))]


@register("ReLU", block="relu_param")
class ReLU(Neuron):
    """max(0, x) + negative_slope min(0, x)."""

    Params = ReLUParams

    def forward(self, bottom: Tensor) -> Tensor:
        slope = self.params.negative_slope
        return F.leaky_relu(bottom, slope) if slope else F.relu(bottom)


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
