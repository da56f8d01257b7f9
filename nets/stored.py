"""What a file of weights holds of a layer, whatever the kind of file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from cortado.layers._engine.checks import Shape

Shapes: TypeAlias = Mapping[str, Sequence[Shape]]
"""The shapes of a net's blobs, by layer: what a conversion suits its blobs to."""


@dataclass(frozen=True)
class Stored:
    """One layer's blobs by index, or by the attribute's name: tensors, NumPy arrays, or what has a
    shape and a dtype and is read by ``[()]``, as h5py's datasets.

    With ``owners_only`` the file leaves out the blobs that another layer owns.
    """

    layer: str
    blobs: dict[int | str, Any]
    owners_only: bool = False
