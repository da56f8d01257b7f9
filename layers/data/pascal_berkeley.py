"""PASCAL-Berkeley: key points of the objects of PASCAL VOC 2011 (Bourdev and Malik, 2009; Everingham et
al., 2011), between objects of one class; UCN's Tables 4 and 5.

Read from a folder with the annotations (``voc2011_keypoints_Feb2012``) and VOC 2011's images:

- ``annotations/<class>/2007_000032_1.xml``, also in ``Annotations`` or in the folder itself, one object
  each: ``image``, ``visible_bounds`` (xmin, ymin, width, height), and each ``keypoint`` with its name,
  visible, x and y.
- ``JPEGImages/2007_000032.jpg``, also in ``VOC2011``, ``VOCdevkit/VOC2011`` or
  ``TrainVal/VOCdevkit/VOC2011``.
- The list of pairs, ``pairs=FILE``, which is not published with them: a path, absolute or from the
  folder. Each line names two objects of a class, set apart by a comma or spaces:
  ``aeroplane/2007_000032_1 aeroplane/2007_000033_1`` (``.xml`` may follow). Lines that begin with
  ``#`` are left out.

The points of a pair are the key points that are visible in both objects, in the order of the first. A
pair without any is left out of the list; ``left_out`` says how many are.

T is max(w, h) of image 2, as in the paper; with ``length=bbox`` that of object 2's ``visible_bounds``.
Coordinates are used as they are: the bounds are VOC's own, from 1, and the key points lie in their
frame. The class is the annotations' folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .._data.files import read_text, read_xml
from .._data.images import image_size
from .._data.keypoint_pairs import (
    KeypointPair,
    PairReader,
    Row,
    expect_folder,
    expect_image,
    expect_split,
    longer_span,
    numbers,
    reader,
    some,
)

HOLDS = "annotations and JPEGImages"
ANNOTATIONS = ("annotations", "Annotations", "")
IMAGES = ("", "VOC2011", "VOCdevkit/VOC2011", "TrainVal/VOCdevkit/VOC2011")
LINE = "aeroplane/2007_000032_1 aeroplane/2007_000033_1"


class Listed(NamedTuple):
    """A pair that is listed: ``FILE:LINE`` and the files of its two objects."""

    place: str
    objects: tuple[Path, Path]


class Annotated(NamedTuple):
    """An object: its image's name, its visible key points (x, y) by their names, and the (width,
    height) of what is seen of it."""

    image: str
    points: dict[str, tuple[float, float]]
    bounds: tuple[float, float]


@reader("pascal-berkeley")
class PascalBerkeley(PairReader):
    """The listed pairs of PASCAL-Berkeley, :class:`KeypointPair` each; see the module. The split is
    ``test``: what it holds is the list's choice."""

    def __init__(
        self,
        folder: str | Path,
        split: str = "test",
        pairs: str | Path = "",
        length: str = "img",
    ) -> None:
        expect_split(split, ("test",))
        if length not in ("img", "bbox"):
            raise ValueError(f'length: expected img or bbox, got "{length}"')
        if not str(pairs):
            raise ValueError(f'pairs: expected a file of lines such as "{LINE}"')
        self.folder, self.length = expect_folder(folder, HOLDS), length
        listed = self.folder / pairs
        rows = some(_listed(listed, self.folder), listed)
        objects = {path for row in rows for path in row.objects}
        visible = {path: read_object(path).points.keys() for path in sorted(objects)}
        common = [row for row in rows if visible[row.objects[0]] & visible[row.objects[1]]]
        self.left_out = len(rows) - len(common)
        if not common:
            found = "found pairs, but none with a key point that is visible in both"
            raise ValueError(f"{listed}: expected pairs of objects, {found}")
        self.rows = common

    def read(self, row: Listed) -> KeypointPair:
        one, two = (read_object(path) for path in row.objects)
        names = [name for name in one.points if name in two.points]
        points1, points2 = (np.array([each.points[name] for name in names]) for each in (one, two))
        image1, image2 = (
            expect_image(_images(self.folder) / f"{each.image}.jpg", str(path))
            for each, path in zip((one, two), row.objects, strict=True)
        )
        size = two.bounds if self.length == "bbox" else image_size(image2, f'image "{image2}"')
        category = row.objects[0].parent.name
        return KeypointPair(
            image1,
            image2,
            points1,
            category,
            name=f"{category}/{row.objects[0].stem}-{row.objects[1].stem}",
            points2=points2,
            length=float(max(size)),
        )


def _listed(path: Path, folder: Path) -> list[Listed]:
    """The pairs of a list, whose annotations are there."""
    rows = []
    for number, line in enumerate(read_text(path, "the list of pairs").splitlines(), 1):
        place, names = f"{path}:{number}", line.replace(",", " ").split()
        if not names or names[0].startswith("#"):
            continue
        parts = [Path(name.removesuffix(".xml")).parts[-2:] for name in names]
        if len(parts) != 2 or any(len(part) != 2 for part in parts) or parts[0][0] != parts[1][0]:
            raise ValueError(f'{place}: expected two objects of a class as "{LINE}", found "{line}"')
        one, two = (_annotation(folder, category, name, place) for category, name in parts)
        rows.append(Listed(place, (one, two)))
    return rows


def _annotation(folder: Path, category: str, name: str, place: str) -> Path:
    paths = [folder / part / category / f"{name}.xml" for part in ANNOTATIONS]
    for path in paths:
        if os.path.isfile(path):
            return path
    raise ValueError(f'{place}: no annotation "{paths[0]}"')


def _images(folder: Path) -> Path:
    paths = [folder / part / "JPEGImages" for part in IMAGES]
    return next((path for path in paths if path.is_dir()), paths[0])


def read_object(path: Path) -> Annotated:
    """An object of one annotation."""
    root = read_xml(read_text(path, "the annotation"), path)
    image, bounds = (root.findtext("image") or "").strip(), root.find("visible_bounds")
    if not image or bounds is None:
        raise ValueError(f"{path}: expected <image> and <visible_bounds> in <{root.tag}>")
    size = np.array(_attributes(bounds.attrib, ("width", "height"), f"{path}: visible_bounds"))
    longer_span(np.zeros(2), size, f"{path}: visible_bounds")
    points = {}
    for point in root.iterfind("keypoints/keypoint"):
        name = point.get("name")
        if not name:
            raise ValueError(f"{path}: expected a name of each keypoint")
        visible, x, y = _attributes(point.attrib, ("visible", "x", "y"), f"{path}: {name}")
        if visible == 1:
            points[name] = x, y
    return Annotated(image, points, (size[0], size[1]))


def _attributes(found: Mapping[str, str], names: tuple[str, ...], what: str) -> list[float]:
    """The finite numbers that attributes hold."""
    for name in names:
        if name not in found:
            raise ValueError(f"{what}: expected {name}, found {', '.join(found) or 'nothing'}")
    return [float(numbers(Row(f"{what}: {name}", [found[name]]), range(1))[0]) for name in names]
