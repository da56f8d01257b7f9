"""MultinomialLogisticLoss: the mean of -log p(label) over the items, p being given.

Bottoms: probabilities [N, ...], any floating type, all elements of an item being classes; N labels.
Top: the loss, of shape (), in float32 or wider. p is at least 1e-20, in the loss (46.05) and in the
gradient -1/(N p). No items: loss 0. Source: Caffe's behaviour.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from .._engine.checks import Shape
from .._engine.declared import Bottom, Role, Top, Trait
from .._engine.definition import Definition, Spec
from .._engine.layer import Layer
from .._engine.params import NoParams
from .._engine.registry import register
from .._engine.samples import Sample
from .._engine.wide import wide, wide_dtype
from ._losses import class_labels, expect_one_label_an_item

LEAST = 1e-20

BOTTOMS = (Bottom("scores", "[N, ...]"), Bottom("label", "[N]", Role.LABEL, refused=True))
TOPS = (Top("loss"),)


def infer(params: NoParams, scores: Shape, label: Shape) -> tuple[Shape, ...]:
    """The scalar top; raises BlobError unless there is one label for each item."""
    expect_one_label_an_item(scores, label)
    return ((),)


def meta(params: NoParams, scores: Tensor, label: Tensor) -> Sequence[Spec]:
    """The loss; indices ``[N]``."""
    return ((), wide_dtype(scores.dtype)), (scores.shape[:1], torch.int64)


def forward(params: NoParams, scores: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    n, classes = scores.shape[0], prod(scores.shape[1:])
    index, _ = class_labels(label, (n,), classes)
    chosen = wide(scores).reshape(n, classes).gather(1, index[:, None]).clamp(min=LEAST)
    return -chosen.log().sum() / max(1, n), index


def backward(params: NoParams, loss_gradient: Tensor, scores: Tensor, index: Tensor) -> Tensor:
    n = scores.shape[0]
    prob = wide(scores).reshape(n, prod(scores.shape[1:]))
    chosen = prob.gather(1, index[:, None]).clamp(min=LEAST)
    slope = -loss_gradient / max(1, n) / chosen
    found = torch.zeros_like(prob).scatter(1, index[:, None], slope)
    return found.reshape(scores.shape).to(scores.dtype)


definition = Definition(
    "multinomial_logistic_loss",
    NoParams,
    BOTTOMS,
    TOPS,
    kept=("index",),
    infer=infer,
    meta=meta,
    forward=forward,
    backward=backward,
    traced=True,
)


@register("MultinomialLogisticLoss")
class MultinomialLogisticLoss(Layer):
    """See the module's text."""

    definition = definition
    TRAITS = (Trait.LOSS,)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        n, classes = {"small": (3, 4), "paper": (64, 1000)}.get(size, (4096, 1000))
        prob = torch.from_numpy(rng.uniform(0.1, 1, (n, classes)))
        label = torch.from_numpy(rng.integers(0, classes, n))
        return [Sample(NoParams(), (prob, label))]
