"""What a run leaves behind: Caffe's log lines, JSON lines, TensorBoard's events."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import ExitStack
from typing import IO, TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from cortado.nets.solver import Solver, Tensors


class Records:
    """Where a solver's messages and numbers go; each place is optional.

    ``log``: a file of lines that Caffe's own scripts read (``parse_log.py``). ``lines``: one JSON
    object an iteration (iteration, loss, lr, seconds since the start) and a test (iteration, test,
    outputs, seconds); ``iteration`` is the number of updates done. ``tensorboard``: a folder of
    events. ``glog``: what is shown goes to the standard error, with glog's prefix, as Caffe's does.
    Raises click.UsageError without the tensorboard package, OSError for files that cannot be written.
    """

    def __init__(
        self, log: str | None, lines: str | None, tensorboard: str | None, glog: bool = False
    ) -> None:
        self.glog = glog
        self.stack = ExitStack()
        self.start = time.perf_counter()
        self.file = self._open(log)
        self.lines = self._open(lines)
        self.events = _events(tensorboard) if tensorboard else None

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *_: object) -> None:
        if self.events:
            self.events.close()
        self.stack.close()

    def _open(self, path: str | None) -> IO[str] | None:
        return self.stack.enter_context(open(path, "a", encoding="utf-8")) if path else None

    def log(self, line: str) -> None:
        """A line of the log, shown as well; its place is the caller's."""
        from cortado.nets.glog import prefix

        caller = sys._getframe(1)
        place = prefix(os.path.basename(caller.f_code.co_filename), caller.f_lineno)
        click.echo(place + line if self.glog else line, err=self.glog)
        if self.file:
            _append(self.file, place + line)

    def iteration(self, solver: Solver, loss: float) -> None:
        if solver.is_root:
            numbers = {"loss": loss, "lr": solver.last_rate}
            self._line(solver.iter, **numbers)
            self._scalars("train", numbers, solver.iter)

    def test(self, solver: Solver, which: int, means: Tensors) -> None:
        outputs = {name: mean.tolist() for name, mean in means.items()}
        self._line(solver.iter, test=which, outputs=outputs)
        self._scalars(f"test {which}", outputs, solver.iter)

    def _line(self, iteration: int, **values: Any) -> None:
        if self.lines:
            seconds = round(time.perf_counter() - self.start, 3)
            _append(self.lines, json.dumps({"iteration": iteration, **values, "seconds": seconds}))

    def _scalars(self, where: str, values: dict[str, Any], iteration: int) -> None:
        for name, value in values.items():
            if self.events and isinstance(value, float):
                self.events.add_scalar(f"{where}/{name}", value, iteration)


def _append(file: IO[str], line: str) -> None:
    try:
        print(line, file=file, flush=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, file.name) from None


def _events(folder: str) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        text = "--tensorboard needs the tensorboard package: pip install tensorboard"
        raise click.UsageError(text) from None
    return SummaryWriter(folder)
