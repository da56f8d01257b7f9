"""What Caffe keeps for each thread, the device and the number of solvers; random seeds, the log."""

from __future__ import annotations

import logging
import sys
import threading
import time

import torch
from cortado.layers._engine import registry
from cortado.nets import glog

LOGGER = logging.getLogger("caffe")


class _State(threading.local):
    """Of one thread: each may run nets on a device of its own, and starts on the CPU, as in Caffe."""

    gpu = False
    device_id = 0
    solver_count = 1
    solver_rank = 0
    multiprocess = False


_state = _State()


def set_mode_cpu() -> None:
    """Run nets on the CPU, as at the beginning."""
    _state.gpu = False


def set_mode_gpu() -> None:
    """Run nets on the GPU of :func:`set_device`. Raises RuntimeError where there is none."""
    _check_gpu(_state.device_id)
    _state.gpu = True


def set_device(device_id: int) -> None:
    """Choose the GPU by its number. Raises RuntimeError where there is none."""
    _check_gpu(device_id)
    _state.device_id = device_id


def _check_gpu(device_id: int) -> None:
    count = torch.cuda.device_count()
    if device_id not in range(count):
        raise RuntimeError(f"no GPU {device_id}: torch finds {count} here")


def device() -> torch.device:
    """Where nets run now."""
    return torch.device("cuda", _state.device_id) if _state.gpu else torch.device("cpu")


def set_random_seed(seed: int) -> None:
    """Seed what fillers and layers draw from."""
    torch.manual_seed(seed)


def solver_count() -> int:
    return _state.solver_count


def set_solver_count(count: int) -> None:
    """Kept for scripts that ask for it; every process here trains its own net."""
    _state.solver_count = count


def solver_rank() -> int:
    return _state.solver_rank


def set_solver_rank(rank: int) -> None:
    """Kept as :func:`set_solver_count`; only solver 0 logs."""
    _state.solver_rank = rank


def set_multiprocess(multiprocess: bool) -> None:
    """Accepted: solvers here are always processes of their own."""
    _state.multiprocess = multiprocess


def has_nccl() -> bool:
    """False: several processes train through ``cortado train``, not through Caffe's NCCL."""
    return False


def init_log(level: int = 0, stderr: bool = True) -> None:
    """Show the log (logger ``caffe``) in glog's lines, from 0 info, 1 warnings or 2 errors on."""
    if stderr and not LOGGER.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(glog.Formatter())
        LOGGER.addHandler(handler)
    LOGGER.setLevel((logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)[level])


def log(message: str) -> None:
    """Write an information to the log."""
    if _state.solver_rank == 0:
        LOGGER.info(message, stacklevel=2)


def layer_type_list() -> list[str]:
    """All layer types that a net may have."""
    return registry.types()


class Timer:
    """Milliseconds (``ms``) between ``start`` and ``stop``, the device's work included."""

    def __init__(self) -> None:
        self._start = self._stop = 0.0

    def start(self) -> None:
        self._start = self._now()

    def stop(self) -> None:
        self._stop = self._now()

    @property
    def ms(self) -> float:
        return 1000 * (self._stop - self._start)

    @staticmethod
    def _now() -> float:
        if _state.gpu:
            torch.cuda.synchronize(device())
        return time.perf_counter()


class NCCL:
    """Caffe's exchange of gradients between GPUs, which :func:`has_nccl` denies."""

    def __init__(self, solver: object, uid: str) -> None:
        raise RuntimeError("no NCCL here (see has_nccl()); several processes train by cortado train")
