"""ExtractFeature: the features of a map at the points of a pair table.

    top[n, :, p] = bilinear(feature[n], (x - coordinate_offset) / f, (y - coordinate_offset) / f)

Bottoms: the map ``[N, C, H, W]``, any floating type; the table ``[N, P, 5]``, rows (x1, y1, x2, y2,
s) in image pixels, of which columns ``coord_start_ind`` and the next are read: 0 for the first
image's points, 2 for the second's. Top: ``[N, C, P]`` in the map's type. Points outside of the map
read its border. Every row is read, padding (s = -1) too. f is ``downsampling_factor``; nearest
instead of bilinear reads cell floor(u + 0.5).

Backward fills the map's gradient, the transposed read: points of one cell add up, in a fixed
order. The table gets none.

Source: UCN, Section 4 ("extract features densely using bilinear interpolation").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._engine import cuda, tiles
from ._engine.checks import BlobError, Shape, expect_axes, raise_if, shapes, value_flag
from ._engine.declared import Bottom, Role, Top
from ._engine.definition import Definition, Spec
from ._engine.layer import Layer
from ._engine.params import param
from ._engine.registry import register
from ._engine.samples import Sample
from ._engine.wide import wide_dtype
from ._geometry import geometry
from ._geometry.geometry import Corners, corners, expect_finite, read, scatter


@dataclass(frozen=True)
class Params:
    num_coord_elements: int = param(5, low=2, doc="columns of the table")
    coord_start_ind: int = param(0, low=0, doc="the column of x; y is in the next")
    downsampling_factor: float = param(
        4.0, above=0, unit="image pixels per cell", aliases=("down_sampling_factor",)
    )
    coordinate_offset: float = param(0.0, unit="image pixels", doc="where cell 0 lies in the image")
    bilinear_interpolation: bool = param(True, doc="false: the nearest cell")


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


def _corners(params: Params, pairs: Tensor, height: int, width: int) -> Corners:
    factor, offset = params.downsampling_factor, params.coordinate_offset
    xy, bilinear = _points(params, pairs), params.bilinear_interpolation
    return corners(xy, height, width, factor, offset, bilinear)


def forward(params: Params, feature: Tensor, pairs: Tensor) -> tuple[Tensor]:
    top = read(feature, _corners(params, pairs, *feature.shape[2:]))
    return (top.to(feature.dtype),)


def backward(params: Params, top_gradient: Tensor, pairs: Tensor, feature_shape: Shape) -> Tensor:
    height, width = feature_shape[2:]
    at = _corners(params, pairs, height, width)
    return scatter(top_gradient, at, height, width).to(top_gradient.dtype)


kernels = cuda.Kernels(__file__)


def forward_cuda(params: Params, feature: Tensor, pairs: Tensor) -> tuple[Tensor]:
    (n, channels, height, width), (points, columns) = feature.shape, pairs.shape[1:]
    rows = geometry.rows_pay(points, height * width)
    top, flag = feature.new_empty(n, channels, points), value_flag(pairs)
    kernels.launch(
        "extract_feature_forward",
        feature=tiles.to_rows(kernels, feature) if rows else feature.contiguous(),
        **geometry.table_pointers(pairs.contiguous()),
        top=top,
        flag=flag,
        columns=columns,
        channels=channels,
        points=points,
        rows=rows,
        cells=height * width,
        height=height,
        width=width,
        **_reading(params),
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
    threads = cuda.threads(256)
    kernels.launch(
        "extract_feature_points",
        scalar=top_gradient.dtype,
        **geometry.table_pointers(pairs.contiguous()),
        keys=keys,
        along=along,
        below=below,
        total=n * points,
        columns=pairs.shape[2],
        height=height,
        width=width,
        **_reading(params),
        grid=cuda.blocks(n * points, threads),
        block=threads,
    )
    rows = geometry.rows_pay(points, height * width)
    gradient = top_gradient.new_empty(n, channels, height, width)
    kernels.launch(
        "extract_feature_backward",
        top_gradient=tiles.to_rows(kernels, top_gradient) if rows else top_gradient.contiguous(),
        **geometry.by_cell(kernels, keys, height * width, top_gradient.dtype),
        along=along,
        below=below,
        gradient=gradient,
        channels=channels,
        points=points,
        rows=rows,
        height=height,
        width=width,
        bilinear=params.bilinear_interpolation,
        grid=tiles.blocks(n, channels, height * width),
        block=threads,
    )
    return gradient


def _reading(params: Params) -> dict[str, float]:
    return {
        "column": params.coord_start_ind,
        "factor": params.downsampling_factor,
        "offset": params.coordinate_offset,
        "bilinear": params.bilinear_interpolation,
    }


definition = Definition(
    "extract_feature",
    Params,
    BOTTOMS,
    TOPS,
    infer=infer,
    meta=meta,
    expect=expect,
    forward=forward,
    backward=backward,
    forward_cuda=forward_cuda,
    backward_cuda=backward_cuda,
)


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
        def sample(
            name: str,
            shape: Shape,
            points: int,
            *options: Any,
            beyond: float = 0.0,
            whole: bool = False,
            checked: bool = True,
        ) -> Sample:
            params = Params(5, *options)
            extent = params.downsampling_factor * np.array([shape[3], shape[2]] * 2)
            xy = rng.uniform(-beyond, 1 + beyond, (shape[0], points, 4)) * extent
            s = rng.integers(-1, 2, (shape[0], points, 1))
            pairs = np.concatenate((xy, s), axis=2)
            bottoms = (rng.standard_normal(shape), pairs.astype(np.int32) if whole else pairs)
            tensors = tuple(map(torch.from_numpy, bottoms))
            return Sample(params, tensors, name=name, check_gradient=checked)

        if size == "paper":
            return [sample("KITTI, 3k points", (2, 128, 95, 311), 3000)]
        if size == "large":
            return [sample("KITTI, 100k points", (2, 128, 95, 311), 100_000)]
        return [
            sample("bilinear", (2, 3, 4, 5), 6),
            sample("mostly outside", (2, 2, 3, 4), 9, 0, 4.0, beyond=1.0),
            sample("second image, shifted, nearest", (2, 2, 3, 4), 9, 2, 4.0, 4.0, False),
            sample("finer than the image", (1, 3, 4, 5), 5, 1, 0.5, -0.25),
            sample("one cell", (1, 2, 1, 1), 4),
            sample("one column", (2, 2, 4, 1), 4, beyond=0.2),
            sample("few points", (2, 32, 4, 8), 5, beyond=0.5, checked=False),
            sample("few points, nearest", (1, 2, 5, 8), 3, 0, 4.0, 0.0, False),
            sample("integers", (2, 2, 4, 5), 6, 1, whole=True),
            sample("several tiles", (2, 33, 5, 7), 34, 0, 4.0, -1.0, checked=False),
        ]
