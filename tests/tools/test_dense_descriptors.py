"""The dense descriptors are scikit-image's, at points of one's own."""

import numpy as np
import pytest
import skimage.data
from cortado.tools.dense_descriptors import SIGMA, dense_daisy, dense_sift, nearest, orientations
from skimage.color import rgb2gray
from skimage.feature import SIFT


@pytest.fixture(scope="module")
def image():
    return skimage.data.coffee()[100:220, 150:290]


def test_orientations_are_scikit_images(image):
    rng = np.random.default_rng(1)
    points = np.c_[rng.integers(0, 140, 80), rng.integers(0, 120, 80)]
    gray = rgb2gray(image).astype(np.float32)
    sift = SIFT(upsampling=1, n_octaves=1, sigma_min=SIGMA)
    zeros = np.zeros(80, int)
    space = sift._create_scalespace(sift._preprocess(gray))
    where = points[:, ::-1].astype(np.float32)
    sift._compute_orientation(where, zeros, np.full(80, SIGMA, np.float32), zeros, space)
    # Its first row for a point is the peak of lowest bin, ours the highest: most points have one.
    apart = np.abs(np.angle(np.exp(1j * (orientations(gray, points) - sift.orientations[:80]))))
    assert (apart < 1e-3).mean() > 0.85


def test_a_shift_is_found(image):
    points = np.array([[60, 60], [100, 80], [120, 52]])
    moved = image[8:, 12:]
    for describe in (dense_sift, dense_daisy):
        assert nearest(describe, image, moved, points).tolist() == (points - [12, 8]).tolist()


def test_only_the_oriented_one_finds_a_quarter_turn(image):
    points = np.c_[np.tile(np.arange(40, 100, 4), 10), np.repeat(np.arange(40, 80, 4), 15)]
    turned = np.rot90(image)  # (x, y) lies at (y, width - 1 - x) afterwards
    truth = np.c_[points[:, 1], image.shape[1] - 1 - points[:, 0]]
    found = {}
    for oriented in (False, True):
        matched = nearest(lambda *args, o=oriented: dense_sift(*args, o), image, turned, points)
        found[oriented] = (np.abs(matched - truth).max(1) <= 4).mean()
    assert found[False] < 0.1 < 0.6 < found[True]
