"""Whether a pair's known matches fit its images, and its motion the matches."""

from __future__ import annotations

import numpy as np
from cortado.layers._data.images import read_image
from cortado.layers._data.keypoint_pairs import KeypointPair
from scipy.ndimage import map_coordinates

SHIFTS = ((-2, 0), (2, 0), (0, -2), (0, 2))


def likeness(pair: KeypointPair, dx: float = 0, dy: float = 0) -> float:
    """The correlation of image 1's greys at its points, whole pixels, with image 2's at theirs, moved
    by (dx, dy)."""
    one, two = (read_image(path).mean(2) for path in (pair.image1, pair.image2))
    x, y = pair.points1.astype(int).T
    x2, y2 = pair.points2.T
    there = map_coordinates(two, [y2 + dy, x2 + dx], order=1, mode="nearest")
    return float(np.corrcoef(one[y, x], there)[0, 1])


def off_the_epipolar_lines(pair: KeypointPair) -> float:
    """The largest distance, in pixels, of a point of image 2 from its epipolar line by the motion."""
    motion = pair.motion
    assert motion is not None
    x, y, z = motion.translation
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    fundamental = np.linalg.inv(motion.camera2).T @ cross @ motion.rotation
    fundamental = fundamental @ np.linalg.inv(motion.camera1)
    lines = np.c_[pair.points1, np.ones(len(pair.points1))] @ fundamental.T
    points = np.c_[pair.points2, np.ones(len(pair.points2))]
    return float(np.abs((lines * points).sum(1) / np.hypot(lines[:, 0], lines[:, 1])).max())


def depths(pair: KeypointPair) -> np.ndarray:
    """How far in front of the first camera the points [K] lie, by the matches and a motion along x, in
    its unit."""
    motion = pair.motion
    assert motion is not None
    x1, x2 = pair.points1[:, 0], pair.points2[:, 0]
    (f1, c1), (f2, c2) = ((each[0, 0], each[0, 2]) for each in (motion.camera1, motion.camera2))
    return motion.translation[0] / ((x2 - c2) / f2 - (x1 - c1) / f1)
