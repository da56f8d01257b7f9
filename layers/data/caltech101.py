"""Caltech-101: 1,515 pairs of images of 101 classes with the objects' outlines (Kim et al., 2013, on
the images of Fei-Fei et al., 2004). There are no key points: it is the outline that is transferred.

Read from the authors' folder, with the list of pairs beside its own two folders:

- ``test_pairs.csv``: a head, and a line for each pair with the columns image A, image B (of whose
  paths the last two parts, ``<class>/<name>.jpg``, are read), class (a number, not read), then x of A's
  outline, y of A's, x of B's, y of B's, the coordinates of a column set apart by ``;``.
- ``101_ObjectCategories/<class>/image_0001.jpg``.
- ``Annotations/<class>/annotation_0001.mat``, read where the list ends before the outlines:
  ``obj_contour`` [2, K], the rows x and y from the corner of ``box_coord`` [1, 4], (y1, y2, x1, x2).
  Four classes have folders of other names there, ``RENAMED``.

The points to be transferred are the vertices of A's outline; ``metrics/label_transfer.py`` has the two
figures of what comes out. The class is the folder of image A.
"""

from __future__ import annotations

from pathlib import Path

from .._data.keypoint_pairs import (
    Array,
    OutlinePair,
    PairReader,
    Row,
    expect_folder,
    expect_image,
    expect_split,
    finite,
    polygon,
    read_rows,
    read_variable,
    reader,
    some,
)

HOLDS = "101_ObjectCategories and test_pairs.csv"
COLUMNS = "image A, image B, class, x of A, y of A, x of B, y of B"
RENAMED = {
    "Faces": "Faces_2",
    "Faces_easy": "Faces_3",
    "Motorbikes": "Motorbikes_16",
    "airplanes": "Airplanes_Side_2",
}


@reader("caltech-101")
class Caltech101(PairReader):
    """The pairs of Caltech-101, :class:`OutlinePair` each; see the module. The split is ``test``."""

    def __init__(self, folder: str | Path, split: str = "test") -> None:
        expect_split(split, ("test",))
        self.folder = expect_folder(folder, HOLDS)
        listed = self.folder / "test_pairs.csv"
        self.rows = some(read_rows(listed, 2, COLUMNS), listed)

    def read(self, row: Row) -> OutlinePair:
        parts = [Path(name).parts[-2:] for name in row.cells[:2]]
        if any(len(part) < 2 for part in parts):
            raise ValueError(f"{row.place}: expected two images as <class>/<name>.jpg")
        if len(row.cells) <= 3:
            outline1, outline2 = (self._annotated(*part) for part in parts)
        elif len(row.cells) >= 7:
            outline1, outline2 = polygon(row, 3), polygon(row, 5)
        else:
            raise ValueError(f"{row.place}: expected the columns {COLUMNS}, found {len(row.cells)}")
        for outline in (outline1, outline2):
            if len(outline) < 3:
                raise ValueError(f"{row.place}: expected outlines of 3 points, found {len(outline)}")
        (category, name1), (_, name2) = parts
        image1, image2 = (
            expect_image(self.folder.joinpath("101_ObjectCategories", *part), row.place)
            for part in parts
        )
        name = f"{category}/{Path(name1).stem}-{Path(name2).stem}"
        return OutlinePair(image1, image2, outline1, category, name, outline2)

    def _annotated(self, category: str, name: str) -> Array:
        """The outline [K, 2] of an image's annotation."""
        number = Path(name).stem.removeprefix("image_")
        folder = self.folder / "Annotations" / RENAMED.get(category, category)
        path = folder / f"annotation_{number}.mat"
        contour = read_variable(path, "obj_contour", (2, None)).T
        (box,) = read_variable(path, "box_coord", (1, 4))
        return finite(contour + box[[2, 0]], f"{path}: the outline")
