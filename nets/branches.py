"""A net that compares two images, cut where what it makes of the one meets what it makes of the other.

What it makes of an image can then be kept, and compared with what it makes of others. The branches of a
Siamese net are one, so that an image is described once, whichever side it is on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from cortado.layers._engine.checks import expect_finite
from cortado.layers._engine.layer import Layer

from .net import Net, Step

Value: TypeAlias = tuple[str, int]
"""A blob's name, and which of its values: layers that write it in place give it several."""
Values: TypeAlias = Mapping[Value, torch.Tensor]


class Wired(NamedTuple):
    """A step, the values that it reads and those that it makes."""

    step: Step
    reads: tuple[Value, ...]
    makes: tuple[Value, ...]


class Branches:
    """The parts of a net by what they look at: either of two images, or both.

    images: the names of the two inputs; wanted: blobs of the net. What these do not need is left out.
    Nothing has a gradient. ``twins`` says whether the branches are one: the same layers, with shared
    parameters.
    """

    def __init__(self, net: Net, images: Sequence[str], wanted: Iterable[str]) -> None:
        self.net = net
        steps, last = _wired(net.steps)
        self.wanted = {name: (name, last[name]) for name in wanted}
        self.images = [(name, 1) for name in images]
        needed = list(_needed(steps, {*self.wanted.values()}))
        self.sides, self.meeting = _split(needed, self.images)
        self.read = {x for wired in self.meeting for x in wired.reads} | {*self.wanted.values()}
        self.twins = self._alike()

    @torch.no_grad()
    def describe(self, image: torch.Tensor) -> Values:
        """Of an image's blob what is read where the branches meet, or wanted, on either side.

        Raises ValueError where that is not finite (on CUDA later)."""
        pairs = list(zip(*map(self._values, (0, 1)), strict=True)) if self.twins else []
        kept = self.read | {a for a, b in pairs if b in self.read}
        found = self._run(self.sides[0], {self.images[0]: image}, kept)
        if not self.twins:
            found |= self._run(self.sides[1], {self.images[1]: image}, self.read)
        found |= {b: found[a] for a, b in pairs if b in self.read}
        values = {value: blob for value, blob in found.items() if value in self.read}
        names: dict[torch.Tensor, str] = {}
        for (name, _), blob in values.items():
            names.setdefault(blob, name)  # twins have one
        for blob, name in names.items():
            expect_finite(f'values of "{name}": the net makes NaN or infinity of the image', blob)
        return values

    @torch.no_grad()
    def compare(self, first: Values, second: Values, name: str) -> torch.Tensor:
        """A wanted blob, from what was made of the first image and of the second."""
        values = {x: blob for x, blob in first.items() if x in self._values(0)}
        values |= {x: blob for x, blob in second.items() if x in self._values(1)}
        value = self.wanted[name]
        steps = list(_needed(self.meeting, {value}))
        return self._run(steps, values, {value})[value]

    def _alike(self) -> bool:
        """Whether the sides do the same, step by step, with the same parameters."""
        first, second = ([len(wired.makes) for wired in side] for side in self.sides)
        if first != second:
            return False
        twin = dict(zip(*map(self._values, (0, 1)), strict=True))
        return all(
            type(a.step.layer) is type(b.step.layer)
            and a.step.layer.params == b.step.layer.params
            and a.step.layer.training == b.step.layer.training
            and [*map(id, a.step.layer.blobs)] == [*map(id, b.step.layer.blobs)]
            and tuple(map(twin.get, a.reads)) == b.reads
            for a, b in zip(*self.sides, strict=True)
        )

    def _values(self, side: int) -> list[Value]:
        return [self.images[side], *(x for wired in self.sides[side] for x in wired.makes)]

    def _run(
        self, steps: Sequence[Wired], values: dict[Value, torch.Tensor], kept: Collection[Value]
    ) -> dict[Value, torch.Tensor]:
        """Run steps; values that are not kept are released after their last use, or written over."""
        last = {x: i for i, wired in enumerate(steps) for x in (*wired.reads, *wired.makes)}
        held = [*values.values(), *self.net.parameters(), *self.net.buffers()]
        for i, wired in enumerate(steps):
            over = False
            if wired.reads and type(wired.step.layer).forward_over is not Layer.forward_over:
                first = wired.reads[0]
                others = (blob for x, blob in values.items() if x != first)
                over = last[first] == i and first not in kept and _alone(values[first], held, others)
            tops = wired.step.run([values[x] for x in wired.reads], over)
            if not wired.reads:
                tops = tuple(top.to(self.net.device) for top in tops)
            values.update(zip(wired.makes, tops, strict=False))
            for x in {*wired.reads, *wired.makes} - {*kept}:
                if last[x] == i:
                    del values[x]
        return values


def _alone(blob: torch.Tensor, *others: Iterable[torch.Tensor]) -> bool:
    """Whether none of the others lies in the same memory."""
    memory = blob.untyped_storage().data_ptr()
    return all(other.untyped_storage().data_ptr() != memory for some in others for other in some)


def _wired(steps: Iterable[Step]) -> tuple[list[Wired], Counter[str]]:
    """The steps with their values, and how many values each blob has."""
    last: Counter[str] = Counter()
    found = []
    for step in steps:
        reads = tuple((name, last[name]) for name in step.bottoms)
        last.update(step.tops)
        found.append(Wired(step, reads, tuple((name, last[name]) for name in step.tops)))
    return found, last


def _needed(steps: Sequence[Wired], values: set[Value]) -> Iterator[Wired]:
    """The steps that these values depend on, in order, but for the inputs."""
    wanted, found = {*values}, []
    for wired in reversed(steps):
        if wanted.intersection(wired.makes) and not wired.step.is_input:
            wanted.update(wired.reads)
            found.append(wired)
    yield from reversed(found)


def _split(
    steps: Iterable[Wired], images: Sequence[Value]
) -> tuple[tuple[list[Wired], list[Wired]], list[Wired]]:
    """Those that look at one image alone, by image, and those that look at both, or at none."""
    seen: dict[Value, frozenset[int]] = {image: frozenset({i}) for i, image in enumerate(images)}
    sides: tuple[list[Wired], list[Wired]] = ([], [])
    meeting: list[Wired] = []
    for wired in steps:
        at = frozenset[int]().union(*(seen.get(x, frozenset({0, 1})) for x in wired.reads))
        seen.update(dict.fromkeys(wired.makes, at if len(at) == 1 else frozenset({0, 1})))
        (sides[min(at)] if len(at) == 1 else meeting).append(wired)
    return sides, meeting
