"""``.solverstate`` files, Caffe's and with what a run needs to go on with the same bits.

A binary SolverState, or the same in HDF5 (``.solverstate.h5``). Caffe passes over what is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from cortado.layers._data import hdf5_file
from cortado.prototxt_like import SpecError, wire
from cortado.prototxt_like.files import replace_file


@dataclass(frozen=True)
class SolverState:
    """Iterations done, the file of the weights, the steps a policy took, and the histories.

    ``history`` holds each parameter's first tensor, then each one's second. ``extra`` is ours.
    """

    iter: int
    learned_net: str
    current_step: int
    history: list[npt.NDArray[Any]]
    extra: bytes = b""


def read_state(path: str | Path) -> SolverState:
    """Read a state; raises :class:`SpecError`, which names the file, where it is not one."""
    if Path(path).suffix == ".h5":
        return _read_hdf5(Path(path))
    return SolverState(*wire.read_solver_state(path))


def write_state(path: Path, state: SolverState) -> None:
    """Write a state beside its place, then rename it there."""
    if path.suffix == ".h5":
        replace_file(path, lambda beside: _write_hdf5(beside, state))
    else:
        wire.write_solver_state(path, **vars(state))


def _read_hdf5(path: Path) -> SolverState:
    try:
        with hdf5_file.open_hdf5(path) as file, hdf5_file.reading(path):
            extra = _numbers(path, file, "cortado") if "cortado" in file else np.zeros(0)
            history = hdf5_file.member(path, file, "history")
            return SolverState(
                _integer(path, file, "iter"),
                hdf5_file.read_text(path, file, "learned_net") if "learned_net" in file else "",
                _integer(path, file, "current_step"),
                [_numbers(path, history, str(i)).astype(np.float32) for i in range(len(history))],
                extra.astype(np.uint8).tobytes(),
            )
    except ValueError as error:
        raise SpecError(f"not a solver's state: {error}") from None


def _numbers(path: Path, file: Any, name: str) -> npt.NDArray[Any]:
    data = hdf5_file.member(path, file, name)
    hdf5_file.expect_numbers(path, name, data)
    return np.asarray(data[()])


def _integer(path: Path, file: Any, name: str) -> int:
    value = _numbers(path, file, name)
    if value.size != 1 or value.dtype.kind not in "iu" or value.item() < 0:
        raise ValueError(f'{path}: "{name}" is no count')
    return int(value.item())


def _write_hdf5(path: Path, state: SolverState) -> None:
    def fill(file: Any) -> None:
        file["iter"] = np.array([state.iter], np.int32)
        file["learned_net"] = np.bytes_(state.learned_net)
        file["current_step"] = np.array([state.current_step], np.int32)
        for i, history in enumerate(state.history):
            file[f"history/{i}"] = history
        file["cortado"] = np.frombuffer(state.extra, np.uint8)

    hdf5_file.write_hdf5(path, fill)
