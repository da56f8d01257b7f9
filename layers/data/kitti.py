"""KITTI's training pairs with optical flow or disparity, of the benchmarks of 2012 and 2015.

The folder is the benchmark's, or its ``training``. A pair is called by its number and frame,
``000000_10.png``, which stand in each folder alike:

- 2012: ``colored_0`` and ``colored_1`` (left and right; ``image_0`` and ``image_1``, the grey ones,
  where the first is missing), ``flow_noc``, ``flow_occ``, ``disp_noc``, ``disp_occ``, and perhaps
  ``calib/000000.txt``.
- 2015: ``image_2`` and ``image_3``, ``flow_noc``, ``flow_occ``, ``disp_noc_0``, ``disp_occ_0``, and
  perhaps ``calib_cam_to_cam/000000.txt``.

Flow goes from the left frame 10 to the left frame 11, disparity from left to right; PNG of 16 bits, the
disparity times 256. The matches are all that are known in ``*_noc``, where both images show a pixel, or
with ``occluded`` in ``*_occ``, and lie inside the second image. The split is ``training``, the only one
whose truth is known; all pairs are of one class.

A stereo pair whose calibration is there has the cameras' motion, in m. In 2012 it is that of the grey
cameras 0 and 1 (P0, P1), which the truth is of, and whose geometry the coloured images are taken to
have; in 2015 that of 2 and 3 (P_rect_02, P_rect_03).
"""

from __future__ import annotations

import re
from abc import abstractmethod
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .._data.files import read_text
from .._data.images import image_size
from .._data.keypoint_pairs import (
    Array,
    KeypointPair,
    PairReader,
    as_flag,
    expect_folder,
    expect_image,
    expect_split,
    reader,
    some,
)
from .._data.truth import dense_pair, of_disparity, of_flow, read_disparity, read_flow
from .._geometry.motion import Motion

SPLIT = "training"
SCALE = 256  # of a disparity
FIRST, SECOND = "_10.png", "_11.png"


class Year(NamedTuple):
    """Where a benchmark's files lie: folders of the left and right images (the first that is there),
    endings of the disparity's folders, and the calibration's folder and the keys of its cameras."""

    name: str
    images: tuple[tuple[str, str], ...]
    disparity: str
    calibration: str
    cameras: tuple[str, str]


OF_2012 = Year(
    "kitti-2012", (("colored_0", "colored_1"), ("image_0", "image_1")), "", "calib", ("P0", "P1")
)
OF_2015 = Year(
    "kitti-2015", (("image_2", "image_3"),), "_0", "calib_cam_to_cam", ("P_rect_02", "P_rect_03")
)


class _Kitti(PairReader):
    """The pairs of one year, :class:`KeypointPair` each; see the module."""

    pixels = True
    year: Year

    def __init__(self, folder: str | Path, split: str = SPLIT, occluded: object = False) -> None:
        expect_split(split, (SPLIT,))
        holds = f"{SPLIT}, with {self.year.images[0][0]} and the truth"
        root = expect_folder(folder, holds)
        self.folder = root / SPLIT if (root / SPLIT).is_dir() else root
        kinds = self.year.images
        self.left, self.right = next((k for k in kinds if (self.folder / k[0]).is_dir()), kinds[0])
        truth = self.folder / self.truth("occ" if as_flag(occluded, "occluded") else "noc")
        self.rows = some(sorted(truth.glob(f"*{FIRST}")), truth, f"000000{FIRST} and such")

    @abstractmethod
    def truth(self, which: str) -> str:
        """The name of the folder of truth, of noc or occ."""


class _Flow(_Kitti):
    def truth(self, which: str) -> str:
        return f"flow_{which}"

    def read(self, row: Path) -> KeypointPair:
        left = self.folder / self.left
        image1 = expect_image(left / row.name, str(row))
        image2 = expect_image(left / (row.name.removesuffix(FIRST) + SECOND), str(row))
        matches = of_flow(read_flow(row, image_size(image1)), image_size(image2))
        return dense_pair(image1, image2, matches, row, f"{self.year.name}-flow", row.stem)


class _Stereo(_Kitti):
    def truth(self, which: str) -> str:
        return f"disp_{which}{self.year.disparity}"

    def read(self, row: Path) -> KeypointPair:
        image1, image2 = (
            expect_image(self.folder / side / row.name, str(row)) for side in (self.left, self.right)
        )
        disparity = read_disparity(row, SCALE, image_size(image1))
        matches = of_disparity(disparity, image_size(image2))
        path = self.folder / self.year.calibration / (row.name.removesuffix(FIRST) + ".txt")
        motion = _motion(path, self.year.cameras) if path.exists() else None
        return dense_pair(image1, image2, matches, row, f"{self.year.name}-stereo", row.stem, motion)


@reader("kitti-2012-flow")
class KittiFlow2012(_Flow):
    """Optical flow of 2012."""

    year = OF_2012


@reader("kitti-2015-flow")
class KittiFlow2015(_Flow):
    """Optical flow of 2015."""

    year = OF_2015


@reader("kitti-2012-stereo")
class KittiStereo2012(_Stereo):
    """Stereo of 2012."""

    year = OF_2012


@reader("kitti-2015-stereo")
class KittiStereo2015(_Stereo):
    """Stereo of 2015."""

    year = OF_2015


def _motion(path: Path, cameras: tuple[str, str]) -> Motion:
    """The motion between two rectified cameras with the projections P = K [I | t], [3, 4] each."""
    text = read_text(path, "the calibration")
    told = dict(re.findall(r"^(\w+)[ \t]*:[ \t]*(.*?)[ \t\r]*$", text, re.MULTILINE))
    projections = [_projection(path, told, key) for key in cameras]
    camera1, camera2 = (each[:, :3] for each in projections)
    shift1, shift2 = (np.linalg.solve(each[:, :3], each[:, 3]) for each in projections)
    return Motion(np.eye(3), shift2 - shift1, camera1, camera2)


def _projection(path: Path, told: dict[str, str], key: str) -> Array:
    try:
        found = np.array([float(cell) for cell in told.get(key, "").split()])
    except ValueError:
        found = np.zeros(0)
    if len(found) != 12 or not np.isfinite(found).all():
        raise ValueError(f"{path}: expected {key}: 12 finite numbers, found {told.get(key, '')!r}")
    projection = found.reshape(3, 4)
    if np.linalg.matrix_rank(projection[:, :3]) < 3:
        raise ValueError(f"{path}: {key}: expected a camera, found a matrix without an inverse")
    return projection
