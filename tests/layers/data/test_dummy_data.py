"""DummyData: shapes, fillers, and which tops are filled again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cortado.layers._engine.fillers import FillerParams, FillerType
from cortado.layers._engine.params import BlobShape
from cortado.layers.data.dummy_data import DummyData, Params, shapes
from cortado.nets.net import Net
from cortado.prototxt_like import loads
from cortado.prototxt_like.source import SpecError

NOISE, FIVE = FillerParams(type=FillerType.gaussian), FillerParams(value=5.0)
SHAPE = (BlobShape((2, 3)),)


def made(tops: int = 1, seed: int = 0, **fields: Any) -> DummyData:
    layer = DummyData(Params(**fields), (), torch.Generator().manual_seed(seed))
    layer.tops = tuple(f"top{i}" for i in range(tops))
    return layer


@pytest.mark.parametrize(
    ("params", "wanted"),
    [
        (Params(shape=SHAPE), ((2, 3), (2, 3))),
        (Params(shape=(BlobShape(), BlobShape((4,)))), ((), (4,))),
        (Params(num=(2, 5), channels=(3,), height=(1,), width=(4,)), ((2, 3, 1, 4), (5, 3, 1, 4))),
    ],
)
def test_shapes(params: Params, wanted: Any) -> None:
    assert shapes(params, 2) == wanted


def test_nothing_is_zero_and_a_constant_keeps_what_is_written() -> None:
    layer = made(shape=SHAPE)
    assert layer()[0].tolist() == [[0] * 3] * 2
    layer()[0][0, 1] = 7
    assert layer()[0].tolist() == [[0, 7, 0], [0, 0, 0]]


def test_what_is_not_constant_is_drawn_anew() -> None:
    layer = made(3, shape=SHAPE, data_filler=(NOISE, FIVE, NOISE))
    one, two = layer(), layer()
    assert not torch.equal(one[0], two[0])
    assert not torch.equal(one[0], one[2])
    assert torch.equal(two[1], torch.full((2, 3), 5.0))
    again = made(3, shape=SHAPE, data_filler=(NOISE, FIVE, NOISE))
    again.set_extra_state(layer.get_extra_state())
    assert torch.equal(again()[0], layer()[0])
    assert not any(top.requires_grad for top in one)
    assert not torch.equal(made(shape=SHAPE, data_filler=(NOISE,), seed=1)()[0], one[0])


def test_one_filler_is_that_of_all() -> None:
    tops = made(2, shape=SHAPE, data_filler=(FIVE,))()
    assert all(torch.equal(top, torch.full((2, 3), 5.0)) for top in tops)


def net(fields: str) -> Net:
    text = f"""
        layer {{ name: "d" type: "DummyData" top: "a" top: "b" dummy_data_param {{ {fields} }} }}"""
    return Net(loads(text, "net.prototxt", notation="prototxt"), "TRAIN", seed=1)


def test_in_a_net() -> None:
    made = net('shape { dim: 2 } data_filler { type: "uniform" min: 3 max: 4 }')
    assert made.blob_shapes == {"a": (2,), "b": (2,)}
    assert all(3 <= float(value) <= 4 for top in made().values() for value in top)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("shape { dim: 2 } num: 2", "shape and num, channels, height, width exclude each other"),
        ("num: 2 channels: 1 height: 1", "expected width once, or for each of 2 tops, got it 0 times"),
        ("shape {} shape {} shape {}", "expected shape once, or for each of 2 tops, got it 3 times"),
        (
            "shape {} data_filler {} data_filler {} data_filler {}",
            "expected data_filler once, or for each of 2 tops, got it 3 times",
        ),
        ("shape { dim: 2 dim: 0 }", "constant filler: the blob [2, 0] has no elements"),
        (
            'shape { dim: 2 } data_filler { } data_filler { type: "gaussian" std: 0 }',
            "gaussian filler: std must be above 0, got 0",
        ),
    ],
)
def test_refusals(fields: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        net(fields)
    assert message in str(caught.value)
    assert "net.prototxt:2:" in str(caught.value)
