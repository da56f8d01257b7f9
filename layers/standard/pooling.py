"""Pooling: the maximum or the average over sliding windows, as Caffe computes it.

Bottom [N, C, H, W]. Top [N, C, H', W'] with H' = ceil((H + 2 pad - kernel) / stride) + 1 (floor with
``round_mode: FLOOR``). If either axis is padded, on both axes a last window that would start beyond
the image and its leading padding is dropped; without padding it stays, and covers nothing: its
maximum is -FLT_MAX, its average 0/0 = NaN (or 0, where it starts further out).

MAX: ties go to the first element in row-major order, which gets all of the gradient; padding never
wins. An optional second top [N, C, H', W'] (float32) tells the winner's index h*W + w in its plane,
-1 for a window that covers nothing; it gives no gradient.
AVE: divides by the window's area inside the padded image (on the far side no padding beyond
``pad`` counts), whatever part of it is padding.

Differs from the original: a NaN in a window makes its maximum NaN (Caffe's comparison skips it);
STOCHASTIC is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .._runtime.checks import BlobError, Shape, expect_axes
from .._runtime.layer import Layer
from .._runtime.params import Engine, param
from .._runtime.registry import register
from .._runtime.samples import Sample, distinct

Pair = tuple[int, int]


class PoolMethod(Enum):
    """What is taken of a window."""

    MAX = 0
    AVE = 1
    STOCHASTIC = 2


class RoundMode(Enum):
    """How the number of windows is rounded."""

    CEIL = 0
    FLOOR = 1


@dataclass(frozen=True)
class Params:
    """``pooling_param``. Sizes are pixels; each is given once for both axes, or as its _h and _w."""

    pool: PoolMethod = param(PoolMethod.MAX)
    pad: int | None = param(None, low=0, doc="default 0")
    pad_h: int | None = param(None, low=0)
    pad_w: int | None = param(None, low=0)
    kernel_size: int | None = param(None, low=1)
    kernel_h: int | None = param(None, low=1)
    kernel_w: int | None = param(None, low=1)
    stride: int | None = param(None, low=1, doc="default 1")
    stride_h: int | None = param(None, low=1)
    stride_w: int | None = param(None, low=1)
    engine: Engine = param(Engine.DEFAULT, doc="accepted, has no effect")
    global_pooling: bool = param(False, doc="one window, the whole image")
    round_mode: RoundMode = param(RoundMode.CEIL)

    def __post_init__(self) -> None:
        if self.pool is PoolMethod.STOCHASTIC:
            raise ValueError("STOCHASTIC pooling is not supported")
        kernel = _pair("kernel_size", self.kernel_size, self.kernel_h, self.kernel_w, "kernel")
        pads, strides = self.pads, self.strides
        if self.global_pooling and kernel:
            raise ValueError("global_pooling takes no kernel size")
        if self.global_pooling and (pads, strides) != ((0, 0), (1, 1)):
            raise ValueError("global_pooling takes no pad and no stride")
        if not self.global_pooling and not kernel:
            raise ValueError("give kernel_size, or kernel_h and kernel_w")
        if kernel and (pads[0] >= kernel[0] or pads[1] >= kernel[1]):
            raise ValueError(f"pad {pads} must be smaller than the kernel {kernel}")

    @property
    def pads(self) -> Pair:
        return _pair("pad", self.pad, self.pad_h, self.pad_w) or (0, 0)

    @property
    def strides(self) -> Pair:
        return _pair("stride", self.stride, self.stride_h, self.stride_w) or (1, 1)

    def kernel(self, bottom: Shape) -> Pair:
        if self.global_pooling:
            return bottom[2], bottom[3]
        kernel = _pair("kernel_size", self.kernel_size, self.kernel_h, self.kernel_w, "kernel")
        assert kernel, "__post_init__ sees to it"
        return kernel


def _pair(name: str, both: int | None, h: int | None, w: int | None, stem: str = "") -> Pair | None:
    """A size of the two axes, from its three fields; None where none of them is given."""
    if both is not None and h is None and w is None:
        return both, both
    if both is None and h is not None and w is not None:
        return h, w
    if both is None and h is None and w is None:
        return None
    stem = stem or name
    raise ValueError(f"give {name}, or both {stem}_h and {stem}_w")


def infer(params: Params, bottom: Shape) -> tuple[Shape, ...]:
    """The top's shape, for MAX the mask's too.

    Raises BlobError unless the bottom has 4 axes and room for a window.
    """
    expect_axes("N C H W", bottom=bottom)
    kernel, stride, pad = params.kernel(bottom), params.strides, params.pads
    size = []
    for length, k, s, p in zip(bottom[2:], kernel, stride, pad, strict=True):
        room = length + 2 * p - k
        size.append((room // s if params.round_mode is RoundMode.FLOOR else -(-room // s)) + 1)
    if any(pad):
        for axis in (0, 1):
            beyond = (size[axis] - 1) * stride[axis] >= bottom[2 + axis] + pad[axis]
            size[axis] -= int(beyond)
    if min(size) < 1:
        raise BlobError(f"no window of {kernel[0]} x {kernel[1]} fits {{bottom}}", bottom=bottom)
    top = (*bottom[:2], *size)
    return (top, top) if params.pool is PoolMethod.MAX else (top,)


@dataclass(frozen=True)
class Windows:
    """The windows over one image: sizes (h, w), and where torch's own pooling places others."""

    kernel: Pair
    stride: Pair
    pad: Pair
    image: Pair
    count: Pair

    @property
    def native(self) -> bool:
        """Torch pads at most half a window, and has none that starts beyond the image."""
        return all(2 * p <= k and (o - 1) * s < n + p for k, s, p, n, o in self._axes())

    def padded(self, x: Tensor, value: float) -> Tensor:
        """The image with enough around it that every window lies inside."""
        top, left = self.pad
        bottom, right = (max(0, (o - 1) * s + k - n - p) for k, s, p, n, o in self._axes())
        return F.pad(x, (left, right, top, bottom), value=value)

    def _axes(self) -> Iterator[tuple[int, ...]]:
        return zip(self.kernel, self.stride, self.pad, self.image, self.count, strict=True)

    def area(self, like: Tensor) -> Tensor:
        """Caffe's divisor [H', W']: the extent inside image and padding; a count of sorts (it may be
        0 or negative) where the window starts beyond them."""
        extent = []
        for k, s, p, n, o in self._axes():
            start = torch.arange(o, device=like.device, dtype=like.dtype) * s - p
            extent.append((start + k).clamp(max=n + p) - start)
        return extent[0][:, None] * extent[1]


def max_pool(x: Tensor, windows: Windows, ceil: bool) -> tuple[Tensor, Tensor]:
    """The maxima and their indices (float32)."""
    kernel, stride, pad = windows.kernel, windows.stride, windows.pad
    if windows.native:
        top, index = F.max_pool2d(x, kernel, stride, pad, ceil_mode=ceil, return_indices=True)
        return top, index.float()
    lowest = max(torch.finfo(x.dtype).min, torch.finfo(torch.float32).min)
    padded = windows.padded(x, lowest)
    top, index = F.max_pool2d(padded, kernel, stride, return_indices=True)
    row, column = index // padded.shape[3] - pad[0], index % padded.shape[3] - pad[1]
    outside = (row < 0) | (row >= x.shape[2]) | (column < 0) | (column >= x.shape[3])
    return top, (row * x.shape[3] + column).masked_fill(outside, -1).float()


def average_pool(x: Tensor, windows: Windows, ceil: bool) -> Tensor:
    """The averages."""
    kernel, stride = windows.kernel, windows.stride
    if windows.native:
        return F.avg_pool2d(x, kernel, stride, windows.pad, ceil_mode=ceil)
    total = F.avg_pool2d(windows.padded(x, 0), kernel, stride, divisor_override=1)
    return total / windows.area(x)


@register("Pooling", bottoms=1, tops=(1, 2))
class Pooling(Layer):
    """See the module's text."""

    Params = Params
    bottom_names = ("bottom",)
    infer = staticmethod(infer)

    def forward(self, bottom: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        p: Params = self.params
        top, image = infer(p, bottom.shape)[0], (bottom.shape[2], bottom.shape[3])
        windows = Windows(p.kernel(bottom.shape), p.strides, p.pads, image, (top[2], top[3]))
        pool = max_pool if p.pool is PoolMethod.MAX else average_pool
        return pool(bottom, windows, ceil=p.round_mode is RoundMode.CEIL)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        if size != "small":  # GoogLeNet's pool1 and the pooling inside an inception
            scale = 1 if size == "paper" else 2
            x = distinct(rng, (2, 64, 64 * scale, 208 * scale))
            y = distinct(rng, (2, 192, 32 * scale, 104 * scale))
            return [
                Sample(Params(kernel_size=3, stride=2, pad=1), (x,), name="pool1"),
                Sample(Params(kernel_size=3, pad=1), (y,), name="inception"),
            ]
        x = distinct(rng, (2, 2, 5, 6))
        return [
            Sample(Params(pool=method, kernel_size=3, stride=stride, pad=pad), (x,))
            for method in (PoolMethod.MAX, PoolMethod.AVE)
            for stride, pad in ((2, 1), (1, 2), (2, 0))
        ]
