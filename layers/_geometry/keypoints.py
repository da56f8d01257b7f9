"""Distances of matched points from the truth, and what they are measured in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.float64]


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


def pair_pck(found: Array, truth: Array, length: float, alphas: Sequence[float]) -> Array:
    """The PCK of one pair at each alpha, float64 [A]: the share of key points found at most
    alpha * length from the truth, as benchmarks of semantic correspondence count it.

    found, truth: [K, 2], both in the pixels that length is in; a point that is NaN is not found, and
    counts as wrong. Raises ValueError for other shapes, a truth that is not finite, and K = 0.
    """
    if found.shape != truth.shape or truth.shape[1:] != (2,) or not len(truth):
        shapes = f"{list(found.shape)} and {list(truth.shape)}"
        raise ValueError(f"expected found and true points [K, 2], K at least 1, got {shapes}")
    if not np.isfinite(truth).all():
        raise ValueError("expected true points that are finite")
    distance = np.linalg.norm(found.astype(np.float64) - truth, axis=1)
    return (distance[:, None] <= np.asarray(alphas) * length).mean(0)


@dataclass(frozen=True, eq=False)
class Means:
    """A benchmark's figures over its pairs, float64 [A] each: the mean, its standard error (NaN of one
    pair), and the mean of each class's pairs."""

    pairs: int
    mean: Array
    error: Array
    classes: dict[str, Array]


def means(figures: Array, categories: Sequence[str]) -> Means:
    """The figures of pairs [N, A] and their classes as the benchmark's: every pair counts alike,
    however many key points it has and whatever its class. Raises ValueError for no pair."""
    figures = np.asarray(figures, np.float64)
    if figures.ndim != 2 or len(figures) != len(categories) or not len(figures):
        expected = f"expected figures [N, A] of {len(categories)} pairs, at least one"
        raise ValueError(f"{expected}, got {list(figures.shape)}")
    spread = figures.std(0, ddof=1) if len(figures) > 1 else np.full(figures.shape[1], np.nan)
    of = np.array(categories)
    classes = {name: figures[of == name].mean(0) for name in sorted(set(categories))}
    return Means(len(figures), figures.mean(0), spread / len(figures) ** 0.5, classes)
