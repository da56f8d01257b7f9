"""The Motorcycle pair: its matches look alike, hidden pixels are left out."""

import numpy as np
import pytest
import skimage.data
from cortado.layers._data.images import read_image
from cortado.layers._data.keypoint_pairs import open_pairs
from cortado.layers.data.stereo import StereoPair, motorcycle, rotation_about_centre, visible
from likeness import SHIFTS, depths, likeness, off_the_epipolar_lines


@pytest.fixture(scope="module")
def pair():
    return motorcycle()


def difference(pair, pairs):
    x1, y1, x2, y2 = np.rint(pairs).astype(int).T
    return np.abs(pair.left[y1, x1].astype(float) - pair.right[y2, x2]).mean()


def test_matches_look_alike(pair):
    assert len(pair.pairs) > 200_000
    wrong_way = pair.pairs.copy()
    wrong_way[:, 2] = np.clip(2 * pair.pairs[:, 0] - pair.pairs[:, 2], 0, pair.right.shape[1] - 1)
    assert difference(pair, pair.pairs) < 15 < difference(pair, wrong_way)


@pytest.mark.parametrize("degrees", [15, 40])
def test_warped_matches_look_alike(pair, degrees):
    moved = pair.warped(rotation_about_centre(degrees, pair.right.shape[:2], perspective=0.05))
    assert 3_000 < len(moved.pairs) < len(pair.pairs)
    assert difference(moved, moved.pairs) < 20


def test_a_hidden_pixel_is_found():
    disparity = np.full((1, 8), 1.0)
    disparity[0, 5] = 3.0  # lands on 2, in front of what left 3 shows there, and near 2 and 4
    disparity[0, 7] = np.inf
    assert visible(disparity)[0].tolist() == [False, True, False, False, False, True, True, False]


def test_the_rotation_turns_about_the_centre_from_x_to_y():
    quarter = rotation_about_centre(90, (5, 7))
    x, y, w = quarter @ [4, 2, 1]
    assert np.allclose([x / w, y / w], [3, 3])
    point = StereoPair(
        np.zeros((5, 7, 3), np.uint8), np.zeros((5, 7, 3), np.uint8), np.array([[0.0, 0, 4, 2]])
    )
    assert np.allclose(point.warped(quarter).pairs, [[0, 0, 3, 3]])


def test_a_boxs_match_is_moved_by_the_median_of_its_known_pixels():
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(2, 8), np.arange(6)))
    d = np.where(x < 5, 1.0, 2.0)
    pair = StereoPair(
        np.zeros((6, 8, 3), np.uint8),
        np.zeros((6, 8, 3), np.uint8),
        np.c_[x, y, x - d, y].astype(float),
    )
    boxes = np.array([[2, 1, 4, 3], [4, 1, 7, 5], [0, 0, 3, 5], [0, 0, 2, 5], [0, 0, 1, 1.0]])
    wanted = [[1, 1, 3, 3, 1], [2, 1, 5, 5, 1], [0, 0, 2, 5, 1], [0, 0, 0, 0, -1], [0, 0, 0, 0, -1]]
    assert pair.truth(boxes).tolist() == wanted
    assert pair.truth(boxes, known=0.3)[3].tolist() == [0, 0, 1, 5, 1]


def test_the_reader_gives_the_same_matches(pair):
    (read,) = pairs = open_pairs("skimage:motorcycle")
    assert pairs.pixels
    assert (read.name, read.category, read.length) == ("motorcycle", "motorcycle", 1)
    assert np.array_equal(np.c_[read.points1, read.points2], pair.pairs)
    assert np.array_equal(read_image(read.image1), pair.left)
    assert np.array_equal(read_image(read.image2), pair.right)


def test_the_reader_with_those_that_are_hidden(pair):
    (read,) = open_pairs("skimage:motorcycle", occluded="yes")
    assert len(pair.pairs) < len(read.points1) < 1.1 * len(pair.pairs)
    assert set(map(tuple, pair.pairs[:, :2])) < set(map(tuple, read.points1))


def test_the_readers_matches_look_alike():
    (read,) = open_pairs("skimage:motorcycle")
    right = likeness(read)
    assert right > 0.97
    for dx, dy in SHIFTS:
        assert likeness(read, dx, dy) < right - 0.03


def test_the_motion_fits_the_matches():
    (read,) = open_pairs("skimage:motorcycle")
    assert off_the_epipolar_lines(read) < 1e-6
    assert depths(read).min() > 1_500  # mm
    assert depths(read).max() < 20_000
    assert read.motion.translation.tolist() == [-193.001, 0, 0]
    assert read.motion.camera2[0, 2] - read.motion.camera1[0, 2] == pytest.approx(31.086)


def test_what_the_reader_has_not():
    with pytest.raises(ValueError, match='^no pair "chess" in scikit-image: expected motorcycle$'):
        open_pairs("skimage:chess")
    with pytest.raises(ValueError, match='^no split "val": expected test$'):
        open_pairs("skimage:motorcycle", "val")
    with pytest.raises(ValueError, match='^occluded: expected yes or no, got "2"$'):
        open_pairs("skimage:motorcycle", occluded=2)


def test_a_file_that_scikit_image_has_not(monkeypatch, tmp_path):
    monkeypatch.setattr(skimage.data, "data_dir", str(tmp_path))
    monkeypatch.setattr(skimage.data, "__file__", str(tmp_path / "data" / "__init__.py"))
    with pytest.raises(ValueError, match=r'^no file "motorcycle_left.png" in .* or .*data$'):
        open_pairs("skimage:motorcycle")[0]
