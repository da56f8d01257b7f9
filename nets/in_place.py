"""What Caffe's backward passes read of blobs that layers overwrote in place.

Layers in a chain of in-place ones share one memory. A layer that reads its bottom or its top again
in its backward pass (the trait REREADS) finds there what the last of the chain has left, and computes
its gradient with that: harmless after ReLU, not after TanH. So does a :class:`~.net.Net`: what
autograd saved of such a blob is exchanged for the blob's last value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING, TypeAlias

import torch
from cortado.layers._engine.declared import Trait
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

if TYPE_CHECKING:
    from .backward import Wired

Place: TypeAlias = int | None


@dataclass
class Memory:
    """A memory that in-place layers write one after the other."""

    last: Tensor | None = None


@dataclass(frozen=True)
class Places:
    """The memories of a layer's bottoms and tops by number, None where no layer works in place."""

    bottoms: tuple[Place, ...]
    tops: tuple[Place, ...]

    @cached_property
    def shared(self) -> bool:
        return any(place is not None for place in (*self.bottoms, *self.tops))


@dataclass
class _Saved:
    """A tensor that autograd needs in a backward pass, or where its blob's last value will be."""

    tensor: Tensor | None
    shape: torch.Size = field(default_factory=torch.Size)
    memory: Memory | None = None

    def move(self, blob: Tensor, memory: Memory) -> None:
        """Read the memory instead, if this is the blob's data."""
        mine = self.tensor
        if mine is not None and _same_data(mine, blob):
            self.tensor, self.shape, self.memory = None, mine.shape, memory

    def read(self) -> Tensor:
        if self.memory is None or self.memory.last is None:
            assert self.tensor is not None, "a memory has a last value when its chain has run"
            return self.tensor
        return self.memory.last.reshape(self.shape)


def _same_data(a: Tensor, b: Tensor) -> bool:
    same = a.data_ptr() == b.data_ptr() and a.numel() == b.numel()
    return same and (a.stride() == b.stride() or (a.is_contiguous() and b.is_contiguous()))


def places(layers: Sequence[Wired]) -> list[Places]:
    """Where each layer's blobs lie: a blob that a layer writes in place stays where it is.

    Only memories in which a layer rereads what was overwritten have a number.
    """
    memory: dict[str, int] = {}
    written: dict[Place, int] = {}  # by which layer last
    fresh = count()
    found = []
    for number, made in enumerate(layers):
        bottoms = tuple(memory.get(name) for name in made.node.bottoms)
        for i, name in enumerate(made.tops):
            if not made.node.in_place(i):
                memory[name] = next(fresh)
            written[memory[name]] = number
        found.append((bottoms, tuple(memory[name] for name in made.tops)))
    tracked = set()
    for number, (made, (bottoms, tops)) in enumerate(zip(layers, found, strict=True)):
        if Trait.REREADS in made.layer.TRAITS:
            tracked |= {place for place in (*bottoms, *tops) if written.get(place, -1) > number}
            if not made.layer.rereads_top:
                tracked |= {place for place in bottoms if written.get(place) == number}

    def kept(places: tuple[Place, ...]) -> tuple[Place, ...]:
        return tuple(place if place in tracked else None for place in places)

    return [Places(kept(bottoms), kept(tops)) for bottoms, tops in found]


class Memories:
    """The memories of one forward pass."""

    def __init__(self) -> None:
        self._by_place: dict[int, Memory] = {}

    def run(
        self,
        act: Callable[[Sequence[Tensor]], tuple[Tensor, ...]],
        bottoms: Sequence[Tensor],
        places: Places,
        rereads: bool,
    ) -> tuple[Tensor, ...]:
        """``act(bottoms)``, a layer's tops; what autograd saves of them lies in their memories."""
        saved: list[_Saved] = []

        def pack(tensor: Tensor) -> _Saved:
            saved.append(_Saved(tensor))
            return saved[-1]

        if rereads:
            with saved_tensors_hooks(pack, _Saved.read):
                tops = act(bottoms)
        else:
            tops = act(bottoms)
        for blob, place in zip((*bottoms, *tops), (*places.bottoms, *places.tops), strict=False):
            if place is not None:
                memory = self._by_place.setdefault(place, Memory())
                for each in saved:
                    each.move(blob, memory)
        for top, place in zip(tops, places.tops, strict=False):
            if place is not None:
                self._by_place[place].last = top.detach()
        return tops
