"""RegionPairSampling: which matches of regions are learnt from, true ones and the hardest false ones.

Bottoms: ``scores`` ``[P, S]`` of matches of the regions r of image A with the regions s of image B,
any floating type, which rank the false ones: the appearance f in the paper, z in the released code;
``rois_b`` ``[S, 5]`` (batch, x1, y1, x2, y2) or ``[S, 4]``; ``truth`` ``[P, 5]``, rows
(x1, y1, x2, y2, s): the true match in B of each region of A, s = 1, or none, s = -1; or ``[P, 4]``,
where each has one. Boxes in image pixels, x2 and y2 inside.

Tops: ``label`` ``[P, S]`` in the scores' type, 1 a positive, 0 a negative, -1 neither; the number of
positives and of negatives, int64 scalars. No gradient.

A match is positive if the IoU of s with r's truth is above ``positive_iou``. Candidates for negatives
are the matches with an IoU below ``negative_iou`` (RELEASED: not above it). Of these each row takes
as many as it has positives, those of the highest scores, or all, if they are fewer. Of equal scores
the first is taken.

=========  ============  ============
rule       positive_iou  negative_iou
=========  ============  ============
PAPER      0.6           below 0.4
RELEASED   0.5           up to 0.2
=========  ============  ============

Source: SCNet, Section 4 (implementation details).

*Differs from the original:* where candidates are fewer than positives, the released code fills up
with matches that are none.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ._engine.checks import BlobError, Shape, expect_axes
from ._engine.declared import Bottom, Role, Top
from ._engine.definition import Spec, define
from ._engine.layer import Layer
from ._engine.params import param
from ._engine.registry import register
from ._engine.samples import Sample
from ._geometry import boxes
from ._geometry.labels import expect_labels

if TYPE_CHECKING:
    import numpy as np


class Rule(enum.Enum):
    """The paper's thresholds or the released code's."""

    PAPER = 0
    RELEASED = 1


THRESHOLDS = {Rule.PAPER: (0.6, 0.4), Rule.RELEASED: (0.5, 0.2)}


@dataclass(frozen=True)
class Params:
    rule: Rule = param(Rule.PAPER, doc="the default thresholds; RELEASED includes negative_iou")
    positive_iou: float | None = param(None, low=0, high=1, doc="positives are above (default: rule's)")
    negative_iou: float | None = param(None, low=0, high=1, doc="negatives are below (default: rule's)")

    @property
    def thresholds(self) -> tuple[float, float]:
        positive, negative = THRESHOLDS[self.rule]
        return (
            positive if self.positive_iou is None else self.positive_iou,
            negative if self.negative_iou is None else self.negative_iou,
        )


BOTTOMS = (
    Bottom("scores", "[P, S]", why_no_gradient="they rank matches"),
    Bottom("rois_b", "[S, 5]", Role.TABLE, shared=True),
    Bottom("truth", "[P, 5]", Role.TABLE),
)
TOPS = (
    Top("label", "a label is a choice"),
    Top("num_positives", "a count"),
    Top("num_negatives", "a count"),
)


class Tops(NamedTuple):
    label: Tensor
    num_positives: Tensor
    num_negatives: Tensor


def infer(params: Params, scores: Shape, rois_b: Shape, truth: Shape) -> tuple[Shape, ...]:
    """The label's shape and two scalars; raises :class:`BlobError`."""
    expect_axes("P S", scores=scores)
    boxes.expect_boxes(rois_b=rois_b)
    if len(truth) != 2 or truth[1] not in (4, 5):
        raise BlobError("expected {truth} to be [P, 5]: x1, y1, x2, y2, s; or [P, 4]", truth=truth)
    if scores != (truth[0], rois_b[0]):
        shapes = {"scores": scores, "truth": truth, "rois_b": rois_b}
        raise BlobError("expected {scores} to be a row for each of {truth} by {rois_b}", **shapes)
    return scores, (), ()


def meta(params: Params, scores: Tensor, rois_b: Tensor, truth: Tensor) -> Sequence[Spec]:
    """The label and the two counts."""
    return (scores.shape, scores.dtype), ((), torch.int64), ((), torch.int64)


def expect(params: Params, scores: Tensor, rois_b: Tensor, truth: Tensor) -> None:
    """Finite boxes and known labels."""
    boxes.expect_finite(rois_b=rois_b)
    columns = "x1, y1, x2, y2, s" if truth.shape[1] == 5 else ""
    boxes.expect_finite(columns, truth=truth)
    if truth.shape[1] == 5:
        s = truth[:, 4]
        expect_labels((s != 1) & (s != -1), "1 or -1", truth=truth)


def forward(params: Params, scores: Tensor, rois_b: Tensor, truth: Tensor) -> tuple[Tensor, ...]:
    overlap = boxes.iou_matrix(truth[:, :4], boxes.corners(rois_b))
    above, below = params.thresholds
    positive = overlap > above
    candidate = (overlap <= below if params.rule is Rule.RELEASED else overlap < below) & ~positive
    if truth.shape[1] == 5:
        positive &= truth[:, 4:] == 1  # a row without positives gets no negatives
    ranked = scores.masked_fill(~candidate, -torch.inf).sort(dim=1, descending=True, stable=True)
    chosen = torch.arange(scores.shape[1], device=scores.device) < positive.sum(1, keepdim=True)
    negative = torch.zeros_like(candidate).scatter_(1, ranked.indices, chosen) & candidate
    label = torch.full_like(scores, -1, memory_format=torch.contiguous_format)
    label = label.masked_fill_(positive, 1).masked_fill_(negative, 0)
    return label, positive.sum(), negative.sum()


definition = define(__name__)


def region_pair_sampling(
    scores: Tensor,
    rois_b: Tensor,
    truth: Tensor,
    rule: Rule | str = Params.rule,
    positive_iou: float | None = Params.positive_iou,
    negative_iou: float | None = Params.negative_iou,
) -> Tops:
    """Positives and hardest negatives among matches ``[P, S]``: label, and their numbers.

    ``scores`` ``[P, S]`` rank the negatives; ``rois_b`` ``[S, 4 or 5]`` are B's regions and ``truth``
    ``[P, 5]`` rows (x1, y1, x2, y2, s), or ``[P, 4]``, A's true matches in B, in image pixels, x2 and
    y2 inside. ``label`` is 1, 0, or -1 for neither. Thresholds are the rule's unless given. Raises
    ``BlobError`` for shapes that do not fit, boxes that are not finite (truths of rows with s != 1 may
    be anything finite) or another s (on CUDA ``ValueError``, later); ``TypeError`` for dtypes and
    devices. Source: SCNet, Section 4.
    """
    params = definition.params(rule, positive_iou, negative_iou)
    tops: Tops = definition(params, scores, rois_b, truth)
    return tops


@register("RegionPairSampling")
class RegionPairSampling(Layer):
    definition = definition

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        from ._samples import region_pair_sampling as own

        return own.samples(size, rng)
