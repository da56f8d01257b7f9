"""A layer's CUDA text: its kernels' signatures and its compile-time constants, read from the ``.cu``.

The text is plain CUDA on ``scalar_t`` and ``acc_t`` (see ``prelude.cu``, which is put before it) with
``extern "C"`` kernels. It is compiled once for each scalar type and choice of constants.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

PRELUDE = Path(__file__).with_name("prelude.cu")

SCALARS = {
    torch.float32: "float",
    torch.float64: "double",
    torch.float16: "__half",
    torch.bfloat16: "__nv_bfloat16",
}
_INCLUDES = {torch.float16: "<cuda_fp16.h>", torch.bfloat16: "<cuda_bf16.h>"}
POINTERS = {
    "float": torch.float32,
    "double": torch.float64,
    "int": torch.int32,
    "long long": torch.int64,
    "unsigned char": torch.uint8,
    "signed char": torch.int8,
    "bool": torch.bool,
}
# By value: struct's format. The width is the declared one, whatever Python would send.
VALUES = {"int": "i", "unsigned": "I", "long long": "q", "bool": "?", "float": "f", "double": "d"}


class CudaError(RuntimeError):
    """Kernels that cannot be compiled or launched."""


class CompileError(CudaError):
    """Text that a CUDA compiler does not take."""


class PlanError(TypeError):
    """A launch that does not fit the kernel's signature or CUDA's limits."""


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

    @functools.cached_property
    def names(self) -> frozenset[str]:
        return frozenset(parameter.name for parameter in self.parameters)

    @functools.cached_property
    def scalars(self) -> tuple[str, ...]:
        """The parameters that are ``scalar_t*``."""
        return tuple(x.name for x in self.parameters if x.pointer and x.type == "scalar_t")


def accumulator(scalar: torch.dtype) -> str:
    """The C type of sums: float, or double for double."""
    return "double" if scalar == torch.float64 else "float"


def accumulator_dtype(scalar: torch.dtype) -> torch.dtype:
    """The dtype of tensors passed as ``acc_t*``."""
    return POINTERS[accumulator(scalar)]


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
        self.parts = [_shared(name) for name in _SHARED.findall(self.code)]
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


def _shared(name: str) -> Path:
    """A text that several layers put before theirs: of the engine, or of another room beside it."""
    (found,) = PRELUDE.parent.parent.glob(f"_*/{name}")
    return found


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
    if kind not in {"scalar_t", "acc_t"} | (POINTERS.keys() if pointer else VALUES.keys()):
        raise PlanError(f"{path.name}: parameter {text.strip()!r} is of a type the launcher lacks")
    return Parameter(name, kind, pointer, "const" in words)
