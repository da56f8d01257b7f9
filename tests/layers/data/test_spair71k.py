"""SPair-71k on small files of its format: points, units, layouts, and what is missing or damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cortado.layers._data.keypoint_pairs import open_pairs
from cortado.layers.data.spair71k import SPair71k
from PIL import Image

NAME, OTHER = "000001-2007_000464-2008_001234:cow", "000002-2008_001234-2007_000464:cow"
NOTED = {
    "filename": NAME,
    "src_imname": "2007_000464.jpg",
    "trg_imname": "2008_001234.jpg",
    "category": "cow",
    "src_imsize": [50, 40, 3],
    "src_bndbox": [1, 2, 30, 20],
    "trg_bndbox": [5, 6, 25, 36],
    "src_kps": [[10, 11], [12, 13.5], [20, 9]],
    "trg_kps": [[7, 8], [15, 30], [24, 7]],
    "viewpoint_variation": 1,
}
BACK = NOTED | {
    "src_imname": NOTED["trg_imname"],
    "trg_imname": NOTED["src_imname"],
    "src_kps": NOTED["trg_kps"],
    "trg_kps": NOTED["src_kps"],
    "trg_bndbox": NOTED["src_bndbox"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "JPEGImages" / "cow").mkdir(parents=True)
    for name in ("2007_000464", "2008_001234"):
        Image.new("RGB", (50, 40)).save(tmp_path / "JPEGImages" / "cow" / f"{name}.jpg")
    layout, noted = tmp_path / "Layout", tmp_path / "PairAnnotation"
    lists = {"large/test": f"{NAME}\n{OTHER}\n", "large/trn": f"{OTHER}\n", "small/test": NAME}
    for name, text in lists.items():
        (layout / name).parent.mkdir(parents=True, exist_ok=True)
        (layout / f"{name}.txt").write_text(text)
    for split, name, values in (("test", NAME, NOTED), ("test", OTHER, BACK), ("trn", OTHER, BACK)):
        (noted / split).mkdir(parents=True, exist_ok=True)
        (noted / split / f"{name}.json").write_text(json.dumps(values))
    return tmp_path


def test_points_and_the_unit(folder: Path) -> None:
    first, second = open_pairs(f"spair-71k:{folder}")
    assert first.points1.tolist() == second.points2.tolist() == NOTED["src_kps"]
    assert first.points2.tolist() == second.points1.tolist() == NOTED["trg_kps"]
    assert (first.length, second.length) == (30, 29)  # of the target's object
    assert (first.category, first.name) == ("cow", NAME)
    assert first.image1 == second.image2 == folder / "JPEGImages" / "cow" / "2007_000464.jpg"


def test_splits_and_layouts(folder: Path) -> None:
    assert [pair.name for pair in SPair71k(folder, "trn")] == [OTHER]
    assert [pair.name for pair in open_pairs(f"spair-71k:{folder}", layout="small")] == [NAME]
    with pytest.raises(ValueError, match=r'^layout: expected large or small, got "tiny"$'):
        SPair71k(folder, layout="tiny")
    with pytest.raises(ValueError, match=r'^no split "train": expected trn or val or test$'):
        SPair71k(folder, "train")
    with pytest.raises(ValueError, match=r'^cannot read the list of pairs ".*large/val\.txt": No such'):
        SPair71k(folder, "val")


def said(folder: Path, text: str) -> str:
    """What is raised where this is the annotation of the first pair."""
    path = folder / "PairAnnotation" / "test" / f"{NAME}.json"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        SPair71k(folder)[0]
    return str(caught.value).replace(str(path), "FILE").replace(str(folder), "DIR")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"trg_kps": [[7, 8], [15, 30]]},
            "expected as many src_kps as trg_kps, at least one, found 3 and 2",
        ),
        ({"trg_kps": []}, "trg_kps: expected numbers [K, 2], found [0]"),
        (
            {"src_kps": [[1, 2], [3]]},
            "src_kps: expected numbers [K, 2], found lists of different lengths",
        ),
        ({"src_kps": [["1", "2"]]}, "src_kps: expected numbers [K, 2], found [1, 2] of <U1"),
        ({"src_kps": [[1, None]]}, "src_kps: expected numbers [K, 2], found [1, 2] of object"),
        ({"src_kps": [[1, 10**400]]}, "src_kps: expected numbers [K, 2], found [1, 2] of object"),
        ({"trg_kps": [[1, float("nan")]] * 3}, "trg_kps: expected finite numbers, found nan"),
        ({"trg_bndbox": [5, 6, 25]}, "trg_bndbox: expected numbers [4], found [3]"),
        (
            {"trg_bndbox": [5, 6, 5, 6]},
            "trg_bndbox: expected a box larger than a point, found [5.0, 6.0] to [5.0, 6.0]",
        ),
        ({"category": 3}, "category: expected a string, found 3"),
        ({"src_imname": "none.jpg"}, 'no image "DIR/JPEGImages/cow/none.jpg"'),
    ],
)
def test_values_that_are_none(folder: Path, changed: dict[str, Any], message: str) -> None:
    assert said(folder, json.dumps(NOTED | changed)) == f"FILE: {message}"


@pytest.mark.parametrize("key", ["src_imname", "category", "trg_kps", "trg_bndbox"])
def test_a_key_that_is_missing(folder: Path, key: str) -> None:
    left = {name: value for name, value in NOTED.items() if name != key}
    assert said(folder, json.dumps(left)) == f"FILE: expected {key}, found {', '.join(left)}"


def test_json_that_is_damaged(folder: Path) -> None:
    whole = json.dumps(NOTED)
    for cut in range(len(whole)):
        assert said(folder, whole[:cut]).startswith("FILE: expected JSON: ")
    assert said(folder, "[" * 100_000).startswith("FILE: expected JSON: ")
    assert said(folder, "[1]") == "FILE: expected an object of JSON, found list"


def test_what_is_missing(folder: Path) -> None:
    (folder / "PairAnnotation" / "test" / f"{OTHER}.json").unlink()
    with pytest.raises(ValueError, match=r'^cannot read the annotation ".*000002-.*": No such file'):
        list(SPair71k(folder))
    (folder / "Layout" / "large" / "test.txt").write_text("\n\n")
    with pytest.raises(ValueError, match=r"test\.txt: expected pairs of images, found none$"):
        SPair71k(folder)
    with pytest.raises(ValueError, match=r"expected JPEGImages, PairAnnotation and Layout$"):
        SPair71k(folder / "none")
