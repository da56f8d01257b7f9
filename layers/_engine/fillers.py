"""What a parameter blob holds before training: Caffe's fillers, drawn from a torch.Generator.

A blob of shape (d0, d1, ...) with n elements has fan_in = n/d0 and fan_out = n/d1 (n itself for a
blob of one axis), whatever the layer's idea of its inputs and outputs: a transposed InnerProduct
and a Deconvolution count the other way round, and a bias has fan_in 1. So it is in Caffe.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, nn

from .checks import Shape
from .params import param


class FillerType(Enum):
    """The fillers by the names a spec gives them."""

    constant = "constant"
    gaussian = "gaussian"
    uniform = "uniform"
    xavier = "xavier"
    msra = "msra"
    positive_unitball = "positive_unitball"
    bilinear = "bilinear"


class VarianceNorm(Enum):
    """By what xavier and msra divide: fan_in, fan_out or the mean of both."""

    FAN_IN = 0
    FAN_OUT = 1
    AVERAGE = 2


@dataclass(frozen=True)
class FillerParams:
    """A ``weight_filler`` or ``bias_filler`` block."""

    type: FillerType = param(FillerType.constant, doc="how the blob is filled")
    value: float = param(0.0, doc="constant: every element")
    min: float = param(0.0, doc="uniform: lower bound")
    max: float = param(1.0, doc="uniform: upper bound")
    mean: float = param(0.0, doc="gaussian")
    std: float = param(1.0, doc="gaussian: above 0")
    sparse: int = param(-1, low=-1, doc="gaussian: expected non-zero weights an output, -1 for all")
    variance_norm: VarianceNorm = param(VarianceNorm.FAN_IN, doc="xavier and msra")


_device = ContextVar("_device", default="cpu")


@contextmanager
def without_values() -> Iterator[None]:
    """Parameter blobs made here have a shape, but neither values nor memory."""
    token = _device.set("meta")
    try:
        yield
    finally:
        _device.reset(token)


def parameter(shape: Shape, filler: FillerParams, generator: torch.Generator | None) -> nn.Parameter:
    """A new parameter blob of this shape, filled; raises ValueError if the filler does not suit it."""
    blob = torch.empty(shape, device=_device.get())
    expect_suited(shape, filler)
    if not blob.is_meta:
        _FILL[filler.type](blob, filler, generator)
    return nn.Parameter(blob)


def expect_suited(shape: Shape, filler: FillerParams) -> None:
    """Raise ValueError for a filler that cannot fill this shape, or has impossible parameters.

    They are not looked at before, since as in Caffe the filler of a blob that is not there, such as a
    bias, may have any.
    """
    if filler.sparse != -1 and filler.type is not FillerType.gaussian:
        raise ValueError(f"filler {filler.type.name} cannot be sparse, only gaussian can")
    if filler.type is FillerType.uniform and filler.min > filler.max:
        raise ValueError(f"uniform filler: min {filler.min:g} is above max {filler.max:g}")
    if filler.type is FillerType.gaussian and not filler.std > 0:
        raise ValueError(f"gaussian filler: std must be above 0, got {filler.std:g}")
    if not math.prod(shape):
        raise ValueError(f"{filler.type.name} filler: the blob {list(shape)} has no elements")
    if not shape and (filler.type in _BY_AXES or filler.sparse >= 0):
        raise ValueError(f"{filler.type.name} filler: a blob with axes is needed, not a scalar")
    if shape and filler.sparse > shape[0]:
        raise ValueError(f"gaussian filler: sparse {filler.sparse} exceeds {shape[0]} outputs")
    if filler.type is FillerType.bilinear and (len(shape) != 4 or shape[2] != shape[3]):
        raise ValueError(f"bilinear filler: a square 4-D weight is needed, not {list(shape)}")


def _fan(blob: Tensor, norm: VarianceNorm) -> float:
    fan_in = blob.numel() / blob.shape[0]
    fan_out = blob.numel() / blob.shape[1] if blob.dim() > 1 else blob.numel()
    return {
        VarianceNorm.FAN_IN: fan_in,
        VarianceNorm.FAN_OUT: fan_out,
        VarianceNorm.AVERAGE: (fan_in + fan_out) / 2,
    }[norm]


def _constant(blob: Tensor, filler: FillerParams, generator: torch.Generator | None) -> None:
    blob.fill_(filler.value)


def _uniform(blob: Tensor, filler: FillerParams, generator: torch.Generator | None) -> None:
    blob.uniform_(filler.min, filler.max, generator=generator)


def _gaussian(blob: Tensor, filler: FillerParams, generator: torch.Generator | None) -> None:
    blob.normal_(filler.mean, filler.std, generator=generator)
    if filler.sparse >= 0:
        blob *= torch.empty_like(blob).bernoulli_(filler.sparse / blob.shape[0], generator=generator)


def _xavier(blob: Tensor, filler: FillerParams, generator: torch.Generator | None) -> None:
    bound = math.sqrt(3 / _fan(blob, filler.variance_norm))
    blob.uniform_(-bound, bound, generator=generator)


def _msra(blob: Tensor, filler: FillerParams, generator: torch.Generator | None) -> None:
    blob.normal_(0, math.sqrt(2 / _fan(blob, filler.variance_norm)), generator=generator)


def _positive_unitball(blob: Tensor, filler: FillerParams, generator: torch.Generator | None) -> None:
    blob.uniform_(0, 1, generator=generator)
    rows = blob.view(blob.shape[0], -1)
    rows /= rows.sum(1, keepdim=True)


def _bilinear(blob: Tensor, filler: FillerParams, generator: torch.Generator | None) -> None:
    factor = math.ceil(blob.shape[3] / 2)
    centre = (blob.shape[3] - 1) / (2 * factor)
    tent = 1 - (torch.arange(blob.shape[3]) / factor - centre).abs()
    blob.copy_(tent[:, None] * tent)


_FILL: dict[FillerType, Callable[[Tensor, FillerParams, torch.Generator | None], None]] = {
    FillerType.constant: _constant,
    FillerType.gaussian: _gaussian,
    FillerType.uniform: _uniform,
    FillerType.xavier: _xavier,
    FillerType.msra: _msra,
    FillerType.positive_unitball: _positive_unitball,
    FillerType.bilinear: _bilinear,
}

_BY_AXES = {FillerType.xavier, FillerType.msra, FillerType.positive_unitball}
