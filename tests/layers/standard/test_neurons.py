"""The neurons against Caffe, and their gradients where the derivative jumps."""

from __future__ import annotations

import math
from pathlib import Path

import caffe_vectors
import pytest
import torch
from cortado.layers._runtime.layer import Layer
from cortado.layers.standard.neurons import (
    BNLL,
    ELU,
    AbsVal,
    Clip,
    ClipParams,
    ELUParams,
    ReLU,
    ReLUParams,
    Swish,
    SwishParams,
    TanH,
    Threshold,
    ThresholdParams,
)
from shared import cases

NAMES = ("absval", "bnll", "clip", "elu", "relu_", "sigmoid", "swish", "inplace_chain")


@pytest.mark.parametrize("case", cases(*(f"04_{name}" for name in NAMES)))
def test_caffe(case: Path) -> None:
    caffe_vectors.check(case)


def value_and_gradient(layer: Layer, values: list[float]) -> tuple[list[float], list[float]]:
    x = torch.tensor(values, requires_grad=True)
    top = layer(x)
    top.sum().backward()
    return top.tolist(), x.grad.tolist()


@pytest.mark.parametrize("slope", [0.0, 0.1, -0.5, 2.0])
def test_relu_at_and_below_zero(slope: float) -> None:
    x = torch.tensor([-2.0, 0.0, 3.0, float("nan")], requires_grad=True)
    top = ReLU(ReLUParams(slope))(x)
    torch.testing.assert_close(top, torch.tensor([-2 * slope, 0.0, 3.0, float("nan")]), equal_nan=True)
    top.backward(torch.ones(4))
    torch.testing.assert_close(x.grad[:3], torch.tensor([slope, slope, 1.0]))


@pytest.mark.parametrize(
    ("layer", "values", "tops", "gradients"),
    [
        (AbsVal(), [-2, 0, 3], [2, 0, 3], [-1, 0, 1]),
        (Clip(ClipParams(-1, 2)), [-2, -1, 0, 2, 3], [-1, -1, 0, 2, 2], [0, 1, 1, 1, 0]),
        (ELU(ELUParams(0.5)), [-200, 0, 3], [-0.5, 0, 3], [0, 0.5, 1]),
        (BNLL(), [-200, 0, 90], [0, math.log(2), 90], [0, 0.5, 1]),
        (Swish(SwishParams(2)), [-100, 0, 100], [0, 0, 100], [0, 0.5, 1]),
        (TanH(), [-100, 0, 100], [-1, 0, 1], [0, 1, 0]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Layer) else "",
)
def test_at_special_places(
    layer: Layer, values: list[float], tops: list[float], gradients: list[float]
) -> None:
    found = value_and_gradient(layer, [float(value) for value in values])
    assert found == (pytest.approx(tops), pytest.approx(gradients))


def test_threshold_is_strict() -> None:
    x = torch.tensor([-1.0, 0.0, 0.5, 0.6])
    assert Threshold()(x).tolist() == [0, 0, 1, 1]
    assert Threshold(ThresholdParams(0.5))(x).tolist() == [0, 0, 0, 1]


def test_refused_bounds() -> None:
    with pytest.raises(ValueError, match=r"^min 3 is above max 1$"):
        ClipParams(3, 1)
