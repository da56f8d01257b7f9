"""Region matches: each region of the first image and its best-scoring one of the second.

A table of truth ``[P, 5]`` has rows (x1, y1, x2, y2, s): the box in the second image that matches
the region of that row, where s = 1; rows with another s have none, and don't count. In one of
``[P, 4]`` all rows count.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._engine.checks import BlobError, Shape, expect_axes, raise_if, valueless
from .boxes import corners, expect_boxes, expect_finite, iou


def expect_matches(scores: Shape, rois_b: Shape, truth: Shape) -> None:
    """scores ``[P, S]``, rois or boxes of S rows, truth of P rows; raises :class:`BlobError`."""
    expect_axes("P S", scores=scores)
    expect_boxes(rois_b=rois_b)
    if len(truth) != 2 or truth[1] not in (4, 5):
        raise BlobError("expected {truth} to be [P, 5]: x1, y1, x2, y2, s; or [P, 4]", truth=truth)
    if scores[0] != truth[0]:
        raise BlobError("bottoms disagree on P: {scores}, {truth}", scores=scores, truth=truth)
    if scores[1] != rois_b[0]:
        raise BlobError("bottoms disagree on S: {scores}, {rois_b}", scores=scores, rois_b=rois_b)


def best_matches(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The largest score of each row ``[P]`` and the first column that has it ``[P]``.

    There is at least one column. Raises ValueError where a score is NaN (later, on CUDA).
    """
    raise_if(scores.isnan().any().reshape(1), "scores: NaN")
    index = scores.argmax(1)
    return scores.gather(1, index[:, None])[:, 0], index


def matched_overlaps(scores: Tensor, rois_b: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """IoU of each row's best match with the truth, and its score, of the rows that count: ``[R]``.

    In float64, in the rows' order. Without regions in the second image every IoU is 0. Raises
    :class:`BlobError` where a roi is not finite, or the truth of a row that counts.
    """
    counts = torch.ones(len(truth), dtype=torch.bool, device=truth.device)
    if truth.shape[1] == 5:
        counts = truth[:, 4] == 1
    expect_finite(rois_b=rois_b)
    expect_finite(truth=truth.where(counts[:, None], 0))
    rows = slice(None) if valueless(truth) else counts  # as many as there can be, without values
    scores, wanted = scores[rows], truth[rows, :4].double()
    if not scores.shape[1]:
        return wanted.new_zeros(len(wanted)), wanted.new_zeros(len(wanted))
    score, index = best_matches(scores)
    return iou(corners(rois_b)[index].double(), wanted), score.double()
