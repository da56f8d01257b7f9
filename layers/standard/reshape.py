"""Reshape and Flatten: the same elements under other axes.

Reshape replaces ``num_axes`` axes of the bottom, from ``axis`` on (-1: all of them), by those of
``shape``. There a 0 is the length of the bottom's axis at that position, and one -1 whatever is left
over. A negative ``axis`` counts from the end, so that -1 appends. Flatten makes one axis of those
from ``axis`` to ``end_axis``.

The top shares its memory with the bottom where that is contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from torch import Tensor

from .._engine.checks import BlobError, Shape, canonical_axis
from .._engine.declared import Bottom, Trait
from .._engine.layer import Layer
from .._engine.params import param
from .._engine.registry import register
from .._engine.samples import Sample, normal


@dataclass(frozen=True)
class NewAxes:
    """A ``shape`` block."""

    dim: tuple[int, ...] = param((), low=-1, doc="0: as the bottom's; one -1: what is left over")


@dataclass(frozen=True)
class ReshapeParams:
    """``reshape_param``."""

    shape: NewAxes = param(NewAxes(), doc="the new axes")
    axis: int = param(0, doc="the first axis replaced; -1 appends")
    num_axes: int = param(-1, low=-1, doc="how many axes are replaced; -1: all from axis on")

    def __post_init__(self) -> None:
        if self.shape.dim.count(-1) > 1:
            raise ValueError(f"shape has more than one -1: {list(self.shape.dim)}")


@dataclass(frozen=True)
class FlattenParams:
    """``flatten_param``."""

    axis: int = param(1, doc="the first axis; negative counts from the last")
    end_axis: int = param(-1, doc="the last axis; negative counts from the last")


def infer_reshape(params: ReshapeParams, bottom: Shape) -> tuple[Shape, ...]:
    """The top's shape; raises BlobError where the axes or the number of elements don't fit."""
    axes = len(bottom)
    start = params.axis if params.axis >= 0 else axes + params.axis + 1
    end = axes if params.num_axes == -1 else start + params.num_axes
    if not 0 <= start <= axes:
        raise BlobError(f"{{bottom}} has no axis {params.axis} to replace", bottom=bottom)
    if end > axes:
        raise BlobError(f"{{bottom}} has no {params.num_axes} axes from {start} on", bottom=bottom)
    dims = params.shape.dim
    copied = [start + i for i, length in enumerate(dims) if length == 0]
    if copied and copied[-1] >= axes:
        raise BlobError(f"{{bottom}} has no axis {copied[-1]} to copy (a 0 of shape)", bottom=bottom)
    new = [length or bottom[start + i] for i, length in enumerate(dims)]
    top = (*bottom[:start], *new, *bottom[end:])
    if -1 in new:  # axes of length 0, as of an empty batch, don't count
        total, others = (prod(n for n in shape if n > 0) for shape in (bottom, top))
        if total % others == 0:
            top = tuple(total // others if n == -1 else n for n in top)
    if -1 in top or prod(top) != prod(bottom):
        text = f"{{bottom}} has {prod(bottom)} elements, which do not fit shape {list(dims)}"
        raise BlobError(f"{text} from axis {start} on", bottom=bottom)
    return (top,)


def infer_flatten(params: FlattenParams, bottom: Shape) -> tuple[Shape, ...]:
    """The top's shape; raises BlobError if the bottom has no such axes."""
    start = canonical_axis(params.axis, bottom=bottom)
    end = canonical_axis(params.end_axis, bottom=bottom) + 1
    if end < start:
        raise BlobError(f"axis {start} of {{bottom}} is behind end_axis {end - 1}", bottom=bottom)
    return ((*bottom[:start], prod(bottom[start:end]), *bottom[end:]),)


@register("Reshape")
class Reshape(Layer):
    """See the module's text."""

    Params = ReshapeParams
    BOTTOMS = (Bottom("bottom"),)
    TRAITS = (Trait.NOT_IN_PLACE, Trait.SHARES_MEMORY)
    infer = staticmethod(infer_reshape)

    def forward(self, bottom: Tensor) -> Tensor:
        return _as(bottom, infer_reshape(self.params, tuple(bottom.shape))[0])

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        if size != "small":  # AlexNet's conv5 to its fc6
            items = 64 if size == "paper" else 256
            return [Sample(ReshapeParams(NewAxes((0, -1))), (normal(rng, (items, 256, 6, 6)),))]
        x = normal(rng, (2, 3, 4, 5))
        return [
            Sample(ReshapeParams(NewAxes((0, -1))), (x,)),
            Sample(ReshapeParams(NewAxes((-1, 2)), 1, 2), (x,), name="axes 1 and 2"),
            Sample(ReshapeParams(NewAxes((1,)), -1, 0), (x,), name="one more axis"),
        ]


@register("Flatten")
class Flatten(Layer):
    """See the module's text."""

    Params = FlattenParams
    BOTTOMS = (Bottom("bottom"),)
    TRAITS = (Trait.NOT_IN_PLACE, Trait.SHARES_MEMORY)
    infer = staticmethod(infer_flatten)

    def forward(self, bottom: Tensor) -> Tensor:
        return _as(bottom, infer_flatten(self.params, tuple(bottom.shape))[0])

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        if size != "small":
            items = 64 if size == "paper" else 256
            return [Sample(FlattenParams(), (normal(rng, (items, 256, 6, 6)),))]
        x = normal(rng, (2, 3, 4, 5))
        return [Sample(FlattenParams(), (x,)), Sample(FlattenParams(-3, 2), (x,), name="inner axes")]


def _as(bottom: Tensor, shape: Shape) -> Tensor:
    """The bottom under another shape: always another tensor, so that each has its own gradient."""
    return bottom.reshape(shape) if shape != tuple(bottom.shape) else bottom.view_as(bottom)
