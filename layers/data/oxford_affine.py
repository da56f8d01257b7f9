"""The Oxford affine sequences, graf, boat and so on: six images each (Mikolajczyk et al., 2005).

The folder is a sequence's, or one of sequences, which are read in the order of their names. A sequence
holds ``img1`` to ``img6`` (.ppm, .pgm, .png or another image) and ``H1to2p`` to ``H1to6p``, the
homography from image 1 to image n: a text, which may end in .txt, or OpenCV's XML storage, .xml.

The pairs are those of image 1 with image n whose homography is there. The matches are the pixels of
image 1 that it takes into image n. The option ``to``, such as ``2,3``, takes only those n. The split is
``test``; the class is the sequence.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from .._data.keypoint_pairs import (
    KeypointPair,
    PairReader,
    as_others,
    expect_folder,
    expect_split,
    reader,
    some,
)
from .._data.truth import by_stem, homography_pair, image_by_stem

HOLDS = "a sequence, such as img1.ppm, img2.ppm and H1to2p, or folders of sequences"
IMAGES, EVERY = 6, "2,3,4,5,6"


class Row(NamedTuple):
    """Image 1 and image n of a sequence, and the file of the homography."""

    folder: Path
    number: int
    homography: Path


@reader("oxford-affine")
class OxfordAffine(PairReader):
    """The sequences' pairs, :class:`KeypointPair` each; see the module."""

    pixels = True

    def __init__(self, folder: str | Path, split: str = "test", to: object = EVERY) -> None:
        expect_split(split, ("test",))
        root, numbers = expect_folder(folder, HOLDS), as_others(to, IMAGES)
        below = sorted(path for path in root.iterdir() if path.is_dir())
        found = _rows(root) or [row for each in below for row in _rows(each)]
        chosen = [row for row in some(found, root, HOLDS) if row.number in numbers]
        self.rows = some(chosen, root, f"homographies to image {' or '.join(map(str, numbers))}")

    def read(self, row: Row) -> KeypointPair:
        image1, image2 = (image_by_stem(row.folder, f"img{number}") for number in (1, row.number))
        name = os.path.basename(os.path.abspath(row.folder))  # its own, not that of a link's target
        return homography_pair(image1, image2, row.homography, name, f"{name}/1-{row.number}")


def _rows(folder: Path) -> list[Row]:
    found = ((n, by_stem(folder, f"H1to{n}p", ("", ".txt", ".xml"))) for n in range(2, IMAGES + 1))
    return [Row(folder, number, path) for number, path in found if path]
