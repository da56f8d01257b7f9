"""Nearest neighbours and their two tests, against loops in NumPy float64."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from cortado.layers._engine.checks import BlobError
from cortado.nets import neighbours
from cortado.nets.neighbours import Described


class Case(NamedTuple):
    query: np.ndarray  # [P, C]
    points: np.ndarray  # [P, 2]
    candidates: np.ndarray  # [R, C]
    places: np.ndarray  # [R, 2]


def grid(height: int, width: int, step: float) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return step * np.stack([x.ravel(), y.ravel()], 1).astype(np.float64)


@pytest.fixture(params=[0, 1, 2])
def case(request: pytest.FixtureRequest) -> Case:
    """Features that change slowly over the image, as dense ones do."""
    rng = np.random.default_rng(request.param)
    places = grid(7, 9, 4)
    waves = rng.normal(size=(2, 5)) / 20
    candidates = np.sin(places @ waves + rng.uniform(0, 6, 5))
    points = rng.uniform(0, 24, (20, 2))
    query = np.sin(points @ waves) + 0.05 * rng.normal(size=(20, 5))
    return Case(query, points, candidates, places)


def described(places: np.ndarray, features: np.ndarray) -> Described:
    return Described(torch.from_numpy(places), torch.from_numpy(features))


def distances(one: np.ndarray, others: np.ndarray) -> list[float]:
    return [float(np.sqrt(sum((a - b) ** 2 for a, b in zip(one, x, strict=True)))) for x in others]


def test_nearest(case: Case) -> None:
    row, distance = neighbours.nearest(torch.from_numpy(case.query), torch.from_numpy(case.candidates))
    assert (row.shape, distance.shape) == ((20,), (20,))
    for query, mine, far in zip(case.query, row.tolist(), distance.tolist(), strict=True):
        away = distances(query, case.candidates)
        assert mine == int(np.argmin(away))
        assert far == pytest.approx(min(away), rel=1e-12)


def test_of_equal_candidates_the_first() -> None:
    candidates = torch.tensor([[0.0, 1], [1, 0], [0, 1], [1, 0]])
    row, distance = neighbours.nearest(torch.tensor([[1.0, 0], [0, 2]]), candidates)
    assert row.tolist() == [1, 0]
    assert distance.tolist() == [0, 1]


@pytest.mark.parametrize("apart", [0.0, 3.9, 4.0, 9.0, 20.0, 35.0])
def test_the_runner_up_lies_apart(case: Case, apart: float) -> None:
    query, among = torch.from_numpy(case.query), described(case.places, case.candidates)
    best = neighbours.nearest(query, among.features).row
    second = neighbours.runner_up(query, among, best, apart)
    lonely = 0
    for one, mine, far in zip(case.query, best.tolist(), second.tolist(), strict=True):
        away = distances(one, case.candidates)
        others = [
            d
            for d, place in zip(away, case.places, strict=True)
            if np.hypot(*(place - case.places[mine])) > apart
        ]
        lonely += not others
        assert far == pytest.approx(min(others, default=np.inf), rel=1e-12)
    assert (lonely > 0) == (apart == 35)


def test_what_is_no_number_is_no_runner_up(case: Case) -> None:
    broken = case.candidates.copy()
    broken[::2] = np.nan
    query, among = torch.from_numpy(case.query), described(case.places, broken)
    best = neighbours.nearest(query, among.features).row
    second = neighbours.runner_up(query, among, best, 9.0)
    kept = described(case.places[1::2], case.candidates[1::2])
    np.testing.assert_array_equal(second, neighbours.runner_up(query, kept, best // 2, 9.0))
    none = described(case.places, np.full_like(broken, np.nan))
    assert neighbours.runner_up(query, none, best, 9.0).tolist() == [np.inf] * 20


def test_the_runner_up_of_far_features(case: Case) -> None:
    """In float32, where squares of them round to more than their differences."""
    moved = [torch.from_numpy(each + 300).float() for each in (case.query, case.candidates)]
    among = Described(torch.from_numpy(case.places), moved[1])
    best = neighbours.nearest(*moved).row
    second = neighbours.runner_up(moved[0], among, best, 9.0)
    wide = Described(among.points, among.features.double())
    exact = neighbours.runner_up(moved[0].double(), wide, best, 9.0)
    np.testing.assert_allclose(second, exact, rtol=1e-4)


def test_the_runner_up_of_one_candidate_is_infinitely_far() -> None:
    alone = described(np.zeros((1, 2)), np.ones((1, 3)))
    second = neighbours.runner_up(torch.ones(2, 3).double(), alone, torch.zeros(2).long(), 0.0)
    assert second.tolist() == [np.inf, np.inf]


@pytest.mark.parametrize("within", [0.0, 2.0, 4.0, 12.0])
def test_matches_that_lead_back(case: Case, within: float) -> None:
    rng = np.random.default_rng(7)
    own = case.candidates + 0.1 * rng.normal(size=case.candidates.shape)
    row = neighbours.nearest(torch.from_numpy(case.query), torch.from_numpy(case.candidates)).row
    kept = neighbours.returns(
        torch.from_numpy(case.points),
        row,
        torch.from_numpy(case.candidates),
        described(case.places, own),
        within,
    )
    for point, mine, is_kept in zip(case.points, row.tolist(), kept.tolist(), strict=True):
        back = case.places[int(np.argmin(distances(case.candidates[mine], own)))]
        assert is_kept == (np.hypot(*(back - point)) <= within)


@pytest.mark.parametrize("within", [0.0, 4.0, 12.0])
def test_all_candidates_there_and_back(case: Case, within: float) -> None:
    rng = np.random.default_rng(8)
    own = case.candidates[:-9] + 0.3 * rng.normal(size=case.candidates[:-9].shape)
    described_, candidates = described(case.places[:-9], own), torch.from_numpy(case.candidates)
    found, kept = neighbours.mutual(described_, candidates, within)
    wanted = neighbours.nearest(described_.features, candidates)
    assert torch.equal(found.row, wanted.row)
    assert torch.equal(found.distance, wanted.distance)
    points = described_.points
    home = neighbours.returns(points, wanted.row, candidates, described_, within)
    assert torch.equal(kept, home)
    assert 0 < int(kept.sum()) < len(kept)


def test_unit_length() -> None:
    made = neighbours.unit(torch.tensor([[3.0, 4], [0, 0], [0, -2]]))
    np.testing.assert_allclose(made, [[0.6, 0.8], [0, 0], [0, -1]], rtol=1e-6)


def test_no_queries_and_no_candidates() -> None:
    some = torch.ones(3, 2)
    row, distance = neighbours.nearest(torch.ones(0, 2), some)
    assert (row.shape, distance.shape) == ((0,), (0,))
    among = Described(torch.zeros(3, 2).double(), some)
    assert neighbours.runner_up(torch.ones(0, 2), among, row, 1.0).shape == (0,)
    with pytest.raises(BlobError, match="k is 1, but reference"):
        neighbours.nearest(some, torch.ones(0, 2))
