import math

import numpy as np
import pytest
import torch
from cortado.layers.extract_feature import (
    ExtractFeature,
    Params,
    backward_cuda,
    extract_feature,
    forward_cuda,
)
from cuda_host import needs_compiler, on_host
from suite import LayerSuite, close
from torch.nn.functional import grid_sample

FEATURE, PAIRS = torch.zeros(2, 3, 4, 5), torch.zeros(2, 6, 5)


def bad(row, column, value):
    pairs = PAIRS.clone()
    pairs[1, row, column] = value
    return pairs


class TestExtractFeature(LayerSuite):
    layer = ExtractFeature
    wrong = (
        ((FEATURE[0], PAIRS), "expected feature [3, 4, 5] to be [N, C, H, W]"),
        ((FEATURE, PAIRS[0]), "expected pairs [6, 5] to be [N, P, 5]"),
        ((FEATURE, PAIRS[..., :4]), "expected pairs [2, 6, 4] to have 5 columns"),
        ((FEATURE, PAIRS), "no column x, y at 4 of pairs [2, 6, 5]", Params(coord_start_ind=4)),
        ((FEATURE, PAIRS[:1]), "batch sizes differ: feature [2, 3, 4, 5], pairs [1, 6, 5]"),
        ((FEATURE[:, :, :0], PAIRS), "no cell to read in feature [2, 3, 0, 5]"),
        ((FEATURE.long(), PAIRS), "expected feature to be floating point, got torch.int64"),
        (
            (FEATURE, bad(3, 1, math.nan)),
            "pairs [2, 6, 5]: row 3 of image 1 has coordinates that are not finite: 0, nan",
        ),
        (
            (FEATURE, bad(0, 0, -math.inf)),
            "pairs [2, 6, 5]: row 0 of image 1 has coordinates that are not finite: -inf, 0",
        ),
    )

    def oracle(self, params, feature, pairs):
        n, channels, height, width = feature.shape
        top = np.zeros((n, channels, pairs.shape[1]))
        for i, p in np.ndindex(pairs.shape[:2]):
            x, y = pairs[i, p, params.coord_start_ind : params.coord_start_ind + 2]
            u = (x - params.coordinate_offset) / params.downsampling_factor
            v = (y - params.coordinate_offset) / params.downsampling_factor
            u, v = min(max(u, 0), width - 1), min(max(v, 0), height - 1)
            if not params.bilinear_interpolation:
                top[i, :, p] = feature[i, :, math.floor(v + 0.5), math.floor(u + 0.5)]
                continue
            for row in range(height):
                for column in range(width):
                    share = max(0, 1 - abs(u - column)) * max(0, 1 - abs(v - row))
                    top[i, :, p] += share * feature[i, :, row, column]
        return (top,)


def table(*points):
    rows = torch.zeros(1, len(points), 5, dtype=torch.float64)
    rows[0, :, :2] = torch.tensor(points, dtype=torch.float64).reshape(-1, 2)
    return rows


RAMP = torch.arange(12, dtype=torch.float64).reshape(1, 1, 3, 4)  # cell (u, v) holds 4 v + u


def test_coordinate_rule():
    pairs = table((0, 0), (4, 8), (6, 2), (12, 8), (13, 9), (-9, -9), (100, 2))
    assert extract_feature(RAMP, pairs)[0, 0].tolist() == [0, 9, 3.5, 11, 11, 0, 5]
    assert extract_feature(RAMP, pairs + 4, coordinate_offset=4)[0, 0].tolist() == [
        0,
        9,
        3.5,
        11,
        11,
        0,
        5,
    ]


def test_nearest_rounds_halves_up():
    pairs = table((1.99, 0), (2, 0), (6, 0), (10, 0), (0, 2), (0, 6), (14, 10))
    top = extract_feature(RAMP, pairs, bilinear_interpolation=False)
    assert top[0, 0].tolist() == [0, 1, 2, 3, 4, 8, 11]


def test_points_of_one_cell_add_up():
    feature = RAMP.clone().requires_grad_()
    extract_feature(feature, table((4, 4), (4, 4), (6, 4), (-5, -5))).sum().backward()
    assert feature.grad[0, 0].tolist() == [[1, 0, 0, 0], [0, 2.5, 0.5, 0], [0, 0, 0, 0]]


def test_padding_is_read():
    pairs = table((4, 8), (4, 8))
    pairs[0, 1, 4] = -1
    assert extract_feature(RAMP, pairs)[0, 0].tolist() == [9, 9]


def test_no_points_and_no_map():
    feature = torch.randn(2, 3, 4, 5, requires_grad=True)
    top = extract_feature(feature, torch.zeros(2, 0, 5))
    assert top.shape == (2, 3, 0)
    top.sum().backward()
    assert not feature.grad.any()
    assert extract_feature(torch.zeros(2, 3, 0, 0), torch.zeros(2, 0, 5)).shape == (2, 3, 0)


def test_the_table_gets_no_gradient():
    pairs = table((4, 8), (3, 3)).requires_grad_()
    assert not extract_feature(RAMP, pairs).requires_grad


def test_other_tables_and_integers():
    pairs = torch.tensor([[[0, 0, 4, 8]]])
    assert extract_feature(RAMP, pairs, coord_start_ind=2).item() == 9


def test_many_duplicates_in_half_precision_are_summed_in_single():
    feature = torch.zeros(1, 1, 2, 2, dtype=torch.float16, requires_grad=True)
    extract_feature(feature, torch.zeros(1, 4096, 5)).sum().backward()
    assert feature.grad[0, 0].tolist() == [[4096, 0], [0, 0]]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_equals_grid_sample(layout):
    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(2, 5, 7, 9, dtype=torch.float64, generator=generator)
    feature = feature.to(memory_format=layout).requires_grad_()
    pairs = 40 * torch.rand(2, 50, 5, dtype=torch.float64, generator=generator) - 2
    grid = 2 * pairs[:, None, :, :2] / 4 / torch.tensor([8, 6]) - 1
    theirs = grid_sample(feature, grid, align_corners=True, padding_mode="border")[:, :, 0]
    ours = extract_feature(feature, pairs)
    given = torch.randn(ours.shape, dtype=torch.float64, generator=generator)
    close(ours, theirs.detach(), 1e-13, "top")
    (wanted,) = torch.autograd.grad(theirs, feature, given)
    close(torch.autograd.grad(ours, feature, given)[0], wanted, 1e-13, "gradient")


@needs_compiler
@pytest.mark.parametrize("column", [0, 1])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e38])
def test_kernels_read_within_the_map_and_note_what_is_not_finite(value, column):
    pairs = bad(3, column, value)
    with on_host():
        gradient = backward_cuda(Params(), torch.ones(2, 3, 6), pairs, FEATURE.shape)
        assert gradient.sum() == pytest.approx(36)
        if math.isfinite(value):
            forward_cuda(Params(), FEATURE, pairs)
            return
        with pytest.raises(ValueError, match="pairs: coordinates that are not finite"):
            forward_cuda(Params(), FEATURE, pairs)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int32])
def test_kernels_take_the_table_in_its_own_type(dtype):
    sample = ExtractFeature.samples("small", np.random.default_rng(0))[0]
    feature, pairs = sample.bottoms[0].float(), sample.bottoms[1].to(dtype)
    expected = extract_feature(feature, pairs)
    with on_host():
        close(extract_feature(feature, pairs), expected, 1e-6, "top")
