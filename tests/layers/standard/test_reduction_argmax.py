"""Reduction and ArgMax against Caffe and loops, their ties, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import caffe_vectors
import numpy as np
import pytest
import torch
from cortado.layers._engine.checks import BlobError
from cortado.layers.standard.argmax import ArgMax
from cortado.layers.standard.argmax import Params as ArgMaxParams
from cortado.layers.standard.reduction import Params as ReductionParams
from cortado.layers.standard.reduction import Reduction, ReductionOp
from shared import cases


@pytest.mark.parametrize("case", cases("06_reduction_", "06_argmax_"))
def test_caffe(case: Path) -> None:
    caffe_vectors.check(case)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("operation", list(ReductionOp))
def test_reduction(operation: ReductionOp, axis: int) -> None:
    x, params = torch.randn(2, 3, 4, dtype=torch.float64), ReductionParams(operation, axis, -1.5)
    top = Reduction(params)(x)
    of = {
        ReductionOp.SUM: np.sum,
        ReductionOp.ASUM: lambda row: np.abs(row).sum(),
        ReductionOp.SUMSQ: lambda row: (row**2).sum(),
        ReductionOp.MEAN: np.mean,
    }[operation]
    lead = tuple(x.shape[: axis % 3])
    wanted = [-1.5 * of(x[index].numpy()) for index in np.ndindex(*lead)]
    np.testing.assert_allclose(top.flatten(), wanted)
    assert Reduction.infer(params, (2, 3, 4)) == (top.shape,) == (lead,)


def test_absolute_sum_at_zero() -> None:
    x = torch.tensor([-2.0, 0.0, -0.0, 3.0], requires_grad=True)
    Reduction(ReductionParams(ReductionOp.ASUM))(x).backward()
    assert x.grad.tolist() == [-1, 0, 0, 1]
    with pytest.raises(BlobError, match=r"^bottom \[4\] has no axis 1$"):
        Reduction(ReductionParams(axis=1))(x)


def best(row: np.ndarray, top_k: int) -> list[int]:
    return sorted(range(len(row)), key=lambda i: (row[i], i), reverse=True)[:top_k]


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_argmax_along_an_axis(axis: int, top_k: int) -> None:
    x = torch.from_numpy(np.random.default_rng(1).integers(0, 3, (3, 4, 5)).astype(np.float32))
    index = ArgMax(ArgMaxParams(False, top_k, axis))(x)
    value = ArgMax(ArgMaxParams(True, top_k, axis))(x)
    wanted = np.apply_along_axis(best, axis, x.numpy(), top_k)
    np.testing.assert_array_equal(index, wanted)
    np.testing.assert_array_equal(value, np.take_along_axis(x.numpy(), wanted, axis))
    assert ArgMax.infer(ArgMaxParams(False, top_k, axis), x.shape) == (index.shape,)


@pytest.mark.parametrize("shape", [(3, 6), (3, 2, 3), (3, 3, 2, 1), (3, 1, 2, 1, 3), (0, 6)])
@pytest.mark.parametrize("values", [False, True])
def test_argmax_of_items(shape: tuple[int, ...], values: bool) -> None:
    x = torch.from_numpy(np.random.default_rng(1).integers(0, 3, shape).astype(np.float32))
    params = ArgMaxParams(values, 2)
    top = ArgMax(params)(x)
    assert ArgMax.infer(params, shape) == (top.shape,)
    assert top.shape == (shape[0], 1 + values, 2, *(1,) * (len(shape) - 3))
    for item, found in zip(x.flatten(1).numpy(), top, strict=True):
        wanted = best(item, 2)
        assert found[0].flatten().tolist() == wanted
        assert not values or found[1].flatten().tolist() == item[wanted].tolist()


def test_the_last_of_equal_values() -> None:
    for row, index in (
        ([0.0, 1.0, 2.0, 1.0, 2.0, 2.0], 5),
        ([-1.0, 0.0, -0.0], 2),
        ([-0.0, 0.0, -1.0], 1),
    ):
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            assert ArgMax()(torch.tensor([row], dtype=dtype)).tolist() == [[[index]]]
    assert ArgMax()(torch.ones(2, 5000)).flatten().tolist() == [4999, 4999], "of a long sort too"


@pytest.mark.parametrize(
    ("params", "shape", "message"),
    [
        (ArgMaxParams(top_k=4), (2, 3), "top_k 4 of the 3 values of bottom [2, 3]"),
        (ArgMaxParams(top_k=4, axis=0), (2, 9), "top_k 4 of the 2 values of bottom [2, 9]"),
        (ArgMaxParams(axis=2), (2, 9), "bottom [2, 9] has no axis 2"),
        (ArgMaxParams(), (), "expected bottom [] to be [N, ...]"),
    ],
)
def test_refused_argmax(params: ArgMaxParams, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(BlobError) as caught:
        ArgMax(params)(torch.zeros(shape))
    assert str(caught.value) == message
