"""``Layer``: the base of a Python layer, a class of the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cortado.layers.standard._blob import Blob, BlobVec


class Layer:
    """A ``Python`` layer computes with NumPy what its ``bottom`` and ``top`` blobs hold.

    ``setup`` is called once, ``reshape`` then and before each forward pass; ``param_str`` is the text
    of the spec, ``phase`` TRAIN or TEST, and ``blobs.add_blob(*shape)`` in ``setup`` makes a parameter.
    """

    type = "Python"
    param_str = ""
    phase = 0

    def __init__(self, *args: Any) -> None:
        self.blobs = BlobVec()

    def setup(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Read ``param_str``, check the number of blobs, add parameters."""

    def reshape(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Give the tops their shapes: ``top[0].reshape(*bottom[0].data.shape)``."""

    def forward(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Write the tops' data."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def backward(
        self, top: Sequence[Blob], propagate_down: Sequence[bool], bottom: Sequence[Blob]
    ) -> None:
        """Write the diffs of the bottoms that need one, and add to those of the blobs."""
        raise NotImplementedError(f"{type(self).__name__} has no backward")
