"""Tile: the bottom ``tiles`` times in a row along one axis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .._engine.checks import Shape, canonical_axis
from .._engine.declared import Bottom
from .._engine.layer import Layer
from .._engine.params import param
from .._engine.registry import register
from .._engine.samples import Sample, normal


@dataclass(frozen=True)
class Params:
    """``tile_param``."""

    tiles: int = param(low=1, doc="how many times")
    axis: int = param(1, doc="negative counts from the last")


def infer(params: Params, bottom: Shape) -> tuple[Shape, ...]:
    """The top's shape; raises BlobError if the bottom has no such axis."""
    axis = canonical_axis(params.axis, bottom=bottom)
    return ((*bottom[:axis], params.tiles * bottom[axis], *bottom[axis + 1 :]),)


@register("Tile")
class Tile(Layer):
    """See the module's text."""

    Params = Params
    BOTTOMS = (Bottom("bottom"),)
    infer = staticmethod(infer)

    def forward(self, bottom: Tensor) -> Tensor:
        axis = canonical_axis(self.params.axis, bottom=bottom.shape)
        times = [1] * bottom.dim()
        times[axis] = self.params.tiles
        return bottom.repeat(times)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        if size != "small":
            side = 32 if size == "paper" else 64
            return [Sample(Params(tiles=4), (normal(rng, (2, 16, side, side)),))]
        x = normal(rng, (2, 3, 4))
        return [Sample(Params(tiles=3), (x,)), Sample(Params(2, -1), (x,), name="last axis")]
