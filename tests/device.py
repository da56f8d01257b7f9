"""Where the tests marked ``gpu`` run: the CUDA device, and what they ask of it.

``CORTADO_REHEARSE_GPU=1`` runs the same tests on CPU tensors, the kernels on the host: that shows
whether the tests themselves work where there is no GPU.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import cuda_host
import pytest
import torch
from cortado.layers._engine import cuda
from cortado.layers._engine.dispatch import impl
from torch import Tensor

REHEARSAL = os.environ.get("CORTADO_REHEARSE_GPU") == "1"
PRESENT = REHEARSAL or torch.cuda.is_available()
DEVICE = "cpu" if REHEARSAL else "cuda"
MANY = 2**10 if REHEARSAL else 2**31
ALERT = "does not have a deterministic implementation"  # torch's own words

needed = pytest.mark.skipif(not PRESENT, reason="no CUDA device")
on_cuda = pytest.mark.skipif(REHEARSAL or not PRESENT, reason="no CUDA device")
kernels_needed = pytest.mark.skipif(
    not REHEARSAL and not cuda.available(), reason=f"no kernels here: {cuda.problem()}"
)

# cuBLAS keeps its order only with this, and torch refuses it without; read when first used.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def path(name: str | None) -> AbstractContextManager[object]:
    """Force a path of the layers: "torch", "cuda", or None for their own choice."""
    if name is None:
        return nullcontext()
    return cuda_host.on_host() if REHEARSAL and name == "cuda" else impl(name)


def synchronize() -> None:
    if not REHEARSAL:
        torch.cuda.synchronize()


@contextmanager
def deterministic() -> Iterator[None]:
    """Torch's deterministic algorithms alone: an operation without one raises; ``empty`` is NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def no_synchronisation() -> Iterator[None]:
    """Whatever makes the host wait for the device raises."""
    if REHEARSAL:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextmanager
def busy_stream() -> Iterator[Callable[[list[Tensor]], list[Tensor]]]:
    """Another stream, and a copier whose copies become right only after it has worked a while.

    What does not follow the stream reads NaN, or zeros.
    """
    if REHEARSAL:
        yield lambda tensors: [x.clone() for x in tensors]
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())

    def late(tensors: list[Tensor]) -> list[Tensor]:
        copies = [torch.full_like(x, torch.nan if x.is_floating_point() else 0) for x in tensors]
        stream.synchronize()
        torch.cuda._sleep(50_000_000)
        for copy, x in zip(copies, tensors, strict=True):
            copy.copy_(x)
        return copies

    with torch.cuda.stream(stream):
        yield late
    torch.cuda.current_stream().wait_stream(stream)


def last_device() -> str:
    """The last of several devices; the test is skipped where there is one."""
    if REHEARSAL:
        return DEVICE
    count = torch.cuda.device_count()
    if count < 2:
        pytest.skip("one CUDA device only: the last is the first")
    return f"cuda:{count - 1}"


@contextmanager
def alone(required: float) -> Iterator[None]:
    """Take turns with other test processes; skip unless so many bytes are free on the device."""
    with (Path(tempfile.gettempdir()) / f"cortado_gpu_{os.getuid()}.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not REHEARSAL:
            torch.cuda.empty_cache()
            free = torch.cuda.mem_get_info()[0]
            if free < required:
                need = f"{required / 2**30:.1f} GiB on the device, {free / 2**30:.1f} are free"
                pytest.skip(f"needs {need}")
        yield
    if not REHEARSAL:
        torch.cuda.empty_cache()
