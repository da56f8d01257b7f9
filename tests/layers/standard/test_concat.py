"""Concat against Caffe, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import caffe_vectors
import pytest
import torch
from cortado.layers._engine.checks import BlobError
from cortado.layers.standard.concat import Concat, Params, infer
from shared import cases


@pytest.mark.parametrize("case", cases("06_concat_"))
def test_caffe(case: Path) -> None:
    caffe_vectors.check(case)


@pytest.mark.parametrize(
    ("params", "shape"),
    [
        (Params(), (2, 6, 4)),
        (Params(axis=-1), (2, 3, 8)),
        (Params(axis=0), (4, 3, 4)),
        (Params(concat_dim=2), (2, 3, 8)),
    ],
)
def test_axes(params: Params, shape: tuple[int, ...]) -> None:
    a, b = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    top = Concat(params)(a, b)
    assert infer(params, a.shape, b.shape) == (top.shape,) == (shape,)
    assert float(top.sum()) == pytest.approx(float(a.sum() + b.sum()), abs=1e-5)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            [(2, 3, 4), (2, 3, 5)],
            "bottoms may differ along axis 1 only: bottom0 [2, 3, 4], bottom1 [2, 3, 5]",
        ),
        (
            [(2, 3), (2, 3), (2,)],
            "bottoms may differ along axis 1 only: bottom0 [2, 3], bottom2 [2]",
        ),
        ([(2,), (2,)], "bottom0 [2] has no axis 1"),
    ],
)
def test_refused_shapes(shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(BlobError) as caught:
        Concat(Params())(*(torch.zeros(shape) for shape in shapes))
    assert str(caught.value) == message


def test_axis_and_its_old_name() -> None:
    with pytest.raises(ValueError, match=r"^give axis or concat_dim, not both$"):
        Params(axis=1, concat_dim=1)
