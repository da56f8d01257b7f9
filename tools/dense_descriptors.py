"""Hand-made descriptors at given points, the demo's baselines: dense SIFT and dense DAISY.

Both are scikit-image's own, at points of our choice instead of detected ones. Points are (x, y) in
pixels, integers; images RGB uint8.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

SIGMA = 2.4  # blur of the scale that is described; its cells are 7 pixels wide, near DAISY's
CAMERA_SIGMA = 0.5  # blur that scikit-image takes an image to have

Describe = Callable[[np.ndarray, np.ndarray], np.ndarray]


def nearest(
    describe: Describe, image1: np.ndarray, image2: np.ndarray, points: np.ndarray
) -> np.ndarray:
    """The match of each point of image 1 among every 4th pixel of image 2, [P, 2]."""
    import torch
    from cortado.layers.knn import knn

    y, x = np.mgrid[0 : image2.shape[0] : 4, 0 : image2.shape[1] : 4]
    candidates = np.stack([x.ravel(), y.ravel()], 1)
    described = (describe(image1, points), describe(image2, candidates))
    query, reference = (torch.from_numpy(rows.T[None].astype(np.float32)) for rows in described)
    _, index = knn(query, reference)
    return candidates[index[0, 0].numpy()]


def dense_daisy(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """DAISY at the points [P, 2]; the image is reflected beyond its borders."""
    from skimage.color import rgb2gray
    from skimage.feature import daisy

    radius = 15
    padded = np.pad(rgb2gray(image), radius, mode="reflect")
    x, y = points.T
    return daisy(padded, step=1, radius=radius)[y, x]


def dense_sift(image: np.ndarray, points: np.ndarray, oriented: bool = False) -> np.ndarray:
    """SIFT of scale ``SIGMA`` at the points [P, 2]: [P, 128].

    ``oriented``: each patch is turned to its dominant orientation; otherwise it stays upright.
    """
    from skimage.color import rgb2gray
    from skimage.feature import SIFT

    gray = rgb2gray(image).astype(np.float32)
    sift = SIFT(upsampling=1, n_octaves=1, sigma_min=SIGMA)
    sift.positions = points[:, ::-1].astype(np.float32)
    sift.scales = sift.octaves = np.zeros(len(points), int)
    sift.sigmas = np.full(len(points), SIGMA, np.float32)
    sift.orientations = orientations(gray, points) if oriented else np.zeros(len(points))
    with np.errstate(invalid="ignore"):  # a flat patch has no descriptor: 0 / 0
        sift.extract(gray)
    return np.asarray(sift.descriptors)


def orientations(gray: np.ndarray, points: np.ndarray, bins: int = 36) -> np.ndarray:
    """The dominant gradient angle around each point [P], from rows towards columns, in radians.

    The highest peak of a smoothed histogram of directions (Rey-Otero and Delbracio, "Anatomy of the
    SIFT Method", IPOL 2014, algorithm 11), as scikit-image has it for the keypoints it detects.
    """
    from scipy.ndimage import gaussian_filter

    blurred = gaussian_filter(gray, math.sqrt(SIGMA**2 - CAMERA_SIGMA**2), mode="reflect")
    rows, columns = np.gradient(blurred)
    turn = np.arctan2(columns, rows) / (2 * np.pi) % 1
    direction = (turn * bins + 0.5).astype(int) % bins
    window = 1.5 * SIGMA
    histogram = np.zeros((len(points), bins))
    reach = range(-math.ceil(3 * window), math.floor(3 * window + 0.5) + 1)
    each, (x0, y0) = np.arange(len(points)), points.T
    for dy, dx in ((dy, dx) for dy in reach for dx in reach if min(dy, dx) >= -3 * window):
        y, x = y0 + dy, x0 + dx
        inside = (y >= 0) & (y < gray.shape[0]) & (x >= 0) & (x < gray.shape[1])
        y, x, point = y[inside], x[inside], each[inside]
        weight = np.exp((dy**2 + dx**2) / (-2 * window**2))
        histogram[point, direction[y, x]] += weight * np.hypot(rows[y, x], columns[y, x])
    for _ in range(6):
        histogram = (np.roll(histogram, 1, 1) + histogram + np.roll(histogram, -1, 1)) / 3
    peak = histogram.argmax(1)
    left, top, right = (histogram[each, (peak + i) % bins] for i in (-1, 0, 1))
    curve = 2 * (left + right - 2 * top)
    shift = np.divide(left - right, curve, out=np.zeros_like(curve), where=curve != 0)
    angle = (peak + shift + 0.5) * (2 * np.pi / bins)
    return np.where(angle > np.pi, angle - 2 * np.pi, angle)
