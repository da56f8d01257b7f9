"""The flow from region matches against a loop over pixels, and on a known warp."""

import math

import numpy as np
import pytest
import torch
from cortado.layers.region_flow import RegionFlow, first_cover, first_cover_chunked, region_flow
from suite import LayerSuite

SCORE, ROI, IMAGE = torch.zeros(1, 1), torch.zeros(1, 5), torch.zeros(1, 1, 4, 4)


def loops(scores, rois_a, rois_b, size_a, size_b):
    """Matches in the order of their scores fill the pixels that are still empty."""
    flow = np.full((1, 2, *size_a), np.nan)
    best = [max(range(len(rois_b)), key=lambda s: (scores[r, s], -s)) for r in range(len(scores))]
    for r in sorted(range(len(scores)), key=lambda r: (-scores[r, best[r]], r)):
        a, b = rois_a[r, -4:], rois_b[best[r], -4:]
        for y, x in np.ndindex(*size_a):
            if not np.isnan(flow[0, 0, y, x]):
                continue
            if all(
                math.floor(a[i] + 0.5) <= p <= math.floor(a[i + 2] + 0.5) for i, p in ((0, x), (1, y))
            ):
                for i, p, most in ((0, x, size_b[1] - 1), (1, y, size_b[0] - 1)):
                    slope = (b[i + 2] - b[i]) / (a[i + 2] - a[i] if a[i + 2] > a[i] else 1)
                    target = math.floor(b[i] + (p - a[i]) * slope + 0.5)
                    flow[0, i, y, x] = min(max(target, 0), most) - p
    return flow


class TestRegionFlow(LayerSuite):
    layer = RegionFlow
    wrong = (
        (
            (torch.zeros(2, 3), ROI.expand(2, 5), ROI.expand(2, 5), IMAGE, IMAGE),
            "expected scores [2, 3] to be a row for each of rois_a [2, 5] and a column for each of "
            "rois_b [2, 5]",
        ),
        (
            (SCORE, ROI[:, :3], ROI, IMAGE, IMAGE),
            "expected rois_a [1, 3] to be [P, 4] boxes or [P, 5] rois",
        ),
        (
            (SCORE, ROI, ROI, IMAGE.expand(2, 1, 4, 4), IMAGE),
            "one pair of images a call, got image1 [2, 1, 4, 4] and image2 [1, 1, 4, 4]",
        ),
        (
            (SCORE, ROI, torch.tensor([[0, 1, torch.inf, 3, 4]]), IMAGE, IMAGE),
            "rois_b [1, 5]: row 0 is not finite: 0, 1, inf, 3, 4 (expected batch, x1, y1, x2, y2)",
        ),
        ((SCORE * torch.nan, ROI, ROI, IMAGE, IMAGE), "scores: NaN"),
    )

    def oracle(self, params, scores, rois_a, rois_b, image1, image2):
        return (loops(scores, rois_a, rois_b, image1.shape[2:], image2.shape[2:]),)

    def leaves(self, sample, dtype=torch.float32):
        """With a box over all of the first image, for opcheck, to which no NaN equals another."""
        scores, rois_a, *others = super().leaves(sample, dtype)
        rois_a[0, 1:] = torch.tensor([0.0, 0, 999, 999])
        return [scores, rois_a, *others]

    def test_empty_batch(self):
        for p, s in ((0, 3), (3, 0), (0, 0)):
            flow = region_flow(torch.zeros(p, s), torch.zeros(p, 5), torch.zeros(s, 5), (4, 6), (5, 5))
            assert flow.shape == (1, 2, 4, 6)
            assert flow.isnan().all()
        assert region_flow(*self.bottoms(self.samples()[0])[:3], (0, 6), (5, 5)).shape == (1, 2, 0, 6)


@pytest.mark.parametrize("seed", range(5))
def test_fractional_boxes_and_ties(seed):
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(rng.integers(0, 3, (9, 6)).astype(float))
    low = rng.integers(-6, 16, (15, 2)) / 2
    boxes = torch.from_numpy(np.c_[low, low + rng.integers(0, 20, (15, 2)) / 2])
    found = region_flow(scores, boxes[:9], boxes[9:], (12, 10), (9, 8))
    wanted = loops(scores.numpy(), boxes[:9].numpy(), boxes[9:].numpy(), (12, 10), (9, 8))
    np.testing.assert_array_equal(found.numpy(), wanted)


def test_a_known_warp():
    """Boxes matched with their images under x -> 2 x + 5, y -> y / 2 + 3 give that flow."""
    rng = np.random.default_rng(0)
    size_a, size_b = (40, 60), (30, 130)
    low = np.c_[rng.integers(0, 45, 60), rng.integers(0, 25, 60)]
    boxes = np.r_[np.c_[low, low + rng.integers(6, 15, (60, 2))], [[0, 0, 59, 39]]]
    carried = boxes * [2, 0.5, 2, 0.5] + [5, 3, 5, 3]
    order = rng.permutation(len(boxes))
    scores = 0.01 * torch.rand(61, 61, dtype=torch.float64)
    scores[range(61), torch.from_numpy(order.argsort())] += torch.linspace(1, 0.5, 61)
    rois = [torch.from_numpy(x.astype(float)) for x in (boxes, carried[order])]
    flow = region_flow(scores, *rois, size_a, size_b)[0].double()
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(60.0), indexing="ij")
    assert (flow[0] + x - (2 * x + 5)).abs().max() <= 0.5
    assert (flow[1] + y - (y / 2 + 3)).abs().max() <= 0.5


def test_the_better_match_is_above_and_the_rest_is_empty():
    boxes = torch.tensor([[0.0, 0, 3, 3], [2.0, 2, 5, 5]])
    scores = torch.tensor([[0.2, 0.0], [0.0, 0.7]])
    flow = region_flow(scores, boxes, boxes + torch.tensor([[1.0], [-1.0]]), (7, 7), (7, 7))[0, 0]
    assert flow[3, 3] == -1
    assert flow[1, 1] == 1
    assert flow[6].isnan().all()
    assert flow[0, 4].isnan()


@pytest.mark.parametrize("count", [1, 31, 32, 100])
def test_the_two_ways_to_find_the_first_box(count):
    low = torch.randint(-6, 30, (count, 2), generator=torch.Generator().manual_seed(count)) / 2
    size = torch.randint(-2, 12, (count, 2), generator=torch.Generator().manual_seed(count + 1))
    boxes = torch.cat([low, low + size], 1).double()
    assert torch.equal(first_cover(boxes, (14, 17)), first_cover_chunked(boxes, (14, 17)))
