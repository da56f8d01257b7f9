"""RectifiedCosine: how alike two sets of descriptors look, by the cosine where it is positive.

SCNet, Eq. 6, of every match (r, s):

    f[r, s] = max(0, c(r) . c(s)) ^ exponent,    c(r) = a[r] / max(|a[r]|, eps),  c(s) likewise of b

Bottoms: ``a`` ``[P, D]`` and ``b`` ``[S, D]``, or ``[N, P, D]`` and ``[N, S, D]``, one floating type;
``[P, D, 1, 1]``, a convolution's top, counts as ``[P, D]``. Top: ``[P, S]`` or ``[N, P, S]`` in that
type. With ``normalized`` the descriptors are of unit length already and are taken as they are.
Products are computed in float32 or wider.

Backward fills both gradients: with h = exponent (c . c)^(exponent - 1) where the cosine is positive,
else 0 (at 0 too), G = g h for the top's gradient g, and E = G c(s),

    da = (E - c(r) (c(r) . E)) / |a[r]|,    or E / eps where |a[r]| <= eps,    or E if normalized

On CUDA the matrix products are torch's (cuBLAS), in float32, or TF32 where torch is told to; kernels
do what surrounds them, each in one pass.

Source: SCNet, Eq. 6 (exponent 1); Hyperpixel Flow's confidence has exponent 3.
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class Params:
    exponent: float = param(1.0, low=1, doc="of the rectified cosine")
    normalized: bool = param(False, doc="the descriptors are unit vectors already")
    eps: float = param(1e-12, above=0, doc="the least length to divide by")


BOTTOMS = (Bottom("a", "[P, D] or [N, P, D]"), Bottom("b", "[S, D] or [N, S, D]"))
TOPS = (Top("top"),)


def infer(params: Params, a: Shape, b: Shape) -> tuple[Shape]:
    """``[P, S]`` or ``[N, P, S]``; raises :class:`BlobError` for bottoms that do not fit together."""
    one, other = _table(a), _table(b)
    for name, shape, found in (("a", a, one), ("b", b, other)):
        if len(found) not in (2, 3):
            raise BlobError(f"expected {{{name}}} to be [P, D] or [N, P, D]", **{name: shape})
    if len(one) != len(other) or one[:-2] != other[:-2]:
        raise BlobError("batch sizes differ: {a}, {b}", a=a, b=b)
    if one[-1] != other[-1]:
        raise BlobError("dimensions differ: {a}, {b}", a=a, b=b)
    return ((*one[:-1], other[-2]),)


def _table(shape: Shape) -> Shape:
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape


def meta(params: Params, a: Tensor, b: Tensor) -> Sequence[Spec | None]:
    """The top; the rectified cosines, unless they are the top."""
    one, other = _table(a.shape), _table(b.shape)
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
    x = wide(x.reshape(_table(x.shape)))
    if params.normalized:
        return x, x.new_ones(())
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_(min=params.eps)
    return x / length, length


def _through(gradient: Tensor, unit: Tensor, length: Tensor, params: Params) -> Tensor:
    """From the unit vectors' gradient to the descriptors'."""
    if params.normalized:
        return gradient
    along = (gradient * unit).sum(-1, keepdim=True).masked_fill_(length <= params.eps, 0).neg_()
    return gradient.addcmul_(unit, along).div_(length)  # with a value compilers round otherwise


kernels = cuda.Kernels(__file__)


def forward_cuda(params: Params, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor | None]:
    (one, _), (other, _) = _unit_cuda(a, params), _unit_cuda(b, params)
    cosine = one @ other.mT
    is_top = _is_top(params, a.dtype)
    top = cosine if is_top else torch.empty_like(cosine, dtype=a.dtype)
    threads = cuda.threads(256)
    kernels.launch(
        "rectified_cosine_rectify",
        scalar=a.dtype,
        cosine=cosine,
        top=None if is_top else top,
        total=cosine.numel(),
        exponent=params.exponent,
        grid=cuda.blocks(cosine.numel(), threads),
        block=threads,
    )
    return top, None if is_top else cosine


def backward_cuda(
    params: Params, wanted: Sequence[bool], top_gradient: Tensor, a: Tensor, b: Tensor, cosine: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    (one, length), (other, other_length) = _unit_cuda(a, params), _unit_cuda(b, params)
    slope = torch.empty_like(cosine)
    threads = cuda.threads(256)
    kernels.launch(
        "rectified_cosine_slope",
        top_gradient=top_gradient.contiguous(),
        cosine=cosine,
        slope=slope,
        total=cosine.numel(),
        exponent=params.exponent,
        grid=cuda.blocks(cosine.numel(), threads),
        block=threads,
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
    x = x.reshape(_table(x.shape))
    unit = torch.empty(x.shape, dtype=cuda.accumulator_dtype(x.dtype), device=x.device)
    length = unit.new_empty(x.shape[:-1])
    kernels.launch(
        "rectified_cosine_unit",
        x=x.contiguous(),
        unit=unit,
        length=length,
        size=x.shape[-1],
        eps=params.eps,
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
        unit_gradient=gradient,
        unit=unit,
        length=length,
        gradient=found,
        size=unit.shape[-1],
        eps=params.eps,
        grid=length.numel(),
        block=cuda.threads(256),
    )
    return found.view(bottom.shape)


definition = Definition(
    "rectified_cosine",
    Params,
    BOTTOMS,
    TOPS,
    kept=("cosine",),
    infer=infer,
    meta=meta,
    forward=forward,
    backward=backward,
    forward_cuda=forward_cuda,
    backward_cuda=backward_cuda,
    traced=True,
)


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
        return math.prod(tops[0]) * _table(bottoms[0])[-1]

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        def sample(
            name: str, a: Shape, b: Shape, *options: Any, scale: float = 1.0, check: bool = True
        ) -> Sample:
            """Elements of a descriptor have one sign, so that no cosine is near 0."""
            tables = []
            for shape in (a, b):
                lead = len(_table(shape)) - 1
                sign = rng.choice((-1, 1), (*shape[:lead], *(1,) * (len(shape) - lead)))
                tables.append(torch.from_numpy(scale * sign * np.abs(rng.standard_normal(shape))))
            return Sample(Params(*options), tuple(tables), (0, 1), name=name, check_gradient=check)

        if size == "paper":
            return [sample("1000 x 1000 regions", (1, 1000, 2048), (1, 1000, 2048))]
        if size == "large":
            return [sample("2000 x 2000 regions", (1, 2000, 2048), (1, 2000, 2048))]
        return [
            sample("batched", (2, 3, 4), (2, 5, 4), 1.5),
            sample("Eq. 6", (4, 6), (5, 6)),
            sample("cubed", (3, 5), (4, 5), 3.0),
            sample("unit vectors", (4, 5), (3, 5), 1.0, True, scale=0.5),
            sample("mostly below eps", (3, 4), (4, 4), 1.0, False, 2.0),
            sample("convolution's tops", (3, 4, 1, 1), (4, 4, 1, 1)),
            sample("long descriptors", (3, 300), (2, 300), 1.5, check=False),
        ]
