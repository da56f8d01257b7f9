"""CUB-200-2011: 11,788 images of 200 species of birds with 15 parts each (Wah et al., 2011); UCN's
Figure 8, on the cleaned test pairs of WarpNet (Kanazawa et al., 2016).

Read from the authors' folder: ``images.txt``, ``image_class_labels.txt``, ``classes.txt``,
``train_test_split.txt``, ``parts/part_locs.txt`` (image, part, x, y, visible), ``images/`` and, for
``length=bbox``, ``bounding_boxes.txt`` (image, x, y, width, height).

The pairs are those of a list, ``pairs=FILE``, a path, absolute or from the folder, whatever split its
images are of: each line names two images by their numbers or names, set apart by a comma or spaces;
lines that begin with ``#`` are left out.
Without one, they are each image of the split (``test``, ``trn``) and the next of its class, in the
order of their numbers; a class's last image begins none.

The points of a pair are the parts that are visible in both images, in the order of their numbers. A
pair without any is left out; ``left_out`` says how many are.

T is the diagonal of image 2, sqrt(w² + h²), as in the paper; with ``length=img`` it is max(w, h) of
image 2, with ``length=bbox`` that of its bird's box. Coordinates are used as they are: whether they
count from 0 or from 1, the authors do not say. The class is that of image 1.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .._data.files import read_text
from .._data.images import image_size
from .._data.keypoint_pairs import (
    Array,
    KeypointPair,
    PairReader,
    expect_folder,
    expect_image,
    expect_split,
    longer_span,
    reader,
    some,
)

HOLDS = "images, images.txt and parts"
SPLITS = {"test": 0, "trn": 1}  # <is_training_image>
LENGTHS = ("diagonal", "img", "bbox")


class Listed(NamedTuple):
    """A pair that is listed: its place (``FILE:LINE``, or the file) and the numbers of its images."""

    place: str
    images: tuple[int, int]


@reader("cub-200-2011")
class CUB200(PairReader):
    """Pairs of CUB-200-2011, :class:`KeypointPair` each; see the module."""

    def __init__(
        self,
        folder: str | Path,
        split: str = "test",
        pairs: str | Path = "",
        length: str = "diagonal",
    ) -> None:
        expect_split(split, tuple(SPLITS))
        if length not in LENGTHS:
            raise ValueError(f'length: expected {" or ".join(LENGTHS)}, got "{length}"')
        self.folder, self.length = expect_folder(folder, HOLDS), length
        self.names = _texts(self.folder / "images.txt", "<image> <name>")
        self.classes = self._classes()
        self.parts = _Parts(self.folder / "parts" / "part_locs.txt")
        self.boxes: dict[int, Array] = {}
        if length == "bbox":
            table = _table(self.folder / "bounding_boxes.txt", "<image> <x> <y> <width> <height>")
            self.boxes = {int(row[0]): row[1:] for row in table}
        listed = self.folder / (pairs if str(pairs) else "train_test_split.txt")
        rows = some(self._list(listed) if str(pairs) else self._neighbours(listed, split), listed)
        common = [row for row in rows if len(self.parts.both(*row.images))]
        self.left_out = len(rows) - len(common)
        if not common:
            found = "found pairs, but none with a part that is visible in both"
            raise ValueError(f"{listed}: expected pairs of images, {found}")
        self.rows = common

    def read(self, row: Listed) -> KeypointPair:
        image1, image2 = (
            expect_image(self.folder / "images" / self.names[number], row.place)
            for number in row.images
        )
        points = self.parts.both(*row.images)
        category = self.classes[row.images[0]]
        return KeypointPair(
            image1,
            image2,
            points[:, :2],
            category,
            name=f"{category}/{image1.stem}-{image2.stem}",
            points2=points[:, 2:],
            length=self._length(row.images[1], image2),
        )

    def _length(self, number: int, image: Path) -> float:
        if self.length == "bbox":
            listed = self.folder / "bounding_boxes.txt"
            if number not in self.boxes:
                raise ValueError(f"{listed}: expected the box of image {number}, found none")
            box = self.boxes[number]
            return longer_span(box[:2], box[:2] + box[2:], f"{listed}: image {number}")
        size = image_size(image, f'image "{image}"')
        return float(max(size)) if self.length == "img" else math.hypot(*size)

    def _classes(self) -> dict[int, str]:
        """The class of each image."""
        listed = self.folder / "image_class_labels.txt"
        names = _texts(self.folder / "classes.txt", "<class> <name>")
        labels = {int(image): int(label) for image, label in _table(listed, "<image> <class>")}
        for image in self.names:
            if labels.get(image) not in names:
                found = labels.get(image, "none")
                raise ValueError(f"{listed}: expected a class of image {image}, found {found}")
        return {image: names[labels[image]] for image in self.names}

    def _neighbours(self, listed: Path, split: str) -> list[Listed]:
        """Each image of the split and the next of its class."""
        of = {int(image): int(training) for image, training in _table(listed, "<image> <is training>")}
        classes: dict[str, list[int]] = {}
        for image in sorted(self.names):
            if of.get(image) == SPLITS[split]:
                classes.setdefault(self.classes[image], []).append(image)
        return [Listed(str(listed), two) for images in classes.values() for two in pairwise(images)]

    def _list(self, listed: Path) -> list[Listed]:
        """The pairs of a list."""
        numbers = {name: number for number, name in self.names.items()}
        numbers |= {str(number): number for number in self.names}
        rows = []
        for at, line in enumerate(read_text(listed, "the list of pairs").splitlines(), 1):
            place, names = f"{listed}:{at}", line.replace(",", " ").split()
            if not names or names[0].startswith("#"):
                continue
            if len(names) != 2:
                raise ValueError(f'{place}: expected two images, found "{line}"')
            for name in names:
                if name not in numbers:
                    raise ValueError(f'{place}: "{name}" is no number and no name of images.txt')
            rows.append(Listed(place, (numbers[names[0]], numbers[names[1]])))
        return rows


class _Parts:
    """The visible parts of all images."""

    def __init__(self, listed: Path) -> None:
        table = _table(listed, "<image> <part> <x> <y> <visible>")
        table = table[table[:, 4] == 1]
        self.table = table[np.lexsort((table[:, 1], table[:, 0]))]

    def of(self, image: int) -> Array:
        """Those of an image: rows [M, 3] of part, x, y, by parts."""
        begin, end = np.searchsorted(self.table[:, 0], [image, image + 1])
        return self.table[begin:end, 1:4]

    def both(self, image1: int, image2: int) -> Array:
        """Where the parts are that both images show: [K, 4], x and y in each."""
        one, two = self.of(image1), self.of(image2)
        _, at1, at2 = np.intersect1d(one[:, 0], two[:, 0], return_indices=True)
        return np.concatenate([one[at1, 1:], two[at2, 1:]], 1)


def _texts(path: Path, columns: str) -> dict[int, str]:
    """The lines ``<number> <text>`` of a file."""
    found = {}
    for at, line in enumerate(read_text(path, "the list").splitlines(), 1):
        number, _, text = line.strip().partition(" ")
        if not number:
            continue
        if not (number.isascii() and number.isdecimal() and len(number) < 10 and text):
            raise ValueError(f'{path}:{at}: expected {columns}, found "{line}"')
        found[int(number)] = text
    return found


def _table(path: Path, columns: str) -> Array:
    """The finite numbers [N, C] of a file's lines, by the columns that are named; the first whole."""
    width, rows = columns.count("<"), []
    for at, line in enumerate(read_text(path, "the list").splitlines(), 1):
        if not (cells := line.split()):
            continue
        try:
            row = [float(cell) for cell in cells]
        except ValueError:
            row = []
        if len(row) != width or not all(map(math.isfinite, row)) or row[0] % 1:
            raise ValueError(f'{path}:{at}: expected {columns}, found "{line}"')
        rows.append(row)
    return np.array(rows, np.float64).reshape(-1, width)
