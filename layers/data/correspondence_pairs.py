"""Pairs of views with true correspondences, made from photographs by random homographies.

Two views of one photograph, the second under a random homography, both in changed light: see
``_data/views.py``.

Tops: image1, image2 ``[N, C, S, S]`` (S = ``transform_param.crop_size``; channels, mean and
scale as ``transform_param`` says), pairs ``[N, P, 5]`` with rows (x1, y1, x2, y2, s) in pixels of
the views, s = 1 for a correspondence and -1 for padding (all zero), and num_pairs ``[N, 1]``, the
correspondences before the padding. No gradient.

Sample n depends on the seed and on n alone, so that a run can be resumed or split.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._data.transform import transform
from .._data.views import Draw, ViewParams, ViewsLayer, draw_pairs
from .._engine import parallel
from .._engine.checks import Shape
from .._engine.params import param
from .._engine.registry import register


@dataclass(frozen=True)
class Params(ViewParams):
    """What a batch holds, beside how its views are made."""

    batch_size: int = param(1, low=1, doc="pairs a batch, N")
    num_points: int = param(1000, low=1, doc="rows of the pair table, P")


def infer(params: Params) -> tuple[Shape, ...]:
    """Shapes of image1, image2, pairs, num_pairs."""
    n = params.batch_size
    image = (n, *params.image_shape)
    return image, image, (n, params.num_points, 5), (n, 1)


@register("CorrespondencePairs", bottoms=0, tops=4)
class CorrespondencePairs(ViewsLayer):
    """Random pairs of views of the photographs in ``source``; see the module."""

    Params = Params
    infer = staticmethod(infer)

    def forward(self) -> tuple[Tensor, ...]:
        numbers, self.position = parallel.share(self.position, self.params.batch_size)
        samples = [self.sample(number) for number in numbers]
        first, second, pairs, count = zip(*samples, strict=True)
        image1 = transform(torch.stack(first), self.params.transform_param)
        image2 = transform(torch.stack(second), self.params.transform_param)
        num_pairs = torch.tensor(count, dtype=torch.float32)[:, None]
        return image1, image2, torch.stack(pairs), num_pairs

    def sample(self, number: int) -> tuple[Tensor, Tensor, Tensor, int]:
        """Views [3, S, S] in 0..255, pair table and number of pairs of one sample."""
        draw = Draw(self.seed, number)
        views = self.views(draw)
        table, count = draw_pairs(views, self.params.num_points, draw)
        return views.first, views.second, table, count
