"""A blob as Caffe's Python code knows it: values and gradient as NumPy arrays that write through."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Memory(Protocol):
    """One side of a blob, values or gradient."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def array(self) -> Array:
        """The values for NumPy code to read and write."""

    def reshape(self, shape: tuple[int, ...]) -> None: ...


class HostMemory:
    """Memory of its own, 0 at first. As in Caffe it never shrinks: a smaller shape shows the first of
    its values, and a larger one begins anew with 0."""

    def __init__(self, shape: Sequence[int] = (), dtype: npt.DTypeLike = np.float32) -> None:
        self.shape = tuple(shape)
        self._values = np.zeros(prod(self.shape), dtype)

    def array(self) -> Array:
        return self._values[: prod(self.shape)].reshape(self.shape)

    def reshape(self, shape: tuple[int, ...]) -> None:
        if prod(shape) > self._values.size:
            self._values = np.zeros(prod(shape), self._values.dtype)
        self.shape = shape

    def cast(self, dtype: npt.DTypeLike) -> None:
        """Hold the values in another type from now on."""
        self._values = self._values.astype(dtype, copy=False)

    def put(self, values: Array) -> None:
        """Take a copy of these values and their shape."""
        self.reshape(values.shape)
        self.array()[...] = values


class Blob:
    """A blob: ``data`` and ``diff``, arrays of one shape."""

    def __init__(self, data: Memory, diff: Memory) -> None:
        self._data, self._diff = data, diff

    @property
    def data(self) -> Array:
        return self._data.array()

    @property
    def diff(self) -> Array:
        return self._diff.array()

    @property
    def shape(self) -> tuple[int, ...]:
        return self._data.shape

    @property
    def count(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    def reshape(self, *shape: int) -> None:
        """Change the shape of values and gradient."""
        if any(dim < 0 for dim in shape):
            raise ValueError(f"a blob cannot be {list(shape)}")
        self._data.reshape(tuple(map(int, shape)))
        self._diff.reshape(tuple(map(int, shape)))

    @property
    def num(self) -> int:
        return self._legacy(0)

    @property
    def channels(self) -> int:
        return self._legacy(1)

    @property
    def height(self) -> int:
        return self._legacy(2)

    @property
    def width(self) -> int:
        return self._legacy(3)

    def _legacy(self, axis: int) -> int:
        """A length of the four axes of old; missing ones are 1."""
        if len(self.shape) > 4:
            raise ValueError(f"a blob {list(self.shape)} has no num, channels, height and width")
        return (*self.shape, 1, 1, 1, 1)[axis]


class HostBlob(Blob):
    """A blob whose memory is its own."""

    def __init__(self, shape: Sequence[int] = ()) -> None:
        self.values, self.gradient = HostMemory(shape), HostMemory(shape)
        super().__init__(self.values, self.gradient)

    def cast(self, dtype: npt.DTypeLike) -> None:
        """Hold values and gradient in another type from now on."""
        self.values.cast(dtype)
        self.gradient.cast(dtype)


class BlobVec(list[Blob]):
    """A layer's parameter blobs."""

    def add_blob(self, *shape: int) -> None:
        """Append a blob of this shape, 0 all over."""
        self.append(HostBlob(shape))
