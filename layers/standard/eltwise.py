"""Eltwise: the product, weighted sum or maximum of blobs, element by element.

Two or more bottoms of one shape, a top of that shape. A tied MAX gives its gradient to one bottom:
of the first two the second, a later one only if strictly greater. The gradient of PROD is the
product of the others; with ``stable_prod_grad: false`` it is top / bottom, as in Caffe NaN where a
bottom is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from .._engine.checks import BlobError, Shape
from .._engine.declared import Bottom, Top, Trait
from .._engine.definition import Definition, Spec
from .._engine.layer import Layer
from .._engine.params import param
from .._engine.registry import register
from .._engine.samples import Sample, distinct


class EltwiseOp(Enum):
    """What is done with the bottoms."""

    PROD = 0
    SUM = 1
    MAX = 2


@dataclass(frozen=True)
class Params:
    """``eltwise_param``."""

    operation: EltwiseOp = param(EltwiseOp.SUM, doc="sum, product or maximum")
    coeff: tuple[float, ...] = param((), doc="SUM: a factor of each bottom, default 1")
    stable_prod_grad: bool = param(True, doc="PROD: multiply the others instead of dividing the top")

    def __post_init__(self) -> None:
        if self.coeff and self.operation is EltwiseOp.PROD:
            raise ValueError("coeff goes with SUM, not with PROD")


BOTTOMS = (Bottom("bottoms", many=True),)
TOPS = (Top("top"),)


def infer(params: Params, *bottoms: Shape) -> tuple[Shape]:
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


def maximum_meta(params: Params, bottoms: Sequence[Tensor]) -> Sequence[Spec]:
    """The maximum; the index of the bottom that gave it."""
    shape = bottoms[0].shape
    return (shape, bottoms[0].dtype), (shape, torch.int32)


def maximum_forward(params: Params, bottoms: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    first = bottoms[0] > bottoms[1]
    top, winner = torch.where(first, bottoms[0], bottoms[1]), (~first).int()
    for i, bottom in enumerate(bottoms[2:], 2):
        above = bottom > top
        top, winner = torch.where(above, bottom, top), winner.masked_fill_(above, i)
    return top, winner


def maximum_backward(
    params: Params, wanted: Sequence[bool], top_gradient: Tensor, winner: Tensor
) -> list[Tensor | None]:
    return [top_gradient.masked_fill(winner != i, 0) if want else None for i, want in enumerate(wanted)]


maximum = Definition(
    "maximum",
    Params,
    BOTTOMS,
    TOPS,
    kept=("winner",),
    infer=infer,
    meta=maximum_meta,
    forward=maximum_forward,
    backward=maximum_backward,
    traced=True,
    keeps_half=True,
)


def product(bottoms: Sequence[Tensor]) -> Tensor:
    return reduce(torch.mul, bottoms)


def product_meta(params: Params, bottoms: Sequence[Tensor]) -> Sequence[Spec]:
    return ((bottoms[0].shape, bottoms[0].dtype),)


def product_forward(params: Params, bottoms: Sequence[Tensor]) -> tuple[Tensor]:
    return (product(bottoms),)


def product_backward(
    params: Params,
    wanted: Sequence[bool],
    top_gradient: Tensor,
    top: Tensor,
    bottoms: Sequence[Tensor],
) -> list[Tensor | None]:
    """The top divided by the bottom."""
    needed = zip(bottoms, wanted, strict=True)
    return [top / bottom * top_gradient if want else None for bottom, want in needed]


unstable_product = Definition(
    "unstable_product",
    Params,
    BOTTOMS,
    TOPS,
    infer=infer,
    meta=product_meta,
    forward=product_forward,
    backward=product_backward,
    traced=True,
    keeps_half=True,
)


def defined(definition: Definition, params: Params, bottoms: Sequence[Tensor]) -> Tensor:
    """The top; autocast may have left bottoms of several types, of which it has the widest."""
    if len(dtypes := {bottom.dtype for bottom in bottoms}) > 1:
        widest = reduce(torch.promote_types, dtypes)
        bottoms = [bottom.to(widest) for bottom in bottoms]
    return definition(params, list(bottoms))


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
    TRAITS = (Trait.REREADS,)
    infer = staticmethod(infer)

    def forward(self, *bottoms: Tensor) -> Tensor:
        p: Params = self.params
        if p.operation is EltwiseOp.MAX:
            return defined(maximum, p, bottoms)
        if p.operation is EltwiseOp.PROD and not p.stable_prod_grad:
            return defined(unstable_product, p, bottoms)
        self.check(*bottoms)
        return weighted_sum(bottoms, p.coeff) if p.operation is EltwiseOp.SUM else product(bottoms)

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
