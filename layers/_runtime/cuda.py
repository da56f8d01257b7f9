"""The one file that knows CuPy: compiles the layers' CUDA text and owns every launch.

A layer's ``.cu`` lies beside its ``.py``: plain CUDA on ``scalar_t`` and ``acc_t`` (see
``prelude.cu``, which is put before it) with ``extern "C"`` kernels. It is compiled on first use,
once for each scalar type and choice of constants::

    kernels = cuda.Kernels(__file__)
    kernels.launch("scale_forward", grid=blocks, block=threads, x=x, y=y, factor=2.0, size=x.numel())

Arguments go by name, and the kernel's own signature, read from the text, says their order, types
and widths. A launch is first a :class:`Plan`, which needs neither CuPy nor a GPU; what executes it
is CuPy, or whatever :func:`executed_by` puts in its place.

CuPy compiles with ``-ftz=true``: float32 values below 1.2e-38 count as zero in a kernel.
"""

from __future__ import annotations

import functools
import importlib
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PRELUDE = Path(__file__).with_name("prelude.cu")

SCALARS = {
    torch.float32: "float",
    torch.float64: "double",
    torch.float16: "__half",
    torch.bfloat16: "__nv_bfloat16",
}
_INCLUDES = {torch.float16: "<cuda_fp16.h>", torch.bfloat16: "<cuda_bf16.h>"}
_POINTERS = {
    "float": torch.float32,
    "double": torch.float64,
    "int": torch.int32,
    "long long": torch.int64,
    "unsigned char": torch.uint8,
    "signed char": torch.int8,
    "bool": torch.bool,
}
# By value: struct's format. The width is the declared one, whatever Python would send.
_VALUES = {"int": "i", "unsigned": "I", "long long": "q", "bool": "?", "float": "f", "double": "d"}
_MAX_SHARED = 48 * 1024  # what every architecture grants without being asked


class CudaError(RuntimeError):
    """Kernels that cannot be compiled or launched."""


class CompileError(CudaError):
    """Text that a CUDA compiler does not take."""


class PlanError(TypeError):
    """A launch that does not fit the kernel's signature or CUDA's limits."""


# ------------------------------------------------------------------------------------ the text


@dataclass(frozen=True)
class Parameter:
    """A kernel's parameter: ``const scalar_t*`` is type ``scalar_t``, a const pointer."""

    name: str
    type: str
    pointer: bool
    const: bool

    def resolved(self, scalar: torch.dtype) -> str:
        """The C type with ``scalar_t`` and ``acc_t`` put in."""
        names = {"scalar_t": SCALARS[scalar], "acc_t": accumulator(scalar)}
        return names.get(self.type, self.type)


@dataclass(frozen=True)
class Signature:
    """A kernel as its text declares it; ``max_threads`` from ``__launch_bounds__``."""

    kernel: str
    parameters: tuple[Parameter, ...]
    max_threads: int
    line: int


def accumulator(scalar: torch.dtype) -> str:
    """The C type of sums: float, or double for double."""
    return "double" if scalar == torch.float64 else "float"


def accumulator_dtype(scalar: torch.dtype) -> torch.dtype:
    """The dtype of tensors passed as ``acc_t*``."""
    return _POINTERS[accumulator(scalar)]


_KERNEL = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\(\s*(\d+)[^)]*\)\s*)?(\w+)\s*\(([^)]*)\)'
)
_CONSTANT = re.compile(r"^// constant (\w+):([ \d]+)$", re.MULTILINE)
_SHARED = re.compile(r"^// with (\w+\.cu)$", re.MULTILINE)


class Text:
    """A ``.cu`` file: its code, its kernels' signatures and its compile-time constants.

    A line ``// constant VECTOR: 1 2 4`` declares a macro and the values it may have; the first is
    the default. A line ``// with geometry.cu`` puts that file, which lies beside the prelude,
    between the two.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.code = path.read_text(encoding="utf-8")
        self.constants = {
            name: tuple(int(value) for value in values.split())
            for name, values in _CONSTANT.findall(self.code)
        }
        self.parts = [PRELUDE.with_name(name) for name in _SHARED.findall(self.code)]
        self.signatures = {
            found.kernel: found for part in (*self.parts, path) for found in _signatures(part)
        }

    @functools.cached_property
    def full(self) -> str:
        """Prelude, parts and code in one text, where compilers count the lines of each file."""
        before = "".join(
            f'#line 1 "{part.name}"\n{part.read_text(encoding="utf-8")}'
            for part in (PRELUDE, *self.parts)
        )
        return f'{before}#line 1 "{self.path.name}"\n{self.code}'

    def defines(self, scalar: torch.dtype, constants: Mapping[str, int]) -> dict[str, str]:
        """The macros to compile with."""
        macros = {"CORTADO_SCALAR": SCALARS[scalar], "CORTADO_ACC": accumulator(scalar)}
        if scalar in _INCLUDES:
            macros["CORTADO_INCLUDE"] = _INCLUDES[scalar]
        return macros | {name: str(value) for name, value in constants.items()}

    def chosen(self, constants: Mapping[str, int]) -> dict[str, int]:
        """A value for each declared constant; raises for one that is not declared."""
        for name, value in constants.items():
            if value not in self.constants.get(name, ()):
                raise PlanError(f"{self.path.name} declares no constant {name} = {value}")
        return {name: constants.get(name, values[0]) for name, values in self.constants.items()}


def without_comments(code: str) -> str:
    """Comments blanked, line breaks kept."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m[0]), code, flags=re.DOTALL)


def _signatures(path: Path) -> Iterator[Signature]:
    bare = without_comments(path.read_text(encoding="utf-8"))
    for match in _KERNEL.finditer(bare):
        yield Signature(
            match[2],
            tuple(_parameter(part, path) for part in match[3].split(",") if part.strip()),
            int(match[1] or 1024),
            bare.count("\n", 0, match.start()) + 1,
        )


def _parameter(text: str, path: Path) -> Parameter:
    words = text.replace("*", " * ").replace("__restrict__", " ").split()
    name = words[-1]
    kind = " ".join(word for word in words[:-1] if word not in ("const", "*"))
    pointer = "*" in words
    if kind not in {"scalar_t", "acc_t"} | (_POINTERS.keys() if pointer else _VALUES.keys()):
        raise PlanError(f"{path.name}: parameter {text.strip()!r} is of a type the launcher lacks")
    return Parameter(name, kind, pointer, "const" in words)


# ------------------------------------------------------------------------------------ the plan


@dataclass(frozen=True)
class Argument:
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
        return struct.pack(_VALUES[self.ctype], self.value)


Dims = tuple[int, int, int]


@dataclass(frozen=True)
class Plan:
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


class Kernels:
    """The kernels of the ``.cu`` beside a layer's file; the text is read on first use."""

    def __init__(self, layer_file: str) -> None:
        self.path = Path(layer_file).with_suffix(".cu")

    @functools.cached_property
    def text(self) -> Text:
        return Text(self.path)

    def plan(
        self,
        kernel: str,
        *,
        grid: int | tuple[int, ...],
        block: int | tuple[int, ...],
        shared: int = 0,
        constants: Mapping[str, int] | None = None,
        scalar: torch.dtype | None = None,
        **arguments: Tensor | float | None,
    ) -> Plan:
        """The checked launch: raises :class:`PlanError`, or TypeError/ValueError for a tensor.

        ``shared`` is the dynamic shared memory in bytes; a pointer may be None (the null pointer).
        ``scalar`` is for kernels without a ``scalar_t*``, whose tensors say it elsewhere.
        """
        signature = self.text.signatures.get(kernel)
        if signature is None:
            raise PlanError(f"{self.path.name} has no kernel {kernel}")
        names = [parameter.name for parameter in signature.parameters]
        if set(names) != set(arguments):
            raise PlanError(
                f"{kernel}: missing {sorted(set(names) - set(arguments))}, "
                f"not a parameter {sorted(set(arguments) - set(names))}"
            )
        scalar = scalar or _scalar(signature, arguments)
        device = _device(kernel, arguments)
        bound = tuple(_argument(p, arguments[p.name], scalar) for p in signature.parameters)
        chosen = tuple(self.text.chosen(constants or {}).items())
        dims = _dims("grid", grid), _dims("block", block)
        _check_limits(signature, *dims, shared)
        return Plan(self.text, kernel, scalar, chosen, *dims, shared, bound, device)

    def launch(self, kernel: str, **launch: Any) -> None:
        """Run a kernel on torch's current stream; arguments as for :meth:`plan`.

        Nothing runs when the grid has a dimension of zero.
        """
        plan = self.plan(kernel, **launch)
        if not plan.is_empty:
            (_executor or _cupy_execute)(plan)


def _scalar(signature: Signature, arguments: Mapping[str, Any]) -> torch.dtype:
    """The dtype of the tensors passed as ``scalar_t*``."""
    found = {
        p.name: arguments[p.name].dtype
        for p in signature.parameters
        if p.pointer and p.type == "scalar_t" and isinstance(arguments[p.name], Tensor)
    }
    dtypes = set(found.values())
    if len(dtypes) != 1 or not dtypes <= SCALARS.keys():
        shown = ", ".join(f"{name} {dtype}" for name, dtype in found.items())
        raise TypeError(f"{signature.kernel}: expected tensors of one floating type, got {shown}")
    return dtypes.pop()


def _device(kernel: str, arguments: Mapping[str, Any]) -> torch.device:
    found = {name: value.device for name, value in arguments.items() if isinstance(value, Tensor)}
    if len(set(found.values())) != 1:
        shown = ", ".join(f"{name} on {device}" for name, device in found.items())
        raise TypeError(f"{kernel}: expected tensors on one device, got {shown}")
    return next(iter(found.values()))


def _argument(parameter: Parameter, value: Any, scalar: torch.dtype) -> Argument:
    ctype = parameter.resolved(scalar)
    if parameter.pointer:
        _check_tensor(
            parameter.name, value, scalar if parameter.type == "scalar_t" else _POINTERS[ctype]
        )
        return Argument(parameter.name, f"{'const ' if parameter.const else ''}{ctype}*", value)
    if not isinstance(value, int if ctype not in ("float", "double") else (int, float)):
        raise PlanError(f"{parameter.name}: expected a number for {ctype}, got {value!r}")
    argument = Argument(parameter.name, ctype, value)
    try:
        argument.pack()
    except struct.error:
        raise PlanError(f"{parameter.name}: {value} does not fit {ctype}") from None
    return argument


def _check_tensor(name: str, value: Any, dtype: torch.dtype) -> None:
    if value is None:
        return
    if not isinstance(value, Tensor):
        raise PlanError(f"{name}: expected a tensor, got {value!r}")
    if value.dtype != dtype:
        raise TypeError(f"{name}: expected {dtype}, got {value.dtype}")
    if not value.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor")


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


# ----------------------------------------------------------------------------------- execution

_executor: Callable[[Plan], None] | None = None


@contextmanager
def executed_by(executor: Callable[[Plan], None]) -> Iterator[None]:
    """Give every launch to ``executor``; CPU tensors count as CUDA tensors within."""
    global _executor
    before, _executor = _executor, executor
    try:
        yield
    finally:
        _executor = before


def takes(tensor: Tensor) -> bool:
    """Whether a kernel could be given this tensor."""
    return tensor.is_cuda or _executor is not None


def available() -> bool:
    """Whether the kernels can run here (CuPy with a CUDA device)."""
    return problem() is None


def require() -> None:
    """Raise :class:`CudaError` unless the kernels can run here."""
    if reason := problem():
        raise CudaError(f"the CUDA kernels cannot run: {reason}")


def problem() -> str | None:
    """Why the kernels cannot run here, in words; None if they can."""
    return None if _executor is not None else _cupy_problem()


@functools.cache
def _cupy_problem() -> str | None:
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    wanted = f"pip install 'cortado[{extra()}]'"
    try:
        cupy = _cupy()
    except ImportError as error:
        return f"CuPy is not installed ({error}): {wanted}"
    try:
        built = cupy.cuda.runtime.runtimeGetVersion() // 1000
        cupy.cuda.nvrtc.getVersion()
    except Exception as error:  # CuPy's own classes; a library it cannot load
        return f"CuPy {cupy.__version__} does not work here ({error}): {wanted}"
    if str(built) != str(torch.version.cuda).split(".")[0]:
        return f"CuPy is built for CUDA {built}, torch for {torch.version.cuda}: {wanted}"
    return None


def extra() -> str:
    """The extra of this package that brings the CuPy for torch's CUDA."""
    return "cuda12" if str(torch.version.cuda).startswith("12.") else "cuda13"


def _cupy() -> Any:
    return importlib.import_module("cupy")


@functools.cache
def _function(text: str, name: str, options: tuple[str, ...], kernel: str, device: int) -> Any:
    """The compiled kernel on a device; CuPy keeps what it compiled on disk, by the text's hash."""
    cupy = _cupy()
    module = _module(text, options)
    try:
        module.compile()
        return module.get_function(kernel)
    except cupy.cuda.compiler.CompileException as error:
        raise CompileError(f"{name} does not compile: {first_error(str(error))}") from error


@functools.cache
def _module(text: str, options: tuple[str, ...]) -> Any:
    return _cupy().RawModule(code=text, options=options, backend="nvrtc")


def first_error(log: str) -> str:
    """A compiler's first error as ``file:line: error: ...``; the whole log if there is none."""
    match = re.search(r"^([^\s(:]+\.cu)[(:](\d+)\)?(?::\d+)?: ((?:\w+ )?error.*)$", log, re.MULTILINE)
    return f"{match[1]}:{match[2]}: {match[3]}" if match else log


def _cupy_execute(plan: Plan) -> None:
    require()
    cupy = _cupy()
    index = plan.device.index or 0
    defines = plan.text.defines(plan.scalar, dict(plan.constants))
    options = ("--std=c++17", *(f"-D{name}={value}" for name, value in defines.items()))
    arguments = tuple(_cupy_argument(argument) for argument in plan.arguments)
    stream = torch.cuda.current_stream(plan.device).cuda_stream
    with cupy.cuda.Device(index), cupy.cuda.ExternalStream(stream, index):
        function = _function(plan.text.full, plan.text.path.name, options, plan.kernel, index)
        function(plan.grid, plan.block, arguments, shared_mem=plan.shared)


def nvrtc_report(text: Text, scalar: torch.dtype, constants: Mapping[str, int], arch: str) -> str:
    """Compile for an architecture (``sm_90``) with CuPy's NVRTC: what ptxas says of each kernel.

    Needs no GPU. Raises ImportError or :class:`CudaError`, whose cause is NVRTC's, without NVRTC.
    """
    cupy = _cupy()
    nvrtc = cupy.cuda.nvrtc
    defines = (f"-D{name}={value}" for name, value in text.defines(scalar, constants).items())
    options = ("--std=c++17", f"-arch={arch}", "--ptxas-options=-v", "-ftz=true", *defines)
    try:
        options = importlib.import_module("cupy._core.core").assemble_cupy_compiler_options(options)
        program = nvrtc.createProgram(text.full, text.path.name, (), ())
    except Exception as error:  # the libraries CuPy loads when first used
        raise CudaError(f"NVRTC is not to be had: {error}") from error
    try:
        nvrtc.compileProgram(program, options)
    except nvrtc.NVRTCError as error:
        log = str(nvrtc.getProgramLog(program))
        raise CompileError(f"{text.path.name} does not compile: {first_error(log)}") from error
    finally:
        log = str(nvrtc.getProgramLog(program))
        nvrtc.destroyProgram(program)
    return log


_NUMPY = {"i": "int32", "I": "uint32", "q": "int64", "?": "bool_", "f": "float32", "d": "float64"}


def _cupy_argument(argument: Argument) -> Any:
    """A NumPy scalar, which CuPy passes with its own width."""
    import numpy as np

    if argument.is_pointer:
        return np.uint64(argument.value.data_ptr() if isinstance(argument.value, Tensor) else 0)
    return getattr(np, _NUMPY[_VALUES[argument.ctype]])(argument.value)
