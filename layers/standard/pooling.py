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
STOCHASTIC: in phase TRAIN one element x of the window, drawn with probability x / sum x from torch's
own generator, which gets all of the gradient; in phase TEST sum x^2 / sum x, or 0 where the sum is not
positive. Elements are expected not to be negative, and ``pad`` to be 0.

Differs from the original: a NaN in a window makes its maximum NaN (Caffe's comparison skips it);
Caffe has STOCHASTIC on GPUs only, and in its backward of phase TEST takes the last draw of TRAIN.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from torch import Tensor

from .._engine.checks import Shape
from .._engine.declared import Bottom
from .._engine.layer import Layer
from .._engine.params import Engine, param
from .._engine.reach import Reach, window
from .._engine.registry import register
from .._engine.samples import Sample, distinct
from ._pool import Pair, PoolMethod, Windows, pool, windows_over


class RoundMode(Enum):
    """How the number of windows is rounded."""

    CEIL = 0
    FLOOR = 1


@dataclass(frozen=True)
class Params:
    """``pooling_param``. Sizes are pixels; each is given once for both axes, or as its _h and _w."""

    pool: PoolMethod = param(PoolMethod.MAX, doc="maximum, mean, or one element at random")
    pad: int | None = param(None, low=0, doc="default 0")
    pad_h: int | None = param(None, low=0, doc="rows above and below")
    pad_w: int | None = param(None, low=0, doc="columns beside")
    kernel_size: int | None = param(None, low=1, doc="both sides of the window")
    kernel_h: int | None = param(None, low=1, doc="rows")
    kernel_w: int | None = param(None, low=1, doc="columns")
    stride: int | None = param(None, low=1, doc="default 1")
    stride_h: int | None = param(None, low=1, doc="rows")
    stride_w: int | None = param(None, low=1, doc="columns")
    engine: Engine = param(Engine.DEFAULT, doc="accepted, has no effect")
    global_pooling: bool = param(False, doc="one window, the whole image")
    round_mode: RoundMode = param(RoundMode.CEIL, doc="of the number of windows")

    def __post_init__(self) -> None:
        kernel, pads, strides = self.kernel, self.pads, self.strides
        if self.global_pooling and kernel:
            raise ValueError("global_pooling takes no kernel size")
        if self.global_pooling and (pads, strides) != ((0, 0), (1, 1)):
            raise ValueError("global_pooling takes no pad and no stride")
        if not self.global_pooling and not kernel:
            raise ValueError("give kernel_size, or kernel_h and kernel_w")
        if kernel and (pads[0] >= kernel[0] or pads[1] >= kernel[1]):
            raise ValueError(f"pad {pads} must be smaller than the kernel {kernel}")
        if any(pads) and self.pool is PoolMethod.STOCHASTIC:
            raise ValueError("STOCHASTIC pooling takes no pad")

    @property
    def kernel(self) -> Pair | None:
        h, w = self.kernel_h, self.kernel_w
        if self.kernel_size is not None and None in (h, w):  # Caffe passes over one of them alone
            h = w = None
        return _pair("kernel_size", self.kernel_size, h, w, "kernel")

    @property
    def pads(self) -> Pair:
        return _pair("pad", self.pad, self.pad_h, self.pad_w) or (0, 0)

    @property
    def strides(self) -> Pair:
        return _pair("stride", self.stride, self.stride_h, self.stride_w) or (1, 1)

    def windows(self, bottom: Shape) -> Windows:
        """The windows over a bottom; raises BlobError as :func:`infer` does."""
        kernel = self.kernel
        if self.global_pooling:
            kernel = (bottom[2], bottom[3]) if len(bottom) == 4 else (1, 1)
        assert kernel, "__post_init__ sees to it"
        ceil = self.round_mode is RoundMode.CEIL
        return windows_over(bottom, kernel, self.strides, self.pads, ceil)


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
    top = (*bottom[:2], *params.windows(bottom).count)
    return (top, top) if params.pool is PoolMethod.MAX else (top,)


@register("Pooling", bottoms=1, tops=(1, 2))
class Pooling(Layer):
    """See the module's text."""

    Params = Params
    BOTTOMS = (Bottom("bottom"),)
    infer = staticmethod(infer)

    @classmethod
    def reach(cls, params: Any, i: int, bottom: Shape, j: int, top: Shape) -> tuple[Reach, ...] | None:
        w = params.windows(bottom)
        return tuple(window(*axis) for axis in zip(w.kernel, w.stride, w.pad, strict=True))

    def forward(self, bottom: Tensor) -> Tensor | tuple[Tensor, ...]:
        windows, mask = self.params.windows(tuple(bottom.shape)), len(self.tops) != 1
        tops = pool(self.params.pool, bottom, windows, mask=mask, training=self.training)
        return tops if len(tops) > 1 else tops[0]

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
