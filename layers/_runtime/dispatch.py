"""Which path computes: torch operations, or the CUDA kernels beside a layer.

The kernels run where the tensors are on a CUDA device and CuPy is there; ``with impl("torch")``
or ``with impl("cuda")`` forces one path or raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from . import cuda

_forced: ContextVar[str | None] = ContextVar("cortado_impl", default=None)


@contextmanager
def impl(name: str) -> Iterator[None]:
    """Force the path of every cortado layer within the block: ``"torch"`` or ``"cuda"``."""
    if name not in ("torch", "cuda"):
        raise ValueError(f'impl: expected "torch" or "cuda", got "{name}"')
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def use_cuda(*tensors: torch.Tensor) -> bool:
    """Whether these tensors go to the CUDA kernels; raises if "cuda" is forced and can't be had."""
    forced = _forced.get()
    if forced == "torch":
        return False
    on_device = all(tensor.is_cuda for tensor in tensors)
    if forced == "cuda":
        if not on_device:
            devices = sorted({str(tensor.device) for tensor in tensors})
            raise RuntimeError(f'impl("cuda") needs CUDA tensors, got {", ".join(devices)}')
        cuda.require()
        return True
    return on_device and cuda.available()
