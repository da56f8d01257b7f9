"""PF-PASCAL on small files of its format: points, units, splits, and what is missing or damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.io
from cortado.layers._data.keypoint_pairs import open_pairs
from cortado.layers.data.pf_pascal import PFPascal
from PIL import Image

NAN = [np.nan, np.nan]
POINTS = {
    "2008_000001": [[10.5, 20.0], NAN, [30.0, 5.0], [1.0, 1.0]],
    "2008_000002": [[12.0, 22.0], [3.0, 4.0], NAN, [7.0, 8.0]],
}
SIZES = {"2008_000001": (50, 40), "2008_000002": (36, 48)}  # width, height
HEAD = "source_image,target_image,class,XA,YA,XB,YB"
PAIR = "PF-dataset-PASCAL/JPEGImages/2008_000001.jpg,PF-dataset-PASCAL/JPEGImages/2008_000002.jpg"
BACK = ",".join(PAIR.split(",")[::-1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "Annotations" / "bicycle").mkdir(parents=True)
    for name, points in POINTS.items():
        Image.new("RGB", SIZES[name]).save(tmp_path / "JPEGImages" / f"{name}.jpg")
        noted = {"kps": np.array(points), "bbox": np.array([[2, 3, 30, 40]], np.uint8)}
        scipy.io.savemat(tmp_path / "Annotations" / "bicycle" / f"{name}.mat", noted)
    (tmp_path / "test_pairs.csv").write_text(f"{HEAD}\n{PAIR},2,1;2,3;4,5;6,7;8\n{BACK},2,1,2,3,4\n")
    (tmp_path / "val_pairs.csv").write_text(f"{HEAD}\n{BACK},2.0\n")
    (tmp_path / "trn_pairs.csv").write_text(f"a,b,class,flip\n{PAIR},2,0\n{PAIR},2,1\n{BACK},2,0\n")
    return tmp_path


def test_points_that_both_images_show(folder: Path) -> None:
    pairs = open_pairs(f"pf-pascal:{folder}")
    assert len(pairs) == 2
    first, second = pairs
    assert first.points1.tolist() == second.points2.tolist() == [[10.5, 20], [1, 1]]
    assert first.points2.tolist() == second.points1.tolist() == [[12, 22], [7, 8]]
    assert (first.category, first.name) == ("bicycle", "bicycle/2008_000001-2008_000002")
    assert [path.name for path in (first.image1, first.image2)] == [
        "2008_000001.jpg",
        "2008_000002.jpg",
    ]


def test_the_unit_is_the_target_images_longer_side_or_its_objects(folder: Path) -> None:
    assert [pair.length for pair in PFPascal(folder)] == [48, 50]
    assert [pair.length for pair in open_pairs(f"pf-pascal:{folder}", length="bbox")] == [37, 37]
    with pytest.raises(ValueError, match=r'^length: expected img or bbox, got "box"$'):
        PFPascal(folder, length="box")


def test_splits(folder: Path) -> None:
    one, two = ("bicycle/2008_000001-2008_000002", "bicycle/2008_000002-2008_000001")
    named = {split: [p.name for p in PFPascal(folder, split)] for split in ("trn", "val", "test")}
    assert named == {"trn": [one, two], "val": [two], "test": [one, two]}  # without the mirrored pair
    with pytest.raises(ValueError, match=r'^no split "train": expected trn or val or test$'):
        PFPascal(folder, "train")


def said(folder: Path, **options: str) -> str:
    with pytest.raises(ValueError) as caught:
        list(PFPascal(folder, **options))
    return str(caught.value).replace(str(folder), "DIR")


def test_what_is_missing_or_damaged(folder: Path) -> None:
    noted = folder / "Annotations" / "bicycle" / "2008_000002.mat"
    place = "DIR/Annotations/bicycle/2008_000002.mat"
    kps, bbox = np.array(POINTS["2008_000002"]), np.array([[2, 3, 30, 40]])

    def with_variables(**variables: np.ndarray) -> str:
        scipy.io.savemat(noted, variables)
        return said(folder, length="bbox")

    assert (
        with_variables(kps=kps.T, bbox=bbox) == f"{place}: kps: expected numbers [K, 2], found [2, 4]"
    )
    assert with_variables(kps=kps[:3], bbox=bbox) == (
        "DIR/Annotations/bicycle/2008_000001.mat: kps: expected as many key points in both, "
        f"found 4, and 3 in {place}"
    )
    assert with_variables(kps=kps * np.nan, bbox=bbox) == (
        "DIR/test_pairs.csv:2: expected key points that both images show, found none"
    )
    assert with_variables(kps=np.where(kps == 7, np.inf, kps), bbox=bbox) == (
        f"{place}: kps: expected finite numbers, found inf"
    )
    assert with_variables(kps=kps) == f"{place}: expected bbox, found kps"
    assert with_variables(kps=kps, bbox=bbox[:, :3]) == (
        f"{place}: bbox: expected numbers [1, 4], found [1, 3]"
    )
    assert with_variables(kps=kps, bbox=bbox * 0) == (
        f"{place}: bbox: expected a box larger than a point, found [0.0, 0.0] to [0.0, 0.0]"
    )
    noted.unlink()
    assert said(folder) == f'cannot read the annotation "{place}": No such file or directory'
    (folder / "JPEGImages" / "2008_000002.jpg").unlink()
    assert said(folder) == 'DIR/test_pairs.csv:2: no image "DIR/JPEGImages/2008_000002.jpg"'
    (folder / "test_pairs.csv").unlink()
    missing = 'cannot read the list of pairs "DIR/test_pairs.csv": No such file or directory'
    assert said(folder) == missing
    with pytest.raises(ValueError, match=r"expected JPEGImages, Annotations and the lists of pairs$"):
        PFPascal(folder / "none")


@pytest.mark.parametrize("number", ["0", "21", "bicycle", "1.5", ""])
def test_a_class_that_is_none(folder: Path, number: str) -> None:
    (folder / "test_pairs.csv").write_text(f"{HEAD}\n\n{PAIR},2\n{PAIR},{number}\n")
    expected = f'column 3: expected a class, 1 to 20, found "{number}"'
    assert said(folder) == f"DIR/test_pairs.csv:4: {expected}"


def test_an_image_that_is_cut(folder: Path) -> None:
    path = folder / "JPEGImages" / "2008_000002.jpg"
    path.write_bytes(path.read_bytes()[:20])
    assert said(folder).startswith('cannot read image "DIR/JPEGImages/2008_000002.jpg": ')
