"""Pooling windows over an image: where they lie by Caffe's rules, and what is taken of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor

from .._engine import parallel
from .._engine.checks import BlobError, Shape, expect_axes

Pair = tuple[int, int]


class PoolMethod(Enum):
    """What is taken of a window."""

    MAX = 0
    AVE = 1
    STOCHASTIC = 2


@dataclass(frozen=True)
class Windows:
    """The windows over one image: sizes, strides, paddings and their number, each (h, w)."""

    kernel: Pair
    stride: Pair
    pad: Pair
    image: Pair
    count: Pair
    ceil: bool

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


def windows_over(bottom: Shape, kernel: Pair, stride: Pair, pad: Pair, ceil: bool = True) -> Windows:
    """The windows over a bottom [N, C, H, W], their number rounded up or down.

    Raises BlobError unless the bottom has 4 axes and room for a window.
    """
    expect_axes("N C H W", bottom=bottom)
    count = []
    for length, k, s, p in zip(bottom[2:], kernel, stride, pad, strict=True):
        room = length + 2 * p - k
        count.append((-(-room // s) if ceil else room // s) + 1)
    if any(pad):
        for axis in (0, 1):
            beyond = (count[axis] - 1) * stride[axis] >= bottom[2 + axis] + pad[axis]
            count[axis] -= int(beyond)
    if min(*count, *kernel) < 1:
        raise BlobError(f"no window of {kernel[0]} x {kernel[1]} fits {{bottom}}", bottom=bottom)
    return Windows(kernel, stride, pad, (bottom[2], bottom[3]), (count[0], count[1]), ceil)


def max_pool(x: Tensor, windows: Windows, mask: bool) -> tuple[Tensor, ...]:
    """The maxima, and with ``mask`` their indices (float32)."""
    kernel, stride, pad = windows.kernel, windows.stride, windows.pad
    if windows.native:
        if not mask:
            return (F.max_pool2d(x, kernel, stride, pad, ceil_mode=windows.ceil),)
        top, index = F.max_pool2d(x, kernel, stride, pad, ceil_mode=windows.ceil, return_indices=True)
        return top, index.float()
    lowest = max(torch.finfo(x.dtype).min, torch.finfo(torch.float32).min)
    padded = windows.padded(x, lowest)
    top, index = F.max_pool2d(padded, kernel, stride, return_indices=True)
    row, column = index // padded.shape[3] - pad[0], index % padded.shape[3] - pad[1]
    outside = (row < 0) | (row >= x.shape[2]) | (column < 0) | (column >= x.shape[3])
    return top, (row * x.shape[3] + column).masked_fill(outside, -1).float()


def average_pool(x: Tensor, windows: Windows) -> Tensor:
    """The averages."""
    kernel, stride = windows.kernel, windows.stride
    if windows.native:
        return F.avg_pool2d(x, kernel, stride, windows.pad, ceil_mode=windows.ceil)
    total = F.avg_pool2d(windows.padded(x, 0), kernel, stride, divisor_override=1)
    return total / windows.area(x)


def stochastic_pool(x: Tensor, windows: Windows, training: bool) -> Tensor:
    """In training an element drawn with a probability in proportion to it (Zeiler & Fergus 2013, not
    negative), else the mean with these weights."""
    (rows, columns), (down, across) = windows.kernel, windows.stride
    patches = windows.padded(x, 0).unfold(2, rows, down).unfold(3, columns, across).flatten(4)
    if not training:
        total = patches.sum(-1)
        return (patches.square().sum(-1) / total.where(total > 0, 1)).where(total > 0, 0)
    cumulative = patches.detach().cumsum(-1)
    draw = parallel.own_rows(
        (*patches.shape[:4], 1), lambda shape: torch.rand(shape, dtype=x.dtype, device=x.device)
    )
    reached = cumulative >= draw * cumulative[..., -1:]
    return patches.gather(-1, reached.int().argmax(-1, keepdim=True))[..., 0]


def pool(
    method: PoolMethod, x: Tensor, windows: Windows, *, mask: bool, training: bool
) -> tuple[Tensor, ...]:
    """One of these; only of maxima there is a mask."""
    if method is PoolMethod.MAX:
        return max_pool(x, windows, mask)
    if method is PoolMethod.AVE:
        return (average_pool(x, windows),)
    return (stochastic_pool(x, windows, training),)
