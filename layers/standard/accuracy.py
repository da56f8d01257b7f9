"""Accuracy: the share of positions whose label is among the ``top_k`` best scores.

Bottoms: scores, with the classes along ``axis``; as many labels as there are positions. Tops: the
accuracy, of shape (), and if wanted that of each class [C], 0 for one that never occurs; float32 or
wider. Ties count against the label: it needs fewer than ``top_k`` other scores that are at least its
own. Positions labelled ``ignore_label`` do not count; where none counts, the accuracy is 0. No
backward. Source: Caffe's behaviour.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .._engine.checks import BlobError, Shape
from .._engine.declared import Bottom, Trait
from .._engine.layer import Layer
from .._engine.params import param
from .._engine.registry import register
from .._engine.samples import Sample, normal
from ._losses import class_labels, expect_one_label_each, wide


@dataclass(frozen=True)
class Params:
    """``accuracy_param``."""

    top_k: int = param(1, low=0, doc="right where the label is among so many highest scores")
    axis: int = param(1, doc="of the classes; negative counts from the last")
    ignore_label: int | None = param(None, doc="positions with this label do not count")


def infer(params: Params, scores: Shape, label: Shape) -> tuple[Shape, ...]:
    """The shapes of both tops; raises BlobError for labels that do not fit, or too few classes."""
    _, classes, _ = expect_one_label_each(params.axis, scores, label)
    if params.top_k > classes:
        raise BlobError(
            f"top_k {params.top_k} exceeds the {classes} classes of {{scores}}", scores=scores
        )
    return ((), (classes,))


@register("Accuracy", bottoms=2, tops=(1, 2))
class Accuracy(Layer):
    """See the module's text."""

    Params = Params
    BOTTOMS = (Bottom("scores"), Bottom("label"))
    TRAITS = (Trait.METRIC, Trait.NO_BACKWARD)
    infer = staticmethod(infer)

    @torch.no_grad()
    def forward(self, scores: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        p: Params = self.params
        infer(p, tuple(scores.shape), tuple(label.shape))
        outer, classes, inner = expect_one_label_each(p.axis, scores.shape, label.shape)
        index, counts = class_labels(label, (outer, inner), classes, p.ignore_label, self.block)
        x = wide(scores).reshape(outer, classes, inner)
        others = (x >= x.gather(1, index[:, None])).sum(1) - 1
        right = (others < p.top_k) & counts
        accuracy = right.sum().to(x.dtype) / counts.sum().clamp(min=1)
        found, among = (_by_class(index, which, classes) for which in (right, counts))
        return accuracy, found.to(x.dtype) / among.clamp(min=1)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        shape = {"small": (5, 4, 2), "paper": (64, 1000)}.get(size, (4, 21, 128, 416))
        label = torch.from_numpy(rng.integers(0, shape[1], (shape[0], *shape[2:])))
        bottoms = (normal(rng, shape), label)
        every = (Params(), Params(top_k=3), Params(ignore_label=1))
        return [Sample(params, bottoms, differentiable=(), tops=()) for params in every]


def _by_class(index: Tensor, which: Tensor, classes: int) -> Tensor:
    """How many of the positions chosen have each label, int64 ``[classes]``."""
    return index.new_zeros(classes).scatter_add_(0, index.flatten(), which.flatten().long())
