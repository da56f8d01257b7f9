"""One layer measured on its own samples, for :mod:`cortado.tools.bench`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import torch
from cortado.layers._engine.declared import Bottom
from cortado.layers._engine.layer import Layer
from cortado.layers._engine.samples import Sample
from torch import Tensor

from . import subjects
from .alternatives import Unavailable, difference, implementation, path
from .measuring import (
    Call,
    CudaMeter,
    Function,
    Meter,
    backward,
    forward,
    nbytes,
    percentile,
    product,
    sets_past,
    traffic,
    tuple_of,
    within_memory,
    without_gradient,
)
from .results import BACKWARD, FORWARD, NO_GRADIENT, NO_SAMPLES, OURS, Result

PERCENTILES = (20, 50, 80)
SIDES = {"cpu": (64, 1024), "cuda": (2048, 8192)}  # of matrices whose product is a floor


@dataclass
class Settings:
    """What is asked of every layer."""

    size: str
    dtype: torch.dtype
    device: torch.device
    against: Sequence[str] = ()
    seconds: float = 0.3
    iterations: int = 0
    meter: Meter = field(default_factory=Meter)

    def __post_init__(self) -> None:
        if self.device.type == "cuda":
            self.meter = CudaMeter(self.device)


def bench_layer(kind: type[Layer], settings: Settings) -> Iterator[Result]:
    """The rows of a layer: each of its samples, forward and backward, by each implementation.

    A row without numbers has a note that says why.
    """
    draw = getattr(kind, "samples", None)
    samples = draw(settings.size, np.random.default_rng(0)) if draw else []
    dtype = str(settings.dtype).removeprefix("torch.")
    if not samples:
        yield Result(kind.type_name, "", dtype, "", OURS, note=NO_SAMPLES)
    for size, sample in zip(names(settings.size, samples), samples, strict=True):
        row = Result(kind.type_name, size, dtype, FORWARD, OURS)
        try:
            case = Case(kind, sample, settings)
        except Exception as error:
            yield row.but(note=said(error))
            continue
        yield from case.results(row)
        yield from case.results(row.but(direction=BACKWARD))


def names(size: str, samples: Sequence[Sample]) -> list[str]:
    """What tells a layer's samples apart: name, first bottom's shape, and a number if need be."""
    found: list[str] = []
    for sample in samples:
        shape = " x ".join(map(str, sample.bottoms[0].shape)) if sample.bottoms else ""
        name = ", ".join(part for part in (size, sample.name, shape) if part)
        same = sum(known.split(" #")[0] == name for known in found)
        found.append(f"{name} #{same + 1}" if same else name)
    return found


def said(error: Exception) -> str:
    """An error as a note: its first line."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:160]


class Case:
    """A layer, and its alternatives, on one of its samples."""

    def __init__(self, kind: type[Layer], sample: Sample, settings: Settings) -> None:
        self.kind, self.sample, self.settings = kind, sample, settings
        self.layer = subjects.filled(kind, sample.params, sample.bottoms, 0)
        self.layer.to(settings.device, settings.dtype)
        self.leaves = [
            x.to(settings.device, subjects.kept_dtype(self._record(i).coordinates, x, settings.dtype))
            for i, x in enumerate(sample.bottoms)
        ]
        self.parameters = [p for p in self.layer.parameters() if p.requires_grad]
        self.differentiable = [i for i in sample.differentiable if i < len(self.leaves)]

    def _record(self, i: int) -> Bottom:
        return self.kind.record(i, len(self.sample.bottoms))

    @property
    def has_gradient(self) -> bool:
        return bool(self.sample.tops and (self.differentiable or self.parameters))

    def results(self, row: Result) -> Iterator[Result]:
        """The rows of one direction, ours first; what fails has its error for a note."""
        if row.direction == BACKWARD and not self.has_gradient:
            yield row.but(note=NO_GRADIENT)
            return
        rows = {name: row.but(implementation=name) for name in (OURS, *self.settings.against)}
        functions: dict[str, Function] = {}
        for name in rows:
            try:
                function = implementation(self.layer, name, self.settings.device)
                rows[name] = self._tried(rows[name], function)
                functions[name] = function
            except Unavailable as reason:
                rows[name] = row.but(implementation=name, note=str(reason))
            except Exception as error:  # whatever an alternative may raise
                rows[name] = row.but(implementation=name, note=said(error))
        on_gpu = self.settings.device.type == "cuda"
        for batch in [[name] for name in functions] if on_gpu else [list(functions)]:
            try:
                rows |= self._timed({name: (rows[name], functions[name]) for name in batch})
            except Exception as error:
                rows |= {name: rows[name].but(note=said(error)) for name in batch}
        yield from rows.values()

    def _tried(self, row: Result, function: Function) -> Result:
        """The row with the memory that one pass takes, and whether its top is ours."""

        def whole() -> object:
            return self._call(row, function, self.leaves)()

        whole()
        memory, note = self.settings.meter.peak(whole), ""
        if row.direction == FORWARD:
            note = difference(self.layer, row.implementation, function, self.leaves)
        return row.but(peak_extra_mib=memory, note=note)

    def _call(self, row: Result, function: Function, leaves: Sequence[Tensor]) -> Call:
        """One pass; a backward pass has its forward behind it."""
        name, chosen = row.implementation, (self.differentiable, self.sample.tops, self.parameters)
        with path(name):
            call: Call
            if row.direction == FORWARD:
                call = forward(function, leaves)
            else:
                call = backward(function, leaves, *chosen)

        def on_its_path() -> object:
            with path(name):
                return call()

        return call if name == OURS else on_its_path

    def _timed(self, entries: dict[str, tuple[Result, Function]]) -> dict[str, Result]:
        """The rows with their times, and ours with its floor; all take turns."""
        settings = self.settings
        floors = self._floors(entries[OURS][0].direction) if OURS in entries else []
        on_gpu = settings.device.type == "cuda"
        sets = sets_past(settings.meter.cache, 2 * nbytes(*self.leaves)) if on_gpu else 1

        def attempt(sets: int) -> list[list[float]]:
            every = [self.leaves, *([x.clone() for x in self.leaves] for _ in range(sets - 1))]
            groups = [[self._call(*entry, leaves) for leaves in every] for entry in entries.values()]
            groups += [[make() for _ in every] for make, _ in floors]
            return settings.meter.together(groups, settings.seconds, settings.iterations)

        times = within_memory(sets, attempt) if entries else []
        rows = {}
        for (name, (row, _)), column in zip(entries.items(), times, strict=False):
            p20, p50, p80 = (percentile(column, percent) for percent in PERCENTILES)
            rows[name] = row.but(p20_ms=p20, p50_ms=p50, p80_ms=p80)
        if floors:
            found = zip(floors, times[len(entries) :], strict=True)
            least = max(scale * percentile(column, 50) for (_, scale), column in found)
            rows[OURS] = rows[OURS].but(floor_ms=least)
        return rows

    # ------------------------------------------------------------------------------ the floor

    def _floors(self, direction: str) -> list[tuple[Callable[[], Call], float]]:
        """What makes a copy of the bytes that are moved, and a product of the layer's multiply-adds
        in a forward pass, each with how many times it the pass is."""
        settings = self.settings
        found: list[tuple[Callable[[], Call], float]] = []
        if moved := self.moved(direction):
            found.append((partial(traffic, moved, settings.device), 1.0))
        shapes = [[tuple(x.shape) for x in of] for of in (self.leaves, self.tops, self.layer.blobs)]
        work = self.kind.multiply_adds(self.sample.params, *shapes) if direction == FORWARD else 0
        if work:
            call, times = product(work, settings.dtype, settings.device, SIDES[settings.device.type])
            found.append((lambda: call, times))
        return found

    @cached_property
    def tops(self) -> tuple[Tensor, ...]:
        return tuple_of(without_gradient(self.layer, self.leaves))

    @cached_property
    def gradients(self) -> tuple[list[Tensor], list[Tensor | None]]:
        """Those given of the tops; those of the differentiable bottoms, then of the parameters."""
        if not self.has_gradient:
            return [], []
        call = backward(self.layer, self.leaves, self.differentiable, self.sample.tops, self.parameters)
        return list(call.args[2]), list(call())

    def moved(self, direction: str) -> int:
        """The fewest bytes that a pass reads and writes: 0 for one that gives a view.

        Forward: bottoms, parameters and tops once; of bottoms that are ``partly_read``, and of
        parameters, only what has a gradient. Backward: the gradients of the tops and of what gets one.
        """
        given, gradients = self.gradients
        if direction == BACKWARD:
            found = _fresh([x for x in gradients if x is not None], given)
            return nbytes(*given, *found) if found else 0
        fresh = _fresh(self.tops, [*self.leaves, *self.layer.parameters()])
        if not fresh:
            return 0
        whole = [x for i, x in enumerate(self.leaves) if not self._record(i).partly]
        wanted = [*self.differentiable, *(None for _ in self.parameters)]
        partly = [
            x[x != 0]
            for i, x in zip(wanted, gradients, strict=False)
            if x is not None and (i is None or self._record(i).partly)
        ]
        return nbytes(*whole, *fresh, *partly)


def _fresh(tensors: Sequence[Tensor], old: Sequence[Tensor]) -> list[Tensor]:
    """Those that are no views of the old ones."""
    known = {x.untyped_storage().data_ptr() for x in old}
    return [x for x in tensors if x.untyped_storage().data_ptr() not in known]
