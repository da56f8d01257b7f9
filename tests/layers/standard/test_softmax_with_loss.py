"""SoftmaxWithLoss against Caffe and a plain loop: labels, normalisers, clipping."""

from __future__ import annotations

import math
from pathlib import Path

import caffe_vectors
import numpy as np
import pytest
import torch
from cortado.layers.standard._losses import LossParams, Normalization
from cortado.layers.standard.softmax_with_loss import Params, SoftmaxWithLoss
from cortado.nets.net import Net
from cortado.prototxt_like import loads
from cortado.prototxt_like.source import SpecError
from shared import cases
from suite import LayerSuite


@pytest.mark.parametrize("case", cases("07_smloss_", "11_two_losses", "11_auto_top"))
def test_caffe(case: Path) -> None:
    caffe_vectors.check(case)


def divisor(loss: LossParams, default: Normalization, outer: int, inner: int, counted: int) -> int:
    mode = loss.normalization or default
    sizes = {"FULL": outer * inner, "VALID": counted, "BATCH_SIZE": outer, "NONE": 1}
    return max(1, sizes[mode.name])


class TestSoftmaxWithLoss(LayerSuite):
    layer = SoftmaxWithLoss
    wrong = (
        (
            (torch.zeros(2, 3), torch.zeros(3)),
            "expected as many items: scores [2, 3], label [3]",
        ),
        (
            (torch.zeros(2, 3, 4), torch.zeros(2)),
            "expected 8 labels, one for each position of scores [2, 3, 4], got label [2]",
        ),
        ((torch.zeros(2), torch.zeros(2)), "scores [2] has no axis 1"),
        (
            (torch.zeros(2, 3), torch.tensor([0, 3])),
            "expected labels from 0 to 2, got 3 at [1] of the label blob; "
            "loss_param: {ignore_label: 3} leaves such ones out",
            Params(),
        ),
        (
            (torch.zeros(1, 3), torch.tensor([float("nan")])),
            "expected labels from 0 to 2, got nan at [0] of the label blob",
            Params(),
        ),
    )

    def oracle(self, params: Params, scores: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, ...]:
        x = np.moveaxis(scores, params.axis, -1)
        label = label.reshape(x.shape[:-1])
        total, counted = 0.0, 0
        for at in np.ndindex(label.shape):
            if label[at] == params.loss_param.ignore_label:
                continue
            e = np.exp(x[at] - x[at].max())
            total -= math.log(max(e[int(label[at])] / e.sum(), 1.17549435e-38))
            counted += 1
        axis = params.axis % scores.ndim
        outer, inner = math.prod(scores.shape[:axis]), math.prod(scores.shape[axis + 1 :])
        return (
            np.array(total / divisor(params.loss_param, Normalization.VALID, outer, inner, counted)),
        )


def test_clipping() -> None:
    """The loss stops at FLT_MIN; the gradient goes on."""
    scores = torch.tensor([[0.0, -200.0]], requires_grad=True)
    loss = SoftmaxWithLoss(Params())(scores, torch.tensor([1]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(87.33654, abs=1e-4)
    assert scores.grad is not None
    assert scores.grad.tolist() == [[1, -1]]


def test_labels_are_truncated_and_ignored_scores_may_be_anything() -> None:
    scores = torch.tensor([[0.0, 1.0], [float("nan"), 0.0]], requires_grad=True)
    layer = SoftmaxWithLoss(Params(loss_param=LossParams(ignore_label=-1)))
    loss = layer(scores, torch.tensor([1.9, -1.0]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(math.log(1 + math.exp(-1)))
    assert scores.grad is not None
    assert scores.grad[1].tolist() == [0, 0]


def test_all_ignored() -> None:
    scores = torch.randn(2, 3, requires_grad=True)
    loss = SoftmaxWithLoss(Params(loss_param=LossParams(ignore_label=7)))(scores, torch.full((2,), 7))
    loss.backward()
    assert float(loss.detach()) == 0
    assert scores.grad is not None
    assert not scores.grad.any()


@pytest.mark.parametrize(
    ("params", "mode"),
    [
        (LossParams(), Normalization.VALID),
        (LossParams(normalize=True), Normalization.VALID),
        (LossParams(normalize=False), Normalization.BATCH_SIZE),
        (LossParams(normalization=Normalization.NONE, normalize=True), Normalization.NONE),
    ],
)
def test_old_normalize(params: LossParams, mode: Normalization) -> None:
    assert params.mode(Normalization.VALID) is mode


def test_only_one_top() -> None:
    net = """
        layer { name: "x" type: "Input" top: "x" input_param { shape { dim: [2, 3] } } }
        layer { name: "l" type: "Input" top: "l" input_param { shape { dim: 2 } } }
        layer { name: "op" type: "SoftmaxWithLoss" bottom: ["x", "l"] top: ["loss", "prob"] }"""
    with pytest.raises(SpecError, match=r'layer "op" \(SoftmaxWithLoss\) takes 1 top, got 2'):
        Net(loads(net, notation="prototxt"), "TRAIN")
