"""Slice, Split and Tile against Caffe, along every axis, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import caffe_vectors
import pytest
import torch
from cortado.layers._engine.checks import BlobError
from cortado.layers.standard.slice import Params as SliceParams
from cortado.layers.standard.slice import Slice
from cortado.layers.standard.split import Split
from cortado.layers.standard.tile import Params as TileParams
from cortado.layers.standard.tile import Tile
from shared import cases


@pytest.mark.parametrize("case", cases("06_slice_", "06_split_", "06_tile_"))
def test_caffe(case: Path) -> None:
    caffe_vectors.check(case)


def sliced(params: SliceParams, tops: int, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    layer = Slice(params)
    layer.tops = tuple(f"y{i}" for i in range(tops))
    x = torch.randn(shape)
    found = layer(x)
    assert torch.equal(torch.cat(found, params.along), x)
    shapes = [tuple(top.shape) for top in found]
    assert list(layer.infer(params, shape)) == shapes
    return shapes


@pytest.mark.parametrize(
    ("params", "tops", "shapes"),
    [
        (SliceParams(), 3, [(2, 2, 4)] * 3),
        (SliceParams(axis=0), 2, [(1, 6, 4)] * 2),
        (SliceParams(axis=-1), 4, [(2, 6, 1)] * 4),
        (SliceParams(slice_dim=2), 1, [(2, 6, 4)]),
        (SliceParams(slice_point=(1, 4)), 3, [(2, 1, 4), (2, 3, 4), (2, 2, 4)]),
        (SliceParams(axis=-1, slice_point=(3,)), 2, [(2, 6, 3), (2, 6, 1)]),
        (SliceParams(slice_point=(2, 6)), 3, [(2, 2, 4), (2, 4, 4), (2, 0, 4)]),
    ],
)
def test_slice(params: SliceParams, tops: int, shapes: list[tuple[int, ...]]) -> None:
    assert sliced(params, tops, (2, 6, 4)) == shapes


@pytest.mark.parametrize(
    ("params", "tops", "message"),
    [
        (SliceParams(), 4, "axis 1 of bottom [2, 6] has no 4 equal parts"),
        (SliceParams(axis=2), 2, "bottom [2, 6] has no axis 2"),
        (SliceParams(slice_point=(1,)), 3, "1 values of slice_point for 3 tops"),
        (
            SliceParams(slice_point=(2, 7)),
            3,
            "axis 1 of bottom [2, 6] is too short for slice_point [2, 7]",
        ),
        (
            SliceParams(axis=0, slice_point=(1, 2)),
            3,
            "axis 0 of bottom [2, 6] is too short for slice_point [1, 2]",
        ),
    ],
)
def test_refused_slices(params: SliceParams, tops: int, message: str) -> None:
    with pytest.raises(BlobError) as caught:
        sliced(params, tops, (2, 6))
    assert str(caught.value) == message


def test_refused_slice_parameters() -> None:
    with pytest.raises(ValueError, match=r"^give axis or slice_dim, not both$"):
        SliceParams(axis=1, slice_dim=1)
    for points in ((3, 2), (2, 2)):
        with pytest.raises(ValueError, match=r"^the values of slice_point must increase: "):
            SliceParams(slice_point=points)


def test_split_adds_gradients() -> None:
    layer, x = Split(), torch.randn(2, 3, requires_grad=True)
    layer.tops = ("a", "b")
    a, b = layer(x)
    assert layer.infer(layer.params, (2, 3)) == ((2, 3), (2, 3))
    assert a is not b
    assert a.data_ptr() == b.data_ptr() == x.data_ptr()
    (2 * a + b).sum().backward()
    assert (x.grad == 3).all()


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_tile(axis: int) -> None:
    x, params = torch.randn(2, 3, 4), TileParams(3, axis)
    top = Tile(params)(x)
    assert torch.equal(top, torch.cat([x, x, x], axis))
    assert Tile.infer(params, (2, 3, 4)) == (top.shape,)
    with pytest.raises(BlobError, match=r"^bottom \[2\] has no axis 2$"):
        Tile(TileParams(3, 2))(torch.zeros(2))
