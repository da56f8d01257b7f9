import numpy as np
import pytest
import torch
from cells import takes_part
from cortado.layers._engine.checks import BlobError
from cortado.layers._engine.sizes import expect_sizes, shape_of, size_of
from cortado.layers._geometry.cells import CellParams


def test_a_margin_keeps_a_rectangle():
    rng = np.random.default_rng(0)
    for _ in range(300):
        jump = float(rng.choice([1, 2, 2.5, 4, 8]))
        field, margin = int(rng.integers(1, 40)), rng.choice([0, 1, 2.5, 4, 8, 100])
        params = CellParams(jump, field, float(margin))
        size, counts = rng.integers(1, 60, 2), rng.integers(0, 12, 2)
        rows, columns = params.grid(tuple(counts), tuple(size))
        kept = {(r, c) for r in range(counts[0])[rows] for c in range(counts[1])[columns]}
        assert kept == {cell for cell in np.ndindex(*counts) if takes_part(*cell, size, params)}


def test_the_released_cells_of_an_image_of_300_pixels():
    assert CellParams(4.0, 27, 4.0).kept(75, 300) == slice(3, 73)
    assert CellParams(4.0, 27).kept(75, 300) == slice(0, 75)


def test_nothing_is_kept_of_nothing():
    assert CellParams(4.0, 27, 0.0).kept(2, 8) == slice(2, 2)


def test_sizes():
    assert size_of("a", torch.zeros(2, 3, 4, 5)) == (4, 5)
    assert size_of("a", torch.tensor([[4.0, 5]])) == (4, 5)
    assert size_of("a", (4, 5)) == (4, 5)
    assert shape_of("f", "a", [4, 5]) == (2,)
    with pytest.raises(BlobError, match=r"expected b \[3\] to be \[N, C, H, W\] or \[2\]"):
        expect_sizes(a=(2,), b=(3,))
    with pytest.raises(ValueError, match=r"a: expected a height and a width of at least 1, got 0, 5"):
        size_of("a", (0, 5))
