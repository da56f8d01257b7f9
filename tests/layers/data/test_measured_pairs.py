"""Pairs as a protocol wants them, against loops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
from cortado.layers._data import keypoint_pairs
from cortado.layers._data.keypoint_pairs import (
    ImagePair,
    KeypointPair,
    OutlinePair,
    PairReader,
    as_count,
    as_flag,
    reader,
)
from cortado.layers._data.measured_pairs import MeasuredPairs, at_corners, fast, open_measured
from PIL import Image

CIRCLE = [
    *((0, -3), (1, -3), (2, -2), (3, -1), (3, 0), (3, 1), (2, 2), (1, 3)),
    *((0, 3), (-1, 3), (-2, 2), (-3, 1), (-3, 0), (-3, -1), (-2, -2), (-1, -3)),
]


class Toy(PairReader):
    """Pairs of one image of 60 x 40 pixels: pair n has 10 n matches, two in five that are none."""

    pixels = True
    read_so_far = 0

    def __init__(self, folder: str | Path, split: str = "test", count: object = 3) -> None:
        self.image = Path(folder) / "noise.png"
        self.rows: Sequence[int] = range(1, 1 + as_count(count, "count"))

    def read(self, row: int) -> ImagePair:
        type(self).read_so_far += 1
        rng = np.random.default_rng(row)
        one, two = rng.uniform(0, 40, (2, 10 * row, 2))
        signs = np.tile([1.0, 0, 1, 1, 0], 2 * row)
        return KeypointPair(self.image, self.image, one, "toy", f"toy/{row}", two, 1.0, signs)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    monkeypatch.setattr(keypoint_pairs, "_readers", dict(keypoint_pairs._readers))
    monkeypatch.setattr(Toy, "read_so_far", 0)
    reader("toy")(Toy)
    return tmp_path


def rows(pair: ImagePair) -> list[tuple[float, ...]]:
    assert isinstance(pair, KeypointPair)
    assert pair.signs is None
    return [tuple(row) for row in np.c_[pair.points1, pair.points2]]


def test_points_are_drawn_of_those_that_match(folder: Path) -> None:
    opened = open_measured([f"toy:{folder}"], points=12, seed=4)
    assert (len(opened), opened.dense, opened.in_pixels) == (3, True, True)
    for given, drawn in zip(Toy(folder), opened, strict=True):
        assert isinstance(given, KeypointPair)
        assert given.signs is not None
        true = [tuple(row) for row in np.c_[given.points1, given.points2][given.signs == 1]]
        got = rows(drawn)
        assert len(got) == min(12, len(true))
        assert len({*got}) == len(got)
        assert {*got} <= {*true}
        assert [true.index(row) for row in got] == sorted(true.index(row) for row in got)
    again, other = (open_measured([f"toy:{folder}"], points=12, seed=seed)[2] for seed in (4, 5))
    assert rows(opened[2]) == rows(again)
    assert rows(opened[2]) != rows(other)
    assert len(rows(open_measured([f"toy:{folder}"])[2])) == 18


def test_a_point_is_as_likely_as_another(folder: Path) -> None:
    true = rows(open_measured([f"toy:{folder}"])[1])
    count = np.zeros(len(true))
    for seed in range(600):
        for row in rows(open_measured([f"toy:{folder}"], points=4, seed=seed)[1]):
            count[true.index(row)] += 1
    assert abs(count / 600 - 4 / 12).max() < 4 * (1 / 3 * 2 / 3 / 600) ** 0.5


def test_several_data_sets_one_after_the_other_and_nothing_read_before_it_is_asked_for(
    folder: Path,
) -> None:
    opened = open_measured([f"toy:{folder}", f"toy:{folder}/."], count="2")
    assert len(opened) == 4
    assert len(opened.some([3, 1])) == 2
    assert Toy.read_so_far == 0
    assert [pair.name for pair in opened] == ["toy/1", "toy/2"] * 2
    assert [pair.name for pair in opened.some([3, 0])] == ["toy/2", "toy/1"]


@pytest.mark.parametrize(("length", "wanted"), [("img", 60), ("diagonal", (60**2 + 40**2) ** 0.5)])
def test_the_unit_of_pck(folder: Path, length: str, wanted: float) -> None:
    opened = open_measured([f"toy:{folder}"], length=length)
    pair = opened[0]
    assert isinstance(pair, KeypointPair)
    assert (pair.length, opened.in_pixels, opened.dense) == (wanted, False, True)


def test_corners_take_the_match_of_a_point_near(folder: Path) -> None:
    image = np.zeros((40, 60), np.uint8)
    image[10:30, 20:50] = 200
    Image.fromarray(image).save(folder / "square.png")
    corners = {(20.0, 10.0), (49.0, 10.0), (20.0, 29.0), (49.0, 29.0)}
    assert {*map(tuple, fast(rgb(image)))} == corners
    one = np.array([[20.5, 10.5], [49, 11.25], [20, 29], [3, 3]])
    two = np.array([[1, 2], [3, 4], [5, 6], [7, 8.0]])
    square = folder / "square.png"
    found = at_corners(KeypointPair(square, square, one, "toy", "toy/0", two, 1.0))
    assert sorted(rows(found)) == [(20, 10, 0.5, 1.5), (20, 29, 5, 6)]  # 49, 10 is too far from a point
    Image.fromarray(image[:7, :7]).save(folder / "noise.png")
    assert rows(MeasuredPairs([Toy(folder)], points="fast")[0]) == []  # whose image has no corner
    assert fast(rgb(image[:6])).shape == fast(rgb(np.zeros((40, 60)))).shape == (0, 2)


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey.astype(np.uint8)[..., None], 3, 2)


def is_corner(image: np.ndarray, x: int, y: int) -> bool:
    """The definition: of the 16 pixels of the circle 9 in a row are all brighter, or all darker."""
    around = np.array([int(image[y + dy, x + dx]) - int(image[y, x]) for dx, dy in CIRCLE])
    return any(
        all(sign * around[(start + i) % 16] > 20 for i in range(9))
        for sign in (1, -1)
        for start in range(16)
    )


def test_fast_corners_are_the_definitions() -> None:
    rng = np.random.default_rng(1)
    image = np.kron(rng.integers(0, 256, (12, 15)), np.ones((5, 5))).astype(np.uint8)
    height, width = image.shape
    found = {(int(x), int(y)) for x, y in fast(rgb(image))}
    every = {
        (x, y) for y in range(3, height - 3) for x in range(3, width - 3) if is_corner(image, x, y)
    }
    assert len(found) > 20
    assert found <= every
    mask = np.zeros(image.shape, int)
    mask[tuple(np.array([*every]).T[::-1])] = 1
    groups, count = scipy.ndimage.label(mask, np.ones((3, 3)))
    assert {groups[y, x] for x, y in found} == {*range(1, count + 1)}  # of touching ones some are kept
    assert not any(max(abs(x - u), abs(y - v)) == 1 for x, y in found for u, v in found)


class Outlines(PairReader):
    rows: Sequence[int] = [0]

    def read(self, row: int) -> ImagePair:
        square = np.array([[0, 0], [1, 0], [1, 1.0]])
        return OutlinePair(Path("a.png"), Path("b.png"), square, "toy", "toy/0", square)


def test_mistakes(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^data sets measured in pixels, and others, are evaluated apart$"
    ):
        MeasuredPairs([Toy(folder), Outlines()])
    assert MeasuredPairs([Outlines()])[0].name == "toy/0"
    for options in ({"points": 3}, {"length": "img"}):
        with pytest.raises(
            ValueError, match=r"^toy/0: outlines have no points to draw, and no length$"
        ):
            MeasuredPairs([Outlines()], **options)[0]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^toy has no length \(it has count\)$"):
        open_measured([f"toy:{folder}"], length="bbox")
    with pytest.raises(ValueError, match='^points: expected a number, all or fast, got "some"$'):
        open_measured([f"toy:{folder}"], points="some")
    assert len(rows(open_measured([f"toy:{folder}"], points="all")[2])) == 18
    with pytest.raises(ValueError, match="^a data set is named twice: toy:x, toy:x$"):
        open_measured(["toy:x", "toy:x"])
    with pytest.raises(ValueError, match='^count: expected a whole number of at least 1, got "0"$'):
        open_measured([f"toy:{folder}"], count="0")


def test_options_are_text_or_values() -> None:
    assert [as_flag(x, "x") for x in ("yes", "True", True, "1", "no", False, "false", "0")] == [
        *[True] * 4,
        *[False] * 4,
    ]
    assert (as_count("12", "x"), as_count(7, "x")) == (12, 7)
    with pytest.raises(ValueError, match='^occluded: expected yes or no, got "maybe"$'):
        as_flag("maybe", "occluded")
    for wrong in ("-1", "1.5", "", "x", "١", "9" * 20, 0):
        with pytest.raises(ValueError, match="^step: expected a whole number of at least 1, got"):
            as_count(wrong, "step")
