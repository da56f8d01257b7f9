"""InfogainLoss: the mean of -sum_k H[label, k] log p(k), p the softmax of the scores.

Bottoms: scores, any floating type, with the C classes along ``axis``; as many labels as there are
positions, with the same first axis; and, if it is not in the file ``source`` (a BlobProto, as
Caffe writes .binaryproto), H with C C elements. Tops: the loss, of shape (), in float32 or wider,
and if wanted the softmax, which gives no gradient; with both, each must have its loss_weight.
``loss_param`` says which labels do not count and what the sum is divided by: by default VALID, the
labels that count. p is at least 1e-20 in the loss; the gradient p sum_k H[label, k] - H[label]
is the unclipped one's. H gets none. With H the identity this is SoftmaxWithLoss. Source: Caffe's
behaviour.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._runtime.caffe_files import read_blob
from .._runtime.checks import BlobError, Shape
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
from .._runtime.params import param
from .._runtime.registry import register
from .._runtime.samples import Sample, normal

LEAST = 1e-20


@dataclass(frozen=True)
class Params:
    """``infogain_loss_param``, and the ``loss_param`` beside it."""

    source: str = param("", doc="a .binaryproto of H, where there is no third bottom")
    axis: int = param(1, doc="of the classes; negative counts from the last")
    loss_param: LossParams = param(LossParams())

    def __post_init__(self) -> None:
        if self.loss_param.normalize is not None:
            raise ValueError("normalize is an old form that is not read here: give normalization")


def infer(params: Params, scores: Shape, label: Shape, *infogain: Shape) -> tuple[Shape, ...]:
    """The scalar top and the softmax's shape; raises BlobError for labels or H that do not fit."""
    expect_items(scores=scores, label=label)
    _, classes, _ = expect_one_label_each(params.axis, scores, label)
    if not infogain and not params.source:
        raise BlobError("H is missing: give infogain_loss_param.source or a third bottom")
    _expect_square(classes, scores, *infogain)
    return ((), scores)


def _expect_square(classes: int, scores: Shape, *infogain: Shape) -> None:
    for shape in infogain:
        if prod(shape) != classes * classes:
            raise BlobError(
                f"expected {{infogain}} to have {classes} x {classes} elements for {{scores}}",
                infogain=shape,
                scores=scores,
            )


class Function(torch.autograd.Function):
    """Scores [O, C, I], indices [O, I], which of them count, H [C, C], the sum's factor -> loss,
    softmax."""

    @staticmethod
    def forward(
        scores: Tensor, index: Tensor, counts: Tensor, infogain: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        prob = scores.softmax(1)
        terms = (infogain[index].movedim(-1, 1) * prob.clamp(min=LEAST).log()).sum(1)
        return -terms.where(counts, 0).sum() * scale, prob

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(output[1], *inputs[1:])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        prob, index, counts, infogain, scale = ctx.saved_tensors
        rows = infogain[index].movedim(-1, 1)
        found = prob * infogain.sum(1)[index][:, None] - rows
        return found.where(counts[:, None], 0) * (grad * scale), None, None, None, None


@register("InfogainLoss", bottoms=(2, 3), tops=(1, 2))
class InfogainLoss(Layer):
    """See the module's text."""

    Params = Params
    bottom_names = ("scores", "label", "infogain")
    is_loss = True
    weights_given = True
    labels = (1,)
    refused_bottoms = (1, 2)
    shared = (2,)
    infer = staticmethod(infer)
    infogain: Tensor | None

    def __init__(
        self,
        params: Any = None,
        bottom_shapes: tuple[Shape, ...] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(params, bottom_shapes, generator)
        source = self.params.source if len(bottom_shapes) < 3 else ""
        matrix = torch.from_numpy(read_blob(source)) if source else None
        self.register_buffer("infogain", matrix, persistent=False)
        if matrix is not None and bottom_shapes:
            _, classes, _ = expect_one_label_each(self.params.axis, *bottom_shapes)
            _expect_square(classes, bottom_shapes[0], tuple(matrix.shape))

    def forward(
        self, scores: Tensor, label: Tensor, infogain: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        p: Params = self.params
        given = () if infogain is None else (tuple(infogain.shape),)
        infer(p, tuple(scores.shape), tuple(label.shape), *given)
        outer, classes, inner = expect_one_label_each(p.axis, scores.shape, label.shape)
        x = wide(scores).reshape(outer, classes, inner)
        matrix = self.infogain if infogain is None else infogain.detach()
        assert matrix is not None
        matrix = matrix.to(x).reshape(classes, classes)
        index, counts = class_labels(
            label, (outer, inner), classes, p.loss_param.ignore_label, "loss_param"
        )
        mode = p.loss_param.mode(Normalization.VALID)
        scale = loss_scale(mode, (outer, inner), counts, x.detach())
        loss, prob = Function.apply(x, index, counts, matrix, scale)
        return loss, prob.reshape(scores.shape)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        shape = {"small": (3, 4, 2), "paper": (64, 1000)}.get(size, (4, 21, 128, 416))
        label = torch.from_numpy(rng.integers(0, shape[1], (shape[0], *shape[2:])))
        infogain = torch.from_numpy(rng.uniform(0, 1, (1, 1, shape[1], shape[1])))
        bottoms = (normal(rng, shape), label, infogain)
        ignored = Params(loss_param=LossParams(ignore_label=1))
        return [Sample(params, bottoms) for params in (Params(), ignored)]
