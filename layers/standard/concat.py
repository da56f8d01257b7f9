"""Concat: joins blobs along one axis.

Bottoms of one shape except along ``axis``; the top's length there is the sum of theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .._engine.checks import BlobError, Shape, canonical_axis
from .._engine.declared import Bottom, Trait
from .._engine.layer import Layer
from .._engine.params import param
from .._engine.registry import register
from .._engine.samples import Sample, normal


@dataclass(frozen=True)
class Params:
    """``concat_param``."""

    axis: int | None = param(None, doc="default 1; negative counts from the last")
    concat_dim: int | None = param(None, low=0, doc="the old name of axis")

    def __post_init__(self) -> None:
        if self.axis is not None and self.concat_dim is not None:
            raise ValueError("give axis or concat_dim, not both")

    @property
    def along(self) -> int:
        given = self.axis if self.concat_dim is None else self.concat_dim
        return 1 if given is None else given


def infer(params: Params, *bottoms: Shape) -> tuple[Shape, ...]:
    """The top's shape; raises BlobError where bottoms disagree on another axis."""
    first = bottoms[0]
    axis = canonical_axis(params.along, bottom0=first)
    for i, shape in enumerate(bottoms[1:], 1):
        if (
            len(shape) != len(first)
            or shape[:axis] + shape[axis + 1 :] != first[:axis] + first[axis + 1 :]
        ):
            raise BlobError(
                f"bottoms may differ along axis {axis} only: {{bottom0}}, {{bottom{i}}}",
                **{"bottom0": first, f"bottom{i}": shape},
            )
    return ((*first[:axis], sum(shape[axis] for shape in bottoms), *first[axis + 1 :]),)


@register("Concat", bottoms=(1, None))
class Concat(Layer):
    """See the module's text."""

    Params = Params
    BOTTOMS = (Bottom("bottom", many=True),)
    TRAITS = (Trait.SHARES_MEMORY,)
    infer = staticmethod(infer)

    def forward(self, *bottoms: Tensor) -> Tensor:
        self.check(*bottoms)
        return torch.cat(bottoms, self.params.along)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        if size != "small":  # inception_3a
            scale = 1 if size == "paper" else 2
            channels, area = (64, 128, 32, 32), (16 * scale, 52 * scale)
            return [Sample(Params(), tuple(normal(rng, (2, c, *area)) for c in channels), (0, 1, 2, 3))]
        return [
            Sample(Params(), (normal(rng, (2, 3, 4)), normal(rng, (2, 1, 4))), (0, 1)),
            Sample(Params(axis=-1), (normal(rng, (2, 3, 2)), normal(rng, (2, 3, 3))), (0, 1)),
        ]
