"""RegionFlow: the dense flow of region matches, as SCNet makes it (section 5.3, after Proposal Flow).

Each region of the first image is matched with its best-scoring one of the second. In the order of
their scores, the matches fill the pixels of their box in the first image that are still empty. From a
box that reaches from a_1 to a_2 to one from b_1 to b_2, the pixel x goes to

    x' = b_1 + (x - a_1) (b_2 - b_1) / (a_2 - a_1)

rounded to a pixel and clamped to the second image, and y likewise; a length of 0 counts as 1. Of equal
scores the first is taken.

Bottoms: scores ``[P, S]``; rois_a ``[P, 5]`` and rois_b ``[S, 5]`` rows (batch, x1, y1, x2, y2) in
image pixels (or ``[., 4]`` without batch; boxes as ``_geometry/boxes.py`` has them); image1 ``[1, C,
H, W]`` and image2 ``[1, C, h, w]``, of which only the sizes count. Top: flow ``[1, 2, H, W]``
float32, whole pixels to go in x and in y; NaN at pixels that no box covers. No gradient: to round
has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._engine.checks import INTEGERS, BlobError, Shape, expect_axes, expect_numbers
from ._engine.declared import Bottom, Role, Top, Trait
from ._engine.definition import Definition, Spec
from ._engine.layer import Layer
from ._engine.params import NoParams
from ._engine.registry import register
from ._engine.samples import Sample
from ._engine.sizes import size_tensor
from ._geometry.boxes import corners, expect_boxes, expect_finite
from ._geometry.regions import best_matches

CHUNK = 32  # boxes at a time on a CUDA device

BOTTOMS = (
    Bottom("scores", "[P, S]", why_no_gradient="they rank", numbers="any"),
    Bottom("rois_a", "[P, 5]", Role.TABLE),
    Bottom("rois_b", "[S, 5]", Role.TABLE, shared=True),
    Bottom("image1", "[1, C, H, W]", Role.COUNT, shared=True),
    Bottom("image2", "[1, C, h, w]", Role.COUNT, shared=True),
)
TOPS = (Top("flow", "to round has none"),)


def infer(
    params: NoParams, scores: Shape, rois_a: Shape, rois_b: Shape, image1: Shape, image2: Shape
) -> tuple[Shape, ...]:
    """``[1, 2, H, W]``; raises :class:`BlobError` for bottoms that do not fit together."""
    expect_axes("P S", scores=scores)
    expect_boxes(rois_a=rois_a, rois_b=rois_b)
    expect_axes("N C H W", image1=image1, image2=image2)
    if scores != (rois_a[0], rois_b[0]):
        text = "expected {scores} to be a row for each of {rois_a} and a column for each of {rois_b}"
        raise BlobError(text, scores=scores, rois_a=rois_a, rois_b=rois_b)
    if image1[0] > 1 or image2[0] > 1:
        text = "one pair of images a call, got {image1} and {image2}"
        raise BlobError(text, image1=image1, image2=image2)
    return ((1, 2, *image1[2:]),)


def meta(
    params: NoParams, scores: Tensor, rois_a: Tensor, rois_b: Tensor, image1: Tensor, image2: Tensor
) -> Sequence[Spec]:
    """The flow."""
    return (((1, 2, *image1.shape[2:]), torch.float32),)


def expect(params: NoParams, scores: Tensor, rois_a: Tensor, rois_b: Tensor, *_: Any) -> None:
    """Finite rois."""
    expect_finite(rois_a=rois_a)
    expect_finite(rois_b=rois_b)


def forward(
    params: NoParams, scores: Tensor, rois_a: Tensor, rois_b: Tensor, image1: Tensor, image2: Tensor
) -> tuple[Tensor]:
    boxes_a, boxes_b = corners(rois_a).double(), corners(rois_b).double()
    if scores.numel():
        score, index = best_matches(scores)
        order = score.argsort(descending=True, stable=True)
        boxes_a, boxes_b = boxes_a[order], boxes_b[index[order]]
    else:
        boxes_a = boxes_a[:0]
    size_a, size_b = ((x.shape[2], x.shape[3]) for x in (image1, image2))
    return (fill(boxes_a, boxes_b, size_a, size_b),)


def fill(boxes_a: Tensor, boxes_b: Tensor, size_a: tuple[int, int], size_b: tuple[int, int]) -> Tensor:
    """The flow ``[1, 2, H, W]`` of matched boxes ``[K, 4]``, an earlier one above a later one."""
    if not len(boxes_a):
        return torch.full((1, 2, *size_a), torch.nan, device=boxes_a.device)
    owner = (first_cover_chunked if boxes_a.is_cuda else first_cover)(boxes_a, size_a)
    match = owner.clamp(min=0)
    rows = torch.arange(size_a[0], device=owner.device)[:, None]
    columns = torch.arange(size_a[1], device=owner.device)[None]
    flow = []
    for axis, pixel in enumerate((columns, rows)):
        start_a, end_a = boxes_a[:, axis], boxes_a[:, axis + 2]
        start_b, end_b = boxes_b[:, axis], boxes_b[:, axis + 2]
        length = end_a - start_a
        slope = (end_b - start_b) / length.where(length > 0, 1)
        target = start_b[match] + (pixel - start_a[match]) * slope[match]
        target = (target + 0.5).floor().clamp(0, size_b[1 - axis] - 1)
        flow.append((target - pixel).where(owner >= 0, torch.nan))
    return torch.stack(flow)[None].float()


def first_cover(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The first of boxes ``[K, 4]`` that covers each pixel: ``[H, W]``, -1 where none does.

    A box covers the pixels from its first corner to its last, both rounded, a half upwards. The
    last box is painted first.
    """
    owner = np.full(size, -1)
    for k, (x1, y1, x2, y2) in reversed(list(enumerate(_covered(boxes, size).tolist()))):
        owner[max(y1, 0) : y2 + 1, max(x1, 0) : x2 + 1] = k
    return torch.from_numpy(owner)


def first_cover_chunked(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The same without reading a box on the host."""
    owner = torch.full(size, -1, device=boxes.device)
    rows = torch.arange(size[0], device=boxes.device)
    columns = torch.arange(size[1], device=boxes.device)
    x1, y1, x2, y2 = _covered(boxes, size)[..., None].unbind(1)
    across, down = (columns >= x1) & (columns <= x2), (rows >= y1) & (rows <= y2)
    for k in reversed(range(0, len(boxes), CHUNK)):
        inside = down[k : k + CHUNK, :, None] & across[k : k + CHUNK, None, :]
        owner = (inside.byte().argmax(0) + k).where(inside.any(0), owner)
    return owner


def _covered(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """First and last pixels ``[K, 4]`` int64; -1 stands for what lies before the image."""
    return (boxes + 0.5).floor().clamp(min=-1, max=max(size)).long()


definition = Definition(
    "region_flow", NoParams, BOTTOMS, TOPS, infer=infer, meta=meta, expect=expect, forward=forward
)


def region_flow(
    scores: Tensor, rois_a: Tensor, rois_b: Tensor, size_a: tuple[int, int], size_b: tuple[int, int]
) -> Tensor:
    """The flow ``[1, 2, H, W]`` that region matches make; see the module.

    size_a and size_b: (height, width) of the images. Raises BlobError, and ValueError where a
    score is NaN.
    """
    expect_numbers("region_flow", "height and width", INTEGERS, size_a=size_a, size_b=size_b)
    images = (size_tensor([int(x) for x in size]) for size in (size_a, size_b))
    flow: Tensor = definition(definition.params(), scores, rois_a, rois_b, *images)
    return flow


@register("RegionFlow")
class RegionFlow(Layer):
    """Dense flow from region matches; see the module."""

    definition = definition
    TRAITS = (Trait.NO_CELLS,)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        from ._samples import region_flow as own

        return own.samples(size, rng)
