"""Eltwise: the product, weighted sum or maximum of blobs, element by element.

Two or more bottoms of one shape, a top of that shape. A tied MAX gives its gradient to one bottom:
of the first two the second, a later one only if strictly greater. The gradient of PROD is the
product of the others; with ``stable_prod_grad: false`` it is top / bottom, as in Caffe NaN where a
bottom is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._runtime.checks import BlobError, Shape
from .._runtime.layer import Layer
from .._runtime.params import param
from .._runtime.registry import register
from .._runtime.samples import Sample, distinct


class EltwiseOp(Enum):
    """What is done with the bottoms."""

    PROD = 0
    SUM = 1
    MAX = 2


@dataclass(frozen=True)
class Params:
    """``eltwise_param``."""

    operation: EltwiseOp = param(EltwiseOp.SUM)
    coeff: tuple[float, ...] = param((), doc="SUM: a factor of each bottom, default 1")
    stable_prod_grad: bool = param(True, doc="PROD: multiply the others instead of dividing the top")

    def __post_init__(self) -> None:
        if self.coeff and self.operation is EltwiseOp.PROD:
            raise ValueError("coeff goes with SUM, not with PROD")


def infer(params: Params, *bottoms: Shape) -> tuple[Shape, ...]:
    """The top's shape; raises BlobError where bottoms differ, or coeff has another length."""
    for i, shape in enumerate(bottoms):
        if shape != bottoms[0]:
            raise BlobError(
                f"bottoms differ in shape: {{bottom0}}, {{bottom{i}}}",
                **{"bottom0": bottoms[0], f"bottom{i}": shape},
            )
    if params.coeff and len(params.coeff) != len(bottoms):
        raise BlobError(f"{len(params.coeff)} values of coeff for {len(bottoms)} bottoms")
    return (bottoms[0],)


class UnstableProduct(torch.autograd.Function):
    """The product whose gradient is the top divided by the bottom."""

    @staticmethod
    def forward(*bottoms: Tensor) -> Tensor:
        return reduce(torch.mul, bottoms)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(output, *inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        top, *bottoms = ctx.saved_tensors
        needed = zip(bottoms, ctx.needs_input_grad, strict=True)
        return tuple(top / bottom * grad if need else None for bottom, need in needed)


class Maximum(torch.autograd.Function):
    """The maximum, and the index of the bottom that gave it."""

    @staticmethod
    def forward(*bottoms: Tensor) -> tuple[Tensor, Tensor]:
        first = bottoms[0] > bottoms[1]
        top, winner = torch.where(first, bottoms[0], bottoms[1]), (~first).int()
        for i, bottom in enumerate(bottoms[2:], 2):
            above = bottom > top
            top, winner = torch.where(above, bottom, top), winner.masked_fill_(above, i)
        return top, winner

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (winner,) = ctx.saved_tensors
        needed = enumerate(ctx.needs_input_grad)
        return tuple(grad.masked_fill(winner != i, 0) if need else None for i, need in needed)


def weighted_sum(bottoms: tuple[Tensor, ...], coeff: tuple[float, ...]) -> Tensor:
    """The sum of coeff times bottom."""
    if not coeff:
        return reduce(torch.add, bottoms)
    total = bottoms[0] * coeff[0]
    for bottom, c in zip(bottoms[1:], coeff[1:], strict=True):
        total = torch.add(total, bottom, alpha=c)
    return total


@register("Eltwise", bottoms=(2, None))
class Eltwise(Layer):
    """See the module's text."""

    Params = Params
    rereads = True
    infer = staticmethod(infer)

    def forward(self, *bottoms: Tensor) -> Tensor:
        p: Params = self.params
        self.check(*bottoms)
        if p.operation is EltwiseOp.SUM:
            return weighted_sum(bottoms, p.coeff)
        if p.operation is EltwiseOp.MAX:
            top, _ = Maximum.apply(*bottoms)
            return top
        return reduce(torch.mul, bottoms) if p.stable_prod_grad else UnstableProduct.apply(*bottoms)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        shape = {"small": (3, 2, 3, 4), "paper": (3, 64, 32, 104)}.get(size, (3, 64, 64, 208))
        bottoms = tuple(distinct(rng, shape))
        every = (
            Params(),
            Params(coeff=(0.5, -2.0, 1.5)),
            Params(operation=EltwiseOp.MAX),
            Params(operation=EltwiseOp.PROD),
            Params(operation=EltwiseOp.PROD, stable_prod_grad=False),
        )
        return [Sample(params, bottoms, (0, 1, 2)) for params in every]
