"""MVN against Caffe and its formula."""

from __future__ import annotations

from pathlib import Path

import caffe_vectors
import pytest
import torch
from cortado.layers._engine.checks import BlobError
from cortado.layers.standard.mvn import MVN, Params
from shared import cases


@pytest.mark.parametrize("case", cases("05_mvn_"))
def test_caffe(case: Path) -> None:
    caffe_vectors.check(case)


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("variance", [False, True])
def test_formula(across: bool, variance: bool) -> None:
    x = 3 * torch.randn(2, 3, 4, 5, dtype=torch.float64) + 1
    axes = (1, 2, 3) if across else (2, 3)
    wanted = x - x.mean(axes, keepdim=True)
    if variance:
        wanted = wanted / (x.std(axes, correction=0, keepdim=True) + 0.3)
    torch.testing.assert_close(MVN(Params(variance, across, 0.3))(x), wanted)


def test_released_gradient() -> None:
    """With a large eps: as if sqrt(variance) + eps were the standard deviation."""
    x = torch.randn(1, 1, 2, 4, dtype=torch.float64, requires_grad=True)
    given = torch.randn_like(x)
    top = MVN(Params(eps=0.5))(x)
    top.backward(given)
    std = x.detach().std(correction=0) + 0.5
    y = top.detach()
    torch.testing.assert_close(x.grad, (given - given.mean() - y * (given * y).mean()) / std)


@pytest.mark.parametrize(("shape", "across"), [((2, 3), False), ((2, 3, 4), True), ((2,), False)])
def test_the_top_has_four_axes(shape: tuple[int, ...], across: bool) -> None:
    params = Params(across_channels=across)
    top = MVN(params)(torch.randn(shape))
    assert MVN.infer(params, shape) == (top.shape,) == (shape + (1,) * (4 - len(shape)),)


def test_constant_channels() -> None:
    x = torch.full((2, 1, 2, 2), 3.0, requires_grad=True)
    top = MVN()(x)
    top.backward(torch.ones_like(top))
    assert not top.any()
    assert not x.grad.any()


def test_five_axes() -> None:
    with pytest.raises(BlobError, match=r"^expected bottom \[1, 1, 1, 1, 2\] to have at most 4 axes$"):
        MVN()(torch.zeros(1, 1, 1, 1, 2))
