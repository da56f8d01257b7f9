"""SPP against Caffe and Pooling, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import caffe_vectors
import pytest
import torch
from cortado.layers._engine.checks import BlobError
from cortado.layers.standard._pool import PoolMethod
from cortado.layers.standard.spp import SPP, Params
from shared import cases


@pytest.mark.parametrize("case", cases("07_spp_"))
def test_caffe(case: Path) -> None:
    caffe_vectors.check(case)


@pytest.mark.parametrize("method", [PoolMethod.MAX, PoolMethod.AVE])
def test_even_bins(method: PoolMethod) -> None:
    x = torch.randn(2, 3, 4, 8)
    levels = []
    for bins in (1, 2, 4):
        cells = x.unflatten(3, (bins, 8 // bins)).unflatten(2, (bins, 4 // bins))
        pooled = cells.amax((3, 5)) if method is PoolMethod.MAX else cells.mean((3, 5))
        levels.append(pooled.flatten(1))
    params = Params(3, method)
    top = SPP(params)(x)
    torch.testing.assert_close(top, torch.cat(levels, 1))
    assert SPP.infer(params, (2, 3, 4, 8)) == (top.shape,) == ((2, 3 * 21),)


def test_one_level_keeps_four_axes() -> None:
    top = SPP(Params(1))(torch.randn(2, 3, 5, 7))
    assert top.shape == (2, 3, 1, 1)


def test_stochastic() -> None:
    x = torch.rand(1, 1, 4, 4)
    drawn = SPP(Params(2, PoolMethod.STOCHASTIC))(x)
    assert torch.isin(drawn, x).all()
    with pytest.raises(
        BlobError, match=r"^STOCHASTIC pooling of bottom \[1, 1, 5, 4\] would pad level 1$"
    ):
        SPP(Params(2, PoolMethod.STOCHASTIC))(torch.rand(1, 1, 5, 4))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 5, 11), "expected bottom [2, 5, 11] to be [N, C, H, W]"),
        ((1, 2, 5, 11), "level 2 pads bottom [1, 2, 5, 11] by 2 x 1 for windows of 2 x 3"),
        ((1, 2, 0, 3), "level 0 pads bottom [1, 2, 0, 3] by 0 x 0 for windows of 0 x 3"),
    ],
)
def test_refused_shapes(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(BlobError) as caught:
        SPP(Params(3))(torch.zeros(shape))
    assert str(caught.value) == message
