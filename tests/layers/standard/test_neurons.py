"""ReLU, TanH and Sigmoid against Caffe."""

from __future__ import annotations

from pathlib import Path

import caffe_vectors
import numpy as np
import pytest
import torch
from cortado.layers.standard.neurons import ReLU, ReLUParams, Sigmoid, TanH
from shared import cases


@pytest.mark.parametrize("case", cases("04_relu_", "04_sigmoid"))
def test_caffe(case: Path) -> None:
    caffe_vectors.check(case)


@pytest.mark.parametrize("kind", [ReLU, TanH, Sigmoid])
def test_gradcheck(kind: type[ReLU]) -> None:
    for sample in kind.samples("small", np.random.default_rng(0)):
        assert torch.autograd.gradcheck(kind(sample.params), sample.bottoms[0].requires_grad_())


@pytest.mark.parametrize("slope", [0.0, 0.1, -0.5, 2.0])
def test_relu_at_and_below_zero(slope: float) -> None:
    x = torch.tensor([-2.0, 0.0, 3.0, float("nan")], requires_grad=True)
    top = ReLU(ReLUParams(slope))(x)
    torch.testing.assert_close(top, torch.tensor([-2 * slope, 0.0, 3.0, float("nan")]), equal_nan=True)
    top.backward(torch.ones(4))
    torch.testing.assert_close(x.grad[:3], torch.tensor([slope, slope, 1.0]))


def test_tanh() -> None:
    x = torch.randn(2, 3)
    torch.testing.assert_close(TanH()(x), torch.tanh(x))
