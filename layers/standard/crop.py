"""Crop: the part of the first bottom that has the size of the second, at an offset.

Bottoms of equally many axes: the data and the reference, of which only the shape counts (it gets no
gradient). From ``axis`` on the top has the reference's lengths, before it the data's. ``offset`` is
given once for all cropped axes, or once for each; 0 unless given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from .._engine.checks import BlobError, Shape, canonical_axis
from .._engine.declared import Bottom
from .._engine.layer import Layer
from .._engine.params import param
from .._engine.reach import Reach
from .._engine.registry import register
from .._engine.samples import Sample, normal


@dataclass(frozen=True)
class Params:
    """``crop_param``."""

    axis: int = param(2, doc="the first axis that is cropped; negative counts from the last")
    offset: tuple[int, ...] = param((), low=0, doc="once, or once for each cropped axis")


def windows(params: Params, data: Shape, reference: Shape) -> list[slice]:
    """What is taken of each axis; raises BlobError where that reaches beyond the data."""
    axis = canonical_axis(params.axis, data=data)
    cropped = len(data) - axis
    if len(reference) < len(data):
        text = "{reference} has fewer axes than {data}"
        raise BlobError(text, data=data, reference=reference)
    if len(params.offset) not in (0, 1, cropped):
        text = (
            f"{len(params.offset)} values of offset for the {cropped} axes of {{data}} from {axis} on"
        )
        raise BlobError(text, data=data)
    offsets = params.offset if len(params.offset) > 1 else (params.offset or (0,)) * cropped
    taken = [slice(None)] * axis
    for i, offset in enumerate(offsets, axis):
        if offset + reference[i] > data[i]:
            raise BlobError(
                f"axis {i}: {reference[i]} of {{reference}} at offset {offset} reach beyond {{data}}",
                data=data,
                reference=reference,
            )
        taken.append(slice(offset, offset + reference[i]))
    return taken


def infer(params: Params, data: Shape, reference: Shape) -> tuple[Shape, ...]:
    """The top's shape; raises BlobError as :func:`windows` does."""
    taken = windows(params, data, reference)
    return (tuple(len(range(*part.indices(length))) for part, length in zip(taken, data, strict=True)),)


@register("Crop", bottoms=2)
class Crop(Layer):
    """See the module's text."""

    Params = Params
    BOTTOMS = (Bottom("data", partly=True), Bottom("reference", partly=True))
    infer = staticmethod(infer)

    @classmethod
    def reach(cls, params: Any, i: int, bottom: Shape, j: int, top: Shape) -> tuple[Reach, ...] | None:
        if i == 1:
            return None  # gives its size alone
        return tuple(Reach(shift=cut.start or 0) for cut in windows(params, bottom, top)[2:])

    def forward(self, data: Tensor, reference: Tensor) -> Tensor:
        return data[tuple(windows(self.params, tuple(data.shape), tuple(reference.shape)))]

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        if size != "small":  # FCN's crop of the upsampled scores
            side = 128 if size == "paper" else 512
            bottoms = normal(rng, (1, 21, side + 40, side + 40)), normal(rng, (1, 3, side, side))
            return [Sample(Params(offset=(19,)), bottoms)]
        x, small = normal(rng, (2, 3, 5, 6)), normal(rng, (2, 1, 3, 4))
        return [
            Sample(Params(), (x, small)),
            Sample(Params(-3, (2, 0, 1)), (x, small), name="three axes"),
        ]
