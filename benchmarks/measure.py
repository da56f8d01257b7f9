"""Times in interleaved rounds of two ways to compute the same, as rows of a table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from cortado.tools.measuring import Call

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
