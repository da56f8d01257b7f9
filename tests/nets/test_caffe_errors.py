"""An error exactly where Caffe aborts: its 11_errors cases, and where we differ on purpose."""

import json
import math

import pytest
import torch
from cortado.nets.net import LayerError, Net
from cortado.nets.solver import Solver
from cortado.nets.weights import load as load_weights
from cortado.prototxt_like import SpecError, loads
from mutilate import mutilated
from shared import cases

# Cases of Caffe's where this library does otherwise, and why.
DIFFERENT = {
    "pool_stochastic_cpu": "Caffe has stochastic pooling on the GPU alone, here it is on both",
}


(FOLDER,) = cases("11_errors")[0].values
CASES = json.loads((FOLDER / "errors.json").read_text("utf-8")) if FOLDER.is_dir() else []


def do(action, file):
    """What the case tried, on numbers that go with it."""
    if action == "solver":
        Solver(file)
        return
    net = Net(file, "TRAIN", seed=0)
    if action == "init":
        return
    if action == "load":
        load_weights(net, "weights.caffemodel")
        return
    given = {name: torch.ones(net.blob_shapes[name]) for name in net.inputs}
    if action == "reshape":
        given["x"] = torch.ones(2, 5)
    elif action == "forward_s9":
        given["s"][:] = 9
    elif action == "forward_nan":
        given["x"][:] = math.nan
    blobs = net(given)
    if action == "backward":
        sum(blobs[name].sum() for name in net.outputs).backward()


@pytest.mark.parametrize("wanted", CASES, ids=lambda wanted: wanted["name"])
def test_an_error_where_caffe_aborts(wanted, monkeypatch):
    monkeypatch.chdir(FOLDER)
    found = ""
    try:
        do(wanted["action"], wanted["file"])
    except (SpecError, LayerError) as error:
        found = str(error)
    aborts = wanted["aborts"] and wanted["name"] not in DIFFERENT
    assert bool(found) == aborts, found
    assert wanted["file"] in found or not aborts  # the place is in the net's or the solver's file


def test_the_table_of_differences_names_cases():
    assert not CASES or set(DIFFERENT) <= {wanted["name"] for wanted in CASES if wanted["aborts"]}


HEAD = "layer:\n- {name: x, type: Input, top: x, input_param: {shape: {dim: [2, 3]}}}\n"

# Where a net that Caffe takes is refused here: what it says would be lost, or a top be empty.
LAYER = "- {name: y, bottom: x, top: y, "
SMALL = HEAD.replace("[2, 3]", "[1, 1, 2, 2]")
STRICTER = {
    "a net without layers": "name: empty",
    "old and new layers together": "layer: {type: Silence}\nlayers: {type: RELU}",
    "an unknown filler of nothing": HEAD + LAYER + "type: InnerProduct, inner_product_param: {"
    "num_output: 1, bias_term: false, bias_filler: {type: glorot}}}",
    "a pooling without windows": SMALL + LAYER + "type: Pooling, pooling_param: {"
    "kernel_size: 4, stride: 2}}",
    "a convolution without windows": SMALL + LAYER + "type: Convolution, convolution_param: {"
    "num_output: 1, kernel_size: 4, stride: 2}}",
}

# Where Caffe aborts and this library does not: what no layer reads is not looked at.
Y = "- {name: y, type: ReLU, bottom: x, top: y, "
MORE_LENIENT = {
    "an excluded layer's own block": HEAD + Y + "include: {stage: s}, relu_param: {slope: 1}}",
    "the block of another type of layer": HEAD + Y + "convolution_param: {kernal: 1}}",
}


@pytest.mark.parametrize("why", STRICTER)
def test_stricter(why):
    with pytest.raises(SpecError):
        Net(loads(STRICTER[why]))


@pytest.mark.parametrize("why", MORE_LENIENT)
def test_more_lenient(why):
    assert Net(loads(MORE_LENIENT[why])).inputs == ("x",)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("type: ReLU, relu_parm: {}", 'a layer has no parameter "relu_parm"'),
        ("type: ReLU, relo_param: {}", 'ReLU does not read "relo_param"'),
        ("type: Foo", 'layer "y" has the unknown type "Foo"'),
    ],
)
def test_unknown_blocks_and_types(layer, message):
    with pytest.raises(SpecError) as caught:
        Net(loads(f"{HEAD}- {{name: y, bottom: x, top: y, {layer}}}", "net.yaml"))
    assert str(caught.value).startswith("net.yaml:3:")
    assert message in str(caught.value)


def test_another_types_block_is_passed_over():
    layer = "- {name: y, type: ReLU, bottom: x, top: y, pooling_param: {pool: MAX}, loss_param: {}}"
    assert Net(loads(HEAD + layer)).outputs == ("y",)


def test_a_block_is_given_once():
    text = 'layer { name: "x" type: "Input" top: "x" input_param { } input_param { } }'
    with pytest.raises(SpecError, match='layer "x" has two blocks "input_param"'):
        Net(loads(text, notation="prototxt"))


def test_a_mutilated_net_is_built_or_refused():
    layer = (
        "- {name: y, type: Convolution, bottom: x, top: [y], param: {lr_mult: 1}, convolution_param: "
    )
    block = "{num_output: 2, kernel_size: [3], pad: 1, weight_filler: {type: xavier}}}\n"
    relu = "- {name: z, type: ReLU, bottom: y, top: y, relu_param: {negative_slope: 1e-1}}\n"
    built = 0
    for text in mutilated(HEAD.replace("[2, 3]", "[1, 2, 4, 4]") + layer + block + relu, 200):
        try:
            Net(loads(text), seed=0)
            built += 1
        except SpecError as error:
            print(error)
    assert 0 < built < 100
