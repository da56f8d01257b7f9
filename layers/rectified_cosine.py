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
from torch.autograd.function import once_differentiable

from ._runtime import autocast, cuda
from ._runtime.checks import BlobError, Shape, expect_floating, shapes
from ._runtime.dispatch import use_cuda
from ._runtime.layer import Layer
from ._runtime.params import param, valid
from ._runtime.registry import register
from ._runtime.samples import Sample


@dataclass(frozen=True)
class Params:
    exponent: float = param(1.0, low=1, doc="of the rectified cosine")
    normalized: bool = param(False, doc="the descriptors are unit vectors already")
    eps: float = param(1e-12, above=0, doc="the least length to divide by")


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


def forward(a: Tensor, b: Tensor, params: Params) -> tuple[Tensor, Tensor]:
    """The top, and the rectified cosines in float32 or wider: the same one for exponent 1."""
    (one, _), (other, _) = _unit(a, params), _unit(b, params)
    cosine = (one @ other.mT).clamp_(min=0)
    top = cosine if params.exponent == 1 else cosine**params.exponent
    return top.to(a.dtype), cosine


def backward(
    top_gradient: Tensor,
    a: Tensor,
    b: Tensor,
    cosine: Tensor,
    params: Params,
    wanted: tuple[bool, bool] = (True, True),
) -> tuple[Tensor | None, Tensor | None]:
    """The bottoms' gradients, where ``wanted``."""
    (one, length), (other, other_length) = _unit(a, params), _unit(b, params)
    slope = (cosine > 0).to(cosine.dtype)
    if params.exponent != 1:
        slope = params.exponent * cosine ** (params.exponent - 1) * slope
    slope *= top_gradient.to(cosine.dtype)
    found: list[Tensor | None] = [None, None]
    if wanted[0]:
        found[0] = _through(slope @ other, one, length, params).to(a.dtype)
    if wanted[1]:
        found[1] = _through(slope.mT @ one, other, other_length, params).to(b.dtype)
    return found[0], found[1]


def _unit(x: Tensor, params: Params) -> tuple[Tensor, Tensor]:
    """The descriptors to multiply, in float32 or wider, and what they were divided by."""
    x = x if x.dtype == torch.float64 else x.float()
    if params.normalized:
        return x, x.new_ones(())
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_(min=params.eps)
    return x / length, length


def _through(gradient: Tensor, unit: Tensor, length: Tensor, params: Params) -> Tensor:
    """From the unit vectors' gradient to the descriptors'."""
    if params.normalized:
        return gradient
    along = (gradient * unit).sum(-1, keepdim=True).masked_fill_(length <= params.eps, 0)
    return gradient.addcmul_(unit, along, value=-1).div_(length)


kernels = cuda.Kernels(__file__)


def forward_cuda(a: Tensor, b: Tensor, params: Params) -> tuple[Tensor, Tensor]:
    (one, _), (other, _) = _unit_cuda(a, params), _unit_cuda(b, params)
    cosine = one @ other.mT
    top = cosine
    if params.exponent != 1 or a.dtype != cosine.dtype:
        top = torch.empty_like(cosine, dtype=a.dtype)
    threads = cuda.threads(256)
    kernels.launch(
        "rectified_cosine_rectify",
        scalar=a.dtype,
        cosine=cosine,
        top=None if top is cosine else top,
        total=cosine.numel(),
        exponent=params.exponent,
        grid=cuda.blocks(cosine.numel(), threads),
        block=threads,
    )
    return top, cosine


def backward_cuda(
    top_gradient: Tensor,
    a: Tensor,
    b: Tensor,
    cosine: Tensor,
    params: Params,
    wanted: tuple[bool, bool] = (True, True),
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
        found[0] = _through_cuda(slope @ other, one, length, params, a.dtype)
    if wanted[1]:
        found[1] = _through_cuda(slope.mT @ one, other, other_length, params, b.dtype)
    return found[0], found[1]


def _unit_cuda(x: Tensor, params: Params) -> tuple[Tensor, Tensor]:
    if params.normalized:
        return _unit(x, params)
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
    gradient: Tensor, unit: Tensor, length: Tensor, params: Params, dtype: torch.dtype
) -> Tensor:
    if params.normalized:
        return gradient.to(dtype)
    found = torch.empty_like(gradient, dtype=dtype)
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
    return found


class Function(torch.autograd.Function):
    @staticmethod
    def forward(a: Tensor, b: Tensor, params: Params) -> tuple[Tensor, Tensor | None]:
        top, cosine = (forward_cuda if use_cuda(a, b) else forward)(a, b, params)
        return top, None if cosine is top else cosine

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor | None]) -> None:
        a, b, ctx.params = inputs
        top, cosine = output
        if cosine is not None:
            ctx.mark_non_differentiable(cosine)
        ctx.save_for_backward(a, b, top if cosine is None else cosine)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_gradient: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        a, b, cosine = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        path = backward_cuda if use_cuda(top_gradient, a, b) else backward
        return *path(top_gradient, a, b, cosine, ctx.params, wanted), None


def rectified_cosine(
    a: Tensor, b: Tensor, exponent: float = 1.0, normalized: bool = False, eps: float = 1e-12
) -> Tensor:
    """``max(0, cos)^exponent`` of each descriptor of ``a`` ``[P, D]`` with each of ``b`` ``[S, D]``.

    Gives ``[P, S]``; for ``[N, P, D]`` and ``[N, S, D]``, ``[N, P, S]``. With ``normalized`` the
    descriptors are taken for unit vectors. Raises ``BlobError`` for shapes that do not fit,
    ``TypeError`` unless both are of one floating type on one device. Source: SCNet, Eq. 6.
    """
    params = valid(Params(exponent, normalized, eps))
    infer(params, **shapes("rectified_cosine", a=a, b=b))
    expect_floating(a=a, b=b)
    a, b = a.reshape(_table(a.shape)), b.reshape(_table(b.shape))
    top: Tensor = autocast.apply(Function, a, b, params)[0]
    return top


@register("RectifiedCosine", bottoms=2, tops=1)
class RectifiedCosine(Layer):
    Params = Params
    bottom_names = ("a", "b")
    infer = staticmethod(infer)

    @classmethod
    def multiply_adds(
        cls, params: Any, bottoms: Sequence[Shape], tops: Sequence[Shape], blobs: Sequence[Shape]
    ) -> int | None:
        return math.prod(tops[0]) * _table(bottoms[0])[-1]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return rectified_cosine(a, b, self.params.exponent, self.params.normalized, self.params.eps)

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
