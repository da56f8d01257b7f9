"""Beam search of the blocks that hyperpixels are made of: Hyperpixel Flow, Algorithm 1.

A set of blocks is a tuple of their ids in order of depth; the first, the base, is chosen among a few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

Layers: TypeAlias = tuple[int, ...]


class Scored(NamedTuple):
    """A set of blocks, its score (more is better) and the seconds that it took."""

    layers: Layers
    score: float
    seconds: float


Depth: TypeAlias = tuple[Scored, ...]
"""What was evaluated of sets of one size, in that order."""
Score: TypeAlias = Callable[[Sequence[Layers]], Sequence[Scored]]


@dataclass(frozen=True)
class Search:
    """A search among so many ``candidates``, whose ids begin at 0, from ``bases``.

    Each depth extends each set of the ``beam``, the best of the depth before, by each block deeper than
    its base; there are at most ``depth`` of them. Of equal scores the one found first counts as better.

    A set that several of the beam lead to is evaluated once. ``published`` is the released code, which
    where it meets such a set leaves out all blocks that would follow it, too.

    Raises ValueError for numbers that make no search.
    """

    candidates: int
    bases: Layers
    beam: int = 4
    depth: int = 8
    published: bool = False

    def __post_init__(self) -> None:
        if min(self.beam, self.depth) < 1:
            raise ValueError(
                f"expected a beam and a depth of at least 1, got {self.beam}, {self.depth}"
            )
        if not self.bases or len({*self.bases}) < len(self.bases):
            raise ValueError(f"expected bases, each once, got {list(self.bases)}")
        for base in self.bases:
            if not 0 <= base < self.candidates:
                raise ValueError(f"base {base}: expected one of 0 to {self.candidates - 1}")

    def run(self, score: Score, done: Sequence[Depth] = ()) -> Iterator[Depth]:
        """The depths, one after the other; those that were ``done`` before are not evaluated again.

        Raises ValueError if a depth that was done has other sets than this search would evaluate.
        """
        sets: list[Layers] = [(base,) for base in self.bases]
        for number in range(self.depth):
            if not sets:
                return
            depth = done[number] if number < len(done) else tuple(score(sets))
            if [each.layers for each in depth] != sets:
                raise ValueError(f"depth {number + 1} evaluated other sets than this search does")
            yield depth
            sets = self.extended([each.layers for each in self.best(depth)])

    def best(self, depth: Depth) -> list[Scored]:
        """The beam that a depth leaves, the best first."""
        return sorted(depth, key=lambda each: -each.score)[: self.beam]

    def extended(self, beam: Sequence[Layers]) -> list[Layers]:
        """The sets with one block more, in the order of the beam, then of the blocks."""
        found: dict[Layers, None] = {}
        for layers in beam:
            for block in range(min(layers) + 1, self.candidates):
                made = tuple(sorted((*layers, block)))
                if self.published and made in found:
                    break
                if block not in layers:
                    found[made] = None
        return [*found]


def chosen(depths: Sequence[Depth]) -> Scored:
    """The best of all depths; of equal ones that of fewer blocks, then the one found first."""
    return max((each for depth in depths for each in depth), key=lambda each: each.score)
