"""``python -m benchmarks --device cuda``: the layers on a GPU against what a user would pick instead.

Every measurement is asked of a process of its own, which is replaced when one fails it: a crash or
a hang costs that measurement alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import re
import sys
import time
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from cortado.tools import results as files
from cortado.tools.measuring import (
    Call,
    CudaMeter,
    Meter,
    ceilings,
    nbytes,
    percentile,
    sets_past,
    within_memory,
)
from cortado.tools.results import BACKWARD, COMPILED, OURS, PLAIN, Result

from . import table
from .gpu_cases import Task, gpu_cases, precision
from .gpu_hyperpixels import hyperpixel_cases
from .gpu_regions import region_cases
from .training import Training

RESULTS = Path(__file__).parent / "results"
SECONDS = 0.2  # of timed rounds, each
LIMIT, COMPILE_LIMIT = 25.0, 45.0  # seconds for one measurement, its warm-up included
START = 30.0  # more for the first of a process: it loads torch and wakes the device
CEILINGS = "ceilings"


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, write if asked; the exit status."""
    small = bool(arguments.rehearse)
    if not small and not torch.cuda.is_available():
        print("no CUDA device: nothing is measured", file=sys.stderr)
        return 1
    end = time.monotonic() + arguments.seconds
    every = everything(small)
    tasks = chosen(every, arguments.only)
    facts = about(small)
    results: list[Result] = []
    with Server(small) as server:
        found = server.ask(CEILINGS, LIMIT)
        if not isinstance(found, tuple):
            print(f"the device does not work: {found}", file=sys.stderr)
            return 1
        keep(results, reached(*found), facts)
        for task in tasks:
            left = end - time.monotonic()
            limit = COMPILE_LIMIT if task.implementation == COMPILED else LIMIT
            answer = server.ask((task, found), min(limit, left)) if left > 1 else "no time was left"
            keep(results, [result(every[task.case], task, answer)], facts)
    if arguments.write:
        write(Path(arguments.results), results)
    lost = [row for row in results if row.implementation == OURS and row.p50_ms is None]
    return 1 if lost or not results else 0


def everything(small: bool) -> list[Any]:
    return [*gpu_cases(small), *region_cases(small), *hyperpixel_cases(small), Training(small)]


def chosen(every: Sequence[Any], only: str) -> list[Task]:
    """The tasks in the order of their worth: ours and plain torch first, compiled ones last."""
    tasks = [
        task
        for number, case in enumerate(every)
        if only in f"{case.layer}, {case.size}"
        for task in case.tasks(number)
    ]
    return sorted(tasks, key=lambda task: task.implementation == COMPILED)


def keep(results: list[Result], new: Sequence[Result], facts: dict[str, str]) -> None:
    for row in new:
        results.append(dataclasses.replace(row, **facts))
        ms = "" if row.p50_ms is None else f"{row.p50_ms:.4f} ms"
        print(*row.what, row.dtype, row.implementation, ms, row.note, sep=", ", flush=True)


def write(folder: Path, results: Sequence[Result]) -> None:
    """Append to the GPU's CSV file and write its table anew."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^a-z0-9]+", "_", results[0].device.lower()).strip("_") or "unknown"
    path = folder / f"{stem}.csv"
    files.append(path, results)
    path.with_suffix(".md").write_text(table.render(files.read(path)), "utf-8")
    print(f"results in {path} and {path.with_suffix('.md')}")


def result(case: Any, task: Task, answer: Any) -> Result:
    """An answer's row: numbers, or why there are none."""
    dtype = str(task.dtype).removeprefix("torch.")
    row = Result(case.layer, case.size, dtype, task.direction, task.implementation)
    if isinstance(answer, str):
        return dataclasses.replace(row, note=answer)
    return dataclasses.replace(row, **answer)


def reached(bandwidth: float, rates: dict[str, float]) -> list[Result]:
    """What the device reaches, as rows."""
    row = partial(Result, table.DEVICE, direction="", implementation=PLAIN)
    return [
        row(size="copy", dtype="", note=f"{bandwidth / 1e9:.0f} GB/s, read and written"),
        *(
            row(size=f"{dtype} matrix product", dtype=dtype, note=f"{rate / 1e12:.1f} TFLOP/s")
            for dtype, rate in rates.items()
        ),
    ]


# ------------------------------------------------------------------------------- one measurement


def measure(case: Any, task: Task, meter: Meter, device: str, found: Any) -> dict[str, Any]:
    """The fields of one row; raises what the implementation raises."""
    with case.forced(task, device):
        function, draw = case.function(task), partial(case.leaves, device, task.dtype)
        leaves = draw(0)
        whole = case.everything(function, leaves, task.direction)
        whole()
        memory = meter.peak(whole)
        del whole
        times = _times(case, function, leaves, draw, task, meter)
        floor = case.floor(task.direction, leaves, *found) if task.implementation == OURS else None
    return {
        "p20_ms": percentile(times, 20),
        "p50_ms": percentile(times, 50),
        "p80_ms": percentile(times, 80),
        "peak_extra_mib": memory,
        "floor_ms": floor,
        "note": case.disagrees(task, leaves) if task.direction != BACKWARD else "",
    }


def _times(case: Any, function: Any, leaves: Any, draw: Any, task: Task, meter: Meter) -> list[float]:
    """Rounds over sets of inputs that pass the cache; fewer sets where memory ends."""
    sets = case.sets or sets_past(meter.cache, 2 * nbytes(*leaves))

    def attempt(sets: int) -> list[float]:
        every = [leaves, *(draw(seed) for seed in range(1, sets))]
        calls: list[Call] = [case.call(function, x, task.direction) for x in every]
        return meter.rounds(calls, SECONDS)

    return within_memory(sets, attempt)


def serve(pipe: Connection, small: bool) -> None:
    """Answer questions until there is none; leave when the device does not answer any more."""
    device = "cpu" if small else "cuda"
    meter = Meter() if small else CudaMeter()
    every = everything(small)
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    healthy = True
    while healthy and (question := pipe.recv()) is not None:
        reply = answer(question, every, meter, device, small)
        healthy = recovered(meter)
        pipe.send((reply, healthy))


def limits(meter: Meter, device: str, small: bool) -> tuple[float, dict[str, float]]:
    """What the device reaches, float32 products in TF32 too."""
    bandwidth, rates = ceilings(meter, device, small)
    with precision("tf32"):
        rates["tf32"] = ceilings(meter, device, small)[1]["float32"]
    return bandwidth, rates


def recovered(meter: Meter) -> bool:
    """Whether the device still works; after a kernel's bad access it does not, in this process."""
    try:
        meter.reset()
    except RuntimeError:
        return False
    return True


def answer(question: Any, every: Sequence[Any], meter: Meter, device: str, small: bool) -> Any:
    """The ceilings, a row's fields, or in words what went wrong."""
    try:
        if question == CEILINGS:
            return limits(meter, device, small)
        task, found = question
        return measure(every[task.case], task, meter, device, found)
    except torch.OutOfMemoryError:
        return "out of memory"
    except Exception as error:  # whatever an alternative may raise: it is the row's note
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0]}"[:160]


class Server:
    """A process that measures; a new one after it has crashed or hung."""

    def __init__(self, small: bool, target: Any = serve) -> None:
        self.small, self.target = small, target
        self.process: Any = None

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.pipe.send(None)
            self.process.join(10)
            self._end()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=self.target, args=(theirs, self.small), daemon=False)
        self.process.start()
        theirs.close()

    def _end(self) -> None:
        self.process.kill()
        self.process.join()
        self.process = None

    def ask(self, question: Any, limit: float) -> Any:
        """The answer, or in words why there is none."""
        if self.process is None:
            self._start()
            limit += START
        try:
            self.pipe.send(question)
            if self.pipe.poll(limit):
                answer, healthy = self.pipe.recv()
                if not healthy:
                    self._end()
                return answer
            self._end()
            return f"took more than {limit:.0f} s"
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            self._end()
            return f"the process ended with status {code}"


def about(small: bool = False) -> dict[str, str]:
    """What every row says of the machine and the code."""
    known = files.about(torch.device("cpu" if small else "cuda"))
    return known | ({"device": "rehearsal on the CPU"} if small else {})
