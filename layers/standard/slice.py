"""Slice: parts of the bottom along one axis, one for each top.

Without ``slice_point`` the parts are of equal length; else each point is where the next part begins.
The tops are views of the bottom.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor

from .._engine.checks import BlobError, Shape, canonical_axis
from .._engine.declared import Bottom, Trait
from .._engine.layer import Layer
from .._engine.params import param
from .._engine.registry import register
from .._engine.samples import Sample, normal


@dataclass(frozen=True)
class Params:
    """``slice_param``."""

    axis: int | None = param(None, doc="default 1; negative counts from the last")
    slice_point: tuple[int, ...] = param((), low=1, doc="where each part but the first begins")
    slice_dim: int | None = param(None, low=0, doc="the old name of axis")

    def __post_init__(self) -> None:
        if self.axis is not None and self.slice_dim is not None:
            raise ValueError("give axis or slice_dim, not both")
        if any(a >= b for a, b in pairwise(self.slice_point)):
            raise ValueError(f"the values of slice_point must increase: {list(self.slice_point)}")

    @property
    def along(self) -> int:
        given = self.axis if self.slice_dim is None else self.slice_dim
        return 1 if given is None else given


def lengths(params: Params, parts: int, bottom: Shape) -> tuple[int, list[int]]:
    """The axis, and the parts' lengths along it; raises BlobError where they don't fit."""
    axis = canonical_axis(params.along, bottom=bottom)
    length, points = bottom[axis], params.slice_point
    if not points:
        if length % parts:
            raise BlobError(f"axis {axis} of {{bottom}} has no {parts} equal parts", bottom=bottom)
        return axis, [length // parts] * parts
    if len(points) != parts - 1:
        raise BlobError(f"{len(points)} values of slice_point for {parts} tops")
    if parts > length or points[-1] > length:
        text = f"axis {axis} of {{bottom}} is too short for slice_point {list(points)}"
        raise BlobError(text, bottom=bottom)
    return axis, [b - a for a, b in pairwise((0, *points, length))]


@register("Slice", tops=(1, None))
class Slice(Layer):
    """See the module's text."""

    Params = Params
    BOTTOMS = (Bottom("bottom"),)
    TRAITS = (Trait.SHARES_MEMORY,)

    @property
    def parts(self) -> int:
        return len(self.tops) or len(self.params.slice_point) + 1

    def infer(self, params: Any, bottom: Shape) -> tuple[Shape, ...]:
        """The tops' shapes; raises BlobError as :func:`lengths` does."""
        axis, parts = lengths(params, self.parts, bottom)
        return tuple((*bottom[:axis], part, *bottom[axis + 1 :]) for part in parts)

    def forward(self, bottom: Tensor) -> tuple[Tensor, ...]:
        axis, parts = lengths(self.params, self.parts, tuple(bottom.shape))
        return bottom.split(parts, axis)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        if size != "small":  # AlexNet's two groups
            items = 8 if size == "paper" else 64
            return [Sample(Params(slice_point=(48,)), (normal(rng, (items, 96, 27, 27)),), tops=(0, 1))]
        return [
            Sample(Params(slice_point=(1, 3)), (normal(rng, (2, 6, 3)),), tops=(0, 1, 2)),
            Sample(Params(axis=-1, slice_point=(2,)), (normal(rng, (2, 3, 4)),), tops=(0, 1)),
        ]
