"""HPatches' sequences, made ones of the published layout, and damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cortado.layers._data.keypoint_pairs import open_pairs
from cortado.layers.data.hpatches import HPatches
from PIL import Image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three sequences, whose image n is image 1 scaled by n / 2."""
    for name, end in (("v_adam", ".ppm"), ("i_dome", ".ppm"), ("i_autannes", ".png")):
        (tmp_path / name).mkdir()
        for n in range(1, 7):
            Image.new("RGB", (9, 5), (n, 0, 0)).save(tmp_path / name / f"{n}{end}")
            if n > 1:
                (tmp_path / name / f"H_1_{n}").write_text(f"{n / 2} 0.0 0.0\n0 {n / 2} 0\n0 0 1 \n")
    (tmp_path / "other").mkdir()
    return tmp_path


def test_the_pairs(folder: Path) -> None:
    pairs = open_pairs(f"hpatches:{folder}")
    assert pairs.pixels
    names = [f"{name}/1-{n}" for name in ("i_autannes", "i_dome", "v_adam") for n in range(2, 7)]
    assert [pair.name for pair in pairs] == names
    assert [pair.category for pair in pairs] == ["illumination"] * 10 + ["viewpoint"] * 5
    for pair in pairs:
        sequence, n = pair.name.split("/")[0], int(pair.name[-1])
        end = ".png" if sequence == "i_autannes" else ".ppm"
        assert pair.image1 == folder / sequence / f"1{end}"
        assert pair.image2 == folder / sequence / f"{n}{end}"
        inside = [(x, y) for y in range(5) for x in range(9) if x * n / 2 <= 8 and y * n / 2 <= 4]
        wanted = [[x, y, x * n / 2, y * n / 2] for x, y in inside]
        np.testing.assert_allclose(np.c_[pair.points1, pair.points2], wanted)
        assert (pair.length, pair.signs, pair.motion) == (1, None, None)


def test_some_of_the_images(folder: Path) -> None:
    found = [pair.name for pair in open_pairs(f"hpatches:{folder}", to="2,6")]
    assert found == [f"{name}/1-{n}" for name in ("i_autannes", "i_dome", "v_adam") for n in (2, 6)]
    with pytest.raises(
        ValueError, match='^to: expected numbers of images such as 2,3, up to 6, got "9"'
    ):
        open_pairs(f"hpatches:{folder}", to=9)


def test_homographies_that_are_not_there(folder: Path) -> None:
    for path in folder.glob("*/H_1_4"):
        path.unlink()
    with pytest.raises(ValueError, match=": expected homographies to image 4, found none$"):
        HPatches(folder, to=4)


def said(folder: Path, split: str = "test") -> str:
    with pytest.raises(ValueError) as caught:
        list(HPatches(folder, split))
    return str(caught.value).replace(str(folder), "DIR")


def test_what_is_missing_or_damaged(folder: Path) -> None:
    holds = "sequences such as v_graffiti and i_bologna, with 1.ppm, 2.ppm and H_1_2"
    assert said(folder / "none") == f'no folder "DIR": expected {holds}'
    assert said(folder / "other") == f"DIR: expected {holds}, found none"
    assert said(folder, "val") == 'no split "val": expected test'
    (folder / "v_adam" / "H_1_4").write_text("1 0 0\n0 1 0\n")
    assert said(folder) == "DIR/v_adam/H_1_4: expected 3 lines of 3 finite numbers, found 2"
    (folder / "i_dome" / "5.ppm").unlink()
    assert said(folder) == 'no image "DIR/i_dome/5.*": expected such as 5.png'
    (folder / "i_autannes" / "H_1_2").write_text("1 0 9\n0 1 0\n0 0 1\n")
    assert said(folder) == (
        "DIR/i_autannes/H_1_2: expected matches inside both images, "
        "found none (masks, or a truth of other images?)"
    )
