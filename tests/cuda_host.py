"""Run the layers' CUDA kernels without a GPU: the launch layer's plans, executed by g++'s binaries.

``with on_host():`` takes the place of CuPy. Each text is compiled against ``cuda/cuda_host.h`` under
the address and undefined-behaviour sanitizers into a program that serves launches; tensors go there
and back through pipes, so that a crash, a hang or a report is an exception here and nothing more.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import pytest
import torch
from cortado.layers._engine import cuda
from cortado.layers._engine.dispatch import impl

HEADER = Path(__file__).parent / "cuda" / "cuda_host.h"
BUILD = Path(__file__).parent.parent / "build" / "cuda_host"
ORDERS = ("ascending", "descending", "random")
FLAGS = (
    *("-std=c++17", "-O0", "-g1", "-w", "-ffp-contract=off", "-ftrivial-auto-var-init=pattern"),
    *("-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"),
)
ENVIRONMENT = {
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=0",
}

compiler = shutil.which("g++")
needs_compiler = pytest.mark.skipif(compiler is None, reason="g++ is not installed")


class HostError(AssertionError):
    """A kernel that broke a rule on the host: a sanitizer's report, a stuck barrier, a time-out."""


class CompileError(AssertionError):
    """Text that g++ does not take; ``log`` is what it said."""

    def __init__(self, log: str) -> None:
        super().__init__(cuda.first_error(log) or log)
        self.log = log


# ------------------------------------------------------------------------------------ compiling


def host_code(code: str) -> str:
    """The text as C++: linkage dropped, shared memory allocated by the header. Lines stay."""
    code = re.sub(r'extern\s+"C"\s+__global__', "__global__", code)
    kind = r"(?:__align__\(\d+\)\s+)?([\w: ]*?\w)"
    dynamic = rf"extern\s+__shared__\s+{kind}\s+(\w+)\[\]\s*;"
    static = rf"(?<!extern )__shared__\s+{kind}\s+(\w+)((?:\[[^\]]+\])*)\s*;"
    code = re.sub(dynamic, r"auto* \2 = cuda_host::dynamic_shared<\1>();", code)
    return re.sub(static, r"auto& \2 = cuda_host::shared<\1\3, __COUNTER__>();", code)


def program(codes: Sequence[str], kernels: Sequence[str]) -> str:
    """The source that serves each code's kernels: kernel ``j`` of code ``i`` has number i n + j."""
    units = "".join(
        f"namespace unit{i} {{ namespace {{\n{host_code(code)}\n}} }}\n" for i, code in enumerate(codes)
    )
    entries = ",\n".join(
        f'CUDA_HOST_ENTRY("{name}", unit{i}::{name})' for i in range(len(codes)) for name in kernels
    )
    return (
        f'#include "{HEADER.name}"\n{units}#line 1 "entries"\n'
        f"static const cuda_host::Entry entries[] = {{\n{entries}}};\n"
        "int main() { return cuda_host::serve(entries, sizeof entries / sizeof *entries); }\n"
    )


@cache
def version() -> str:
    return subprocess.run([str(compiler), "--version"], capture_output=True, text=True).stdout


def build(source: str, defines: dict[str, str]) -> Path:
    """The compiled program; found by the hash of all that goes into it if it was built before."""
    defines = {name: value for name, value in defines.items() if name != "CORTADO_INCLUDE"}
    macros = [f"-D{name}={value}" for name, value in defines.items()]
    parts = (source, HEADER.read_text(), *FLAGS, *macros, version())
    target = BUILD / hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    if target.exists():
        return target
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        (Path(folder) / "kernels.cpp").write_text(source)
        command = [str(compiler), *FLAGS, *macros, f"-I{HEADER.parent}", "kernels.cpp", "-o", "kernels"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise CompileError(done.stderr)
        os.replace(Path(folder) / "kernels", target)
    return target


# -------------------------------------------------------------------------------------- serving


class Server:
    """A compiled program that waits for launches."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 closed with the process
        self.process = subprocess.Popen(
            [path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, env=ENVIRONMENT
        )

    def launch(self, number: int, plan: cuda.Plan, order: str, seed: int, seconds: int) -> None:
        head = (number, len(plan.arguments), *plan.grid, *plan.block, plan.shared, ORDERS.index(order))
        message = [struct.pack("10I2Q", *head, seed, seconds), *map(_encoded, plan.arguments)]
        try:
            self.process.stdin.write(b"".join(message))
            self.process.stdin.flush()
            for argument in plan.arguments:
                if argument.is_written and argument.value is not None:
                    target = argument.value.view(-1).view(torch.uint8)
                    data = self._read(target.numel())
                    if data:
                        target.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
            self._read(1)
        except (BrokenPipeError, EOFError):
            raise HostError(f"{plan.kernel}: {self._last_words()}") from None

    def _read(self, size: int) -> bytes:
        data = self.process.stdout.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def _last_words(self) -> str:
        code = self.close()
        self.log.seek(0)
        report = headline(self.log.read())
        self.log.close()
        return report or ("no end within the time limit" if code == -14 else f"died with status {code}")

    def close(self) -> int:
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(BrokenPipeError):
                pipe.close()
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None and not self.process.stdin.closed


def _encoded(argument: cuda.Argument) -> bytes:
    if not argument.is_pointer:
        data = argument.pack()
        return struct.pack("3Q", 0, len(data), 0) + data
    if argument.value is None:
        return struct.pack("3Q", 3, 0, 0)
    tensor = argument.value
    data = bytes(tensor.detach().view(-1).view(torch.uint8).numpy()) if tensor.numel() else b""
    return struct.pack("3Q", 2 if argument.is_written else 1, len(data), tensor.data_ptr() % 16) + data


def headline(report: str) -> str:
    """The telling line of a report first, then all of it."""
    match = re.search(
        r"^.*(?:runtime error|cuda_host: |SUMMARY: AddressSanitizer).*$", report, re.MULTILINE
    )
    return f"{match[0]}\n{report}" if match else report.strip()


_servers: dict[Path, Server] = {}


def server(path: Path) -> Server:
    """The running server of a program; a new one where the last has died."""
    found = _servers.get(path)
    if found is None or not found.is_alive:
        found = _servers[path] = Server(path)
    return found


@atexit.register
def close_servers() -> None:
    for found in _servers.values():
        if found.is_alive:
            found.close()
        found.log.close()
    _servers.clear()


# ------------------------------------------------------------------------------------ executing


class Host:
    """Executes plans; ``order`` is that of the blocks and of the threads in them."""

    seconds = 20  # a launch's limit

    def __init__(self, order: str = "ascending", seed: int = 1) -> None:
        self.order, self.seed = order, seed
        self.plans: list[cuda.Plan] = []

    def __call__(self, plan: cuda.Plan) -> None:
        self.plans.append(plan)
        check_aliases(plan)
        path, number = self.locate(plan)
        server(path).launch(number, plan, self.order, self.seed + len(self.plans), self.seconds)

    def locate(self, plan: cuda.Plan) -> tuple[Path, int]:
        """The program that holds the plan's kernel, and the kernel's number in it."""
        kernels = list(plan.text.signatures)
        defines = plan.text.defines(plan.scalar, dict(plan.constants))
        return build(program([plan.text.full], kernels), defines), kernels.index(plan.kernel)


def check_aliases(plan: cuda.Plan) -> None:
    """What a kernel writes is nothing else that it is given: parameters are ``__restrict__``."""
    held = [a for a in plan.arguments if isinstance(a.value, torch.Tensor) and a.value.numel()]
    spans = [(a, a.value.data_ptr(), a.value.data_ptr() + a.value.nbytes) for a in held]
    for written, first, last in spans:
        for other, start, end in spans:
            if written.is_written and other is not written and start < last and first < end:
                raise HostError(f"{plan.kernel}: {written.name} shares memory with {other.name}")


@contextmanager
def on_host(
    order: str = "ascending", threads: int | None = None, make: Callable[..., Host] = Host
) -> Iterator[Host]:
    """CUDA paths run on CPU tensors by the host's compiler; what torch allocates starts as NaN."""
    host = make(order)
    deterministic = torch.are_deterministic_algorithms_enabled()
    with cuda.executed_by(host), impl("cuda"):
        torch.use_deterministic_algorithms(
            True
        )  # fills empty tensors with NaN, integers with their largest
        try:
            if threads is None:
                yield host
            else:
                with cuda.block_size(threads):
                    yield host
        finally:
            torch.use_deterministic_algorithms(deterministic)
