"""MultinomialLogisticLoss against Caffe and a plain loop."""

from __future__ import annotations

import math
from pathlib import Path

import caffe_vectors
import numpy as np
import pytest
import torch
from cortado.layers.standard.multinomial_logistic_loss import MultinomialLogisticLoss
from shared import cases
from suite import LayerSuite


@pytest.mark.parametrize("case", cases("07_multinomial"))
def test_caffe(case: Path) -> None:
    caffe_vectors.check(case)


class TestMultinomialLogisticLoss(LayerSuite):
    layer = MultinomialLogisticLoss
    wrong = (
        (
            (torch.zeros(2, 3), torch.zeros(2, 2)),
            "expected one label for each item of scores [2, 3], got label [2, 2]",
        ),
        (
            (torch.ones(2, 3), torch.tensor([-1, 0])),
            "expected labels from 0 to 2, got -1 at [0] of the label blob",
        ),
    )

    def oracle(self, params: None, prob: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, ...]:
        losses = [-math.log(max(p[int(k)], 1e-20)) for p, k in zip(prob, label, strict=True)]
        return (np.array(sum(losses) / len(losses)),)


def test_clipping() -> None:
    """The loss and the gradient stop at p = 1e-20."""
    prob = torch.tensor([[0.0, 1.0], [0.5, 0.5]], requires_grad=True)
    loss = MultinomialLogisticLoss()(prob, torch.tensor([0, 1]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx((46.0517 + math.log(2)) / 2, abs=1e-4)
    assert prob.grad is not None
    assert prob.grad[:, 0].tolist() == pytest.approx([-5e19, 0])
    assert prob.grad[:, 1].tolist() == pytest.approx([0, -1])
