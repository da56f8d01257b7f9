"""The one file that knows CuPy: compiles the layers' CUDA text on first use, and runs their launches.

CuPy compiles with ``-ftz=true``: float32 values below 1.2e-38 count as zero in a kernel.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from . import plan as plans
from .kernel_text import VALUES, CompileError, CudaError, PlanError, Text, accumulator_dtype
from .plan import (
    Argument,
    Kernels,
    Plan,
    block_size,
    blocks,
    executed_by,
    multiprocessors,
    sizes,
    threads,
    vector,
)

__all__ = [
    "Argument",
    "CompileError",
    "CudaError",
    "Kernels",
    "Plan",
    "PlanError",
    "Text",
    "accumulator_dtype",
    "block_size",
    "blocks",
    "executed_by",
    "multiprocessors",
    "sizes",
    "threads",
    "vector",
]


def takes(tensor: Tensor) -> bool:
    """Whether a kernel could be given this tensor."""
    return tensor.is_cuda or plans.executor is not None


def available() -> bool:
    """Whether the kernels can run here (CuPy with a CUDA device)."""
    return problem() is None


def require() -> None:
    """Raise :class:`CudaError` unless the kernels can run here."""
    if reason := problem():
        raise CudaError(f"the CUDA kernels cannot run: {reason}")


def problem() -> str | None:
    """Why the kernels cannot run here, in words; None if they can."""
    return None if plans.executor is not None else _cupy_problem()


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


def run(plan: Plan) -> None:
    """Execute a launch on torch's current stream."""
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
    return getattr(np, _NUMPY[VALUES[argument.ctype]])(argument.value)
