"""Pairs of views with region proposals on both sides and the true match of each region.

Two views of one photograph, the second under a random homography H, both in changed light: see
``_data/views.py``. Here H turns less than for points: a box has no direction.

Tops: image1, image2 ``[1, C, S, S]`` (S = ``transform_param.crop_size``; channels, mean and scale
as ``transform_param`` says); rois1, rois2 ``[K, 5]``, rows (0, x1, y1, x2, y2) in pixels of the
views, K = ``num_proposals`` or fewer, where a view has no more; truth ``[K, 5]``, for each row of
rois1 (x1, y1, x2, y2, s), its true match in the second view; and, where a sixth top is asked for,
pairs ``[1, P, 5]``, corresponding points as CorrespondencePairs gives them. float32; no gradient.
One pair a call, as SCNet takes them; the solver's ``iter_size`` makes batches.

**The truth** of a region is the box that fits tightly around the region under H, cut at the border of
the second view; s = 1 where at least ``visible`` of the uncut box lies inside, else -1 (and zeros).
Under the identity a region's truth is the region. Boxes as ``_geometry/boxes.py`` has them.

Sample n depends on the seed and on n alone, so that a run can be resumed; with ``num_pairs`` on
n mod num_pairs, and the proposals, which cost the most, are kept in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._data.proposals import random_uniform, randomized_prim, selective_search, sliding_window
from .._data.transform import transform
from .._data.views import Draw, ViewParams, ViewsLayer, draw_pairs, project
from .._engine import parallel
from .._engine.checks import Shape
from .._engine.params import param
from .._engine.registry import register
from .._geometry import boxes


class Proposals(Enum):
    """How regions are proposed: the paper's four ways (section 5.2)."""

    RANDOMIZED_PRIM = 0
    SELECTIVE_SEARCH = 1
    SLIDING_WINDOW = 2
    RANDOM_UNIFORM = 3


@dataclass(frozen=True)
class Params(ViewParams):
    """What a sample holds, beside how its views are made."""

    proposals: Proposals = param(Proposals.RANDOMIZED_PRIM, doc="where regions come from")
    num_proposals: int = param(500, low=1, doc="regions of a view, K")
    num_points: int = param(1000, low=1, doc="rows of the pair table, P")
    num_pairs: int = param(0, low=0, doc="different pairs, which are repeated; 0: no end")
    visible: float = param(0.75, low=0, high=1, doc="least share of a match inside the second view")
    rotation: float = param(10.0, low=0, high=180, unit="degrees", doc="between the views, +-")


def infer(params: Params) -> tuple[Shape, ...]:
    """Shapes of image1, image2, rois1, rois2, truth, pairs."""
    image, table = (1, *params.image_shape), (params.num_proposals, 5)
    return image, image, table, table, table, (1, params.num_points, 5)


def propose(image: np.ndarray, method: Proposals, count: int, seed: int) -> Tensor:
    """Rois ``[K, 5]``, rows (0, x1, y1, x2, y2), of an RGB image [H, W, 3] in uint8."""
    if method is Proposals.RANDOMIZED_PRIM:
        found = randomized_prim(image, count, seed)
    elif method is Proposals.SELECTIVE_SEARCH:
        found = selective_search(image, count, seed)
    elif method is Proposals.SLIDING_WINDOW:
        found = sliding_window(image.shape[:2], count)
    else:
        found = random_uniform(image.shape[:2], count, seed)
    return torch.nn.functional.pad(found, (1, 0))


def truth_under(
    homography: np.ndarray, rois: Tensor, size: tuple[int, int], visible: float = 0.75
) -> Tensor:
    """The true matches ``[K, 5]`` of rois or boxes under a homography, in an image of size (H, W).

    Rows (x1, y1, x2, y2, s), see the module. A region's border runs half a pixel around its pixels'
    centres, and so does its match's.
    """
    outwards = np.array([-0.5, -0.5, 0.5, 0.5])
    x1, y1, x2, y2 = (boxes.corners(rois).double().numpy() + outwards).T
    outline = np.stack([np.stack(xy, 1) for xy in ((x1, y1), (x2, y1), (x2, y2), (x1, y2))], 1)
    outline = project(homography, outline.reshape(-1, 2)).reshape(-1, 4, 2)
    whole = np.concatenate([outline.min(1) + 0.5, outline.max(1) - 0.5], 1)
    last = [size[1] - 1, size[0] - 1]
    seen = np.concatenate([np.maximum(whole[:, :2], 0), np.minimum(whole[:, 2:], last)], 1)
    table = torch.from_numpy(np.concatenate([seen, np.ones((len(seen), 1))], 1))
    share = boxes.area(table[:, :4]) / boxes.area(torch.from_numpy(whole))
    table[share < visible] = torch.tensor([0.0, 0, 0, 0, -1]).double()
    return table.float()


@register("RegionPairs", bottoms=0, tops=(5, 6))
class RegionPairs(ViewsLayer):
    """Random pairs of views of the photographs in ``source``, with regions; see the module."""

    Params = Params
    infer = staticmethod(infer)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.kept: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # by seed and number

    def forward(self) -> tuple[Tensor, ...]:
        (number,), self.position = parallel.share(self.position, 1)
        return self.sample(number)

    def sample(self, number: int) -> tuple[Tensor, ...]:
        """The tops of one sample."""
        params = self.params
        number = number % params.num_pairs if params.num_pairs else number
        draw = Draw(self.seed, number)
        views = self.views(draw)
        images = (views.first, views.second)
        rois1, rois2 = self.rois(number, images, (draw.seed(), draw.seed()))
        side = params.transform_param.crop_size
        truth = truth_under(views.homography, rois1, (side, side), params.visible)
        pairs, _ = draw_pairs(views, params.num_points, draw)
        image1, image2 = (transform(image, params.transform_param)[None] for image in images)
        return image1, image2, rois1, rois2, truth, pairs[None]

    def rois(
        self, number: int, images: tuple[Tensor, Tensor], seeds: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """The proposals of a pair, from memory where they are to come again."""
        key = self.seed, number
        if key in self.kept:
            return self.kept[key]
        method, count = self.params.proposals, self.params.num_proposals
        rois1, rois2 = (
            propose(_picture(image), method, count, seed)
            for image, seed in zip(images, seeds, strict=True)
        )
        if self.params.num_pairs:
            self.kept[key] = rois1, rois2
        return rois1, rois2


def _picture(image: Tensor) -> np.ndarray:
    """A view [3, S, S] as an array [S, S, 3] in uint8."""
    return image.round().to(torch.uint8).permute(1, 2, 0).numpy()
