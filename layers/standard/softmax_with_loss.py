"""SoftmaxWithLoss: the mean of -log p(label) over all positions, p the softmax of the scores.

Bottoms: scores, any floating type, with the classes along ``axis``; as many labels as there are
positions, with the same first axis. Top: the loss, of shape (), in float32 or wider. ``loss_param``
says which labels do not count and what the sum is divided by: by default VALID, the labels that
count. p is at least FLT_MIN (a loss of 87.34), and the gradient p - 1 is the unclipped one's. A
second top cannot be had, as in Caffe 1.0. Source: Caffe's behaviour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .._engine.checks import Shape
from .._engine.declared import Bottom, Role, Top, Trait
from .._engine.definition import Spec, define
from .._engine.layer import Layer
from .._engine.params import Engine, param
from .._engine.registry import register
from .._engine.samples import Sample, normal
from .._engine.wide import wide, wide_dtype
from ._losses import (
    LossParams,
    Normalization,
    class_labels,
    expect_items,
    expect_one_label_each,
    loss_scale,
    positions,
)

LEAST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Params:
    """``softmax_param``, and the ``loss_param`` beside it."""

    engine: Engine = param(Engine.DEFAULT, doc="accepted, has no effect")
    axis: int = param(1, doc="of the classes; negative counts from the last")
    loss_param: LossParams = param(
        LossParams(), doc="which labels count, and what the sum is divided by"
    )


BOTTOMS = (Bottom("scores", "[..., C, ...]"), Bottom("label", "[N, ...]", Role.LABEL, refused=True))
TOPS = (Top("loss"),)


def infer(params: Params, scores: Shape, label: Shape) -> tuple[Shape, ...]:
    """The scalar top; raises BlobError unless there is a label for each position."""
    expect_items(scores=scores, label=label)
    expect_one_label_each(params.axis, scores, label)
    return ((),)


def meta(params: Params, scores: Tensor, label: Tensor) -> Sequence[Spec]:
    """The loss; the softmax ``[O, C, I]``, indices and which of them count ``[O, I]``, the sum's
    factor."""
    outer, classes, inner = positions(params.axis, scores.shape)
    dtype, each = wide_dtype(scores.dtype), (outer, inner)
    return (
        ((), dtype),
        ((outer, classes, inner), dtype),
        (each, torch.int64),
        (each, torch.bool),
        ((), dtype),
    )


def forward(params: Params, scores: Tensor, label: Tensor) -> tuple[Tensor, ...]:
    loss_param = params.loss_param
    outer, classes, inner = positions(params.axis, scores.shape)
    index, counts = class_labels(label, (outer, inner), classes, loss_param.ignore_label, "loss_param")
    x = wide(scores).reshape(outer, classes, inner)
    scale = loss_scale(loss_param.mode(Normalization.VALID), (outer, inner), counts, x)
    prob = x.softmax(1)
    chosen = prob.gather(1, index[:, None])[:, 0].clamp(min=LEAST)
    return -chosen.log().where(counts, 0).sum() * scale, prob, index, counts, scale


def backward(
    params: Params,
    loss_gradient: Tensor,
    prob: Tensor,
    index: Tensor,
    counts: Tensor,
    scale: Tensor,
    scores_shape: Shape,
    scores_dtype: torch.dtype,
) -> Tensor:
    found = prob.scatter(1, index[:, None], prob.gather(1, index[:, None]) - 1)
    found = found.where(counts[:, None], 0) * (loss_gradient * scale)
    return found.reshape(scores_shape).to(scores_dtype)


definition = define(__name__, kept=("prob", "index", "counts", "scale"), traced=True)


@register("SoftmaxWithLoss", block="softmax_param")
class SoftmaxWithLoss(Layer):
    """See the module's text."""

    definition = definition
    TRAITS = (Trait.LOSS,)

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
