"""Convolution and Deconvolution over one, two or three spatial axes, with groups and dilation.

Bottoms, all of one shape: batch axes up to ``axis``, the C channels at ``axis``, then the spatial
axes. One top for each bottom, with ``num_output`` channels and on each spatial axis

    Convolution      floor((length + 2 pad - extent) / stride) + 1
    Deconvolution    stride (length - 1) + extent - 2 pad

positions, where extent = dilation (kernel - 1) + 1. Blobs: weight [num_output, C / group, *kernel]
(Deconvolution: [C, num_output / group, *kernel]), bias [num_output].
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .._runtime.checks import BlobError, Shape, canonical_axis
from .._runtime.fillers import FillerParams, FillerType, parameter
from .._runtime.layer import Layer
from .._runtime.params import Engine, param
from .._runtime.registry import register
from .._runtime.samples import Sample, normal

CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
DECONVOLVE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@dataclass(frozen=True)
class Params:
    """``convolution_param``. Sizes in pixels: once for all axes, once an axis, or as _h and _w."""

    num_output: int = param(low=1)
    bias_term: bool = param(True)
    pad: tuple[int, ...] = param((), low=0, doc="default 0")
    kernel_size: tuple[int, ...] = param((), low=1)
    stride: tuple[int, ...] = param((), low=1, doc="default 1")
    dilation: tuple[int, ...] = param((), low=1, doc="default 1")
    pad_h: int | None = param(None, low=0)
    pad_w: int | None = param(None, low=0)
    kernel_h: int | None = param(None, low=1)
    kernel_w: int | None = param(None, low=1)
    stride_h: int | None = param(None, low=1)
    stride_w: int | None = param(None, low=1)
    group: int = param(1, low=1)
    weight_filler: FillerParams = param(FillerParams())
    bias_filler: FillerParams = param(FillerParams())
    engine: Engine = param(Engine.DEFAULT, doc="accepted, has no effect")
    axis: int = param(1, doc="the channels; negative counts from the last")
    force_nd_im2col: bool = param(False, doc="accepted, has no effect")

    def __post_init__(self) -> None:
        for name, stem in (("kernel_size", "kernel"), ("stride", "stride"), ("pad", "pad")):
            h, w = getattr(self, f"{stem}_h"), getattr(self, f"{stem}_w")
            if getattr(self, name) and (h is not None or w is not None):
                raise ValueError(f"give {name}, or {stem}_h and {stem}_w, not both")
            if (h is None) != (w is None) and stem != "pad":
                raise ValueError(f"{stem}_h and {stem}_w go together")
        if not self.kernel_size and self.kernel_h is None:
            raise ValueError("give kernel_size, or kernel_h and kernel_w")
        if self.num_output % self.group:
            raise ValueError(f"num_output {self.num_output} is not a multiple of group {self.group}")


@dataclass(frozen=True)
class Window:
    """Sizes of the sliding window, one an axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pad: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def extent(self) -> tuple[int, ...]:
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True))


def window(params: Params, axes: int) -> Window:
    """The window over so many spatial axes."""
    p = params
    return Window(
        _each("kernel_size", p.kernel_size, p.kernel_h, p.kernel_w, 1, axes),
        _each("stride", p.stride, p.stride_h, p.stride_w, 1, axes),
        _each("pad", p.pad, p.pad_h, p.pad_w, 0, axes),
        _each("dilation", p.dilation, None, None, 1, axes),
    )


def _each(
    name: str, given: tuple[int, ...], h: int | None, w: int | None, default: int, axes: int
) -> tuple[int, ...]:
    if h is not None or w is not None:
        if axes != 2:
            raise BlobError(f"the _h and _w of {name} are for 2 spatial axes, not {axes}")
        return h or default, w or default
    if len(given) in (0, 1):
        return (given or (default,)) * axes
    if len(given) != axes:
        raise BlobError(f"{name} is given {len(given)} times for {axes} spatial axes")
    return given


def _spatial(params: Params, bottoms: tuple[Shape, ...]) -> tuple[int, Shape]:
    """The channels' axis, and the lengths of the spatial axes."""
    first = bottoms[0]
    for i, shape in enumerate(bottoms):
        if shape != first:
            raise BlobError(
                f"bottoms of one convolution differ in shape: {{bottom0}}, {{bottom{i}}}",
                **{"bottom0": first, f"bottom{i}": shape},
            )
    axis = canonical_axis(params.axis, bottom0=first)
    if not 1 <= len(first) - axis - 1 <= 3:
        raise BlobError(f"expected 1 to 3 spatial axes after axis {axis} of {{bottom0}}", bottom0=first)
    if first[axis] % params.group:
        raise BlobError(
            f"the {first[axis]} channels of {{bottom0}} are not a multiple of group {params.group}",
            bottom0=first,
        )
    return axis, first[axis + 1 :]


def _tops(params: Params, bottoms: tuple[Shape, ...], axis: int, size: list[int]) -> tuple[Shape, ...]:
    if min(size) < 1:
        raise BlobError("{bottom0} has no room for the kernel", bottom0=bottoms[0])
    return ((*bottoms[0][:axis], params.num_output, *size),) * len(bottoms)


def infer(params: Params, *bottoms: Shape) -> tuple[Shape, ...]:
    """The tops' shapes; raises BlobError where shapes, groups or repeated sizes don't fit."""
    axis, lengths = _spatial(params, bottoms)
    w = window(params, len(lengths))
    axes = zip(lengths, w.extent, w.stride, w.pad, strict=True)
    return _tops(params, bottoms, axis, [(n + 2 * p - e) // s + 1 for n, e, s, p in axes])


def infer_deconvolution(params: Params, *bottoms: Shape) -> tuple[Shape, ...]:
    """The tops' shapes; raises BlobError as :func:`infer` does."""
    axis, lengths = _spatial(params, bottoms)
    w = window(params, len(lengths))
    axes = zip(lengths, w.extent, w.stride, w.pad, strict=True)
    return _tops(params, bottoms, axis, [s * (n - 1) + e - 2 * p for n, e, s, p in axes])


class _Convolving(Layer):
    """The blobs and the call that both share."""

    Params = Params
    deconvolves = False

    def __init__(
        self,
        params: Any,
        bottom_shapes: tuple[Shape, ...],
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(params, bottom_shapes, generator)
        self.axis, lengths = _spatial(params, bottom_shapes)
        self.window = window(params, len(lengths))
        self.channels = bottom_shapes[0][self.axis]
        rows, columns = params.num_output, self.channels
        if self.deconvolves:
            rows, columns = columns, rows
        shape = (rows, columns // params.group, *self.window.kernel)
        self.blob_names = ("weight", "bias") if params.bias_term else ("weight",)
        self.weight = parameter(shape, params.weight_filler, generator)
        self.bias = (
            parameter((params.num_output,), params.bias_filler, generator) if params.bias_term else None
        )

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        self.infer(self.params, *(tuple(bottom.shape) for bottom in bottoms))
        channels, taken = bottoms[0].shape[self.axis], self.channels
        if channels != taken:
            raise BlobError(
                f"{{bottom0}} has {channels} channels, the weight takes {taken}",
                bottom0=bottoms[0].shape,
            )
        return tuple(self._convolve(bottom) for bottom in bottoms)

    def _convolve(self, bottom: Tensor) -> Tensor:
        lead, w, group = bottom.shape[: self.axis], self.window, self.params.group
        x = bottom.reshape(prod(lead), *bottom.shape[self.axis :])
        if self.deconvolves:
            deconvolve = DECONVOLVE[len(w.kernel)]
            top = deconvolve(x, self.weight, self.bias, w.stride, w.pad, 0, group, w.dilation)
        else:
            convolve = CONVOLVE[len(w.kernel)]
            top = convolve(x, self.weight, self.bias, w.stride, w.pad, w.dilation, group)
        return top.reshape(*lead, *top.shape[1:])


@register("Convolution", bottoms=(1, None), tops=(1, None))
class Convolution(_Convolving):
    """See the module's text."""

    infer = staticmethod(infer)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        xavier = FillerParams(type=FillerType.xavier)
        if size != "small":  # GoogLeNet's conv2/3x3
            scale = 1 if size == "paper" else 2
            params = Params(192, kernel_size=(3,), pad=(1,), weight_filler=xavier)
            return [Sample(params, (normal(rng, (2, 64, 32 * scale, 104 * scale)),))]
        return _small(rng, xavier, Params(4, kernel_size=(2,), weight_filler=xavier))


@register("Deconvolution", bottoms=(1, None), tops=(1, None), block="convolution_param")
class Deconvolution(_Convolving):
    """See the module's text."""

    deconvolves = True
    infer = staticmethod(infer_deconvolution)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        if size != "small":  # FCN's upsampling by 8
            scale = 1 if size == "paper" else 2
            filler = FillerParams(type=FillerType.bilinear)
            params = Params(21, False, (4,), (16,), (8,), group=21, weight_filler=filler)
            return [Sample(params, (normal(rng, (1, 21, 16 * scale, 52 * scale)),))]
        xavier = FillerParams(type=FillerType.xavier)
        return _small(rng, xavier, Params(4, kernel_size=(2,), weight_filler=xavier))


def _small(rng: np.random.Generator, xavier: FillerParams, plain: Params) -> list[Sample]:
    grouped = Params(
        4,
        pad=(1,),
        stride=(2, 1),
        dilation=(1, 2),
        kernel_h=3,
        kernel_w=2,
        group=2,
        weight_filler=xavier,
        bias_filler=xavier,
    )
    return [
        Sample(plain, (normal(rng, (2, 3, 4)),), name="1-D"),
        Sample(grouped, (normal(rng, (2, 2, 5, 6)),), name="grouped"),
        Sample(plain, (normal(rng, (2, 3, 3, 2, 4)),), name="3-D"),
    ]
