"""Errors that name the blob and its shape, and say what was expected.

A layer speaks of its own arguments (``query``, ``reference``); a net that runs it knows what
they are called in the spec and prints those names instead (:meth:`BlobError.named`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

Shape = tuple[int, ...]


class BlobError(ValueError):
    """A blob that does not fit.

    ``template`` refers to blobs by argument name: ``BlobError("channels differ: {a}, {b}",
    a=(2, 8), b=(2, 4))`` reads ``channels differ: a [2, 8], b [2, 4]``.
    """

    def __init__(self, template: str, **shapes: Sequence[int]) -> None:
        self.template, self.shapes = template, shapes
        super().__init__(self._text({}))

    def _text(self, names: Mapping[str, str]) -> str:
        shown = {k: f"{names.get(k, k)} {list(v)}" for k, v in self.shapes.items()}
        return self.template.format(**shown)

    def named(self, names: Mapping[str, str]) -> str:
        """The message with the spec's blob names in place of the arguments'."""
        return self._text(names)


def expect_axes(axes: str, **blobs: Sequence[int]) -> None:
    """Each blob has as many axes as ``axes`` has names, e.g. ``expect_axes("N C H W", u=shape)``."""
    wanted = axes.split()
    for name, shape in blobs.items():
        if len(shape) != len(wanted):
            raise BlobError(f"expected {{{name}}} to be [{', '.join(wanted)}]", **{name: shape})


def expect_floating(**tensors: torch.Tensor) -> None:
    """Each tensor is of a floating type, and all are of one type on one device."""
    first = next(iter(tensors.values()))
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise TypeError(f"expected {name} to be floating point, got {tensor.dtype}")
        if tensor.dtype != first.dtype or tensor.device != first.device:
            found = ", ".join(f"{k} {v.dtype} on {v.device}" for k, v in tensors.items())
            raise TypeError(f"expected one dtype and one device, got {found}")


def canonical_axis(axis: int, **blob: Sequence[int]) -> int:
    """The index of an axis of the one blob given; a negative one counts from the last."""
    ((name, shape),) = blob.items()
    if not -len(shape) <= axis < len(shape):
        raise BlobError(f"{{{name}}} has no axis {axis}", **blob)
    return axis % len(shape)
