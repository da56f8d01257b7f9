"""Scale and Bias: products and sums with a smaller blob, the same along the axes it does not have.

The smaller blob stands at ``axis`` of the first bottom, with which it shares its lengths there: of
shape [C, H] at axis 1 of [N, C, H, W], or a scalar [] anywhere. It is the second bottom, or, without
one, a learned blob over ``num_axes`` axes (-1: all from ``axis`` on). The top has the first bottom's
shape.

Blobs: Scale the scale unless it is a bottom (filled with 1), then with ``bias_term`` a bias of the
same shape; Bias the bias unless it is a bottom (filled with 0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._engine.checks import BlobError, Shape, canonical_axis
from .._engine.declared import Bottom
from .._engine.fillers import FillerParams, FillerType, parameter
from .._engine.layer import Layer
from .._engine.params import param
from .._engine.registry import register
from .._engine.samples import Sample, normal


@dataclass(frozen=True)
class BiasParams:
    """``bias_param``."""

    axis: int = param(1, doc="where the blob stands; negative counts from the last")
    num_axes: int = param(1, doc="axes of a learned blob; -1: all from axis on")
    filler: FillerParams = param(FillerParams(), doc="default: constant 0")


@dataclass(frozen=True)
class ScaleParams:
    """``scale_param``."""

    axis: int = param(1, doc="where the blob stands; negative counts from the last")
    num_axes: int = param(1, doc="axes of a learned blob; -1: all from axis on")
    filler: FillerParams = param(FillerParams(value=1.0), doc="default: constant 1")
    bias_term: bool = param(False, doc="add a learned bias")
    bias_filler: FillerParams = param(FillerParams(), doc="of the biases")


def blob_shape(params: BiasParams | ScaleParams, *bottoms: Shape) -> Shape:
    """The smaller blob's shape: the second bottom's, or the learned one's.

    Raises BlobError where it does not fit the first bottom.
    """
    bottom = bottoms[0]
    if len(bottoms) > 1:
        _place(params.axis, bottom, blob=bottoms[1])
        return bottoms[1]
    axis = canonical_axis(params.axis, bottom=bottom)
    if params.num_axes == -1:
        return bottom[axis:]
    if params.num_axes < -1:
        raise BlobError(f"num_axes must be at least 0, or -1 for all, got {params.num_axes}")
    if axis + params.num_axes > len(bottom):
        raise BlobError(f"{{bottom}} has no {params.num_axes} axes from {axis} on", bottom=bottom)
    return bottom[axis : axis + params.num_axes]


def _place(axis: int, bottom: Shape, **other: Shape) -> int:
    """The axis of ``bottom`` where the blob stands; the one of ``other`` is checked to fit there."""
    ((name, blob),) = other.items()
    axis = canonical_axis(axis, bottom=bottom) if blob else 0
    if bottom[axis : axis + len(blob)] != blob:
        raise BlobError(
            f"{{bottom}} does not have the shape of {{{name}}} from axis {axis} on",
            bottom=bottom,
            **other,
        )
    return axis


def infer(params: BiasParams | ScaleParams, bottom: Shape, *blob: Shape) -> tuple[Shape, ...]:
    """The top's shape is the first bottom's; raises BlobError where the smaller blob does not fit."""
    blob_shape(params, bottom, *blob)
    return (bottom,)


class _Broadcasting(Layer):
    BOTTOMS = (Bottom("bottom"), Bottom("blob"))
    infer = staticmethod(infer)

    def beside(self, blob: Tensor, bottom: Tensor, name: str) -> Tensor:
        """The smaller blob with as many trailing axes of length 1 as it needs to broadcast."""
        axis = _place(self.params.axis, tuple(bottom.shape), **{name: tuple(blob.shape)})
        if not blob.dim():
            return blob
        return blob.reshape(blob.shape + (1,) * (bottom.dim() - axis - blob.dim()))

    @classmethod
    def samples(cls, size: str, rng: np.random.Generator) -> list[Sample]:
        shape = {"small": (2, 3, 4, 5), "paper": (2, 64, 64, 208)}.get(size, (2, 64, 128, 416))
        x = normal(rng, shape)
        filler = FillerParams(FillerType.uniform, min=0.5)
        if size != "small":
            return [Sample(cls.Params(filler=filler), (x,), name="channels")]
        return [
            Sample(cls.Params(filler=filler), (x,), name="channels"),
            Sample(cls.Params(-2, -1, filler), (x,), name="last axes"),
            Sample(cls.Params(3, 0, filler), (x,), name="scalar"),
            Sample(cls.Params(2), (x, normal(rng, shape[2:])), (0, 1), name="two bottoms"),
            Sample(cls.Params(5), (x, normal(rng, ())), (0, 1), name="scalar bottom"),
        ]


@register("Bias", bottoms=(1, 2))
class Bias(_Broadcasting):
    """See the module's text."""

    Params = BiasParams

    def __init__(
        self,
        params: Any,
        bottom_shapes: tuple[Shape, ...],
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(params, bottom_shapes, generator)
        shape = blob_shape(params, *bottom_shapes)
        if len(bottom_shapes) == 1:
            self.blob_names = ("bias",)
            self.bias = parameter(shape, params.filler, generator)

    def forward(self, bottom: Tensor, blob: Tensor | None = None) -> Tensor:
        bias = self.bias if blob is None else blob
        return bottom + self.beside(bias, bottom, "bias" if blob is None else "blob")


@register("Scale", bottoms=(1, 2))
class Scale(_Broadcasting):
    """See the module's text."""

    Params = ScaleParams

    def __init__(
        self,
        params: Any,
        bottom_shapes: tuple[Shape, ...],
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(params, bottom_shapes, generator)
        shape = blob_shape(params, *bottom_shapes)
        if len(bottom_shapes) == 1:
            self.blob_names = ("scale",)
            self.scale = parameter(shape, params.filler, generator)
        if params.bias_term:
            self.blob_names += ("bias",)
            self.bias = parameter(shape, params.bias_filler, generator)

    def forward(self, bottom: Tensor, blob: Tensor | None = None) -> Tensor:
        factor = self.scale if blob is None else blob
        scale = self.beside(factor, bottom, "scale" if blob is None else "blob")
        if not self.params.bias_term:
            return bottom * scale
        return torch.addcmul(self.beside(self.bias, bottom, "bias"), bottom, scale)

    @classmethod
    def samples(cls, size: str, rng: np.random.Generator) -> list[Sample]:
        filler = FillerParams(FillerType.uniform, min=0.5)
        plain = super().samples(size, rng)
        params = ScaleParams(filler=filler, bias_term=True, bias_filler=filler)
        return [*plain, Sample(params, plain[0].bottoms, name="with bias")]
