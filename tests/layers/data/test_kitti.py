"""KITTI of 2012 and 2015, made pairs of the published layouts, and damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cortado.layers._data.keypoint_pairs import open_pairs
from cortado.layers.data.kitti import KittiFlow2015, KittiStereo2012, KittiStereo2015
from likeness import depths, off_the_epipolar_lines
from PIL import Image

HEIGHT, WIDTH = 5, 9
F, CX, CY = 707.0912, 601.8873, 183.1104
SHIFTS = {0: 0.0, 1: -379.8145, 2: 46.88783, 3: -334.0081}
OF_2012 = ("colored_0", "colored_1", "disp_noc", "disp_occ", "calib", "P{}")
OF_2015 = ("image_2", "image_3", "disp_noc_0", "disp_occ_0", "calib_cam_to_cam", "P_rect_0{}")
LAYOUTS = {"2012": OF_2012, "2015": OF_2015}


def png16(path: Path, values: np.ndarray) -> None:
    """A PNG of 16 bits, by OpenCV, whose colours are BGR."""
    cv2 = pytest.importorskip("cv2")
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.rint(values).astype(np.uint16)
    assert cv2.imwrite(str(path), values[..., ::-1] if values.ndim == 3 else values)


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)


def flow_image(u: float, v: float, rows: slice) -> np.ndarray:
    values = np.zeros((HEIGHT, WIDTH, 3))
    values[rows] = u * 64 + 2**15, v * 64 + 2**15, 1
    return values


def disparity_image(d: float, rows: slice) -> np.ndarray:
    values = np.zeros((HEIGHT, WIDTH))
    values[rows] = d * 256
    return values


def projection(key: str, camera: int) -> str:
    cells = (F, 0, CX, SHIFTS[camera], 0, F, CY, 0, 0, 0, 1, 0)
    return f"{key.format(camera)}: {' '.join(f'{cell:.12e}' for cell in cells)}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Both years below folders of their names, of two pairs; in _noc rows 1 and 2 are known, in _occ
    the last two as well."""
    for year, (left, right, noc, occ, calibration, key) in LAYOUTS.items():
        training = tmp_path / year / "training"
        for name in ("000000", "000007"):
            for frame in ("10", "11"):
                image(training / left / f"{name}_{frame}.png")
                image(training / right / f"{name}_{frame}.png")
            for which, rows in (("noc", slice(1, 3)), ("occ", slice(1, 5))):
                flow = training / f"flow_{which}" / f"{name}_10.png"
                png16(flow, flow_image(-2.25, 0.5, rows))
                disparity = training / (noc if which == "noc" else occ) / f"{name}_10.png"
                png16(disparity, disparity_image(3.125, rows))
            text = "calib_time: 09-Jan-2012 13:57:47\nR_rect_00: 1 0 0\n"
            text += "".join(projection(key, camera) for camera in SHIFTS)
            path = training / calibration / f"{name}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    return tmp_path


@pytest.mark.parametrize("year", LAYOUTS)
@pytest.mark.parametrize("below", ["", "training"])
@pytest.mark.parametrize(("occluded", "rows"), [("no", range(1, 3)), ("yes", range(1, 5))])
def test_flow(folder: Path, year: str, below: str, occluded: str, rows: range) -> None:
    pairs = open_pairs(f"kitti-{year}-flow:{folder / year / below}", occluded=occluded)
    assert pairs.pixels
    assert [pair.name for pair in pairs] == ["000000_10", "000007_10"]
    left = folder / year / "training" / LAYOUTS[year][0]
    for pair in pairs:
        assert pair.category == f"kitti-{year}-flow"
        assert pair.image1 == left / f"{pair.name}.png"
        assert pair.image2 == left / f"{pair.name.replace('_10', '_11')}.png"
        wanted = [[x, y, x - 2.25, y + 0.5] for y in rows if y < 4 for x in range(3, WIDTH)]
        assert np.c_[pair.points1, pair.points2].tolist() == wanted
        assert (pair.length, pair.signs, pair.motion) == (1, None, None)


@pytest.mark.parametrize(("year", "cameras"), [("2012", (0, 1)), ("2015", (2, 3))])
@pytest.mark.parametrize(("occluded", "rows"), [(False, range(1, 3)), (True, range(1, 5))])
def test_stereo(folder: Path, year: str, cameras: tuple[int, int], occluded: bool, rows: range) -> None:
    pairs = open_pairs(f"kitti-{year}-stereo:{folder / year}", occluded=occluded)
    assert pairs.pixels
    assert [pair.name for pair in pairs] == ["000000_10", "000007_10"]
    left, right = (folder / year / "training" / name for name in LAYOUTS[year][:2])
    for pair in pairs:
        assert pair.category == f"kitti-{year}-stereo"
        assert (pair.image1, pair.image2) == (left / f"{pair.name}.png", right / f"{pair.name}.png")
        wanted = [[x, y, x - 3.125, y] for y in rows for x in range(4, WIDTH)]
        assert np.c_[pair.points1, pair.points2].tolist() == wanted
        assert pair.length == 1
        shift = (SHIFTS[cameras[1]] - SHIFTS[cameras[0]]) / F
        np.testing.assert_allclose(pair.motion.translation, [shift, 0, 0], atol=1e-12)
        assert pair.motion.rotation.tolist() == np.eye(3).tolist()
        for camera in (pair.motion.camera1, pair.motion.camera2):
            assert camera.tolist() == [[F, 0, CX], [0, F, CY], [0, 0, 1]]
        assert off_the_epipolar_lines(pair) < 1e-9
        np.testing.assert_allclose(depths(pair), -shift * F / 3.125)


def test_cameras_that_are_not_in_line(folder: Path) -> None:
    """A point seen by P1 and P2 is seen by the motion."""
    path = folder / "2015" / "training" / "calib_cam_to_cam" / "000000.txt"
    one = np.array([[700, 0, 600, 44], [0, 701, 180, 0.2], [0, 0, 1, 0.003]])
    two = np.array([[710, 0, 590, -330], [0, 712, 181, 2.2], [0, 0, 1, 0.0031]])
    lines = [f"P_rect_0{i}: {' '.join(map(repr, p.ravel().tolist()))}" for i, p in ((2, one), (3, two))]
    path.write_text("\n".join(lines))
    motion = KittiStereo2015(folder / "2015")[0].motion
    world = np.array([1.5, -0.5, 9.0])
    first = np.linalg.solve(one[:, :3], one @ [*world, 1])
    np.testing.assert_allclose(motion.camera1 @ first, one @ [*world, 1])
    second = motion.rotation @ first + motion.translation
    np.testing.assert_allclose(motion.camera2 @ second, two @ [*world, 1])


def test_without_a_calibration_there_is_no_motion(folder: Path) -> None:
    (folder / "2012" / "training" / "calib" / "000000.txt").unlink()
    assert [pair.motion is None for pair in KittiStereo2012(folder / "2012")] == [True, False]


def test_the_grey_images_of_2012_where_there_are_no_coloured_ones(folder: Path) -> None:
    training = folder / "2012" / "training"
    for side in "01":
        (training / f"colored_{side}").rename(training / f"image_{side}")
    pair = KittiStereo2012(folder / "2012")[0]
    assert pair.image1 == training / "image_0" / "000000_10.png"
    assert pair.image2 == training / "image_1" / "000000_10.png"
    pair = open_pairs(f"kitti-2012-flow:{folder / '2012'}")[0]
    assert pair.image2 == training / "image_0" / "000000_11.png"


def said(reader: type, folder: Path, **options: object) -> str:
    with pytest.raises(ValueError) as caught:
        list(reader(folder, **options))
    return str(caught.value).replace(str(folder), "DIR")


def test_what_is_missing_or_damaged(folder: Path) -> None:
    root = folder / "2015"
    assert said(KittiFlow2015, root / "none") == (
        'no folder "DIR": expected training, with image_2 and the truth'
    )
    assert said(KittiFlow2015, root, split="test") == 'no split "test": expected training'
    assert said(KittiFlow2015, root, occluded="x") == 'occluded: expected yes or no, got "x"'
    (root / "empty").mkdir()
    none = "expected 000000_10.png and such, found none"
    assert said(KittiFlow2015, root / "empty") == f"DIR/flow_noc: {none}"
    assert said(KittiStereo2015, root / "empty", occluded=1) == f"DIR/disp_occ_0: {none}"
    training = root / "training"
    (training / "image_2" / "000007_11.png").unlink()
    assert said(KittiFlow2015, root) == (
        'DIR/training/flow_noc/000007_10.png: no image "DIR/training/image_2/000007_11.png"'
    )
    png16(training / "flow_noc" / "000000_10.png", np.ones((HEIGHT, WIDTH)))
    assert said(KittiFlow2015, root) == (
        "DIR/training/flow_noc/000000_10.png: expected flow, 16 bits of 3 channels, found 1 channel"
    )
    png16(training / "disp_noc_0" / "000000_10.png", np.ones((HEIGHT, 3)))
    assert said(KittiStereo2015, root) == (
        "DIR/training/disp_noc_0/000000_10.png: "
        "expected 9 x 5 pixels, the size of its image, found 3 x 5"
    )
    png16(training / "disp_noc_0" / "000000_10.png", np.zeros((HEIGHT, WIDTH)))
    assert said(KittiStereo2015, root) == (
        "DIR/training/disp_noc_0/000000_10.png: expected matches inside both images, "
        "found none (masks, or a truth of other images?)"
    )


def test_a_calibration_that_is_damaged(folder: Path) -> None:
    root = folder / "2015"
    path = root / "training" / "calib_cam_to_cam" / "000000.txt"
    text = path.read_text()
    place = "DIR/training/calib_cam_to_cam/000000.txt:"

    def with_line(key: str, value: str) -> str:
        lines = [
            f"{key}: {value}" if line.startswith(f"{key}:") else line for line in text.splitlines()
        ]
        path.write_text("\n".join(lines))
        return said(KittiStereo2015, root)

    twelve = f"{place} expected P_rect_03: 12 finite numbers, found"
    assert with_line("P_rect_03", "1 2 3") == f"{twelve} '1 2 3'"
    assert with_line("P_rect_03", "1 2 3 4 5 6 7 8 9 10 11 nan").startswith(twelve)
    assert with_line("P_rect_03", "1 2 3 4 5 6 7 8 9 10 11 x").startswith(twelve)
    assert with_line("P_rect_03", "") == f"{twelve} ''"
    empty = twelve.replace("03", "02")
    assert with_line("P_rect_02", "") == f"{empty} ''"
    assert with_line("P_rect_02", "1 " * 12) == (
        f"{place} P_rect_02: expected a camera, found a matrix without an inverse"
    )
    path.write_text(text.replace("P_rect_03", "P_rect_04"))
    assert said(KittiStereo2015, root) == f"{twelve} ''"
