"""ExtractFeature: the features of a map at the points of a pair table.

    top[n, :, p] = bilinear(feature[n], (x - coordinate_offset) / f, (y - coordinate_offset) / f)

f is ``downsampling_factor``. Points outside of the map read its border. Without
``bilinear_interpolation`` cell floor(u + 0.5) is read.

Bottoms: the map ``[N, C, H, W]``, any floating type; the table ``[N, P, 5]``, rows (x1, y1, x2, y2,
s) in image pixels, of which columns ``coord_start_ind`` and the next are read: 0 for the first
image's points, 2 for the second's. Every row is read, padding (s = -1) too. Top: ``[N, C, P]`` in
the map's type.

Backward fills the map's gradient: each point adds its gradient to the cells that it read, by the
same shares, in a fixed order. The table gets none.

Source: UCN, Section 4 ("extract features densely using bilinear interpolation").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._engine import cuda, tiles
from ._engine.checks import BlobError, Shape, expect_axes, raise_if, shapes, value_flag
from ._engine.declared import Bottom, Role, Top
from ._engine.definition import Spec, define
from ._engine.layer import Layer
from ._engine.params import param
from ._engine.registry import register
from ._engine.samples import Sample
from ._engine.wide import wide_dtype
from ._geometry import geometry
from ._geometry.geometry import Cells, cells_around, expect_finite, read, scatter

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Params:
    num_coord_elements: int = param(5, low=2, doc="columns of the table")
    coord_start_ind: int = param(0, low=0, doc="the column of x; y is in the next")
    downsampling_factor: float = param(
        4.0,
        above=0,
        unit="image pixels per cell",
        doc="from a cell of the map to the next",
        aliases=("down_sampling_factor",),
    )
    coordinate_offset: float = param(0.0, unit="image pixels", doc="where cell 0 lies in the image")
    bilinear_interpolation: bool = param(True, doc="read between cells; false: the nearest cell")


BOTTOMS = (
    Bottom("feature", "[N, C, H, W]", partly=True),
    Bottom("pairs", "[N, P, D]", Role.TABLE),
)
TOPS = (Top("top"),)


def infer(params: Params, feature: Shape, pairs: Shape) -> tuple[Shape]:
    """``[N, C, P]``; raises :class:`BlobError` for bottoms that do not fit together."""
    expect_axes("N C H W", feature=feature)
    expect_axes(f"N P {params.num_coord_elements}", pairs=pairs)
    if pairs[2] != params.num_coord_elements:
        raise BlobError(f"expected {{pairs}} to have {params.num_coord_elements} columns", pairs=pairs)
    if params.coord_start_ind + 2 > pairs[2]:
        raise BlobError(f"no column x, y at {params.coord_start_ind} of {{pairs}}", pairs=pairs)
    if feature[0] != pairs[0]:
        raise BlobError("batch sizes differ: {feature}, {pairs}", feature=feature, pairs=pairs)
    if pairs[1] and not feature[2] * feature[3]:
        raise BlobError("no cell to read in {feature}", feature=feature)
    return ((feature[0], feature[1], pairs[1]),)


def meta(params: Params, feature: Tensor, pairs: Tensor) -> Sequence[Spec]:
    """The top."""
    return (((*feature.shape[:2], pairs.shape[1]), feature.dtype),)


def expect(params: Params, feature: Tensor, pairs: Tensor) -> None:
    """Finite coordinates, where they are read."""
    expect_finite(_points(params, pairs), pairs=pairs)


def _points(params: Params, pairs: Tensor) -> Tensor:
    return pairs[..., params.coord_start_ind : params.coord_start_ind + 2]


def _cells(params: Params, pairs: Tensor, height: int, width: int) -> Cells:
    factor, offset = params.downsampling_factor, params.coordinate_offset
    xy, bilinear = _points(params, pairs), params.bilinear_interpolation
    return cells_around(xy, height, width, factor, offset, bilinear)


def forward(params: Params, feature: Tensor, pairs: Tensor) -> tuple[Tensor]:
    top = read(feature, _cells(params, pairs, *feature.shape[2:]))
    return (top.to(feature.dtype),)


def backward(params: Params, top_gradient: Tensor, pairs: Tensor, feature_shape: Shape) -> Tensor:
    height, width = feature_shape[2:]
    at = _cells(params, pairs, height, width)
    return scatter(top_gradient, at, height, width).to(top_gradient.dtype)


kernels = cuda.Kernels(__file__)


def forward_cuda(params: Params, feature: Tensor, pairs: Tensor) -> tuple[Tensor]:
    (n, channels, height, width), points = feature.shape, pairs.shape[1]
    rows = geometry.rows_pay(points, height * width)
    top, flag = feature.new_empty(n, channels, points), value_flag(pairs)
    kernels.launch(
        "extract_feature_forward",
        params,
        feature=tiles.to_rows(kernels, feature) if rows else feature.contiguous(),
        **geometry.table_pointers(pairs.contiguous()),
        top=top,
        flag=flag,
        **cuda.sizes("_ channels height width", feature),
        points=points,
        rows=rows,
        cells=height * width,
        grid=tiles.blocks(n, channels, points),
        block=cuda.threads(256),
    )
    raise_if(flag, "pairs: coordinates that are not finite")
    return (top,)


def backward_cuda(params: Params, top_gradient: Tensor, pairs: Tensor, feature_shape: Shape) -> Tensor:
    height, width = feature_shape[2:]
    n, channels, points = top_gradient.shape
    wide = wide_dtype(top_gradient.dtype)
    keys = pairs.new_empty(n, points, dtype=torch.int32)
    along, below = (pairs.new_empty(n, points, dtype=wide) for _ in range(2))
    kernels.launch(
        "extract_feature_points",
        params,
        scalar=top_gradient.dtype,
        **geometry.table_pointers(pairs.contiguous()),
        keys=keys,
        along=along,
        below=below,
        total=n * points,
        height=height,
        width=width,
        over=n * points,
    )
    rows = geometry.rows_pay(points, height * width)
    gradient = top_gradient.new_empty(n, channels, height, width)
    kernels.launch(
        "extract_feature_backward",
        params,
        top_gradient=tiles.to_rows(kernels, top_gradient) if rows else top_gradient.contiguous(),
        **geometry.by_cell(kernels, keys, height * width, top_gradient.dtype),
        along=along,
        below=below,
        gradient=gradient,
        **cuda.sizes("_ channels height width", gradient),
        points=points,
        rows=rows,
        grid=tiles.blocks(n, channels, height * width),
        block=cuda.threads(256),
    )
    return gradient


definition = define(__name__)


def extract_feature(
    feature: Tensor,
    pairs: Tensor,
    downsampling_factor: float = Params.downsampling_factor,
    coordinate_offset: float = Params.coordinate_offset,
    bilinear_interpolation: bool = Params.bilinear_interpolation,
    coord_start_ind: int = Params.coord_start_ind,
) -> Tensor:
    """The map ``feature`` ``[N, C, H, W]`` at the points of ``pairs`` ``[N, P, D]``: ``[N, C, P]``.

    Points are image pixels (x, y) in columns ``coord_start_ind`` and the next; cell u lies at
    image point ``u downsampling_factor + coordinate_offset``; outside points read the border.
    Raises ``BlobError`` for shapes that do not fit and for coordinates that are not finite (on CUDA
    ``ValueError``, later); ``TypeError`` unless ``feature`` is floating point on the device of
    ``pairs``. Source: UCN, Section 4.
    """
    columns = (0, *shapes("extract_feature", pairs=pairs)["pairs"])[-1]
    params = definition.params(
        columns, coord_start_ind, downsampling_factor, coordinate_offset, bilinear_interpolation
    )
    top: Tensor = definition(params, feature, pairs)
    return top


@register("ExtractFeature")
class ExtractFeature(Layer):
    definition = definition

    @classmethod
    def multiply_adds(
        cls, params: Any, bottoms: Sequence[Shape], tops: Sequence[Shape], blobs: Sequence[Shape]
    ) -> int | None:
        return 4 * math.prod(tops[0]) if params.bilinear_interpolation else None

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        from ._samples import extract_feature as own

        return own.samples(size, rng)
