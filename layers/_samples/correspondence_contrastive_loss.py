"""Inputs of CorrespondenceContrastiveLoss: unit features, and pairs in and around the maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .._engine.checks import Shape
from .._engine.params import Gradient
from .._engine.samples import Sample
from ..correspondence_contrastive_loss import Form, Params, forward


def samples(size: str, rng: np.random.Generator) -> list[Sample]:
    if size == "paper":
        return [_sample(rng, "KITTI, 3k pairs", (2, 128, 95, 311), 3000)]
    if size == "large":
        return [_sample(rng, "KITTI, 100k pairs", (2, 128, 95, 311), 100_000)]
    plain, published = Form.PLAIN_HINGE, Gradient.published
    return [
        _sample(rng, "bilinear", (2, 3, 4, 5), 8),
        _sample(rng, "plain hinge, shifted", (2, 3, 4, 5), 8, coordinate_offset=4.0, form=plain),
        _sample(rng, "nearest", (2, 2, 3, 4), 8, bilinear_interpolation=False),
        _sample(rng, "1e-8 on d", (1, 3, 4, 3), 8, downsampling_factor=2.0, grad=published),
        _sample(rng, "one cell", (2, 3, 1, 1), 3),
        _sample(rng, "few pairs", (2, 32, 4, 8), 5, checked=False),
        _sample(rng, "few pairs, nearest", (1, 2, 5, 8), 3, bilinear_interpolation=False),
        _sample(rng, "published", (2, 3, 4, 5), 8, form=plain, grad=published, checked=False),
        _sample(rng, "integers", (2, 2, 4, 5), 6, whole=True),
        _sample(rng, "several tiles", (2, 33, 5, 7), 34, checked=False),
    ]


def _sample(
    rng: np.random.Generator,
    name: str,
    shape: Shape,
    points: int,
    *,
    whole: bool = False,
    checked: bool = True,
    **options: Any,
) -> Sample:
    """Unit features and pairs around the border; the margin lies in a gap between the distances."""
    values = rng.standard_normal((2, *shape))
    maps = torch.from_numpy(values / np.linalg.norm(values, axis=2, keepdims=True))
    factor = options.get("downsampling_factor", 4.0)
    extent = factor * np.array([shape[3], shape[2]] * 2)
    xy = rng.uniform(-0.1, 1.1, (shape[0], points, 4)) * extent
    s = np.resize([1, 0, 0, -1], (shape[0], points, 1))
    pairs = torch.from_numpy(np.concatenate((xy, s), axis=2))
    pairs = pairs.int() if whole else pairs
    *_, distance = forward(Params(**options), maps[0], maps[1], pairs)
    middle = distance[pairs[..., 4] == 0].sort().values
    middle = middle[len(middle) // 4 : 3 * len(middle) // 4 + 2]
    widest = int(middle.diff().argmax())
    margin = float(middle[widest : widest + 2].mean())
    if options.get("form") is Form.PLAIN_HINGE:
        margin = margin**2
    params, bottoms = Params(margin=margin, **options), (maps[0], maps[1], pairs)
    return Sample(params, bottoms, differentiable=(0, 1), name=name, check_gradient=checked)
