"""MultinomialLogisticLoss: the mean of -log p(label) over the items, p being given.

Bottoms: probabilities [N, ...], any floating type, all elements of an item being classes; N labels.
Top: the loss, of shape (), in float32 or wider. p is at least 1e-20, in the loss (46.05) and in the
gradient -1/(N p). No items: loss 0. Source: Caffe's behaviour.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._runtime.checks import Shape
from .._runtime.layer import Layer
from .._runtime.losses import class_labels, expect_one_label_an_item, wide
from .._runtime.params import NoParams
from .._runtime.registry import register
from .._runtime.samples import Sample

LEAST = 1e-20


def infer(params: NoParams, scores: Shape, label: Shape) -> tuple[Shape, ...]:
    """The scalar top; raises BlobError unless there is one label for each item."""
    expect_one_label_an_item(scores, label)
    return ((),)


class Function(torch.autograd.Function):
    """Probabilities [N, C], indices [N] -> loss."""

    @staticmethod
    def forward(prob: Tensor, index: Tensor) -> Tensor:
        chosen = prob.gather(1, index[:, None]).clamp(min=LEAST)
        return -chosen.log().sum() / max(1, len(prob))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        prob, index = ctx.saved_tensors
        chosen = prob.gather(1, index[:, None]).clamp(min=LEAST)
        slope = -grad / max(1, len(prob)) / chosen
        return torch.zeros_like(prob).scatter(1, index[:, None], slope), None


@register("MultinomialLogisticLoss", bottoms=2)
class MultinomialLogisticLoss(Layer):
    """See the module's text."""

    bottom_names = ("scores", "label")
    is_loss = True
    labels = (1,)
    refused_bottoms = (1,)
    infer = staticmethod(infer)

    def forward(self, scores: Tensor, label: Tensor) -> Tensor:
        n, classes = expect_one_label_an_item(scores.shape, label.shape)
        index, _ = class_labels(label, (n,), classes)
        loss: Tensor = Function.apply(wide(scores).reshape(n, classes), index)
        return loss

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        n, classes = {"small": (3, 4), "paper": (64, 1000)}.get(size, (4096, 1000))
        prob = torch.from_numpy(rng.uniform(0.1, 1, (n, classes)))
        label = torch.from_numpy(rng.integers(0, classes, n))
        return [Sample(NoParams(), (prob, label))]
