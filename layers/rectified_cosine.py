"""RectifiedCosine: how alike two sets of descriptors look, by the cosine where it is positive.

SCNet, Eq. 6, of every match (r, s):

    f[r, s] = max(0, c(r) . c(s)) ^ exponent,    c(r) = a[r] / max(|a[r]|, eps),  c(s) likewise of b

Bottoms: ``a`` ``[P, D]`` and ``b`` ``[S, D]``, or ``[N, P, D]`` and ``[N, S, D]``, one floating type;
``[P, D, 1, 1]``, a convolution's top, counts as ``[P, D]``. Top: ``[P, S]`` or ``[N, P, S]`` in that
type. With ``normalized`` the descriptors are of unit length already and are taken as they are.
Products are computed in float32 or wider.

Backward fills both gradients: with h = exponent (c . c)^(exponent - 1) where the cosine is positive,
else 0 (at 0 too), G = g h for the top's gradient g, and E = sum_s G[r, s] c(s),

    da = (E - c(r) (c(r) . E)) / |a[r]|,    or E / eps where |a[r]| <= eps,    or E if normalized

On CUDA the matrix products are torch's (cuBLAS), in float32, or in TF32 where torch is told to;
kernels compute the unit vectors, the powers and the slopes, each in one pass.

Source: SCNet, Eq. 6 (exponent 1); Hyperpixel Flow's confidence has exponent 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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


@dataclass(frozen=True)
class Params:
    exponent: float = param(1.0, low=1, doc="the power of the rectified cosine")
    normalized: bool = param(False, doc="the descriptors are unit vectors already")
    eps: float = param(1e-12, above=0, unit="descriptor length", doc="the least to divide by")


BOTTOMS = (Bottom("a", "[P, D] or [N, P, D]"), Bottom("b", "[S, D] or [N, S, D]"))
TOPS = (Top("top"),)


def infer(params: Params, a: Shape, b: Shape) -> tuple[Shape]:
    """``[P, S]`` or ``[N, P, S]``; raises :class:`BlobError` for bottoms that do not fit together."""
    one, other = squeezed(a), squeezed(b)
    for name, shape, found in (("a", a, one), ("b", b, other)):
        if len(found) not in (2, 3):
            raise BlobError(f"expected {{{name}}} to be [P, D] or [N, P, D]", **{name: shape})
    if len(one) != len(other) or one[:-2] != other[:-2]:
        raise BlobError("batch sizes differ: {a}, {b}", a=a, b=b)
    if one[-1] != other[-1]:
        raise BlobError("dimensions differ: {a}, {b}", a=a, b=b)
    return ((*one[:-1], other[-2]),)


def squeezed(shape: Shape) -> Shape:
    """A convolution's top ``[P, D, 1, 1]`` counts as ``[P, D]``."""
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape


def meta(params: Params, a: Tensor, b: Tensor) -> Sequence[Spec | None]:
    """The top; the rectified cosines, unless they are the top."""
    one, other = squeezed(a.shape), squeezed(b.shape)
    shape = *one[:-1], other[-2]
    kept = None if _is_top(params, a.dtype) else (shape, wide_dtype(a.dtype))
    return (shape, a.dtype), kept


def _is_top(params: Params, dtype: torch.dtype) -> bool:
    """Whether the rectified cosines are the top itself."""
    return params.exponent == 1 and dtype == wide_dtype(dtype)


def forward(params: Params, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor | None]:
    (one, _), (other, _) = _unit(a, params), _unit(b, params)
    cosine = (one @ other.mT).clamp_(min=0)
    if _is_top(params, a.dtype):
        return cosine, None
    top = cosine if params.exponent == 1 else cosine**params.exponent
    return top.to(a.dtype), cosine


def backward(
    params: Params, wanted: Sequence[bool], top_gradient: Tensor, a: Tensor, b: Tensor, cosine: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    (one, length), (other, other_length) = _unit(a, params), _unit(b, params)
    slope = (cosine > 0).to(cosine.dtype)
    if params.exponent != 1:
        slope = params.exponent * cosine ** (params.exponent - 1) * slope
    slope *= top_gradient.to(cosine.dtype)
    found: list[Tensor | None] = [None, None]
    if wanted[0]:
        found[0] = _through(slope @ other, one, length, params).to(a.dtype).view(a.shape)
    if wanted[1]:
        found[1] = _through(slope.mT @ one, other, other_length, params).to(b.dtype).view(b.shape)
    return found[0], found[1]


def _unit(x: Tensor, params: Params) -> tuple[Tensor, Tensor]:
    """The descriptors to multiply, in float32 or wider, and what they were divided by."""
    x = wide(x.reshape(squeezed(x.shape)))
    if params.normalized:
        return x, x.new_ones(())
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_(min=params.eps)
    return x / length, length


def _through(gradient: Tensor, unit: Tensor, length: Tensor, params: Params) -> Tensor:
    """The descriptors' gradient, from that of the unit vectors."""
    if params.normalized:
        return gradient
    along = (gradient * unit).sum(-1, keepdim=True).masked_fill_(length <= params.eps, 0).neg_()
    return gradient.addcmul_(unit, along).div_(length)  # value=-1 would round otherwise when compiled


kernels = cuda.Kernels(__file__)


def forward_cuda(params: Params, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor | None]:
    (one, _), (other, _) = _unit_cuda(a, params), _unit_cuda(b, params)
    cosine = one @ other.mT
    is_top = _is_top(params, a.dtype)
    top = cosine if is_top else torch.empty_like(cosine, dtype=a.dtype)
    kernels.launch(
        "rectified_cosine_rectify",
        params,
        scalar=a.dtype,
        cosine=cosine,
        top=None if is_top else top,
        total=cosine.numel(),
        over=cosine.numel(),
    )
    return top, None if is_top else cosine


def backward_cuda(
    params: Params, wanted: Sequence[bool], top_gradient: Tensor, a: Tensor, b: Tensor, cosine: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    (one, length), (other, other_length) = _unit_cuda(a, params), _unit_cuda(b, params)
    slope = torch.empty_like(cosine)
    kernels.launch(
        "rectified_cosine_slope",
        params,
        top_gradient=top_gradient.contiguous(),
        cosine=cosine,
        slope=slope,
        total=cosine.numel(),
        over=cosine.numel(),
    )
    found: list[Tensor | None] = [None, None]
    if wanted[0]:
        found[0] = _through_cuda(slope @ other, one, length, params, a)
    if wanted[1]:
        found[1] = _through_cuda(slope.mT @ one, other, other_length, params, b)
    return found[0], found[1]


def _unit_cuda(x: Tensor, params: Params) -> tuple[Tensor, Tensor]:
    if params.normalized:
        return _unit(x, params)
    x = x.reshape(squeezed(x.shape))
    unit = torch.empty(x.shape, dtype=cuda.accumulator_dtype(x.dtype), device=x.device)
    length = unit.new_empty(x.shape[:-1])
    kernels.launch(
        "rectified_cosine_unit",
        params,
        x=x.contiguous(),
        unit=unit,
        length=length,
        size=x.shape[-1],
        grid=length.numel(),
        block=cuda.threads(256),
    )
    return unit, length


def _through_cuda(
    gradient: Tensor, unit: Tensor, length: Tensor, params: Params, bottom: Tensor
) -> Tensor:
    if params.normalized:
        return gradient.to(bottom.dtype).view(bottom.shape)
    found = torch.empty_like(gradient, dtype=bottom.dtype)
    kernels.launch(
        "rectified_cosine_descriptors",
        params,
        unit_gradient=gradient,
        unit=unit,
        length=length,
        gradient=found,
        size=unit.shape[-1],
        grid=length.numel(),
        block=cuda.threads(256),
    )
    return found.view(bottom.shape)


definition = define(__name__, kept=("cosine",), traced=True)


def rectified_cosine(
    a: Tensor,
    b: Tensor,
    exponent: float = Params.exponent,
    normalized: bool = Params.normalized,
    eps: float = Params.eps,
) -> Tensor:
    """``max(0, cos)^exponent`` of each descriptor of ``a`` ``[P, D]`` with each of ``b`` ``[S, D]``.

    Gives ``[P, S]``; for ``[N, P, D]`` and ``[N, S, D]``, ``[N, P, S]``. With ``normalized`` the
    descriptors are taken for unit vectors. Raises ``BlobError`` for shapes that do not fit,
    ``TypeError`` unless both are of one floating type on one device. Source: SCNet, Eq. 6.
    """
    top: Tensor = definition(definition.params(exponent, normalized, eps), a, b)
    return top


@register("RectifiedCosine")
class RectifiedCosine(Layer):
    definition = definition

    @classmethod
    def multiply_adds(
        cls, params: Any, bottoms: Sequence[Shape], tops: Sequence[Shape], blobs: Sequence[Shape]
    ) -> int | None:
        return math.prod(tops[0]) * squeezed(bottoms[0])[-1]

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        from ._samples import rectified_cosine as own

        return own.samples(size, rng)
