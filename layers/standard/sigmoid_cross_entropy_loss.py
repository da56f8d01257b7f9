"""SigmoidCrossEntropyLoss: the sum of -t log p - (1 - t) log(1 - p), p the sigmoid of the scores.

Bottoms of N items with equally many elements in all: scores x and targets t in 0..1. Top: the loss,
of shape (), in float32 or wider, as ``max(x, 0) - x t + log(1 + exp(-|x|))``, the gradient p - t.
``loss_param`` says which targets do not count (those whose integer part is ``ignore_label``) and
what the sum is divided by: by default BATCH_SIZE, N. Source: Caffe's behaviour.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from .._engine.checks import BlobError, Shape
from .._engine.declared import Bottom, Role, Top, Trait
from .._engine.definition import Definition, Spec
from .._engine.layer import Layer
from .._engine.registry import register
from .._engine.samples import Sample, normal
from .._engine.wide import wide, wide_dtype
from ._losses import LossParams, Normalization, expect_items, loss_scale

BOTTOMS = (Bottom("scores", "[N, ...]"), Bottom("target", "[N, ...]", Role.LABEL, refused=True))
TOPS = (Top("loss"),)


def infer(params: LossParams, scores: Shape, target: Shape) -> tuple[Shape, ...]:
    """The scalar top; raises BlobError unless items and elements are equally many."""
    expect_items(scores=scores, target=target)
    if prod(scores) != prod(target):
        raise BlobError("expected as many elements: {scores}, {target}", scores=scores, target=target)
    return ((),)


def meta(params: LossParams, scores: Tensor, target: Tensor) -> Sequence[Spec]:
    """The loss; which targets count, the sum's factor."""
    dtype = wide_dtype(scores.dtype)
    return ((), dtype), (scores.shape, torch.bool), ((), dtype)


def forward(params: LossParams, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = wide(scores)
    target = target.reshape(x.shape).to(x.dtype)
    counts = torch.ones_like(target, dtype=torch.bool)
    if params.ignore_label is not None:
        counts = target.trunc() != params.ignore_label
    shape = (x.shape[0], prod(x.shape[1:]))
    scale = loss_scale(params.mode(Normalization.BATCH_SIZE), shape, counts, x)
    # log, not log1p: 1 + exp(-|x|) is rounded in Caffe, so that saturated scores lose exactly 0.
    terms = x.clamp(min=0) - x * target + (1 + (-x.abs()).exp()).log()
    return terms.where(counts, 0).sum() * scale, counts, scale


def backward(
    params: LossParams,
    loss_gradient: Tensor,
    scores: Tensor,
    target: Tensor,
    counts: Tensor,
    scale: Tensor,
) -> Tensor:
    x = wide(scores)
    target = target.reshape(x.shape).to(x.dtype)
    found = (0.5 * (0.5 * x).tanh() + 0.5) - target  # Caffe's sigmoid: 0 and 1 where it saturates
    return (found.where(counts, 0) * (loss_gradient * scale)).to(scores.dtype)


definition = Definition(
    "sigmoid_cross_entropy_loss",
    LossParams,
    BOTTOMS,
    TOPS,
    kept=("counts", "scale"),
    infer=infer,
    meta=meta,
    forward=forward,
    backward=backward,
    traced=True,
)


@register("SigmoidCrossEntropyLoss", block="loss_param")
class SigmoidCrossEntropyLoss(Layer):
    """See the module's text."""

    definition = definition
    TRAITS = (Trait.LOSS,)

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
