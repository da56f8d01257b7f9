"""PReLU against Caffe, its gradients at 0, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import caffe_vectors
import pytest
import torch
from cortado.layers._engine.checks import BlobError
from cortado.layers._engine.fillers import FillerParams
from cortado.layers.standard.prelu import Params, PReLU
from shared import cases


@pytest.mark.parametrize("case", cases("04_prelu"))
def test_caffe(case: Path) -> None:
    caffe_vectors.check(case)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("slope", [-0.5, 0.0, 0.25, 3.0])
def test_at_zero(slope: float, dtype: torch.dtype) -> None:
    """The slope at both zeros, wherever it lies beside 0 and 1."""
    layer = PReLU(Params(FillerParams(value=slope), channel_shared=True), ((1, 4),)).to(dtype)
    x = torch.tensor([[-2.0, 0.0, -0.0, 3.0]], dtype=dtype, requires_grad=True)
    top = layer(x)
    top.backward(torch.tensor([[3.0, 5.0, 7.0, 9.0]], dtype=dtype))
    assert top.tolist() == [[-2 * slope, 0, 0, 3]]
    assert x.grad.tolist() == [[3 * slope, 5 * slope, 7 * slope, 9]]
    assert float(layer.slope.grad) == -6


@pytest.mark.parametrize("learned", [False, True])
def test_only_wanted_gradients(learned: bool) -> None:
    layer, x = PReLU(Params(), ((2, 3),)), torch.full((2, 3), -1.0, requires_grad=not learned)
    layer.slope.requires_grad_(learned)
    layer(x).sum().backward()
    assert (layer.slope.grad is None) == (not learned)
    assert learned or x.grad.tolist() == [[0.25] * 3] * 2


def test_autocast() -> None:
    """Half, as torch's own PReLU; the gradients in the types of what they belong to."""
    layer = PReLU(Params(), ((2, 3),))
    for dtype in (torch.float32, torch.bfloat16):
        x = (-torch.ones(2, 3, dtype=dtype)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            top = layer(x)
        top.sum().backward()
        assert top.dtype == torch.bfloat16
        assert (x.grad.dtype, x.grad.tolist()) == (dtype, [[0.25] * 3] * 2)
        assert layer.slope.grad.dtype == torch.float32


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
