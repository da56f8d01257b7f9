"""ContrastiveLoss against Caffe and a plain loop, both versions."""

from __future__ import annotations

import math
from pathlib import Path

import caffe_vectors
import numpy as np
import pytest
import torch
from cortado.layers.standard.contrastive_loss import ContrastiveLoss, Params
from shared import cases
from suite import LayerSuite


@pytest.mark.parametrize("case", cases("07_contrastive", "08_siamese"))
def test_caffe(case: Path) -> None:
    caffe_vectors.check(case)


class TestContrastiveLoss(LayerSuite):
    layer = ContrastiveLoss
    wrong = (
        (
            (torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3)),
            "expected as many items: a [2, 3], similar [3]",
        ),
        (
            (torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2)),
            "bottoms differ in channels: a [2, 3], b [2, 4]",
        ),
        (
            (torch.zeros(2, 3, 2), torch.zeros(2, 3, 2), torch.zeros(2)),
            "expected a [2, 3, 2] to be [N, C] or [N, C, 1, 1]",
        ),
        (
            (torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 2)),
            "expected one label for each pair, got similar [2, 2]",
        ),
    )

    def oracle(
        self, params: Params, a: np.ndarray, b: np.ndarray, similar: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        total = 0.0
        for x, y, s in zip(a, b, similar, strict=True):
            squared = float(((x - y) ** 2).sum())
            if int(s):
                total += squared
            elif params.legacy_version:
                total += max(0.0, params.margin - squared)
            else:
                total += max(0.0, params.margin - math.sqrt(squared)) ** 2
        return (np.array(total / len(a) / 2),)


@pytest.mark.parametrize("legacy", [False, True])
def test_published_gradient(legacy: bool) -> None:
    """Similar, dissimilar inside the margin, at distance 0, outside; 1e-4 beside the distance."""
    a = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    b = torch.zeros(4, 2, requires_grad=True)
    similar = torch.tensor([1.0, 0.5, 0.0, 0.0])  # 0.5 is 0
    ContrastiveLoss(Params(margin=1.0, legacy_version=legacy))(a, b, similar).backward()
    inside = -1 / 4 if legacy else -0.5 / (0.5 + 1e-4) / 4
    wanted = torch.tensor([[0.75, 1.0], [0.3 * inside, 0.4 * inside], [0, 0], [0, 0]])
    assert a.grad is not None
    assert b.grad is not None
    torch.testing.assert_close(a.grad, wanted)
    torch.testing.assert_close(b.grad, -wanted)


@pytest.mark.parametrize("legacy", [False, True])
def test_at_the_margin_and_with_nan(legacy: bool) -> None:
    layer = ContrastiveLoss(Params(margin=25.0 if legacy else 5.0, legacy_version=legacy))
    a, b = torch.tensor([[3.0, 4.0]], requires_grad=True), torch.zeros(1, 2)
    loss = layer(a, b, torch.zeros(1))
    loss.backward()
    assert float(loss.detach()) == 0
    assert a.grad is not None
    assert a.grad.tolist() == [[0, 0]]
    assert layer(torch.tensor([[math.nan, 0.0]]), b, torch.zeros(1)).isnan()


def test_four_axes() -> None:
    a, b = torch.ones(2, 3, 1, 1), torch.zeros(2, 3, 1, 1)
    assert float(ContrastiveLoss(Params())(a, b, torch.ones(2, 1, 1, 1))) == 1.5
