"""The Oxford affine sequences: the real ones where they are there, made ones, and damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cortado.layers._data.keypoint_pairs import open_pairs
from cortado.layers.data.oxford_affine import OxfordAffine
from likeness import SHIFTS, likeness
from PIL import Image
from shared import SHARED

REAL = SHARED / "data" / "homography" if SHARED else Path("missing")
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="no homographies in the shared folder")


def storage(x: float, y: float) -> str:
    data = f"1 0 {x} 0 1 {y} 0 0 1"
    inside = f"<rows>3</rows><cols>3</cols><dt>d</dt><data>{data}</data>"
    return f"<opencv_storage><H type_id='opencv-matrix'>{inside}</H></opencv_storage>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two sequences, whose image n is image 1 moved by (n, -1)."""
    for name, end in (("wall", ".ppm"), ("bikes", ".png")):
        (tmp_path / name).mkdir()
        for n in range(1, 7):
            Image.new("RGB", (12, 8 + n), (n, 0, 0)).save(tmp_path / name / f"img{n}{end}")
    for n, end in ((2, ""), (3, ".txt"), (6, "")):
        (tmp_path / "wall" / f"H1to{n}p{end}").write_text(f"1 0 {n}\n0 1 -1\n0 0 1\n")
    (tmp_path / "bikes" / "H1to2p.xml").write_text(storage(2, -1))
    return tmp_path


def test_the_pairs(folder: Path) -> None:
    pairs = open_pairs(f"oxford-affine:{folder}")
    assert pairs.pixels
    assert [pair.name for pair in pairs] == ["bikes/1-2", "wall/1-2", "wall/1-3", "wall/1-6"]
    assert [pair.category for pair in pairs] == ["bikes", "wall", "wall", "wall"]
    for pair, n in zip(pairs, (2, 2, 3, 6), strict=True):
        end = ".png" if pair.category == "bikes" else ".ppm"
        assert pair.image1 == folder / pair.category / f"img1{end}"
        assert pair.image2 == folder / pair.category / f"img{n}{end}"
        wanted = [[x, y, x + n, y - 1] for y in range(1, 9) for x in range(12 - n)]
        assert np.c_[pair.points1, pair.points2].tolist() == wanted
        assert (pair.length, pair.signs, pair.motion) == (1, None, None)


def test_a_single_sequence(folder: Path) -> None:
    assert [pair.name for pair in OxfordAffine(folder / "wall")] == ["wall/1-2", "wall/1-3", "wall/1-6"]


def test_some_of_the_images(folder: Path) -> None:
    found = [pair.name for pair in open_pairs(f"oxford-affine:{folder}", to="3,2")]
    assert found == ["bikes/1-2", "wall/1-2", "wall/1-3"]
    assert [pair.name for pair in open_pairs(f"oxford-affine:{folder}", to=6)] == ["wall/1-6"]
    for wrong in ("", "1", "2,7", "two", "2,", (2, 9), ()):
        with pytest.raises(ValueError) as caught:
            open_pairs(f"oxford-affine:{folder}", to=wrong)
        expected = "expected numbers of images such as 2,3, up to 6"
        assert str(caught.value) == f'to: {expected}, got "{wrong}"'
    for several in ((2, 3), [3, 2], "2, 3"):
        assert [pair.name for pair in open_pairs(f"oxford-affine:{folder}", to=several)] == found
    assert len(open_pairs(f"oxford-affine:{folder}", to=[6])) == 1
    with pytest.raises(ValueError, match=": expected homographies to image 5, found none$"):
        open_pairs(f"oxford-affine:{folder}", to=5)


def test_a_link_to_a_sequence_has_its_own_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "other").symlink_to(folder / "bikes")
    assert OxfordAffine(folder / "other")[0].name == "other/1-2"
    assert OxfordAffine(folder)[1].category == "other"
    monkeypatch.chdir(folder / "bikes")
    assert OxfordAffine(".")[0].name == "bikes/1-2"


def said(folder: Path, split: str = "test") -> str:
    with pytest.raises(ValueError) as caught:
        list(OxfordAffine(folder, split))
    return str(caught.value).replace(str(folder), "DIR")


def test_what_is_missing_or_damaged(folder: Path) -> None:
    holds = "a sequence, such as img1.ppm, img2.ppm and H1to2p, or folders of sequences"
    assert said(folder / "none") == f'no folder "DIR": expected {holds}'
    assert said(folder, "val") == 'no split "val": expected test'
    (folder / "empty").mkdir()
    assert said(folder / "empty") == f"DIR: expected {holds}, found none"
    path = folder / "wall" / "H1to3p.txt"
    path.write_text("1 0 3\n0 1 x\n0 0 1\n")
    expected = "expected 3 lines of 3 finite numbers"
    assert said(folder) == f'DIR/wall/H1to3p.txt:2: {expected}, found "0 1 x"'
    path.write_text("1 0 99\n0 1 0\n0 0 1\n")
    assert said(folder) == (
        "DIR/wall/H1to3p.txt: expected matches inside both images, "
        "found none (masks, or a truth of other images?)"
    )
    (folder / "wall" / "img2.ppm").unlink()
    assert said(folder) == 'no image "DIR/wall/img2.*": expected such as img2.png'
    (folder / "bikes" / "img1.png").write_bytes(b"")
    assert said(folder).startswith("cannot read DIR/bikes/img1.png: it is no PNG")


COUNTS = {
    "boat": [564743, 567875, 578000, 578000, 578000],
    "graf": [484144, 499504, 487959, 471155, 480461],
}


@needs_real
@pytest.mark.parametrize("name", COUNTS)
def test_the_real_sequences(name: str) -> None:
    pairs = open_pairs(f"oxford-affine:{REAL / name}")
    assert [pair.name for pair in pairs] == [f"{name}/1-{n}" for n in range(2, 7)]
    for pair, count in zip(pairs, COUNTS[name], strict=True):
        assert abs(len(pair.points1) - count) <= 5  # a point may lie on the border but for rounding


@needs_real
@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("number", [0, 1])
def test_the_real_matches_look_alike(name: str, number: int) -> None:
    pair = OxfordAffine(REAL)[number + 5 * (name == "graf")]
    assert pair.name == f"{name}/1-{number + 2}"
    right = likeness(pair)
    assert right > 0.85
    for dx, dy in SHIFTS:
        assert likeness(pair, dx, dy) < right - 0.05
