"""Pairs of a benchmark of semantic correspondence: PF-WILLOW, PF-PASCAL, SPair-71k and others.

``source`` is the data set and its folder, such as ``pf-willow:DIR`` or ``cub-200-2011:DIR``; what it
holds the readers say, ``pf_willow.py`` and so on. CorrespondenceFiles draws from pairs of many matches.

Tops: image1, image2 ``[1, C, h, w]``, each of its own size (channels, mean and scale as
``transform_param`` says; a longer side of more than ``longer_side`` pixels is resized to that); pairs
``[1, K, 5]``, rows (x1, y1, x2, y2, s) in pixels of the images given, s = 1; and, where a fourth top is
asked for, length ``[1]``, PCK's unit T in pixels of image2 as given, by the benchmark's own rule.
float32; no gradient. Of Caltech-101 the rows are the vertices of image 1's outline, whose matches are
not known: (x1, y1, 0, 0, -1), and T is 0.

The pairs come in the order of their list, round and round, one a call; a run can be resumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._data.batches import BatchLayer
from .._data.images import image_size, read_image
from .._data.keypoint_pairs import ImagePair, KeypointPair, as_options, open_pairs
from .._data.transform import TransformParams, limited, limited_size, transform
from .._engine import parallel
from .._engine.checks import Shape
from .._engine.params import param
from .._engine.registry import register


@dataclass(frozen=True)
class Params:
    """``keypoint_pairs_param``, and the ``transform_param`` beside it."""

    source: str = param(doc="the data set and its folder, such as pf-willow:DIR")
    split: str = param("", doc="test, or where the data set has them trn, val; empty: its own choice")
    length: str = param("", doc="what T is, of PF-PASCAL: img or bbox; empty: as published")
    layout: str = param("", doc="of SPair-71k: large or small; empty: large")
    option: tuple[str, ...] = param((), doc="NAME=VALUE, which the data set's reader is given")
    longer_side: int = param(0, low=0, unit="pixels", doc="most of an image's longer side; 0: any")
    transform_param: TransformParams = param(
        factory=TransformParams, doc="how images are made of what is read"
    )

    def __post_init__(self) -> None:
        if self.transform_param.crop_size or self.transform_param.mirror:
            raise ValueError("crop_size and mirror are not for annotated pairs")


@register("KeypointPairs", bottoms=0, tops=(3, 4))
class KeypointPairs(BatchLayer):
    """The pairs of ``source``, with their key points; see the module."""

    Params = Params

    def __init__(
        self,
        params: Any,
        bottom_shapes: tuple[Shape, ...] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(params, bottom_shapes, generator)
        options = {"length": params.length, "layout": params.layout}
        given = as_options(params.option) | {key: value for key, value in options.items() if value}
        self.pairs = open_pairs(params.source, params.split, **given)

    def infer(self, params: Any) -> tuple[Shape, ...]:
        """The tops' shapes, which the first pair decides; raises ValueError if it cannot be read."""
        pair = self.pairs[0]
        sizes = (
            limited_size(*image_size(path, f'image "{path}"'), params.longer_side)
            for path in (pair.image1, pair.image2)
        )
        image1, image2 = ((1, params.transform_param.channels, *size) for size in sizes)
        return image1, image2, (1, len(pair.points1), 5), (1,)

    def forward(self) -> tuple[Tensor, ...]:
        (number,), self.position = parallel.share(self.position, 1)
        return self.sample(self.pairs[number % len(self.pairs)])

    def sample(self, pair: ImagePair) -> tuple[Tensor, ...]:
        """The tops of one pair."""
        (image1, ratio1), (image2, ratio2) = map(self._image, (pair.image1, pair.image2))
        table = np.zeros((len(pair.points1), 5))
        table[:, :2] = pair.points1 * ratio1
        table[:, 4] = -1
        length = 0.0
        if isinstance(pair, KeypointPair):
            table[:, 2:4] = pair.points2 * ratio2
            table[:, 4] = 1
            length = pair.length * ratio2
        return image1, image2, torch.from_numpy(table).float()[None], torch.tensor([length])

    def _image(self, path: Path) -> tuple[Tensor, float]:
        """An image [1, C, h, w] as the net is given it, and the ratio its points scale by."""
        rgb = torch.from_numpy(read_image(path, True, f'image "{path}"').transpose(2, 0, 1).copy())
        image, ratio = limited(transform(rgb, self.params.transform_param), self.params.longer_side)
        return image[None], ratio
