"""SigmoidCrossEntropyLoss against Caffe and a plain loop."""

from __future__ import annotations

import math
from pathlib import Path

import caffe_vectors
import numpy as np
import pytest
import torch
from cortado.layers.standard._losses import LossParams, Normalization
from cortado.layers.standard.sigmoid_cross_entropy_loss import SigmoidCrossEntropyLoss
from shared import cases
from suite import LayerSuite


@pytest.mark.parametrize("case", cases("07_sce_"))
def test_caffe(case: Path) -> None:
    caffe_vectors.check(case)


class TestSigmoidCrossEntropyLoss(LayerSuite):
    layer = SigmoidCrossEntropyLoss
    wrong = (
        (
            (torch.zeros(2, 3), torch.zeros(2, 4)),
            "expected as many elements: scores [2, 3], target [2, 4]",
        ),
        (
            (torch.zeros(2, 3), torch.zeros(3, 2)),
            "expected as many items: scores [2, 3], target [3, 2]",
        ),
    )

    def oracle(
        self, params: LossParams, scores: np.ndarray, target: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        total, counted = 0.0, 0
        for x, t in zip(scores.ravel(), target.ravel(), strict=True):
            if int(t) == params.ignore_label:
                continue
            p = 1 / (1 + math.exp(-x))
            total -= t * math.log(p) + (1 - t) * math.log(1 - p)
            counted += 1
        n, each = len(scores), scores[0].size
        mode = params.normalization or Normalization.BATCH_SIZE
        sizes = {"FULL": n * each, "VALID": counted, "BATCH_SIZE": n, "NONE": 1}
        return (np.array(total / max(1, sizes[mode.name])),)


def test_saturated_is_exactly_zero() -> None:
    scores = torch.tensor([[40.0, -40.0]], requires_grad=True)
    loss = SigmoidCrossEntropyLoss()(scores, torch.tensor([[1.0, 0.0]]))
    loss.backward()
    assert float(loss.detach()) == 0
    assert scores.grad is not None
    assert scores.grad.tolist() == [[0, 0]]


def test_the_integer_part_is_ignored() -> None:
    """ignore_label 0 takes every target in (-1, 1) with it."""
    layer = SigmoidCrossEntropyLoss(LossParams(ignore_label=0))
    assert float(layer(torch.ones(1, 3), torch.tensor([[0.0, 0.9, -0.9]]))) == 0
    assert float(layer(torch.ones(1, 1), torch.ones(1, 1))) == pytest.approx(math.log(1 + math.exp(-1)))
