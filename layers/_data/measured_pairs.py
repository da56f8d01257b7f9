"""Pairs as a protocol of evaluation wants them: some of their known matches, another unit of PCK.

Of data sets with dense truth UCN draws points at random, or takes FAST corners of image 1 (section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from .._geometry.keypoints import Length
from .images import image_size, read_image
from .keypoint_pairs import ImagePair, KeypointPair, PairReader, open_pairs

Array = npt.NDArray[np.float64]
OF_IMAGE = {"img": Length.LONGER_SIDE, "diagonal": Length.DIAGONAL}
FAST, ALL = "fast", "all"
ARC, CONTRAST = 9, 20  # pixels of the circle of 16 in a row, grey levels
REACH = 1.0  # pixels from a corner to the point whose match stands for its own


class MeasuredPairs(PairReader):
    """The pairs of several data sets, one after the other, :class:`KeypointPair` with the points asked
    for; those of outlines as they are.

    points: at most so many of a pair's matches, drawn at random by the seed; ``fast`` for the FAST
    corners of image 1 whose match is known; None, or ``all``, for all. length: ``img`` for max(w, h) of
    image 2, ``diagonal`` for that of image 2, else T as the data set has it. Points that do not match
    are left out.

    A pair may be left with no point. Raises ValueError where the data sets are not measured alike, and
    for other points.
    """

    def __init__(
        self,
        of: Sequence[PairReader],
        points: int | str | None = None,
        length: str = "",
        seed: int = 0,
    ) -> None:
        if len({each.pixels for each in of}) > 1:
            raise ValueError("data sets measured in pixels, and others, are evaluated apart")
        if isinstance(points, str) and points not in (ALL, FAST):
            raise ValueError(f'points: expected a number, {ALL} or {FAST}, got "{points}"')
        self.of, self.points, self.length, self.seed = of, points, length, seed
        self.rows = [(one, number) for one in of for number in range(len(one))]

    @property
    def dense(self) -> bool:
        """Whether a pair's points are some of very many."""
        return self.of[0].pixels

    @property
    def in_pixels(self) -> bool:
        """Whether thresholds are pixels: no unit was asked for, and the data sets are measured so."""
        return self.dense and not self.length

    def some(self, numbers: Sequence[int]) -> MeasuredPairs:
        """The pairs of these numbers."""
        made = MeasuredPairs(self.of, self.points, self.length, self.seed)
        made.rows = [self.rows[number] for number in numbers]
        return made

    def read(self, row: tuple[PairReader, int]) -> ImagePair:
        one, number = row
        pair = one[number]
        if not isinstance(pair, KeypointPair):
            if self.points is not None or self.length:
                text = "outlines have no points to draw, and no length"
                raise ValueError(f"{pair.name}: {text}")
            return pair
        if self.length:
            size = image_size(pair.image2, f'image "{pair.image2}"')
            pair = replace(pair, length=OF_IMAGE[self.length].of(*size))
        return self._drawn(pair)

    def _drawn(self, pair: KeypointPair) -> KeypointPair:
        if pair.signs is not None:
            pair = some_of(pair, np.flatnonzero(pair.signs == 1))
        if self.points == FAST:
            pair = at_corners(pair)
        elif isinstance(self.points, int) and self.points < len(pair.points1):
            rng = np.random.default_rng(self.seed)
            pair = some_of(pair, np.sort(rng.choice(len(pair.points1), self.points, replace=False)))
        return pair


def open_measured(
    sources: Sequence[str],
    split: str = "",
    points: int | str | None = None,
    length: str = "",
    seed: int = 0,
    **options: object,
) -> MeasuredPairs:
    """The pairs of data sets by their names and folders. A ``length`` other than the image's longer
    side or its diagonal, such as bbox, is asked of their readers.

    Raises ValueError as :func:`open_pairs` does, and for a source that is named twice.
    """
    if len({*sources}) < len(sources):
        raise ValueError(f"a data set is named twice: {', '.join(sources)}")
    of_image = length if length in OF_IMAGE else ""
    if length and not of_image:
        options = {**options, "length": length}
    opened = [open_pairs(source, split, **options) for source in sources]
    return MeasuredPairs(opened, points, of_image, seed)


def some_of(pair: KeypointPair, rows: npt.NDArray[np.intp]) -> KeypointPair:
    """The pair with some of its points, which all match."""
    return replace(pair, points1=pair.points1[rows], points2=pair.points2[rows], signs=None)


def at_corners(pair: KeypointPair) -> KeypointPair:
    """The pair with FAST corners of image 1: those at most a pixel from a point whose match is known,
    which go where that point goes."""
    from scipy.spatial import cKDTree

    corners = fast(read_image(pair.image1, what=f'image "{pair.image1}"'))
    if not len(corners) or not len(pair.points1):
        return some_of(pair, np.zeros(0, np.intp))
    away, nearest = cKDTree(pair.points1).query(corners)
    known = away <= REACH
    shift = corners - pair.points1[nearest]
    points2 = pair.points2[nearest] + shift
    return replace(pair, points1=corners[known], points2=points2[known], signs=None)


def fast(image: npt.NDArray[np.uint8]) -> Array:
    """The FAST corners (Rosten and Drummond, 2006) of an RGB image [H, W, 3], float64 [K, 2]: 9 of the
    16 pixels around differ by more than 20 grey levels (0.299 R + 0.587 G + 0.114 B, rounded); one
    corner among neighbours."""
    from skimage.feature import corner_fast, corner_peaks

    grey = np.rint(image @ np.array([0.299, 0.587, 0.114]))
    if min(grey.shape) < 7:  # the circle's
        return np.zeros((0, 2))
    response = corner_fast(grey, ARC, CONTRAST)
    peaks = corner_peaks(response, min_distance=1, threshold_abs=0, exclude_border=3)
    return np.asarray(peaks[:, ::-1], np.float64).reshape(-1, 2)
