"""HPatches' sequences of six images, 57 of changing light and 59 of viewpoint (Balntas et al., 2017).

The folder holds those of the authors' ``hpatches-sequences-release``: ``i_<name>`` (light) and
``v_<name>`` (viewpoint), in each ``1.ppm`` to ``6.ppm`` (or another image) and ``H_1_2`` to ``H_1_6``,
texts of the homography from image 1 to image n.

The pairs are those of image 1 with image n whose homography is there, sequences in the order of their
names. The matches are the pixels of image 1 that it takes into image n. The option ``to``, such as
``2,3``, takes only those n. The split is ``test``; the class is ``illumination`` or ``viewpoint``.
"""

from __future__ import annotations

from pathlib import Path

from .._data.keypoint_pairs import (
    KeypointPair,
    PairReader,
    as_others,
    expect_folder,
    expect_split,
    reader,
    some,
)
from .._data.truth import homography_pair, image_by_stem

HOLDS = "sequences such as v_graffiti and i_bologna, with 1.ppm, 2.ppm and H_1_2"
IMAGES, EVERY = 6, "2,3,4,5,6"
CLASSES = {"i": "illumination", "v": "viewpoint"}


@reader("hpatches")
class HPatches(PairReader):
    """The sequences' pairs, :class:`KeypointPair` each; see the module."""

    pixels = True

    def __init__(self, folder: str | Path, split: str = "test", to: object = EVERY) -> None:
        expect_split(split, ("test",))
        root, numbers = expect_folder(folder, HOLDS), as_others(to, IMAGES)
        found = sorted(root.glob("[iv]_*/H_1_[2-6]"))
        chosen = [path for path in some(found, root, HOLDS) if int(path.name[-1]) in numbers]
        self.rows = some(chosen, root, f"homographies to image {' or '.join(map(str, numbers))}")

    def read(self, row: Path) -> KeypointPair:
        sequence, number = row.parent, row.name.removeprefix("H_1_")
        image1, image2 = (image_by_stem(sequence, stem) for stem in ("1", number))
        name = f"{sequence.name}/1-{number}"
        return homography_pair(image1, image2, row, CLASSES[sequence.name[0]], name)
