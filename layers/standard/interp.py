"""Interp: bilinear resizing with the corners' centres on each other (a layer of DeepLab's and
PSPNet's Caffe).

Bottom [N, C, H, W], of which ``pad_beg`` rows and columns at the start and ``pad_end`` at the end
(both 0 or negative) are cut off first. Top [N, C, H', W'], along each axis of length L

    shrink_factor s                  (L - 1) / s + 1, rounded down
    zoom_factor z                    (L - 1) z + 1
    both                             one after the other
    height and width                 as given

A single factor goes before the size, the size before both factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from .._engine.checks import BlobError, Shape, expect_axes
from .._engine.declared import Bottom
from .._engine.layer import Layer
from .._engine.params import param
from .._engine.reach import Reach
from .._engine.registry import register
from .._engine.samples import Sample, normal


@dataclass(frozen=True)
class Params:
    """``interp_param``. Sizes in pixels."""

    height: int | None = param(None, doc="1 or more, where the size counts")
    width: int | None = param(None, doc="1 or more, where the size counts")
    zoom_factor: int | None = param(None, doc="1 or more, where the factors count")
    shrink_factor: int | None = param(None, doc="1 or more, where the factors count")
    pad_beg: int = param(0, high=0, doc="cut off at the start: 0 or negative")
    pad_end: int = param(0, high=0, doc="cut off at the end: 0 or negative")

    def __post_init__(self) -> None:
        factors = {"zoom_factor": self.zoom_factor, "shrink_factor": self.shrink_factor}
        counted = {"height": self.height, "width": self.width} if self.size else factors
        if all(value is None for value in counted.values()):
            raise ValueError("give height and width, zoom_factor or shrink_factor")
        for name, value in counted.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    @property
    def size(self) -> tuple[int, int] | None:
        """The size given, unless a single factor goes before it."""
        one_factor = (self.zoom_factor is None) != (self.shrink_factor is None)
        if one_factor or self.height is None or self.width is None:
            return None
        return self.height, self.width


def resized(params: Params, length: int) -> int:
    """A length after shrinking and zooming."""
    shrunk = (length - 1) // (params.shrink_factor or 1) + 1
    return (shrunk - 1) * (params.zoom_factor or 1) + 1


def infer(params: Params, bottom: Shape) -> tuple[Shape, ...]:
    """The top's shape; raises BlobError unless the bottom has 4 axes, and pixels that are not cut."""
    expect_axes("N C H W", bottom=bottom)
    left = [length + params.pad_beg + params.pad_end for length in bottom[2:]]
    if min(left) < 1:
        cut = f"pad_beg {params.pad_beg} and pad_end {params.pad_end}"
        raise BlobError(f"{cut} leave nothing of {{bottom}}", bottom=bottom)
    if params.size:
        return ((*bottom[:2], *params.size),)
    return ((*bottom[:2], *(resized(params, length) for length in left)),)


@register("Interp")
class Interp(Layer):
    """See the module's text."""

    Params = Params
    BOTTOMS = (Bottom("bottom"),)
    infer = staticmethod(infer)

    @classmethod
    def reach(cls, params: Any, i: int, bottom: Shape, j: int, top: Shape) -> tuple[Reach, ...] | None:
        lengths = zip(bottom[2:], top[2:], strict=True)
        kept = ((n + params.pad_beg + params.pad_end, count) for n, count in lengths)
        strides = [Fraction(n - 1, count - 1) if count > 1 else Fraction(1) for n, count in kept]
        asides = [1 - Fraction(1, stride.denominator) for stride in strides]
        pairs = zip(strides, asides, strict=True)
        return tuple(Reach(1 + 2 * aside, stride, -params.pad_beg) for stride, aside in pairs)

    def forward(self, bottom: Tensor) -> Tensor:
        p: Params = self.params
        (top,) = infer(p, tuple(bottom.shape))
        rows, columns = (slice(-p.pad_beg, length + p.pad_end) for length in bottom.shape[2:])
        kept = bottom[:, :, rows, columns]
        return F.interpolate(kept, top[2:], mode="bilinear", align_corners=True)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        if size != "small":  # PSPNet's last
            scale = 1 if size == "paper" else 4
            return [Sample(Params(zoom_factor=8), (normal(rng, (1, 19, 15 * scale, 15 * scale)),))]
        x = normal(rng, (2, 3, 5, 6))
        return [
            Sample(Params(7, 4), (x,), name="size"),
            Sample(Params(zoom_factor=3), (x,), name="zoom"),
            Sample(Params(zoom_factor=3, shrink_factor=2, pad_beg=-1), (x,), name="both, cut"),
            Sample(Params(1, 1), (x,), name="one pixel"),
        ]
