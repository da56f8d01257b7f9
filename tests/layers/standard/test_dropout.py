"""Dropout: the identity in testing, a scaled mask in training."""

from __future__ import annotations

from pathlib import Path

import caffe_vectors
import pytest
import torch
from cortado.layers.standard.dropout import Dropout, Params
from shared import cases


@pytest.mark.parametrize("case", cases("04_dropout_test"))
def test_caffe(case: Path) -> None:
    caffe_vectors.check(case)


def test_training_keeps_the_mean() -> None:
    torch.manual_seed(5)
    x = torch.ones(100_000, requires_grad=True)
    top = Dropout(Params(0.3))(x)
    top.sum().backward()
    found = top.detach()
    assert found.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert float(found.mean()) == pytest.approx(1, abs=0.01)
    assert torch.equal(x.grad, found)


def test_seeded() -> None:
    layer, x = Dropout(), torch.ones(100)
    torch.manual_seed(1)
    first = layer(x)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first)


def test_the_ends_of_the_ratio() -> None:
    x = torch.randn(50)
    assert torch.equal(Dropout(Params(0.0))(x), x)
    assert not Dropout(Params(1.0))(x).any()
    assert torch.equal(Dropout(Params(1.0)).eval()(x), x)
