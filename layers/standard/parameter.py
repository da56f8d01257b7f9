"""Parameter: a learned blob as a top, filled with 0 until weights are loaded. No bottoms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._engine.checks import Shape
from .._engine.declared import Trait
from .._engine.layer import Layer
from .._engine.params import BlobShape, param
from .._engine.registry import register
from .._engine.samples import Sample


@dataclass(frozen=True)
class Params:
    """``parameter_param``."""

    shape: BlobShape = param(BlobShape(), doc="of the blob")


def infer(params: Params) -> tuple[Shape, ...]:
    """The shape given."""
    return (params.shape.dim,)


@register("Parameter", bottoms=0)
class Parameter(Layer):
    """See the module's text."""

    Params = Params
    TRAITS = (Trait.SHARES_MEMORY,)
    infer = staticmethod(infer)

    def __init__(
        self,
        params: Any,
        bottom_shapes: tuple[Shape, ...] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(params, bottom_shapes, generator)
        self.blob_names = ("value",)
        self.value = nn.Parameter(torch.zeros(params.shape.dim))

    def forward(self) -> Tensor:
        return self.value.view_as(self.value)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        return [Sample(Params(BlobShape((2, 3))), (), ())]
