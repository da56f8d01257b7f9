"""KeypointTransfer: points of image A carried to image B by the best matches of the cells around them.

    moved = p + mean over c of (m(c) - c)

of the cells c of A's grid whose box holds p, where m(c) is the match of c of the highest confidence
(Hyperpixel Flow, section 3.3). Nothing is clipped to image B.

Bottoms: ``confidence`` ``[N, H, W, H', W']``, any floating type; ``points`` ``[N, P, 2]`` or more
columns, of which the first two, (x, y) in image pixels, are read; ``size_a`` and ``size_b``, each an
image ``[N, C, h, w]``, of which only the shape is read, or two values (height, width). Tops: the points
in B ``[N, P, 2]``, and if asked for the confidence ``[N, P]``, the mean of those cells' best; float32,
or float64 for float64 points. NaN for a point that no box holds, as in the released code, whose 0 / 0
counts as a miss, and for all points where no cell of B takes part. ``_geometry/cells.py`` says which
cells there are; those that the margin leaves out take no part. Of equal matches the first is taken. On
the CPU only the rows of cells that hold a point are read. No gradient: a choice has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ._engine.checks import BlobError, Shape, expect_axes
from ._engine.declared import Bottom, Role, Top, Trait
from ._engine.definition import Spec, define
from ._engine.layer import Layer
from ._engine.registry import register
from ._engine.samples import Sample
from ._engine.sizes import Size
from ._engine.wide import wide_dtype
from ._geometry.cells import CellParams
from ._geometry.transfer import Steps, expect_confidence

if TYPE_CHECKING:
    import numpy as np

Params = CellParams
CHOICE = "a choice has none"
BOTTOMS = (
    Bottom("confidence", "[N, H, W, H', W']", why_no_gradient=CHOICE),
    Bottom("points", "[N, P, 2]", Role.TABLE),
    Bottom("size_a", "[N, C, h, w]", Role.SIZE, shared=True),
    Bottom("size_b", "[N, C, h, w]", Role.SIZE, shared=True),
)
TOPS = Top("moved", why_no_gradient=CHOICE), Top("score", why_no_gradient=CHOICE)


def infer(
    params: CellParams, confidence: Shape, points: Shape, size_a: Shape, size_b: Shape
) -> tuple[Shape, Shape]:
    """``[N, P, 2]`` and ``[N, P]``; raises :class:`BlobError` for bottoms that do not fit together."""
    expect_confidence(confidence, size_a, size_b)
    expect_axes("N P 2", points=points)
    if points[2] < 2:
        raise BlobError("expected {points} to be [N, P, 2], (x, y)", points=points)
    if points[0] != confidence[0]:
        text = "batch sizes differ: {confidence}, {points}"
        raise BlobError(text, confidence=confidence, points=points)
    return (*points[:2], 2), points[:2]


def meta(
    params: CellParams, confidence: Tensor, points: Tensor, size_a: Tensor, size_b: Tensor
) -> Sequence[Spec]:
    n, count, dtype = *points.shape[:2], wide_dtype(points.dtype)
    return ((n, count, 2), dtype), ((n, count), dtype)


def forward(
    params: CellParams, confidence: Tensor, points: Tensor, size_a: Size, size_b: Size
) -> tuple[Tensor, Tensor]:
    found = torch.empty(3, *points.shape[:2], dtype=torch.float64, device=points.device)
    for n, (one, some) in enumerate(zip(confidence, points, strict=True)):
        x, y = some[:, 0].double(), some[:, 1].double()
        found[:, n] = Steps(one, x, y, params, size_a, size_b).at_points()
        found[0, n] += x
        found[1, n] += y
    moved, score, dtype = found[:2].movedim(0, -1), found[2], wide_dtype(points.dtype)
    return moved.to(dtype).contiguous(), score.to(dtype, copy=True)  # of one point both are views


definition = define(__name__)


def keypoint_transfer(
    confidence: Tensor,
    points: Tensor,
    size_a: Sequence[float] | Tensor,
    size_b: Sequence[float] | Tensor,
    jump: float = Params.jump,
    receptive_field: int = Params.receptive_field,
    margin: float | None = Params.margin,
) -> tuple[Tensor, Tensor]:
    """The ``points`` ``[N, P, 2]`` of A, (x, y) in pixels, in B, and their confidences ``[N, P]``.

    ``confidence`` is ``[N, H, W, H', W']``; ``size_a``, ``size_b`` are the images' (height, width) in
    pixels, or the images. NaN for a point that no cell's box holds; see the module. Raises
    ``BlobError`` for shapes that do not fit, ``TypeError`` for dtypes and devices, ``ValueError`` for a
    parameter out of range, sizes below a pixel and a best confidence that is NaN or infinite. Source:
    Hyperpixel Flow, section 3.3.
    """
    params = definition.params(jump, receptive_field, margin)
    moved, score = definition(params, confidence, points, size_a, size_b)
    return moved, score


@register("KeypointTransfer")
class KeypointTransfer(Layer):
    """Points carried by the best matches of cells; see the module."""

    definition = definition
    TRAITS = (Trait.NO_CELLS,)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        from ._samples import keypoint_transfer as own

        return own.samples(size, rng)
