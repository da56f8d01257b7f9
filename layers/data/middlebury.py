"""Middlebury's stereo pairs of 2001 to 2021, and those of its benchmark, version 3.

The folder is a scene's, or one of scenes, which are read in the order of their names. A scene holds
(an image is a .png, .ppm or .pgm):

- 2014, 2021 and version 3: ``im0``, ``im1``, ``disp0GT.pfm`` or ``disp0.pfm``, perhaps ``disp1GT.pfm``
  or ``disp1.pfm``, ``mask0nocc`` (255: visible in both) and ``calib.txt``, from which the cameras'
  motion comes, in mm. Of 2014's scenes those of ``-perfect``: where ``disp0y.pfm`` lies beside them,
  as in ``-imperfect``, matches differ in y too, and the scene is refused. Version 3's may do so by a
  pixel or so (``dymax`` in ``calib.txt``), which is not modelled.
- 2005 and 2006: ``view1``, ``view5``, ``disp1``, ``disp5``, whose values are pixels of the full size:
  divided by 1, 2 or 3 at a height of 1110, 555 or 370 pixels.
- 2003: ``im2``, ``im6``, ``disp2``, ``disp6``, divided by 4, 2 or 1 at a width of 450, 900 or 1800.
- 2001: the same names at other widths below 450, divided by 8; ``map``: ``im0``, ``im1``, ``disp0``,
  ``disp1``, divided by 8; tsukuba: ``scene1.row3.col3``, ``scene1.row3.col4``, ``truedisp.row3.col3``,
  divided by 16 (of the five images of a row, col4 is the next to the right of the reference; its
  disparities are at most 15).

The option ``scale`` takes these divisors' place; a .pfm has none. The matches are those of the left
pixels whose disparity is known and which are visible in both: by the mask where there is one, where the
two disparities agree within a pixel if there are two, and else where no nearer pixel hides them. With
``occluded`` all that lie inside the right image. The split is ``test``; the class is the scene.
"""

from __future__ import annotations

import os
import re
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
    expect_split,
    reader,
    some,
)
from .._data.truth import (
    Map,
    Mask,
    Size,
    as_scale,
    by_stem,
    consistent,
    dense_pair,
    of_disparity,
    read_disparity,
    read_mask,
    visible,
)
from .._geometry.motion import Motion

HOLDS = "a scene, such as im0.png, im1.png and disp0.pfm, or folders of scenes"
IMAGES, DISPARITIES = (".png", ".ppm", ".pgm"), (".pfm", ".png", ".pgm", ".ppm")
LAYOUTS = (
    ("im0", "im1", "disp0GT", "disp1GT"),
    ("im0", "im1", "disp0", "disp1"),
    ("view1", "view5", "disp1", "disp5"),
    ("im2", "im6", "disp2", "disp6"),
    ("scene1.row3.col3", "scene1.row3.col4", "truedisp.row3.col3", "truedisp.row3.col4"),
)
VISIBLE = 255  # of mask0nocc
VERTICAL = "disp0y.pfm"  # of scenes whose name ends in -imperfect


class Scene(NamedTuple):
    """The files of a scene; the right image's disparity is not always there."""

    folder: Path
    left: Path
    right: Path
    disparity1: Path
    disparity2: Path | None


@reader("middlebury")
class Middlebury(PairReader):
    """The scenes' pairs, :class:`KeypointPair` each; see the module."""

    pixels = True

    def __init__(
        self,
        folder: str | Path,
        split: str = "test",
        scale: object = None,
        occluded: object = False,
    ) -> None:
        expect_split(split, ("test",))
        self.scale = None if scale is None else as_scale(scale)
        self.occluded = as_flag(occluded, "occluded")
        root = expect_folder(folder, HOLDS)
        below = sorted(path for path in root.iterdir() if path.is_dir())
        found = [scene for each in below if (scene := _scene(each))]
        self.rows = [scene] if (scene := _scene(root)) else some(found, root, HOLDS)

    def read(self, row: Scene) -> KeypointPair:
        size1, size2 = image_size(row.left), image_size(row.right)
        disparity = self._disparity(row, row.disparity1, size1)
        keep = None if self.occluded else self._visible(row, disparity, size1, size2)
        matches = of_disparity(disparity, size2, keep)
        calibration = row.folder / "calib.txt"
        motion = _motion(calibration, size1) if calibration.exists() else None
        name = os.path.basename(os.path.abspath(row.folder))  # its own, not that of a link's target
        return dense_pair(row.left, row.right, matches, row.disparity1, name, name, motion)

    def _visible(self, row: Scene, disparity: Map, size1: Size, size2: Size) -> Mask:
        if mask := by_stem(row.folder, "mask0nocc", IMAGES):
            return read_mask(mask, size1) == VISIBLE
        if row.disparity2:
            return consistent(disparity, self._disparity(row, row.disparity2, size2))
        return visible(disparity)

    def _disparity(self, row: Scene, path: Path, size: Size) -> Map:
        if path.suffix.lower() == ".pfm":
            return read_disparity(path, self.scale, size)
        scale = self.scale or _scale(row.disparity1.stem, size)
        if scale is None:
            found = f"{size[1]} x {size[0]} pixels"
            raise ValueError(f"{path}: no such disparity of {found} is published: give its scale")
        return read_disparity(path, scale, size)


def _scene(folder: Path) -> Scene | None:
    """The pair that lies in a folder; None if none does. Raises ValueError for an imperfect one."""
    for left, right, disparity1, disparity2 in LAYOUTS:
        images = by_stem(folder, left, IMAGES), by_stem(folder, right, IMAGES)
        truth, other = (by_stem(folder, stem, DISPARITIES) for stem in (disparity1, disparity2))
        if images[0] and images[1] and truth:
            if disparity1 == "disp0" and os.path.lexists(folder / VERTICAL):
                found = f"found {VERTICAL}: its matches differ in y too; take the folder -perfect"
                raise ValueError(f"{folder}: expected a rectified scene, {found}")
            return Scene(folder, images[0], images[1], truth, other)
    return None


def _scale(stem: str, size: Size) -> float | None:
    """What is divided by where the left disparity has that name, and the images that size; None where
    nothing so is published."""
    height, width = size
    if stem.startswith("truedisp"):
        return 16
    if stem == "disp1":
        return {1110: 1, 555: 2, 370: 3}.get(height)
    if stem == "disp2":
        return {450: 4, 900: 2, 1800: 1}.get(width, 8 if width < 450 else None)
    return 8 if width < 450 else None


def _motion(path: Path, size: Size) -> Motion:
    """The motion from the left camera to the right one that ``calib.txt`` tells."""
    text = read_text(path, "the calibration")
    told = dict(re.findall(r"^[ \t]*(\w+)[ \t]*=[ \t]*(.*?)[ \t\r]*$", text, re.MULTILINE))
    camera1, camera2 = (_numbers(path, told, key, 9).reshape(3, 3) for key in ("cam0", "cam1"))
    (baseline,) = _numbers(path, told, "baseline", 1)
    for key, pixels in zip(("height", "width"), size, strict=True):
        if key in told and _numbers(path, told, key, 1) != pixels:
            raise ValueError(f"{path}: expected the images' {key}, {pixels}, found {told[key]}")
    return Motion(np.eye(3), np.array([-baseline, 0, 0]), camera1, camera2)


def _numbers(path: Path, told: dict[str, str], key: str, count: int) -> Array:
    """The numbers of a value, which may be set as a matrix, ``[1 0 2; 0 1 3; 0 0 1]``."""
    cells = told.get(key, "").strip("[]").replace(";", " ").split()
    try:
        found = np.array([float(cell) for cell in cells])
    except ValueError:
        found = np.zeros(0)
    if len(found) != count or not np.isfinite(found).all():
        expected = f"expected {key} = {count} finite numbers"
        raise ValueError(f'{path}: {expected}, found "{told.get(key, "")}"')
    return found
