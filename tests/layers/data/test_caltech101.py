"""Caltech-101 on small files of its format: outlines of the list and of annotations, and damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.io
from cortado.layers._data.keypoint_pairs import OutlinePair, open_pairs
from cortado.layers.data.caltech101 import Caltech101
from PIL import Image

HEAD = "source,target,class,XA,YA,XB,YB"
CROCODILE = ",".join(f"101_ObjectCategories/crocodile/image_000{i}.jpg" for i in (1, 2))
FACES = ",".join(f"101_ObjectCategories/Faces/image_000{i}.jpg" for i in (1, 2))
OUTLINES = "1;20;20.5,2;3;25,4;5;6;7;,8;9;10;11;"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for category, noted in (("crocodile", "crocodile"), ("Faces", "Faces_2")):
        (tmp_path / "101_ObjectCategories" / category).mkdir(parents=True)
        (tmp_path / "Annotations" / noted).mkdir(parents=True)
        for i in (1, 2):
            image = Image.new("RGB", (30, 26), (i, 0, 0))
            image.save(tmp_path / "101_ObjectCategories" / category / f"image_000{i}.jpg")
            outline = {
                "obj_contour": np.array([[0.5, 9, 4], [1, 2, 8]]) * i,
                "box_coord": np.array([[3, 20, 10, 25]], np.uint16),  # y1, y2, x1, x2
            }
            scipy.io.savemat(tmp_path / "Annotations" / noted / f"annotation_000{i}.mat", outline)
    (tmp_path / "test_pairs.csv").write_text(
        f"{HEAD}\n{CROCODILE},29,{OUTLINES}\n{FACES},1,{OUTLINES}\n"
    )
    return tmp_path


def test_outlines_of_the_list(folder: Path) -> None:
    first, second = open_pairs(f"caltech-101:{folder}")
    assert isinstance(first, OutlinePair)
    assert first.points1.tolist() == [[1, 2], [20, 3], [20.5, 25]]
    assert first.outline2.tolist() == [[4, 8], [5, 9], [6, 10], [7, 11]]
    assert (first.category, second.category) == ("crocodile", "Faces")
    assert first.name == "crocodile/image_0001-image_0002"
    assert first.image2 == folder / "101_ObjectCategories" / "crocodile" / "image_0002.jpg"


def test_outlines_of_the_annotations(folder: Path) -> None:
    (folder / "test_pairs.csv").write_text(f"source,target,class\n{CROCODILE},29\n{FACES},1\n")
    for pair in Caltech101(folder):  # those of Faces are in Faces_2
        assert pair.points1.tolist() == [[10.5, 4], [19, 5], [14, 11]]
        assert pair.outline2.tolist() == [[11, 5], [28, 7], [18, 19]]
    with pytest.raises(ValueError, match=r'^no split "trn": expected test$'):
        Caltech101(folder, "trn")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            f"{CROCODILE},29,1;2;3,1;2,4;5;6,4;5;6",
            "expected as many x as y, columns 4 and 5 have 3 and 2 numbers",
        ),
        (f"{CROCODILE},29,1;2;3,1;a;2,4;5;6,4;5;6", 'column 5: expected a number, found "a"'),
        (f"{CROCODILE},29,1;2;3,1;2;3,4;;6,4;5;6", 'column 6: expected a number, found ""'),
        (f"{CROCODILE},29,1;2;3,1;2;3,4;6,4;5", "expected outlines of 3 points, found 2"),
        (f"{CROCODILE},29,1;2;3,1;2;3", "expected the columns image A, image B, class"),
        ("image_0001.jpg,image_0002.jpg,29", "expected two images as <class>/<name>.jpg"),
        (
            f"{CROCODILE.replace('0002', '0003')},29,{OUTLINES}",
            'no image "DIR/101_ObjectCategories/crocodile/image_0003.jpg"',
        ),
    ],
)
def test_lines_that_are_wrong(folder: Path, line: str, message: str) -> None:
    (folder / "test_pairs.csv").write_text(f"{HEAD}\n{line}\n")
    with pytest.raises(ValueError) as caught:
        list(Caltech101(folder))
    found = str(caught.value).replace(str(folder), "DIR")
    assert found.startswith(f"DIR/test_pairs.csv:2: {message}")


def test_annotations_that_are_wrong(folder: Path) -> None:
    (folder / "test_pairs.csv").write_text(f"source,target\n{CROCODILE}\n")
    path = folder / "Annotations" / "crocodile" / "annotation_0002.mat"
    contour = np.array([[0.5, 9, 4], [1, 2, 8]])
    scipy.io.savemat(path, {"obj_contour": contour})
    with pytest.raises(
        ValueError, match=r"annotation_0002\.mat: expected box_coord, found obj_contour"
    ):
        list(Caltech101(folder))
    scipy.io.savemat(path, {"obj_contour": contour.T, "box_coord": np.ones((1, 4))})
    with pytest.raises(ValueError, match=r"obj_contour: expected numbers \[2, K\], found \[3, 2\]$"):
        list(Caltech101(folder))
    scipy.io.savemat(path, {"obj_contour": contour * np.inf, "box_coord": np.ones((1, 4))})
    with pytest.raises(ValueError, match=r"the outline: expected finite numbers, found inf$"):
        list(Caltech101(folder))
    path.unlink()
    with pytest.raises(
        ValueError, match=r'^cannot read the annotation ".*annotation_0002\.mat": No such'
    ):
        list(Caltech101(folder))
