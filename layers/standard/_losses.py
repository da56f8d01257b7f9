"""What Caffe's losses share: labels, one for each position, and the number a sum is divided by.

The class axis of a blob [d0, ..., C, ..., dk] splits it into O outer and I inner positions, each
with C scores; its labels are O I numbers in any shape. A label is truncated towards zero, as Caffe
does with what is a float there.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import prod
from typing import Any

import torch
from torch import Tensor

from .._engine.checks import BlobError, Shape, canonical_axis, deferred, raise_if
from .._engine.parallel import balanced, rank_and_size
from .._engine.params import param


class Normalization(Enum):
    """What the sum over all positions is divided by; by 1 where that would be less."""

    FULL = 0
    """The number of positions, ignored or not."""
    VALID = 1
    """The number of positions that are not ignored."""
    BATCH_SIZE = 2
    """The number of outer positions."""
    NONE = 3
    """1."""


@dataclass(frozen=True)
class LossParams:
    """``loss_param``."""

    ignore_label: int | None = param(None, doc="positions with this label do not count")
    normalization: Normalization | None = param(None, doc="what the sum is divided by")
    normalize: bool | None = param(
        None, doc="old form: true is VALID, false BATCH_SIZE; normalization wins"
    )

    def mode(self, default: Normalization) -> Normalization:
        """The normalization asked for."""
        if self.normalization is not None:
            return self.normalization
        if self.normalize is not None:
            return Normalization.VALID if self.normalize else Normalization.BATCH_SIZE
        return default


def positions(axis: int, shape: Shape) -> tuple[int, int, int]:
    """(O, C, I) of a blob's shape and its class axis."""
    axis %= len(shape)
    return prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])


def expect_one_label_each(axis: int, scores: Shape, label: Shape) -> tuple[int, int, int]:
    """(O, C, I) of scores; raises BlobError unless there is a label for each position."""
    found = positions(canonical_axis(axis, scores=scores), scores)
    if prod(label) != found[0] * found[2]:
        wanted = found[0] * found[2]
        raise BlobError(
            f"expected {wanted} labels, one for each position of {{scores}}, got {{label}}",
            scores=scores,
            label=label,
        )
    return found


def expect_items(**blobs: Shape) -> int:
    """The blobs' common number of items, their first axis; raises BlobError where it differs."""
    (first, shape), *others = blobs.items()
    for name, other in others:
        if not shape or not other or shape[0] != other[0]:
            raise BlobError(
                f"expected as many items: {{{first}}}, {{{name}}}", **{first: shape, name: other}
            )
    return shape[0]


def expect_one_label_an_item(scores: Shape, label: Shape) -> tuple[int, int]:
    """(N, C) of scores, C all the elements of an item; raises BlobError unless there are N labels."""
    n = expect_items(scores=scores, label=label)
    if prod(label) != n:
        raise BlobError(
            "expected one label for each item of {scores}, got {label}", scores=scores, label=label
        )
    return n, prod(scores[1:])


def class_labels(
    label: Tensor,
    shape: Shape,
    classes: int,
    ignore_label: int | None = None,
    block: str = "",
) -> tuple[Tensor, Tensor]:
    """Labels as indices of this shape, and which of them count; the index of one that does not is 0.

    Raises ValueError for a label that counts and is not one of 0 to ``classes`` - 1: of a label blob
    on the CPU with its value and place. ``block`` is the layer's that has an ``ignore_label``.
    """
    # a compiler cannot trace what looks at values
    found = _operator if torch.compiler.is_compiling() else _class_labels
    return found(label, shape, classes, ignore_label, block)


def _class_labels(
    label: Tensor, shape: Shape, classes: int, ignore_label: int | None, block: str
) -> tuple[Tensor, Tensor]:
    index = label.long()
    counts = torch.ones_like(index, dtype=torch.bool)
    if ignore_label is not None:
        counts = index != ignore_label
    known = (index >= 0) & (index < classes)
    wrong = counts & ~known
    flag, text = wrong.any().reshape(1), f"expected labels from 0 to {classes - 1}"
    if not deferred(flag) and flag:
        where = tuple(wrong.nonzero()[0].tolist())
        text += f", got {label[where].item():g} at {list(where)} of the label blob"
        if block and label[where].isfinite():
            text += f"; {block}: {{ignore_label: {int(index[where])}}} leaves such ones out"
    raise_if(flag, text)
    return index.where(counts & known, 0).reshape(shape), counts.reshape(shape)


def _described(
    label: Tensor, shape: Shape, classes: int, ignore_label: int | None, block: str
) -> tuple[Tensor, Tensor]:
    return label.new_empty(shape, dtype=torch.int64), label.new_empty(shape, dtype=torch.bool)


_operator: Any = torch.library.custom_op(
    "cortado::class_labels",
    _class_labels,
    mutates_args=(),
    schema="(Tensor label, SymInt[] shape, SymInt classes, SymInt? ignore_label, str block)"
    " -> (Tensor, Tensor)",
)
_operator.register_fake(_described)


def loss_scale(mode: Normalization, shape: tuple[int, int], counts: Tensor, like: Tensor) -> Tensor:
    """By what a sum over ``shape`` (outer, inner) positions is multiplied, in the type of ``like``."""
    outer, inner = shape
    if mode is Normalization.VALID:
        count = counts.sum()
        return balanced(1 / count.clamp(min=1).to(like.dtype), count)
    if mode is Normalization.NONE:
        return like.new_full((), rank_and_size()[1])  # of which the mean over the processes is taken
    return like.new_full((), 1 / max(1, outer * inner if mode is Normalization.FULL else outer))


def wide(x: Tensor) -> Tensor:
    """Half precision as float32, everything else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
