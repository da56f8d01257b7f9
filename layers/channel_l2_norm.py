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
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ._engine import cuda
from ._engine.checks import BlobError, Shape
from ._engine.declared import Bottom, Top
from ._engine.definition import Spec, define
from ._engine.layer import Layer
from ._engine.params import param
from ._engine.registry import register
from ._engine.samples import Sample
from ._engine.wide import wide, wide_dtype

if TYPE_CHECKING:
    import numpy as np


class EpsilonMode(enum.Enum):
    """What keeps the denominator from 0."""

    NONE = 0
    SQRT = 1
    MAX = 2


@dataclass(frozen=True)
class Params:
    eps: float = param(1e-12, low=0, doc="the least length (MAX), or added to its square (SQRT)")
    eps_mode: EpsilonMode = param(EpsilonMode.MAX, doc="how eps enters the denominator")


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
        **_launch(params, x),
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
        **_launch(params, x),
    )
    return gradient


def _launch(params: Params, x: Tensor) -> dict[str, float]:
    """What both kernels are given: as many lanes as let the channels fit in registers, but no fewer
    than read whole sectors of memory."""
    images, channels, locations = x.shape[0], x.shape[1], math.prod(x.shape[2:])
    threads = cuda.threads(512)
    lanes = min(threads, 1 << max(locations - 1, 0).bit_length())
    while lanes > 8 and channels * lanes > KEPT * threads:
        lanes //= 2
    return {
        "grid": images * -(-locations // lanes),
        "block": threads,
        "channels": channels,
        "locations": locations,
        "lanes": lanes,
        "least": params.eps if params.eps_mode is EpsilonMode.MAX else -1,
    }


definition = define(__name__, kept=("denominator",), traced=True)


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
        from ._samples import channel_l2_norm as own

        return own.samples(size, rng)
