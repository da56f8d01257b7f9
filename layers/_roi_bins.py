"""The bins of rois in cells of a map, and the maxima over them by tables."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._engine.checks import Shape

FARTHEST = 2**30  # cells; keeps every product below in 64 bits
TABLE = 1 << 25  # elements of the tables of maxima at a time
CHUNK = 1 << 18  # outputs at a time: what stays in a core's cache


class Bins(NamedTuple):
    """Each roi's image ``[R]``, and the cells of its bins by axis: ``[R, n]``, ends excluded."""

    image: Tensor
    top: Tensor
    bottom: Tensor
    left: Tensor
    right: Tensor


def bins(rois: Tensor, data: Shape, pooled: tuple[int, int], scale: float, exact: bool) -> Bins:
    """Of rois ``[R, 5]``, (rows, columns) each; int64, within the map whatever the rois hold."""
    number, _, height, width = data
    cells = rounded((rois[:, 1:].to(torch.float64 if exact else torch.float32) * scale).nan_to_num())
    cells = cells.clamp_(-FARTHEST, FARTHEST).long()
    rows = _intervals(cells[:, 1], cells[:, 3], pooled[0], height, exact)
    columns = _intervals(cells[:, 0], cells[:, 2], pooled[1], width, exact)
    return Bins(images(rois, number), *rows, *columns)


def images(rois: Tensor, number: int) -> Tensor:
    """Each roi's image, one of ``number``."""
    return rois[:, 0].nan_to_num().clamp(0, max(number - 1, 0)).long()


def rounded(x: Tensor) -> Tensor:
    """To the nearest integer, halves away from zero (``x.round()`` would take the even one)."""
    whole = x.trunc()
    return whole + (x - whole).mul_(2).trunc_()


def _intervals(start: Tensor, end: Tensor, count: int, size: int, exact: bool) -> tuple[Tensor, Tensor]:
    """Where each of ``count`` bins begins and ends along an axis of so many cells."""
    length = (end - start + 1).clamp(min=1)[:, None]
    i = torch.arange(count, device=start.device)
    if exact:
        lower, upper = i * length // count, -(-(i + 1) * length // count)
    else:
        step = length.float() / count
        lower, upper = (i * step).floor().long(), ((i + 1) * step).ceil().long()
    lower, upper = (edge.add_(start[:, None]).clamp_(0, size) for edge in (lower, upper))
    return lower, upper


class Covers(NamedTuple):
    """Four rectangles that cover each bin, so that its maximum is that of theirs.

    Each begins or ends where the bin does, and each side is the largest power of two that fits.
    ``rows`` ``[4, R, bins]`` are those of a table of maxima over such rectangles, which needs so many
    ``levels``, powers of two, by axis. An empty bin has the table's last row.
    """

    rows: Tensor
    levels: tuple[int, int]

    @classmethod
    def of(cls, at: Bins, data: Shape) -> Covers:
        number, _, height, width = data
        tall, high = _powers(at.bottom - at.top)
        wide, broad = _powers(at.right - at.left)
        levels = (1, 1)
        if tall.numel():
            levels = (int(tall.max()) + 1, int(wide.max()) + 1)
        level = tall[:, :, None] * levels[1] + wide[:, None, :]
        first = (level * number + at.image[:, None, None]) * (height * width)
        ys, xs = (at.top, at.bottom - high), (at.left, at.right - broad)
        rows = torch.stack([first + y[:, :, None] * width + x[:, None, :] for y in ys for x in xs])
        cells = levels[0] * levels[1] * number * height * width
        nothing = (at.bottom <= at.top)[:, :, None] | (at.right <= at.left)[:, None, :]
        return cls(rows.masked_fill_(nothing, cells).flatten(2), levels)

    def maxima(self, data: Tensor) -> Tensor:
        """``[R, C, bins]`` of a map, 0 of empty bins."""
        rows, levels = self
        channels, cells = data.shape[1], levels[0] * levels[1] * data[:, :1].numel()
        top = data.new_empty(rows.shape[1], channels, rows.shape[2])
        some = max(1, TABLE // (cells + 1))
        for first in range(0, channels, some):
            slab = slice(first, first + some)
            table = _table(data[:, slab], levels)
            step = max(1, CHUNK // (rows.shape[2] * table.shape[1]))
            for roi in range(0, rows.shape[1], step):
                chunk = rows[:, roi : roi + step]
                found = table.index_select(0, chunk[0].flatten())
                for row in chunk[1:]:
                    torch.maximum(found, table.index_select(0, row.flatten()), out=found)
                found = found.view(*chunk.shape[1:], table.shape[1])
                top[roi : roi + step, slab] = found.transpose(1, 2)
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


def ranks(data: Tensor) -> tuple[Tensor, int]:
    """Integers > 0 in the order of each plane's values, of equal ones the first highest.

    The low ``bits`` are the number of the cell, from 1.
    """
    order = data.flatten(2).sort(dim=2, descending=True, stable=True).indices
    cells = order.shape[2]
    bits = cells.bit_length()
    number = torch.arange(cells, device=data.device)
    rank = torch.empty_like(order).scatter_(2, order, (cells - number).expand(order.shape))
    keys = ((rank - 1) << bits) + number + 1
    return keys.to(torch.int32 if 2 * bits <= 31 else torch.int64).view(data.shape), bits
