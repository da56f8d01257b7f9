"""Distances of matched points from the truth, and what they are measured in."""

from __future__ import annotations

from enum import Enum

import torch


class Length(Enum):
    """What a threshold is a multiple of."""

    PIXEL = "PIXEL"
    LONGER_SIDE = "LONGER_SIDE"
    DIAGONAL = "DIAGONAL"

    def of(self, height: int, width: int) -> float:
        """L in pixels for an image of this size."""
        if self is Length.PIXEL:
            return 1.0
        return float(
            max(height, width) if self is Length.LONGER_SIDE else (height**2 + width**2) ** 0.5
        )


def share_within(
    distance: torch.Tensor, counts: torch.Tensor, threshold: tuple[float, ...]
) -> torch.Tensor:
    """Share of distances at most each threshold.

    distance: any shape, in the thresholds' unit; counts: same shape, bool, which of them count.
    Returns ``[T]`` in float32; 0 where nothing counts.
    """
    limits = torch.tensor(threshold, dtype=distance.dtype, device=distance.device)
    right = (distance[..., None] <= limits) & counts[..., None]
    return right.flatten(0, -2).sum(0) / counts.sum().clamp(min=1).float()
