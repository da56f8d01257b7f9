"""Times and peaks of memory of calls, on the CPU and on a GPU, and what the device could reach."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

T = TypeVar("T")
Call = Callable[[], object]
Function = Callable[..., Any]

ROUNDS = (5, 60)  # at least, at most

# ----------------------------------------------------------------------------------------- calls


def tuple_of(tops: Any) -> tuple[Tensor, ...]:
    """A function's tops, be it one or many."""
    return tuple(tops) if isinstance(tops, (tuple, list)) else (tops,)


@torch.no_grad()
def without_gradient(function: Function, leaves: Sequence[Tensor]) -> Any:
    return function(*leaves)


def forward(function: Function, leaves: Sequence[Tensor]) -> Call:
    """A call of the function that keeps nothing for a backward pass."""
    return partial(without_gradient, function, leaves)


def backward(
    function: Function,
    leaves: Sequence[Tensor],
    differentiable: Sequence[int] = (0,),
    tops: Sequence[int] = (0,),
    parameters: Sequence[Tensor] = (),
) -> partial[tuple[Tensor | None, ...]]:
    """The forward pass, run once, and a call of its backward pass: from gradients 1 of ``tops``, its
    third argument, to those of the ``differentiable`` leaves and of the parameters."""
    fresh = [x.detach().requires_grad_(i in differentiable) for i, x in enumerate(leaves)]
    wanted = [*(fresh[i] for i in differentiable), *parameters]
    made = tuple_of(function(*fresh))
    chosen = [made[i] for i in tops if i < len(made)]
    given = [torch.ones_like(top) for top in chosen]
    return partial(torch.autograd.grad, chosen, wanted, given, retain_graph=True, allow_unused=True)


def compiled(function: Function) -> Function:
    """``torch.compile`` of a function."""
    import torch._functorch.config as config

    config.donated_buffer = False  # which would forbid a second backward of one graph
    made: Function = torch.compile(function, dynamic=False)
    return made


# ---------------------------------------------------------------------------------------- memory


def nbytes(*tensors: Tensor) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def traffic(count: float, device: str | torch.device = "cpu") -> Call:
    """A copy that moves so many bytes, read and written ones together."""
    source = torch.ones(max(1, int(count) // 2), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return partial(target.copy_, source)


def peak_rss_mib() -> int:
    """The process's largest resident memory so far; 0 where the system does not tell."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20)


def peak(call: Call) -> float:
    """The most mebibytes that torch's CPU allocator held at once beyond what it held before.

    It sees every tensor, temporaries of operators included, but not the packing buffers of the
    matrix library (a few MiB).
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "10")  # it says on the standard error that it starts
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = most = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return most / 2**20


def within_memory(sets: int, attempt: Callable[[int], T]) -> T:
    """What ``attempt`` gives with so many sets of inputs, or with fewer where memory ends."""
    while True:
        try:
            return attempt(sets)
        except torch.OutOfMemoryError:
            if sets == 1:
                raise
            sets //= 2


# ----------------------------------------------------------------------------------------- times


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
    """Times rounds of calls on the CPU, and the memory of one call."""

    cache = 1e4

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock

    def reset(self) -> None:
        """Wait for what was asked for, and give back the memory that is kept for later."""

    def round(self, calls: Sequence[Call]) -> float:
        """Milliseconds a call, over all of them; what they give is kept until the end."""
        start = self.clock()
        kept = [call() for call in calls]
        passed = self.clock() - start
        del kept
        return 1e3 * passed / len(calls)

    def peak(self, call: Call) -> float:
        """The most mebibytes held at once beyond what was held before."""
        return peak(call)

    def rounds(self, calls: Sequence[Call], seconds: float) -> list[float]:
        """As many rounds as fit the time, after two that are not counted."""
        return self.together([calls], seconds)[0]

    def together(
        self, groups: Sequence[Sequence[Call]], seconds: float, iterations: int = 0
    ) -> list[list[float]]:
        """Milliseconds of each group's rounds, the groups in turn so that a slow moment of the
        machine meets them all. ``seconds`` are each group's; ``iterations``, unless 0, are the
        rounds whatever time they take."""
        for _ in range(2):
            for calls in groups:
                self.round(calls)
        least, most = (iterations, iterations) if iterations else ROUNDS
        times: list[list[float]] = [[] for _ in groups]
        end = self.clock() + seconds * len(groups)
        done = 0
        while done < least or (done < most and self.clock() < end):
            for calls, column in zip(groups, times, strict=True):
                column.append(self.round(calls))
            done += 1
        return times


class CudaMeter(Meter):
    """CUDA events around a round that the host has queued while the device slept.

    So no launch is waited for, unless a call itself waits for the device.
    """

    def __init__(self, device: str | torch.device = "cuda") -> None:
        super().__init__()
        self.device = torch.device(device)
        properties = torch.cuda.get_device_properties(self.device)
        self.cache = float(getattr(properties, "L2_cache_size", 50e6))
        self.ticks = 1e3 * getattr(properties, "clock_rate", 2e6)  # a second
        self.queueing = 0.0

    def reset(self) -> None:
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()

    def round(self, calls: Sequence[Call]) -> float:
        with torch.cuda.device(self.device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            torch.cuda._sleep(int(self.ticks * min(0.03, 1.5 * self.queueing + 50e-6)))
            began = self.clock()
            start.record()
            kept = [call() for call in calls]
            end.record()
            self.queueing = self.clock() - began
            end.synchronize()
        del kept
        return float(start.elapsed_time(end)) / len(calls)

    def together(
        self, groups: Sequence[Sequence[Call]], seconds: float, iterations: int = 0
    ) -> list[list[float]]:
        """One group after the other: each takes its own time to queue, and a GPU is steady."""
        if len(groups) != 1:
            return [self.together([calls], seconds, iterations)[0] for calls in groups]
        self.queueing = 0.0
        return super().together(groups, seconds, iterations)

    def peak(self, call: Call) -> float:
        """By torch's allocator; libraries' workspaces that it gave before do not count."""
        torch.cuda.synchronize(self.device)
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        kept = call()
        torch.cuda.synchronize(self.device)
        most = torch.cuda.max_memory_allocated(self.device)
        del kept
        return (most - before) / 2**20


# --------------------------------------------------------------------------- what a device reaches


def ceilings(meter: Meter, device: str, small: bool = False) -> tuple[float, dict[str, float]]:
    """What the device reaches: bytes a second of a copy, flops a second of a product by dtype."""
    source = torch.ones(2**20 if small else 2**30, device=device)
    target = torch.empty_like(source)
    ms = percentile(meter.rounds([partial(target.copy_, source)], 0.3), 50)
    bandwidth = 2e3 * source.nbytes / ms
    del source, target
    rates, n = {}, 256 if small else 8192
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        call, _ = product(n**3, dtype, device, (n, n))
        rates[str(dtype).removeprefix("torch.")] = (
            2e3 * n**3 / percentile(meter.rounds([call], 0.3), 50)
        )
    return bandwidth, rates


def product(
    multiply_adds: int, dtype: torch.dtype, device: str | torch.device, sides: tuple[int, int]
) -> tuple[Call, float]:
    """A square matrix product of about so many multiply-adds, as far as its side may be between
    ``sides``, and how many such products they are."""
    n = min(max(round(multiply_adds ** (1 / 3)), sides[0]), sides[1])
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return partial(torch.mm, a, b), multiply_adds / n**3
