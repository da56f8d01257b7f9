"""``Blob``: values and gradients of a net as NumPy arrays that write through.

On the CPU an array is the tensor's own memory, and current as long as somebody holds it. On a GPU it is
a copy, as recent as the last access to ``data`` or ``diff``: what is written into it reaches the device
when a layer next reads the blob, unless the device wrote it in between.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from cortado.layers.standard._blob import Array, Blob, BlobVec
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

if TYPE_CHECKING:
    from cortado.nets.net import Net as Engine


class _Copy:
    """The host's copy of a tensor on a device: one array as long as the shape stays."""

    def __init__(self) -> None:
        self._array: Array | None = None
        self._seen = (0, 0)

    def array(self, tensor: Tensor) -> Array:
        if self._array is None or self._array.shape != tuple(tensor.shape):
            self._array = tensor.detach().to("cpu", copy=True).numpy()
        elif self._seen != _state(tensor):
            torch.from_numpy(self._array).copy_(tensor.detach())
        self._seen = _state(tensor)
        return self._array

    def write_back(self, tensor: Tensor) -> None:
        """Give the device what was written here, unless it wrote the tensor itself meanwhile."""
        if self._array is not None and self._seen == _state(tensor):
            with torch.no_grad():
                tensor.copy_(torch.from_numpy(self._array))
            self._seen = _state(tensor)

    def outdate(self) -> None:
        """Say that the tensor is another one now."""
        self._seen = (0, 0)


def on_host(tensor: Tensor) -> bool:
    """Whether NumPy can use the tensor's own memory."""
    return tensor.device.type == "cpu"


def _state(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor._version


class Values:
    """The values, or the gradient, of a blob that layers write; ``initial`` until one does."""

    def __init__(
        self, shape: tuple[int, ...], device: torch.device | str = "cpu", initial: float = 0
    ) -> None:
        self._shape, self._device, self._initial = shape, torch.device(device), initial
        self._tensor: Tensor | None = None
        self._lent: weakref.ref[Array] | None = None
        self._copy = _Copy()

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape if self._tensor is None else tuple(self._tensor.shape)

    @property
    def tensor(self) -> Tensor:
        """The values for torch to read."""
        if self._tensor is None:
            self._tensor = torch.full(self._shape, float(self._initial), device=self._device)
        self._copy.write_back(self._tensor)
        return self._tensor

    def holds(self, tensor: Tensor) -> bool:
        """Whether these are the values of this memory."""
        mine = self._tensor
        return mine is not None and mine.shape == tensor.shape and shares(mine, tensor)

    @property
    def lent(self) -> bool:
        """Whether somebody holds an array of this memory."""
        return self._lent is not None and self._lent() is not None

    def array(self) -> Array:
        tensor = self.tensor
        if not on_host(tensor):
            return self._copy.array(tensor)
        array = self._lent() if self._lent else None
        if array is None:
            array = tensor.numpy()
            self._lent = weakref.ref(array)
        return array

    def put(self, new: Tensor) -> None:
        """Take a layer's result: its memory, or its values where somebody holds an array of this."""
        if self.lent and self.shape == tuple(new.shape) and self.tensor.dtype == new.dtype:
            self.tensor.copy_(new)
            return
        self._tensor, self._lent = new, None
        self._copy.outdate()

    def reshape(self, shape: tuple[int, ...]) -> None:
        if shape == self.shape:
            return
        count = math.prod(shape)
        if self._tensor is None:
            self._shape = shape
            return
        flat = self.tensor.reshape(-1)
        if flat.numel() < count:
            flat = flat.new_full((count,), float(self._initial))
        self.put(flat[:count].view(shape))

    def to(self, device: torch.device) -> None:
        if self._tensor is not None and self._tensor.device != device:
            self.put(self.tensor.to(device))
        self._device = device


class Parameters:
    """The parameters of a net that its blobs show, and their gradients, which add up over backward
    passes."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._gradients: dict[int, Tensor] = {}

    def parameter(self, index: int) -> torch.nn.Parameter:
        return self.engine.learnable[index].parameter

    def gradient(self, index: int) -> Tensor:
        """The gradient of a parameter, always in the same memory."""
        parameter = self.parameter(index)
        mine = self._gradients.get(index)
        if mine is None or mine.device != parameter.device:
            mine = torch.zeros_like(parameter, requires_grad=False)
            mine = self._gradients[index] = mine if parameter.grad is None else parameter.grad
        elif parameter.grad is None:
            mine.zero_()
        elif parameter.grad is not mine:
            mine.copy_(parameter.grad)
        parameter.grad = mine
        return mine

    def clear(self) -> None:
        for index in range(len(self.engine.learnable)):
            self.gradient(index).zero_()

    def blob(self, index: int, shape: tuple[int, ...]) -> ParameterBlob:
        """The blob of a layer that has the ``index``-th parameter, maybe in a shape of its own."""
        data = _Side(lambda: self.parameter(index), shape, copied=True)  # by another net, perhaps
        return ParameterBlob(data, _Side(lambda: self.gradient(index), shape, copied=False))


class ParameterBlob(Blob):
    """A blob of a layer's parameter."""

    def __init__(self, data: _Side, diff: _Side) -> None:
        super().__init__(data, diff)
        self._sides = (data, diff)

    def write_back(self) -> None:
        """Let the device have what was written into the arrays."""
        for side in self._sides:
            side.write_back()


_COPIES = WeakTensorKeyDictionary()  # nets that share a parameter share its copy, too


class _Side:
    """The values of a parameter, or its gradient: a tensor that has its place."""

    def __init__(self, tensor: Callable[[], Tensor], shape: tuple[int, ...], copied: bool) -> None:
        self._tensor, self.shape, self._copied = tensor, shape, copied

    def array(self) -> Array:
        tensor = self._tensor()
        if on_host(tensor):
            return tensor.detach().numpy().reshape(self.shape)
        self._copied = True
        copy: _Copy = _COPIES.setdefault(tensor, _Copy())
        return copy.array(tensor).reshape(self.shape)

    def write_back(self) -> None:
        if self._copied and _COPIES and (tensor := self._tensor()) in _COPIES:
            _COPIES[tensor].write_back(tensor)

    def reshape(self, shape: tuple[int, ...]) -> None:
        if shape != self.shape:
            raise ValueError(f"a parameter {list(self.shape)} cannot become {list(shape)}")


def shares(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors lie in the same memory."""
    return a.device == b.device and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


__all__ = ["Blob", "BlobVec"]
