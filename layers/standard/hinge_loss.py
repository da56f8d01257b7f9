"""HingeLoss: each class against all others, sum max(0, 1 - s x)^p / N with s = 1 for the label's
class and -1 for the others, p = 1 (L1) or 2 (L2).

Bottoms: scores [N, ...], any floating type, all elements of an item being classes; N labels. Top:
the loss, of shape (), in float32 or wider. At the margin the gradient is 0. A score that is NaN
counts nothing. No items: loss 0. Source: Caffe's behaviour.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch
from torch import Tensor

from .._engine.checks import Shape
from .._engine.declared import Bottom, Role, Trait
from .._engine.layer import Layer
from .._engine.params import param
from .._engine.registry import register
from .._engine.samples import Sample, distinct
from ._losses import class_labels, expect_one_label_an_item, wide


class Norm(Enum):
    """The power of the hinge."""

    L1 = 1
    L2 = 2


@dataclass(frozen=True)
class Params:
    """``hinge_loss_param``."""

    norm: Norm = param(Norm.L1, doc="of each score's excess: L1 or L2")


def infer(params: Params, scores: Shape, label: Shape) -> tuple[Shape, ...]:
    """The scalar top; raises BlobError unless there is one label for each item."""
    expect_one_label_an_item(scores, label)
    return ((),)


@register("HingeLoss", bottoms=2)
class HingeLoss(Layer):
    """See the module's text."""

    Params = Params
    BOTTOMS = (Bottom("scores"), Bottom("label", role=Role.LABEL, refused=True))
    TRAITS = (Trait.LOSS,)
    infer = staticmethod(infer)

    def forward(self, scores: Tensor, label: Tensor) -> Tensor:
        n, classes = expect_one_label_an_item(scores.shape, label.shape)
        index, _ = class_labels(label, (n,), classes)
        x = wide(scores).reshape(n, classes)
        margin = 1 + torch.where(_one_hot(index, classes), -x, x)
        hinge = margin.where(margin > 0, 0)
        return (hinge if self.params.norm is Norm.L1 else hinge.square()).sum() / max(1, n)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        n, classes = {"small": (3, 5), "paper": (64, 1000)}.get(size, (4096, 1000))
        scores = 3 * distinct(rng, (n, classes))
        label = torch.from_numpy(rng.integers(0, classes, n))
        return [Sample(Params(norm), (scores, label)) for norm in Norm]


def _one_hot(index: Tensor, classes: int) -> Tensor:
    return index[:, None] == torch.arange(classes, device=index.device)
