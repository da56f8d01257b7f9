"""Cases of real Caffe run through the Python interface: every blob and diff, splits among them."""

import json

import cortado.pycaffe as caffe
import numpy as np
import pytest
import torch
from caffe_vectors import agree
from shared import case as vector_case
from shared import cases


def close(what, found, wanted):
    agree(what, torch.from_numpy(np.array(found)), wanted)


def read(folder):
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    with np.load(folder / "data.npz") as file:
        return meta, dict(file)


def built(folder, meta, data):
    net = caffe.Net(
        str(folder / "net.prototxt"),
        {"TRAIN": caffe.TRAIN, "TEST": caffe.TEST}[meta["phase"]],
        weights=str(folder / "weights.caffemodel"),
    )
    for name, values in data.items():
        kind, _, rest = name.partition("/")
        if kind == "param":
            layer, index = rest.rsplit("/", 1)
            net.params[layer][int(index)].data[...] = values
        if kind == "input":
            net.blobs[rest].reshape(*values.shape)
            net.blobs[rest].data[...] = values
    return net


def compare(net, data, kind):
    compared = 0
    for name, wanted in data.items():
        start, _, rest = name.partition("/")
        if start != kind:
            continue
        if kind == "param_diff":
            layer, index = rest.rsplit("/", 1)
            found = net.params[layer][int(index)].diff
        else:
            found = getattr(net.blobs[rest], kind)
        close(name, found, wanted)
        compared += 1
    assert compared, f"the case has no {kind}"


@pytest.mark.parametrize(
    "folder",
    cases(
        "01_deconv_group",
        "02_pool_max_mask",
        "04_inplace",
        "05_bn_scale",
        "06_concat_s",
        "06_eltwise_sum",
        "06_filter",
        "06_reshape_a",
        "06_slice_s",
        "06_split",
        "07_infogain",
        "07_rnn",
        "07_smloss_2d",
        "08_siamese",
        "11_auto_top",
        "11_backward_default",
        "11_legacy",
        "11_loss_weight",
        "11_lr_mult",
        "11_mechanics",
        "11_outputs_sorted",
        "11_propagate_down",
        "11_two_losses",
    ),
)
def test_forward_and_backward(folder):
    meta, data = read(folder)
    net = built(folder, meta, data)
    assert list(net._layer_names) == [layer["name"] for layer in meta["layers"]]
    assert [layer.type for layer in net.layers] == [layer["type"] for layer in meta["layers"]]
    assert (net.inputs, net.outputs) == (meta["inputs"], meta["outputs"])
    weights = {name: weight for name, weight in net.blob_loss_weights.items() if weight}
    assert weights == pytest.approx({k: v for k, v in meta["loss_weights"].items() if v})
    loss = net._forward(0, len(net.layers) - 1)
    compare(net, data, "data")
    close("loss", loss, data["loss"])
    for name, values in data.items():
        if name.startswith("topdiff/"):
            net.blobs[name.removeprefix("topdiff/")].diff[...] = values
    net.clear_param_diffs()
    net.backward()
    compare(net, data, "diff")
    if any(name.startswith("param_diff/") for name in data):
        compare(net, data, "param_diff")


@pytest.mark.caffe_vector
def test_mechanics():
    """Diffs of parameters add up; a new input size; part of a pass leaves the rest as it was."""
    folder = vector_case("11_mechanics")
    meta, data = read(folder)
    net = built(folder, meta, data)
    net.forward()
    for _ in range(2):
        net.blobs["f"].diff[...] = data["topdiff/f"]
        net.backward()
    for name, wanted in data.items():
        if name.startswith("second_backward/param_diff/"):
            layer, index = name.removeprefix("second_backward/param_diff/").rsplit("/", 1)
            close(name, net.params[layer][int(index)].diff, wanted)
    close("diff/x", net.blobs["x"].diff, data["second_backward/diff/x"])

    larger = data["reshaped/input/x"]
    net.blobs["x"].reshape(*larger.shape)
    net.reshape()
    assert net.blobs["c2"].data.shape == data["reshaped/data/c2"].shape
    net.blobs["x"].data[...] = larger
    net.forward()
    for name, wanted in data.items():
        if name.startswith("reshaped/data/"):
            close(name, net.blobs[name.removeprefix("reshaped/data/")].data, wanted)

    stale = net.blobs["f"].data
    net.blobs["c1"].data[...] = data["partial/c1"]
    given = net.forward(start="p1", end="c2")
    assert list(given) == ["c2"]
    close("c2", given["c2"], data["partial/c2"])
    close("f", stale, data["partial/f_stale"])


@pytest.mark.caffe_vector
def test_refuses_the_backward_passes_that_caffe_refuses():
    folder = vector_case("11_errors")
    tried = json.loads((folder / "errors.json").read_text(encoding="utf-8"))
    refused = [entry for entry in tried if entry["action"] == "backward"]
    assert len(refused) >= 5
    for entry in refused:
        net = caffe.Net(str(folder / entry["file"]), caffe.TRAIN)
        for name in net.inputs:
            net.blobs[name].data[...] = 0 if entry["name"].startswith(("embed", "batch")) else 1
        net.forward()
        with pytest.raises(ValueError, match="has no backward|no gradient"):
            net.backward()


@pytest.mark.caffe_vector
def test_refuses_a_reshape_that_its_weights_do_not_fit():
    folder = vector_case("11_errors")
    tried = json.loads((folder / "errors.json").read_text(encoding="utf-8"))
    (entry,) = [entry for entry in tried if entry["name"] == "ip_reshape_changed_dim"]
    net = caffe.Net(str(folder / entry["file"]), caffe.TRAIN)
    (name,) = net.inputs
    shape = net.blobs[name].shape
    net.blobs[name].reshape(shape[0], shape[1] + 2, *shape[2:])
    with pytest.raises(ValueError, match="needs a weight"):
        net.reshape()


@pytest.mark.parametrize(
    "folder", cases("10_adam", "10_nesterov", "10_sgd_clip_itersize2", "10_rmsprop_d")
)
def test_solvers(folder):
    """Ten steps, the inputs written into the blobs before each pass; diffs show the updates."""
    _, data = read(folder)
    solver = caffe.get_solver(str(folder / "solver.prototxt"))
    net = solver.net
    inputs = {name: data[f"input/{name}"] for name in net.inputs}
    solver.net.copy_from(str(folder / "weights.caffemodel"))
    passes = iter(range(10**6))

    def fill(layer):
        if layer == 0:
            n = next(passes)
            for name, values in inputs.items():
                net.blobs[name].data[...] = values[n]

    net.before_forward(fill)
    for iteration in range(1, 11):
        assert solver.lr == pytest.approx(float(data["lr"][iteration - 1]), rel=1e-6)
        solver.step(1)
        for layer, blobs in net.params.items():
            for i, blob in enumerate(blobs):
                close(layer, blob.data, data[f"iter{iteration}/param/{layer}/{i}"])
                close(layer, blob.diff, data[f"iter{iteration - 1}/update/{layer}/{i}"])
    assert solver.iter == 10
