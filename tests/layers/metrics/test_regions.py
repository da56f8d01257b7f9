"""PCR and mIoU@k against loops over rows."""

import numpy as np
import pytest
import torch
from cortado.layers._engine.checks import BlobError
from cortado.layers.metrics.miou import MIoU, mean_of_best, miou
from cortado.layers.metrics.miou import Params as MIoUParams
from cortado.layers.metrics.pcr import PCR, area, curve, pcr
from cortado.layers.metrics.pcr import Params as PCRParams


def pixels(box):
    x1, y1, x2, y2 = (int(value) for value in box)
    return {(x, y) for x in range(x1, x2 + 1) for y in range(y1, y2 + 1)}


def rows(scores, rois, truth):
    """(score, IoU) of each row that counts, by sets of pixels."""
    found = []
    for r in range(len(scores)):
        if truth[r, 4] != 1:
            continue
        best = max(range(len(rois)), key=lambda s: (scores[r, s], -s))
        one, two = pixels(rois[best][-4:]), pixels(truth[r, :4])
        found.append((float(scores[r, best]), len(one & two) / len(one | two)))
    return found


def pcr_oracle(scores, rois, truth, steps=100):
    found = rows(scores, rois, truth)
    return [sum(iou > (steps - i) / steps for _, iou in found) / len(found) for i in range(steps + 1)]


def miou_oracle(scores, rois, truth, largest_k=100):
    found = sorted(rows(scores, rois, truth), key=lambda row: -row[0])
    means = []
    for k in range(1, largest_k + 1):
        kept = [iou for _, iou in found[:k]]
        means.append(sum(kept) / len(kept))
    return means


def matches(seed, p=40, s=30, ties=False):
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 6, (p + s, 2))
    boxes = np.c_[low, low + rng.integers(4, 12, (p + s, 2))].astype(float)
    scores = rng.integers(0, 3, (p, s)).astype(float) if ties else rng.random((p, s))
    rois = np.c_[np.zeros(s), boxes[p:]]
    truth = np.c_[boxes[:p], rng.choice([-1, 1, 1], p)]
    return tuple(torch.from_numpy(x) for x in (scores, rois, truth))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_pcr_against_the_oracle(seed, ties):
    bottoms = matches(seed, ties=ties)
    shares, under = PCR(PCRParams())(*bottoms)
    wanted = pcr_oracle(*bottoms)
    assert shares.tolist() == pytest.approx(wanted, abs=1e-6)
    assert under.tolist() == pytest.approx([np.trapezoid(wanted, dx=0.01)], abs=1e-6)
    assert 0 < shares[50] < shares[100]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_miou_against_the_oracle(seed, ties):
    bottoms = matches(seed, ties=ties)
    assert MIoU(MIoUParams())(*bottoms).tolist() == pytest.approx(miou_oracle(*bottoms), abs=1e-6)


def test_boxes_without_batch_floats_and_infer():
    scores, rois, truth = matches(5)
    narrow = pcr(scores.float(), rois[:, 1:].float(), truth.float(), steps=7)
    assert torch.equal(narrow, pcr(scores.float(), rois, truth, steps=7))
    counted = truth[truth[:, 4] == 1]
    assert torch.equal(miou(scores[truth[:, 4] == 1], rois, counted[:, :4]), miou(scores, rois, truth))
    shapes = [tuple(x.shape) for x in (scores, rois, truth)]
    assert PCR.infer(PCRParams(steps=7), *shapes) == ((8,), (1,))
    assert MIoU.infer(MIoUParams(largest_k=3), *shapes) == ((3,),)
    assert miou(scores, rois, truth, 3).dtype == torch.float32


def test_a_difference_equal_to_tau_is_not_less():
    overlap = torch.arange(101, dtype=torch.float64) / 100
    assert (curve(overlap) * 101).round().tolist() == list(range(101))
    assert curve(torch.tensor([1.0])).tolist() == [0.0] + [1.0] * 100
    assert area(torch.tensor([0.0, 1.0, 1.0])).tolist() == [0.75]


def test_a_tie_goes_to_the_first():
    overlap, score = torch.tensor([0.2, 0.4, 0.9]), torch.tensor([1.0, 1.0, 0.5])
    assert mean_of_best(overlap, score, 4).tolist() == pytest.approx([0.2, 0.3, 0.5, 0.5])


def test_nothing_that_counts_is_zero():
    scores, rois, truth = matches(0)
    truth[:, 4] = -1
    for bottoms in (
        (scores, rois, truth),
        (scores[:0], rois, truth[:0]),
        (scores[:0, :0], rois[:0], truth[:0]),
    ):
        assert pcr(*bottoms).tolist() == [0] * 101
        assert miou(*bottoms).tolist() == [0] * 100
    truth[:, 4] = 1
    assert pcr(scores[:, :0], rois[:0], truth).tolist() == [0] * 101
    assert miou(scores[:, :0], rois[:0], truth).tolist() == [0] * 100


def test_errors_are_exact():
    scores, rois, truth = matches(0, 4, 3)
    for metric in (pcr, miou):
        for wrong, message in (
            ((scores[0], rois, truth), "expected scores [3] to be [P, S]"),
            ((scores, rois[:, :3], truth), "expected rois_b [3, 3] to be [P, 4] boxes or [P, 5] rois"),
            (
                (scores, rois, truth[:, :3]),
                "expected truth [4, 3] to be [P, 5]: x1, y1, x2, y2, s; or [P, 4]",
            ),
            ((scores[:2], rois, truth), "bottoms disagree on P: scores [2, 3], truth [4, 5]"),
            ((scores[:, :2], rois, truth), "bottoms disagree on S: scores [4, 2], rois_b [3, 5]"),
        ):
            with pytest.raises(BlobError) as caught:
                metric(*wrong)
            assert str(caught.value) == message
        truth[2] = torch.tensor([1, torch.inf, 2, 2, 1])
        with pytest.raises(BlobError, match=r"truth \[4, 5\]: row 2 is not finite: 1, inf, 2, 2, 1"):
            metric(scores, rois, truth)
        truth[2, 4] = -1  # its box is not looked at
        assert metric(scores, rois, truth).isfinite().all()
        with pytest.raises(BlobError, match=r"rois_b \[3, 5\]: row 0 is not finite"):
            metric(scores, rois * torch.nan, truth)
        with pytest.raises(ValueError) as caught:
            metric(scores * torch.nan, rois, torch.ones_like(truth))
        assert str(caught.value) == "scores: NaN"
