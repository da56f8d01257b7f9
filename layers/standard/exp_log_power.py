"""Exp, Log, Power: of a scaled and shifted element.

    Exp      base^(shift + scale x)
    Log      log(shift + scale x) to the base
    Power    (shift + scale x)^power

Bottom and top of any shape, the same. A base of -1 is e. The gradient of Power is computed as Caffe
does, scale power top / (shift + scale x): NaN where that is 0/0. It is exact for powers 0, 1 and 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._engine.checks import Shape
from .._engine.declared import Bottom, Top, Trait
from .._engine.definition import Definition, Spec
from .._engine.function import constant
from .._engine.layer import Layer
from .._engine.params import param
from .._engine.registry import register
from .._engine.samples import Sample, distinct


@dataclass(frozen=True)
class ExpParams:
    """``exp_param``."""

    base: float = param(-1.0, doc="above 0, or -1 for e")
    scale: float = param(1.0, doc="of the bottom")
    shift: float = param(0.0, doc="added to it")

    def __post_init__(self) -> None:
        if not (self.base > 0 or self.base == -1) or math.isinf(self.base):
            raise ValueError(f"base must be above 0, or -1 for e, got {self.base:g}")

    @property
    def log_base(self) -> float:
        return 1.0 if self.base == -1 else math.log(self.base)


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

    power: float = param(1.0, doc="the exponent")
    scale: float = param(1.0, doc="of the bottom")
    shift: float = param(0.0, doc="added to it")


BOTTOMS = (Bottom("bottom"),)
TOPS = (Top("top"),)


def infer(params: object, bottom: Shape) -> tuple[Shape]:
    """The top's shape is the bottom's."""
    return (bottom,)


def meta(params: object, bottom: Tensor) -> Sequence[Spec]:
    return ((bottom.shape, bottom.dtype),)


def affine(x: Tensor, scale: float, shift: float = 0.0) -> Tensor:
    """shift + scale x, without the operations that change nothing."""
    x = x * scale if scale != 1 else x
    return x + shift if shift else x


@cache
def _exp(exponent: float) -> float:
    """Infinite where math's raises."""
    return float(torch.tensor(exponent, dtype=torch.float64).exp())


@constant
def outer_scale(params: ExpParams) -> float:
    """base^shift."""
    return _exp(params.log_base * params.shift)


def exp_forward(params: ExpParams, bottom: Tensor) -> tuple[Tensor]:
    return (affine(affine(bottom, params.log_base * params.scale).exp(), outer_scale(params)),)


def exp_backward(params: ExpParams, top_gradient: Tensor, top: Tensor) -> Tensor:
    """From the top, as Caffe computes it."""
    return affine(top_gradient * top, params.log_base * params.scale)


def log_forward(params: LogParams, bottom: Tensor) -> tuple[Tensor]:
    return (affine(affine(bottom, params.scale, params.shift).log(), 1 / params.log_base),)


def log_backward(params: LogParams, top_gradient: Tensor, bottom: Tensor) -> Tensor:
    """From the bottom, as Caffe computes it."""
    factor = params.scale / params.log_base
    return top_gradient * factor / affine(bottom, params.scale, params.shift)


def power_forward(params: PowerParams, bottom: Tensor) -> tuple[Tensor]:
    p = params
    if p.power * p.scale == 0:
        constant = torch.full((), p.shift, dtype=bottom.dtype).pow(p.power)
        return (torch.empty_like(bottom).fill_(constant),)
    return (affine(bottom, p.scale, p.shift).pow(p.power),)


def power_backward(params: PowerParams, top_gradient: Tensor, bottom: Tensor, top: Tensor) -> Tensor:
    p = params
    factor = p.power * p.scale
    if factor == 0:
        return torch.zeros_like(top_gradient)
    if p.power == 1:
        return top_gradient * factor
    if p.power == 2:
        return top_gradient * affine(bottom, factor * p.scale, factor * p.shift)
    if p.shift == 0:
        return top_gradient * (top / bottom).mul_(p.power)
    return top_gradient * (top / affine(bottom, p.scale, p.shift)).mul_(factor)


exp = Definition(
    "exp",
    ExpParams,
    BOTTOMS,
    TOPS,
    infer=infer,
    meta=meta,
    forward=exp_forward,
    backward=exp_backward,
    traced=True,
    keeps_half=True,
)
log = Definition(
    "log",
    LogParams,
    BOTTOMS,
    TOPS,
    infer=infer,
    meta=meta,
    forward=log_forward,
    backward=log_backward,
    traced=True,
    keeps_half=True,
)
power = Definition(
    "power",
    PowerParams,
    BOTTOMS,
    TOPS,
    infer=infer,
    meta=meta,
    forward=power_forward,
    backward=power_backward,
    traced=True,
    keeps_half=True,
)


class _Elementwise(Layer):
    TRAITS = (Trait.REREADS,)
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

    definition = exp
    parameters_sampled = (ExpParams(), ExpParams(2.0, -1.5, 0.7), ExpParams(scale=0.3, shift=-1.0))


@register("Log")
class LogLayer(_Elementwise):
    """See the module's text."""

    definition = log
    parameters_sampled = (LogParams(shift=1.5), LogParams(10.0, -1.5, 2.0), LogParams(0.3, shift=1.2))


@register("Power")
class PowerLayer(_Elementwise):
    """See the module's text."""

    definition = power
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
