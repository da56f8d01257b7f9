"""Compile every CUDA kernel for several architectures and show what it takes of a multiprocessor.

No GPU is needed: NVRTC does it where CuPy has it, else nvcc.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import torch
    from cortado.layers._engine.cuda import Text

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")


@dataclass(frozen=True)
class Build:
    """One text compiled one way: for a scalar type, a choice of its constants, an architecture."""

    text: Text
    scalar: torch.dtype
    constants: tuple[tuple[str, int], ...]
    arch: str


@dataclass(frozen=True)
class Usage:
    """What a kernel takes: registers a thread; bytes of shared memory, stack and spills."""

    kernel: str
    registers: int
    shared: int
    stack: int
    spilled: int


def texts() -> list[Text]:
    """The ``.cu`` of every registered layer that has kernels."""
    from cortado.layers._engine import registry

    modules = {sys.modules[entry.layer.__module__] for entry in registry.entries()}
    found = [module.kernels.text for module in modules if hasattr(module, "kernels")]
    return sorted(found, key=lambda text: text.path)


def builds(architectures: tuple[str, ...], scalars: tuple[torch.dtype, ...] = ()) -> Iterator[Build]:
    """Every text for every scalar type (or those given), constant and architecture."""
    from cortado.layers._engine import kernel_text

    for text, arch, scalar in itertools.product(texts(), architectures, scalars or kernel_text.SCALARS):
        for values in itertools.product(*text.constants.values()):
            yield Build(text, scalar, tuple(zip(text.constants, values, strict=True)), arch)


def usage(build: Build, compiler: str) -> list[Usage]:
    """Compile with ``"nvrtc"`` or ``"nvcc"``; raises CompileError with the ``.cu``'s own line."""
    from cortado.layers._engine import cuda

    if compiler == "nvrtc":
        return parse(cuda.nvrtc_report(build.text, build.scalar, dict(build.constants), build.arch))
    return parse(_nvcc_report(build))


def _nvcc_report(build: Build) -> str:
    from cortado.layers._engine import cuda

    defines = build.text.defines(build.scalar, dict(build.constants))
    macros = [f"-D{name}={value}" for name, value in defines.items()]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernels.cu"
        source.write_text(build.text.full, encoding="utf-8")
        command = ["nvcc", "-std=c++17", f"-arch={build.arch}", "-ftz=true", "-cubin", "-Xptxas", "-v"]
        done = subprocess.run(
            [*command, *macros, source.name, "-o", "kernels.cubin"],
            cwd=folder,
            capture_output=True,
            text=True,
        )
    log = done.stderr + done.stdout
    if done.returncode:
        raise cuda.CompileError(f"{build.text.path.name} does not compile: {cuda.first_error(log)}")
    return log


def parse(log: str) -> list[Usage]:
    """ptxas's report (``-v``) as numbers, a kernel each."""
    found = []
    for part in re.split(r"Compiling entry function ", log)[1:]:
        kernel = re.match(r"'(\w+)'", part)
        memory = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part
        )
        used = re.search(r"Used (\d+) registers", part)
        shared = re.search(r"(\d+) bytes smem", part)
        if not (kernel and memory and used):
            raise ValueError(f"ptxas reports in another form: {part}")
        stack, stores, loads = map(int, memory.groups())
        found.append(
            Usage(kernel[1], int(used[1]), int(shared[1]) if shared else 0, stack, max(stores, loads))
        )
    return found


def compiler() -> str | None:
    """What there is to compile with: NVRTC, else nvcc, else None."""
    from cortado.layers._engine import cuda

    for text in texts()[:1]:
        try:
            import torch

            cuda.nvrtc_report(text, torch.float32, text.chosen({}), "sm_80")
            return "nvrtc"
        except cuda.CompileError:
            return "nvrtc"
        except (ImportError, cuda.CudaError):
            pass
    return "nvcc" if shutil.which("nvcc") else None


@click.command()
@click.option(
    "--arch",
    default="sm_80,sm_90",
    show_default=True,
    help=f"Architectures, e.g. {','.join(ARCHITECTURES)}.",
)
@click.option("--with", "chosen", type=click.Choice(["nvrtc", "nvcc"]), help="Default: what is there.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def command(arch: str, chosen: str | None, as_json: bool) -> None:
    """Compile every kernel for every type; show registers, shared memory, stack and spills.

    \b
    cortado kernels --arch sm_80,sm_90
    """
    from cortado.layers._engine import cuda

    chosen = chosen or compiler()
    if chosen is None:
        raise click.ClickException("neither NVRTC (pip install 'cortado[cuda13]') nor nvcc is here")
    architectures = tuple(arch.split(","))
    for name in architectures:
        if not re.fullmatch(r"sm_\d{2,3}[af]?", name):
            raise click.UsageError(f'"{name}" is no architecture: {", ".join(ARCHITECTURES)} ...')
    wanted = list(builds(architectures))

    def run(build: Build) -> list[Usage]:
        return usage(build, chosen)

    rows: list[dict[str, object]] = []
    if not as_json:
        head = ("kernel", "type", "constants", "arch", "registers", "shared", "stack", "spilled")
        click.echo("{:34} {:13} {:12} {:7} {:>9} {:>7} {:>6} {:>7}".format(*head))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for build, kernels in zip(wanted, pool.map(run, wanted), strict=True):
                rows += [_facts(build, kernel) for kernel in kernels]
                for kernel in () if as_json else kernels:
                    click.echo(_row(build, kernel))
        except cuda.CudaError as error:
            pool.shutdown(cancel_futures=True)
            raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(json.dumps(rows))


def _facts(build: Build, kernel: Usage) -> dict[str, object]:
    from cortado.layers._engine.kernel_text import SCALARS

    how = {"type": SCALARS[build.scalar], "constants": dict(build.constants), "arch": build.arch}
    return how | dataclasses.asdict(kernel)


def _row(build: Build, kernel: Usage) -> str:
    from cortado.layers._engine.kernel_text import SCALARS

    constants = " ".join(f"{name}={value}" for name, value in build.constants)
    numbers = f"{kernel.registers:9} {kernel.shared:7} {kernel.stack:6} {kernel.spilled:7}"
    return f"{kernel.kernel:34} {SCALARS[build.scalar]:13} {constants:12} {build.arch:7} {numbers}"
