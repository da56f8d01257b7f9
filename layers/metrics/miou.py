"""mIoU@k: how well the k most certain region matches overlap the truth.

SCNet's measure (section 5.1): each region with a true match takes its best-scoring region of the
second image; mIoU@k is the mean IoU with the true box of the k rows that score highest, k = 1, 2,
... (of all rows, where there are fewer than k). Of equal scores the first is taken.

Bottoms: scores ``[P, S]``; rois_b ``[S, 5]`` rows (batch, x1, y1, x2, y2) of the second image's
regions (or ``[S, 4]`` without batch); truth ``[P, 5]`` rows (x1, y1, x2, y2, s), the box that
matches each region of the first image where s = 1; other rows don't count (in
``[P, 4]`` all do). Boxes as
``_geometry/boxes.py`` has them. Top: ``[largest_k]`` in float32, element k - 1 for k; 0 where
nothing counts. One pair of images; a test averages over pairs. No gradient.
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
    """How far the curve goes."""

    largest_k: int = param(100, low=1, doc="k = 1, ..., largest_k")


def infer(params: Params, scores: Shape, rois_b: Shape, truth: Shape) -> tuple[Shape, ...]:
    """Shape of the top; raises BlobError."""
    expect_matches(scores, rois_b, truth)
    return ((params.largest_k,),)


def mean_of_best(overlap: torch.Tensor, score: torch.Tensor, largest_k: int = 100) -> torch.Tensor:
    """The mean of the overlaps ``[R]`` of the k highest scores ``[R]``, k = 1..largest_k, float32."""
    order = score.argsort(descending=True, stable=True)[:largest_k]
    if not len(order):
        return overlap.new_zeros(largest_k, dtype=torch.float32)
    rows = torch.arange(1, len(order) + 1, device=overlap.device)
    mean = overlap[order].double().cumsum(0) / rows
    return torch.cat([mean, mean[-1:].expand(largest_k - len(mean))]).float()


@torch.no_grad()
def miou(
    scores: torch.Tensor, rois_b: torch.Tensor, truth: torch.Tensor, largest_k: int = 100
) -> torch.Tensor:
    """mIoU@k ``[largest_k]`` of a pair of images; see the module. Raises BlobError, ValueError."""
    infer(Params(largest_k), tuple(scores.shape), tuple(rois_b.shape), tuple(truth.shape))
    return mean_of_best(*matched_overlaps(scores, rois_b, truth), largest_k)


@register("MIoU", bottoms=3, block="miou_param")
class MIoU(Layer):
    """The mean overlap of the most certain region matches; see the module."""

    Params = Params
    BOTTOMS = (Bottom("scores"), Bottom("rois_b", role=Role.TABLE), Bottom("truth", role=Role.TABLE))
    TRAITS = (Trait.METRIC,)
    infer = staticmethod(infer)

    def forward(self, scores: torch.Tensor, rois_b: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return miou(scores, rois_b, truth, self.params.largest_k)
