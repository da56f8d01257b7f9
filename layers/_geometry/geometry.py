"""Image points and map cells: the one place that reads a map at image points.

Image points are ``(x, y)`` in pixels, x right, y down, 0-based, pixel centres at integers. Cell
``(u, v)`` (column, row) of a map with downsampling factor ``f`` lies at image point
``(u f + offset, v f + offset)``; ``offset``, in image pixels, is 0 unless the net's own padding
shifts its map. Points outside of the map are read at its nearest border point. A cell's index is
``v W + u``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._engine import cuda
from .._engine.checks import BlobError, deferred, raise_if
from .._engine.wide import wide_dtype


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells a point is read from: 4 of them (bilinear) or 1 (nearest).

    ``index`` ``[N, K, P]`` int64, cells ``v W + u``; ``weight`` ``[N, K, P]``, which sum to 1.
    """

    index: Tensor
    weight: Tensor


def to_cells(xy: Tensor, factor: float, offset: float = 0.0) -> Tensor:
    """Image points ``(x, y)`` -> continuous cells ``(u, v)``, unclamped; float32 or wider."""
    return (xy.to(wide_dtype(xy.dtype)) - offset) / factor


def to_points(index: Tensor, width: int, factor: float, offset: float = 0.0) -> Tensor:
    """Cell indices of any shape -> their image points ``[..., 2]`` in float64, exact for integers."""
    cells = torch.stack((index % width, index.div(width, rounding_mode="floor")), dim=-1)
    return cells.double() * factor + offset


def cells_around(
    xy: Tensor,
    height: int,
    width: int,
    factor: float,
    offset: float = 0.0,
    bilinear: bool = True,
) -> Cells:
    """The cells of a ``height`` x ``width`` map that image points ``xy`` ``[N, P, 2]`` read."""
    u, v = to_cells(xy, factor, offset).nan_to_num(nan=0.0).unbind(-1)
    u, v = u.clamp(0, width - 1), v.clamp(0, height - 1)
    if not bilinear:
        index = (v + 0.5).floor().long() * width + (u + 0.5).floor().long()
        return Cells(index[:, None], torch.ones_like(u)[:, None])
    left, top = u.floor(), v.floor()
    right_share, lower_share = u - left, v - top
    u0, v0 = left.long(), top.long()
    u1, v1 = (u0 + 1).clamp(max=width - 1), (v0 + 1).clamp(max=height - 1)
    upper, lower = v0 * width, v1 * width
    index = torch.stack((upper + u0, upper + u1, lower + u0, lower + u1), dim=1)
    columns = torch.stack((1 - right_share, right_share), dim=1)
    weight = torch.cat((columns * (1 - lower_share)[:, None], columns * lower_share[:, None]), dim=1)
    return Cells(index, weight)


def nearest_cells(xy: Tensor, height: int, width: int, factor: float, offset: float = 0.0) -> Tensor:
    """The index ``[N, P]`` of the cell nearest to each image point ``xy`` ``[N, P, 2]``."""
    return cells_around(xy, height, width, factor, offset, bilinear=False).index[:, 0]


def read(feature: Tensor, at: Cells) -> Tensor:
    """The map ``[N, C, H, W]`` at the points: ``[N, C, P]``, in float32 or wider."""
    order = _along_memory(at)
    index, weight = _take(at.index, order), _take(at.weight, order)
    n, k, p = index.shape
    channels = feature.shape[1]
    index = index.reshape(n, 1, k * p).expand(n, channels, k * p)
    cells = feature.flatten(2).gather(2, index).to(wide_dtype(feature.dtype)).view(n, channels, k, p)
    weight = weight.to(cells.dtype)[:, None]
    total = cells[:, :, 0] * weight[:, :, 0]
    for i in range(1, k):
        total.addcmul_(cells[:, :, i], weight[:, :, i])
    return _take(total, order.argsort(1))


def scatter(top: Tensor, at: Cells, height: int, width: int) -> Tensor:
    """The adjoint of :func:`read`: ``[N, C, P]`` -> ``[N, C, H, W]``; points of one cell add up.

    In float32 or wider, and in a fixed order on every device.
    """
    order = _along_memory(at)
    index, weight = _take(at.index, order), _take(at.weight, order)
    n, k, p = index.shape
    channels = top.shape[1]
    index = index.reshape(n, k * p)
    values = _take(top.to(wide_dtype(top.dtype)), order)[:, :, None]
    values = (values * weight.to(values.dtype)[:, None]).view(n, channels, k * p)
    cells = values.new_zeros(n, channels, height * width)
    if top.is_cuda:  # scatter_add_ has no fixed order there; index_put_ sorts
        image = torch.arange(n, device=top.device)[:, None].expand_as(index)
        cells.transpose(1, 2).index_put_((image, index), values.transpose(1, 2), accumulate=True)
    else:
        cells.scatter_add_(2, index[:, None].expand(n, channels, k * p), values)
    return cells.view(n, channels, height, width)


def _along_memory(at: Cells) -> Tensor:
    """The points in the order of their cells: a walk along memory is several times faster."""
    return at.index[:, 0].argsort(dim=1, stable=True)


def _take(x: Tensor, order: Tensor) -> Tensor:
    """``x`` ``[N, K, P]`` with its points in the order ``[N, P]``."""
    return x.gather(2, order[:, None].expand_as(x))


def expect_finite(points: Tensor, **tables: Tensor) -> None:
    """Raise :class:`BlobError` at the first row of ``points`` ``[N, P, ...]`` that is not finite.

    The one table given by name is blamed. On a CUDA device ValueError, later, and without the row.
    """
    ((name, table),) = tables.items()
    if deferred(points):
        raise_if((points - points).any().reshape(1), f"{name}: coordinates that are not finite")
        return
    if bool(points.isfinite().all()):
        return
    image, row = (~points.isfinite().flatten(2).all(-1)).nonzero()[0].tolist()
    values = ", ".join(f"{value:g}" for value in points[image, row].flatten().tolist())
    text = f"{{{name}}}: row {row} of image {image} has coordinates that are not finite: {values}"
    raise BlobError(text, **{name: table.shape})


# What the kernels of geometry.cu need; ``kernels`` are a layer's, whose text is with that file.


def table_pointers(table: Tensor) -> dict[str, Tensor | None]:
    """The two arguments that stand for a contiguous table of any type."""
    if table.dtype == torch.float64:
        return {"narrow": None, "wide": table}
    return {"narrow": table.float(), "wide": None}


def rows_pay(points: int, cells: int) -> bool:
    """Whether to turn ``[N, C, L]`` into rows first.

    A read along points moves a sector of memory for each row of cells; along channels nothing in
    vain, but the turn moves the whole map twice.
    """
    return 5 * points > cells


def by_cell(kernels: cuda.Kernels, keys: Tensor, cells: int, scalar: torch.dtype) -> dict[str, Tensor]:
    """Points ``[N, P]`` in the order of their cells, and where each cell's begin ``[N, cells + 1]``."""
    keys, order = keys.sort(dim=1, stable=True)
    n, points = keys.shape
    start = keys.new_empty(n, cells + 1)
    kernels.launch(
        "cell_starts",
        scalar=scalar,
        keys=keys,
        start=start,
        images=n,
        points=points,
        cells=cells,
        grid=cuda.blocks(start.numel(), 256),
        block=cuda.threads(256),
    )
    return {"order": order, "start": start}
