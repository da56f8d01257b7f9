"""PReLU: max(0, x) + a min(0, x) with a learned slope (He et al. 2015, equation 1).

Bottom [N, C, ...], top of the same shape. Blob: the slopes a [C], or one of shape [] for all
channels with ``channel_shared``. The gradient at 0 is a.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .._engine.checks import BlobError, Shape
from .._engine.declared import Bottom, Role, Top
from .._engine.definition import Spec, define
from .._engine.fillers import FillerParams, FillerType, parameter
from .._engine.layer import Layer
from .._engine.params import param
from .._engine.registry import register
from .._engine.samples import Sample, distinct


@dataclass(frozen=True)
class Params:
    """``prelu_param``."""

    filler: FillerParams = param(FillerParams(value=0.25), doc="default: constant 0.25")
    channel_shared: bool = param(False, doc="one slope for all channels")


BOTTOMS = (Bottom("bottom", "[N, C, ...]"), Bottom("slope", "[C] or []", Role.BLOB))
TOPS = (Top("top"),)


def infer(params: Params, bottom: Shape, slope: Shape = ()) -> tuple[Shape]:
    """The top's shape is the bottom's; raises BlobError unless that has channels, as many as slopes."""
    if len(bottom) < 2:
        raise BlobError("expected {bottom} to be [N, C, ...]", bottom=bottom)
    if slope and slope[0] != bottom[1]:
        raise BlobError(
            f"{{bottom}} has {bottom[1]} channels, the slopes are for {slope[0]}", bottom=bottom
        )
    return (bottom,)


def meta(params: Params, bottom: Tensor, slope: Tensor) -> Sequence[Spec]:
    return ((bottom.shape, bottom.dtype),)


def forward(params: Params, bottom: Tensor, slope: Tensor) -> tuple[Tensor]:
    return (F.prelu(bottom, slope.to(bottom.dtype)),)


def backward(
    params: Params, wanted: Sequence[bool], top_gradient: Tensor, bottom: Tensor, slope: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Both gradients at 0 are those of below, which torch does not promise."""
    below = bottom.clamp(max=0).eq_(bottom).mul_(top_gradient)
    to_bottom = to_slope = None
    if wanted[0]:
        beside = slope.reshape(-1, *(1,) * (bottom.dim() - 2))
        to_bottom = (top_gradient - below).addcmul_(below, beside)
    if wanted[1]:
        others = (0, *range(2, bottom.dim())) if slope.dim() else tuple(range(bottom.dim()))
        to_slope = below.mul_(bottom).sum(others).to(slope.dtype)
    return to_bottom, to_slope


definition = define(__name__, traced=True, keeps_half=True)


@register("PReLU", block="prelu_param")
class PReLU(Layer):
    """See the module's text."""

    definition = definition

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
        self.blob_names = ("slope",)
        self.slope = parameter(shape, params.filler, generator)

    def forward(self, bottom: Tensor) -> Tensor:
        device = bottom.device.type
        if device != "meta" and torch.is_autocast_enabled(device):  # where torch's own PReLU is half
            bottom = bottom.to(torch.get_autocast_dtype(device))
        return definition(self.params, bottom, self.slope)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        filler = FillerParams(FillerType.uniform, min=-0.3, max=0.5)
        shape = {"small": (2, 3, 4, 5), "paper": (2, 64, 64, 208)}.get(size, (2, 64, 128, 416))
        x = distinct(rng, shape)
        return [Sample(Params(filler), (x,)), Sample(Params(channel_shared=True), (x,), name="shared")]
