"""An image's size as layers are given it: by the image itself, or by two values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .checks import NUMBERS, BlobError, Shape, expect_numbers, valueless

Size = tuple[float, float]
"""An image's height and width, pixels."""
FAR = 1e18  # pixels: beyond any image, and finite in products of a few


def shape_of(form: str, name: str, size: Sequence[float] | Tensor) -> Shape:
    """The shape of a size, for ``infer``; raises TypeError for what is none."""
    if isinstance(size, Tensor):
        return tuple(size.shape)
    expect_numbers(form, "an image, or its height and width", NUMBERS, **{name: size})
    return (len(size),)


def expect_sizes(of: Mapping[str, Shape] | None = None, /, **shapes: Shape) -> None:
    """Each is an image's shape, or that of two values; raises BlobError.

    Of a blob of a batch, given by name, the images are one for each item, or one for all.
    """
    for name, shape in shapes.items():
        if len(shape) != 4 and math.prod(shape) != 2:
            raise BlobError(f"expected {{{name}}} to be [N, C, H, W] or [2]", **{name: shape})
        for blob, batch in (of or {}).items():
            if len(shape) == 4 and shape[0] not in (1, batch[0]):
                text = f"expected {{{name}}} to be an image for each of {{{blob}}}"
                raise BlobError(text, **{blob: batch, name: shape})


def size_of(name: str, given: Sequence[float] | Tensor) -> tuple[float, float]:
    """(height, width) of an image's shape, or of two values; raises ValueError below a pixel.

    Values in a CUDA tensor wait for the device.
    """
    if isinstance(given, Tensor):
        if given.dim() != 4 and valueless(given):
            return 1, 1  # which no top's shape depends on
        given = given.shape[2:] if given.dim() == 4 else given.flatten().tolist()
    height, width = given
    if not (1 <= height < FAR and 1 <= width < FAR):
        raise ValueError(f"{name}: expected a height and a width of at least 1, got {height}, {width}")
    return height, width


def size_tensor(given: Sequence[float] | Tensor) -> Tensor:
    """A size as an operator takes it: the image, or the values; of two integers an image without
    memory, whose shape a compiler can follow."""
    if isinstance(given, Tensor):
        return given
    whole = [x for x in given if isinstance(x, int | torch.SymInt) and x >= 0]
    if len(whole) == len(given):
        return torch.zeros(()).expand(1, 1, *whole)
    return torch.tensor([float(x) for x in given], dtype=torch.float64)
