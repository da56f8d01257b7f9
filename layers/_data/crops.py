"""Views of given images: crops that may be scaled, turned and mirrored, and the points in them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from .views import translation, warp

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class View:
    """A view of ``size`` (H, W) pixels, whose pixel v shows the image at ``matrix`` v.

    matrix: float64 [3, 3], a similarity: (x, y, 1) of the view -> (x, y, 1) of the image.
    """

    matrix: Array
    size: tuple[int, int]

    def of(self, image: Tensor) -> Tensor:
        """What it shows of an image [C, h, w]: float32 [C, H, W], reflected at the image's borders.

        A view that does not scale or turn, at whole pixels, holds the image's own values. Any other is
        read bilinearly; one that shrinks, at n x n places in each of its pixels, evenly set and at most
        one pixel of the image apart, of which it holds the mean, so that nothing is passed over.
        """
        if self._exact:
            (a, _, x), (_, b, y), _ = self.matrix
            rows = _reflected(b * np.arange(self.size[0]) + y, image.shape[1])
            columns = _reflected(a * np.arange(self.size[1]) + x, image.shape[2])
            return image[:, rows][:, :, columns].float()
        image, matrix = self._cut(image)
        image = image.float()
        apart = np.abs(np.linalg.det(matrix)) ** 0.5
        times = max(math.ceil(apart - 1e-6), 1)
        places = [(i + 0.5) / times - 0.5 for i in range(times)]
        readings = (warp(image, matrix @ translation(x, y), *self.size) for y in places for x in places)
        return sum(readings, image.new_zeros(())) / times**2

    def points(self, points: Array) -> Array:
        """Where points [K, 2] of the image lie in the view, float64 [K, 2]."""
        x, y = points.T
        return np.stack([a * x + b * y + c for a, b, c in np.linalg.inv(self.matrix)[:2]], 1)

    def shows(self, points: Array) -> npt.NDArray[np.bool_]:
        """Which points [K, 2] of the image lie between the centres of the view's outermost pixels."""
        return within(self.points(points), self.size)

    @property
    def _exact(self) -> bool:
        linear, offset = self.matrix[:2, :2], self.matrix[:2, 2]
        return np.array_equal(np.abs(linear), np.eye(2)) and np.array_equal(offset, np.rint(offset))

    def _cut(self, image: Tensor) -> tuple[Tensor, Array]:
        """The part of an image that the view shows, and the matrix to there. An axis that the view goes
        beyond is left whole: what is reflected may lie anywhere."""
        height, width = self.size
        corners = np.array([[x, y, 1.0] for x in (-0.5, width - 0.5) for y in (-0.5, height - 0.5)])
        seen = corners @ self.matrix[:2].T
        low, high = np.floor(seen.min(0)).astype(int), np.ceil(seen.max(0)).astype(int) + 1
        length = np.array(image.shape[:0:-1])
        whole = (low < 0) | (high > length)
        (x, y), (right, bottom) = np.where(whole, 0, low), np.where(whole, length, high)
        return image[:, y:bottom, x:right], translation(-x, -y) @ self.matrix


def within(points: Array, size: tuple[int, int], margin: float = 0.0) -> npt.NDArray[np.bool_]:
    """Which points [K, 2] lie between the centres of the outermost pixels of an image of a size (H, W),
    or at most a margin in pixels outside."""
    x, y = points.T
    last_y, last_x = (length - 1 + margin for length in size)
    return (x >= -margin) & (x <= last_x) & (y >= -margin) & (y <= last_y)


def crop(size: tuple[int, int], steps: Array, middle: Array, side: int) -> View:
    """A square view, ``side`` pixels long, whose middle shows a point (x, y) of an image (H, W).

    steps: float64 [2, 2], of the view -> of the image. The view is moved by as little as it takes to
    lie inside the image; along an axis where it cannot, into the middle. One that does not scale or
    turn is set to whole pixels.
    """
    half = np.abs(steps).sum(1) * (side - 1) / 2
    last = np.array(size[::-1]) - 1
    inside = np.clip(middle, half, np.maximum(last - half, half))
    middle = np.where(2 * half <= last, inside, last / 2)
    view = _view(steps, middle, (side, side))
    if np.array_equal(np.abs(steps), np.eye(2)):
        view.matrix[:2, 2] = np.rint(view.matrix[:2, 2])
    return view


def whole(size: tuple[int, int], steps: Array) -> View:
    """All of an image of a size (H, W), mirrored if the steps [2, 2] are."""
    return _view(steps, (np.array(size[::-1]) - 1) / 2, size)


def _view(steps: Array, middle: Array, size: tuple[int, int]) -> View:
    matrix = np.eye(3)
    matrix[:2, :2] = steps
    matrix[:2, 2] = middle - steps @ ((np.array(size[::-1]) - 1) / 2)
    return View(matrix, size)


def _reflected(places: Array, length: int) -> npt.NDArray[np.int64]:
    """The indices of an axis that whole places fall on, where it is reflected at both ends."""
    if length == 1:
        return np.zeros(len(places), np.int64)
    last = length - 1
    return last - np.abs(places.astype(np.int64) % (2 * last) - last)
