"""A launch of a kernel, checked before there is a GPU: a :class:`Plan` of what goes where.

::

    kernels = cuda.Kernels(__file__)
    kernels.launch("scale_forward", params, over=x.numel(), x=x, y=y)

Arguments go by name, and the kernel's own signature, read from the text, says their order, types and
widths; those that are not given are parameters of the layer. What executes a plan is CuPy
(:mod:`.cuda`), or whatever :func:`executed_by` puts in its place.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .kernel_text import POINTERS, SCALARS, VALUES, Parameter, PlanError, Signature, Text

_MAX_SHARED = 48 * 1024  # what every architecture grants without being asked


class Argument(NamedTuple):
    """One argument: its C type (``const float*``, ``long long``) and a tensor, number or None."""

    name: str
    ctype: str
    value: Tensor | float | None

    @property
    def is_pointer(self) -> bool:
        return self.ctype.endswith("*")

    @property
    def is_written(self) -> bool:
        return self.is_pointer and not self.ctype.startswith("const ")

    def pack(self) -> bytes:
        """The bytes the kernel receives: a pointer's eight, or the declared width's."""
        if self.is_pointer:
            return struct.pack("Q", self.value.data_ptr() if isinstance(self.value, Tensor) else 0)
        return struct.pack(VALUES[self.ctype], self.value)


Dims = tuple[int, int, int]


class Plan(NamedTuple):
    """All that a launch is: computed and checked without CuPy or a GPU."""

    text: Text
    kernel: str
    scalar: torch.dtype
    constants: tuple[tuple[str, int], ...]
    grid: Dims
    block: Dims
    shared: int
    arguments: tuple[Argument, ...]
    device: torch.device

    @property
    def is_empty(self) -> bool:
        return 0 in self.grid


class Slot(NamedTuple):
    """A parameter of a kernel for one scalar type: what an argument must be."""

    name: str
    ctype: str
    dtype: torch.dtype | None  # of a pointer's tensor
    numbers: tuple[type, ...]  # of a value
    format: str

    @classmethod
    def of(cls, parameter: Parameter, scalar: torch.dtype) -> Slot:
        ctype = parameter.resolved(scalar)
        if parameter.pointer:
            dtype = scalar if parameter.type == "scalar_t" else POINTERS[ctype]
            return cls(parameter.name, f"{'const ' if parameter.const else ''}{ctype}*", dtype, (), "")
        numbers = (int, float) if ctype in ("float", "double") else (int,)
        return cls(parameter.name, ctype, None, numbers, VALUES[ctype])

    def bound(self, value: Any) -> Argument:
        """The argument, checked."""
        if self.dtype is not None:
            self._expect_tensor(value)
        else:
            self._expect_number(value)
        return Argument(self.name, self.ctype, value)

    def _expect_tensor(self, value: Any) -> None:
        if value is None:
            return
        if not isinstance(value, Tensor):
            raise PlanError(f"{self.name}: expected a tensor, got {value!r}")
        if value.dtype != self.dtype:
            raise TypeError(f"{self.name}: expected {self.dtype}, got {value.dtype}")
        if not value.is_contiguous():
            raise ValueError(f"{self.name}: expected a contiguous tensor")

    def _expect_number(self, value: Any) -> None:
        if not isinstance(value, self.numbers):
            raise PlanError(f"{self.name}: expected a number for {self.ctype}, got {value!r}")
        try:
            struct.pack(self.format, value)
        except struct.error:
            raise PlanError(f"{self.name}: {value} does not fit {self.ctype}") from None


class Kernels:
    """The kernels of the ``.cu`` beside a layer's file; the text is read on first use."""

    def __init__(self, layer_file: str) -> None:
        self.path = Path(layer_file).with_suffix(".cu")
        self._slots: dict[tuple[str, torch.dtype], tuple[Slot, ...]] = {}

    @functools.cached_property
    def text(self) -> Text:
        return Text(self.path)

    def plan(
        self,
        kernel: str,
        params: Any = None,
        /,
        *,
        over: int | None = None,
        grid: int | tuple[int, ...] = 0,
        block: int | tuple[int, ...] = 0,
        shared: int = 0,
        constants: Mapping[str, int] | None = None,
        scalar: torch.dtype | None = None,
        **arguments: Tensor | float | None,
    ) -> Plan:
        """The checked launch: raises :class:`PlanError`, or TypeError/ValueError for a tensor.

        Values that are not given are the fields of ``params`` of the same name. ``over``: a thread for
        each of so many elements, in blocks of 256, in place of ``grid`` and, if need be, ``block``.
        ``shared`` is the dynamic shared memory in bytes; a pointer may be None (the null pointer).
        ``scalar`` is for kernels without a ``scalar_t*``, whose tensors say it elsewhere.
        """
        signature = self.text.signatures.get(kernel)
        if signature is None:
            raise PlanError(f"{self.path.name} has no kernel {kernel}")
        given = _completed(signature, arguments, params)
        scalar = scalar or _scalar(signature, given)
        device = _device(kernel, given)
        slots = self._slots.get((kernel, scalar))
        if slots is None:
            slots = tuple(Slot.of(parameter, scalar) for parameter in signature.parameters)
            self._slots[kernel, scalar] = slots
        bound = tuple([slot.bound(given[slot.name]) for slot in slots])
        chosen = tuple(self.text.chosen(constants or {}).items())
        if over is not None:
            block = block or threads(256)
            assert isinstance(block, int)
            grid = blocks(over, block)
        dims = _dims("grid", grid), _dims("block", block)
        _check_limits(signature, *dims, shared)
        return Plan(self.text, kernel, scalar, chosen, *dims, shared, bound, device)

    def launch(self, kernel: str, params: Any = None, /, **launch: Any) -> None:
        """Run a kernel on torch's current stream; arguments as for :meth:`plan`.

        Nothing runs when the grid has a dimension of zero.
        """
        plan = self.plan(kernel, params, **launch)
        if not plan.is_empty:
            (executor or _run)(plan)


def _run(plan: Plan) -> None:
    from . import cuda

    cuda.run(plan)


def _completed(signature: Signature, arguments: dict[str, Any], params: Any) -> Mapping[str, Any]:
    """The arguments, and parameters of the layer for values that are missing."""
    missing = signature.names - arguments.keys()
    if params is not None and missing:
        found = {name: getattr(params, name) for name in missing if hasattr(params, name)}
        arguments, missing = arguments | found, missing - found.keys()
    if missing or len(arguments) > len(signature.names):
        others = sorted(arguments.keys() - signature.names)
        raise PlanError(f"{signature.kernel}: missing {sorted(missing)}, not a parameter {others}")
    return arguments


def sizes(names: str, x: Tensor) -> dict[str, int]:
    """A tensor's sizes as arguments of a launch: ``sizes("_ channels height width", feature)``."""
    return {name: n for name, n in zip(names.split(), x.shape, strict=True) if name != "_"}


def _scalar(signature: Signature, arguments: Mapping[str, Any]) -> torch.dtype:
    """The dtype of the tensors passed as ``scalar_t*``."""
    tensors = [arguments[name] for name in signature.scalars]
    dtypes = {x.dtype for x in tensors if isinstance(x, Tensor)}
    if len(dtypes) != 1 or not dtypes <= SCALARS.keys():
        found = {name: arguments[name] for name in signature.scalars}
        shown = ", ".join(f"{k} {x.dtype}" for k, x in found.items() if isinstance(x, Tensor))
        raise TypeError(f"{signature.kernel}: expected tensors of one floating type, got {shown}")
    return dtypes.pop()


def _device(kernel: str, arguments: Mapping[str, Any]) -> torch.device:
    devices = {x.device for x in arguments.values() if isinstance(x, Tensor)}
    if len(devices) != 1:
        found = {name: x.device for name, x in arguments.items() if isinstance(x, Tensor)}
        shown = ", ".join(f"{name} on {device}" for name, device in found.items())
        raise TypeError(f"{kernel}: expected tensors on one device, got {shown}")
    return devices.pop()


def _dims(name: str, given: int | tuple[int, ...]) -> Dims:
    sizes = (given,) if isinstance(given, int) else given
    if not 1 <= len(sizes) <= 3 or any(size < 0 for size in sizes):
        raise PlanError(f"{name}: expected one to three sizes, got {given}")
    x, y, z = (*sizes, 1, 1)[:3]
    return x, y, z


def _check_limits(signature: Signature, grid: Dims, block: Dims, shared: int) -> None:
    threads = block[0] * block[1] * block[2]
    if not 0 < threads <= signature.max_threads or block[2] > 64:
        raise PlanError(f"{signature.kernel}: block {block} not within {signature.max_threads} threads")
    if grid[0] >= 2**31 or grid[1] >= 2**16 or grid[2] >= 2**16:
        raise PlanError(f"{signature.kernel}: grid {grid} beyond CUDA's limits")
    if not 0 <= shared <= _MAX_SHARED:
        raise PlanError(f"{signature.kernel}: {shared} bytes of shared memory, limit {_MAX_SHARED}")


# ------------------------------------------------------------- helpers to choose a launch's sizes

_threads: int | None = None


def threads(preferred: int) -> int:
    """Threads a block: the preferred number, unless :func:`block_size` says otherwise."""
    return _threads or preferred


@contextmanager
def block_size(threads: int) -> Iterator[None]:
    """Another number of threads for every launch within (a power of two, at least 32)."""
    global _threads
    before, _threads = _threads, threads
    try:
        yield
    finally:
        _threads = before


def blocks(work: int, per_block: int) -> int:
    """Blocks that cover ``work`` items, for a kernel that strides over the rest; 0 for none."""
    return min(-(-work // per_block), 2**31 - 1)


def vector(length: int, *tensors: Tensor, most_bytes: int = 16) -> int:
    """Scalars a thread may move at once: rows of ``length`` stay aligned in all tensors."""
    width = most_bytes // tensors[0].element_size()
    while width > 1 and (
        length % width or any(t.data_ptr() % (width * t.element_size()) for t in tensors)
    ):
        width //= 2
    return width


def multiprocessors(device: torch.device) -> int:
    """How many multiprocessors the device has; 2 where there is none."""
    if device.type != "cuda":
        return 2
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


executor: Callable[[Plan], None] | None = None


@contextmanager
def executed_by(other: Callable[[Plan], None]) -> Iterator[None]:
    """Give every launch to another executor; CPU tensors count as CUDA tensors within."""
    global executor
    before, executor = executor, other
    try:
        yield
    finally:
        executor = before
