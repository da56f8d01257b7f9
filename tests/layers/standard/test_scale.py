"""Scale and Bias against Caffe, along every axis, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import caffe_vectors
import numpy as np
import pytest
import torch
from cortado.layers._engine.checks import BlobError
from cortado.layers._engine.fillers import FillerParams, FillerType
from cortado.layers.standard.scale import Bias, BiasParams, Scale, ScaleParams
from shared import cases

UNIFORM = FillerParams(FillerType.uniform)


@pytest.mark.parametrize("case", cases("05_scale_", "05_bias_"))
def test_caffe(case: Path) -> None:
    caffe_vectors.check(case)


@pytest.mark.parametrize(
    ("axis", "num_axes", "shape"),
    [
        (0, 1, (2,)),
        (1, 2, (3, 4)),
        (-1, 1, (5,)),
        (-3, -1, (3, 4, 5)),
        (0, 4, (2, 3, 4, 5)),
        (2, 0, ()),
    ],
)
def test_axes(axis: int, num_axes: int, shape: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    layer = Scale(ScaleParams(axis, num_axes, UNIFORM, True, UNIFORM), (x.shape,)).double()
    bias = Bias(BiasParams(axis, num_axes, UNIFORM), (x.shape,)).double()
    assert layer.scale.shape == layer.bias.shape == bias.bias.shape == shape
    start = axis % 4 if shape else 0
    factor, term, other = (blob.detach().numpy() for blob in (layer.scale, layer.bias, bias.bias))
    wanted, added = np.empty(x.shape), np.empty(x.shape)
    for index in np.ndindex(*x.shape):
        place = index[start : start + len(shape)]
        wanted[index] = x[index] * factor[place] + term[place]
        added[index] = x[index] + other[place]
    np.testing.assert_allclose(layer(x).detach(), wanted, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(bias(x).detach(), added, rtol=1e-14, atol=1e-14)


def test_second_bottom() -> None:
    """Then the only learned blob is the bias, of the second bottom's shape."""
    x, factor = torch.randn(2, 3, 4), torch.randn(3, 4, requires_grad=True)
    layer = Scale(ScaleParams(bias_term=True, bias_filler=FillerParams(value=2.0)), ((2, 3, 4), (3, 4)))
    assert layer.blob_names == ("bias",)
    assert layer.bias.shape == (3, 4)
    top = layer(x, factor)
    torch.testing.assert_close(top, x * factor + 2)
    top.sum().backward()
    torch.testing.assert_close(factor.grad, x.sum(0))
    assert Bias(BiasParams(), ((2, 3, 4), (3, 4))).blob_names == ()


def test_num_axes_and_filler_are_a_learned_blobs() -> None:
    unused = FillerParams(FillerType.gaussian, std=0.0)
    x, factor = torch.randn(2, 3), torch.randn(3)
    layer = Scale(ScaleParams(num_axes=-2, filler=unused), ((2, 3), (3,)))
    torch.testing.assert_close(layer(x, factor), x * factor)
    assert Bias.infer(BiasParams(num_axes=7), (2, 3), (3,)) == ((2, 3),)
    with pytest.raises(BlobError, match=r"^num_axes must be at least 0, or -1 for all, got -2$"):
        Scale.infer(ScaleParams(num_axes=-2), (2, 3))


def test_default_fillers() -> None:
    assert Scale(ScaleParams(), ((2, 3),)).scale.tolist() == [1, 1, 1]
    assert Bias(BiasParams(), ((2, 3),)).bias.tolist() == [0, 0, 0]
    assert Scale(ScaleParams(filler=FillerParams()), ((2, 3),)).scale.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("params", "bottoms", "message"),
    [
        (ScaleParams(4), [(2, 3)], "bottom [2, 3] has no axis 4"),
        (ScaleParams(1, 2), [(2, 3)], "bottom [2, 3] has no 2 axes from 1 on"),
        (
            ScaleParams(),
            [(2, 3, 4), (4,)],
            "bottom [2, 3, 4] does not have the shape of blob [4] from axis 1 on",
        ),
        (
            ScaleParams(1),
            [(2, 3), (3, 1)],
            "bottom [2, 3] does not have the shape of blob [3, 1] from axis 1 on",
        ),
    ],
)
def test_refused_shapes(params: ScaleParams, bottoms: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(BlobError) as caught:
        Scale.infer(params, *bottoms)
    assert str(caught.value) == message


def test_other_channels_at_run_time() -> None:
    layer = Scale(ScaleParams(), ((2, 3, 4),))
    with pytest.raises(BlobError) as caught:
        layer(torch.zeros(2, 5, 4))
    assert str(caught.value) == "bottom [2, 5, 4] does not have the shape of scale [3] from axis 1 on"
