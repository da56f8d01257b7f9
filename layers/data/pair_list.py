"""Pairs of images with known matches from a list, ``list:FILE.csv``, and what tells the matches.

A line is a pair: image 1, image 2 and the source of truth, set apart by commas, and any of the options
below. Paths are relative to the list's folder. Empty lines and those that begin with ``#`` are left
out, and so is the first of the others where it is a head, whose columns name no files::

    image1,image2,truth
    left/0001.png,right/0001.png,disparity/0001.png,scale=256,category=street
    a.jpg,b.jpg,a-b.flo,hidden=occluded.png,hidden=invalid.png

- ``kind``: what the truth is. If not given, its suffix says it: .csv and .npy a table, .flo flow, .pfm
  a disparity, .txt and .xml a homography; another image is a disparity where there is a ``scale``, and
  KITTI's flow where there is none.

  - ``table``: rows x1, y1, x2, y2 and, if need be, s: 1 for a match (the default), 0 for two points
    that do not match, -1 for a row to be ignored. A text with commas, or a ``.npy`` [M, 4] or [M, 5].
  - ``flow``: image 1's (x, y) is image 2's (x + u, y + v). Middlebury's ``.flo``, or KITTI's PNG of 16
    bits.
  - ``disparity``: the left image's (x, y) is the right one's (x - d, y). ``.pfm``, or PNG or PGM of d
    times ``scale``, 0 where it is not known.
  - ``homography``: from image 1 to image 2, a text of 3 x 3 numbers or OpenCV's XML storage.
- ``scale``: what the numbers of a disparity in PNG or PGM are divided by (KITTI: 256).
- ``visible``: a mask of image 1's size, of which only pixels of 255 count (Middlebury's mask0nocc).
- ``hidden``: one of which those that are not 0 do not (Sintel's occlusions, invalid). Both may be given
  several times, for all but a table.
- ``disparity2``: the right image's disparity, with which the left one has to agree within a pixel.
- ``name``, ``category``: what the pair and its class are called; if not given, by its images and by the
  list.

The matches are all that are known and lie inside both images. Of a disparity with neither masks nor
``disparity2`` those that a nearer pixel hides are left out. Of a table ``signs`` are those of its
column s, without the rows of -1. The split is ``test``. An error names the list and the line, then the
file.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from .._data.images import SUFFIXES, image_size
from .._data.keypoint_pairs import (
    Array,
    KeypointPair,
    PairReader,
    Row,
    expect_image,
    expect_split,
    read_rows,
    reader,
    some,
)
from .._data.truth import (
    Map,
    Mask,
    Matches,
    Size,
    as_scale,
    consistent,
    dense_pair,
    of_disparity,
    of_flow,
    of_homography,
    read_disparity,
    read_flow,
    read_homography,
    read_mask,
    read_table,
    visible,
)

TABLE, FLOW, DISPARITY, HOMOGRAPHY = KINDS = ("table", "flow", "disparity", "homography")
BY_SUFFIX = {".csv": TABLE, ".npy": TABLE, ".flo": FLOW, ".pfm": DISPARITY}
BY_SUFFIX |= {".txt": HOMOGRAPHY, ".xml": HOMOGRAPHY, ".pgm": DISPARITY}
COLUMNS = "image1,image2,truth"
MASKS = ("visible", "hidden")
OF_DISPARITY = ("scale", "disparity2")
OPTIONS = ("kind", *OF_DISPARITY, *MASKS, "name", "category")
VISIBLE = 255


class Listed(NamedTuple):
    """A line: its place, files, kind, and its options as they are written."""

    place: str
    images: tuple[Path, Path]
    truth: Path
    kind: str
    options: dict[str, list[str]]

    def option(self, key: str, default: str = "") -> str:
        return self.options.get(key, [default])[0]


@reader("list", of="FILE")
class PairList(PairReader):
    """The pairs of a list, :class:`KeypointPair` each; see the module."""

    pixels = True

    def __init__(self, folder: str | Path, split: str = "test") -> None:
        expect_split(split, ("test",))
        self.path = Path(folder)
        rows = read_rows(self.path, 1, COLUMNS, 3, (*SUFFIXES, *BY_SUFFIX), comment="#")
        self.rows = some([self._listed(row) for row in rows], self.path)

    def _listed(self, row: Row) -> Listed:
        cells = row.cells
        if not all(cells[:3]) or len(cells) < 3:
            found = ",".join(cells[:3])
            raise ValueError(f'{row.place}: expected the columns {COLUMNS}, found "{found}"')
        image1, image2, truth = (self.path.parent / cell for cell in cells[:3])
        options = _options(row.place, cells[3:])
        suffix = BY_SUFFIX.get(truth.suffix.lower(), DISPARITY if "scale" in options else FLOW)
        options.setdefault("name", [f"{Path(cells[0]).with_suffix('')}-{Path(cells[1]).stem}"])
        options.setdefault("category", [self.path.stem])
        kind = options.get("kind", [suffix])[0]
        if kind not in KINDS:
            raise ValueError(f'{row.place}: kind: expected {", ".join(KINDS)}, found "{kind}"')
        wrong = MASKS * (kind == TABLE) + OF_DISPARITY * (kind != DISPARITY)
        if unfit := [key for key in wrong if key in options]:
            raise ValueError(f"{row.place}: {unfit[0]} is not for a truth of the kind {kind}")
        return Listed(row.place, (image1, image2), truth, kind, options)

    def read(self, row: Listed) -> KeypointPair:
        image1, image2 = (expect_image(path, row.place) for path in row.images)
        try:
            sizes = image_size(image1), image_size(image2)
            matches, signs = _matches(row, self.path.parent, *sizes)
            names = row.option("category"), row.option("name")
            return dense_pair(image1, image2, matches, row.truth, *names, signs=signs)
        except ValueError as error:
            raise ValueError(f"{row.place}: {error}") from None


def _options(place: str, cells: list[str]) -> dict[str, list[str]]:
    options: dict[str, list[str]] = {}
    for cell in filter(None, cells):
        key, equals, value = cell.partition("=")
        if key not in OPTIONS or not equals or not value:
            raise ValueError(f'{place}: expected one of {"=, ".join(OPTIONS)}=, found "{cell}"')
        if key in options and key not in MASKS:
            raise ValueError(f"{place}: {key} is given twice")
        options.setdefault(key, []).append(value)
    return options


def _matches(row: Listed, folder: Path, size1: Size, size2: Size) -> tuple[Matches, Array | None]:
    """The matches of a pair, and a table's signs where they are not all 1."""
    if row.kind == TABLE:
        return _from_table(read_table(row.truth), size1, size2)
    keep = _keep(row, folder, size1)
    if row.kind == HOMOGRAPHY:
        return of_homography(read_homography(row.truth), size1, size2, keep), None
    if row.kind == FLOW:
        return of_flow(_flow(row, size1), size2, keep), None
    scale = as_scale(row.option("scale")) if "scale" in row.options else None
    disparity = read_disparity(row.truth, scale, size1)
    if "disparity2" in row.options:
        other = read_disparity(folder / row.option("disparity2"), scale, size2)
        keep &= consistent(disparity, other)
    elif not any(mask in row.options for mask in MASKS):
        keep &= visible(disparity)
    return of_disparity(disparity, size2, keep), None


def _flow(row: Listed, size1: Size) -> Map:
    try:
        return read_flow(row.truth, size1)
    except ValueError as error:
        told = "kind" in row.options or row.truth.suffix.lower() in BY_SUFFIX
        hint = "" if told else " (a disparity has a scale=)"
        raise ValueError(f"{error}{hint}") from None


def _keep(row: Listed, folder: Path, size1: Size) -> Mask:
    """The pixels of image 1 that its masks let count."""
    keep = np.ones(size1, bool)
    for name in row.options.get("visible", ()):
        keep &= read_mask(folder / name, size1) == VISIBLE
    for name in row.options.get("hidden", ()):
        keep &= read_mask(folder / name, size1) == 0
    return keep


def _from_table(table: Array, size1: Size, size2: Size) -> tuple[Matches, Array | None]:
    ends = np.array([size[i] - 1 for size in (size1, size2) for i in (1, 0)])
    inside = ((table[:, :4] >= 0) & (table[:, :4] <= ends)).all(1)
    chosen = inside & (table[:, 4] >= 0)
    signs = table[chosen, 4]
    return (table[:, :2][chosen], table[:, 2:4][chosen]), None if signs.all() else signs
