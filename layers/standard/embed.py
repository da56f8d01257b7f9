"""Embed: for each index a row of a table, plus a bias.

Bottom: indices of any shape, integers or floats truncated towards zero, from 0 to ``input_dim`` - 1;
they get no gradient. Top: that shape and a last axis of ``num_output``. Blobs: weight
[input_dim, num_output], bias [num_output]. Source: Caffe's behaviour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .._engine.checks import Shape, raise_if
from .._engine.declared import Bottom, Trait
from .._engine.fillers import FillerParams, FillerType, parameter
from .._engine.layer import Layer
from .._engine.params import param
from .._engine.registry import register
from .._engine.samples import Sample


@dataclass(frozen=True)
class Params:
    """``embed_param``."""

    num_output: int = param(low=1, doc="length of a vector")
    input_dim: int = param(low=1, doc="number of rows")
    bias_term: bool = param(True, doc="whether a bias is added")
    weight_filler: FillerParams = param(FillerParams(), doc="of the weights")
    bias_filler: FillerParams = param(FillerParams(), doc="of the biases")


def infer(params: Params, index: Shape) -> tuple[Shape, ...]:
    """The top's shape."""
    return ((*index, params.num_output),)


@register("Embed")
class Embed(Layer):
    """See the module's text."""

    Params = Params
    BOTTOMS = (Bottom("index", refused=True),)
    TRAITS = (Trait.NO_CELLS,)
    infer = staticmethod(infer)

    def __init__(
        self,
        params: Any,
        bottom_shapes: tuple[Shape, ...] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(params, bottom_shapes, generator)
        shape = (params.input_dim, params.num_output)
        self.blob_names = ("weight", "bias") if params.bias_term else ("weight",)
        self.weight = parameter(shape, params.weight_filler, generator)
        self.bias = parameter(shape[1:], params.bias_filler, generator) if params.bias_term else None

    def forward(self, index: Tensor) -> Tensor:
        rows = index.long()
        known = (rows >= 0) & (rows < self.params.input_dim)
        limit = self.params.input_dim - 1
        raise_if((~known).any().reshape(1), f"expected indices from 0 to {limit}")
        top = F.embedding(rows.where(known, 0), self.weight)
        return top if self.bias is None else top + self.bias

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        rows, width, shape = {
            "small": (7, 3, (4, 2)),
            "paper": (8801, 1000, (20, 16)),  # an image captioner's words
        }.get(size, (50000, 1024, (64, 64)))
        filler = FillerParams(type=FillerType.xavier)
        index = torch.from_numpy(rng.integers(0, rows, shape))
        every = (Params(width, rows, bias, filler, filler) for bias in (True, False))
        return [Sample(params, (index,), differentiable=()) for params in every]
