"""ROIPooling: the maximum over each of a region's bins, Fast R-CNN's way.

Bottoms: the map ``data`` ``[N, C, H, W]``, any floating type; ``rois`` ``[R, 5]``, rows (batch, x1,
y1, x2, y2) in image pixels, x2 and y2 inside. Top: ``[R, C, pooled_h, pooled_w]`` in the map's type.

A roi's corners are rounded to cells, ``round(x spatial_scale)``, halves away from zero; it is then
``max(end - start + 1, 1)`` cells wide, and likewise high. Bin i of n over a length L covers the
cells from ``start + floor(i L / n)`` up to, without, ``start + ceil((i + 1) L / n)``, as far as they
lie in the map: neighbouring bins overlap where n does not divide L. A bin outside of the map is 0.
``edges`` says how these quotients are computed:

========  ==========================================================================================
exact     in integers (corners in float64)
released  as float32 products ``i (L / n)``, so that at some sizes (7 bins over 57, 114 or 121 cells, 14
          over 57 or 62) a bin is a cell larger (corners in float32)
========  ==========================================================================================

Of equal values the first in row-major order is the maximum; a NaN is larger than anything. Corners
are clamped to 2^30 cells from the origin.

Backward: the gradient of each output goes to the cell of its maximum, where those of overlapping
bins and rois add up in a fixed order; the rois get none. The cells ``[R, C, pooled_h, pooled_w]``
(int32, -1 for an empty bin) are kept from the forward where a gradient is wanted.

Source: Fast R-CNN (Girshick, ICCV 2015), Section 2.1, and its Caffe layer; SCNet, Section 4.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ._engine import cuda, tiles
from ._engine.checks import BlobError, Shape, deferred, expect_axes, raise_if, value_flag
from ._engine.declared import Bottom, Role, Top, Trait
from ._engine.definition import Spec, define
from ._engine.layer import Layer
from ._engine.params import param
from ._engine.registry import register
from ._engine.samples import Sample
from ._engine.wide import wide_dtype
from ._geometry import boxes
from ._roi_bins import CHUNK, Covers, bins, images, ranks

if TYPE_CHECKING:
    import numpy as np


class Edges(enum.Enum):
    """The bins' edges in integers, or the released layers' float32 products."""

    exact = 0
    released = 1


@dataclass(frozen=True)
class Params:
    pooled_h: int = param(low=1, unit="bins", doc="rows of each roi")
    pooled_w: int = param(low=1, unit="bins", doc="columns of each roi")
    spatial_scale: float = param(1.0, unit="cells per image pixel", doc="the map's scale")
    edges: Edges = param(Edges.exact, doc="how the bins' edges are computed")


BOTTOMS = (
    Bottom("data", "[N, C, H, W]", shared=True),
    Bottom("rois", "[R, 5]", Role.TABLE),
)
TOPS = (Top("top"),)


def infer(params: Params, data: Shape, rois: Shape) -> tuple[Shape]:
    """``[R, C, pooled_h, pooled_w]``; raises :class:`BlobError`."""
    expect_axes("N C H W", data=data)
    if len(rois) != 2 or rois[1] != 5:
        raise BlobError("expected {rois} to be [R, 5]: batch, x1, y1, x2, y2", rois=rois)
    if rois[0] and not data[0]:
        raise BlobError("no image in {data} for {rois}", data=data, rois=rois)
    return ((rois[0], data[1], params.pooled_h, params.pooled_w),)


def meta(params: Params, data: Tensor, rois: Tensor) -> Sequence[Spec]:
    """The top; the index ``h W + w`` of each maximum's cell."""
    shape = rois.shape[0], data.shape[1], params.pooled_h, params.pooled_w
    return (shape, data.dtype), (shape, torch.int32)


def expect(params: Params, data: Tensor, rois: Tensor) -> None:
    """Finite rois, each of an image of the map."""
    boxes.expect_finite(rois=rois)
    image, number = rois[:, 0], data.shape[0]
    wrong = (image < 0) | (image >= number) | (image != image.floor())
    if deferred(rois):
        raise_if(wrong.any().reshape(1), f"rois: a batch index that is not in 0..{number - 1}")
    elif bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        boxes.raise_at(row, f"has a batch index that is not in 0..{number - 1}", rois=rois)


def forward(
    params: Params, data: Tensor, rois: Tensor, keep: bool = True
) -> tuple[Tensor, Tensor | None]:
    pooled, exact = (params.pooled_h, params.pooled_w), params.edges is Edges.exact
    covers = Covers.of(bins(rois, data.shape, pooled, params.spatial_scale, exact), data.shape)
    shape = (len(rois), data.shape[1], *pooled)
    top = covers.maxima(data).view(shape)
    if not keep:
        return top, None
    keys, bits = ranks(data)  # whose last bits say the cell
    cell = covers.maxima(keys).view(shape).bitwise_and_((1 << bits) - 1).sub_(1)
    return top, cell.int()


def backward(
    params: Params, top_gradient: Tensor, rois: Tensor, argmax: Tensor, data_shape: Sequence[int]
) -> Tensor:
    image, wide = images(rois, data_shape[0]), wide_dtype(top_gradient.dtype)
    gradient = top_gradient.new_zeros(data_shape, dtype=wide)
    step = max(1, CHUNK // max(argmax[:1].numel(), 1))
    for row in range(0, len(argmax), step):
        some = slice(row, row + step)
        cell = argmax[some]
        index = (_planes(image[some], data_shape) + cell.clamp(min=0)).flatten()
        values = top_gradient[some].to(wide).where(cell >= 0, 0).flatten()
        if gradient.is_cuda:  # scatter_add_ has no fixed order there; index_put_ sorts
            gradient.view(-1).index_put_((index,), values, accumulate=True)
        elif gradient.numel():
            gradient.view(-1).scatter_add_(0, index, values)
    return gradient.to(top_gradient.dtype)


def _planes(image: Tensor, data: Sequence[int]) -> Tensor:
    """Where the planes of the rois' images begin in the map: ``[R, C, 1, 1]``."""
    channel = torch.arange(data[1], device=image.device)
    return ((image[:, None] * data[1] + channel) * (data[2] * data[3]))[:, :, None, None]


kernels = cuda.Kernels(__file__)
SUMS = 40 * 1024  # bytes of a block's sums in shared memory


def forward_cuda(
    params: Params, data: Tensor, rois: Tensor, keep: bool = True
) -> tuple[Tensor, Tensor | None]:
    exact, last = params.edges is Edges.exact, len(data) - 1
    top = data.new_empty(len(rois), data.shape[1], params.pooled_h, params.pooled_w)
    argmax = torch.empty_like(top, dtype=torch.int32) if keep else None
    flag = value_flag(rois)
    kernels.launch(
        "roi_pooling_forward",
        params,
        map=tiles.to_rows(kernels, data),
        narrow=None if exact else rois.float().contiguous(),
        wide=rois.double().contiguous() if exact else None,
        top=top,
        argmax=argmax,
        flag=flag,
        last_image=last,
        grid=tiles.blocks(len(rois), data.shape[1], math.prod(top.shape[2:])),
        block=cuda.threads(256),
        **cuda.sizes("_ channels height width", data),
    )
    raise_if(flag, f"rois: a row that is not finite, or a batch index that is not in 0..{last}")
    return top, argmax


def backward_cuda(
    params: Params, top_gradient: Tensor, rois: Tensor, argmax: Tensor, data_shape: Sequence[int]
) -> Tensor:
    number, channels, height, width = data_shape
    gradient, image = top_gradient.new_empty(data_shape), images(rois, number)
    size = cuda.accumulator_dtype(top_gradient.dtype).itemsize
    bands = -(-height * width * size // SUMS)
    band = -(-height * width // max(bands, 1))
    warps = min(cuda.threads(256) // 32, SUMS // (max(band, 1) * size))
    kernels.launch(
        "roi_pooling_backward",
        top_gradient=top_gradient.contiguous(),
        argmax=argmax,
        image=image,
        gradient=gradient,
        channels=channels,
        rois=len(image),
        bins=math.prod(argmax.shape[2:]),
        cells=height * width,
        band=band,
        bands=bands,
        grid=number * channels * bands,
        block=32 * warps,
        shared=warps * band * size,
    )
    return gradient


definition = define(__name__, kept=("argmax",))


def roi_pooling(
    data: Tensor,
    rois: Tensor,
    pooled_h: int,
    pooled_w: int,
    spatial_scale: float = Params.spatial_scale,
    edges: Edges | str = Params.edges,
) -> Tensor:
    """The map ``data`` ``[N, C, H, W]`` over regions, max pooled: ``[R, C, pooled_h, pooled_w]``.

    ``rois`` ``[R, 5]`` are (batch, x1, y1, x2, y2) in image pixels, x2 and y2 inside;
    ``spatial_scale`` is in cells per image pixel; for ``edges`` see the module. Raises
    ``BlobError`` for shapes that do not fit, and for rois that are not finite or of an image that
    is not there (on CUDA ``ValueError``, later); ``TypeError`` unless ``data`` is floating point on
    the device of ``rois``. Source: Fast R-CNN, Section 2.1.
    """
    params = definition.params(pooled_h, pooled_w, spatial_scale, edges)
    top: Tensor = definition(params, data, rois)
    return top


@register("ROIPooling")
class ROIPooling(Layer):
    definition = definition
    TRAITS = (Trait.NO_CELLS,)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        from ._samples import roi_pooling as own

        return own.samples(size, rng)
