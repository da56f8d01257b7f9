"""Convolution and Deconvolution over any number of spatial axes, with groups and dilation; Im2col.

Bottoms, all of one shape: batch axes up to ``axis``, the C channels at ``axis``, then the spatial
axes. One top for each bottom, with ``num_output`` channels and on each spatial axis

    Convolution      (length + 2 pad - extent) / stride + 1, the quotient rounded towards 0
    Deconvolution    stride (length - 1) + extent - 2 pad

positions, where extent = dilation (kernel - 1) + 1. So a window that is too large by less than the
stride has one position, beyond whose end there are zeros. Blobs: weight
``[num_output, C / group, *kernel]`` (Deconvolution: ``[C, num_output / group, *kernel]``), bias
[num_output].

Im2col lays out the windows of a convolution: its top has for channels C times the kernel's elements,
the channel's index first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .._engine import reach
from .._engine.checks import BlobError, Shape, canonical_axis
from .._engine.fillers import FillerParams, FillerType, parameter
from .._engine.layer import Layer
from .._engine.params import Engine, param
from .._engine.reach import Reach
from .._engine.registry import register
from .._engine.samples import Sample, normal

CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
DECONVOLVE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
NATIVE = 3  # axes at most


@dataclass(frozen=True)
class Params:
    """``convolution_param``. Sizes in pixels: once for all axes, once an axis, or as _h and _w."""

    num_output: int = param(low=1, doc="channels of the top")
    bias_term: bool = param(True, doc="whether a bias is added")
    pad: tuple[int, ...] = param((), low=0, doc="default 0")
    kernel_size: tuple[int, ...] = param((), low=1, doc="both sides, or one value an axis")
    stride: tuple[int, ...] = param((), low=1, doc="default 1")
    dilation: tuple[int, ...] = param((), low=0, doc="default 1; 0: all of the kernel on one pixel")
    pad_h: int | None = param(None, low=0, doc="rows of zeros above and below")
    pad_w: int | None = param(None, low=0, doc="columns of zeros beside")
    kernel_h: int | None = param(None, low=1, doc="rows")
    kernel_w: int | None = param(None, low=1, doc="columns")
    stride_h: int | None = param(None, low=1, doc="rows")
    stride_w: int | None = param(None, low=1, doc="columns")
    group: int = param(1, low=1, doc="of channels that are convolved apart")
    weight_filler: FillerParams = param(FillerParams(), doc="of the weights")
    bias_filler: FillerParams = param(FillerParams(), doc="of the biases")
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


@dataclass(frozen=True)
class Im2colParams(Params):
    """``convolution_param`` of an Im2col layer, which has no outputs, groups or blobs."""

    num_output: int = param(0, low=0, doc="accepted, has no effect")
    group: int = param(1, low=0, doc="accepted, has no effect")


class Axis(NamedTuple):
    """The sliding window along one axis."""

    kernel: int
    stride: int
    pad: int
    dilation: int

    @property
    def extent(self) -> int:
        return self.dilation * (self.kernel - 1) + 1

    def lacking(self, length: int) -> int:
        """How many elements the first window needs beyond the padded end."""
        return max(0, self.extent - length - 2 * self.pad)

    def positions(self, length: int) -> int:
        if lacking := self.lacking(length):
            return 1 - lacking // self.stride
        return (length + 2 * self.pad - self.extent) // self.stride + 1

    def deconvolved(self, length: int) -> int:
        return self.stride * (length - 1) + self.extent - 2 * self.pad


Window = tuple[Axis, ...]


def window(params: Params, axes: int) -> Window:
    """The window over so many spatial axes."""
    p = params
    if axes and not p.kernel_size and p.kernel_h is None:
        raise BlobError("give kernel_size, or kernel_h and kernel_w")
    sizes = (
        _each("kernel_size", p.kernel_size, p.kernel_h, p.kernel_w, 1, axes),
        _each("stride", p.stride, p.stride_h, p.stride_w, 1, axes),
        _each("pad", p.pad, p.pad_h, p.pad_w, 0, axes),
        _each("dilation", p.dilation, None, None, 1, axes),
    )
    return tuple(Axis(*axis) for axis in zip(*sizes, strict=True))


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
    if params.num_output % params.group:
        raise BlobError(f"num_output {params.num_output} is not a multiple of group {params.group}")
    if first[axis] % params.group:
        raise BlobError(
            f"the {first[axis]} channels of {{bottom0}} are not a multiple of group {params.group}",
            bottom0=first,
        )
    return axis, first[axis + 1 :]


def _room(size: list[int], bottom: Shape) -> list[int]:
    if min(size, default=1) < 1:
        raise BlobError("{bottom0} has no room for the kernel", bottom0=bottom)
    return size


def infer(params: Params, *bottoms: Shape) -> tuple[Shape, ...]:
    """The tops' shapes; raises BlobError where shapes, groups or repeated sizes don't fit."""
    axis, lengths = _spatial(params, bottoms)
    w = window(params, len(lengths))
    size = _room([a.positions(n) for a, n in zip(w, lengths, strict=True)], bottoms[0])
    return ((*bottoms[0][:axis], params.num_output, *size),) * len(bottoms)


def infer_deconvolution(params: Params, *bottoms: Shape) -> tuple[Shape, ...]:
    """The tops' shapes; raises BlobError as :func:`infer` does."""
    axis, lengths = _spatial(params, bottoms)
    w = window(params, len(lengths))
    size = _room([a.deconvolved(n) for a, n in zip(w, lengths, strict=True)], bottoms[0])
    return ((*bottoms[0][:axis], params.num_output, *size),) * len(bottoms)


def infer_im2col(params: Im2colParams, bottom0: Shape) -> tuple[Shape, ...]:
    """The top's shape; raises BlobError unless there is a spatial axis, and room for the kernel."""
    axis = canonical_axis(params.axis, bottom0=bottom0)
    lengths = bottom0[axis + 1 :]
    if not lengths:
        raise BlobError(f"expected spatial axes after axis {axis} of {{bottom0}}", bottom0=bottom0)
    w = window(params, len(lengths))
    size = _room([a.positions(n) for a, n in zip(w, lengths, strict=True)], bottom0)
    return ((*bottom0[:axis], bottom0[axis] * prod(a.kernel for a in w), *size),)


def completed(x: Tensor, w: Window) -> Tensor:
    """The image, with zeros at the end of axes that are too short for one window."""
    lacking = [a.lacking(n) for a, n in zip(w, x.shape[2:], strict=True)]
    if not any(lacking):
        return x
    return F.pad(x, [side for n in reversed(lacking) for side in (0, n)])


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, w: Window, group: int) -> Tensor:
    """The convolution of ``x`` [N, C, *lengths].

    Beyond three axes, the sum over the kernel's elements along the first one.
    """
    if not w:
        return convolve(x[..., None], weight[..., None], bias, (Axis(1, 1, 0, 1),), group)[..., 0]
    if len(w) <= NATIVE:
        _, stride, pad, dilation = zip(*w, strict=True)
        return CONVOLVE[len(w)](x, weight, bias, stride, pad, dilation, group)
    first, rest = w[0], w[1:]
    count = first.positions(x.shape[2])
    x = F.pad(x, (0, 0) * len(rest) + (first.pad, first.pad))
    top: Tensor | None = None
    for i in range(first.kernel):
        start = i * first.dilation
        taken = x[:, :, start : start + first.stride * (count - 1) + 1 : first.stride]
        of_slices = partial(convolve, weight=weight[:, :, i], bias=None, w=rest, group=group)
        part = _folded(taken, of_slices)
        top = part if top is None else top + part
    assert top is not None, "a kernel has an element"
    return top if bias is None else top + bias.reshape(-1, *(1,) * len(w))


def deconvolve(x: Tensor, weight: Tensor, bias: Tensor | None, w: Window, group: int) -> Tensor:
    """The transpose of :func:`convolve`, over the same axes."""
    if not w:
        return deconvolve(x[..., None], weight[..., None], bias, (Axis(1, 1, 0, 1),), group)[..., 0]
    if len(w) <= NATIVE:
        _, stride, pad, dilation = zip(*w, strict=True)
        return DECONVOLVE[len(w)](x, weight, bias, stride, pad, 0, group, dilation)
    first, rest = w[0], w[1:]
    count, padded = x.shape[2], first.deconvolved(x.shape[2]) + 2 * first.pad
    top: Tensor | None = None
    for i in range(first.kernel):
        of_slices = partial(deconvolve, weight=weight[:, :, i], bias=None, w=rest, group=group)
        part = _folded(x, of_slices)
        if top is None:
            top = part.new_zeros(*part.shape[:2], padded, *part.shape[3:])
        start = i * first.dilation
        top[:, :, start : start + first.stride * (count - 1) + 1 : first.stride] += part
    assert top is not None, "a kernel has an element"
    top = top[:, :, first.pad : padded - first.pad]
    return top if bias is None else top + bias.reshape(-1, *(1,) * len(w))


def _folded(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """``function`` of the slices of ``x`` [N, C, L, ...] along its third axis, in one batch."""
    slices = x.transpose(1, 2)
    found = function(slices.flatten(0, 1))
    return found.unflatten(0, slices.shape[:2]).transpose(1, 2)


def _reach(params: Params, bottom: Shape, place: Callable[..., Reach]) -> tuple[Reach, ...]:
    axes = len(bottom) - 1 - canonical_axis(params.axis, bottom0=bottom)
    return tuple(place(*axis) for axis in window(params, axes))


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
        w = window(params, len(lengths))
        # Where all of the kernel lies on one pixel, that is multiplied by the sum of its elements.
        self.summed = [axis for axis, a in enumerate(w, 2) if not a.dilation]
        self.window = tuple(a if a.dilation else Axis(1, a.stride, a.pad, 1) for a in w)
        self.channels = bottom_shapes[0][self.axis]
        self._convolve: Callable[..., Tensor] = self._in_steps
        rows, columns = params.num_output, self.channels
        if self.deconvolves:
            rows, columns = columns, rows
        shape = (rows, columns // params.group, *(a.kernel for a in w))
        self.blob_names = ("weight", "bias") if params.bias_term else ("weight",)
        self.weight = parameter(shape, params.weight_filler, generator)
        self.bias = (
            parameter((params.num_output,), params.bias_filler, generator) if params.bias_term else None
        )

    @classmethod
    def reach(cls, params: Any, i: int, bottom: Shape, j: int, top: Shape) -> tuple[Reach, ...] | None:
        place = reach.transposed if cls.deconvolves else reach.window
        return _reach(params, bottom, place) if i == j else None

    @classmethod
    def multiply_adds(
        cls, params: Any, bottoms: Sequence[Shape], tops: Sequence[Shape], blobs: Sequence[Shape]
    ) -> int | None:
        cells = bottoms if cls.deconvolves else tops  # each meets the whole weight once
        axis = canonical_axis(params.axis, bottom0=bottoms[0])
        return sum(prod(cell[:axis]) * prod(cell[axis + 1 :]) for cell in cells) * prod(blobs[0])

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        self.check(*bottoms)
        weight = self.weight.sum(self.summed, keepdim=True) if self.summed else self.weight
        bias = self.bias
        return tuple([self._convolve(bottom, weight, bias) for bottom in bottoms])

    def fit(self, *bottoms: Shape) -> None:
        """Choose how to convolve bottoms of these shapes; BlobError for those that it cannot take."""
        super().fit(*bottoms)
        channels, taken = bottoms[0][self.axis], self.channels
        if channels != taken:
            text = f"{{bottom0}} has {channels} channels, the weight takes {taken}"
            raise BlobError(text, bottom0=bottoms[0])
        w, lengths = self.window, bottoms[0][self.axis + 1 :]
        short = not self.deconvolves and any(map(Axis.lacking, w, lengths))
        native = self.axis == 1 and 0 < len(w) <= NATIVE and not short
        self._convolve = self._native() if native else self._in_steps

    def _native(self) -> Callable[..., Tensor]:
        """Torch's function of the bottom, the weight and the bias."""
        _, stride, pad, dilation = zip(*self.window, strict=True)
        function = (DECONVOLVE if self.deconvolves else CONVOLVE)[len(self.window)]
        group = self.params.group
        return partial(function, stride=stride, padding=pad, dilation=dilation, groups=group)

    def _in_steps(self, bottom: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        lead, w, group = bottom.shape[: self.axis], self.window, self.params.group
        x = bottom.reshape(prod(lead), *bottom.shape[self.axis :])
        if self.deconvolves:
            top = deconvolve(x, weight, bias, w, group)
        else:
            top = convolve(completed(x, w), weight, bias, w, group)
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


@register("Im2col", block="convolution_param")
class Im2col(Layer):
    """See the module's text."""

    Params = Im2colParams
    infer = staticmethod(infer_im2col)

    @classmethod
    def reach(cls, params: Any, i: int, bottom: Shape, j: int, top: Shape) -> tuple[Reach, ...] | None:
        return _reach(params, bottom, reach.window)

    def forward(self, bottom0: Tensor) -> Tensor:
        (shape,) = infer_im2col(self.params, tuple(bottom0.shape))
        axis = canonical_axis(self.params.axis, bottom0=bottom0.shape)
        x = bottom0.reshape(prod(shape[:axis]), *bottom0.shape[axis:])
        w = window(self.params, x.dim() - 2)
        x = F.pad(completed(x, w), [a.pad for a in reversed(w) for _ in range(2)])
        for i, a in enumerate(w, 2):
            x = x.unfold(i, a.extent, a.stride)[..., :: a.dilation or 1]
            x = x.expand(*x.shape[:-1], a.kernel)
        kernel = tuple(range(2 + len(w), 2 + 2 * len(w)))
        return x.permute(0, 1, *kernel, *range(2, 2 + len(w))).reshape(shape)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        if size != "small":  # of GoogLeNet's conv2/3x3
            scale = 1 if size == "paper" else 2
            x = normal(rng, (1, 64, 16 * scale, 52 * scale))
            return [Sample(Im2colParams(kernel_size=(3,), pad=(1,)), (x,))]
        grouped = Im2colParams(pad=(1,), stride=(2, 1), dilation=(1, 2), kernel_h=3, kernel_w=2)
        return [
            Sample(Im2colParams(kernel_size=(2,)), (normal(rng, (2, 3, 4)),), name="1-D"),
            Sample(grouped, (normal(rng, (2, 2, 5, 6)),), name="2-D"),
        ]


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
        Sample(plain, (normal(rng, (2, 3, 3, 2, 2, 4)),), name="4-D"),
    ]
