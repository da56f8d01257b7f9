"""LT-ACC and IoU of filled outlines: counted by hand and point by point."""

import numpy as np
import pytest
from cortado.layers.metrics.label_transfer import filled, label_transfer

SQUARE = np.array([[2.0, 1], [6, 1], [6, 4], [2, 4]])  # x 2..6, y 1..4
RIGHT = np.array([1, 0])


def inside(outline, x, y):
    """Whether a ray to the right crosses the outline an odd number of times."""
    odd = False
    for (x1, y1), (x2, y2) in zip(outline, np.roll(outline, -1, 0), strict=True):
        if (y1 > y) != (y2 > y) and x < x1 + (y - y1) * (x2 - x1) / (y2 - y1):
            odd = not odd
    return odd


def test_a_mask_is_the_outlines_inside():
    mask = filled(SQUARE, (8, 10))
    assert mask.shape == (8, 10)
    rows, columns = np.nonzero(mask)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (1, 4, 2, 6)
    star = np.array([[1.3, 2.2], [17.6, 5.4], [3.1, 12.7], [12.4, 0.6], [9.2, 14.1]])  # crosses itself
    wanted = [[inside(star, x, y) for x in range(20)] for y in range(15)]
    np.testing.assert_array_equal(filled(star, (15, 20)), wanted)


def test_an_outline_outside_and_one_without_points():
    assert filled(SQUARE + 100 * RIGHT, (8, 10)).sum() == 0
    assert filled(SQUARE + 6 * RIGHT, (8, 10)).sum() == 4 * 2  # columns 8 and 9 are left
    assert filled(SQUARE[:2], (8, 10)).sum() == 0
    lost = np.insert(SQUARE, 2, np.nan, 0)
    np.testing.assert_array_equal(filled(lost, (8, 10)), filled(SQUARE, (8, 10)))


def test_the_two_figures():
    truth, found = (filled(outline, (8, 10)) for outline in (SQUARE, SQUARE + RIGHT))
    # 20 pixels each, 16 of them common: 4 + 4 of 80 have the wrong label
    assert label_transfer(found, truth) == pytest.approx((72 / 80, 16 / 24))
    assert label_transfer(truth, truth) == (1, 1)
    assert label_transfer(~truth, truth) == (0, 0)
    nothing = np.zeros_like(truth)
    assert label_transfer(nothing, nothing) == (1, 0)


def test_masks_of_two_shapes():
    with pytest.raises(ValueError, match=r"one shape \[H, W\], got \[2, 3\] and \[3, 2\]$"):
        label_transfer(np.zeros((2, 3), bool), np.zeros((3, 2), bool))
