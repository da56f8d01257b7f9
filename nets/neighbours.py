"""Nearest neighbours among features at image points, and the two tests of whether to believe them.

What features come from does not matter: a net's map or descriptors made by hand. Both tests know where
in the image the features lie. Among dense candidates the second nearest is mostly the nearest's own
neighbour, and the match back is often the cell beside, so that neither is asked for by its number.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from cortado.layers.knn import knn, there_and_back
from torch import Tensor

ELEMENTS = 2**21  # of a table of queries by candidates


class Described(NamedTuple):
    """Points of an image, float64 [R, 2], (x, y) in pixels, and the features there [R, C]."""

    points: Tensor
    features: Tensor


class Nearest(NamedTuple):
    """Of each query its nearest candidate, int64 [P], and how far it is in feature space [P]."""

    row: Tensor
    distance: Tensor


def nearest(query: Tensor, candidates: Tensor) -> Nearest:
    """The nearest of the candidates' features [R, C] to each query [P, C], by Euclidean distance.

    Of equal ones it is the first. Queries and candidates are compared in parts, so that of the P x R
    distances there is never more than a part. Raises :class:`BlobError` where there is no candidate,
    or channels differ.
    """
    distance, index = knn(query.T[None], candidates.T[None])
    return Nearest(index[0, 0], distance[0, 0])


def runner_up(query: Tensor, candidates: Described, best: Tensor, apart: float) -> Tensor:
    """The distance [P] of the nearest candidate that lies more than ``apart`` pixels from the ``best``
    one, int64 [P]; infinity where there is none. It is the second distance of a ratio test.

    All the best one's neighbours are nearer, so that it is not looked for among the nearest few, but in
    a matrix product of some queries with all candidates. Of candidates that are as near as a rounding
    of the product any may be it. One that is not finite is none.
    """
    points, features = candidates
    finite = features.isfinite().all(1)
    centre = features[finite].mean(0)
    second = query.new_full((len(query),), torch.inf)
    if not finite.any():
        return second
    rows = (features - centre).masked_fill(~finite[:, None], 0)
    squares = rows.square().sum(1).masked_fill(~finite, torch.inf)
    x, y = points.float().T
    for part in torch.arange(len(query), device=query.device).split(max(1, ELEMENTS // len(rows))):
        near = (x - x[best[part], None]).square_() + (y - y[best[part], None]).square_() <= apart**2
        away = torch.addmm(squares, query[part] - centre, rows.T, alpha=-2)
        away.masked_fill_(near, torch.inf)
        least, place = away.min(1)
        distance = torch.linalg.vector_norm(query[part].double() - features[place], dim=1)
        second[part] = distance.to(second.dtype).where(least < torch.inf, torch.inf)
    return second


def returns(
    points: Tensor, matched: Tensor, candidates: Tensor, own: Described, within: float
) -> Tensor:
    """Whether the match of each point [P, 2] leads back, bool [P].

    matched: which of the candidates of image 2, int64 [P]; candidates: their features [R, C]; own: the
    candidates of image 1. It does where of these the one nearest to the match is at most ``within``
    pixels from the point.
    """
    some, place = matched.unique(return_inverse=True)
    back = nearest(candidates[some], own.features).row[place]
    return torch.linalg.vector_norm(own.points[back] - points, dim=1) <= within


def mutual(own: Described, candidates: Tensor, within: float) -> tuple[Nearest, Tensor]:
    """What :func:`nearest` gives for all the candidates of image 1, and :func:`returns` for them, bool
    [P], in less time unless they are very many: of one comparison of all with all."""
    distance, row, back = there_and_back(own.features, candidates)
    home = torch.linalg.vector_norm(own.points[back] - own.points, dim=1) <= within
    return Nearest(row, distance), home


def unit(features: Tensor) -> Tensor:
    """Features [R, C] of unit length; a zero vector stays one."""
    return torch.nn.functional.normalize(features, dim=1)
