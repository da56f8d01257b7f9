"""CUB-200-2011 on small files of its format: points, units, pairs, and what is missing or damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cortado.layers._data.keypoint_pairs import KeypointPair, open_pairs
from cortado.layers.data.cub200 import CUB200
from PIL import Image

CLASSES = {1: "001.Black_footed_Albatross", 2: "002.Laysan_Albatross"}
IMAGES = {  # number: class, training, size
    1: (1, 0, (50, 40)),
    2: (1, 1, (30, 40)),
    3: (1, 0, (36, 48)),
    4: (1, 0, (60, 25)),
    5: (2, 0, (20, 21)),
    6: (2, 1, (22, 20)),
    7: (2, 1, (23, 20)),
}
# image: the parts that are visible in it
VISIBLE = {1: (1, 2, 5), 2: (1,), 3: (2, 3, 5), 4: (4,), 5: (1, 2), 6: (3, 4), 7: (2, 3)}


def name(image: int) -> str:
    return f"{CLASSES[IMAGES[image][0]]}/Bird_{image:04}_7961{image}.jpg"


def place(image: int, part: int) -> tuple[float, float]:
    return image + part / 2, 3.0 * image - part


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {
        "classes.txt": [f"{number} {text}" for number, text in CLASSES.items()],
        "images.txt": [f"{image} {name(image)}" for image in IMAGES],
        "image_class_labels.txt": [f"{image} {values[0]}" for image, values in IMAGES.items()],
        "train_test_split.txt": [f"{image} {values[1]}" for image, values in IMAGES.items()],
        "bounding_boxes.txt": [f"{image} 2.0 3.0 {image + 4}.0 {20 - image}.0" for image in IMAGES],
        "parts/parts.txt": ["1 back", "2 beak", "3 belly", "4 breast", "5 left eye"],
        "parts/part_locs.txt": [
            " ".join(map(str, (image, part, *(place(image, part) if part in seen else (0.0, 0.0)))))
            + f" {int(part in seen)}"
            for image, seen in VISIBLE.items()
            for part in range(1, 6)
        ],
    }
    for path, lines in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("\n".join(lines) + "\n")
    for image, (_, _, size) in IMAGES.items():
        path = tmp_path / "images" / name(image)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(path)
    return tmp_path


def test_a_byte_order_mark_is_dropped(folder: Path) -> None:
    for name in ("images.txt", "classes.txt", "parts/part_locs.txt"):
        text = (folder / name).read_text()
        (folder / name).write_text("\ufeff" + text)
    assert len(CUB200(folder)[0].points1) == 2


def stems(pairs: object) -> list[str]:
    return [pair.name for pair in pairs]  # type: ignore[attr-defined]


def test_neighbours_of_a_split(folder: Path) -> None:
    """Of class 1 the test images are 1, 3, 4, and 3 and 4 share no part; of class 2 there is one."""
    pairs = open_pairs(f"cub-200-2011:{folder}")
    assert isinstance(pairs, CUB200)
    assert stems(pairs) == [f"{CLASSES[1]}/Bird_0001_79611-Bird_0003_79613"]
    assert (pairs.left_out, pairs.pixels) == (1, False)
    pair = pairs[0]
    assert isinstance(pair, KeypointPair)
    assert pair.points1.tolist() == [list(place(1, part)) for part in (2, 5)]
    assert pair.points2.tolist() == [list(place(3, part)) for part in (2, 5)]
    assert pair.category == CLASSES[1]
    assert pair.image1 == folder / "images" / name(1)
    assert pair.image2 == folder / "images" / name(3)
    assert stems(open_pairs(f"cub-200-2011:{folder}", "trn")) == [
        f"{CLASSES[2]}/Bird_0006_79616-Bird_0007_79617"
    ]


@pytest.mark.parametrize(
    ("length", "expected"), [("", 60), ("diagonal", 60), ("img", 48), ("bbox", 17)]
)
def test_units(folder: Path, length: str, expected: float) -> None:
    options = {"length": length} if length else {}
    assert CUB200(folder, **options)[0].length == expected


@pytest.mark.parametrize("by", ["{0} {1}", "{0},{1}", "{2} {3}", " {2}, {1} "])
def test_a_list_of_pairs(folder: Path, by: str) -> None:
    """By numbers or names, of any split and class."""
    rows = [(1, 2), (4, 1), (5, 1)]
    lines = [by.format(a, b, name(a), name(b)) for a, b in rows]
    (folder / "pairs.txt").write_text("\ufeff# cleaned\n #1 2\n" + "\n".join(lines) + "\n\n")
    pairs = CUB200(folder, pairs="pairs.txt")
    assert stems(pairs) == [
        f"{CLASSES[1]}/Bird_0001_79611-Bird_0002_79612",
        f"{CLASSES[2]}/Bird_0005_79615-Bird_0001_79611",
    ]
    assert pairs.left_out == 1
    assert pairs[0].points1.tolist() == [list(place(1, 1))]
    np.testing.assert_array_equal(pairs[1].points2, [place(1, 1), place(1, 2)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3", 'LIST:1: expected two images, found "1 2 3"'),
        ("\n1 99", 'LIST:2: "99" is no number and no name of images.txt'),
        ("", "LIST: expected pairs of images, found none"),
        (
            "3 4",
            "LIST: expected pairs of images, found pairs, but none with a part that is visible in both",
        ),
    ],
)
def test_lists_that_are_none(folder: Path, text: str, message: str) -> None:
    path = folder / "pairs.txt"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        CUB200(folder, pairs=path)
    assert str(caught.value).replace(str(path), "LIST") == message
    with pytest.raises(ValueError, match=r'^cannot read the list of pairs ".*none": No such file'):
        CUB200(folder, pairs="none")


def test_options_that_are_none(folder: Path) -> None:
    with pytest.raises(ValueError, match=r'^length: expected diagonal or img or bbox, got "px"$'):
        CUB200(folder, length="px")
    with pytest.raises(ValueError, match=r'^no split "val": expected test or trn$'):
        CUB200(folder, "val")
    with pytest.raises(
        ValueError, match=r'^no folder ".*none": expected images, images.txt and parts$'
    ):
        CUB200(folder / "none")


LOCS = "expected <image> <part> <x> <y> <visible>, found"


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("parts/part_locs.txt", "1 2 3 4", f'FILE:2: {LOCS} "1 2 3 4"'),
        ("parts/part_locs.txt", "1 2 3 x 1", f'FILE:2: {LOCS} "1 2 3 x 1"'),
        ("parts/part_locs.txt", "1 2 3 nan 1", f'FILE:2: {LOCS} "1 2 3 nan 1"'),
        ("parts/part_locs.txt", "1.5 2 3 4 1", f'FILE:2: {LOCS} "1.5 2 3 4 1"'),
        ("images.txt", "x y", 'FILE:2: expected <image> <name>, found "x y"'),
        ("images.txt", "2", 'FILE:2: expected <image> <name>, found "2"'),
        ("classes.txt", "two", 'FILE:2: expected <class> <name>, found "two"'),
        ("image_class_labels.txt", "2", 'FILE:2: expected <image> <class>, found "2"'),
        ("image_class_labels.txt", "2 3", "FILE: expected a class of image 2, found 3"),
        ("image_class_labels.txt", "1 1", "FILE: expected a class of image 2, found none"),
        ("train_test_split.txt", "2 x", 'FILE:2: expected <image> <is training>, found "2 x"'),
        (
            "bounding_boxes.txt",
            "2 1 1",
            'FILE:2: expected <image> <x> <y> <width> <height>, found "2 1 1"',
        ),
    ],
)
def test_damaged_lines(folder: Path, file: str, line: str, message: str) -> None:
    path = folder / file
    lines = path.read_text().splitlines()
    lines[1] = line
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError) as caught:
        CUB200(folder, length="bbox")
    assert str(caught.value).replace(str(path), "FILE") == message
    path.unlink()
    with pytest.raises(ValueError, match=r'^cannot read the list ".*": No such file'):
        CUB200(folder, length="bbox")


def test_boxes_that_are_none(folder: Path) -> None:
    path = folder / "bounding_boxes.txt"
    path.write_text("3 1 1 0 0\n")
    with pytest.raises(
        ValueError, match=r"boxes\.txt: image 3: expected a box larger than a point, found"
    ):
        CUB200(folder, length="bbox")[0]
    path.write_text("1 1 1 9 9\n")
    with pytest.raises(ValueError, match=r"boxes\.txt: expected the box of image 3, found none$"):
        CUB200(folder, length="bbox")[0]
    path.unlink()
    assert len(CUB200(folder)) == 1  # not read for another unit


def test_images_that_are_missing(folder: Path) -> None:
    (folder / "images" / name(3)).unlink()
    with pytest.raises(ValueError, match=r'train_test_split\.txt: no image ".*Bird_0003_79613\.jpg"$'):
        CUB200(folder)[0]
