"""Integers beyond what their fields hold, in both notations, wherever they stand."""

from __future__ import annotations

import re

import pytest
from cortado.prototxt_like import SpecError, loads

UINT32, INT32 = "from 0 to 4294967295 (uint32)", "from -2147483648 to 2147483647 (int32)"


def conv(value: str) -> str:
    return (
        'layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y"\n'
        f"  inner_product_param {{ num_output: {value} }} }}"
    )


@pytest.mark.parametrize("value", ["99999999999", "4294967296", "0x100000000", "-1"])
def test_a_uint32(value: str) -> None:
    with pytest.raises(SpecError) as caught:
        loads(conv(value), "net.prototxt", "prototxt")
    first = str(caught.value).splitlines()[0]
    text = f"num_output must be {UINT32}, got {value}"
    assert first == f"net.prototxt:2:37: error: {text}"


def test_the_largest() -> None:
    assert loads(conv("4294967295"), "net.prototxt", "prototxt")


def test_all_of_a_spec_at_once_in_a_trunk_too() -> None:
    text = """
layer:
- siamese:
    input: {data: [a, b]}
    output: {f: [c, d]}
    layer: {type: Slice, bottom: data, top: f, slice_param: {axis: 2147483648, slice_point: [1, -1]}}
- {type: Python, include: {min_level: 9999999999}}
"""
    with pytest.raises(SpecError) as caught:
        loads(text, "net.yaml")
    found = [(error.span.line, error.message) for error in caught.value.errors if error.span]
    assert found == [
        (6, f"axis must be {INT32}, got 2147483648"),
        (6, f"slice_point must be {UINT32}, got -1"),
        (7, f"min_level must be {INT32}, got 9999999999"),
    ]


def test_a_solver_and_old_layers() -> None:
    with pytest.raises(SpecError, match=re.escape(f"max_iter must be {INT32}, got 3000000000")):
        loads("net: a.yaml\nmax_iter: 3000000000")
    assert loads("net: a.yaml\nrandom_seed: 3000000000")
    old = "layers { type: CONVOLUTION convolution_param { pad: 4294967296 } }"
    with pytest.raises(SpecError, match=re.escape(f"pad must be {UINT32}, got 4294967296")):
        loads(old, notation="prototxt")


def test_what_is_no_integer_is_left_to_its_layer() -> None:
    assert loads(conv("many"), notation="prototxt")
    assert loads("layer: {type: KNN, knn_param: {k: 99999999999}}")  # of no message of Caffe's
