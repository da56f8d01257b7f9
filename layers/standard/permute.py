"""Permute: the bottom's axes in another order (a layer of SSD's Caffe).

``order`` names the bottom's axes as the top has them; axes that it leaves out follow in their own
order. The top is a view of the bottom.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from .._engine.checks import BlobError, Shape
from .._engine.declared import Bottom
from .._engine.layer import Layer
from .._engine.params import param
from .._engine.reach import SAME, Reach
from .._engine.registry import register
from .._engine.samples import Sample, normal


@dataclass(frozen=True)
class Params:
    """``permute_param``."""

    order: tuple[int, ...] = param((), low=0, doc="the bottom's axes in the top's order")

    def __post_init__(self) -> None:
        if len(set(self.order)) < len(self.order):
            raise ValueError(f"order names an axis twice: {list(self.order)}")


def full_order(params: Params, bottom: Shape) -> list[int]:
    """The bottom's axis for each of the top's; raises BlobError for one it does not have."""
    if params.order and max(params.order) >= len(bottom):
        raise BlobError(f"{{bottom}} has no axis {max(params.order)}", bottom=bottom)
    return [*params.order, *(axis for axis in range(len(bottom)) if axis not in params.order)]


def infer(params: Params, bottom: Shape) -> tuple[Shape, ...]:
    """The top's shape; raises BlobError if the bottom lacks an axis."""
    return (tuple(bottom[axis] for axis in full_order(params, bottom)),)


@register("Permute")
class Permute(Layer):
    """See the module's text."""

    Params = Params
    BOTTOMS = (Bottom("bottom"),)
    infer = staticmethod(infer)

    @classmethod
    def reach(cls, params: Any, i: int, bottom: Shape, j: int, top: Shape) -> tuple[Reach, ...] | None:
        order = full_order(params, bottom)
        return (SAME,) * len(top[2:]) if order[2:] == list(range(2, len(bottom))) else None

    def forward(self, bottom: Tensor) -> Tensor:
        return bottom.permute(full_order(self.params, tuple(bottom.shape)))

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        if size != "small":  # SSD's conv4_3 locations
            items = 1 if size == "paper" else 8
            return [Sample(Params((0, 2, 3, 1)), (normal(rng, (items, 16, 38, 38)),))]
        x = normal(rng, (2, 3, 4, 5))
        return [Sample(Params((0, 2, 3, 1)), (x,)), Sample(Params((2,)), (x,), name="one first")]
