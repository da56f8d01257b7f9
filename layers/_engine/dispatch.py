"""Which path computes: torch operations, or the CUDA kernels beside a layer.

The kernels run where the tensors are on a CUDA device and CuPy is there; ``with impl("torch")``
or ``with impl("cuda")`` forces one path or raises. CUDA tensors without CuPy run the torch path:
that is said once, as a warning, and by :func:`note`. Tensors without values (meta, FakeTensorMode)
take neither: a layer's ``meta`` says their shapes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from . import cuda
from .checks import valueless
from .function import constant

# Not a ContextVar: autograd runs the backward of CUDA tensors in threads of its own.
_forced: str | None = None
_noted = False


@contextmanager
def impl(name: str) -> Iterator[None]:
    """Force the path of the layers that have kernels within the block: ``"torch"`` or ``"cuda"``.

    It holds for the whole process, backward's threads included.
    """
    global _forced
    if name not in ("torch", "cuda"):
        raise ValueError(f'impl: expected "torch" or "cuda", got "{name}"')
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def forced() -> str:
    """The path that is forced, "" if none is."""
    return _forced or ""


def use_cuda(*tensors: torch.Tensor) -> bool:
    """Whether these tensors go to the CUDA kernels; raises if "cuda" is forced and can't be had."""
    if _forced is None and not cuda.takes(tensors[0]):
        return False
    return runs_kernels(forced(), *tensors)


def runs_kernels(path: str, *tensors: torch.Tensor) -> bool:
    """The same where ``path`` says what is forced."""
    if path == "torch" or valueless(tensors[0]):
        return False
    on_device = all(cuda.takes(tensor) for tensor in tensors)
    if path == "cuda":
        if not on_device:
            devices = sorted({str(tensor.device) for tensor in tensors})
            raise RuntimeError(f'impl("cuda") needs CUDA tensors, got {", ".join(devices)}')
        cuda.require()
        return True
    return on_device and (cuda.available() or _say_torch())


def kernels_for(tensor: torch.Tensor) -> bool:
    """Whether kernels would run, or "cuda" is forced, for a compiler: it may have no values."""
    return _forced == "cuda" or (_forced is None and cuda.takes(tensor) and _available())


@constant
def _available() -> bool:
    return cuda.available()


def note() -> str | None:
    """What a user with a CUDA device should know about the path taken; None if nothing."""
    if not torch.cuda.is_available() or (reason := cuda.problem()) is None:
        return None
    return f"CUDA tensors run cortado's layers in torch operations, not its kernels: {reason}"


def _say_torch() -> bool:
    global _noted
    if not _noted and (text := note()):
        warnings.warn(text, stacklevel=4)
    _noted = True
    return False
