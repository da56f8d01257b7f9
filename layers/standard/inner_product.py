"""InnerProduct: a fully connected layer.

Bottom of any shape; the axes from ``axis`` on are flattened to K elements. Top: the axes before
``axis``, then ``num_output``. Blobs: weight [num_output, K] ([K, num_output] with ``transpose``),
bias [num_output].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .._engine.checks import BlobError, Shape, canonical_axis
from .._engine.declared import Bottom, Trait
from .._engine.fillers import FillerParams, FillerType, parameter
from .._engine.layer import Layer
from .._engine.params import param
from .._engine.registry import register
from .._engine.samples import Sample, normal


@dataclass(frozen=True)
class Params:
    """``inner_product_param``."""

    num_output: int = param(low=1, doc="length of the top's vectors")
    bias_term: bool = param(True, doc="whether a bias is added")
    weight_filler: FillerParams = param(FillerParams(), doc="of the weights")
    bias_filler: FillerParams = param(FillerParams(), doc="of the biases")
    axis: int = param(1, doc="the first axis that is flattened; negative counts from the last")
    transpose: bool = param(False, doc="the weight is stored transposed")


def infer(params: Params, bottom: Shape) -> tuple[Shape, ...]:
    """The top's shape; raises BlobError if the bottom has no such axis."""
    axis = canonical_axis(params.axis, bottom=bottom)
    return ((*bottom[:axis], params.num_output),)


@register("InnerProduct")
class InnerProduct(Layer):
    """See the module's text."""

    Params = Params
    BOTTOMS = (Bottom("bottom"),)
    TRAITS = (Trait.NO_CELLS,)
    infer = staticmethod(infer)

    def __init__(
        self,
        params: Any,
        bottom_shapes: tuple[Shape, ...],
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(params, bottom_shapes, generator)
        (bottom,) = bottom_shapes
        inputs = prod(bottom[canonical_axis(params.axis, bottom=bottom) :])
        shape = (inputs, params.num_output) if params.transpose else (params.num_output, inputs)
        self.blob_names = ("weight", "bias") if params.bias_term else ("weight",)
        self.weight = parameter(shape, params.weight_filler, generator)
        self.bias = (
            parameter((params.num_output,), params.bias_filler, generator) if params.bias_term else None
        )

    @classmethod
    def multiply_adds(
        cls, params: Any, bottoms: Sequence[Shape], tops: Sequence[Shape], blobs: Sequence[Shape]
    ) -> int | None:
        return prod(tops[0][:-1]) * prod(blobs[0])

    def forward(self, bottom: Tensor) -> Tensor:
        weight = self.weight.t() if self.params.transpose else self.weight
        axis = canonical_axis(self.params.axis, bottom=bottom.shape)
        flat = bottom.flatten(axis)
        if flat.shape[-1] != weight.shape[1]:
            raise BlobError(
                f"{{bottom}} gives {flat.shape[-1]} inputs, the weight takes {weight.shape[1]}",
                bottom=bottom.shape,
            )
        return F.linear(flat, weight, self.bias)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        filler = FillerParams(type=FillerType.xavier)
        if size != "small":  # AlexNet's fc7, and fc6
            inputs = 4096 if size == "paper" else 9216
            params = Params(4096, weight_filler=filler, bias_filler=filler)
            return [Sample(params, (normal(rng, (64, inputs)),))]
        return [
            Sample(Params(5, weight_filler=filler, bias_filler=filler), (normal(rng, (3, 2, 4)),)),
            Sample(Params(4, False, filler, axis=2, transpose=True), (normal(rng, (2, 3, 5)),)),
        ]
