import math

import numpy as np
import pytest
import torch
from cortado.layers.region_pair_sampling import (
    Params,
    RegionPairSampling,
    Rule,
    region_pair_sampling,
)
from suite import LayerSuite

SCORES, ROIS, TRUTH = torch.zeros(3, 4), torch.zeros(4, 5), torch.ones(3, 5)


def bad(table, row, column, value):
    table = table.clone()
    table[row, column] = value
    return table


def overlap(a, b):
    """IoU of boxes of whole pixels, by counting."""
    one, other = (
        {(x, y) for x in range(int(c[0]), int(c[2]) + 1) for y in range(int(c[1]), int(c[3]) + 1)}
        for c in (a, b)
    )
    return len(one & other) / len(one | other)


class TestRegionPairSampling(LayerSuite):
    layer = RegionPairSampling
    wrong = (
        ((SCORES[0], ROIS, TRUTH), "expected scores [4] to be [P, S]"),
        ((SCORES, ROIS[0], TRUTH), "expected rois_b [5] to be [P, 4] boxes or [P, 5] rois"),
        (
            (SCORES, ROIS, TRUTH[:, :3]),
            "expected truth [3, 3] to be [P, 5]: x1, y1, x2, y2, s; or [P, 4]",
        ),
        (
            (SCORES.T, ROIS, TRUTH),
            "expected scores [4, 3] to be a row for each of truth [3, 5] by rois_b [4, 5]",
        ),
        ((SCORES.int(), ROIS, TRUTH), "expected scores to be floating point, got torch.int32"),
        (
            (SCORES, bad(ROIS, 3, 4, math.nan), TRUTH),
            "rois_b [4, 5]: row 3 is not finite: 0, 0, 0, 0, nan (expected batch, x1, y1, x2, y2)",
        ),
        (
            (SCORES, ROIS, bad(TRUTH, 0, 1, -math.inf)),
            "truth [3, 5]: row 0 is not finite: 1, -inf, 1, 1, 1 (expected x1, y1, x2, y2, s)",
        ),
        ((SCORES, ROIS, bad(TRUTH, 2, 4, 0)), "truth [3, 5]: row 2 has s = 0, not 1 or -1"),
    )

    def oracle(self, params, scores, rois_b, truth):
        label = np.full(scores.shape, -1.0)
        above, below = params.thresholds
        for r, (*box, s) in enumerate(truth):
            if s != 1:
                continue
            found = [overlap(box, roi[1:]) for roi in rois_b]
            positives = [j for j, value in enumerate(found) if value > above]
            released = params.rule is Rule.RELEASED
            far = [j for j, value in enumerate(found) if value < below or (released and value == below)]
            far = sorted(set(far) - set(positives), key=lambda j: (-scores[r, j], j))
            label[r, far[: len(positives)]] = 0
            label[r, positives] = 1
        return label, (label == 1).sum(), (label == 0).sum()

    def test_empty_batch(self):
        for p, s in ((0, 4), (3, 0), (0, 0)):
            label, positives, negatives = region_pair_sampling(SCORES[:p, :s], ROIS[:s], TRUTH[:p])
            assert label.shape == (p, s)
            assert positives == negatives == 0


# Boxes one pixel high: their IoU with pixels 0..9 is the share of their pixels inside.
LINES = torch.tensor(
    [[0.0, 0, 9, 0], [0, 0, 5, 0], [0, 0, 4, 0], [0, 0, 3, 0], [0, 0, 1, 0], [20, 0, 29, 0]]
)
WHOLE = LINES[:1]


def labels(scores, *options, truth=WHOLE):
    return region_pair_sampling(torch.tensor([scores]), LINES, truth, *options).label[0].tolist()


def test_thresholds_on_their_edges():
    scores = [0.0, 0.5, 0.6, 0.3, 0.2, 0.1]
    # IoU 1, 0.6, 0.5, 0.4, 0.2, 0: above 0.6 the first alone, below 0.4 the last two
    assert labels(scores) == [1, -1, -1, -1, 0, -1]
    # above 0.5 the first two, up to 0.2 the last two
    assert labels(scores, "RELEASED") == [1, 1, -1, -1, 0, 0]
    assert labels(scores, "PAPER", 0.6, 0.41) == [1, -1, -1, 0, -1, -1]
    assert labels(scores, "RELEASED", 0.6, 0.4) == [1, -1, -1, 0, -1, -1]


def test_the_hardest_are_the_highest_and_of_equal_ones_the_first():
    assert labels([9.0, 9, 9, 9, 0.1, 0.2]) == [1, -1, -1, -1, -1, 0]
    assert labels([9.0, 9, 9, 9, 0.2, 0.2]) == [1, -1, -1, -1, 0, -1]


def test_fewer_candidates_than_positives():
    scores = [0.0] * 6
    assert labels(scores, "PAPER", 0.45, 0.1) == [1, 1, 1, -1, -1, 0]
    assert labels(scores, "PAPER", 0.1, 0.0) == [1, 1, 1, 1, 1, -1]


def test_rows_without_a_truth():
    truth = torch.cat((WHOLE.expand(2, 4), torch.tensor([[1.0], [-1.0]])), dim=1)
    label, positives, negatives = region_pair_sampling(torch.zeros(2, 6), LINES, truth)
    assert label.tolist() == [[1, -1, -1, -1, 0, -1], [-1] * 6]
    assert (int(positives), int(negatives)) == (1, 1)
    assert labels([0.0] * 6, truth=LINES[5:] + 100) == [-1] * 6


def test_no_gradient():
    scores = torch.zeros(1, 6, requires_grad=True)
    assert not region_pair_sampling(scores, LINES, WHOLE).label.requires_grad


def test_rules():
    assert Params().thresholds == (0.6, 0.4)
    assert Params(Rule.RELEASED, negative_iou=0.3).thresholds == (0.5, 0.3)
    with pytest.raises(ValueError) as caught:
        region_pair_sampling(SCORES, ROIS, TRUTH, "OURS")
    assert str(caught.value) == 'rule: expected one of PAPER, RELEASED, got "OURS"'
