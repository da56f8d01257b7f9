"""Times in interleaved rounds, and peaks of allocated memory, of two ways to compute the same."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

Call = Callable[[], object]
HEADER = (
    "| layer | direction | ms | alternative ms | ratio | MiB | alternative MiB "
    "| floor ms | times the floor |\n"
    "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
)


@dataclass(frozen=True)
class Row:
    """One line of the table: seconds of each round, and mebibytes."""

    layer: str
    direction: str
    ours: Sequence[float]
    theirs: Sequence[float]
    floor: Sequence[float]
    memory: float
    their_memory: float

    @property
    def ratio(self) -> float:
        """How many times as fast as the alternative: the median over the rounds."""
        return statistics.median(b / a for a, b in zip(self.ours, self.theirs, strict=True))

    def __str__(self) -> str:
        ms, theirs, floor = (1e3 * statistics.median(x) for x in (self.ours, self.theirs, self.floor))
        return (
            f"| {self.layer} | {self.direction} | {ms:.2f} | {theirs:.2f} | {self.ratio:.2f} "
            f"| {self.memory:.1f} | {self.their_memory:.1f} | {floor:.2f} | {ms / floor:.1f} |"
        )


def seconds(call: Call) -> float:
    """The wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleaved(calls: Sequence[Call], rounds: int) -> list[list[float]]:
    """Seconds of each call in each round, after one that is not counted."""
    for call in calls:
        call()
    times = [[seconds(call) for call in calls] for _ in range(rounds)]
    return [list(column) for column in zip(*times, strict=True)]


def peak(call: Call) -> float:
    """The most mebibytes that torch's CPU allocator held at once beyond what it held before.

    It sees every tensor, temporaries of operators included, but not the packing buffers of the
    matrix library (a few MiB).
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = most = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return most / 2**20


def traffic(tensors: Sequence[torch.Tensor]) -> Call:
    """A copy that moves as many bytes as reading or writing each of the tensors once."""
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    source = torch.ones(max(1, total // 2), dtype=torch.uint8)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)
