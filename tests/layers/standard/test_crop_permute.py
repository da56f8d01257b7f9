"""Crop against Caffe, Permute, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import caffe_vectors
import pytest
import torch
from cortado.layers._engine.checks import BlobError
from cortado.layers.standard.crop import Crop
from cortado.layers.standard.crop import Params as CropParams
from cortado.layers.standard.permute import Params as PermuteParams
from cortado.layers.standard.permute import Permute
from shared import cases


@pytest.mark.parametrize("case", cases("06_crop_"))
def test_caffe(case: Path) -> None:
    caffe_vectors.check(case)


X = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("params", "reference", "wanted"),
    [
        (CropParams(), (9, 9, 4, 5), X),
        (CropParams(), (1, 1, 2, 3), X[:, :, :2, :3]),
        (CropParams(offset=(1,)), (1, 1, 2, 3), X[:, :, 1:3, 1:4]),
        (CropParams(-1, (2,)), (1, 1, 1, 3), X[..., 2:]),
        (CropParams(1, (1, 0, 2)), (1, 2, 4, 1), X[:, 1:, :, 2:3]),
        (CropParams(0, (1,)), (1, 2, 3, 4), X[1:, 1:, 1:, 1:]),
        (CropParams(3), (1, 1, 1, 0), X[..., :0]),
    ],
)
def test_crop(params: CropParams, reference: tuple[int, ...], wanted: torch.Tensor) -> None:
    top = Crop(params)(X, torch.zeros(reference))
    assert torch.equal(top, wanted)
    assert Crop.infer(params, X.shape, reference) == (top.shape,)


@pytest.mark.parametrize(
    ("params", "reference", "message"),
    [
        (CropParams(4), (1, 1, 1, 1), "data [2, 3, 4, 5] has no axis 4"),
        (
            CropParams(offset=(0, 3)),
            (1, 1, 2, 3),
            "axis 3: 3 of reference [1, 1, 2, 3] at offset 3 reach beyond data [2, 3, 4, 5]",
        ),
        (
            CropParams(offset=(0, 0, 0)),
            (1, 1, 2, 3),
            "3 values of offset for the 2 axes of data [2, 3, 4, 5] from 2 on",
        ),
        (CropParams(), (4, 5), "reference [4, 5] has fewer axes than data [2, 3, 4, 5]"),
    ],
)
def test_refused_crops(params: CropParams, reference: tuple[int, ...], message: str) -> None:
    with pytest.raises(BlobError) as caught:
        Crop(params)(X, torch.zeros(reference))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("order", "full"),
    [((), (0, 1, 2, 3)), ((0, 2, 3, 1), (0, 2, 3, 1)), ((3, 1), (3, 1, 0, 2)), ((2,), (2, 0, 1, 3))],
)
def test_permute(order: tuple[int, ...], full: tuple[int, ...]) -> None:
    top = Permute(PermuteParams(order))(X)
    assert torch.equal(top, X.permute(full))
    assert Permute.infer(PermuteParams(order), X.shape) == (top.shape,)


def test_refused_orders() -> None:
    with pytest.raises(ValueError, match=r"^order names an axis twice: \[1, 0, 1\]$"):
        PermuteParams((1, 0, 1))
    with pytest.raises(BlobError, match=r"^bottom \[2, 3\] has no axis 2$"):
        Permute(PermuteParams((0, 2, 1)))(torch.zeros(2, 3))
