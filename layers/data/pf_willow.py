"""PF-WILLOW: 10 groups of 10 images of one pose with 10 key points each (Ham et al., CVPR 2016).

Read from the authors' folder: ``<group>/<name>.png``, such as ``car(G)/Cars_006a.png``, and beside each
image ``<name>.mat``, whose ``pts_coord`` [2, 10] has the rows x and y, in the same order in all images
of a group. The pairs are all ordered pairs of different images within a group, 900, groups and images
in the order of their names.

Where the authors' ``test_pairs.csv`` lies in the folder, it decides pairs, order and points: a head,
and a line for each pair with the columns image A, image B (of whose paths the last two parts,
``<group>/<name>.png``, are read), then 10 numbers each of x in A, y in A, x in B, y in B.

T is max(w, h) of the bounding box of image 2's key points, the largest less the smallest coordinate.
The key points' numbers are 1-based, and used as they are. The class is the group.
"""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

from .._data.keypoint_pairs import (
    Array,
    KeypointPair,
    PairReader,
    Row,
    expect_folder,
    expect_image,
    expect_split,
    finite,
    longer_span,
    numbers,
    read_rows,
    read_variable,
    reader,
    some,
)

POINTS = 10
HOLDS = 'groups such as "car(G)", with images (.png) and their key points (.mat)'


@reader("pf-willow")
class PFWillow(PairReader):
    """The pairs of PF-WILLOW, :class:`KeypointPair` each; see the module. The split is ``test``."""

    def __init__(self, folder: str | Path, split: str = "test") -> None:
        expect_split(split, ("test",))
        self.folder = expect_folder(folder, HOLDS)
        listed = self.folder / "test_pairs.csv"
        if listed.exists():
            least, columns = 2 + 4 * POINTS, "image A, image B, 10 each of x A, y A, x B, y B"
            self.rows = some(read_rows(listed, least, columns), listed)
        else:
            pairs = [pair for group in _groups(self.folder) for pair in permutations(group, 2)]
            self.rows = some(pairs, self.folder)

    def read(self, row: Row | tuple[Path, Path]) -> KeypointPair:
        if isinstance(row, Row):
            place = row.place
            image1, image2 = (self.folder.joinpath(*Path(name).parts[-2:]) for name in row.cells[:2])
            both = numbers(row, range(2, 2 + 4 * POINTS)).reshape(2, 2, POINTS)
            points1, points2 = both.transpose(0, 2, 1)
        else:
            image1, image2 = row
            place = str(image2.with_suffix(".mat"))
            points1, points2 = (_points(image.with_suffix(".mat")) for image in row)
        return KeypointPair(
            expect_image(image1, place),
            expect_image(image2, place),
            points1,
            category=image1.parent.name,
            name=f"{image1.parent.name}/{image1.stem}-{image2.stem}",
            points2=points2,
            length=longer_span(points2.min(0), points2.max(0), f"{place}: key points"),
        )


def _points(path: Path) -> Array:
    """The key points [10, 2] of an image."""
    points = read_variable(path, "pts_coord", (2, POINTS)).T
    return finite(points, f"{path}: pts_coord")


def _groups(folder: Path) -> list[list[Path]]:
    """The images of each group; raises ValueError for one without key points, or without an image."""
    groups = []
    for group in sorted(path for path in folder.iterdir() if path.is_dir()):
        images, points = (set(group.glob(f"*{end}")) for end in (".png", ".mat"))
        for missing in sorted({path.with_suffix(".mat") for path in images} ^ points):
            other = missing if missing not in points else missing.with_suffix(".png")
            raise ValueError(f'no file "{other}": expected a .png and a .mat of each name')
        groups.append(sorted(images))
    if not any(groups):
        raise ValueError(f"{folder}: expected {HOLDS}, found none")
    return groups
