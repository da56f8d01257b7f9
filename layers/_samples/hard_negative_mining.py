"""Inputs of HardNegativeMining: random pairs, of which about half have the right neighbour."""

from __future__ import annotations

import numpy as np
import torch

from .._engine.samples import Sample
from ..hard_negative_mining import Mode, Params


def samples(size: str, rng: np.random.Generator) -> list[Sample]:
    def sample(n: int, p: int, shape: tuple[int, int], mode: Mode, **options: float) -> Sample:
        params = Params(mode, seed=0, **options)  # type: ignore[arg-type]
        extent = params.downsampling_factor * np.array((shape[1], shape[0]) * 2)
        s = rng.choice([1.0, 0.0, -1.0], (n, p, 1), p=(0.8, 0.1, 0.1))
        pairs = np.concatenate((rng.uniform(0, 1, (n, p, 4)) * extent, s), axis=2)
        cell = np.round(pairs[..., 2:4] / params.downsampling_factor).astype(int)
        cell = np.minimum(cell, np.array(shape[::-1]) - 1) @ (1, shape[1])
        wrong = rng.integers(0, shape[0] * shape[1], cell.shape)
        index = np.where(rng.random(cell.shape) < 0.5, cell, wrong)[:, None] + params.index_base
        counts = np.maximum(p - 2 * np.arange(n), 0)[:, None]
        bottoms = (pairs, index, np.zeros((n, 1, *shape)), counts)
        return Sample(params, tuple(map(torch.from_numpy, bottoms)), (), (), name=mode.name)

    if size == "paper":
        return [sample(2, 3000, (95, 311), Mode.HARD_NEG_AND_RAND_NEG_AND_POS)]
    if size == "large":
        return [sample(2, 100_000, (95, 311), Mode.HARD_NEG_AND_RAND_NEG_AND_POS)]
    plain = [sample(3, 7, (6, 8), mode) for mode in Mode]
    return [
        *plain,
        sample(2, 9, (20, 30), Mode.HARD_NEG_RETAIN_POS, index_base=1, coordinate_offset=4),
        sample(1, 5, (40, 40), Mode.HARD_NEG_AND_POS, pixel_threshold=0.5, downsampling_factor=0.5),
    ]
