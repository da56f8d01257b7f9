"""Silence: takes any bottoms and gives no top, so that their blobs are not outputs of the net."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from .._engine.checks import Shape
from .._engine.layer import Layer
from .._engine.params import NoParams
from .._engine.registry import register
from .._engine.samples import Sample, normal


def infer(params: NoParams, *bottoms: Shape) -> tuple[Shape, ...]:
    """No tops."""
    return ()


@register("Silence", bottoms=(1, None), tops=0)
class Silence(Layer):
    """See the module's text."""

    infer = staticmethod(infer)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return ()

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        return [Sample(NoParams(), (normal(rng, (2, 3)),), differentiable=(), tops=())]
