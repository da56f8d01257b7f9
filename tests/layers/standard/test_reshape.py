"""Reshape and Flatten against Caffe, their rules for axes, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import caffe_vectors
import pytest
import torch
from cortado.layers._engine.checks import BlobError
from cortado.layers.standard.reshape import Flatten, FlattenParams, NewAxes, Reshape, ReshapeParams
from cortado.nets.net import Net
from cortado.prototxt_like import loads
from cortado.prototxt_like.source import SpecError
from shared import cases


@pytest.mark.parametrize("case", cases("06_reshape_", "06_flatten"))
def test_caffe(case: Path) -> None:
    caffe_vectors.check(case)


@pytest.mark.parametrize(
    ("dims", "axis", "num_axes", "bottom", "top"),
    [
        ((0, -1), 0, -1, (2, 3, 4), (2, 12)),
        ((6, 4), 0, -1, (2, 3, 4), (6, 4)),
        ((-1,), 0, -1, (2, 3, 4), (24,)),
        ((-1,), 0, 0, (2, 3), (1, 2, 3)),
        ((1, 1), -1, 0, (2, 3), (2, 3, 1, 1)),
        ((2, -1), 1, 1, (2, 6, 4), (2, 2, 3, 4)),
        ((2, 4), -2, -1, (2, 8), (2, 2, 4)),
        ((0, 20), 1, -1, (2, 3, 4, 5), (2, 3, 20)),
        ((), 1, 1, (2, 1, 3), (2, 3)),
        ((), 0, -1, (1, 1), ()),
        ((1,), 0, -1, (), (1,)),
        ((0, -1), 0, -1, (0, 3, 4), (0, 12)),
        ((0, 2, -1), 0, -1, (0, 6), (0, 2, 3)),
    ],
)
def test_reshape(
    dims: tuple[int, ...], axis: int, num_axes: int, bottom: tuple[int, ...], top: tuple[int, ...]
) -> None:
    params = ReshapeParams(NewAxes(dims), axis, num_axes)
    x = torch.randn(bottom)
    found = Reshape(params)(x)
    assert Reshape.infer(params, bottom) == (tuple(found.shape),) == (top,)
    assert torch.equal(found.flatten(), x.flatten())


@pytest.mark.parametrize(
    ("axis", "end", "shape"),
    [
        (1, -1, (2, 60)),
        (0, -1, (120,)),
        (-3, 2, (2, 12, 5)),
        (2, 2, (2, 3, 4, 5)),
        (-1, 3, (2, 3, 4, 5)),
    ],
)
def test_flatten(axis: int, end: int, shape: tuple[int, ...]) -> None:
    x, params = torch.randn(2, 3, 4, 5), FlattenParams(axis, end)
    top = Flatten(params)(x)
    assert Flatten.infer(params, (2, 3, 4, 5)) == (top.shape,) == (shape,)
    assert torch.equal(top.flatten(), x.flatten())


@pytest.mark.parametrize(
    ("params", "bottom", "message"),
    [
        (
            ReshapeParams(NewAxes((7,))),
            (2, 4, 6, 6),
            "bottom [2, 4, 6, 6] has 288 elements, which do not fit shape [7] from axis 0 on",
        ),
        (
            ReshapeParams(NewAxes((5, -1))),
            (2, 3),
            "bottom [2, 3] has 6 elements, which do not fit shape [5, -1] from axis 0 on",
        ),
        (
            ReshapeParams(NewAxes((0, 5, -1))),
            (0, 6),
            "bottom [0, 6] has 0 elements, which do not fit shape [0, 5, -1] from axis 0 on",
        ),
        (ReshapeParams(NewAxes((1,)), 3), (2, 3), "bottom [2, 3] has no axis 3 to replace"),
        (ReshapeParams(NewAxes((1,)), -4), (2, 3), "bottom [2, 3] has no axis -4 to replace"),
        (ReshapeParams(NewAxes((1,)), 1, 2), (2, 3), "bottom [2, 3] has no 2 axes from 1 on"),
        (
            ReshapeParams(NewAxes((2, 3, 0))),
            (2, 3),
            "bottom [2, 3] has no axis 2 to copy (a 0 of shape)",
        ),
    ],
)
def test_refused_shapes(params: ReshapeParams, bottom: tuple[int, ...], message: str) -> None:
    with pytest.raises(BlobError) as caught:
        Reshape(params)(torch.zeros(bottom))
    assert str(caught.value) == message


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"^shape has more than one -1: \[-1, 2, -1\]$"):
        ReshapeParams(NewAxes((-1, 2, -1)))
    with pytest.raises(BlobError, match=r"^axis 2 of bottom \[2, 3, 4\] is behind end_axis 0$"):
        Flatten(FlattenParams(2, 0))(torch.zeros(2, 3, 4))


@pytest.mark.parametrize("kind", ["Reshape", "Flatten", "AbsVal"])
def test_not_in_place(kind: str) -> None:
    spec = f"""layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: 2 }} }} }}
layer {{ name: "r" type: "{kind}" bottom: "x" top: "x" }}"""
    with pytest.raises(
        SpecError, match=rf'"r" \({kind}\) cannot work in place: its top "x" is its bottom'
    ):
        Net(loads(spec, notation="prototxt"))
