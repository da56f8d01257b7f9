"""How a camera moves between two images, and how far two such motions are apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Motion:
    """A point X in the first camera's coordinates is ``rotation @ X + translation`` in the second's.

    Coordinates are x right, y down, z forward, in any unit; a point is seen at the pixel (x, y) with
    (x, y, 1) ~ camera @ X. All float64: rotation, camera1, camera2 [3, 3], translation [3].
    """

    rotation: Array
    translation: Array
    camera1: Array
    camera2: Array


def rotation_deviation(found: Array, truth: Array) -> float:
    """The angle between two rotations [3, 3] in degrees, UCN's arccos((Tr(found^T truth) - 1) / 2) in
    the form that keeps its digits where it is small."""
    sine = np.linalg.norm(found - truth) / 8**0.5  # of half the angle
    return float(np.degrees(2 * np.arcsin(min(float(sine), 1.0))))


def direction_deviation(found: Array, truth: Array) -> float:
    """The angle between the directions of two translations [3] in degrees: 180 for opposite ones."""
    a, b = (x / np.linalg.norm(x) for x in (found, truth))
    return float(np.degrees(2 * np.arctan2(np.linalg.norm(a - b), np.linalg.norm(a + b))))
