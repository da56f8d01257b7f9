"""Accuracy against Caffe and a plain loop."""

from __future__ import annotations

from pathlib import Path

import caffe_vectors
import numpy as np
import pytest
import torch
from cortado.layers._engine.declared import Trait
from cortado.layers.standard.accuracy import Accuracy, Params
from shared import cases
from suite import LayerSuite


@pytest.mark.parametrize("case", cases("07_accuracy"))
def test_caffe(case: Path) -> None:
    caffe_vectors.check(case)


class TestAccuracy(LayerSuite):
    layer = Accuracy
    wrong = (
        (
            (torch.zeros(2, 3), torch.zeros(3)),
            "expected 2 labels, one for each position of scores [2, 3], got label [3]",
        ),
        (
            (torch.zeros(2, 3), torch.zeros(2)),
            "top_k 4 exceeds the 3 classes of scores [2, 3]",
            Params(top_k=4),
        ),
        (
            (torch.zeros(1, 3), torch.tensor([3])),
            "expected labels from 0 to 2, got 3 at [0] of the label blob; "
            "accuracy_param: {ignore_label: 3} leaves such ones out",
        ),
    )

    def oracle(self, params: Params, scores: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, ...]:
        x = np.moveaxis(scores, params.axis, -1)
        label = label.reshape(x.shape[:-1])
        right, among = np.zeros(x.shape[-1]), np.zeros(x.shape[-1])
        for at in np.ndindex(label.shape):
            k = int(label[at])
            if k == params.ignore_label:
                continue
            among[k] += 1
            better = sum(1 for j, score in enumerate(x[at]) if j != k and score >= x[at][k])
            right[k] += better < params.top_k
        return np.array(right.sum() / max(1, among.sum())), right / np.maximum(1, among)


def test_ties_count_against() -> None:
    accuracy, classes = Accuracy(Params(top_k=2))(
        torch.tensor([[1.0, 1, 0], [1, 1, 1]]), torch.zeros(2)
    )
    assert float(accuracy) == 0.5
    assert classes.tolist() == [0.5, 0, 0]


def test_nan_and_no_gradient() -> None:
    """Nothing is at least NaN: a label with that score is right."""
    scores = torch.tensor([[float("nan"), 5.0]], requires_grad=True)
    accuracy, _ = Accuracy(Params())(scores, torch.zeros(1))
    assert float(accuracy) == 1
    assert not accuracy.requires_grad
    assert Trait.NO_BACKWARD in Accuracy.TRAITS
