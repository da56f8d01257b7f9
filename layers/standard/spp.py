"""SPP: spatial pyramid pooling (He et al. 2014): level l pools an image into 2^l x 2^l bins.

Bottom [N, C, H, W]. A level's windows are ceil(H / 2^l) high, as far apart, and padded so that they
cover the image (see Pooling for the rest). Top [N, C (1 + 4 + ... + 4^(pyramid_height - 1))], the
levels one after the other; [N, C, 1, 1] for one level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .._engine.checks import BlobError, Shape, expect_axes
from .._engine.declared import Bottom
from .._engine.layer import Layer
from .._engine.params import Engine, param
from .._engine.registry import register
from .._engine.samples import Sample, distinct
from ._pool import PoolMethod, Windows, pool, windows_over


@dataclass(frozen=True)
class Params:
    """``spp_param``."""

    pyramid_height: int = param(low=1, high=16, doc="levels; more need images of over 2^31 pixels")
    pool: PoolMethod = param(PoolMethod.MAX, doc="maximum, mean, or one element at random")
    engine: Engine = param(Engine.DEFAULT, doc="accepted, has no effect")


def level(params: Params, number: int, bottom: Shape) -> Windows:
    """The windows of a level.

    Raises BlobError for a bottom of other than 4 axes, an empty image, or one with so few pixels for
    its bins that a window could lie in the padding.
    """
    expect_axes("N C H W", bottom=bottom)
    bins = 2**number
    height, width = (-(-length // bins) for length in bottom[2:])
    down, across = (
        (size * bins - n + 1) // 2 for size, n in zip((height, width), bottom[2:], strict=True)
    )
    if down >= height or across >= width:
        text = f"level {number} pads {{bottom}} by {down} x {across} for windows of {height} x {width}"
        raise BlobError(text, bottom=bottom)
    if params.pool is PoolMethod.STOCHASTIC and (down or across):
        raise BlobError(f"STOCHASTIC pooling of {{bottom}} would pad level {number}", bottom=bottom)
    return windows_over(bottom, (height, width), (height, width), (down, across))


def infer(params: Params, bottom: Shape) -> tuple[Shape, ...]:
    """The top's shape; raises BlobError as :func:`level` does."""
    counts = [level(params, i, bottom).count for i in range(params.pyramid_height)]
    if len(counts) == 1:
        return ((*bottom[:2], *counts[0]),)
    return ((bottom[0], bottom[1] * sum(rows * columns for rows, columns in counts)),)


@register("SPP")
class SPP(Layer):
    """See the module's text."""

    Params = Params
    BOTTOMS = (Bottom("bottom"),)
    infer = staticmethod(infer)

    def forward(self, bottom: Tensor) -> Tensor:
        p: Params = self.params
        levels = [level(p, i, tuple(bottom.shape)) for i in range(p.pyramid_height)]
        tops = [pool(p.pool, bottom, w, mask=False, training=self.training)[0] for w in levels]
        return torch.cat([top.flatten(1) for top in tops], 1) if len(tops) > 1 else tops[0]

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        if size != "small":
            items = 2 if size == "paper" else 16
            return [Sample(Params(3), (distinct(rng, (items, 256, 13, 13)),))]
        x = distinct(rng, (2, 3, 7, 8))
        return [Sample(Params(2, method), (x,)) for method in (PoolMethod.MAX, PoolMethod.AVE)]
