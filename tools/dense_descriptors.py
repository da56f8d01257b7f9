"""Descriptors at points of one's choice: DAISY and SIFT, made by hand, and BEBLID, which is learned.

Each takes an image, uint8 RGB [H, W, 3], and points [P, 2], (x, y) in pixels, and gives float32 [P, C],
rows of unit length: the nearest by Euclidean distance has the largest cosine. A point beyond the
borders is described at them. A patch without contrast has no DAISY and no SIFT: a row of zeros, at the
distance 1 from every other, which matches nothing.

The numbers are scikit-image's and OpenCV's own. Radius, blur and size are those of the highest mean of
PCK at 3, 5 and 10 pixels among a dozen that were tried on the training scenes Adirondack, ArtL, Piano,
Pipes and Recycle of Middlebury 2014, of a width of 700 pixels: 4000 points of the left image, every
4th pixel of the right one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .opencv import opencv

Describe: TypeAlias = Callable[[npt.NDArray[Any], npt.NDArray[Any]], npt.NDArray[np.float32]]

RADIUS = 17  # of DAISY's outermost ring, in pixels
SIGMA = 2.7  # blur of the scale that SIFT describes, in pixels; one of its 4 x 4 cells is 3 sigma wide
SIZE = 76.0  # pixels across the patch that BEBLID's boxes were learned on
CAMERA_SIGMA = 0.5  # blur that scikit-image takes an image to have
BEBLID_512 = 100  # cv::xfeatures2d::BEBLID::SIZE_512_BITS, which Python has no name for
HISTOGRAMS, BINS = 25, 8  # of DAISY: a centre and 8 on each of 3 rings
ROOM = 2**27  # bytes of DAISY's descriptors at a time
SIFT_LEAST = 12  # pixels of the shorter side: scikit-image has no scale space of less


def dense_daisy(
    image: npt.NDArray[Any], points: npt.NDArray[Any], radius: int = RADIUS
) -> npt.NDArray[np.float32]:
    """DAISY (Tola et al., PAMI 2010) with scikit-image's rings and bins: [P, 200].

    Each of the 25 histograms has unit length, as published, or is 0 where there is no gradient. Between
    pixels they are interpolated bilinearly first; the image is reflected beyond its borders.

    The maps of an image are made in strips of rows: 128 MiB at a time, whatever the image's size.
    """
    from skimage.feature import daisy

    x, y = expect_points(image, points).T
    padded = np.pad(as_gray(image), radius, mode="reflect")
    height, width = image.shape[:2]
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    found = np.zeros((len(x), HISTOGRAMS * BINS), np.float32)
    strip = max(1, ROOM // (4 * width * HISTOGRAMS * BINS))
    halo = 2 * radius + 1  # 4 sigma of the widest blur, radius / 2, and a row for the gradient
    for top in range(0, height, strip):
        some = np.flatnonzero((row >= top) & (row < top + strip))
        if not len(some):
            continue
        begin, end = max(0, top - halo), min(top + strip, height - 1) + 2 * radius + 1 + halo
        maps = daisy(padded[begin:end], step=1, radius=radius, normalization="off")
        for dy, dx in np.ndindex(2, 2):  # of a pixel on the last row or column there is but one
            share = np.abs(1 - dy - (y - row)[some]) * np.abs(1 - dx - (x - column)[some])
            at = share > 0
            corner = maps[row[some][at] + dy - begin, column[some][at] + dx]
            found[some[at]] += share[at, None].astype(np.float32) * corner
    histograms = unit(found.reshape(-1, HISTOGRAMS, BINS))
    return unit(histograms.reshape(found.shape))


def dense_sift(
    image: npt.NDArray[Any],
    points: npt.NDArray[Any],
    oriented: bool = False,
    sigma: float = SIGMA,
) -> npt.NDArray[np.float32]:
    """SIFT (Lowe, IJCV 2004) of one scale: [P, 128]. At a border, of what the image has of a patch.

    ``oriented``: each patch is turned to its dominant orientation; otherwise it stays upright. Raises
    ValueError for an image of less than 12 pixels a side.
    """
    from skimage.feature import SIFT

    places, gray = expect_points(image, points), as_gray(image)
    if min(gray.shape) < SIFT_LEAST:
        text = f"SIFT needs an image of at least {SIFT_LEAST} x {SIFT_LEAST} pixels"
        raise ValueError(f"{text}, got {gray.shape[1]} x {gray.shape[0]}")
    sift = SIFT(upsampling=1, n_octaves=1, n_scales=1, sigma_min=sigma)
    sift.positions = places[:, ::-1].astype(np.float32)
    sift.scales = sift.octaves = np.zeros(len(places), int)
    sift.sigmas = np.full(len(places), sigma, np.float32)
    sift.orientations = orientations(gray, places, sigma) if oriented else np.zeros(len(places))
    with np.errstate(invalid="ignore"):  # a flat patch has no descriptor: 0 / 0
        sift.extract(gray)
    return unit(np.asarray(sift.descriptors, np.float32))


def orientations(
    gray: npt.NDArray[Any], points: npt.NDArray[Any], sigma: float = SIGMA, bins: int = 36
) -> npt.NDArray[np.float64]:
    """The dominant gradient angle around each point [P], from rows towards columns, in radians.

    The highest peak of a smoothed histogram of directions (Rey-Otero and Delbracio, "Anatomy of the
    SIFT Method", IPOL 2014, algorithm 11), as scikit-image has it for the keypoints it detects.
    """
    from scipy.ndimage import gaussian_filter

    blurred = gaussian_filter(gray, math.sqrt(sigma**2 - CAMERA_SIGMA**2), mode="reflect")
    rows, columns = np.gradient(blurred)
    length = np.hypot(rows, columns)
    direction = (np.arctan2(columns, rows) / (2 * np.pi) % 1 * bins + 0.5).astype(int) % bins
    window = 1.5 * sigma
    histogram = np.zeros((len(points), bins))
    reach = range(-math.ceil(3 * window), math.floor(3 * window + 0.5) + 1)
    each, (x0, y0) = np.arange(len(points)), np.asarray(points, np.float64).T
    column, row = np.floor(x0 + 0.5).astype(int), np.floor(y0 + 0.5).astype(int)
    for dy, dx in ((dy, dx) for dy in reach for dx in reach if min(dy, dx) >= -3 * window):
        y, x = row + dy, column + dx
        inside = (y >= 0) & (y < gray.shape[0]) & (x >= 0) & (x < gray.shape[1])
        y, x, point = y[inside], x[inside], each[inside]
        apart = (y - y0[inside]) ** 2 + (x - x0[inside]) ** 2
        histogram[point, direction[y, x]] += np.exp(apart / (-2 * window**2)) * length[y, x]
    for _ in range(6):
        histogram = (np.roll(histogram, 1, 1) + histogram + np.roll(histogram, -1, 1)) / 3
    peak = histogram.argmax(1)
    left, top, right = (histogram[each, (peak + i) % bins] for i in (-1, 0, 1))
    curve = 2 * (left + right - 2 * top)
    shift = np.divide(left - right, curve, out=np.zeros_like(curve), where=curve != 0)
    angle = (peak + shift + 0.5) * (2 * np.pi / bins)
    return np.where(angle > np.pi, angle - 2 * np.pi, angle)


def dense_beblid(
    image: npt.NDArray[Any],
    points: npt.NDArray[Any],
    oriented: bool = False,
    size: float = SIZE,
    sigma: float = SIGMA,
) -> npt.NDArray[np.float32]:
    """BEBLID (Suarez et al., Pattern Recognition Letters 2020), its 512 bits as -1 and 1 over their
    length: [P, 512]. The nearest has the smallest Hamming distance.

    Each bit compares the means of two boxes, chosen by learning on patches of the Statue of Liberty. A
    flat patch is described as any other. ``oriented``: the boxes are turned to the orientation that
    SIFT of this sigma has; ``size``: pixels across the patch. Raises :class:`NoOpenCV` without it.
    """
    places = expect_points(image, points)
    if not len(places):
        return np.zeros((0, 512), np.float32)
    cv2 = opencv("BEBLID", extra_modules=True)
    angles = np.full(len(places), -1.0)  # OpenCV's for none; else degrees from x towards y
    if oriented:
        angles = (90 - np.degrees(orientations(as_gray(image), places, sigma))) % 360
    keys = [cv2.KeyPoint(x, y, size, angle) for (x, y), angle in zip(places, angles, strict=True)]
    finder = cv2.xfeatures2d.BEBLID_create(1.0, BEBLID_512)
    _, packed = finder.compute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), keys)
    rows = np.unpackbits(packed, axis=1).astype(np.float32)
    rows -= 0.5  # in place: of a large image they are most of the memory
    rows *= 2 / math.sqrt(rows.shape[1])
    return rows


def expect_points(image: npt.NDArray[Any], points: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The points [P, 2], moved into the image; raises ValueError for other points, or another image."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"expected an image uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    places = np.asarray(points, np.float64)
    if places.ndim != 2 or places.shape[1] != 2:
        raise ValueError(f"expected points [P, 2], got {list(places.shape)}")
    if not np.isfinite(places).all():
        raise ValueError("expected points that are finite")
    return np.clip(places, 0, (image.shape[1] - 1, image.shape[0] - 1))


def as_gray(image: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """An image's luminance in 0..1, [H, W]."""
    from skimage.color import rgb2gray
    from skimage.util import img_as_float32

    return rgb2gray(img_as_float32(image))


def unit(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Vectors [..., C] over their lengths; one of length 0 stays 0."""
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)


DESCRIPTORS: dict[str, Describe] = {
    "daisy": dense_daisy,
    "sift": dense_sift,
    "sift-oriented": partial(dense_sift, oriented=True, sigma=3.0),
    "beblid": dense_beblid,
    "beblid-oriented": partial(dense_beblid, oriented=True, size=96.0, sigma=2.4),
}
"""By their names in commands, at what was chosen for each."""
