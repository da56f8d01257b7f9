"""EuclideanLoss against Caffe, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import caffe_vectors
import numpy as np
import pytest
import torch
from cortado.layers._engine.checks import BlobError
from cortado.layers.standard.euclidean_loss import EuclideanLoss
from shared import cases


@pytest.mark.parametrize("case", cases("07_euclidean"))
def test_caffe(case: Path) -> None:
    caffe_vectors.check(case)


def test_gradcheck() -> None:
    for sample in EuclideanLoss.samples("small", np.random.default_rng(0)):
        assert torch.autograd.gradcheck(EuclideanLoss(), [x.requires_grad_() for x in sample.bottoms])


def test_no_items_and_half_precision() -> None:
    assert float(EuclideanLoss()(torch.zeros(0, 3), torch.zeros(0, 3))) == 0
    half = torch.full((4, 8), 200.0, dtype=torch.float16)
    assert float(EuclideanLoss()(half, torch.zeros_like(half))) == 4 * 8 * 200**2 / 8


@pytest.mark.parametrize(("a", "b"), [((2, 3), (3, 3)), ((2, 3), (2, 4)), ((), ())])
def test_refused_shapes(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    with pytest.raises(BlobError) as caught:
        EuclideanLoss()(torch.zeros(a), torch.zeros(b))
    shown = f"a {list(a)}, b {list(b)}"
    assert str(caught.value) == f"expected as many items with as many elements: {shown}"


def test_shapes_may_differ_beyond_the_items() -> None:
    assert EuclideanLoss.infer(None, (2, 4), (2, 2, 2)) == ((),)
    assert float(EuclideanLoss()(torch.ones(2, 4), torch.zeros(2, 2, 2))) == 2
