import math

import numpy as np
import pytest
import torch
from cells import step_of
from cortado.layers._engine.dispatch import impl
from cortado.layers.keypoint_transfer import KeypointTransfer, Params, keypoint_transfer
from suite import LayerSuite
from torch.library import opcheck

C, POINTS = torch.zeros(2, 3, 4, 2, 3), torch.zeros(2, 5, 2)
A, B = torch.zeros(1, 3, 12, 16), torch.zeros(1, 3, 8, 12)


class TestKeypointTransfer(LayerSuite):
    layer = KeypointTransfer
    wrong = (
        ((C[0], POINTS, A, B), "expected confidence [3, 4, 2, 3] to be [N, H, W, H', W']"),
        ((C, POINTS[0], A, B), "expected points [5, 2] to be [N, P, 2]"),
        ((C, POINTS[:, :, :1], A, B), "expected points [2, 5, 1] to be [N, P, 2], (x, y)"),
        ((C, POINTS[:1], A, B), "batch sizes differ: confidence [2, 3, 4, 2, 3], points [1, 5, 2]"),
        ((C, POINTS, A[0], B), "expected size_a [3, 12, 16] to be [N, C, H, W] or [2]"),
        ((C.int(), POINTS, A, B), "expected confidence to be floating point, got torch.int32"),
        (
            (C, POINTS, B[:1].expand(3, 3, 8, 12), B),
            "expected size_a [3, 3, 8, 12] to be an image for each of confidence [2, 3, 4, 2, 3]",
        ),
        ((C * math.nan, POINTS, A, B), "expected finite confidence"),
    )

    def test_operators_are_what_torch_expects(self):
        """Without the one comparison in which NaN is not NaN; test_compiled makes it."""
        chosen = "test_schema", "test_autograd_registration", "test_faketensor"
        for sample in self.samples():
            arguments = self.arguments(sample, self.leaves(sample))
            opcheck(self.definition.operator, arguments, test_utils=chosen)

    def oracle(self, params, confidence, points, size_a, size_b):
        moved, score = np.zeros_like(points), np.zeros(points.shape[:2])
        for n, k in np.ndindex(points.shape[:2]):
            x, y, best = step_of(confidence[n], points[n, k], params, size_a, size_b)
            moved[n, k], score[n, k] = points[n, k] + (x, y), best
        return moved, score

    def test_some_points_are_held_and_some_are_not(self):
        for sample in self.samples()[:2]:
            moved, _ = self.run(sample.params, self.bottoms(sample))
            share = moved.isnan().double().mean()
            assert 0 < share < 1


def test_a_point_goes_where_the_cells_around_it_go_on_average():
    """Two cells of A, at 0 and 4, hold x = 2; they go to B's cells 1 and 2, a step of 4 each."""
    confidence = torch.zeros(1, 1, 2, 1, 3)
    confidence[0, 0, 0, 0, 1], confidence[0, 0, 1, 0, 2] = 0.5, 0.7
    points = torch.tensor([[[2.0, 0], [-3, 0], [7.1, 0], [7, 2.5]]])
    moved, score = keypoint_transfer(confidence, points, (1, 5), (1, 9), receptive_field=7)
    assert moved[0, [0, 1, 3]].tolist() == [[6, 0], [1, 0], [11, 2.5]]
    assert moved[0, 2].isnan().all()
    assert score[0, [0, 1, 3]].tolist() == pytest.approx([0.6, 0.5, 0.7])
    confidence[0, 0, 1] = 0.1  # of equal ones the first: B's cell 0
    moved, _ = keypoint_transfer(confidence, points, (1, 5), (1, 9), receptive_field=7)
    assert moved[0, 0].tolist() == [2, 0]


def test_further_columns_are_not_read():
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(2, 3, 4, 3, 4, generator=generator)
    pairs = torch.rand(2, 5, 5, generator=generator) * 8
    wanted = keypoint_transfer(confidence, pairs[..., :2], (12, 16), (12, 16))
    found = keypoint_transfer(confidence, pairs, A, torch.tensor([12, 16]))
    assert all(map(torch.equal, found, wanted))


def test_rows_that_hold_no_point_are_not_read():
    confidence = torch.rand(1, 5, 5, 2, 2, generator=torch.Generator().manual_seed(0))
    confidence[0, 3:] = math.nan
    moved, _ = keypoint_transfer(confidence, torch.tensor([[[4.0, 4]]]), A, B, receptive_field=7)
    assert moved.isfinite().all()


def test_an_infinite_confidence_spoils_no_other_points():
    confidence = torch.rand(1, 5, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    confidence[0, 0, 0, 1, 1] = math.inf
    sizes = (20, 20), (16, 16)
    _, score = keypoint_transfer(confidence, torch.tensor([[[16.0, 16]]]), *sizes, receptive_field=7)
    assert score.isfinite().all()
    with pytest.raises(ValueError, match=r"^expected finite confidence$"):
        keypoint_transfer(confidence, torch.zeros(1, 1, 2), *sizes, receptive_field=7)


def test_points_that_are_not_there_are_nan():
    moved, score = keypoint_transfer(torch.ones_like(C), POINTS * math.nan, A, B)
    assert moved.isnan().all()
    assert score.isnan().all()


def test_integers_and_double_precision():
    found, _ = keypoint_transfer(C, POINTS.int(), A, B)
    assert found.dtype == torch.float32
    found, score = keypoint_transfer(C.half(), POINTS.double(), A, B)
    assert found.dtype == score.dtype == torch.float64


def test_the_layer_without_a_second_top_and_without_kernels():
    layer = KeypointTransfer(Params(margin=2.0))
    with impl("torch"):
        assert layer(C, POINTS, A, B)[0].shape == (2, 5, 2)
