"""BatchNorm: (x - mean) / sqrt(variance + eps) of each channel, over batch and space
(Ioffe & Szegedy 2015, without the scale and shift: Caffe leaves these to a Scale layer).

Bottom [N, C, ...], top of the same shape. With ``use_global_stats`` (unless given: in phase TEST)
mean and variance are the stored ones, else the batch's own, with the biased variance.

Blobs: mean [C], variance [C] and count [1], which no solver changes: sums that are not normalised,
starting at 0. Each forward with the batch's statistics, in either phase, updates them

    mean      <- fraction mean + batch mean
    variance  <- fraction variance + m / (m - 1) batch variance     (1 instead of m / (m - 1) for m = 1)
    count     <- fraction count + 1

with fraction = ``moving_average_fraction`` and m = N x space; an empty batch updates nothing. The
stored statistics are mean / count and variance / count, both 0 where count is 0.

Half precision is computed in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._engine.checks import BlobError, Shape
from .._engine.declared import Bottom, Trait
from .._engine.layer import Layer
from .._engine.params import Engine, param
from .._engine.registry import register
from .._engine.samples import Sample, normal


@dataclass(frozen=True)
class Params:
    """``batch_norm_param``."""

    use_global_stats: bool | None = param(None, doc="default: in phase TEST")
    moving_average_fraction: float = param(0.999, doc="how much of the old sums each forward keeps")
    eps: float = param(1e-5, doc="added to the variance")
    engine: Engine = param(Engine.DEFAULT, doc="accepted, has no effect")


def infer(params: Params, bottom: Shape) -> tuple[Shape, ...]:
    """The top's shape is the bottom's; raises BlobError unless that has channels."""
    if len(bottom) < 2:
        raise BlobError("expected {bottom} to be [N, C, ...]", bottom=bottom)
    return (bottom,)


@register("BatchNorm")
class BatchNorm(Layer):
    """See the module's text."""

    Params = Params
    BOTTOMS = (Bottom("bottom"),)
    TRAITS = (Trait.STATISTICS,)
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
        self.blob_names = ("mean", "variance", "count")
        self.mean, self.variance, self.count = (
            nn.Parameter(torch.zeros(length), requires_grad=False)
            for length in (bottom[1], bottom[1], 1)
        )

    def forward(self, bottom: Tensor) -> Tensor:
        self.check(bottom)
        if bottom.shape[1] != len(self.mean):
            raise BlobError(
                f"{{bottom}} has {bottom.shape[1]} channels, the statistics are of {len(self.mean)}",
                bottom=bottom.shape,
            )
        half = bottom.dtype in (torch.float16, torch.bfloat16)
        x = bottom.float() if half else bottom
        stored = self.params.use_global_stats
        by_stored = not self.training if stored is None else stored
        return (self._by_stored(x) if by_stored else self._by_batch(x)).to(bottom.dtype)

    def _by_stored(self, x: Tensor) -> Tensor:
        count = self.count.detach()
        factor = torch.where(count == 0, 0, 1 / count)
        mean, variance = (blob.detach().mul(factor).to(x.dtype) for blob in (self.mean, self.variance))
        cudnn = torch.backends.cudnn.enabled
        # F.batch_norm refuses a negative eps, which Caffe adds like any other.
        return torch.batch_norm(x, None, None, mean, variance, False, 0.0, self.params.eps, cudnn)

    def _by_batch(self, x: Tensor) -> Tensor:
        m = x.numel() // max(1, x.shape[1])
        if m == 0:
            return x.view_as(x)
        if m == 1:  # exactly 0, which x / std - mean / std would miss
            self._update(x.detach().flatten(), torch.zeros_like(self.variance))
            return x - x
        mean, variance = x.new_zeros(2, len(self.mean))  # torch keeps 0 times what is there
        top = torch.batch_norm(x, None, None, mean, variance, True, 1.0, self.params.eps, False)
        self._update(mean, variance)
        if not self.params.eps:  # 0 / 0, of which torch makes 0
            top = top / (variance != 0).to(x.dtype).reshape(-1, *[1] * (x.dim() - 2))
        return top

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor) -> None:
        """``variance`` is the unbiased one."""
        for blob, new in ((self.mean, mean), (self.variance, variance), (self.count, 1)):
            blob.mul_(self.params.moving_average_fraction).add_(new)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        params = Params(use_global_stats=False, eps=0.01)
        if size != "small":  # ResNet-50's first
            scale = 1 if size == "paper" else 2
            return [Sample(params, (normal(rng, (2, 64, 32 * scale, 104 * scale)),))]
        x = normal(rng, (4, 3, 2, 2))
        return [
            Sample(params, (x,), name="batch"),
            Sample(params, (x[:, :, 0, 0],), name="2-D"),
            Sample(Params(use_global_stats=True, eps=0.01), (x,), name="stored"),
        ]
