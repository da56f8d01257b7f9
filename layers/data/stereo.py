"""Stereo pairs with true disparity: the Middlebury Motorcycle pair that scikit-image ships.

The match of left (x, y) is right (x - d, y); an unknown disparity is infinite. Points are (x, y) in
pixels, 0-based, pixel centres at integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class StereoPair:
    """Two images [H, W, 3] in uint8 and their correspondences [P, 4], rows (x1, y1, x2, y2)."""

    left: np.ndarray
    right: np.ndarray
    pairs: np.ndarray

    def warped(self, homography: np.ndarray) -> StereoPair:
        """The pair with its right image warped by a homography (right pixels -> new pixels), black
        where it shows nothing; correspondences that leave the frame are dropped."""
        from skimage.transform import ProjectiveTransform, warp

        height, width = self.right.shape[:2]
        inverse = ProjectiveTransform(np.linalg.inv(homography))
        moved = warp(self.right, inverse, order=1, preserve_range=True)
        target = ProjectiveTransform(homography)(self.pairs[:, 2:])
        inside = ((target >= 0) & (target <= [width - 1, height - 1])).all(1)
        pairs = np.c_[self.pairs[:, :2], target][inside]
        return StereoPair(self.left, np.rint(moved).astype(np.uint8), pairs)

    def truth(self, boxes: np.ndarray, known: float = 0.5) -> np.ndarray:
        """The true matches [K, 5] of boxes [K, 4] in the left image: rows (x1, y1, x2, y2, s).

        A match is the box moved by the median displacement of its pixels whose match is known, cut
        at the right image's border; s = 1 where those are at least the share ``known`` of the
        box's pixels, else -1 (and zeros). x2 and y2 are inside; boxes are rounded to pixels.
        """
        height, width = self.left.shape[:2]
        moved = np.full((height, width, 2), np.nan)
        x, y = np.rint(self.pairs[:, :2]).astype(int).T
        moved[y, x] = self.pairs[:, 2:] - self.pairs[:, :2]
        last = np.array([self.right.shape[1] - 1, self.right.shape[0] - 1] * 2)
        table = np.tile([0.0, 0, 0, 0, -1], (len(boxes), 1))
        for row, box in zip(table, np.rint(boxes).astype(int), strict=True):
            x1, y1, x2, y2 = box
            inside = moved[max(y1, 0) : y2 + 1, max(x1, 0) : x2 + 1].reshape(-1, 2)
            inside = inside[~np.isnan(inside[:, 0])]
            if len(inside) and len(inside) >= known * (x2 - x1 + 1) * (y2 - y1 + 1):
                row[:4] = np.clip(box + np.tile(np.median(inside, 0), 2), 0, last)
                row[4] = 1
        return table


def motorcycle() -> StereoPair:
    """The Motorcycle pair, with every left pixel whose match is known and visible in the right."""
    import skimage.data

    left, right, disparity = skimage.data.stereo_motorcycle()
    y, x = np.nonzero(visible(disparity))
    pairs = np.c_[x, y, x - disparity[y, x], y].astype(float)
    return StereoPair(left, right, pairs)


def visible(disparity: np.ndarray) -> np.ndarray:
    """Which left pixels [H, W] have a match inside the right image that no nearer surface hides.

    A left pixel is hidden when another one of its row, whose disparity is larger by more than 1,
    lands within 1 pixel of the same right pixel.
    """
    height, width = disparity.shape
    seen = np.zeros((height, width), bool)
    for y in range(height):
        x = np.flatnonzero(np.isfinite(disparity[y]))
        d = disparity[y, x]
        landing = x - d
        same = np.abs(landing[:, None] - landing) <= 1
        hidden = (same & (d > d[:, None] + 1)).any(1)
        seen[y, x] = ~hidden & (landing >= 0) & (landing <= width - 1)
    return seen


def rotation_about_centre(
    degrees: float, size: tuple[int, int], perspective: float = 0.0
) -> np.ndarray:
    """A homography that turns an image of size (H, W) about its centre, from x towards y.

    ``perspective`` is the change of depth from the centre to the right border.
    """
    height, width = size
    centre = np.array([[1, 0, (width - 1) / 2], [0, 1, (height - 1) / 2], [0, 0, 1]])
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [perspective / (width / 2), 0, 1]])
    return centre @ turn @ np.linalg.inv(centre)
