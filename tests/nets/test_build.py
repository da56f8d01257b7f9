"""Specs that are refused, with their exact messages, and specs that build."""

import re
from pathlib import Path

import pytest
from cortado.nets.net import Net
from cortado.prototxt_like import SpecError, loads

HERE = Path(__file__).parent


@pytest.mark.parametrize("path", sorted((HERE / "invalid").glob("*.yaml")), ids=lambda path: path.stem)
def test_invalid(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    with pytest.raises(SpecError) as caught:
        Net(path.name)
    found = re.sub("known: .*", "known: ...", str(caught.value))
    assert found == path.with_suffix(".expected").read_text(encoding="utf-8").rstrip("\n")


@pytest.mark.parametrize("path", sorted((HERE / "valid").glob("*.*")), ids=lambda path: path.name)
def test_valid(path):
    for phase in ("TRAIN", "TEST"):
        assert Net(path, phase).layer_by_name


def test_a_type_that_no_layer_has_lists_those_there_are():
    with pytest.raises(SpecError, match=r"known: .*Convolution, .*EuclideanLoss, .*TanH"):
        Net(loads("layer: {name: a, type: B}"))


def test_a_params_own_refusal_is_located():
    text = "layer:\n- {name: x, type: Input, top: x, input_param: {shape: {dim: [2, 3]}}}\n"
    text += "- {name: j, type: Concat, bottom: x, top: y, concat_param: {axis: 1, concat_dim: 1}}\n"
    wanted = r"net.yaml:3:46: error: Concat: give axis or concat_dim, not both"
    with pytest.raises(SpecError, match=wanted):
        Net(loads(text, name="net.yaml"))
