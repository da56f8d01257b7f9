"""PF-PASCAL: pairs of PASCAL VOC images of 20 classes with 4 to 17 key points (Ham et al., TPAMI 2018).

Read from the authors' folder (PF-dataset-PASCAL), with the lists of pairs of the published splits
beside its own two folders:

- ``trn_pairs.csv``, ``val_pairs.csv``, ``test_pairs.csv``: a head, and a line for each pair with the
  columns image A, image B (of whose paths the file's name is read) and class, 1 to 20 in the order of
  ``CLASSES``. In the training list a fourth column may be 1 for the pair mirrored: such lines, which
  augment others, are left out. What else stands in a line (the lists of Rocco et al. repeat the key
  points) is not read.
- ``JPEGImages/<name>.jpg``.
- ``Annotations/<class>/<name>.mat``: ``kps`` [K, 2], the key points (x, y), NaN for one that is not
  visible, and ``bbox`` [1, 4], the object's (x1, y1, x2, y2).

A key point that is NaN in either image is dropped. T is max(H, W) of image 2 as it is stored (``length:
img``, what is published), or max(w, h) of its object's bbox (``length: bbox``).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .._data.images import image_size
from .._data.keypoint_pairs import (
    SPLITS,
    KeypointPair,
    PairReader,
    Row,
    expect_folder,
    expect_image,
    expect_split,
    finite,
    longer_span,
    read_rows,
    read_variable,
    reader,
    some,
)

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
HOLDS = "JPEGImages, Annotations and the lists of pairs"


@reader("pf-pascal")
class PFPascal(PairReader):
    """The pairs of PF-PASCAL, :class:`KeypointPair` each; see the module."""

    def __init__(self, folder: str | Path, split: str = "test", length: str = "img") -> None:
        if length not in ("img", "bbox"):
            raise ValueError(f'length: expected img or bbox, got "{length}"')
        self.length = length
        self.folder = expect_folder(folder, HOLDS)
        listed = self.folder / f"{expect_split(split, SPLITS)}_pairs.csv"
        rows = read_rows(listed, 3, "image A, image B, class")
        mirrored = ["1"] if split == "trn" else None
        self.rows = some([row for row in rows if row.cells[3:4] != mirrored], listed)

    def read(self, row: Row) -> KeypointPair:
        number = row.cells[2].removesuffix(".0")
        if number not in map(str, range(1, 1 + len(CLASSES))):
            raise ValueError(f'{row.place}: column 3: expected a class, 1 to 20, found "{number}"')
        category = CLASSES[int(number) - 1]
        names = [Path(name).stem for name in row.cells[:2]]
        image1, image2 = (
            expect_image(self.folder / "JPEGImages" / Path(name).name, row.place)
            for name in row.cells[:2]
        )
        noted = [self.folder / "Annotations" / category / f"{name}.mat" for name in names]
        points1, points2 = (read_variable(path, "kps", (None, 2)) for path in noted)
        if len(points1) != len(points2):
            found = f"{len(points1)}, and {len(points2)} in {noted[1]}"
            raise ValueError(f"{noted[0]}: kps: expected as many key points in both, found {found}")
        seen = ~np.isnan(points1).any(1) & ~np.isnan(points2).any(1)
        if not seen.any():
            raise ValueError(f"{row.place}: expected key points that both images show, found none")
        return KeypointPair(
            image1,
            image2,
            finite(points1[seen], f"{noted[0]}: kps"),
            category,
            name=f"{category}/{names[0]}-{names[1]}",
            points2=finite(points2[seen], f"{noted[1]}: kps"),
            length=self._length(image2, noted[1]),
        )

    def _length(self, image: Path, noted: Path) -> float:
        if self.length == "img":
            return float(max(image_size(image, f'image "{image}"')))
        (box,) = read_variable(noted, "bbox", (1, 4))
        return longer_span(box[:2], box[2:], f"{noted}: bbox")
