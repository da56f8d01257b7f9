"""InfogainLoss against Caffe and a plain loop; its matrix from a bottom and from a file."""

from __future__ import annotations

import math
from pathlib import Path

import caffe_vectors
import numpy as np
import pytest
import torch
from cortado.layers.standard._losses import LossParams
from cortado.layers.standard.infogain_loss import InfogainLoss, Params
from cortado.layers.standard.softmax_with_loss import Params as SoftmaxParams
from cortado.layers.standard.softmax_with_loss import SoftmaxWithLoss
from cortado.nets.net import Net
from cortado.prototxt_like import SpecError, loads
from cortado.prototxt_like.wire import write_blob
from shared import cases
from suite import LayerSuite


@pytest.mark.parametrize("case", cases("07_infogain"))
def test_caffe(case: Path) -> None:
    caffe_vectors.check(case)


class TestInfogainLoss(LayerSuite):
    layer = InfogainLoss
    wrong = (
        (
            (torch.zeros(2, 3), torch.zeros(2)),
            "H is missing: give infogain_loss_param.source or a third bottom",
        ),
        (
            (torch.zeros(2, 3), torch.zeros(2), torch.zeros(3, 2)),
            "expected infogain [3, 2] to have 3 x 3 elements for scores [2, 3]",
        ),
        (
            (torch.zeros(2, 3), torch.zeros(1), torch.zeros(3, 3)),
            "expected as many items: scores [2, 3], label [1]",
        ),
    )

    def oracle(
        self, params: Params, scores: np.ndarray, label: np.ndarray, h: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        x = np.moveaxis(scores, params.axis, -1)
        prob = np.exp(x - x.max(-1, keepdims=True))
        prob /= prob.sum(-1, keepdims=True)
        label, h = label.reshape(x.shape[:-1]), h.reshape(x.shape[-1], -1)
        total, counted = 0.0, 0
        for at in np.ndindex(label.shape):
            if label[at] != params.loss_param.ignore_label:
                counted += 1
                for k, p in enumerate(prob[at]):
                    total -= h[int(label[at]), k] * math.log(max(p, 1e-20))
        return np.array(total / max(1, counted)), np.moveaxis(prob, -1, params.axis)


def test_the_identity_is_softmax_loss() -> None:
    scores, label = torch.randn(4, 3, 2, dtype=torch.double), torch.randint(0, 3, (4, 2))
    loss, prob = InfogainLoss(Params())(scores, label, torch.eye(3, dtype=torch.double))
    torch.testing.assert_close(loss, SoftmaxWithLoss(SoftmaxParams())(scores, label))
    torch.testing.assert_close(prob, scores.softmax(1))


def test_clipping() -> None:
    """The loss stops at 1e-20; the gradient goes on."""
    scores = torch.tensor([[0.0, -200.0]], requires_grad=True)
    loss, _ = InfogainLoss(Params())(scores, torch.tensor([1]), torch.eye(2))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(46.0517, abs=1e-4)
    assert scores.grad is not None
    assert scores.grad.tolist() == [[1, -1]]


def test_source(tmp_path: Path) -> None:
    h = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    write_blob(tmp_path / "h.binaryproto", h)
    scores, label = torch.randn(2, 3), torch.tensor([0, 2])
    params = Params(source=str(tmp_path / "h.binaryproto"))
    loss, _ = InfogainLoss(params, ((2, 3), (2,)))(scores, label)
    torch.testing.assert_close(loss, InfogainLoss(Params())(scores, label, torch.from_numpy(h))[0])
    with pytest.raises(ValueError, match=r"3 x 3 elements|4 x 4 elements"):
        InfogainLoss(params, ((2, 4), (2,)))
    with pytest.raises(ValueError, match="4 x 4 elements"):
        InfogainLoss(params)(torch.randn(2, 4), label)
    with pytest.raises(ValueError, match=r"missing\.binaryproto"):
        InfogainLoss(Params(source=str(tmp_path / "missing.binaryproto")), ((2, 3), (2,)))


# Dynamo makes an instance of a Function, for its context
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_source_compiled(tmp_path: Path) -> None:
    """The matrix of the file is an input of the operator, not a constant of the graph."""
    write_blob(tmp_path / "h.binaryproto", np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3))
    layer = InfogainLoss(Params(source=str(tmp_path / "h.binaryproto")), ((2, 3), (2,)))
    scores, label = torch.randn(2, 3, requires_grad=True), torch.tensor([0, 2])
    torch._dynamo.reset()
    run = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert layer.infogain is not None
    for _ in range(2):
        assert torch.equal(run(scores, label)[0], layer(scores, label)[0])
        layer.infogain.mul_(2)


TWO_TOPS = """
layer:
- {name: x, type: Input, top: x, input_param: {shape: {dim: [2, 3]}}}
- {name: t, type: Input, top: t, input_param: {shape: {dim: [2]}}}
- {name: h, type: Input, top: h, input_param: {shape: {dim: [3, 3]}}}
- {name: loss, type: InfogainLoss, bottom: [x, t, h], top: [loss, prob]%s}
"""


def test_two_tops_need_their_loss_weights() -> None:
    """Caffe gives a loss without any of them one weight, which two tops are not content with."""
    with pytest.raises(SpecError, match="gives loss_weight once for each top, got 0 for 2 tops"):
        Net(loads(TWO_TOPS % ""), "TRAIN")
    net = Net(loads(TWO_TOPS % ", loss_weight: [2, 0.5]"), "TRAIN")
    blobs = net(x=torch.zeros(2, 3), t=torch.zeros(2), h=torch.eye(3))
    assert float(blobs.loss) == pytest.approx(2 * math.log(3) + 0.5 * 2)


def test_the_old_normalize_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^normalize is an old form that is not read here: give norm"):
        Params(loss_param=LossParams(normalize=True))
