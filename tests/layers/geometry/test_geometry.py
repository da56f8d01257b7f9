import math

import pytest
import torch
from cortado.layers._engine.checks import BlobError
from cortado.layers._geometry.geometry import (
    cells_around,
    expect_finite,
    nearest_cells,
    read,
    scatter,
    to_cells,
    to_points,
)


def random_points(n=2, p=200):
    generator = torch.Generator().manual_seed(0)
    return 60 * torch.rand(n, p, 2, dtype=torch.float64, generator=generator) - 10


def test_cells_and_points_invert_each_other():
    index = torch.arange(35).reshape(5, 7)
    points = to_points(index, 7, 4.0, 1.5)
    assert points[2, 3].tolist() == [3 * 4 + 1.5, 2 * 4 + 1.5]
    assert torch.equal(to_cells(points, 4.0, 1.5)[2, 3], torch.tensor([3.0, 2.0]).double())
    assert torch.equal(nearest_cells(points, 5, 7, 4.0, 1.5), index)


def test_a_point_on_a_cell_reads_that_cell_alone():
    xy = to_points(torch.arange(35)[None], 7, 4.0)
    at = cells_around(xy, 5, 7, 4.0)
    assert torch.equal(at.index[:, 0], torch.arange(35)[None])
    assert torch.equal(at.weight[:, 0], torch.ones(1, 35).double())
    assert not at.weight[:, 1:].any()


@pytest.mark.parametrize("bilinear", [True, False])
def test_weights_sum_to_one_and_cells_are_of_the_map(bilinear):
    at = cells_around(random_points(), 5, 7, 4.0, 2.0, bilinear)
    assert torch.allclose(at.weight.sum(1), torch.ones(2, 200).double())
    assert at.weight.min() >= 0
    assert at.index.min() >= 0
    assert at.index.max() < 35


@pytest.mark.parametrize("bilinear", [True, False])
def test_scatter_is_the_adjoint_of_read(bilinear):
    generator = torch.Generator().manual_seed(1)
    at = cells_around(random_points(), 5, 7, 4.0, bilinear=bilinear)
    feature = torch.randn(2, 3, 5, 7, dtype=torch.float64, generator=generator)
    top = torch.randn(2, 3, 200, dtype=torch.float64, generator=generator)
    one, other = (read(feature, at) * top).sum(), (feature * scatter(top, at, 5, 7)).sum()
    assert torch.allclose(one, other)


def test_read_keeps_the_points_order():
    xy = torch.tensor([[[8.0, 0], [0, 0], [4, 4], [0, 0]]])
    feature = torch.arange(6.0).reshape(1, 1, 2, 3)
    assert read(feature, cells_around(xy, 2, 3, 4.0)).flatten().tolist() == [2, 0, 4, 0]


def test_single_precision_points_of_a_large_image_are_exact():
    xy = torch.tensor([[[4 * 3000 + 1.0, 4 * 2000 + 3.0]]])
    at = cells_around(xy, 4000, 4000, 4.0)
    assert at.index[0, 0, 0] == 2000 * 4000 + 3000
    assert at.weight.flatten().tolist() == [0.75 * 0.25, 0.25 * 0.25, 0.75 * 0.75, 0.25 * 0.75]


@pytest.mark.parametrize(("n", "p"), [(0, 4), (2, 0), (0, 0)])
def test_nothing_to_read(n, p):
    at = cells_around(torch.zeros(n, p, 2), 5, 7, 4.0)
    assert read(torch.zeros(n, 3, 5, 7), at).shape == (n, 3, p)
    assert scatter(torch.zeros(n, 3, p), at, 5, 7).shape == (n, 3, 5, 7)


def test_not_finite():
    expect_finite(torch.zeros(2, 3, 2), pairs=torch.zeros(2, 3, 5))
    xy = torch.zeros(2, 3, 2)
    xy[1, 2, 0] = math.inf
    with pytest.raises(BlobError) as caught:
        expect_finite(xy, pairs=torch.zeros(2, 3, 5))
    text = "row 2 of image 1 has coordinates that are not finite: inf, 0"
    assert str(caught.value) == f"pairs [2, 3, 5]: {text}"
    assert caught.value.named({"pairs": "table"}) == f"table [2, 3, 5]: {text}"
