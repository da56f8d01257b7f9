"""Softmax: exp(x) / sum of exp(x) along an axis, after the maximum is subtracted.

Bottom and top of any shape, the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .._engine.checks import Shape, canonical_axis
from .._engine.declared import Bottom, Trait
from .._engine.layer import Layer
from .._engine.params import Engine, param
from .._engine.registry import register
from .._engine.samples import Sample, normal


@dataclass(frozen=True)
class Params:
    """``softmax_param``."""

    engine: Engine = param(Engine.DEFAULT, doc="accepted, has no effect")
    axis: int = param(1, doc="negative counts from the last")


def infer(params: Params, bottom: Shape) -> tuple[Shape, ...]:
    """The top's shape is the bottom's; raises BlobError if that has no such axis."""
    canonical_axis(params.axis, bottom=bottom)
    return (bottom,)


@register("Softmax")
class Softmax(Layer):
    """See the module's text."""

    Params = Params
    BOTTOMS = (Bottom("bottom"),)
    TRAITS = (Trait.REREADS,)
    infer = staticmethod(infer)

    def forward(self, bottom: Tensor) -> Tensor:
        self.check(bottom)
        return bottom.softmax(self.params.axis)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        shape = {"small": (2, 4, 3), "paper": (64, 1000)}.get(size, (8, 21, 128, 416))
        return [Sample(Params(), (normal(rng, shape),))]
