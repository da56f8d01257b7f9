"""Boxes ``(x1, y1, x2, y2)`` and rois: the one place that says what they cover.

Image pixels, 0-based, x right, y down. x2 and y2 are the last pixel *inside* (as in Fast R-CNN,
PASCAL VOC and SCNet's own IoU): a box is ``x2 - x1 + 1`` wide and ``y2 - y1 + 1`` high, and one with
x1 = x2 is one pixel wide; where either is negative it is empty. In pycocotools' (x, y, w, h), whose
right side is outside, the same box is ``(x1, y1, x2 - x1 + 1, y2 - y1 + 1)``. Centres and half
extents, which are about distances, are the plain ``(x1 + x2) / 2`` and ``(x2 - x1) / 2``.

A roi is a box behind the number of its image: ``(batch, x1, y1, x2, y2)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._engine.checks import BlobError, Shape, deferred, raise_if
from .._engine.wide import wide_dtype


def expect_boxes(**shapes: Shape) -> None:
    """Each is [P, 4] boxes or [P, 5] rois; raises :class:`BlobError`."""
    for name, shape in shapes.items():
        if len(shape) != 2 or shape[1] not in (4, 5):
            text = f"expected {{{name}}} to be [P, 4] boxes or [P, 5] rois"
            raise BlobError(text, **{name: shape})


def corners(boxes: Tensor) -> Tensor:
    """``[..., 4]`` of boxes or rois."""
    return boxes[..., -4:]


def area(boxes: Tensor) -> Tensor:
    """Pixels in each box: ``[..., 4]`` -> ``[...]``, float32 or wider."""
    size = (boxes[..., 2:].to(wide_dtype(boxes.dtype)) - boxes[..., :2] + 1).clamp_(min=0)
    return size[..., 0] * size[..., 1]


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes ``[..., 4]`` that broadcast: ``[...]`` in 0..1.

    In float32 or wider; 0 where neither box covers a pixel.
    """
    a, b = a.to(wide_dtype(a.dtype)), b.to(wide_dtype(b.dtype))
    upper_left = torch.maximum(a[..., :2], b[..., :2])
    lower_right = torch.minimum(a[..., 2:], b[..., 2:])
    common = area(torch.cat((upper_left, lower_right), dim=-1))
    union = area(a) + area(b) - common
    return common / union.where(union > 0, 1)


def iou_matrix(a: Tensor, b: Tensor) -> Tensor:
    """IoU of each of ``a`` ``[P, 4]`` with each of ``b`` ``[S, 4]``: ``[P, S]``."""
    return iou(a[:, None], b[None])


def expect_finite(columns: str = "", **tables: Tensor) -> None:
    """Raise :class:`BlobError` at the first row of the one table given that is not finite.

    On a CUDA device ValueError, later, and without the row. ``columns`` are a roi's unless given.
    """
    ((name, table),) = tables.items()
    if deferred(table):
        raise_if((~table.isfinite()).any().reshape(1), f"{name}: coordinates that are not finite")
    elif not bool(table.isfinite().all()):
        row = int((~table.isfinite().all(1)).nonzero()[0])
        raise_at(row, "is not finite", columns, **{name: table})


def raise_at(row: int, problem: str, columns: str = "", **tables: Tensor) -> None:
    """Raise :class:`BlobError` about a row of the one table given, with its values."""
    ((name, table),) = tables.items()
    values = ", ".join(f"{value:g}" for value in table[row].tolist())
    columns = columns or "batch, x1, y1, x2, y2"[0 if table.shape[1] == 5 else 7 :]
    text = f"{{{name}}}: row {row} {problem}: {values} (expected {columns})"
    raise BlobError(text, **{name: table.shape})
