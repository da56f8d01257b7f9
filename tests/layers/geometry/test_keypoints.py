"""PCK of a pair and of a benchmark, as the benchmarks of semantic correspondence count."""

import numpy as np
import pytest
from cortado.layers._geometry.keypoints import means, pair_pck

TRUTH = np.array([[0.0, 0], [10, 10], [20, 5], [7, 7]])


def test_points_at_the_threshold_are_right_and_nan_is_wrong():
    found = TRUTH + np.array([[3, 4], [3, 4.001], [0, 0], [np.nan, 0]])
    assert pair_pck(found, TRUTH, 50.0, (0.1, 0.2, 0.0)).tolist() == [0.5, 0.75, 0.25]
    nothing = np.full((4, 2), np.nan)
    assert pair_pck(nothing, TRUTH, 50.0, (0.1, 1e9)).tolist() == [0, 0]
    assert pair_pck(nothing + np.inf, TRUTH, 50.0, (0.1,)).dtype == np.float64


def test_float32_points_are_compared_in_float64():
    found = (TRUTH + np.array([5, 0])).astype(np.float32)
    assert pair_pck(found, TRUTH, 50.0, (0.1,)).tolist() == [1]


@pytest.mark.parametrize("found", [TRUTH[:3], TRUTH.T, TRUTH[None]])
def test_points_of_other_shapes(found):
    with pytest.raises(ValueError, match="expected found and true points"):
        pair_pck(found, TRUTH, 1.0, (0.1,))


def test_a_truth_that_is_none():
    with pytest.raises(ValueError, match="K at least 1"):
        pair_pck(TRUTH[:0], TRUTH[:0], 1.0, (0.1,))
    with pytest.raises(ValueError, match="true points that are finite"):
        pair_pck(TRUTH, TRUTH * np.nan, 1.0, (0.1,))


def test_each_pair_counts_alike():
    figures = [[0.0, 1.0], [1.0, 1.0], [0.5, 1.0], [0.25, 0.0]]
    found = means(figures, ["b", "a", "b", "b"])
    assert found.pairs == 4
    assert found.mean.tolist() == [0.4375, 0.75]
    assert {name: mean.tolist() for name, mean in found.classes.items()} == {
        "a": [1, 1],
        "b": [0.25, pytest.approx(2 / 3)],
    }
    spread = sum((x - 0.4375) ** 2 for x in (0, 1, 0.5, 0.25)) / 3
    assert found.error.tolist() == pytest.approx([(spread / 4) ** 0.5, 0.25])


def test_one_pair_has_no_error_and_no_pair_no_mean():
    assert np.isnan(means([[0.5]], ["a"]).error).all()
    with pytest.raises(ValueError, match=r"^expected figures \[N, A\] of 0 pairs, at least one, got"):
        means(np.empty((0, 3)), [])
    with pytest.raises(ValueError, match=r"of 1 pairs, at least one, got \[2, 3\]$"):
        means(np.empty((2, 3)), ["a"])
