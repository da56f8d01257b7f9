"""Normalize: x / sqrt(sum of x^2 + eps) times a learned scale (a layer of SSD's Caffe; Liu et al.
2016, Section 3.1, after ParseNet).

Bottom [N, C, ...], top of the same shape. The sum is over an item's channels and locations, or only
over the channels at a location (``across_spatial: false``). Blob: the scale of each channel [C], or
one of shape [] with ``channel_shared``. Half precision is summed in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._engine.checks import BlobError, Shape
from .._engine.declared import Bottom
from .._engine.fillers import FillerParams, FillerType, parameter
from .._engine.layer import Layer
from .._engine.params import param
from .._engine.registry import register
from .._engine.samples import Sample, normal


@dataclass(frozen=True)
class Params:
    """``norm_param``."""

    across_spatial: bool = param(True, doc="one norm for an item; false: one for each location")
    scale_filler: FillerParams = param(FillerParams(value=1.0), doc="default: constant 1")
    channel_shared: bool = param(True, doc="one scale for all channels")
    eps: float = param(1e-10, doc="added to the sum of squares")


def infer(params: Params, bottom: Shape) -> tuple[Shape, ...]:
    """The top's shape is the bottom's; raises BlobError unless that has channels."""
    if len(bottom) < 2:
        raise BlobError("expected {bottom} to be [N, C, ...]", bottom=bottom)
    return (bottom,)


@register("Normalize", block="norm_param")
class Normalize(Layer):
    """See the module's text."""

    Params = Params
    BOTTOMS = (Bottom("bottom"),)
    infer = staticmethod(infer)

    def __init__(
        self,
        params: Any,
        bottom_shapes: tuple[Shape, ...],
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(params, bottom_shapes, generator)
        (bottom,) = bottom_shapes
        infer(params, bottom)
        shape = () if params.channel_shared else (bottom[1],)
        self.blob_names = ("scale",)
        self.scale = parameter(shape, params.scale_filler, generator)

    def forward(self, bottom: Tensor) -> Tensor:
        infer(self.params, tuple(bottom.shape))
        if self.scale.dim() and len(self.scale) != bottom.shape[1]:
            raise BlobError(
                f"{{bottom}} has {bottom.shape[1]} channels, the scale is for {len(self.scale)}",
                bottom=bottom.shape,
            )
        x = bottom.float() if bottom.dtype in (torch.float16, torch.bfloat16) else bottom
        axes = tuple(range(1, x.dim())) if self.params.across_spatial else (1,)
        inverse = (x.square().sum(axes, keepdim=True) + self.params.eps).rsqrt()
        scale = self.scale.reshape(-1, *(1,) * (x.dim() - 2)) if self.scale.dim() else self.scale
        return (x * inverse * scale).to(bottom.dtype)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        filler = FillerParams(FillerType.uniform, min=0.5, max=2)
        if size != "small":  # SSD's conv4_3
            items = 1 if size == "paper" else 8
            x = normal(rng, (items, 512, 38, 38))
            return [Sample(Params(False, FillerParams(value=20.0), False), (x,))]
        x = normal(rng, (2, 3, 2, 4))
        return [
            Sample(Params(scale_filler=filler), (x,), name="items"),
            Sample(Params(False, filler, False, 0.1), (x,), name="locations, channels"),
            Sample(Params(False, filler), (x[:, :, 0, 0],), name="2-D"),
        ]
