"""Inputs of HoughVoting: boxes of whole pixels, some alike, and scores around the threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .._engine.params import Gradient
from .._engine.samples import Sample
from .._offset_bins import bins, frames, inside
from ..hough_voting import Output, Params, Rule


def samples(size: str, rng: np.random.Generator) -> list[Sample]:
    photo = (375, 500), (333, 500)
    if size == "paper":
        return [_sample(rng, "1000 x 1000 regions", 1000, 1000, *photo)]
    if size == "large":
        return [_sample(rng, "2000 x 2000 regions", 2000, 2000, *photo)]
    coarse: dict[str, Any] = {"cells": 200.0, "scale_bins": 6}
    released: dict[str, Any] = {**coarse, "rule": Rule.RELEASED}
    published = {**released, "grad": Gradient.published}
    pieces: dict[str, Any] = {"bins_per_cell": 0.7, "scale_bins": 1, "scale_range": 1.0}
    # 31 x 33 bins of a plane, whose middle one is the first of the second tile
    fine: dict[str, Any] = {"bins_per_cell": 1.6, "scale_bins": 2}
    small = (40, 60), (52, 48)
    return [
        _sample(rng, "Eq. 9", 6, 7, *small, **coarse),
        _sample(rng, "Eq. 12", 5, 6, *small, second=True, whole=True, **coarse),
        _sample(rng, "votes alone", 6, 5, *small, output=Output.VOTES, **coarse),
        _sample(rng, "released", 8, 7, *small, **released),
        _sample(rng, "released, two", 7, 5, *small, second=True, **released),
        _sample(rng, "the bins of the paper", 9, 8, (64, 80), (80, 64)),
        _sample(rng, "one bin", 5, 9, *small, cells=1.0, least_cell=1e3, scale_bins=1),
        _sample(rng, "tiles of a plane", 24, 30, *small, check=False, **fine),
        _sample(rng, "published", 7, 8, *small, **published),
        _sample(rng, "published, a first bin", 9, 10, *small, alone=0, **published),
        _sample(rng, "published, another", 9, 10, *small, alone=3, **published),
        _sample(rng, "several blocks", 37, 64, *small, second=True, check=False, rule=Rule.RELEASED),
        _sample(rng, "pieces of rows", 75, 41, *small, check=False, **pieces),
    ]


def _sample(
    rng: np.random.Generator,
    name: str,
    p: int,
    s: int,
    size_a: tuple[int, int],
    size_b: tuple[int, int],
    second: bool = False,
    whole: bool = False,
    check: bool = True,
    alone: int | None = None,
    **options: Any,
) -> Sample:
    """Boxes of whole pixels, B's half of them like A's; scores off the threshold if they are checked.

    ``whole``: tables of integers, B's without the batch column. ``alone``: of the matches with a score
    that of this box with its like is alone in the lowest bin.
    """
    params = Params(**options)
    check = check and params.grad is Gradient.exact
    rois_a, rois_b = _tables(rng, p, s, size_a, size_b)
    levels = rng.uniform(0.05, 0.35, (2, p, s)) + 0.4 * (rng.random((2, p, s)) < 0.5)
    if not check:
        levels[:, 1] = params.threshold
    tables = torch.from_numpy(rois_a), torch.from_numpy(rois_b)
    f, f_g = torch.from_numpy(levels)
    if alone is not None:
        grid = params.grid(*size_b)
        found = frames(*tables, size_a, size_b, grid, params.scale_range)
        at = bins(*found, grid, params.max_aspect_ratio)
        f[(at <= at[alone, alone]) | (inside(torch.ones(grid.shape)).view(-1)[at] == 0)] = 0
        f[alone, alone] = 0.7
    if whole:
        tables = tables[0].int(), tables[1][:, 1:].int()
    images = [torch.zeros(1, 1, *size, dtype=torch.float64) for size in (size_a, size_b)]
    bottoms = (f, *tables, *images, *((f_g,) if second else ()))
    return Sample(params, bottoms, (0, 5) if second else (0,), name=name, check_gradient=check)


def _tables(
    rng: np.random.Generator, p: int, s: int, size_a: tuple[int, int], size_b: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Rois ``[p, 5]``, ``[s, 5]``: some alike, some of twice the other's aspect, some of B's outside of
    the image and A's last without area."""
    rois_a, rois_b = _rois(rng, p, size_a), _rois(rng, s, size_b)
    rois_a[1:3, 1:] = (32, 20, 48, 36), (20, 20, 52, 36)
    alike = min(p, s) // 2
    limit = np.array((size_b[1], size_b[0]) * 2) - 1
    rois_b[:alike, 1:] = np.minimum(rois_a[:alike, 1:] + rng.integers(0, 3, (alike, 1)), limit)
    rois_b[-4:, 1:] = (4, 8, 36, 24), (8, 8, 40, 40), (-30, 8, -8, 36), (8, -30, 36, -8)
    rois_a[-1, 4] = rois_a[-1, 2]
    return rois_a, rois_b


def _rois(rng: np.random.Generator, count: int, size: tuple[int, int]) -> np.ndarray:
    """Boxes of a quarter of the image and larger, (0, x1, y1, x2, y2)."""
    extent = np.array((size[1], size[0]))
    length = np.floor(rng.uniform(0.25, 0.9, (count, 2)) * extent)
    corner = np.floor(rng.random((count, 2)) * (extent - length))
    return np.concatenate((np.zeros((count, 1)), corner, corner + length - 1), axis=1)
