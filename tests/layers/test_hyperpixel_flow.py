import math

import numpy as np
import pytest
import torch
from cells import step_of
from cortado.layers._geometry.cells import CellParams
from cortado.layers.hyperpixel_flow import HyperpixelFlow, hyperpixel_flow
from cortado.layers.keypoint_transfer import keypoint_transfer
from suite import LayerSuite
from torch.library import opcheck

C = torch.zeros(2, 3, 4, 2, 3)
A, B = torch.zeros(1, 3, 12, 16), torch.zeros(1, 3, 8, 12)


class TestHyperpixelFlow(LayerSuite):
    layer = HyperpixelFlow
    wrong = (
        ((C[0], A, B), "expected confidence [3, 4, 2, 3] to be [N, H, W, H', W']"),
        ((C, torch.zeros(2), B), "expected size_a [2] to be an image [N, C, H, W]"),
        ((C, A, B[0]), "expected size_b [3, 8, 12] to be [N, C, H, W] or [2]"),
        ((C.int(), A, B), "expected confidence to be floating point, got torch.int32"),
        (
            (C, B[:1].expand(3, 3, 8, 12), B),
            "expected size_a [3, 3, 8, 12] to be an image for each of confidence [2, 3, 4, 2, 3]",
        ),
        ((C * math.nan, A, B), "expected finite confidence"),
    )

    def test_operators_are_what_torch_expects(self):
        """Without the one comparison in which NaN is not NaN; test_compiled makes it."""
        chosen = "test_schema", "test_autograd_registration", "test_faketensor"
        for sample in self.samples():
            arguments = self.arguments(sample, self.leaves(sample))
            opcheck(self.definition.operator, arguments, test_utils=chosen)

    def oracle(self, params, confidence, image_a, image_b):
        sizes = image_a.shape[2:], image_b.shape[2:]
        flow = np.zeros((len(confidence), 2, *sizes[0]))
        for n, y, x in np.ndindex(len(confidence), *sizes[0]):
            flow[n, :, y, x] = step_of(confidence[n], (x, y), params, *sizes)[:2]
        return (flow,)

    def test_no_box_holds_a_hole(self):
        (flow,) = self.run(self.samples()[2].params, self.bottoms(self.samples()[2]))
        assert flow[0, 0, 2].isnan().all()
        assert flow[0, 0, 1, :2].isfinite().all()


def test_equals_the_transfer_of_each_pixel():
    confidence = torch.rand(1, 5, 6, 4, 5, generator=torch.Generator().manual_seed(0))
    sizes, cells = ((17, 21), (13, 17)), {"receptive_field": 7, "margin": 0.0}
    y, x = torch.meshgrid(torch.arange(17.0), torch.arange(21.0), indexing="ij")
    points = torch.stack((x, y), 2).view(1, -1, 2)
    moved, _ = keypoint_transfer(confidence, points, *sizes, **cells)
    flow = hyperpixel_flow(confidence, *sizes, **cells)
    steps = (moved - points).mT.view(1, 2, 17, 21)
    assert torch.allclose(flow, steps, atol=1e-5, equal_nan=True)
    assert 0 < flow.isnan().float().mean() < 1


def test_parameters_are_checked():
    with pytest.raises(ValueError, match="jump: expected above 0, got 0"):
        hyperpixel_flow(C, A, B, jump=0.0)
    assert hyperpixel_flow(C, (12, 16), (8, 12)).shape == (2, 2, 12, 16)
    assert CellParams().half == 13
