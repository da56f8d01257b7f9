"""Input: blobs that the caller gives.

No bottoms. Tops: one of each ``shape``; a single ``shape`` is that of every top, and without any
a top is a scalar until it is given.

A ``transform_param`` beside it says what an image goes through before it is given, to whoever reads
images for the net; the layer itself changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .._data.transform import TransformParams
from .._engine.checks import Shape
from .._engine.declared import Trait
from .._engine.layer import Layer
from .._engine.params import BlobShape, param
from .._engine.registry import register
from .._engine.samples import Sample


@dataclass(frozen=True)
class Params:
    """``input_param``, and the ``transform_param`` beside it."""

    shape: tuple[BlobShape, ...] = param((), doc="of each top, or of all")
    transform_param: TransformParams = param(
        factory=TransformParams, doc="how images are made of what is read"
    )


def infer(params: Params) -> tuple[Shape, ...]:
    """The tops' shapes, as many as the spec declares (one for all of several tops)."""
    return tuple(shape.dim for shape in params.shape) or ((),)


@register("Input", bottoms=0, tops=(1, None))
class Input(Layer):
    """See the module's text."""

    Params = Params
    TRAITS = (Trait.INPUT,)
    infer = staticmethod(infer)

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        return given

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        return [Sample(Params((BlobShape((2, 3)),)), (), ())]
