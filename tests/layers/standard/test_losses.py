"""What the losses share, and which of the nets that Caffe was tried on they refuse."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from cortado.layers._engine.checks import BlobError
from cortado.layers._engine.layer import Layer
from cortado.layers.standard._losses import (
    LossParams,
    Normalization,
    class_labels,
    expect_one_label_each,
    loss_scale,
)
from cortado.layers.standard.infogain_loss import InfogainLoss
from cortado.layers.standard.multinomial_logistic_loss import MultinomialLogisticLoss
from cortado.layers.standard.softmax_with_loss import SoftmaxWithLoss
from cortado.nets.net import Net
from cortado.prototxt_like.source import SpecError
from shared import case
from torch.library import opcheck


def test_labels() -> None:
    index, counts = class_labels(torch.tensor([2.9, -0.9, 255]), (3,), 3, ignore_label=255)
    assert index.tolist() == [2, 0, 0]
    assert counts.tolist() == [True, True, False]
    for label in (3, -1, float("inf")):
        text = rf"^expected labels from 0 to 2, got {label:g} at \[0\] of the label blob$"
        with pytest.raises(ValueError, match=text):
            class_labels(torch.tensor([label]), (1,), 3)
    empty, _ = class_labels(torch.zeros(0), (0,), 3)
    assert not len(empty)


def test_a_label_that_ignore_label_would_leave_out() -> None:
    """Segmentation's 255, in a label blob [N, 1, H, W]."""
    label = torch.zeros(2, 1, 3, 4)
    label[1, 0, 2, 3] = 255
    with pytest.raises(ValueError) as caught:
        class_labels(label, (2, 12), 21, None, "loss_param")
    assert str(caught.value) == (
        "expected labels from 0 to 20, got 255 at [1, 0, 2, 3] of the label blob; "
        "loss_param: {ignore_label: 255} leaves such ones out"
    )


@pytest.mark.parametrize("label", [torch.tensor([[2], [0]]), torch.tensor([2.9, 255])])
@pytest.mark.parametrize("ignored", [None, 255])
def test_the_operator_of_labels(label: torch.Tensor, ignored: int | None) -> None:
    classes = 3 if ignored else 256
    arguments = (label, (1, 2), classes, ignored, "")
    opcheck(torch.ops.cortado.class_labels.default, arguments)
    found = torch.ops.cortado.class_labels(*arguments)
    for x, wanted in zip(found, class_labels(*arguments), strict=True):
        assert torch.equal(x, wanted)


# Dynamo makes an instance of a Function, for its context
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("kind", [SoftmaxWithLoss, InfogainLoss, MultinomialLogisticLoss])
def test_a_wrong_label_compiled(kind: type[Layer], dynamic: bool) -> None:
    """The same error, of the values that a call brings; right ones before and after it pass."""
    torch._dynamo.reset()
    layer: Any = kind()
    run = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    scores = torch.rand(4, 3, requires_grad=True)
    more = (torch.eye(3),) if kind is InfogainLoss else ()
    right, wrong = torch.tensor([0, 2, 1, 1]), torch.tensor([0, 2, 7, -1])
    run(scores, right, *more)
    with pytest.raises(ValueError, match="got 7 at") as eager:
        layer(scores, wrong, *more)
    with pytest.raises(ValueError, match="got 7 at") as compiled:
        run(scores, wrong, *more)
    assert str(compiled.value) == str(eager.value)
    run(scores, right, *more)


def test_positions() -> None:
    assert expect_one_label_each(1, (2, 3, 4, 5), (2, 1, 4, 5)) == (2, 3, 20)
    assert expect_one_label_each(-1, (2, 3, 4), (6,)) == (6, 4, 1)
    with pytest.raises(BlobError, match=r"^scores \[3\] has no axis 1$"):
        expect_one_label_each(1, (3,), (1,))


@pytest.mark.parametrize(
    ("mode", "wanted"),
    list(zip(Normalization, (1 / 6, 1 / 4, 1 / 2, 1), strict=True)),
)
def test_normalizers(mode: Normalization, wanted: float) -> None:
    counts = torch.tensor([True, True, False, True, True, False]).view(2, 3)
    scale = loss_scale(mode, (2, 3), counts, torch.zeros(()))
    assert float(scale) == pytest.approx(wanted)
    assert float(loss_scale(mode, (0, 3), counts[:0], torch.zeros(()))) == 1


def test_normalization_wins_over_normalize() -> None:
    both = LossParams(normalization=Normalization.FULL, normalize=True)
    assert both.mode(Normalization.VALID) is Normalization.FULL
    assert LossParams(normalize=False).mode(Normalization.VALID) is Normalization.BATCH_SIZE
    assert LossParams().mode(Normalization.NONE) is Normalization.NONE


@pytest.mark.caffe_vector
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("accuracy_topk_too_big", "top_k 4 exceeds the 3 classes of x [2, 3]"),
        ("loss_batch_mismatch", "expected as many items: x [2, 3], l [3]"),
        ("smloss_two_tops_no_weights", "takes 1 top, got 2"),
        ("smloss_two_tops_two_weights", "takes 1 top, got 2"),
        ("loss_weight_count", "gives loss_weight once for each top or not at all, got 2 for 1 tops"),
    ],
)
def test_refuses_what_caffe_refuses(name: str, message: str) -> None:
    folder = case("11_errors")
    tried = json.loads((folder / "errors.json").read_text(encoding="utf-8"))
    (entry,) = [entry for entry in tried if entry["name"] == name]
    assert entry["aborts"]
    with pytest.raises(SpecError) as caught:
        Net(folder / entry["file"], "TRAIN")
    assert message in str(caught.value)
    assert f"{name}.prototxt:" in str(caught.value)


@pytest.mark.caffe_vector
def test_refuses_a_gradient_of_the_infogain_matrix() -> None:
    net = Net(case("11_errors") / "nets/infogain_3bottom_force_backward.prototxt", "TRAIN")
    refused = [
        backward.refused(made.layer)
        for made, backward in zip(net.built.layers, net.built.backward, strict=True)
    ]
    assert [text for text in refused if text] == ["InfogainLoss gives its bottom 2 no gradient"]
