"""SoftmaxWithLoss: the mean of -log p(label) over all positions, p the softmax of the scores.

Bottoms: scores, any floating type, with the classes along ``axis``; as many labels as there are
positions, with the same first axis. Top: the loss, of shape (), in float32 or wider. ``loss_param``
says which labels do not count and what the sum is divided by: by default VALID, the labels that
count. p is at least FLT_MIN (a loss of 87.34), and the gradient p - 1 is the unclipped one's. A
second top cannot be had, as in Caffe 1.0. Source: Caffe's behaviour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._runtime.checks import Shape
from .._runtime.layer import Layer
from .._runtime.losses import (
    LossParams,
    Normalization,
    class_labels,
    expect_items,
    expect_one_label_each,
    loss_scale,
    wide,
)
from .._runtime.params import Engine, param
from .._runtime.registry import register
from .._runtime.samples import Sample, normal

LEAST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Params:
    """``softmax_param``, and the ``loss_param`` beside it."""

    engine: Engine = param(Engine.DEFAULT, doc="accepted, has no effect")
    axis: int = param(1, doc="of the classes; negative counts from the last")
    loss_param: LossParams = param(LossParams())


def infer(params: Params, scores: Shape, label: Shape) -> tuple[Shape, ...]:
    """The scalar top; raises BlobError unless there is a label for each position."""
    expect_items(scores=scores, label=label)
    expect_one_label_each(params.axis, scores, label)
    return ((),)


class Function(torch.autograd.Function):
    """Scores [O, C, I], indices [O, I], which of them count, the sum's factor -> loss, softmax."""

    @staticmethod
    def forward(scores: Tensor, index: Tensor, counts: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        prob = scores.softmax(1)
        chosen = prob.gather(1, index[:, None])[:, 0].clamp(min=LEAST)
        return -chosen.log().where(counts, 0).sum() * scale, prob

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]
    ) -> None:
        ctx.save_for_backward(output[1], *inputs[1:])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        prob, index, counts, scale = ctx.saved_tensors
        found = prob.scatter(1, index[:, None], prob.gather(1, index[:, None]) - 1)
        return found.where(counts[:, None], 0) * (grad * scale), None, None, None


@register("SoftmaxWithLoss", bottoms=2, block="softmax_param")
class SoftmaxWithLoss(Layer):
    """See the module's text."""

    Params = Params
    bottom_names = ("scores", "label")
    is_loss = True
    labels = (1,)
    refused_bottoms = (1,)
    infer = staticmethod(infer)

    def forward(self, scores: Tensor, label: Tensor) -> Tensor:
        expect_items(scores=scores.shape, label=label.shape)
        p: Params = self.params
        outer, classes, inner = expect_one_label_each(p.axis, scores.shape, label.shape)
        found = class_labels(label, (outer, inner), classes, p.loss_param.ignore_label, "loss_param")
        index, counts = found
        scores = wide(scores).reshape(outer, classes, inner)
        scale = loss_scale(
            p.loss_param.mode(Normalization.VALID), (outer, inner), counts, scores.detach()
        )
        loss, _ = Function.apply(scores, index, counts, scale)
        return loss

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        if size != "small":  # ImageNet's classes, and a segmentation net's map
            shape = (64, 1000) if size == "paper" else (4, 21, 128, 416)
            label = torch.from_numpy(rng.integers(0, shape[1], (shape[0], *shape[2:])))
            return [Sample(Params(), (normal(rng, shape), label))]
        scores, label = normal(rng, (3, 4, 2, 3)), torch.from_numpy(rng.integers(0, 4, (3, 2, 3)))
        ignored = [LossParams(ignore_label=1, normalization=mode) for mode in (None, *Normalization)]
        every = [Sample(Params(loss_param=loss), (scores, label)) for loss in ignored]
        last = torch.from_numpy(rng.integers(0, 3, (3, 4, 2)))
        return [*every, Sample(Params(axis=-1), (scores, last))]
