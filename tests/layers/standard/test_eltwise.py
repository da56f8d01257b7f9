"""Eltwise against Caffe, its gradients, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import caffe_vectors
import numpy as np
import pytest
import torch
from cortado.layers._engine.checks import BlobError
from cortado.layers.standard.eltwise import Eltwise, EltwiseOp, Params
from shared import cases


@pytest.mark.parametrize("case", cases("06_eltwise_"))
def test_caffe(case: Path) -> None:
    caffe_vectors.check(case)


def test_gradcheck() -> None:
    for sample in Eltwise.samples("small", np.random.default_rng(0)):
        bottoms = [x.clone().requires_grad_() for x in sample.bottoms]
        assert torch.autograd.gradcheck(Eltwise(sample.params), bottoms)


@pytest.mark.parametrize("operation", list(EltwiseOp))
@pytest.mark.parametrize("stable", [True, False])
def test_only_wanted_gradients(operation: EltwiseOp, stable: bool) -> None:
    a, b = torch.randn(2, 3), torch.randn(2, 3, requires_grad=True)
    Eltwise(Params(operation, stable_prod_grad=stable))(a, b).sum().backward()
    assert a.grad is None
    wanted = {EltwiseOp.PROD: a, EltwiseOp.SUM: torch.ones(2, 3), EltwiseOp.MAX: (b >= a).float()}
    torch.testing.assert_close(b.grad, wanted[operation])


def test_ties() -> None:
    """The second of the first two wins; a later one must be greater."""
    bottoms = [torch.ones(1, 2, requires_grad=True) for _ in range(3)]
    Eltwise(Params(EltwiseOp.MAX))(*bottoms).sum().backward()
    assert [x.grad.tolist() for x in bottoms] == [[[0, 0]], [[1, 1]], [[0, 0]]]


def test_the_maximum_of_nan() -> None:
    """Each comparison with NaN is false: the second of the first two wins it, and no later one."""
    nan = float("nan")
    rows = [[nan, 1.0, nan], [1.0, nan, nan], [0.0, 9.0, 0.0]]
    bottoms = [torch.tensor(row, requires_grad=True) for row in rows]
    top = Eltwise(Params(EltwiseOp.MAX))(*bottoms)
    top.sum().backward()
    torch.testing.assert_close(top, torch.tensor([1.0, nan, nan]), equal_nan=True)
    assert [x.grad.tolist() for x in bottoms] == [[0, 0, 0], [1, 1, 1], [0, 0, 0]]


def test_product_gradients_at_zero() -> None:
    for stable, wanted in ((True, 3.0), (False, float("nan"))):
        zero, three = torch.zeros(1, requires_grad=True), torch.full((1,), 3.0)
        Eltwise(Params(EltwiseOp.PROD, stable_prod_grad=stable))(zero, three).backward()
        torch.testing.assert_close(zero.grad, torch.tensor([wanted]), equal_nan=True)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"^coeff goes with SUM, not with PROD$"):
        Params(EltwiseOp.PROD, (1.0, 2.0))
    a, b = torch.zeros(2, 4, 6, 6), torch.zeros(2, 4, 6, 1)
    with pytest.raises(BlobError) as caught:
        Eltwise(Params())(a, b)
    assert str(caught.value) == "bottoms differ in shape: bottom0 [2, 4, 6, 6], bottom1 [2, 4, 6, 1]"
    with pytest.raises(BlobError, match=r"^3 values of coeff for 2 bottoms$"):
        Eltwise(Params(coeff=(1.0, 2.0, 3.0)))(a, a)
