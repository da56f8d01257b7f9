"""Errors that name the blob and its shape, and say what was expected.

A layer speaks of its own arguments (``query``, ``reference``); a net that runs it knows what
they are called in the spec and prints those names instead (:meth:`BlobError.named`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor  # it has no public name

Shape = tuple[int, ...]
NUMBERS = (int, float, np.integer, np.floating)
INTEGERS = (int, np.integer)


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


def shapes(form: str, **tensors: Any) -> dict[str, Shape]:
    """The shapes by name; raises TypeError, which begins with the function's name, for no tensor."""
    found = {}
    for name, x in tensors.items():
        if not isinstance(x, torch.Tensor):
            got = f"{kind_of(x)}{remedy(x)}"
            raise TypeError(f"{form}: expected {name} to be a torch.Tensor, got {got}")
        found[name] = tuple(x.shape)
    return found


def expect_numbers(form: str, words: str, types: tuple[type, ...], /, **arguments: Any) -> None:
    """Raise TypeError for an argument that is no list of numbers; ``words`` say what was expected."""
    for name, x in arguments.items():
        several = isinstance(x, (list, tuple)) or (isinstance(x, np.ndarray) and x.ndim == 1)
        if not several or not all(isinstance(number, types) for number in x):
            raise TypeError(f"{form}: expected {name} to be {words}, got {kind_of(x)}")


def kind_of(x: Any) -> str:
    """What a value is, for messages: ``None``, ``list``, ``numpy.ndarray``."""
    if x is None:
        return "None"
    module, name = type(x).__module__, type(x).__qualname__
    return name if module == "builtins" else f"{module}.{name}"


def remedy(x: Any) -> str:
    """What makes a tensor of a value, for messages; "" where nothing does."""
    if isinstance(x, np.ndarray):
        return " (torch.from_numpy makes one of it)"
    return " (torch.tensor makes one of it)" if isinstance(x, (list, tuple, *NUMBERS)) else ""


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


def expect_integer(**tensors: torch.Tensor) -> None:
    """Each tensor is of an integer type."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            raise TypeError(f"expected {name} to be of integers, got {tensor.dtype}")


def canonical_axis(axis: int, **blob: Sequence[int]) -> int:
    """The index of an axis of the one blob given; a negative one counts from the last."""
    ((name, shape),) = blob.items()
    if not -len(shape) <= axis < len(shape):
        raise BlobError(f"{{{name}}} has no axis {axis}", **blob)
    return axis % len(shape)


def expect_same_device(**tensors: torch.Tensor) -> None:
    """All tensors are on one device."""
    if len({tensor.device for tensor in tensors.values()}) > 1:
        found = ", ".join(f"{name} on {tensor.device}" for name, tensor in tensors.items())
        raise TypeError(f"expected one device, got {found}")


def valueless(x: torch.Tensor) -> bool:
    """Whether a tensor has a shape and a dtype alone: one on the meta device, or of FakeTensorMode."""
    return x.device.type == "meta" or isinstance(x, FakeTensor)


def expect_values(reason: str, *tensors: torch.Tensor) -> None:
    """Raise TypeError, which begins with the reason, for a tensor that has none."""
    if any(map(valueless, tensors)):
        raise TypeError(f"{reason}, which a meta tensor does not have")


# Values. A wrong value on the CPU is raised at once. On a CUDA device it is noted in a flag that
# follows the computation: a forward never waits for the device, so the error comes with the next
# check that finds the flag arrived, with settle(), or at once under ``with checks(True)``. A meta
# tensor has no values that could be wrong.


class _Pending(NamedTuple):
    flag: torch.Tensor
    arrived: torch.cuda.Event
    message: str


_pending: list[_Pending] = []
_at_once = False


@contextmanager
def checks(at_once: bool = True) -> Iterator[None]:
    """Whether wrong values in CUDA tensors raise at once (which waits for the device) or later."""
    global _at_once
    before, _at_once = _at_once, at_once
    try:
        yield
    finally:
        _at_once = before


def value_flag(like: torch.Tensor) -> torch.Tensor:
    """A zero int32 [1] beside ``like``, that a kernel sets to non-zero where a value is wrong."""
    return torch.zeros(1, dtype=torch.int32, device=like.device)


def deferred(x: torch.Tensor) -> bool:
    """Whether wrong values in ``x`` are raised later, or never: to look at them now would wait for the
    device, or there are none."""
    return (x.is_cuda and not _at_once) or valueless(x)


def raise_if(flag: torch.Tensor, message: str) -> None:
    """Raise ValueError(message) if the one element of ``flag`` is not zero: now, or later on CUDA."""
    if not deferred(flag):
        if flag.item():
            raise ValueError(message)
        return
    if valueless(flag) or torch.cuda.is_current_stream_capturing():
        return  # nothing to look at, or a graph that replays without Python: nobody could raise
    with torch.cuda.device(flag.device):
        arrived = torch.cuda.Event()
        copy = torch.empty(1, dtype=flag.dtype, pin_memory=True)
        copy.copy_(flag, non_blocking=True)
        arrived.record()
    _pending.append(_Pending(copy, arrived, message))
    _raise_arrived()


def expect_finite(what: str, values: torch.Tensor) -> None:
    """Raise ValueError unless all values are finite: now, or later on CUDA."""
    raise_if((~torch.isfinite(values)).any().reshape(1), f"expected finite {what}")


def settle() -> None:
    """Wait for the checks under way and raise the first that failed."""
    for check in _pending:
        check.arrived.synchronize()
    _raise_arrived()


def _raise_arrived() -> None:
    arrived = [check for check in _pending if check.arrived.query()]
    for check in arrived:
        _pending.remove(check)
    for check in arrived:
        if check.flag.item():
            raise ValueError(check.message)
