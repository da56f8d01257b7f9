"""SigmoidCrossEntropyLoss: the sum of -t log p - (1 - t) log(1 - p), p the sigmoid of the scores.

Bottoms of N items with equally many elements in all: scores x and targets t in 0..1. Top: the loss,
of shape (), in float32 or wider, as ``max(x, 0) - x t + log(1 + exp(-|x|))``, the gradient p - t.
``loss_param`` says which targets do not count (those whose integer part is ``ignore_label``) and
what the sum is divided by: by default BATCH_SIZE, N. Source: Caffe's behaviour.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._runtime.checks import BlobError, Shape
from .._runtime.layer import Layer
from .._runtime.losses import LossParams, Normalization, expect_items, loss_scale, wide
from .._runtime.registry import register
from .._runtime.samples import Sample, normal


def infer(params: LossParams, scores: Shape, target: Shape) -> tuple[Shape, ...]:
    """The scalar top; raises BlobError unless items and elements are equally many."""
    expect_items(scores=scores, target=target)
    if prod(scores) != prod(target):
        raise BlobError("expected as many elements: {scores}, {target}", scores=scores, target=target)
    return ((),)


class Function(torch.autograd.Function):
    """Scores, targets, which of them count, the sum's factor -> loss."""

    @staticmethod
    def forward(x: Tensor, target: Tensor, counts: Tensor, scale: Tensor) -> Tensor:
        # log, not log1p: 1 + exp(-|x|) is rounded in Caffe, so that saturated scores lose exactly 0.
        terms = x.clamp(min=0) - x * target + (1 + (-x.abs()).exp()).log()
        return terms.where(counts, 0).sum() * scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, target, counts, scale = ctx.saved_tensors
        found = (0.5 * (0.5 * x).tanh() + 0.5) - target  # Caffe's sigmoid: 0 and 1 where it saturates
        return found.where(counts, 0) * (grad * scale), None, None, None


@register("SigmoidCrossEntropyLoss", bottoms=2, block="loss_param")
class SigmoidCrossEntropyLoss(Layer):
    """See the module's text."""

    Params = LossParams
    bottom_names = ("scores", "target")
    is_loss = True
    labels = (1,)
    refused_bottoms = (1,)
    infer = staticmethod(infer)

    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        infer(self.params, scores.shape, target.shape)
        x = wide(scores)
        target = target.detach().reshape(scores.shape).to(x.dtype)
        counts = torch.ones_like(target, dtype=torch.bool)
        if self.params.ignore_label is not None:
            counts = target.trunc() != self.params.ignore_label
        shape = (scores.shape[0], prod(scores.shape[1:]))
        scale = loss_scale(self.params.mode(Normalization.BATCH_SIZE), shape, counts, x.detach())
        loss: Tensor = Function.apply(x, target, counts, scale)
        return loss

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        shape = {"small": (3, 4, 2), "paper": (64, 1000)}.get(size, (8, 64, 128, 128))
        scores, soft = normal(rng, shape), torch.from_numpy(rng.uniform(0, 1, shape))
        hard = torch.from_numpy(rng.integers(-1, 2, shape).astype(float))
        if size != "small":
            return [Sample(LossParams(), (scores, soft))]
        ignored = [LossParams(ignore_label=-1, normalization=mode) for mode in Normalization]
        return [
            Sample(LossParams(), (scores, soft)),
            *(Sample(params, (scores, hard)) for params in ignored),
        ]
