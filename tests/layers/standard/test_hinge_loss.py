"""HingeLoss against Caffe and a plain loop."""

from __future__ import annotations

from pathlib import Path

import caffe_vectors
import numpy as np
import pytest
import torch
from cortado.layers.standard.hinge_loss import HingeLoss, Norm, Params
from shared import cases
from suite import LayerSuite


@pytest.mark.parametrize("case", cases("07_hinge"))
def test_caffe(case: Path) -> None:
    caffe_vectors.check(case)


class TestHingeLoss(LayerSuite):
    layer = HingeLoss
    wrong = (
        (
            (torch.zeros(2, 3), torch.zeros(2, 2)),
            "expected one label for each item of scores [2, 3], got label [2, 2]",
        ),
        (
            (torch.ones(2, 3), torch.tensor([3, 0])),
            "expected labels from 0 to 2, got 3 at [0] of the label blob",
        ),
    )

    def oracle(self, params: Params, scores: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, ...]:
        total = 0.0
        for x, k in zip(scores, label, strict=True):
            for j, score in enumerate(x):
                hinge = max(0.0, 1 - score if j == k else 1 + score)
                total += hinge if params.norm is Norm.L1 else hinge**2
        return (np.array(total / len(scores)),)


@pytest.mark.parametrize("norm", list(Norm))
def test_at_the_margin_and_with_nan(norm: Norm) -> None:
    scores = torch.tensor([[1.0, -1.0, float("nan")]], requires_grad=True)
    loss = HingeLoss(Params(norm))(scores, torch.tensor([0]))
    loss.backward()
    assert float(loss.detach()) == 0
    assert scores.grad is not None
    assert scores.grad.tolist() == [[0, 0, 0]]
