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
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._engine import cuda, tiles
from ._engine.checks import BlobError, Shape, deferred, expect_axes, raise_if, value_flag
from ._engine.declared import Bottom, Role, Top, Trait
from ._engine.definition import Definition, Spec
from ._engine.layer import Layer
from ._engine.params import param
from ._engine.registry import register
from ._engine.samples import Sample, distinct
from ._engine.wide import wide_dtype
from ._geometry import boxes

FARTHEST = 2**30  # cells; keeps every product below in 64 bits
TABLE = 1 << 25  # elements of the tables of maxima at a time
CHUNK = 1 << 18  # outputs at a time: what stays in a core's cache


class Edges(enum.Enum):
    """The bins' edges in integers, or the released layers' float32 products."""

    exact = 0
    released = 1


@dataclass(frozen=True)
class Params:
    pooled_h: int = param(low=1, unit="bins")
    pooled_w: int = param(low=1, unit="bins")
    spatial_scale: float = param(1.0, unit="cells per image pixel")
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


class Bins(NamedTuple):
    """Each roi's image ``[R]``, and the cells of its bins by axis: ``[R, n]``, ends excluded."""

    image: Tensor
    top: Tensor
    bottom: Tensor
    left: Tensor
    right: Tensor


def bins(rois: Tensor, data: Shape, params: Params) -> Bins:
    """All int64, within the map whatever the rois hold."""
    number, _, height, width = data
    dtype = torch.float64 if params.edges is Edges.exact else torch.float32
    cells = _round((rois[:, 1:].to(dtype) * params.spatial_scale).nan_to_num())
    cells = cells.clamp_(-FARTHEST, FARTHEST).long()
    rows = _intervals(cells[:, 1], cells[:, 3], params.pooled_h, height, params.edges)
    columns = _intervals(cells[:, 0], cells[:, 2], params.pooled_w, width, params.edges)
    return Bins(_images(rois, number), *rows, *columns)


def _images(rois: Tensor, number: int) -> Tensor:
    return rois[:, 0].nan_to_num().clamp(0, max(number - 1, 0)).long()


def _round(x: Tensor) -> Tensor:
    """To the nearest integer, halves away from zero (``x.round()`` would take the even one)."""
    whole = x.trunc()
    return whole + (x - whole).mul_(2).trunc_()


def _intervals(
    start: Tensor, end: Tensor, count: int, size: int, edges: Edges
) -> tuple[Tensor, Tensor]:
    length = (end - start + 1).clamp(min=1)[:, None]
    i = torch.arange(count, device=start.device)
    if edges is Edges.exact:
        lower, upper = i * length // count, -(-(i + 1) * length // count)
    else:
        step = length.float() / count
        lower, upper = (i * step).floor().long(), ((i + 1) * step).ceil().long()
    lower, upper = (edge.add_(start[:, None]).clamp_(0, size) for edge in (lower, upper))
    return lower, upper


def forward(
    params: Params, data: Tensor, rois: Tensor, keep: bool = True
) -> tuple[Tensor, Tensor | None]:
    at = bins(rois, data.shape, params)
    shape = (len(rois), data.shape[1], params.pooled_h, params.pooled_w)
    covers, levels = _covers(at, data.shape)
    top = _pooled(data, covers, levels).view(shape)
    if not keep:
        return top, None
    keys, bits = _keys(data)
    cell = _pooled(keys, covers, levels).view(shape).bitwise_and_((1 << bits) - 1).sub_(1)
    return top, cell.int()


def _keys(data: Tensor) -> tuple[Tensor, int]:
    """Integers > 0 in the order of each plane's values, of equal ones the first highest.

    The low ``bits`` are the number of the cell, from 1.
    """
    order = data.flatten(2).sort(dim=2, descending=True, stable=True).indices
    cells = order.shape[2]
    bits = cells.bit_length()
    number = torch.arange(cells, device=data.device)
    place = torch.empty_like(order).scatter_(2, order, (cells - number).expand(order.shape))
    keys = ((place - 1) << bits) + number + 1
    return keys.to(torch.int32 if 2 * bits <= 31 else torch.int64).view(data.shape), bits


def _covers(at: Bins, data: Shape) -> tuple[Tensor, tuple[int, int]]:
    """Rows ``[4, R, bins]`` of :func:`_table`, and how many powers of two it needs by axis.

    A bin is covered by four rectangles, one in each corner, each side the largest power of two that
    fits: its maximum is that of theirs. An empty bin has the table's last row.
    """
    number, _, height, width = data
    tall, high = _powers(at.bottom - at.top)
    wide, broad = _powers(at.right - at.left)
    levels = (1, 1)
    if tall.numel():
        levels = (int(tall.max()) + 1, int(wide.max()) + 1)
    level = tall[:, :, None] * levels[1] + wide[:, None, :]
    place = (level * number + at.image[:, None, None]) * (height * width)
    rows = (at.top, at.bottom - high)
    columns = (at.left, at.right - broad)
    covers = torch.stack([place + y[:, :, None] * width + x[:, None, :] for y in rows for x in columns])
    cells = levels[0] * levels[1] * number * height * width
    nothing = (at.bottom <= at.top)[:, :, None] | (at.right <= at.left)[:, None, :]
    return covers.masked_fill_(nothing, cells).flatten(2), levels


def _pooled(data: Tensor, covers: Tensor, levels: tuple[int, int]) -> Tensor:
    """The bins' maxima ``[R, C, bins]``, 0 of empty ones."""
    channels, cells = data.shape[1], levels[0] * levels[1] * data[:, :1].numel()
    top = data.new_empty(covers.shape[1], channels, covers.shape[2])
    some = max(1, TABLE // (cells + 1))
    for first in range(0, channels, some):
        slab = slice(first, first + some)
        table = _table(data[:, slab], levels)
        step = max(1, CHUNK // (covers.shape[2] * table.shape[1]))
        for row in range(0, covers.shape[1], step):
            chunk = covers[:, row : row + step]
            maxima = table.index_select(0, chunk[0].flatten())
            for cover in chunk[1:]:
                torch.maximum(maxima, table.index_select(0, cover.flatten()), out=maxima)
            maxima = maxima.view(*chunk.shape[1:], table.shape[1])
            top[row : row + step, slab] = maxima.transpose(1, 2)
    return top


def _powers(length: Tensor) -> tuple[Tensor, Tensor]:
    """The exponent of the largest power of two up to each length, and that power; 1 for none."""
    exponent = torch.frexp(length.clamp(min=1).double()).exponent.long() - 1
    return exponent, torch.ones_like(exponent) << exponent


def _table(data: Tensor, levels: tuple[int, int]) -> Tensor:
    """Maxima over 2^i x 2^j cells: ``[levels, N, H, W]`` rows of channels, then a row of zeros."""
    cells = data.permute(0, 2, 3, 1).contiguous()
    found = []
    for i in range(levels[0]):
        cells = _doubled(cells, 1, 1 << i >> 1)
        wider = cells
        for j in range(levels[1]):
            wider = _doubled(wider, 2, 1 << j >> 1)
            found.append(wider.reshape(-1, data.shape[1]))
    return torch.cat((*found, cells.new_zeros(1, data.shape[1])))


def _doubled(x: Tensor, axis: int, step: int) -> Tensor:
    """The larger of each element and that ``step`` further on, where there is one."""
    rest = x.shape[axis] - step
    if not step or rest <= 0:
        return x
    larger = x.clone()
    ahead = x.narrow(axis, step, rest)
    torch.maximum(x.narrow(axis, 0, rest), ahead, out=larger.narrow(axis, 0, rest))
    return larger


def _planes(image: Tensor, data: Sequence[int]) -> Tensor:
    """Where the planes of the rois' images begin in the map: ``[R, C, 1, 1]``."""
    channel = torch.arange(data[1], device=image.device)
    return ((image[:, None] * data[1] + channel) * (data[2] * data[3]))[:, :, None, None]


def backward(
    params: Params, top_gradient: Tensor, rois: Tensor, argmax: Tensor, data_shape: Sequence[int]
) -> Tensor:
    image, wide = _images(rois, data_shape[0]), wide_dtype(top_gradient.dtype)
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


kernels = cuda.Kernels(__file__)
SUMS = 40 * 1024  # bytes of a block's sums in shared memory


def forward_cuda(
    params: Params, data: Tensor, rois: Tensor, keep: bool = True
) -> tuple[Tensor, Tensor | None]:
    number, channels, height, width = data.shape
    bins, exact = params.pooled_h * params.pooled_w, params.edges is Edges.exact
    top = data.new_empty(len(rois), channels, params.pooled_h, params.pooled_w)
    argmax = torch.empty_like(top, dtype=torch.int32) if keep else None
    flag = value_flag(rois)
    kernels.launch(
        "roi_pooling_forward",
        map=tiles.to_rows(kernels, data),
        narrow=None if exact else rois.float().contiguous(),
        wide=rois.double().contiguous() if exact else None,
        top=top,
        argmax=argmax,
        flag=flag,
        channels=channels,
        height=height,
        width=width,
        last_image=number - 1,
        pooled_h=params.pooled_h,
        pooled_w=params.pooled_w,
        scale=params.spatial_scale,
        grid=tiles.blocks(len(rois), channels, bins),
        block=cuda.threads(256),
    )
    raise_if(flag, f"rois: a row that is not finite, or a batch index that is not in 0..{number - 1}")
    return top, argmax


def backward_cuda(
    params: Params, top_gradient: Tensor, rois: Tensor, argmax: Tensor, data_shape: Sequence[int]
) -> Tensor:
    number, channels, height, width = data_shape
    gradient, image = top_gradient.new_empty(data_shape), _images(rois, number)
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


definition = Definition(
    "roi_pooling",
    Params,
    BOTTOMS,
    TOPS,
    kept=("argmax",),
    infer=infer,
    meta=meta,
    expect=expect,
    forward=forward,
    backward=backward,
    forward_cuda=forward_cuda,
    backward_cuda=backward_cuda,
)


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
        def sample(
            name: str,
            shape: Shape,
            number: int,
            beyond: float,
            *options: Any,
            check: bool = True,
            whole: bool = False,
            ties: bool = False,
        ) -> Sample:
            """Rois whose corners are not near a half, some of them outside by ``beyond`` maps."""
            params, (height, width) = Params(*options), shape[2:]
            extent = np.array((width, height))
            corner = np.floor(rng.uniform(-beyond, 1 + beyond, (number, 2, 2)) * extent)
            corner = np.sort(corner, axis=1) + rng.uniform(-0.4, 0.4, corner.shape)
            image = rng.integers(0, shape[0], (number, 1))
            rois = np.concatenate((image, corner.reshape(-1, 4) / params.spatial_scale), axis=1)
            table = torch.from_numpy(rois)
            planes = [distinct(rng, (height, width)) for _ in range(shape[0] * shape[1])]
            data = torch.stack(planes).view(shape)
            bottoms = (2 * data).round() if ties else data, table.int() if whole else table
            return Sample(params, bottoms, name=name, check_gradient=check and not ties)

        if size == "paper":
            return [sample("VGG16, 1000 regions", (1, 512, 30, 40), 1000, 0.0, 7, 7, 1 / 16)]
        if size == "large":
            return [sample("two images, 2000 regions", (2, 512, 60, 80), 2000, 0.0, 7, 7, 1 / 16)]
        ramp = torch.linspace(-0.9, 1, 174, dtype=torch.float64).view(58, 3).T
        wide = torch.tensor([[0, 0, 0, 56, 2], [0, 0.8, 1, 57.3, 1]], dtype=torch.float64)
        uneven = torch.stack((ramp, -ramp))[None], wide  # 57 cells, where the edges differ
        middle = torch.tensor([[0.0, 44, 30, 47, 31]], dtype=torch.float64)  # where a block's band ends
        return [
            sample("two images", (2, 3, 6, 7), 5, 0.0, 2, 3, 0.25),
            sample("partly outside", (2, 2, 5, 4), 9, 0.8, 3, 2, 1.0),
            sample("more bins than cells", (1, 2, 3, 4), 4, 0.3, 5, 6, 0.1),
            sample("one bin", (3, 1, 6, 5), 4, 0.1, 1, 1, 1 / 16),
            sample("one cell", (1, 3, 1, 1), 2, 0.0, 2, 2, 0.5),
            Sample(Params(1, 7), uneven, name="exact edges"),
            Sample(Params(1, 7, 1.0, Edges.released), uneven, name="released edges"),
            sample("integers", (2, 2, 5, 6), 4, 0.2, 2, 2, 0.25, Edges.released, whole=True),
            sample("ties", (1, 2, 6, 5), 5, 0.1, 2, 2, 0.5, ties=True),
            sample("many rois", (2, 2, 4, 3), 70, 0.1, 1, 2, 0.5, check=False),
            sample("several blocks", (2, 33, 9, 11), 5, 0.1, 3, 3, 1 / 16, check=False),
            sample("whole blocks", (2, 32, 4, 8), 3, 0.1, 4, 8, 0.5, check=False),
            Sample(
                Params(2, 4),
                (distinct(rng, (1, 1, 61, 89)), middle),
                name="a large map",
                check_gradient=False,
            ),
        ]
