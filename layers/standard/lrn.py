r"""LRN: local response normalization (Krizhevsky et al. 2012, section 3.3), as Caffe computes it.

    scale = k + alpha * mean(x^2 over the window),   y = x * scale^-beta

The window is ``local_size`` neighbouring channels at a pixel (ACROSS_CHANNELS) or the
``local_size`` x ``local_size`` pixels around it in its own channel (WITHIN_CHANNEL, where Caffe
ignores ``k`` and uses 1). It counts zeros beyond the borders: the mean always divides by the
window's full size.

Bottom [N, C, H, W], top of the same shape. Half precision is summed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._engine import cuda
from .._engine.checks import Shape, expect_axes
from .._engine.declared import Bottom, Top
from .._engine.definition import Definition, Spec
from .._engine.dispatch import kernels_for
from .._engine.layer import Layer
from .._engine.params import Engine, param
from .._engine.reach import SAME, Reach, window
from .._engine.registry import register
from .._engine.samples import Sample, normal
from .._engine.wide import wide, wide_dtype


class NormRegion(Enum):
    """Where the window lies."""

    ACROSS_CHANNELS = 0
    WITHIN_CHANNEL = 1


@dataclass(frozen=True)
class Params:
    """``lrn_param``."""

    local_size: int = param(5, low=1, doc="channels, or pixels a side; odd")
    alpha: float = param(1.0, doc="factor of the window's mean square")
    beta: float = param(0.75, doc="the exponent")
    norm_region: NormRegion = param(NormRegion.ACROSS_CHANNELS, doc="where the window lies")
    k: float = param(1.0, doc="ignored (1) within a channel")
    engine: Engine = param(Engine.DEFAULT, doc="accepted, has no effect")

    def __post_init__(self) -> None:
        if self.local_size % 2 == 0:
            raise ValueError(f"local_size must be odd, got {self.local_size}")

    @property
    def window_axes(self) -> tuple[int, ...]:
        return (1,) if self.norm_region is NormRegion.ACROSS_CHANNELS else (2, 3)


BOTTOMS = (Bottom("bottom", "[N, C, H, W]"),)
TOPS = (Top("top"),)


def infer(params: Params, bottom: Shape) -> tuple[Shape]:
    """The top's shape; raises BlobError unless the bottom has 4 axes."""
    expect_axes("N C H W", bottom=bottom)
    return (bottom,)


def meta(params: Params, bottom: Tensor) -> Sequence[Spec]:
    """The top; the scale."""
    return (bottom.shape, bottom.dtype), (bottom.shape, wide_dtype(bottom.dtype))


def window_mean(x: Tensor, params: Params) -> Tensor:
    """The mean of the window around each element, zeros beyond the borders.

    Shifted sums: several times as fast on a CPU as pooling, and symmetric, so that it is its own
    transpose in backward.
    """
    for axis in params.window_axes:
        size = x.shape[axis]
        total = x.clone()
        for shift in range(1, min(params.local_size // 2, size - 1) + 1):
            length = size - shift
            total.narrow(axis, shift, length).add_(x.narrow(axis, 0, length))
            total.narrow(axis, 0, length).add_(x.narrow(axis, shift, length))
        x = total
    return x.div_(params.local_size ** len(params.window_axes))


def inverse_power(scale: Tensor, beta: float) -> Tensor:
    """scale^-beta; the beta of every published net, 0.75, by square roots."""
    if beta == 0.75:
        root = scale.rsqrt()
        return root.sqrt().mul_(root)
    return scale.pow(-beta)


def forward(params: Params, bottom: Tensor) -> tuple[Tensor, Tensor]:
    x = wide(bottom)
    k = params.k if params.norm_region is NormRegion.ACROSS_CHANNELS else 1.0
    scale = window_mean(x.square(), params).mul_(params.alpha).add_(k)
    return inverse_power(scale, params.beta).mul_(x).to(bottom.dtype), scale


def backward(params: Params, top_gradient: Tensor, bottom: Tensor, scale: Tensor) -> Tensor:
    """dx = dy scale^-beta - 2 alpha beta x mean(dy x scale^(-beta-1) over the window)."""
    x = wide(bottom)
    direct = inverse_power(scale, params.beta).mul_(wide(top_gradient))
    cross = window_mean((direct * x).div_(scale), params).mul_(-2 * params.alpha * params.beta)
    return direct.addcmul_(cross, x).to(bottom.dtype)  # with its value compilers round otherwise


kernels = cuda.Kernels(__file__)
WINDOWS = (3, 5, 7)


def covers(params: Params) -> bool:
    """Whether the kernels compute this; the rest is the torch path's."""
    return params.norm_region is NormRegion.ACROSS_CHANNELS and params.local_size in WINDOWS


def infer_covered(params: Params, bottom: Shape) -> tuple[Shape]:
    """The same; raises ValueError for what the kernels do not compute."""
    if not covers(params):
        raise ValueError(f"the kernels are for windows of {WINDOWS} channels")
    return infer(params, bottom)


def forward_cuda(params: Params, bottom: Tensor) -> tuple[Tensor]:
    x = bottom.contiguous()
    y = torch.empty_like(x)
    kernels.launch("lrn_forward", x=x, y=y, **_launch(x, params))
    return (y,)


def backward_cuda(params: Params, top_gradient: Tensor, bottom: Tensor) -> Tensor:
    x = bottom.contiguous()
    gradient = torch.empty_like(x)
    kernels.launch(
        "lrn_backward",
        top_gradient=top_gradient.contiguous(),
        x=x,
        gradient=gradient,
        **_launch(x, params),
    )
    return gradient


def _launch(x: Tensor, params: Params) -> dict[str, Any]:
    """Spans of channels short enough to fill the device once, but not shorter than 16."""
    images, channels, height, width = x.shape
    threads, locations = cuda.threads(256), height * width
    wanted = cuda.multiprocessors(x.device) * 2048
    span = max(16, channels * images * locations // wanted)
    spans = -(-channels // span)
    return {
        "grid": (cuda.blocks(locations, threads), min(images * spans, 2**16 - 1)),
        "block": threads,
        "constants": {"WINDOW": params.local_size},
        "images": images,
        "channels": channels,
        "locations": locations,
        "span": span,
        "spans": spans,
        "k": params.k,
        "ratio": params.alpha / params.local_size,
        "beta": params.beta,
    }


definition = Definition(
    "lrn",
    Params,
    BOTTOMS,
    TOPS,
    kept=("scale",),
    infer=infer,
    meta=meta,
    forward=forward,
    backward=backward,
    traced=True,
    keeps_half=True,
)
# The kernels compute the scale again, which is dear in torch operations: they keep nothing.
by_kernels = Definition(
    "lrn_by_kernels",
    Params,
    BOTTOMS,
    TOPS,
    infer=infer_covered,
    meta=lambda params, bottom: meta(params, bottom)[:1],
    forward=lambda params, bottom: forward(params, bottom)[:1],
    backward=lambda params, top_gradient, bottom: backward(
        params, top_gradient, bottom, forward(params, bottom)[1]
    ),
    forward_cuda=forward_cuda,
    backward_cuda=backward_cuda,
    keeps_half=True,
)


@register("LRN")
class LRN(Layer):
    """See the module's text."""

    definition = definition

    @classmethod
    def reach(cls, params: Any, i: int, bottom: Shape, j: int, top: Shape) -> tuple[Reach, ...] | None:
        n, axes = params.local_size, params.window_axes
        return tuple(window(n, pad=n // 2) if axis in axes else SAME for axis in (2, 3))

    def forward(self, bottom: Tensor) -> Tensor:
        chosen = by_kernels if covers(self.params) and kernels_for(bottom) else definition
        return chosen(self.params, bottom)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        if size != "small":  # GoogLeNet's two, at half and at full size
            scale = 1 if size == "paper" else 2
            shape = (2, 64, 32 * scale, 104 * scale)
            return [Sample(Params(alpha=1e-4), (normal(rng, shape),), name="norm1")]
        x = normal(rng, (2, 6, 3, 2))
        ends = normal(rng, (1, 5, 2, 2))
        ends[:, [0, -1], 0] = 0
        return [
            Sample(Params(alpha=0.7, k=1.5), (x,), name="across"),
            Sample(Params(local_size=3, alpha=0.7, beta=0.6), (x,), name="across, beta 0.6"),
            Sample(Params(local_size=3, k=0), (ends,), name="across, k 0, ends 0"),
            Sample(Params(alpha=0.7), (normal(rng, (1, 37, 1, 3)),), name="across many"),
            Sample(Params(3, alpha=0.7, norm_region=NormRegion.WITHIN_CHANNEL), (x,), name="within"),
        ]
