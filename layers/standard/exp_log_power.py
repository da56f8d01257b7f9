"""Exp, Log, Power: of a scaled and shifted element.

    Exp      base^(shift + scale x)
    Log      log(shift + scale x) to the base
    Power    (shift + scale x)^power

Bottom and top of any shape, the same. A base of -1 is e. The gradient of Power is computed as Caffe
does, scale power top / (shift + scale x): NaN where that is 0/0. It is exact for powers 0, 1 and 2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isinf, log
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._runtime.checks import Shape
from .._runtime.layer import Layer
from .._runtime.params import param
from .._runtime.registry import register
from .._runtime.samples import Sample, distinct


@dataclass(frozen=True)
class ExpParams:
    """``exp_param``."""

    base: float = param(-1.0, doc="above 0, or -1 for e")
    scale: float = param(1.0)
    shift: float = param(0.0)

    def __post_init__(self) -> None:
        if not (self.base > 0 or self.base == -1) or isinf(self.base):
            raise ValueError(f"base must be above 0, or -1 for e, got {self.base:g}")

    @property
    def log_base(self) -> float:
        return 1.0 if self.base == -1 else log(self.base)


@dataclass(frozen=True)
class LogParams(ExpParams):
    """``log_param``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base == 1:
            raise ValueError("there is no logarithm to the base 1")


@dataclass(frozen=True)
class PowerParams:
    """``power_param``."""

    power: float = param(1.0)
    scale: float = param(1.0)
    shift: float = param(0.0)


def infer(params: object, bottom: Shape) -> tuple[Shape, ...]:
    """The top's shape is the bottom's."""
    return (bottom,)


def affine(x: Tensor, scale: float, shift: float = 0.0) -> Tensor:
    """shift + scale x, without the operations that change nothing."""
    x = x * scale if scale != 1 else x
    return x + shift if shift else x


class Exp(torch.autograd.Function):
    """base^(shift + scale x), whose gradient Caffe computes from the top."""

    @staticmethod
    def forward(x: Tensor, params: ExpParams) -> Tensor:
        outer = torch.tensor(params.log_base * params.shift, dtype=torch.float64).exp()
        return affine(affine(x, params.log_base * params.scale).exp(), float(outer))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ExpParams], output: Tensor) -> None:
        ctx.factor = inputs[1].log_base * inputs[1].scale
        ctx.save_for_backward(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return affine(grad * y, ctx.factor), None


class Log(torch.autograd.Function):
    """log(shift + scale x) to the base, whose gradient Caffe computes from the bottom."""

    @staticmethod
    def forward(x: Tensor, params: LogParams) -> Tensor:
        return affine(affine(x, params.scale, params.shift).log(), 1 / params.log_base)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, LogParams], output: Tensor) -> None:
        x, ctx.params = inputs
        ctx.save_for_backward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        p: LogParams = ctx.params
        return grad * (p.scale / p.log_base) / affine(x, p.scale, p.shift), None


class Power(torch.autograd.Function):
    """(shift + scale x)^power with Caffe's gradient."""

    @staticmethod
    def forward(x: Tensor, params: PowerParams) -> Tensor:
        p = params
        if p.power * p.scale == 0:
            constant = torch.tensor(p.shift, dtype=x.dtype).pow(p.power)
            return torch.full_like(x, float(constant))
        return affine(x, p.scale, p.shift).pow(p.power)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, PowerParams], output: Tensor) -> None:
        x, ctx.params = inputs
        ctx.save_for_backward(x, output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, y = ctx.saved_tensors
        p: PowerParams = ctx.params
        factor = p.power * p.scale
        if factor == 0:
            return torch.zeros_like(grad), None
        if p.power == 1:
            return grad * factor, None
        if p.power == 2:
            return grad * affine(x, factor * p.scale, factor * p.shift), None
        if p.shift == 0:
            return grad * (y / x).mul_(p.power), None
        return grad * (y / affine(x, p.scale, p.shift)).mul_(factor), None


class _Elementwise(Layer):
    rereads = True
    bottom_names = ("bottom",)
    infer = staticmethod(infer)
    parameters_sampled: tuple[Any, ...] = ()

    @classmethod
    def samples(cls, size: str, rng: np.random.Generator) -> list[Sample]:
        shape = {"small": (2, 3, 4), "paper": (2, 64, 64, 208)}.get(size, (2, 64, 128, 416))
        x = distinct(rng, shape)
        chosen = cls.parameters_sampled if size == "small" else cls.parameters_sampled[:1]
        return [Sample(params, (x,)) for params in chosen]


@register("Exp")
class ExpLayer(_Elementwise):
    """See the module's text."""

    Params = ExpParams
    parameters_sampled = (ExpParams(), ExpParams(2.0, -1.5, 0.7), ExpParams(scale=0.3, shift=-1.0))

    def forward(self, bottom: Tensor) -> Tensor:
        top: Tensor = Exp.apply(bottom, self.params)
        return top


@register("Log")
class LogLayer(_Elementwise):
    """See the module's text."""

    Params = LogParams
    parameters_sampled = (LogParams(shift=1.5), LogParams(10.0, -1.5, 2.0), LogParams(0.3, shift=1.2))

    def forward(self, bottom: Tensor) -> Tensor:
        top: Tensor = Log.apply(bottom, self.params)
        return top


@register("Power")
class PowerLayer(_Elementwise):
    """See the module's text."""

    Params = PowerParams
    parameters_sampled = (
        PowerParams(0.75, 0.5, 1.5),
        PowerParams(1.0, -2.0, 0.5),
        PowerParams(2.0, 0.5, 1.0),
        PowerParams(3.0, -0.7),
        PowerParams(-1.5, 0.4, 1.1),
        PowerParams(0.0, 2.0, 3.0),
        PowerParams(2.5, 0.0, 1.7),
    )

    @classmethod
    def samples(cls, size: str, rng: np.random.Generator) -> list[Sample]:
        """A constant's gradient is zero: no check of it could fail."""
        found = super().samples(size, rng)
        return [replace(s, check_gradient=bool(s.params.power * s.params.scale)) for s in found]

    def forward(self, bottom: Tensor) -> Tensor:
        top: Tensor = Power.apply(bottom, self.params)
        return top
