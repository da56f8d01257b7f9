"""The cells of a map over an image by their definition, one at a time: what layers are held against."""

from __future__ import annotations

import math

import numpy as np


def takes_part(row, column, size, params):
    """Whether a cell's box lies near enough to an image of (height, width)."""
    if params.margin is None:
        return True
    half, m = params.receptive_field // 2, params.margin
    (height, width), x, y = size, column * params.jump, row * params.jump
    return x - half >= -m and y - half >= -m and x + half < width + m and y + half < height + m


def step_of(confidence, point, params, size_a, size_b):
    """(dx, dy, confidence) of a point, by a look at every cell of A and of B."""
    found = []
    for r, c in np.ndindex(confidence.shape[:2]):
        x, y = c * params.jump, r * params.jump
        half = params.receptive_field // 2
        inside = x - half <= point[0] <= x + half and y - half <= point[1] <= y + half
        if not inside or not takes_part(r, c, size_a, params):
            continue
        best = None
        for i, j in np.ndindex(confidence.shape[2:]):
            score = confidence[r, c, i, j]
            if takes_part(i, j, size_b, params) and (best is None or score > best[2]):
                best = j * params.jump - x, i * params.jump - y, score
        if best is None:
            return [math.nan] * 3
        found.append(best)
    return np.mean(found, 0) if found else [math.nan] * 3
