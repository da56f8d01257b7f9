"""ChannelL2Norm: each location's vector of channels divided by its Euclidean length.

    top[n, :, i] = x / denominator(|x|),   x = bottom[n, :, i]

Bottom: ``[N, C, ...]``, any floating type. Top: the same shape and type; sums are in float32 or
wider. ``eps_mode`` chooses the denominator:

=======  =======================  ================  ===============================================
mode     denominator              source            at x = 0
=======  =======================  ================  ===============================================
MAX      ``max(|x|, eps)``        F.normalize       top 0, gradient g / eps (g: the top's gradient)
SQRT     ``sqrt(|x|^2 + eps)``    SCNet, eps 1e-10  top 0, gradient g / sqrt(eps)
NONE     ``|x|``                  UCN (Section 4)   top and gradient NaN
=======  =======================  ================  ===============================================

MAX is the default: it is UCN's formula wherever that is defined, and finite elsewhere.

Backward, with d the denominator: ``dx = (g - x (x . g) / d^2) / d``; for MAX at ``|x| <= eps``
the denominator is constant and ``dx = g / eps``.

*Differs from the original:* UCN's released layer has no eps (``eps_mode: NONE``).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._engine import cuda
from ._engine.checks import BlobError, Shape
from ._engine.declared import Bottom, Top
from ._engine.definition import Definition, Spec
from ._engine.layer import Layer
from ._engine.params import param
from ._engine.registry import register
from ._engine.samples import Sample
from ._engine.wide import wide, wide_dtype


class EpsilonMode(enum.Enum):
    """What keeps the denominator from 0."""

    NONE = 0
    SQRT = 1
    MAX = 2


@dataclass(frozen=True)
class Params:
    eps: float = param(1e-12, low=0, doc="SCNet: 1e-10 with SQRT; without meaning for NONE")
    eps_mode: EpsilonMode = param(EpsilonMode.MAX, doc="where eps enters")


BOTTOMS = (Bottom("bottom", "[N, C, ...]"),)
TOPS = (Top("top"),)


def infer(params: Params, bottom: Shape) -> tuple[Shape]:
    """The bottom's own shape; raises :class:`BlobError` unless it has a channel axis."""
    if len(bottom) < 2:
        raise BlobError("expected {bottom} to be [N, C, ...]", bottom=bottom)
    return (bottom,)


def meta(params: Params, bottom: Tensor) -> Sequence[Spec]:
    """The top; the denominators ``[N, 1, ...]``."""
    shape = bottom.shape
    return (shape, bottom.dtype), ((shape[0], 1, *shape[2:]), wide_dtype(bottom.dtype))


def forward(params: Params, bottom: Tensor) -> tuple[Tensor, Tensor]:
    x = wide(bottom)
    top = x * x
    square = top.sum(1, keepdim=True)
    if params.eps_mode is EpsilonMode.SQRT:
        square += params.eps
    denominator = square.sqrt_()
    if params.eps_mode is EpsilonMode.MAX:
        denominator.clamp_(min=params.eps)
    return torch.div(x, denominator, out=top).to(bottom.dtype), denominator


def backward(params: Params, top_gradient: Tensor, bottom: Tensor, denominator: Tensor) -> Tensor:
    g, x = wide(top_gradient), wide(bottom)
    gradient = x * g
    along = gradient.sum(1, keepdim=True).div_(denominator).div_(denominator).neg_()
    if params.eps_mode is EpsilonMode.MAX:
        along.masked_fill_(denominator <= params.eps, 0)
    torch.mul(x, along, out=gradient)
    return gradient.add_(g).div_(denominator).to(bottom.dtype)


kernels = cuda.Kernels(__file__)
KEPT = 8  # channels a thread keeps in registers (KEEP in the .cu)


def forward_cuda(params: Params, bottom: Tensor) -> tuple[Tensor, Tensor]:
    x = bottom.contiguous()
    top = torch.empty_like(x)
    denominator = x.new_empty((x.shape[0], 1, *x.shape[2:]), dtype=wide_dtype(x.dtype))
    kernels.launch(
        "channel_l2_norm_forward",
        x=x,
        y=top,
        denominator=denominator,
        added=params.eps if params.eps_mode is EpsilonMode.SQRT else 0,
        least=params.eps if params.eps_mode is EpsilonMode.MAX else -1,
        **_launch(x),
    )
    return top, denominator


def backward_cuda(params: Params, top_gradient: Tensor, bottom: Tensor, denominator: Tensor) -> Tensor:
    x = bottom.contiguous()
    gradient = torch.empty_like(x)
    kernels.launch(
        "channel_l2_norm_backward",
        top_gradient=top_gradient.contiguous(),
        x=x,
        denominator=denominator,
        gradient=gradient,
        least=params.eps if params.eps_mode is EpsilonMode.MAX else -1,
        **_launch(x),
    )
    return gradient


def _launch(x: Tensor) -> dict[str, int]:
    """As many lanes as let the channels fit in registers, but whole sectors of memory."""
    images, channels, locations = x.shape[0], x.shape[1], math.prod(x.shape[2:])
    threads = cuda.threads(512)
    lanes = min(threads, 1 << max(locations - 1, 0).bit_length())
    while lanes > 8 and channels * lanes > KEPT * threads:
        lanes //= 2
    grid = images * -(-locations // lanes)
    return {
        "grid": grid,
        "block": threads,
        "channels": channels,
        "locations": locations,
        "lanes": lanes,
    }


definition = Definition(
    "channel_l2_norm",
    Params,
    BOTTOMS,
    TOPS,
    kept=("denominator",),
    infer=infer,
    meta=meta,
    forward=forward,
    backward=backward,
    forward_cuda=forward_cuda,
    backward_cuda=backward_cuda,
    traced=True,
)


def channel_l2_norm(
    bottom: Tensor, eps: float = Params.eps, eps_mode: EpsilonMode | str = Params.eps_mode
) -> Tensor:
    """``bottom`` ``[N, C, ...]`` with every location's channels scaled to unit length.

    ``eps_mode`` is ``"MAX"``: max(norm, eps), ``"SQRT"``: sqrt(norm^2 + eps), or ``"NONE"``; see
    the module for what happens at a zero vector. Same shape and dtype out. Raises ``BlobError``
    for less than two axes, ``TypeError`` unless floating point. Source: UCN, Section 4.
    """
    top: Tensor = definition(definition.params(eps, eps_mode), bottom)
    return top


@register("ChannelL2Norm", aliases=("L2NormLayer",))
class ChannelL2Norm(Layer):
    definition = definition

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        def sample(name: str, shape: Shape, *options: Any, scale: float = 1.0) -> Sample:
            x = scale * rng.standard_normal(shape)
            return Sample(Params(*options), (torch.from_numpy(x),), name=name)

        if size == "paper":
            return [sample("features of KITTI", (2, 128, 95, 311))]
        if size == "large":
            return [sample("many channels", (8, 1024, 95, 311))]
        shape = (2, 3, 4, 5)
        return [
            sample("max", shape),
            sample("max, mostly below eps", shape, 3.0, EpsilonMode.MAX),
            sample("sqrt", shape, 0.1, EpsilonMode.SQRT),
            sample("SCNet", (7, 6, 1, 1), 1e-10, EpsilonMode.SQRT),
            sample("none", (2, 3, 5), 0.0, EpsilonMode.NONE, scale=100.0),
            sample("vectors", (4, 3)),
            sample("many channels", (1, 70, 3, 3)),
            sample("one channel, 3-D", (1, 1, 2, 2, 2), 0.5, EpsilonMode.SQRT),
        ]
