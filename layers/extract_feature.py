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

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._runtime import autocast
from ._runtime.checks import BlobError, Shape, expect_axes, expect_floating, expect_same_device
from ._runtime.geometry import corners, expect_finite, read, scatter
from ._runtime.layer import Layer
from ._runtime.params import param
from ._runtime.registry import register
from ._runtime.samples import Sample


@dataclass(frozen=True)
class Params:
    num_coord_elements: int = param(5, low=2, doc="columns of the table")
    coord_start_ind: int = param(0, low=0, doc="the column of x; y is in the next")
    downsampling_factor: float = param(
        4.0, above=0, unit="image pixels per cell", aliases=("down_sampling_factor",)
    )
    coordinate_offset: float = param(0.0, unit="image pixels", doc="where cell 0 lies in the image")
    bilinear_interpolation: bool = param(True, doc="false: the nearest cell")


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


def forward(feature: Tensor, xy: Tensor, factor: float, offset: float, bilinear: bool) -> Tensor:
    """The features ``[N, C, P]`` at the points ``xy`` ``[N, P, 2]``."""
    height, width = feature.shape[2:]
    return read(feature, corners(xy, height, width, factor, offset, bilinear)).to(feature.dtype)


def backward(
    top_gradient: Tensor,
    xy: Tensor,
    height: int,
    width: int,
    factor: float,
    offset: float,
    bilinear: bool,
) -> Tensor:
    """The map's gradient ``[N, C, H, W]``."""
    at = corners(xy, height, width, factor, offset, bilinear)
    return scatter(top_gradient, at, height, width).to(top_gradient.dtype)


class Function(torch.autograd.Function):
    @staticmethod
    def forward(feature: Tensor, xy: Tensor, factor: float, offset: float, bilinear: bool) -> Tensor:
        return forward(feature, xy, factor, offset, bilinear)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        feature, xy, *options = inputs
        ctx.options = (*feature.shape[2:], *options)
        ctx.save_for_backward(xy)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_gradient: Tensor) -> tuple[Tensor | None, ...]:
        (xy,) = ctx.saved_tensors
        return backward(top_gradient, xy, *ctx.options), None, None, None, None


def extract_feature(
    feature: Tensor,
    pairs: Tensor,
    downsampling_factor: float = 4.0,
    coordinate_offset: float = 0.0,
    bilinear_interpolation: bool = True,
    coord_start_ind: int = 0,
) -> Tensor:
    """The map ``feature`` ``[N, C, H, W]`` at the points of ``pairs`` ``[N, P, D]``: ``[N, C, P]``.

    Points are image pixels (x, y) in columns ``coord_start_ind`` and the next; cell u lies at
    image point ``u downsampling_factor + coordinate_offset``; outside points read the border.
    Raises ``BlobError`` for shapes that do not fit and, on the CPU, for coordinates that are not
    finite; ``TypeError`` unless ``feature`` is floating point on the device of ``pairs``.
    Source: UCN, Section 4.
    """
    columns = pairs.shape[-1] if pairs.dim() else 0
    params = Params(
        columns, coord_start_ind, downsampling_factor, coordinate_offset, bilinear_interpolation
    )
    return _extract(params, feature, pairs)


def _extract(params: Params, feature: Tensor, pairs: Tensor) -> Tensor:
    infer(params, tuple(feature.shape), tuple(pairs.shape))
    expect_floating(feature=feature)
    expect_same_device(feature=feature, pairs=pairs)
    xy = pairs.detach()[..., params.coord_start_ind : params.coord_start_ind + 2]
    expect_finite(xy, pairs=pairs)
    top: Tensor = autocast.apply(
        Function,
        feature,
        xy,
        params.downsampling_factor,
        params.coordinate_offset,
        params.bilinear_interpolation,
    )
    return top


@register("ExtractFeature", bottoms=2, tops=1)
class ExtractFeature(Layer):
    Params = Params
    bottom_names = ("feature", "pairs")
    tables = (1,)
    infer = staticmethod(infer)

    def forward(self, feature: Tensor, pairs: Tensor) -> Tensor:
        return _extract(self.params, feature, pairs)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        def sample(name: str, shape: Shape, points: int, *options: Any, beyond: float = 0.0) -> Sample:
            params = Params(5, *options)
            extent = params.downsampling_factor * np.array([shape[3], shape[2]] * 2)
            xy = rng.uniform(-beyond, 1 + beyond, (shape[0], points, 4)) * extent
            s = rng.integers(-1, 2, (shape[0], points, 1))
            bottoms = (rng.standard_normal(shape), np.concatenate((xy, s), axis=2))
            return Sample(params, tuple(map(torch.from_numpy, bottoms)), name=name)

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
        ]
