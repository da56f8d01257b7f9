"""Which layers, bottoms and parameters a backward pass computes, by the rules of Caffe's ``Net``.

A layer goes backward if a parameter of it or of a layer below learns, and if it reaches a loss by
bottoms whose gradient is wanted. ``propagate_down`` of a layer overrides that for its bottoms,
``force_backward`` of the net for all of them but labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cortado.layers._engine.declared import Role, Trait
from cortado.layers._engine.layer import Layer

from .graph import Node


class Wired(Protocol):
    """What is asked of a layer that was built."""

    @property
    def node(self) -> Node: ...
    @property
    def layer(self) -> Layer: ...
    @property
    def tops(self) -> tuple[str, ...]: ...
    @property
    def loss_weights(self) -> tuple[float, ...]: ...
    @property
    def learns(self) -> tuple[bool, ...]: ...


@dataclass(frozen=True)
class Backward:
    """What a backward pass does at one layer: whether it runs there at all, and the bottoms and
    parameter blobs that get a gradient."""

    needed: bool
    bottoms: tuple[bool, ...]
    params: tuple[bool, ...]

    def refused(self, layer: Layer) -> str:
        """Why the layer cannot do that; "" if it can."""
        if not self.needed or not any(self.bottoms):
            return ""
        if Trait.NO_BACKWARD in layer.TRAITS:
            return f"{layer.type_name} has no backward"
        for i, wanted in enumerate(self.bottoms):
            if wanted and layer.record(i, len(self.bottoms)).refused:
                return f"{layer.type_name} gives its bottom {i} no gradient"
        return ""


def plan(layers: Sequence[Wired], force: bool) -> list[Backward]:
    """What a backward pass does at each layer; ``force`` is the net's ``force_backward``."""
    found = _upward(layers)
    _only_below_losses(layers, found)
    return [
        _forced(made.layer, each) if force else each for made, each in zip(layers, found, strict=True)
    ]


def _upward(layers: Sequence[Wired]) -> list[Backward]:
    """What has something that learns below it."""
    wanted: set[str] = set()
    found = []
    for made in layers:
        needed = any(blob in wanted for blob in made.node.bottoms) or any(made.learns)
        bottoms = made.node.propagate_down or tuple(blob in wanted for blob in made.node.bottoms)
        if needed:
            wanted.update(made.tops)
        found.append(Backward(needed, tuple(bottoms), made.learns))
    return found


def _only_below_losses(layers: Sequence[Wired], found: list[Backward]) -> None:
    """Switch off what reaches no loss, or only through bottoms that get no gradient.

    A blob that several layers read is switched off by all of them together, as by Caffe's split.
    """
    under_loss: set[str] = set()
    readers: dict[str, list[bool]] = {}  # of the blobs' values as the layers above leave them
    for i in reversed(range(len(layers))):
        made, each = layers[i], found[i]
        reaches = any(made.loss_weights) or any(top in under_loss for top in made.tops)
        read = [readers.pop(top, []) for top in made.tops]
        for flags, weight in zip(read, made.node.loss_weights, strict=False):
            flags.append(True) if weight else None
        skipped = all(flags and not any(flags) for flags in read)
        on = reaches and not (each.needed and skipped)
        each = Backward(each.needed and on, tuple(b and on for b in each.bottoms), each.params)
        if reaches:
            under_loss.update(made.node.bottoms)
        for blob, wanted in zip(made.node.bottoms, each.bottoms, strict=True):
            readers.setdefault(blob, []).append(wanted)
        found[i] = each


def _forced(layer: Layer, each: Backward) -> Backward:
    roles = (layer.record(i, len(each.bottoms)).role for i in range(len(each.bottoms)))
    labels = (role is Role.LABEL for role in roles)
    bottoms = tuple(wanted or not label for wanted, label in zip(each.bottoms, labels, strict=True))
    return Backward(True, bottoms, (True,) * len(each.params))
