"""Split: the bottom as each of several tops, which share its memory; their gradients add up."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from .._engine.checks import Shape
from .._engine.declared import Bottom, Trait
from .._engine.layer import Layer
from .._engine.params import NoParams
from .._engine.registry import register
from .._engine.samples import Sample


@register("Split", tops=(1, None))
class Split(Layer):
    """See the module's text."""

    BOTTOMS = (Bottom("bottom"),)
    TRAITS = (Trait.NOT_IN_PLACE, Trait.SHARES_MEMORY)

    def infer(self, params: NoParams, bottom: Shape) -> tuple[Shape, ...]:
        """The bottom's shape for each top."""
        return (bottom,) * len(self.tops)

    def forward(self, bottom: Tensor) -> tuple[Tensor, ...]:
        return tuple(bottom.view_as(bottom) for _ in self.tops)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        return []
