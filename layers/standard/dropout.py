"""Dropout: in training sets elements to 0 with probability ``dropout_ratio`` and scales the others
by 1 / (1 - dropout_ratio); otherwise the identity.

Bottom and top of any shape, the same. The mask is drawn from torch's own generator of the device
(``torch.manual_seed``).

Differs from the original: a ratio of 1 gives 0, where Caffe multiplies 0 by infinity.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .._engine import parallel
from .._engine.checks import Shape
from .._engine.declared import Bottom
from .._engine.layer import Layer
from .._engine.params import param
from .._engine.registry import register
from .._engine.samples import Sample, normal


@dataclass(frozen=True)
class Params:
    """``dropout_param``."""

    dropout_ratio: float = param(0.5, low=0, high=1, doc="share of the elements that become 0")


def infer(params: Params, bottom: Shape) -> tuple[Shape, ...]:
    """The top's shape is the bottom's."""
    return (bottom,)


@register("Dropout")
class Dropout(Layer):
    """See the module's text."""

    Params = Params
    BOTTOMS = (Bottom("bottom"),)
    infer = staticmethod(infer)

    def forward(self, bottom: Tensor) -> Tensor:
        if not self.training or parallel.rank_and_size()[1] == 1 or not bottom.dim():
            return F.dropout(bottom, self.params.dropout_ratio, self.training)
        ones = partial(torch.ones, dtype=bottom.dtype, device=bottom.device)
        mask = parallel.own_rows(
            tuple(bottom.shape), lambda shape: F.dropout(ones(shape), self.params.dropout_ratio)
        )
        return bottom * mask

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        shape = {"small": (3, 4, 5), "paper": (64, 4096)}.get(size, (256, 9216))
        return [Sample(Params(), (normal(rng, shape),))]
