"""Reduction: all axes from ``axis`` on become one number, times ``coeff``.

    SUM  sum of x      ASUM  sum of |x|      SUMSQ  sum of x^2      MEAN  mean of x

The top has the axes before ``axis`` (none: shape []). The gradient of ASUM at 0 is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from torch import Tensor

from .._engine.checks import Shape, canonical_axis
from .._engine.declared import Bottom
from .._engine.layer import Layer
from .._engine.params import param
from .._engine.registry import register
from .._engine.samples import Sample, distinct


class ReductionOp(Enum):
    """What is computed of the elements."""

    SUM = 1
    ASUM = 2
    SUMSQ = 3
    MEAN = 4


@dataclass(frozen=True)
class Params:
    """``reduction_param``."""

    operation: ReductionOp = param(ReductionOp.SUM, doc="what is made of the elements")
    axis: int = param(0, doc="the first axis reduced; negative counts from the last")
    coeff: float = param(1.0, doc="factor of the result")


def infer(params: Params, bottom: Shape) -> tuple[Shape, ...]:
    """The top's shape; raises BlobError if the bottom has no such axis."""
    return (bottom[: canonical_axis(params.axis, bottom=bottom)],)


@register("Reduction")
class Reduction(Layer):
    """See the module's text."""

    Params = Params
    BOTTOMS = (Bottom("bottom"),)
    infer = staticmethod(infer)

    def forward(self, bottom: Tensor) -> Tensor:
        p: Params = self.params
        x = bottom.flatten(canonical_axis(p.axis, bottom=bottom.shape))
        if p.operation is ReductionOp.ASUM:
            x = x.abs()
        elif p.operation is ReductionOp.SUMSQ:
            x = x.square()
        top = x.mean(-1) if p.operation is ReductionOp.MEAN else x.sum(-1)
        return top * p.coeff if p.coeff != 1 else top

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        if size != "small":
            items = 64 if size == "paper" else 256
            return [Sample(Params(ReductionOp.SUMSQ, 1), (distinct(rng, (items, 4096)),))]
        x = distinct(rng, (2, 3, 4)) + 0.25
        return [
            Sample(Params(operation, axis, coeff), (x,), name=operation.name)
            for operation in ReductionOp
            for axis, coeff in ((0, 1.0), (-2, -2.5))
        ]
