"""The Middlebury Motorcycle pair that scikit-image ships, with true disparity: ``skimage:motorcycle``.

The match of left (x, y) is right (x - d, y); an unknown disparity is infinite. Points are (x, y) in
pixels, 0-based, pixel centres at integers. There is no mask: the pixels that nearer ones hide are found
from the disparity (``visible``), and left out unless ``occluded`` is asked for. The split is
``test``. The cameras' motion is that of the calibration in scikit-image's documentation, in mm.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .._data.images import image_size
from .._data.keypoint_pairs import KeypointPair, PairReader, as_flag, expect_split, reader
from .._data.truth import dense_pair, of_disparity, visible
from .._geometry.motion import Motion

FOCAL_LENGTH, CENTRE, CENTRES_APART = 994.978, (311.193, 254.877), 31.086  # pixels
BASELINE = 193.001  # mm


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


@reader("skimage", of="motorcycle")
class SkimagePairs(PairReader):
    """The pair of scikit-image of this name, :class:`KeypointPair`; see the module."""

    pixels = True

    def __init__(self, folder: str | Path, split: str = "test", occluded: object = False) -> None:
        expect_split(split, ("test",))
        if str(folder) != "motorcycle":
            raise ValueError(f'no pair "{folder}" in scikit-image: expected motorcycle')
        self.occluded = as_flag(occluded, "occluded")
        self.rows = [str(folder)]

    def read(self, row: str) -> KeypointPair:
        import skimage.data

        _, _, disparity = skimage.data.stereo_motorcycle()  # which fetches the files where they are not
        left, right = (_file(f"{row}_{side}.png") for side in ("left", "right"))
        keep = None if self.occluded else visible(disparity)
        matches = of_disparity(disparity, image_size(right), keep)
        return dense_pair(left, right, matches, row, row, row, _motion())


def _file(name: str) -> Path:
    """A file of scikit-image's data, which lies in the package or in its cache."""
    import skimage.data

    folders = (Path(skimage.data.data_dir), Path(skimage.data.__file__).parent)
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f'no file "{name}" in {" or ".join(map(str, folders))}')


def _motion() -> Motion:
    x, y = CENTRE
    camera1, camera2 = (
        np.array([[FOCAL_LENGTH, 0, centre], [0, FOCAL_LENGTH, y], [0, 0, 1]])
        for centre in (x, x + CENTRES_APART)
    )
    return Motion(np.eye(3), np.array([-BASELINE, 0, 0]), camera1, camera2)


def motorcycle() -> StereoPair:
    """The Motorcycle pair, with every left pixel whose match is known and visible in the right."""
    import skimage.data

    left, right, disparity = skimage.data.stereo_motorcycle()
    pairs = np.concatenate(of_disparity(disparity, right.shape[:2], visible(disparity)), 1)
    return StereoPair(left, right, pairs)


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
