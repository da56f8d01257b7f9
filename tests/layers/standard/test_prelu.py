"""PReLU against Caffe, its gradients at 0, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import caffe_vectors
import pytest
import torch
from cortado.layers._runtime.checks import BlobError
from cortado.layers._runtime.fillers import FillerParams
from cortado.layers.standard.prelu import Params, PReLU
from shared import cases


@pytest.mark.parametrize("case", cases("04_prelu"))
def test_caffe(case: Path) -> None:
    caffe_vectors.check(case)


def test_slopes() -> None:
    x = torch.tensor([[[-2.0, 0.0], [-2.0, 3.0]]], requires_grad=True)
    layer = PReLU(Params(), ((1, 2, 2),))
    assert layer.slope.tolist() == [0.25, 0.25], "unless filled otherwise"
    layer.slope.data = torch.tensor([0.5, -1.0])
    layer(x).sum().backward()
    assert layer(x).tolist() == [[[-1, 0], [2, 3]]]
    assert x.grad.tolist() == [[[0.5, 0.5], [-1, 1]]], "the slope at 0 is that below"
    assert layer.slope.grad.tolist() == [-2, -2]


def test_shared_slope() -> None:
    layer = PReLU(Params(FillerParams(value=3.0), channel_shared=True), ((2, 3),))
    assert layer.slope.shape == ()
    layer(-torch.ones(2, 3)).sum().backward()
    assert float(layer.slope.grad) == -6


def test_refusals() -> None:
    with pytest.raises(BlobError, match=r"^expected bottom \[3\] to be \[N, C, \.\.\.\]$"):
        PReLU(Params(), ((3,),))
    layer = PReLU(Params(), ((2, 3),))
    with pytest.raises(BlobError, match=r"^bottom \[2, 4\] has 4 channels, the slopes are for 3$"):
        layer(torch.zeros(2, 4))
