"""Where the cells of a grid match best, and how far the cells around a point carry it along.

Hyperpixel Flow, section 3.3, of a confidence ``[H, W, H', W']``: each cell that takes part goes to its
best match, of equal ones the first, and a point goes the mean of what the cells go whose box holds it,
its border included.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._engine.checks import Shape, expect_axes, expect_finite
from .._engine.sizes import Size, expect_sizes
from .cells import CellParams


def expect_confidence(confidence: Shape, size_a: Shape, size_b: Shape) -> None:
    """A confidence ``[N, H, W, H', W']`` and two sizes; raises :class:`BlobError`."""
    expect_axes("N H W H' W'", confidence=confidence)
    expect_sizes({"confidence": confidence}, size_a=size_a, size_b=size_b)


class Steps:
    """How far the cells around points go, of one confidence ``[H, W, H', W']``.

    ``x`` and ``y`` are coordinates in image pixels, of which :meth:`at_points` takes pairs and
    :meth:`at_grid` all combinations. Both give float64: x, y in image pixels, and the confidence of
    it; NaN where no cell's box holds a point, or no cell of B takes part. They raise ValueError where
    the best confidence of a cell that holds one is NaN or infinite (later, on CUDA).
    """

    def __init__(
        self, confidence: Tensor, x: Tensor, y: Tensor, params: CellParams, size_a: Size, size_b: Size
    ) -> None:
        self.jump = params.jump
        self.kept = params.pair(confidence.shape, size_a, size_b)
        self.part = confidence[self.kept]
        self.down, self.across = _holds(y, self.kept[0], params), _holds(x, self.kept[1], params)

    def at_points(self) -> Tensor:
        """``[3, P]`` at (x[i], y[i])."""
        total = ((self.down @ self.best(self.down.mT @ self.across > 0)) * self.across).sum(2)
        return total / (self.down.sum(1) * self.across.sum(1))

    def at_grid(self) -> Tensor:
        """``[3, Y, X]`` at (x[j], y[i])."""
        held = torch.outer(self.down.any(0), self.across.any(0))
        return (
            self.down
            @ self.best(held)
            @ self.across.mT
            / torch.outer(self.down.sum(1), self.across.sum(1))
        )

    def best(self, wanted: Tensor) -> Tensor:
        """``[3, rows, columns]`` of the cells of A that take part; only those ``wanted`` count."""
        rows, columns, _, across = self.part.shape
        score = self.part.new_full((rows, columns), torch.nan, dtype=torch.float64)
        index = torch.zeros_like(score, dtype=torch.long)
        everywhere = self.part.is_cuda  # to choose would wait for the device
        for row in range(rows if self.part[:1].numel() else 0):  # a copy of all would be large
            chosen = slice(None) if everywhere else wanted[row].nonzero()[:, 0]
            matches = self.part[row][chosen].flatten(1)
            index[row, chosen] = best = matches.argmax(1)
            score[row, chosen] = matches.gather(1, best[:, None])[:, 0].double()
        if self.part.numel():
            expect_finite("confidence", score.where(wanted, 0))
        x = index % max(across, 1) + self.kept[3].start - self._indices(1)
        y = index // max(across, 1) + self.kept[2].start - self._indices(0)[:, None]
        found = torch.stack((x * self.jump, y * self.jump, score)).where(wanted, 0)
        return found if self.part[:1, :1].numel() else torch.full_like(found, torch.nan)

    def _indices(self, axis: int) -> Tensor:
        cells = self.kept[axis]
        return torch.arange(cells.start, cells.stop, device=self.part.device)


def _holds(points: Tensor, cells: slice, params: CellParams) -> Tensor:
    """1 where the box of a cell along an axis holds a point, else 0: ``[P, cells]`` float64."""
    at = torch.arange(cells.start, cells.stop, dtype=torch.float64, device=points.device) * params.jump
    return ((points.double()[:, None] - at).abs() <= params.half).double()
