"""The layers without a spec: ``import cortado.functional as CF; CF.channel_l2_norm(x)``.

Names are resolved on first use: each comes from the layer file of the same name.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

__all__ = [
    "channel_l2_norm",
    "convolutional_spatial_transformer",
    "correspondence_contrastive_loss",
    "extract_feature",
    "hard_negative_mining",
    "hough_voting",
    "hyperpixel_correlation",
    "hyperpixel_flow",
    "keypoint_transfer",
    "knn",
    "rectified_cosine",
    "region_flow",
    "region_hinge_loss",
    "region_pair_sampling",
    "regularized_hough_matching",
    "roi_pooling",
]


def __getattr__(name: str) -> Callable[..., Any]:
    if name not in __all__:
        raise AttributeError(f"module 'cortado.functional' has no function {name!r}")
    function: Callable[..., Any] = getattr(importlib.import_module(f"cortado.layers.{name}"), name)
    return function


def __dir__() -> list[str]:
    return list(__all__)
