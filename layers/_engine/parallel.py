"""One batch over several processes: each has its own rows, and one process with all has the result.

A data layer gives process r of W the r-th share of a batch W times as large; a loss that is a mean
over what it counts is balanced by the counts of all; what is drawn for a row depends on its place
in the whole batch. Nothing of this happens outside of :func:`together`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch import distributed as dist

from .checks import valueless

_together = False  # of the process, which compilers can guard


@contextmanager
def together(yes: bool = True) -> Iterator[None]:
    """Within, the processes of torch.distributed's default group work on one batch."""
    global _together
    before, _together = _together, yes
    try:
        yield
    finally:
        _together = before


def rank_and_size() -> tuple[int, int]:
    """This process's rank and the number of processes that work on the batch: (0, 1) if alone."""
    return (dist.get_rank(), dist.get_world_size()) if _together else (0, 1)


def share(position: int, batch_size: int) -> tuple[range, int]:
    """The numbers of this process's samples of the batch that begins at ``position`` of a data
    layer, and where the next batch begins."""
    rank, world = rank_and_size()
    first = position + rank * batch_size
    return range(first, first + batch_size), position + world * batch_size


def balanced(loss: Tensor, count: Tensor) -> Tensor:
    """A loss that was divided by ``count`` (at least 1), such that the mean over the processes is
    the loss over all rows: divided by the mean of the counts instead.

    ``loss`` as it is where there is one process. The counts are summed over the processes without
    waiting for the device.
    """
    _, world = rank_and_size()
    if world == 1 or valueless(loss):
        return loss
    total = count.detach().to(torch.float64, copy=True)
    dist.all_reduce(total)
    share = count.clamp(min=1).to(torch.float64) * world / total.clamp(min=1)
    return loss * share.to(loss.dtype)


def own_rows(shape: tuple[int, ...], draw: Callable[[tuple[int, ...]], Tensor]) -> Tensor:
    """``draw(shape)``, where row n is drawn as row n + rank N of the whole batch is: all processes
    draw the same numbers for all rows. Without axes there are no rows: all have the same number."""
    rank, world = rank_and_size()
    if world == 1 or not shape:
        return draw(shape)
    return draw((world * shape[0], *shape[1:]))[rank * shape[0] : (rank + 1) * shape[0]]
