"""The cells of a map over an image by their definition, one at a time: what layers are held against."""

from __future__ import annotations


def takes_part(row, column, size, params):
    """Whether a cell's box lies near enough to an image of (height, width)."""
    if params.margin is None:
        return True
    half, m = params.receptive_field // 2, params.margin
    (height, width), x, y = size, column * params.jump, row * params.jump
    return x - half >= -m and y - half >= -m and x + half < width + m and y + half < height + m
