"""Exp, Log and Power against Caffe, where they are not finite, and what they refuse."""

from __future__ import annotations

from math import inf, log, nan
from pathlib import Path

import caffe_vectors
import pytest
import torch
from cortado.layers.standard.exp_log_power import (
    ExpLayer,
    ExpParams,
    LogLayer,
    LogParams,
    PowerLayer,
    PowerParams,
)
from shared import cases


@pytest.mark.parametrize("case", cases("04_exp_", "04_log_", "04_power_"))
def test_caffe(case: Path) -> None:
    caffe_vectors.check(case)


@pytest.mark.parametrize("base", [-1.0, 2.0, 0.5])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (-2.0, 0.0), (0.5, 1.5)])
def test_formulas(base: float, scale: float, shift: float) -> None:
    x = torch.tensor([0.25, 0.5, 0.7], dtype=torch.float64)
    e = torch.e if base == -1 else base
    inner = shift + scale * x
    torch.testing.assert_close(ExpLayer(ExpParams(base, scale, shift))(x), e**inner)
    wanted = inner.log() / log(e)
    torch.testing.assert_close(LogLayer(LogParams(base, scale, shift))(x), wanted, equal_nan=True)
    for power in (0.0, 1.0, 2.0, -1.0, 3.0):
        params = PowerParams(power, scale, shift)
        torch.testing.assert_close(PowerLayer(params)(x), inner**power)


@pytest.mark.parametrize(
    ("params", "value", "top", "gradient"),
    [
        (PowerParams(3.0), 0.0, 0.0, nan),  # top / x
        (PowerParams(0.5), 0.0, 0.0, nan),
        (PowerParams(2.0), 0.0, 0.0, 0.0),
        (PowerParams(3.0, 2.0, 1.0), -0.5, 0.0, nan),
        (PowerParams(-1.0), 0.0, inf, inf * -1),
        (PowerParams(1.0, 2.0), 0.0, 0.0, 2.0),
        (PowerParams(0.0, 2.0), nan, 1.0, 0.0),
        (PowerParams(3.0, 0.0, 2.0), inf, 8.0, 0.0),
        (PowerParams(0.5, 0.0, -1.0), 1.0, nan, 0.0),
    ],
)
def test_power_at_special_places(
    params: PowerParams, value: float, top: float, gradient: float
) -> None:
    x = torch.tensor([value], requires_grad=True)
    found = PowerLayer(params)(x)
    found.sum().backward()
    assert found.tolist() == pytest.approx([top], nan_ok=True)
    assert x.grad.tolist() == pytest.approx([gradient], nan_ok=True)


def test_exp_and_log_of_what_is_too_large() -> None:
    x = torch.tensor([200.0, -200.0])
    assert ExpLayer()(x).tolist() == pytest.approx([inf, 0])
    assert ExpLayer(ExpParams(shift=1000.0))(torch.zeros(1)).tolist() == [inf]
    assert LogLayer()(torch.tensor([0.0, -1.0])).tolist() == pytest.approx([-inf, nan], nan_ok=True)


@pytest.mark.parametrize("base", [0.0, -2.0, nan, inf])
def test_refused_bases(base: float) -> None:
    for kind in (ExpParams, LogParams):
        with pytest.raises(ValueError, match=r"^base must be above 0, or -1 for e, got -?\w+$"):
            kind(base)


def test_no_logarithm_to_the_base_1() -> None:
    assert ExpLayer(ExpParams(1.0))(torch.tensor([5.0])).tolist() == [1]
    with pytest.raises(ValueError, match=r"^there is no logarithm to the base 1$"):
        LogParams(1.0)
