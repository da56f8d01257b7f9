"""The neurons against Caffe, and their gradients where the derivative jumps."""

from __future__ import annotations

import math
from pathlib import Path

import caffe_vectors
import numpy as np
import pytest
import torch
from cortado.layers._engine.layer import Layer
from cortado.layers._engine.samples import distinct
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
from cortado.prototxt_like import loads
from cortado.prototxt_like.bind import bind
from shared import cases
from suite import spread

NAMES = ("absval", "bnll", "clip", "elu", "relu_", "sigmoid", "swish", "inplace_chain")


@pytest.mark.parametrize("case", cases(*(f"04_{name}" for name in NAMES)))
def test_caffe(case: Path) -> None:
    caffe_vectors.check(case)


def value_and_gradient(layer: Layer, values: list[float]) -> tuple[list[float], list[float]]:
    x = torch.tensor(values, requires_grad=True)
    top = layer(x)
    top.sum().backward()
    return top.tolist(), x.grad.tolist()


FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("slope", [0.0, 0.125, 1.0, -0.5, 2.0])
def test_relu_at_and_below_zero(slope: float, dtype: torch.dtype) -> None:
    """The slope at both zeros, whether torch promises it (up to 1) or not."""
    x = torch.tensor([-2.0, 0.0, -0.0, 3.0, math.nan], dtype=dtype, requires_grad=True)
    top = ReLU(ReLUParams(slope))(x)
    assert top[:4].tolist() == [-2 * slope, 0, 0, 3]
    assert top[4].isnan()
    top[:4].backward(torch.tensor([3.0, 5.0, 7.0, 9.0], dtype=dtype))
    assert x.grad[:4].tolist() == [3 * slope, 5 * slope, 7 * slope, 9]


@pytest.mark.parametrize("dtype", FLOATING)
def test_clip_at_bounds_that_the_type_rounds(dtype: torch.dtype) -> None:
    """What was clipped lies at a bound; so Caffe's gradient of a Clip in place is 1."""
    layer = Clip(ClipParams(-1.2, 0.7))
    at = layer(torch.tensor([-5.0, 5.0], dtype=dtype)).requires_grad_()
    layer(at).sum().backward()
    assert at.grad.tolist() == [1, 1]
    assert layer(torch.tensor([math.nan], dtype=dtype)).isnan().all()


@pytest.mark.parametrize("slope", [0.125, -0.5, 2.0])
def test_leaky_gradients(slope: float) -> None:
    layer, x = ReLU(ReLUParams(slope)), distinct(np.random.default_rng(0), (3, 4))
    for given in (x, spread(x), x[:0]):
        assert torch.autograd.gradcheck(layer, given.requires_grad_())


@pytest.mark.parametrize(
    ("layer", "values", "tops", "gradients"),
    [
        (AbsVal(), [-2, 0, -0.0, 3], [2, 0, 0, 3], [-1, 0, 0, 1]),
        (Clip(ClipParams(-1, 2)), [-2, -1, 0, 2, 3], [-1, -1, 0, 2, 2], [0, 1, 1, 1, 0]),
        (Clip(ClipParams(3, 1)), [-9, 1, 2, 7], [3, 3, 3, 3], [0, 0, 0, 0]),
        (Clip(ClipParams(-math.inf, 2)), [-9, 2, 7], [-9, 2, 2], [1, 1, 0]),
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


def test_bounds_of_clip_may_be_infinite_in_a_spec() -> None:
    spec = loads("min: -inf max: inf", notation="prototxt")
    assert bind(ClipParams, spec) == ClipParams(-math.inf, math.inf)


def test_threshold_is_strict() -> None:
    x = torch.tensor([-1.0, 0.0, 0.5, 0.6])
    assert Threshold()(x).tolist() == [0, 0, 1, 1]
    assert Threshold(ThresholdParams(0.5))(x).tolist() == [0, 0, 0, 1]
    assert Threshold(ThresholdParams(-math.inf))(x).tolist() == [1, 1, 1, 1]
