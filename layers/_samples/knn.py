"""Inputs of KNN: normal features, their nearest distances apart, and some that are alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .._engine.checks import Shape
from .._engine.samples import Sample
from ..knn import Params, knn


def samples(size: str, rng: np.random.Generator) -> list[Sample]:
    def sample(
        name: str,
        query: Shape,
        reference: Shape,
        *counts: list[int],
        differentiable: tuple[int, ...] = (0, 1),
        **options: Any,
    ) -> Sample:
        params = Params(**options)
        features = map(torch.from_numpy, _apart(params.k, query, reference, rng))
        numbers = [torch.tensor(count, dtype=torch.float64)[:, None] for count in counts]
        if counts:
            differentiable = ()  # no finite differences of infinity
        return Sample(params, (*features, *numbers), differentiable, name=name)

    def alike(
        name: str,
        query: Shape,
        reference: Shape,
        k: int,
        near: int = 0,
        every: int = 0,
        radius: float = 0.0,
    ) -> Sample:
        """Normal features: so many near each query, each such one the same, in two clusters."""
        q, x = (torch.from_numpy(rng.standard_normal(shape)) for shape in (query, reference))
        if near:
            own = rng.permutation(reference[2])[: near * query[2]]
            x[:, :, own] = 0.1 * x[:, :, own] + q.repeat(1, 1, near)
        if every:
            x[:, :, ::every] = x[:, :, :1]
            q[:, :, ::every] = x[:, :, :1] + 0.01 * q[:, :, ::every]
        if radius:
            q, x = (radius * y - 1e4 for y in (q, x))
            q[:, :, ::2], x[:, :, ::2] = q[:, :, ::2] + 4e4, x[:, :, ::2] + 4e4
        return Sample(Params(k), (q, x), (), name=name)

    if size == "paper":
        return [
            sample("nearest of KITTI", (1, 128, 3000), (1, 128, 88, 250)),
            sample("five of KITTI", (1, 128, 3000), (1, 128, 88, 250), k=5),
        ]
    if size == "large":
        return [sample("dense", (1, 128, 22_000), (1, 128, 88, 250))]
    return [
        sample("nearest", (2, 3, 5), (2, 3, 4, 6)),
        sample("all of them, 1-based", (1, 2, 3), (1, 2, 2, 3), k=6, index_base=1),
        sample("three", (2, 4, 3), (2, 4, 40), k=3),
        sample("one channel", (2, 1, 3), (2, 1, 9), k=2),
        sample("padded", (3, 2, 4), (3, 2, 5), [4, 0, 2], k=2),
        sample("few references", (2, 2, 3), (2, 2, 7), [3, 2], [7, 2], k=3, use_all_ref=False),
        sample("two blocks of queries", (1, 1, 34), (1, 1, 4)),
        sample("two tiles of queries", (1, 2, 129), (1, 2, 3), differentiable=()),
        alike("two slices", (1, 12, 2), (1, 12, 260), k=2, near=8),
        sample("many neighbours", (2, 8, 2), (2, 8, 70), [1, 2], k=34),
        alike("duplicates", (2, 3, 2), (2, 3, 40), k=2, every=2),
        alike("two far clusters", (1, 3, 2), (1, 3, 50), k=2, radius=1e-4),
        sample("counts without use", (1, 2, 3), (1, 2, 7), [1], [2], use_all_query=True),
    ]


def _apart(
    k: int, query: Shape, reference: Shape, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Normal features of which no query's first k + 1 distances are nearly 0 or nearly the same.

    Where there are references enough, each query has k of its own nearby, at different distances.
    """
    n, channels, p = query
    r = int(np.prod(reference[2:]))
    while True:
        q, x = rng.standard_normal(query), rng.standard_normal((n, channels, r))
        if k * p <= r:
            away = rng.standard_normal((n, channels, p, k))
            away *= (0.2 + 0.1 * np.arange(k)) / np.linalg.norm(away, axis=1, keepdims=True)
            own = rng.permutation(r)[: k * p]
            x[:, :, own] = (q[..., None] + away).reshape(n, channels, -1)
        count = min(k + 1, r)
        nearest = knn(torch.from_numpy(q), torch.from_numpy(x), count)[0].numpy()
        gaps = np.diff(nearest, axis=1, prepend=0)
        if not gaps.size or gaps.min() > 0.01:
            return q, x.reshape(reference)
