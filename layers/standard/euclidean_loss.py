"""EuclideanLoss: sum (a - b)^2 / (2 N).

Bottoms of N items with equally many elements (their shapes may differ beyond the first axis), both
get gradients; top: the loss, of shape (). No items: loss 0. Half precision is summed in float32.
"""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from torch import Tensor

from .._engine.checks import BlobError, Shape
from .._engine.declared import Bottom, Trait
from .._engine.layer import Layer
from .._engine.params import NoParams
from .._engine.registry import register
from .._engine.samples import Sample, normal


def infer(params: NoParams, a: Shape, b: Shape) -> tuple[Shape, ...]:
    """The scalar top; raises BlobError unless items and elements are equally many."""
    if not a or not b or a[0] != b[0] or prod(a) != prod(b):
        raise BlobError("expected as many items with as many elements: {a}, {b}", a=a, b=b)
    return ((),)


@register("EuclideanLoss", bottoms=2, tops=1)
class EuclideanLoss(Layer):
    """See the module's text."""

    BOTTOMS = (Bottom("a"), Bottom("b"))
    TRAITS = (Trait.LOSS,)
    infer = staticmethod(infer)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        infer(self.params, a.shape, b.shape)
        difference = (a - b.reshape(a.shape)).flatten()
        if a.dtype in (torch.float16, torch.bfloat16):
            difference = difference.float()
        return difference.dot(difference) / (2 * max(1, a.shape[0]))

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        shape = {"small": (3, 4, 2), "paper": (64, 1000)}.get(size, (8, 64, 128, 128))
        return [Sample(NoParams(), (normal(rng, shape), normal(rng, shape)), (0, 1))]
