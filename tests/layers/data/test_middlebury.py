"""Middlebury: real scenes where they are there, made ones of every published layout, and damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cortado.layers._data.images import read_image
from cortado.layers._data.keypoint_pairs import open_pairs
from cortado.layers._data.truth import consistent, read_disparity, read_mask, visible
from cortado.layers.data.middlebury import Middlebury
from likeness import SHIFTS, depths, likeness, off_the_epipolar_lines
from PIL import Image
from shared import SHARED

REAL = SHARED / "data" / "stereo" if SHARED else Path("missing")
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="Middlebury is not in the shared folder")

CALIBRATION = """cam0=[ 100 0 8.5 ; 0 100 3 ; 0 0 1 ]
 cam1=[100 0 10.5; 0 100 3; 0 0 1]
doffs=2
baseline= 176.25
width=12
height=4
"""


def image(path: Path, width: int, height: int) -> None:
    Image.new("RGB", (width, height), (1, 2, 3)).save(path)


def grey(path: Path, values: np.ndarray) -> None:
    Image.fromarray(values.astype(np.uint8)).save(path)


def pfm(path: Path, values: np.ndarray) -> None:
    head = f"Pf\n{values.shape[1]} {values.shape[0]}\n-0.003922\n".encode()
    path.write_bytes(head + values[::-1].astype("<f4").tobytes())


DISPARITY = np.full((4, 12), 2.25)
DISPARITY[0, :3] = np.inf
DISPARITY[3, 11] = 5.5  # in front of what lands near 5.5


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A scene as those of 2014."""
    folder = tmp_path / "Chess"
    folder.mkdir()
    image(folder / "im0.png", 12, 4)
    image(folder / "im1.png", 12, 4)
    pfm(folder / "disp0.pfm", DISPARITY)
    (folder / "calib.txt").write_text(CALIBRATION)
    return folder


def test_a_scene_of_2014(scene: Path) -> None:
    (pair,) = open_pairs(f"middlebury:{scene}")
    assert (pair.name, pair.category, pair.length, pair.signs) == ("Chess", "Chess", 1, None)
    assert (pair.image1, pair.image2) == (scene / "im0.png", scene / "im1.png")
    seen = visible(np.where(np.isfinite(DISPARITY), DISPARITY, np.nan))
    y, x = np.nonzero(seen)
    assert not seen[3, 7]
    assert pair.points1.tolist() == np.c_[x, y].tolist()
    assert pair.points2.tolist() == np.c_[x - DISPARITY[y, x], y].tolist()
    assert pair.motion.rotation.tolist() == np.eye(3).tolist()
    assert pair.motion.translation.tolist() == [-176.25, 0, 0]
    assert pair.motion.camera1.tolist() == [[100, 0, 8.5], [0, 100, 3], [0, 0, 1]]
    assert pair.motion.camera2.tolist() == [[100, 0, 10.5], [0, 100, 3], [0, 0, 1]]
    (scene / "calib.txt").unlink()
    assert Middlebury(scene)[0].motion is None


def points(scene: Path, **options: object) -> set[tuple[float, float]]:
    (pair,) = Middlebury(scene, **options)
    return {(x, y) for x, y in pair.points1}


def test_what_tells_which_pixels_are_seen(scene: Path) -> None:
    known = {(x, y) for y in range(4) for x in range(3, 12)}  # whose match is inside
    assert points(scene) == known - {(8, 3)} - {(7, 3)}
    assert points(scene, occluded="yes") == known
    other = np.full((4, 12), 2.25)
    other[1] = 9
    pfm(scene / "disp1.pfm", other)
    agreed = {(x, y) for x, y in known if y != 1} - {(11, 3)}
    assert points(scene) == agreed
    mask = np.full((4, 12), 255)
    mask[2, 4:], mask[2, 3] = 128, 0
    grey(scene / "mask0nocc.png", mask)
    assert points(scene) == {(x, y) for x, y in known if y != 2}
    assert points(scene, occluded=True) == known
    pfm(scene / "disp0GT.pfm", DISPARITY + 1)  # comes before disp0.pfm
    assert points(scene, occluded=True) == {(x, y) for x, y in known if x >= 4}


PUBLISHED = {  # images, disparities, width, height, what they are divided by
    "2006 in full": ("view1.png", "view5.png", "disp1.png", "disp5.png", 1240, 1110, 1),
    "2005 in half": ("view1.png", "view5.png", "disp1.png", "disp5.png", 695, 555, 2),
    "2006 in thirds": ("view1.png", "view5.png", "disp1.png", "disp5.png", 413, 370, 3),
    "2003 in full": ("im2.ppm", "im6.ppm", "disp2.pgm", "disp6.pgm", 1800, 1500, 1),
    "2003 in half": ("im2.ppm", "im6.ppm", "disp2.pgm", "disp6.pgm", 900, 750, 2),
    "2003 in quarters": ("im2.png", "im6.png", "disp2.png", "disp6.png", 450, 375, 4),
    "2001": ("im2.ppm", "im6.ppm", "disp2.pgm", "disp6.pgm", 434, 383, 8),
    "2001, map": ("im0.pgm", "im1.pgm", "disp0.pgm", "disp1.pgm", 284, 216, 8),
    "2001, tsukuba": (
        "scene1.row3.col3.ppm",
        "scene1.row3.col4.ppm",
        "truedisp.row3.col3.pgm",
        "",
        384,
        288,
        16,
    ),
}


@pytest.mark.parametrize("layout", PUBLISHED)
def test_a_published_layout(tmp_path: Path, layout: str) -> None:
    left, right, disparity1, disparity2, width, height, scale = PUBLISHED[layout]
    image(tmp_path / left, width, height)
    image(tmp_path / right, width, height)
    values = np.zeros((height, width), np.uint8)
    values[5, 200:210], values[6, 200:210] = 120, 45
    grey(tmp_path / disparity1, values)
    (pair,) = Middlebury(tmp_path)
    assert pair.image1 == tmp_path / left
    assert pair.image2 == tmp_path / right
    d = {5: 120 / scale, 6: 45 / scale}
    wanted = [[x, y, np.float32(x - d[y]), y] for y in (5, 6) for x in range(200, 210)]
    np.testing.assert_allclose(np.c_[pair.points1, pair.points2], wanted, rtol=1e-7)
    assert pair.motion is None
    (pair,) = Middlebury(tmp_path, scale="60")
    assert pair.points2[0].tolist() == [198, 5]
    if disparity2:
        other = np.zeros((height, width), np.uint8)
        other[6] = 45 + scale // 2
        grey(tmp_path / disparity2, other)
        assert set(Middlebury(tmp_path)[0].points1[:, 1]) == {6}
        assert len(Middlebury(tmp_path, occluded=True)[0].points1) == 20


def test_a_folder_of_scenes(scene: Path) -> None:
    for name in ("b", "a"):
        folder = scene.parent / name
        folder.mkdir()
        image(folder / "im2.ppm", 434, 4)
        image(folder / "im6.ppm", 434, 4)
        grey(folder / "disp2.pgm", np.full((4, 434), 16))
    (scene.parent / "other").mkdir()
    pairs = open_pairs(f"middlebury:{scene.parent}")
    assert [pair.name for pair in pairs] == ["Chess", "a", "b"]
    assert [len(pair.points1) for pair in pairs] == [34, 4 * 432, 4 * 432]
    assert pairs.pixels


def test_a_link_to_a_scene_has_its_own_name(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (scene.parent / "Board").symlink_to(scene)
    assert [pair.name for pair in Middlebury(scene.parent)] == ["Board", "Chess"]
    monkeypatch.chdir(scene)
    assert Middlebury(".")[0].name == "Chess"


def test_a_scene_whose_matches_differ_in_y_is_refused(scene: Path) -> None:
    pfm(scene / "disp0y.pfm", DISPARITY)
    expected = "expected a rectified scene, found disp0y.pfm"
    wanted = f"DIR: {expected}: its matches differ in y too; take the folder -perfect"
    assert said(scene) == wanted
    assert said(scene.parent) == wanted.replace("DIR", "DIR/Chess")
    pfm(scene / "disp0GT.pfm", DISPARITY)  # version 3
    assert len(Middlebury(scene)) == 1


def said(folder: Path, **options: object) -> str:
    with pytest.raises(ValueError) as caught:
        list(Middlebury(folder, **options))
    return str(caught.value).replace(str(folder), "DIR")


def test_what_is_missing_or_damaged(scene: Path) -> None:
    holds = "a scene, such as im0.png, im1.png and disp0.pfm, or folders of scenes"
    assert said(scene / "none") == f'no folder "DIR": expected {holds}'
    (scene / "empty").mkdir()
    assert said(scene / "empty") == f"DIR: expected {holds}, found none"
    assert said(scene, split="val") == 'no split "val": expected test'
    assert said(scene, scale="x") == 'scale: expected a number above 0, got "x"'
    assert said(scene, scale=2) == "DIR/disp0.pfm: expected no scale, its numbers are pixels"
    assert said(scene, occluded="x") == 'occluded: expected yes or no, got "x"'
    pfm(scene / "disp0.pfm", DISPARITY[:3])
    size = "expected 12 x 4 pixels, the size of its image, found"
    assert said(scene) == f"DIR/disp0.pfm: {size} 12 x 3"
    pfm(scene / "disp0.pfm", np.full((4, 12), np.inf))
    assert said(scene) == (
        "DIR/disp0.pfm: expected matches inside both images, "
        "found none (masks, or a truth of other images?)"
    )
    pfm(scene / "disp0.pfm", DISPARITY)
    pfm(scene / "disp1.pfm", DISPARITY[:, 1:])
    assert said(scene) == f"DIR/disp1.pfm: {size} 11 x 4"
    grey(scene / "mask0nocc.png", np.full((3, 3), 255))
    assert said(scene) == f"DIR/mask0nocc.png: {size} 3 x 3"
    (scene / "im1.png").write_bytes(b"no image")
    assert said(scene).startswith("cannot read DIR/im1.png: it is no PNG")


def test_a_calibration_that_is_damaged(scene: Path) -> None:
    path = scene / "calib.txt"

    def with_text(old: str, new: str) -> str:
        assert old in CALIBRATION
        path.write_text(CALIBRATION.replace(old, new))
        return said(scene)

    place = "DIR/calib.txt: expected"
    assert with_text("cam1", "cam2") == f'{place} cam1 = 9 finite numbers, found ""'
    assert with_text("[100 0", "[100 x") == (
        f'{place} cam1 = 9 finite numbers, found "[100 x 10.5; 0 100 3; 0 0 1]"'
    )
    assert with_text("176.25", "nan") == f'{place} baseline = 1 finite numbers, found "nan"'
    assert with_text("176.25", "1 2") == f'{place} baseline = 1 finite numbers, found "1 2"'
    assert with_text("width=12", "width=24") == f"{place} the images' width, 12, found 24"
    assert with_text("height=4", "height=8") == f"{place} the images' height, 4, found 8"
    path.write_bytes(b"\xff")
    assert said(scene).startswith('cannot read the calibration "DIR/calib.txt"')


def test_a_scale_that_is_not_published(tmp_path: Path) -> None:
    for names, width, height in [
        (("view1.png", "view5.png", "disp1.png"), 600, 400),
        (("im2.png", "im6.png", "disp2.png"), 640, 480),
        (("im0.png", "im1.png", "disp0.png"), 718, 496),
    ]:
        folder = tmp_path / names[0]
        folder.mkdir()
        image(folder / names[0], width, height)
        image(folder / names[1], width, height)
        grey(folder / names[2], np.full((height, width), 8))
        found = f"{width} x {height} pixels"
        assert said(folder) == (
            f"DIR/{names[2]}: no such disparity of {found} is published: give its scale"
        )
        assert len(Middlebury(folder, scale=8)[0].points1) == (width - 1) * height


COUNTS = {
    "Adirondack": 324865,
    "ArtL": 72926,
    "Jadeplant": 245991,
    "Piano": 293776,
    "Pipes": 281507,
    "Playroom": 267456,
    "Recycle": 317486,
    "Shelves": 304704,
}


@needs_real
def test_the_real_scenes() -> None:
    pairs = open_pairs(f"middlebury:{REAL}")
    assert [pair.name for pair in pairs] == list(COUNTS)
    for pair in pairs:
        scene = REAL / pair.name
        disparity, mask = read_disparity(scene / "disp0GT.pfm"), read_mask(scene / "mask0nocc.png")
        width = disparity.shape[1]
        seen = np.isfinite(disparity) & (mask == 255)
        seen &= (np.arange(width) - disparity >= 0) & (np.arange(width) - disparity <= width - 1)
        assert len(pair.points1) == seen.sum() == COUNTS[pair.name]
        assert off_the_epipolar_lines(pair) < 1e-6
        assert depths(pair).min() > 500  # mm
        assert depths(pair).max() < 20_000


@needs_real
@pytest.mark.parametrize("name", ["Playroom", "Shelves", "Jadeplant", "ArtL"])
def test_the_real_matches_look_alike(name: str) -> None:
    (pair,) = Middlebury(REAL / name)
    right = likeness(pair)
    assert right > 0.9
    for dx, dy in SHIFTS:
        assert likeness(pair, dx, dy) < right - 0.01


@needs_real
def test_the_masks_of_real_scenes_agree_with_what_visible_finds() -> None:
    scene = REAL / "Piano"
    disparity, mask = read_disparity(scene / "disp0GT.pfm"), read_mask(scene / "mask0nocc.png")
    assert disparity.shape == read_image(scene / "im0.png").shape[:2]
    known = np.isfinite(disparity)
    assert (visible(disparity) == (mask == 255))[known].mean() > 0.97
    turned = np.full_like(disparity, np.nan)  # the right image's disparity, by those seen
    y, x = np.nonzero(visible(disparity))
    turned[y, np.rint(x - disparity[y, x]).astype(int)] = disparity[y, x]
    assert consistent(disparity, turned)[visible(disparity)].mean() > 0.97
