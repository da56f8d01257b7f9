"""PCR, the probability of correct regions: region matches that overlap the truth enough.

SCNet's measure (section 5.1): each region with a true match takes its best-scoring region of the
second image; it is correct below tau when 1 - IoU of that with the true box is less than tau, for
tau = 0, 1/steps, ..., 1. Of regions that score the same the first is taken.

Bottoms: scores ``[P, S]``; rois_b ``[S, 5]`` rows (batch, x1, y1, x2, y2) of the second image's
regions (or ``[S, 4]`` without batch); truth ``[P, 5]`` rows (x1, y1, x2, y2, s), the box that
matches each region of the first image where s = 1; other rows don't count (in
``[P, 4]`` all do). Boxes as
``_geometry/boxes.py`` has them. Tops: the curve ``[steps + 1]``, shares in 0..1, and, where a
second top is asked for, the area under it (trapezoids) ``[1]``, in float32; 0 where nothing counts.
One pair of images; a test averages over pairs. No gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .._engine.checks import Shape
from .._engine.declared import Bottom, Role, Trait
from .._engine.layer import Layer
from .._engine.params import param
from .._engine.registry import register
from .._geometry.regions import expect_matches, matched_overlaps


@dataclass(frozen=True)
class Params:
    """Thresholds."""

    steps: int = param(100, low=1, doc="tau = 0, 1/steps, ..., 1")


def infer(params: Params, scores: Shape, rois_b: Shape, truth: Shape) -> tuple[Shape, ...]:
    """Shapes of the curve and the area; raises BlobError."""
    expect_matches(scores, rois_b, truth)
    return (params.steps + 1,), (1,)


def curve(overlap: torch.Tensor, steps: int = 100) -> torch.Tensor:
    """The share ``[steps + 1]`` of overlaps ``[R]`` whose 1 - IoU is less than each tau, float32."""
    # IoU > 1 - tau, since that difference is exact and 1 - IoU is rounded
    least = torch.arange(steps, -1, -1, dtype=torch.float64, device=overlap.device) / steps
    right = overlap.double()[:, None] > least
    return right.sum(0) / max(len(overlap), 1)


def area(curve: torch.Tensor) -> torch.Tensor:
    """The area ``[1]`` under a curve over 0..1, by trapezoids."""
    return ((curve[1:] + curve[:-1]) / 2).mean().reshape(1)


@torch.no_grad()
def pcr(
    scores: torch.Tensor, rois_b: torch.Tensor, truth: torch.Tensor, steps: int = 100
) -> torch.Tensor:
    """The curve ``[steps + 1]`` of a pair of images; see the module. Raises BlobError, ValueError."""
    infer(Params(steps), tuple(scores.shape), tuple(rois_b.shape), tuple(truth.shape))
    overlap, _ = matched_overlaps(scores, rois_b, truth)
    return curve(overlap, steps)


@register("PCR", bottoms=3, tops=(1, 2))
class PCR(Layer):
    """The share of region matches that overlap the truth, and its area; see the module."""

    Params = Params
    BOTTOMS = (Bottom("scores"), Bottom("rois_b", role=Role.TABLE), Bottom("truth", role=Role.TABLE))
    TRAITS = (Trait.METRIC,)
    infer = staticmethod(infer)

    def forward(
        self, scores: torch.Tensor, rois_b: torch.Tensor, truth: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        shares = pcr(scores, rois_b, truth, self.params.steps)
        return shares, area(shares)
