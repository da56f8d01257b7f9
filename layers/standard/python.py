"""Python: a layer that a class of the user's own computes, with Caffe's interface.

The class, ``layer`` of ``module``, has four methods. ``setup(bottom, top)`` is called once;
``reshape(bottom, top)`` then and before every forward; ``forward(bottom, top)``; and
``backward(top, propagate_down, bottom)``. Bottoms and tops are lists of blobs, whose ``data`` and
``diff`` are NumPy arrays on the CPU, ``reshape(*dims)`` changes a shape (see ``standard/_blob.py``);
``propagate_down`` says which bottoms need a gradient. The instance has ``param_str``, ``phase``
(0 TRAIN, 1 TEST) and ``blobs``: ``blobs.add_blob(*shape)`` in ``setup`` makes a parameter, whose
``diff`` is 0 before ``backward`` and is added to its gradient after.

Any bottoms and tops; half precision is given as float32, double as double. A top of a bottom's name is
the same blob. The bottoms' ``diff`` is 0 before ``backward``, their ``data`` a copy of the net's.

A net that holds such a layer runs code: it is built with ``allow_python_layers=True`` only.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .._engine.checks import Shape, expect_values
from .._engine.declared import Trait
from .._engine.layer import Layer
from .._engine.params import param
from .._engine.registry import register
from .._engine.users import call
from ._blob import BlobVec, HostBlob

METHODS = ("setup", "reshape", "forward", "backward")


@dataclass(frozen=True)
class Params:
    """``python_param``."""

    module: str = param(doc="name of the module, as import takes it")
    layer: str = param(doc="name of the class")
    param_str: str = param("", doc="given to the instance")
    share_in_parallel: bool = param(False, doc="accepted, has no effect: a process has its own layer")


def find_class(module: str, layer: str) -> type:
    """Import the user's class. Raises ValueError where there is none, or it lacks a method."""
    if not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f'the Python layer\'s module "{module}" is no name to import')
    try:
        found = getattr(call(importlib.import_module, module), layer, None)
    except ImportError as error:
        hint = "; cortado.pycaffe.install() makes that cortado's" if error.name == "caffe" else ""
        text = f'cannot import the Python layer\'s module "{module}": {error}{hint}'
        own = f"{module}.".startswith(f"{error.name}.") or error.name == "caffe"
        raise ValueError(text) from (None if own else error)
    if not isinstance(found, type):
        names = vars(importlib.import_module(module))
        near = get_close_matches(layer, [name for name in names if isinstance(names[name], type)], 1)
        hint = f' (did you mean "{near[0]}"?)' if near else ""
        raise ValueError(f'module "{module}" has no class "{layer}"{hint}')
    missing = [name for name in METHODS if not callable(getattr(found, name, None))]
    if missing:
        raise ValueError(f'class "{layer}" of module "{module}" has no method {", ".join(missing)}')
    return found


class Function(torch.autograd.Function):
    """The layer, the number of its bottoms, the bottoms, the parameters -> the tops."""

    @staticmethod
    def forward(layer: Python, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        layer.load(tensors[:count], tensors[count:])
        call(layer.user.reshape, layer.bottom, layer.top)
        call(layer.user.forward, layer.bottom, layer.top)
        if len(layer.user.blobs) != len(layer.blob_names):
            raise ValueError("blobs are added in setup, not in reshape or forward")
        return tuple(_tensor(blob.data, tensors) for blob in layer.top)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.layer, ctx.count, *tensors = inputs
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        layer: Python = ctx.layer
        end = len(ctx.saved_tensors) - len(grads)
        tensors, tops = ctx.saved_tensors[:end], ctx.saved_tensors[end:]
        needed = ctx.needs_input_grad[2:]
        layer.load(tensors[: ctx.count], tensors[ctx.count :])
        for blob, top, grad in zip(layer.top, tops, grads, strict=True):
            blob.values.put(_array(top))
            blob.gradient.put(_array(grad))
        try:
            call(layer.user.backward, layer.top, list(needed[: ctx.count]), layer.bottom)
        except Exception as error:
            error.add_note(f'in layer "{layer.name}" ({layer.place})')  # no net's step is running
            raise
        blobs = (*layer.bottom, *layer.user.blobs)
        found = zip(needed, tensors, blobs, strict=True)
        return None, None, *(_tensor(b.diff, (x,)).to(x) if need else None for need, x, b in found)


@register("Python", bottoms=(0, None), tops=(0, None))
class Python(Layer):
    """See the module's text. ``user`` is the instance of the user's class."""

    Params = Params
    TRAITS = (Trait.NO_CELLS, Trait.FOREIGN)

    def __init__(
        self,
        params: Any,
        bottom_shapes: tuple[Shape, ...] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(params, bottom_shapes, generator)
        self.user: Any = call(find_class(params.module, params.layer))
        self.user.param_str, self.user.blobs = params.param_str, BlobVec()
        self.bottom: list[HostBlob] = []
        self.top: list[HostBlob] = []

    def infer(self, params: Any, *bottoms: Shape) -> tuple[Shape, ...]:
        """Set the user's layer up; gives its tops' shapes."""
        self.user.phase = 0 if self.training else 1
        self.bottom = [HostBlob(shape) for shape in bottoms]
        named = dict(zip(self.bottoms, self.bottom, strict=False))
        self.top = [named.get(name) or HostBlob() for name in self.tops]
        call(self.user.setup, self.bottom, self.top)
        call(self.user.reshape, self.bottom, self.top)
        self.blob_names = tuple(f"blob{i}" for i in range(len(self.user.blobs)))
        for name, blob in zip(self.blob_names, self.user.blobs, strict=True):
            setattr(self, name, nn.Parameter(torch.from_numpy(blob.data.copy())))
        return tuple(blob.shape for blob in self.top)

    def load(self, bottoms: tuple[Tensor, ...], parameters: tuple[Tensor, ...]) -> None:
        """Show the user's layer these values, and gradients that are 0."""
        tensors = (*bottoms, *parameters)
        expect_values("a Python layer's code reads values", *tensors)
        double = any(tensor.dtype is torch.float64 for tensor in tensors)
        for blob in (*self.bottom, *self.top, *self.user.blobs):
            blob.cast(np.float64 if double else np.float32)
        for blob, tensor in zip((*self.bottom, *self.user.blobs), tensors, strict=True):
            blob.values.put(_array(tensor))
            blob.gradient.put(np.zeros_like(blob.data))

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        parameters = self.blobs
        if not self.top:
            with torch.no_grad():
                Function.forward(self, len(bottoms), *bottoms, *parameters)
            tops: tuple[Tensor, ...] = ()
        else:
            tops = Function.apply(self, len(bottoms), *bottoms, *parameters)
        self._keep_written(parameters)
        return tops

    def _keep_written(self, parameters: list[nn.Parameter]) -> None:
        """What forward wrote into its parameters, such as a running mean, stays there."""
        for parameter, blob in zip(parameters, self.user.blobs, strict=True):
            if not np.array_equal(_array(parameter), blob.data, equal_nan=True):
                parameter.data.copy_(torch.from_numpy(blob.data))


def _array(tensor: Tensor) -> Any:
    kind = tensor.dtype if tensor.dtype is torch.float64 else torch.float32
    return tensor.detach().to("cpu", kind).numpy()


def _tensor(values: Any, like: tuple[Tensor, ...]) -> Tensor:
    """A copy of an array on the device of the first of these tensors."""
    return torch.tensor(values, device=like[0].device if like else None)
