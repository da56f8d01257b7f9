"""Times in interleaved rounds, and peaks of allocated memory, of two ways to compute the same."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

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


# ----------------------------------------------------------------------------------- on a GPU

ROUNDS = (5, 60)  # at least, at most


def percentile(values: Sequence[float], percent: float) -> float:
    """Between the two nearest ranks, linearly."""
    ordered, at = sorted(values), (len(values) - 1) * percent / 100
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def sets_past(cache: float, each: float, most: int = 24) -> int:
    """How many sets of inputs and tops, each of so many bytes, to go round: three caches' worth."""
    return max(2, min(most, -int(-3 * cache // max(each, 1))))


class Meter:
    """Times rounds of calls on the CPU, and the memory of one call: to try a GPU's benchmarks out."""

    cache = 1e4

    def reset(self) -> None:
        """Wait for what was asked for, and give back the memory that is kept for later."""

    def round(self, calls: Sequence[Call]) -> float:
        """Milliseconds a call, over all of them; what they give is kept until the end."""
        start = time.perf_counter()
        kept = [call() for call in calls]
        passed = time.perf_counter() - start
        del kept
        return 1e3 * passed / len(calls)

    def peak(self, call: Call) -> float:
        """The most mebibytes held at once beyond what was held before."""
        return peak(call)

    def rounds(self, calls: Sequence[Call], seconds: float) -> list[float]:
        """As many rounds as fit the time, after two that are not counted."""
        for _ in range(2):
            self.round(calls)
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < ROUNDS[0] or (len(times) < ROUNDS[1] and time.perf_counter() < end):
            times.append(self.round(calls))
        return times


class CudaMeter(Meter):
    """CUDA events around a round that the host has queued while the device slept.

    So no launch is waited for, unless a call itself waits for the device.
    """

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(0)
        self.cache = float(getattr(properties, "L2_cache_size", 50e6))
        self.ticks = 1e3 * getattr(properties, "clock_rate", 2e6)  # a second
        self.queueing = 0.0

    def reset(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    def round(self, calls: Sequence[Call]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda._sleep(int(self.ticks * min(0.03, 1.5 * self.queueing + 50e-6)))
        began = time.perf_counter()
        start.record()
        kept = [call() for call in calls]
        end.record()
        self.queueing = time.perf_counter() - began
        end.synchronize()
        del kept
        return float(start.elapsed_time(end)) / len(calls)

    def rounds(self, calls: Sequence[Call], seconds: float) -> list[float]:
        self.queueing = 0.0
        return super().rounds(calls, seconds)

    def peak(self, call: Call) -> float:
        """By torch's allocator; libraries' workspaces that it gave before do not count."""
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        kept = call()
        torch.cuda.synchronize()
        most = torch.cuda.max_memory_allocated()
        del kept
        return (most - before) / 2**20


def ceilings(meter: Meter, device: str, small: bool = False) -> tuple[float, dict[str, float]]:
    """What the device reaches: bytes a second of a copy, flops a second of a product by dtype."""
    source = torch.ones(2**20 if small else 2**30, device=device)
    target = torch.empty_like(source)
    ms = percentile(meter.rounds([partial(target.copy_, source)], 0.3), 50)
    bandwidth = 2e3 * source.nbytes / ms
    del source, target
    rates, n = {}, 256 if small else 8192
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        ms = percentile(meter.rounds([partial(torch.mm, a, b)], 0.3), 50)
        rates[str(dtype).removeprefix("torch.")] = 2e3 * n**3 / ms
    return bandwidth, rates
