"""DummyData: blobs of fillers' values.

Tops: one of each ``shape`` (one ``shape`` is that of all), float32, of the ``data_filler`` of its
number (one is that of all, none is 0). A constant is filled once, and what is written into it
stays; all others are drawn anew at each forward. The old form gives ``num``, ``channels``,
``height`` and ``width`` instead of ``shape``. Source: Caffe's behaviour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._data.batches import BatchLayer
from .._engine.checks import Shape
from .._engine.fillers import FillerParams, FillerType, expect_suited, parameter
from .._engine.parallel import own_rows
from .._engine.params import BlobShape, param
from .._engine.registry import register

LEGACY = ("num", "channels", "height", "width")


@dataclass(frozen=True)
class Params:
    """``dummy_data_param``."""

    data_filler: tuple[FillerParams, ...] = param((), doc="of each top, or of all")
    num: tuple[int, ...] = param((), low=0, doc="old form of shape")
    channels: tuple[int, ...] = param((), low=0, doc="old form of shape")
    height: tuple[int, ...] = param((), low=0, doc="old form of shape")
    width: tuple[int, ...] = param((), low=0, doc="old form of shape")
    shape: tuple[BlobShape, ...] = param((), doc="of each top, or of all")

    def __post_init__(self) -> None:
        if self.shape and any(getattr(self, name) for name in LEGACY):
            raise ValueError("shape and num, channels, height, width exclude each other")


def shapes(params: Params, tops: int) -> tuple[Shape, ...]:
    """The shape of each top; raises ValueError where they are given for another number of tops."""
    if params.shape:
        return tuple(shape.dim for shape in _each("shape", params.shape, tops))
    axes = (_each(name, getattr(params, name), tops) for name in LEGACY)
    return tuple(zip(*axes, strict=True))


def fillers(params: Params, tops: int) -> tuple[FillerParams, ...]:
    """The filler of each top; raises ValueError as :func:`shapes` does."""
    return _each("data_filler", params.data_filler or (FillerParams(),), tops)


def _each(name: str, given: tuple[Any, ...], tops: int) -> tuple[Any, ...]:
    if len(given) not in (1, tops):
        raise ValueError(f"expected {name} once, or for each of {tops} tops, got it {len(given)} times")
    return given if len(given) == tops else given * tops


@register("DummyData", bottoms=0, tops=(1, None))
class DummyData(BatchLayer):
    """See the module's text."""

    Params = Params

    def __init__(
        self,
        params: Any,
        bottom_shapes: tuple[Shape, ...] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(params, bottom_shapes, generator)
        self.constants: dict[int, Tensor] = {}

    def infer(self, params: Any) -> tuple[Shape, ...]:
        """The tops' shapes; raises ValueError for a filler that does not suit its top's."""
        found = shapes(params, len(self.tops))
        for shape, filler in zip(found, fillers(params, len(self.tops)), strict=True):
            expect_suited(shape, filler)
        return found

    def fill(self, shape: Shape, i: int, filler: FillerParams) -> Tensor:
        seed = int(self.draw(self.position, i).integers(2**62))
        generator = torch.Generator().manual_seed(seed)
        return own_rows(shape, lambda whole: parameter(whole, filler, generator).detach())

    def forward(self) -> tuple[Tensor, ...]:
        count, made = len(self.tops), []
        each = zip(shapes(self.params, count), fillers(self.params, count), strict=True)
        for i, (shape, filler) in enumerate(each):
            if filler.type is not FillerType.constant:
                made.append(self.fill(shape, i, filler))
                continue
            if i not in self.constants:
                self.constants[i] = self.fill(shape, i, filler)
            made.append(self.constants[i])
        self.position += 1
        return tuple(made)
