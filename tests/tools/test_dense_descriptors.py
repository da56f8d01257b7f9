"""The dense descriptors are scikit-image's and OpenCV's, at points of one's own."""

import math
import sys
import tracemalloc
from functools import partial
from types import ModuleType

import numpy as np
import pytest
import skimage.data
from cortado.tools import dense_descriptors
from cortado.tools.dense_descriptors import (
    DESCRIPTORS,
    RADIUS,
    SIGMA,
    as_gray,
    dense_beblid,
    dense_daisy,
    dense_sift,
    orientations,
)
from cortado.tools.matching import Descriptors
from skimage.color import rgb2gray
from skimage.feature import SIFT, daisy

each = pytest.mark.parametrize("name", DESCRIPTORS)


@pytest.fixture(scope="module")
def image():
    return skimage.data.coffee()[100:220, 150:290]


def places(count, seed=0):
    """Points of the image between pixels, its corners first."""
    some = np.random.default_rng(seed).uniform(0, (139, 119), (count, 2))
    some[:4] = [[0, 0], [139, 0], [0, 119], [139, 119]]
    return some


@each
def test_rows_are_of_unit_length_and_float32(name, image):
    found = DESCRIPTORS[name](image, places(200))
    assert found.dtype == np.float32
    assert found.shape == (200, {"d": 200, "s": 128, "b": 512}[name[0]])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)


@each
def test_no_points(name, image):
    found = DESCRIPTORS[name](image, np.zeros((0, 2)))
    assert found.dtype == np.float32
    assert found.shape == (0, DESCRIPTORS[name](image, places(4)).shape[1])


@each
def test_a_point_is_described_alone_as_among_others_and_twice_alike(name, image):
    points = places(30)
    found = DESCRIPTORS[name](image, points)
    alone = np.concatenate([DESCRIPTORS[name](image, point[None]) for point in points[:6]])
    assert found[:6].tobytes() == alone.tobytes()
    assert found.tobytes() == DESCRIPTORS[name](image, points).tobytes()


@each
def test_a_point_beyond_the_borders_counts_as_on_them(name, image):
    beyond = DESCRIPTORS[name](image, np.array([[-3.2, 50], [1e9, 50.5], [20, -1], [20.5, 119.5]]))
    there = DESCRIPTORS[name](image, np.array([[0, 50], [139, 50.5], [20, 0], [20.5, 119]]))
    assert beyond.tobytes() == there.tobytes()


@each
@pytest.mark.parametrize(
    ("points", "text"),
    [
        ([[1, 2, 3]], r"expected points \[P, 2\], got \[1, 3\]"),
        ([1, 2], r"expected points \[P, 2\], got \[2\]"),
        ([[1, math.nan]], "expected points that are finite"),
        ([[math.inf, 1]], "expected points that are finite"),
    ],
)
def test_other_points(name, points, text, image):
    with pytest.raises(ValueError, match=f"^{text}$"):
        DESCRIPTORS[name](image, np.array(points))


@each
@pytest.mark.parametrize(
    ("array", "got"),
    [
        (np.zeros((20, 30), np.uint8), r"uint8 \[20, 30\]"),
        (np.zeros((20, 30, 4), np.uint8), r"uint8 \[20, 30, 4\]"),
        (np.zeros((20, 30, 3)), r"float64 \[20, 30, 3\]"),
        (np.zeros((0, 30, 3), np.uint8), r"uint8 \[0, 30, 3\]"),
    ],
)
def test_other_images(name, array, got):
    with pytest.raises(ValueError, match=rf"^expected an image uint8 \[H, W, 3\], got {got}$"):
        DESCRIPTORS[name](array, np.zeros((1, 2)))


@each
def test_a_shift_is_found(name, image):
    points = np.array([[60, 60], [100, 80], [80, 52]])
    found = Descriptors(DESCRIPTORS[name]).nearest(image, image[8:, 12:], points)
    assert found.tolist() == (points - [12, 8]).tolist()


@pytest.mark.parametrize("name", ["sift", "beblid"])
def test_only_the_oriented_one_finds_a_quarter_turn(name, image):
    points = np.c_[np.tile(np.arange(40, 100, 4), 10), np.repeat(np.arange(40, 80, 4), 15)]
    turned = np.ascontiguousarray(np.rot90(image))  # (x, y) lies at (y, width - 1 - x) afterwards
    truth = np.c_[points[:, 1], image.shape[1] - 1 - points[:, 0]]
    found = {}
    for key in (name, f"{name}-oriented"):
        matched = Descriptors(DESCRIPTORS[key]).nearest(image, turned, points)
        found[key] = (np.abs(matched - truth).max(1) <= 4).mean()
    assert found[name] < 0.1 < 0.6 < found[f"{name}-oriented"]


# DAISY


def whole_daisy(image, radius):
    """The maps [H, W, 25, 8] of the whole image in float64, without scikit-image's 1e-10."""
    padded = np.pad(rgb2gray(image), radius, mode="reflect")
    maps = daisy(padded, step=1, radius=radius, normalization="off")
    return maps.reshape(*image.shape[:2], 25, 8)


@pytest.mark.parametrize("radius", [RADIUS, 8])
def test_daisy_is_scikit_images_at_pixels(radius, image):
    points = np.floor(places(150))
    found = dense_daisy(image, points, radius=radius)
    padded = np.pad(rgb2gray(image), radius, mode="reflect")
    x, y = points.astype(int).T
    want = daisy(padded, step=1, radius=radius, normalization="daisy")[y, x] / 5
    np.testing.assert_allclose(found, want, atol=2e-5)


def test_daisy_between_pixels_is_interpolated(image):
    points, maps = places(60), whole_daisy(image, RADIUS)
    points[10:20, 0] = np.floor(points[10:20, 0])
    points[20:30, 1] = np.floor(points[20:30, 1])
    want = np.zeros((60, 200))
    for i, (x, y) in enumerate(points):
        for row in range(120):
            for column in range(140):
                share = max(0, 1 - abs(x - column)) * max(0, 1 - abs(y - row))
                if share:
                    want[i] += share * maps[row, column].ravel()
        for j in range(25):
            want[i, 8 * j : 8 * j + 8] /= 5 * np.linalg.norm(want[i, 8 * j : 8 * j + 8])
    np.testing.assert_allclose(dense_daisy(image, points), want, atol=2e-5)


@pytest.mark.parametrize("rows", [5, 50, 119])
def test_daisy_in_strips_is_that_of_the_whole(rows, image, monkeypatch):
    points = np.concatenate([places(300), np.floor(places(300, 1))])  # in every strip
    want = dense_daisy(image, points)
    monkeypatch.setattr(dense_descriptors, "ROOM", rows * 140 * 800)
    assert dense_daisy(image, points).tobytes() == want.tobytes()


def test_daisy_needs_no_more_than_its_room(image, monkeypatch):
    tall = np.tile(image, (10, 1, 1))  # whose maps are 134 MB
    monkeypatch.setattr(dense_descriptors, "ROOM", 2**22)
    tracemalloc.start()
    try:
        dense_daisy(tall, places(50) * [1, 10])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40e6


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (5, 3), (18, 200)])
def test_daisy_of_a_small_image(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    y, x = np.mgrid[: shape[0], : shape[1]]
    found = dense_daisy(image, np.c_[x.ravel(), y.ravel()])
    assert np.isfinite(found).all()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), shape != (1, 1), rtol=1e-5)


@pytest.mark.parametrize("describe", [dense_daisy, dense_sift, partial(dense_sift, oriented=True)])
def test_a_flat_patch_is_zero_and_matches_nothing(describe, image):
    half = np.zeros((120, 400, 3), np.uint8)
    half[:, :140] = image
    flat = np.array([[300, 60], [60, 60]])
    assert (np.abs(describe(half, flat)).sum(1) > 0).tolist() == [False, True]
    found = Descriptors(describe).nearest(half, half, flat)
    assert np.isnan(found[0]).all()
    assert found[1].tolist() == flat[1].tolist()
    assert not describe(half[:, 150:], np.array([[20, 20]])).any()


# SIFT


@pytest.mark.parametrize("sigma", [SIGMA, 1.6])
def test_sift_is_scikit_images_between_pixels(sigma, image):
    points = places(60)
    sift = SIFT(upsampling=1, n_octaves=1, sigma_min=sigma)
    sift.positions = points[:, ::-1].astype(np.float32)
    sift.scales = sift.octaves = np.zeros(60, int)
    sift.sigmas, sift.orientations = np.full(60, sigma, np.float32), np.zeros(60)
    sift.extract(rgb2gray(image).astype(np.float32))
    want = sift.descriptors / np.linalg.norm(sift.descriptors, axis=1, keepdims=True)
    apart = np.linalg.norm(dense_sift(image, points, sigma=sigma) - want, axis=1)
    assert apart.max() < 0.02  # they are of whole numbers: one of them may go the other way


def test_sift_moves_with_the_point(image):
    """Between pixels, too: half a pixel changes it, a whole one is the image's shift."""
    points = places(40)[4:] * 0.3 + 40
    here = dense_sift(image, np.add(points, (4, 2)))
    shifted = dense_sift(image[2:, 4:], points)
    np.testing.assert_allclose(here, shifted, atol=0.02)
    moved = np.linalg.norm(here - dense_sift(image, np.add(points, (4.5, 2))), axis=1)
    assert (moved > 0.02).all()


@pytest.mark.parametrize("whole", [True, False])
def test_orientations_are_scikit_images(whole, image):
    rng = np.random.default_rng(1)
    points = np.c_[rng.uniform(0, 139, 80), rng.uniform(0, 118, 80)]
    points = np.floor(points) if whole else points
    gray = as_gray(image)
    sift = SIFT(upsampling=1, n_octaves=1, sigma_min=SIGMA)
    zeros = np.zeros(80, int)
    space = sift._create_scalespace(sift._preprocess(gray))
    where = points[:, ::-1].astype(np.float32)
    sift._compute_orientation(where, zeros, np.full(80, SIGMA, np.float32), zeros, space)
    # Its first row for a point is the peak of lowest bin, ours the highest: most points have one.
    turn = orientations(gray, points, SIGMA) - sift.orientations[:80]
    apart = np.abs(np.angle(np.exp(1j * turn)))
    assert (apart < (1e-3 if whole else 0.05)).mean() > 0.85


@pytest.mark.parametrize("shape", [(11, 40), (40, 11), (1, 1)])
def test_sift_of_a_small_image(shape):
    text = rf"SIFT needs an image of at least 12 x 12 pixels, got {shape[1]} x {shape[0]}"
    with pytest.raises(ValueError, match=f"^{text}$"):
        dense_sift(np.zeros((*shape, 3), np.uint8), np.zeros((1, 2)))


def test_sift_of_the_smallest_image():
    image = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    y, x = np.mgrid[:12, :12]
    found = dense_sift(image, np.c_[x.ravel(), y.ravel()])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)


# BEBLID


def test_beblids_bits_are_opencvs_and_its_cosine_their_hamming_distance(image):
    import cv2

    points = places(50)
    keys = [cv2.KeyPoint(x, y, 40, -1) for x, y in points]
    finder = cv2.xfeatures2d.BEBLID_create(1.0, 100)
    _, packed = finder.compute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), keys)
    found = dense_beblid(image, points, size=40)
    assert (np.packbits(found > 0, axis=1) == packed).all()
    hamming = [
        [sum(int(a ^ b).bit_count() for a, b in zip(p, q, strict=True)) for q in packed] for p in packed
    ]
    np.testing.assert_allclose(found @ found.T, 1 - np.array(hamming) / 256, atol=1e-6)


def test_a_flat_patch_has_beblid_bits():
    found = dense_beblid(np.full((60, 80, 3), 90, np.uint8), np.array([[30, 30], [50, 20.5]]))
    assert (found[0] == found[1]).all()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("module", [None, ModuleType("cv2")])
def test_without_opencv(module, image, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", module)
    text = r"BEBLID needs OpenCV with its extra modules: pip install cortado\[opencv\]"
    with pytest.raises(ImportError, match=f"^{text}$"):
        dense_beblid(image, np.array([[3, 4]]))
