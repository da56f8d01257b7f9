"""ArgMax: where the largest values are, or how large.

With ``axis`` the top has the bottom's shape but for ``top_k`` entries along that axis: the indices
of the largest values, largest first, or with ``out_max_val`` the values themselves. Without it all
of an item is searched; the top is [N, 1, top_k] of indices, with ``out_max_val`` [N, 2, top_k] of
indices and of values (and has as many axes as the bottom, of length 1, where that has more than 3).

Of equal values the one with the largest index comes first. The top's type is the bottom's. There is
no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from .._engine.checks import BlobError, Shape, canonical_axis
from .._engine.declared import Bottom, Trait
from .._engine.layer import Layer
from .._engine.params import param
from .._engine.registry import register
from .._engine.samples import Sample, distinct


@dataclass(frozen=True)
class Params:
    """``argmax_param``."""

    out_max_val: bool = param(False, doc="give the values; without axis beside the indices")
    top_k: int = param(1, low=1, doc="how many")
    axis: int | None = param(None, doc="default: all of an item; negative counts from the last")


def infer(params: Params, bottom: Shape) -> tuple[Shape, ...]:
    """The top's shape; raises BlobError where there are fewer than ``top_k`` values."""
    axis = 1 if params.axis is None else canonical_axis(params.axis, bottom=bottom)
    if not bottom:
        raise BlobError("expected {bottom} to be [N, ...]", bottom=bottom)
    choices = prod(bottom[1:]) if params.axis is None else bottom[axis]
    if params.top_k > choices:
        raise BlobError(f"top_k {params.top_k} of the {choices} values of {{bottom}}", bottom=bottom)
    if params.axis is not None:
        return ((*bottom[:axis], params.top_k, *bottom[axis + 1 :]),)
    ones = (1,) * (len(bottom) - 3)
    return ((bottom[0], 1 + params.out_max_val, params.top_k, *ones),)


def largest(x: Tensor, count: int, axis: int) -> tuple[Tensor, Tensor]:
    """The largest values along an axis and their indices, of equal ones the last first."""
    backwards = x.flip(axis).sort(dim=axis, descending=True, stable=True)
    value = backwards.values.narrow(axis, 0, count)
    return value, x.shape[axis] - 1 - backwards.indices.narrow(axis, 0, count)


@register("ArgMax", block="argmax_param")
class ArgMax(Layer):
    """See the module's text."""

    Params = Params
    BOTTOMS = (Bottom("bottom"),)
    TRAITS = (Trait.NO_BACKWARD,)
    infer = staticmethod(infer)

    @torch.no_grad()
    def forward(self, bottom: Tensor) -> Tensor:
        p: Params = self.params
        (shape,) = infer(p, tuple(bottom.shape))
        if p.axis is not None:
            value, index = largest(bottom, p.top_k, p.axis)
            return value if p.out_max_val else index.to(bottom.dtype)
        value, index = largest(bottom.reshape(len(bottom), prod(bottom.shape[1:])), p.top_k, 1)
        index = index.to(bottom.dtype)
        return (torch.stack((index, value), 1) if p.out_max_val else index).reshape(shape)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        if size != "small":
            items = 64 if size == "paper" else 1024
            return [Sample(Params(top_k=5), (distinct(rng, (items, 1000)),), (), ())]
        x = distinct(rng, (2, 3, 4, 2))
        return [
            Sample(Params(top_k=2), (x,), (), (), name="items"),
            Sample(Params(True, 2, -2), (x,), (), (), name="values along an axis"),
        ]
