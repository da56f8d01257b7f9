"""Specs that are refused, with their exact messages, and specs that build."""

import shutil
from pathlib import Path

import pytest
from cortado.layers._engine import registry
from cortado.nets.forks import FORKS
from cortado.nets.net import Net
from cortado.nets.solver import Solver
from cortado.nets.weights import save
from cortado.prototxt_like import SpecError, loads

HERE = Path(__file__).parent


@pytest.mark.parametrize("path", sorted((HERE / "invalid").glob("*.yaml")), ids=lambda path: path.stem)
def test_invalid(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    with pytest.raises(SpecError) as caught:
        Net(path.name)
    assert str(caught.value) == path.with_suffix(".expected").read_text(encoding="utf-8").rstrip("\n")


@pytest.mark.parametrize("path", sorted((HERE / "valid").glob("*.*")), ids=lambda path: path.name)
def test_valid(path):
    for phase in ("TRAIN", "TEST"):
        assert Net(path, phase).layer_by_name


OWN = "layers of your own come with --plugin FILE (cortado.register), or as Python layers"


@pytest.mark.parametrize(
    ("type", "hint"),
    [
        ("B", OWN),
        ("Convolutoin", f'did you mean "Convolution"? {OWN}'),
        ("relu", f'did you mean "ReLU"? {OWN}'),
        ("BN", f"known from SegNet: batch normalization with a learnt scale and shift; {OWN}"),
        ("PSROIPooling", f"known from R-FCN: position-sensitive pooling of regions; {OWN}"),
        ("Correlation", f"known from FlowNet: products of patches over displacements; {OWN}"),
        ("NdConvolution", f"known from C3D: convolution over any number of axes; {OWN}"),
        ("TripletHinge", OWN),  # near to HingeLoss, which is never meant
    ],
)
def test_an_unknown_type(type, hint):
    with pytest.raises(SpecError) as caught:
        Net(loads(f"layer: {{name: a, type: {type}}}", "net.yaml"))
    assert caught.value.message == f'layer "a" has the unknown type "{type}"'
    assert caught.value.hint == hint


def test_an_unknown_type_of_many_layers_is_said_once():
    layers = "".join(f"- {{name: bn{i}, type: BN, bottom: x{i}, top: x{i + 1}}}\n" for i in range(20))
    text = "layer:\n- {name: d, type: Input, top: x0, input_param: {shape: {dim: 1}}}\n" + layers
    with pytest.raises(SpecError) as caught:
        Net(loads(text, "net.yaml"))
    assert [str(error.span) for error in caught.value.errors] == ["net.yaml:3:21"]
    assert caught.value.message == 'layer "bn0" has the unknown type "BN", and so have 19 more layers'


def test_the_forks_types_are_not_ours():
    assert len(FORKS) > 70
    assert not FORKS.keys() & set(registry.types())
    assert all(fork and does for fork, does in FORKS.values())


def test_a_block_of_another_type_is_a_warning(caplog):
    text = """
layer:
- {name: x, type: Input, top: x, input_param: {shape: {dim: [2, 3]}}, loss_param: {normalize: true}}
- {name: ip, type: InnerProduct, bottom: x, top: y,
   inner_product_param: {num_output: 2}, convolution_param: {num_output: 3}}
- {name: s, type: Silence, bottom: y, relu_param: {negative_slope: 1}}
"""
    net = Net(loads(text, "net.yaml"))
    assert net.blob_shapes["y"] == (2, 2)
    assert caplog.messages == [
        "net.yaml:3:71: warning: Input does not read loss_param; its own is input_param",
        "net.yaml:5:42: warning: InnerProduct does not read convolution_param; "
        "its own is inner_product_param",
        "net.yaml:6:39: warning: Silence does not read relu_param; it has no parameters",
    ]


def test_a_block_of_another_type_in_many_layers_is_said_once(caplog):
    layer = "- {name: s, type: Silence, bottom: x, relu_param: {negative_slope: 1}}\n"
    text = "layer:\n- {name: x, type: Input, top: x, input_param: {shape: {dim: 2}}}\n" + layer * 30
    Net(loads(text, "net.yaml"))
    (message,) = caplog.messages
    assert message.startswith("net.yaml:3:39: warning: Silence does not read relu_param; ")
    assert message.endswith(" (and 29 more)")


def test_specs_that_ship_have_no_block_in_vain(caplog):
    for name in ("ucn_hn_st", "ucn_demo_hn_st", "scnet_ag_plus", "scnet_demo_ag_plus"):
        Net(name)
    assert not caplog.messages


def test_a_blob_of_too_many_axes():
    text = f"layer: {{name: x, type: Input, top: x, input_param: {{shape: {{dim: {[1] * 33}}}}}}}"
    with pytest.raises(SpecError, match='layer "x": top "x" has 33 axes, more than 32'):
        Net(loads(text))


def test_nan_is_no_multiplier():
    text = """
layer:
- {name: x, type: Input, top: x, input_param: {shape: {dim: [2, 3]}}}
- {name: ip, type: InnerProduct, bottom: x, top: y, param: {lr_mult: nan}, inner_product_param: {
    num_output: 2, weight_filler: {type: gaussian, std: inf}}}
"""
    with pytest.raises(SpecError) as caught:
        Net(loads(text, "net.yaml"))
    assert [error.message for error in caught.value.errors] == [
        "lr_mult must be a finite number, got nan"
    ]
    with pytest.raises(SpecError, match="std must be a finite number, got inf"):
        Net(loads(text.replace("nan", "1")))


def test_a_solver_is_no_net_and_a_net_no_solver(tmp_path):
    with pytest.raises(SpecError) as caught:
        Net(loads('net: "my_net.prototxt"\nbase_lr: 0.1', "solver.yaml"))
    assert [error.message for error in caught.value.errors] == ["this is a solver's spec, not a net's"]
    assert caught.value.hint == 'cortado train is for it; its net is "my_net.prototxt"'
    with pytest.raises(SpecError) as caught:
        Solver(loads("name: n\nlayer: [{type: Silence}, {type: Silence}]", "net.yaml"))
    assert [error.message for error in caught.value.errors] == ["this is a net's spec, not a solver's"]


def test_net_and_weights_swapped(tmp_path):
    net = tmp_path / "net.yaml"
    net.write_text(
        "layer:\n- {name: x, type: Input, top: x, input_param: {shape: {dim: [2, 3]}}}\n"
        "- {name: ip, type: InnerProduct, bottom: x, top: y, inner_product_param: {num_output: 2}}\n"
    )
    for name in ("w.caffemodel", "w.h5", "w.pth", "w.safetensors"):
        save(Net(net, seed=0), tmp_path / name)
        with pytest.raises(SpecError, match="not the text of a spec") as caught:
            Net(tmp_path / name, weights=net)
        assert caught.value.hint == "a net's spec and its weights are two files: are they swapped?"
    shutil.copy(net, tmp_path / "net.caffemodel")
    with pytest.raises(SpecError, match="it is text: is it a spec, not weights?"):
        Net(net, weights=tmp_path / "net.caffemodel")


def test_a_params_own_refusal_is_located():
    text = "layer:\n- {name: x, type: Input, top: x, input_param: {shape: {dim: [2, 3]}}}\n"
    text += "- {name: j, type: Concat, bottom: x, top: y, concat_param: {axis: 1, concat_dim: 1}}\n"
    wanted = r"net.yaml:3:46: error: Concat: give axis or concat_dim, not both"
    with pytest.raises(SpecError, match=wanted):
        Net(loads(text, name="net.yaml"))
