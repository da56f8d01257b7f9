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

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._data.caffe_files import read_blob
from .._engine.checks import BlobError, Shape
from .._engine.declared import Bottom, Role, Top, Trait
from .._engine.definition import Spec, define
from .._engine.layer import Layer
from .._engine.params import param
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

LEAST = 1e-20


@dataclass(frozen=True)
class Params:
    """``infogain_loss_param``, and the ``loss_param`` beside it."""

    source: str = param("", doc="a .binaryproto of H, where there is no third bottom")
    axis: int = param(1, doc="of the classes; negative counts from the last")
    loss_param: LossParams = param(
        LossParams(), doc="which labels count, and what the sum is divided by"
    )

    def __post_init__(self) -> None:
        if self.loss_param.normalize is not None:
            raise ValueError("normalize is an old form that is not read here: give normalization")


BOTTOMS = (
    Bottom("scores", "[..., C, ...]"),
    Bottom("label", "[N, ...]", Role.LABEL, refused=True),
    Bottom("infogain", "[C, C]", Role.TABLE, optional=True, shared=True, refused=True),
)
TOPS = (Top("loss"), Top("prob", why_no_gradient="as in Caffe"))


def infer(
    params: Params, scores: Shape, label: Shape, infogain: Shape | None = None
) -> tuple[Shape, ...]:
    """The scalar top and the softmax's shape; raises BlobError for labels or H that do not fit."""
    expect_items(scores=scores, label=label)
    _, classes, _ = expect_one_label_each(params.axis, scores, label)
    if infogain is None and not params.source:
        raise BlobError("H is missing: give infogain_loss_param.source or a third bottom")
    if infogain is not None and prod(infogain) != classes * classes:
        raise BlobError(
            f"expected {{infogain}} to have {classes} x {classes} elements for {{scores}}",
            infogain=infogain,
            scores=scores,
        )
    return ((), scores)


def meta(params: Params, scores: Tensor, label: Tensor, infogain: Tensor | None) -> Sequence[Spec]:
    """The loss and the softmax; indices and which of them count ``[O, I]``, the sum's factor."""
    outer, _, inner = positions(params.axis, scores.shape)
    dtype, each = wide_dtype(scores.dtype), (outer, inner)
    return (
        ((), dtype),
        (scores.shape, dtype),
        (each, torch.int64),
        (each, torch.bool),
        ((), dtype),
    )


def forward(params: Params, scores: Tensor, label: Tensor, infogain: Tensor) -> tuple[Tensor, ...]:
    loss_param = params.loss_param
    outer, classes, inner = positions(params.axis, scores.shape)
    x = wide(scores).reshape(outer, classes, inner)
    matrix = infogain.to(x.dtype).reshape(classes, classes)
    index, counts = class_labels(label, (outer, inner), classes, loss_param.ignore_label, "loss_param")
    scale = loss_scale(loss_param.mode(Normalization.VALID), (outer, inner), counts, x)
    prob = x.softmax(1)
    terms = (matrix[index].movedim(-1, 1) * prob.clamp(min=LEAST).log()).sum(1)
    loss = -terms.where(counts, 0).sum() * scale
    return loss, prob.reshape(scores.shape), index, counts, scale


def backward(
    params: Params,
    loss_gradient: Tensor,
    infogain: Tensor,
    prob: Tensor,
    index: Tensor,
    counts: Tensor,
    scale: Tensor,
    scores_dtype: torch.dtype,
) -> Tensor:
    shape = positions(params.axis, prob.shape)
    matrix = infogain.to(prob.dtype).reshape(shape[1], shape[1])
    rows = matrix[index].movedim(-1, 1)
    found = prob.reshape(shape) * matrix.sum(1)[index][:, None] - rows
    found = found.where(counts[:, None], 0) * (loss_gradient * scale)
    return found.reshape(prob.shape).to(scores_dtype)


definition = define(__name__, kept=("index", "counts", "scale"), traced=True)


@register("InfogainLoss")
class InfogainLoss(Layer):
    """See the module's text."""

    definition = definition
    TRAITS = (Trait.LOSS, Trait.WEIGHTS_GIVEN)
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
            infer(self.params, bottom_shapes[0], bottom_shapes[1], tuple(matrix.shape))

    def forward(
        self, scores: Tensor, label: Tensor, infogain: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        matrix = self.infogain if infogain is None else infogain
        tops: tuple[Tensor, Tensor] = definition(self.params, scores, label, matrix)
        return tops

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        shape = {"small": (3, 4, 2), "paper": (64, 1000)}.get(size, (4, 21, 128, 416))
        label = torch.from_numpy(rng.integers(0, shape[1], (shape[0], *shape[2:])))
        infogain = torch.from_numpy(rng.uniform(0, 1, (1, 1, shape[1], shape[1])))
        bottoms = (normal(rng, shape), label, infogain)
        ignored = Params(loss_param=LossParams(ignore_label=1))
        return [Sample(params, bottoms) for params in (Params(), ignored)]
