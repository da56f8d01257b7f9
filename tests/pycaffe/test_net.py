"""Net as scripts for Caffe use it: surgery, feature extraction, passes in parts, callbacks, files."""

import sys
import textwrap
import threading

import cortado.pycaffe as caffe
import numpy as np
import pytest
import torch
from cortado.prototxt_like import SpecError
from cortado.pycaffe import mode

NET = """
name: "small"
layer { name: "data" type: "Input" top: "data" top: "label"
  input_param { shape { dim: 4 dim: 2 dim: 5 dim: 6 } shape { dim: 4 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 3 kernel_size: 3 weight_filler { type: "gaussian" std: 0.5 } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool"
  pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "ip" type: "InnerProduct" bottom: "pool" top: "ip"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" loss_weight: 2 }
"""


@pytest.fixture
def file(tmp_path):
    def write(text=NET, name="net.prototxt"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture(params=["memory", "copies"])
def net(file, request, monkeypatch):
    """Arrays are the tensors' memory, as on the CPU, or copies of it, as on a GPU."""
    if request.param == "copies":
        monkeypatch.setattr(caffe.blob, "on_host", lambda tensor: False)
    caffe.set_random_seed(3)
    net = caffe.Net(file(), caffe.TRAIN)
    fill(net)
    return net


def fill(net, seed=0):
    rng = np.random.default_rng(seed)
    net.blobs["data"].data[...] = rng.standard_normal(net.blobs["data"].data.shape)
    net.blobs["label"].data[...] = rng.integers(3, size=4)


def test_what_it_is_made_of(net):
    assert net.inputs == ["data", "label"]
    assert net.outputs == ["loss", "prob"]
    names = ["data", "conv", "relu", "pool", "ip", "ip_ip_0_split", "prob", "loss"]
    assert list(net._layer_names) == list(net.layer_dict) == names
    assert list(net.blobs) == [
        *("data", "label", "conv", "pool", "ip", "ip_ip_0_split_0", "ip_ip_0_split_1", "prob", "loss")
    ]
    assert net.top_names["data"] == ["data", "label"]
    assert net.bottom_names["loss"] == ["ip_ip_0_split_1", "label"]
    assert net.blob_loss_weights["loss"] == 2
    assert [layer.type for layer in net.layers][:3] == ["Input", "Convolution", "ReLU"]
    assert {name: [b.data.shape for b in blobs] for name, blobs in net.params.items()} == {
        "conv": [(3, 2, 3, 3), (3,)],
        "ip": [(3, 12), (3,)],
    }
    assert net.layer_dict["conv"].blobs[0] is net.params["conv"][0]
    blob = net.blobs["data"]
    assert (blob.num, blob.channels, blob.height, blob.width, blob.count) == (4, 2, 5, 6, 240)
    assert net.blobs["label"].width == 1


def test_forward_by_keywords_and_its_arrays(net):
    data, label = net.blobs["data"].data.copy(), net.blobs["label"].data.copy()
    out = net.forward(blobs=["pool"], data=data + 1, label=label)
    assert set(out) == {"loss", "prob", "pool"}
    np.testing.assert_array_equal(net.blobs["data"].data, data + 1)
    np.testing.assert_allclose(out["prob"].sum(1), 1, rtol=1e-6)
    before = out["prob"].copy()
    net.forward(data=data, label=label)
    assert not np.array_equal(out["prob"], before)
    np.testing.assert_array_equal(out["prob"], net.blobs["prob"].data)


def test_wrong_keywords(net):
    with pytest.raises(ValueError, match=r"takes \['data', 'label'\] together, got \['data'\]"):
        net.forward(data=np.zeros((4, 2, 5, 6)))
    with pytest.raises(ValueError, match=r'"data" has a batch of \[4\], got an array \[3, 2, 5, 6\]'):
        net.forward(data=np.zeros((3, 2, 5, 6)), label=np.zeros(4))
    with pytest.raises(ValueError, match='no layer "konv": did you mean "conv"'):
        net.forward(start="konv")


def test_the_gradient_is_the_derivative(net):
    net.forward()
    net.backward()
    weight, gradient = net.params["ip"][0].data, net.params["ip"][0].diff.copy()
    step, losses = 1e-2, []
    for sign in (1, -1):
        weight[1, 2] += sign * step
        losses.append(float(net.forward()["loss"]))
        weight[1, 2] -= sign * step
    assert gradient[1, 2] == pytest.approx(2 * (losses[0] - losses[1]) / (2 * step), rel=1e-3)
    assert not net.blobs["data"].diff.any()  # nothing below learns


def test_diffs_of_parameters_add_up(net):
    blob = net.params["conv"][0]
    net.forward()
    held = blob.diff
    net.backward()
    once = blob.diff.copy()
    assert once.any()
    net.backward()
    np.testing.assert_allclose(blob.diff, 2 * once, rtol=1e-6)
    assert np.shares_memory(blob.diff, held)
    net.clear_param_diffs()
    assert not blob.diff.any()
    blob.diff[...] = 1
    net.backward()
    np.testing.assert_allclose(blob.diff, 1 + once, rtol=1e-6)


def test_backward_from_a_diff_of_ones_own(net):
    """A class's gradient, as for saliency maps: from the output's diff, in part of the net."""
    net.forward()
    net.blobs["ip"].diff[...] = 0
    net.blobs["ip"].diff[:, 1] = 1
    out = net.backward(start="ip", end="pool")
    assert list(out) == ["conv"]
    pooled = net.blobs["pool"].diff.reshape(4, -1)
    np.testing.assert_allclose(pooled, np.tile(net.params["ip"][0].data[1], (4, 1)), rtol=1e-6)
    assert out["conv"].sum() == pytest.approx(pooled.sum(), rel=1e-5)


def test_diffs_by_keywords(file):
    """Without a loss: the outputs' diffs are given, the inputs' asked for."""
    silent = 'layer { name: "silent" type: "Silence" bottom: "label" }\n'
    text = NET.replace('layer { name: "loss"', silent + 'layer { include { stage: "no" } name: "loss"')
    text = "force_backward: true\n" + text
    net = caffe.Net(file(text), caffe.TEST)
    fill(net)
    prob = net.forward()["prob"].copy()
    out = net.backward(diffs=["ip"], prob=np.eye(4, 3))
    assert set(out) == {"data", "label", "ip"}
    wanted = prob * (np.eye(4, 3) - (prob * np.eye(4, 3)).sum(1, keepdims=True))
    np.testing.assert_allclose(out["ip"], wanted, atol=1e-6)
    assert out["data"].shape == (4, 2, 5, 6)
    with pytest.raises(ValueError, match="together"):
        net.backward(pool=np.zeros(3))


def test_surgery(file, net):
    """Parameters of an inner product become those of a convolution, as in Caffe's example."""
    text = (
        NET.split('layer { name: "ip"')[0]
        + """
layer { name: "ip-conv" type: "Convolution" bottom: "pool" top: "map"
  convolution_param { num_output: 3 kernel_size: 2 } }
layer { name: "silent" type: "Silence" bottom: "label" }
"""
    )
    other = caffe.Net(file(text, "full.prototxt"), caffe.TEST)
    for name in ("conv",):
        for i in range(2):
            other.params[name][i].data[...] = net.params[name][i].data
    other.params["ip-conv"][0].data.flat = net.params["ip"][0].data.flat
    other.params["ip-conv"][1].data[...] = net.params["ip"][1].data
    other.blobs["data"].data[...] = net.blobs["data"].data
    net.forward()
    found = other.forward()["map"]
    np.testing.assert_allclose(found[:, :, 0, 0], net.blobs["ip"].data, rtol=1e-5, atol=1e-6)
    other.blobs["data"].reshape(1, 2, 5, 10)
    other.reshape()
    assert other.blobs["map"].data.shape == (1, 3, 1, 3)
    assert other.forward()["map"].shape == (1, 3, 1, 3)


def test_feature_extraction_over_a_data_set(net):
    images = np.random.default_rng(1).standard_normal((10, 2, 5, 6)).astype(np.float32)
    labels = np.arange(10) % 3
    out = net.forward_all(blobs=["pool"], data=images, label=labels)
    assert out["pool"].shape == (10, 3, 2, 2)
    net.forward(data=images[4:8], label=labels[4:8])
    np.testing.assert_allclose(out["pool"][4:8], net.blobs["pool"].data, rtol=1e-6)


def test_forward_backward_all(file):
    text = "force_backward: true\n" + NET.split('layer { name: "prob"')[0]
    text += 'layer { name: "silent" type: "Silence" bottom: "label" }'
    net = caffe.Net(file(text), caffe.TRAIN)
    images = np.random.default_rng(1).standard_normal((6, 2, 5, 6)).astype(np.float32)
    given = np.ones((6, 3), np.float32)
    outs, diffs = net.forward_backward_all(diffs=["pool"], data=images, label=np.zeros(6), ip=given)
    assert outs["ip"].shape == (6, 3)
    assert diffs["data"].shape == (6, 2, 5, 6)
    np.testing.assert_allclose(
        diffs["pool"].reshape(6, -1)[5], net.params["ip"][0].data.sum(0), rtol=1e-5
    )


def test_callbacks(net):
    seen = []
    net.before_forward(lambda i: seen.append(("before", i)))
    net.after_forward(lambda i: seen.append(("after", i)))
    net.before_backward(lambda i: seen.append(("back", i)))
    net.after_backward(lambda i: seen.append(("done", i)))
    net.forward(start="relu", end="pool")
    net.backward(start="pool", end="relu")
    assert seen == [
        *(("before", 2), ("after", 2), ("before", 3), ("after", 3)),
        *(("back", 3), ("done", 3), ("back", 2), ("done", 2)),
    ]


@pytest.mark.parametrize("how", ["save", "save_hdf5"])
def test_weights_in_files(file, net, tmp_path, how):
    path = str(tmp_path / "weights")
    getattr(net, how)(path)
    other = caffe.Net(file(), path, caffe.TEST) if how == "save" else caffe.Net(file(), caffe.TEST)
    if how == "save_hdf5":
        other.load_hdf5(path)
    for name, blobs in net.params.items():
        for mine, theirs in zip(blobs, other.params[name], strict=True):
            np.testing.assert_array_equal(mine.data, theirs.data)
    third = caffe.Net(file(), caffe.TEST, weights=path)
    np.testing.assert_array_equal(third.params["ip"][0].data, net.params["ip"][0].data)
    third.params["ip"][0].data[...] = 0
    third.copy_from(path)
    np.testing.assert_array_equal(third.params["ip"][0].data, net.params["ip"][0].data)


def test_share_with(file, net):
    other = caffe.Net(file(), caffe.TEST)
    other.share_with(net)
    net.params["conv"][0].data[...] = 7
    assert (other.params["conv"][0].data == 7).all()
    fill(other)
    net.params["ip"][1].data[...] = [1, 2, 3]  # both see it, whoever runs first
    np.testing.assert_array_equal(other.forward()["prob"], net.forward()["prob"])


def test_arrays_outlive_the_net(net):
    blobs, params = net.blobs, net.params
    del net
    assert np.isfinite(blobs["data"].data).all()
    assert params["conv"][0].data.shape == (3, 2, 3, 3)


def test_a_blob_in_place_that_somebody_holds(net):
    """Its array is always the blob's current one, and gradients are as without anybody holding it."""
    net.forward()
    net.backward()
    wanted = net.params["conv"][0].diff.copy()
    held = net.blobs["conv"].data, net.blobs["conv"].diff
    net.clear_param_diffs()
    net.forward()
    net.backward()
    np.testing.assert_array_equal(net.params["conv"][0].diff, wanted)
    assert net.blobs["conv"].data is held[0]
    assert (held[0] >= 0).all()
    assert held[1].any()


def test_the_memory_of_different_blobs_is_different(file):
    """An identity (dropout in phase TEST) gives a copy; a split and a reshape are the same memory."""
    net = caffe.Net(
        file("""
        force_backward: true
        layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }
        layer { name: "d" type: "Dropout" bottom: "x" top: "d" }
        layer { name: "s" type: "Eltwise" bottom: "d" bottom: "d" top: "s" }
        layer { name: "f" type: "Flatten" bottom: "s" top: "f" }
        """),
        caffe.TEST,
    )
    net.blobs["x"].data[...] = 1
    net.forward()
    net.blobs["d"].data[...] = 5
    assert (net.blobs["x"].data == 1).all()
    assert (net.blobs["d_d_0_split_1"].data == 5).all()
    net.blobs["f"].data[...] = 8
    assert (net.blobs["s"].data == 8).all()
    net.blobs["f"].diff[...] = 1
    net.backward()
    first, second = (net.blobs[f"d_d_0_split_{i}"].diff for i in range(2))
    first[...] = 9
    assert (second == 1).all()
    assert (net.blobs["x"].diff == 2).all()


def test_levels_stages_and_the_old_constructor(file, net, tmp_path):
    extra = 'layer { name: "extra" type: "TanH" bottom: "prob" top: "extra" '
    text = NET + extra + 'include { stage: "s" min_level: 1 } }'
    assert "extra" in caffe.Net(file(text), caffe.TEST, level=1, stages=["s"]).blobs
    assert "extra" not in caffe.Net(file(text), caffe.TEST, 0, ["s"]).blobs
    with pytest.raises(TypeError, match="expected caffe.TRAIN or caffe.TEST, got 5"):
        caffe.Net(file(text), 5)
    with pytest.raises(SpecError, match="cannot read"):
        caffe.Net(str(tmp_path / "none.prototxt"), caffe.TEST)


def test_a_net_has_a_phase(file, net, tmp_path):
    """As in Caffe; TRAIN by default would drop out what a forgotten TEST should give."""
    weights = tmp_path / "w.caffemodel"
    net.save(weights)
    for arguments, options in (
        ((), {}),
        ((str(weights),), {}),
        ((weights,), {}),
        ((), {"weights": weights}),
        ((None,), {}),
        ((True,), {}),
    ):
        with pytest.raises(TypeError, match="expected caffe.TRAIN or caffe.TEST, got"):
            caffe.Net(file(NET), *arguments, **options)
    for made in (
        caffe.Net(file(NET), str(weights), caffe.TEST),
        caffe.Net(file(NET), 0, weights=weights),
    ):
        assert made.blobs


def test_a_thread_has_a_mode_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(mode, "_state", mode._State())
    seen = {}

    def run(name, device=None):
        if device is not None:
            caffe.set_device(device)
            caffe.set_mode_gpu()
        seen[name] = str(mode.device())

    run("main", 1)
    threads = [threading.Thread(target=run, args=args) for args in (("other", 3), ("new",))]
    for thread in threads:
        thread.start()
        thread.join()
    seen["main again"] = str(mode.device())
    assert seen == {"main": "cuda:1", "other": "cuda:3", "new": "cpu", "main again": "cuda:1"}


def test_memory_data(file):
    net = caffe.Net(
        file("""
        layer { name: "m" type: "MemoryData" top: "data" top: "label"
          memory_data_param { batch_size: 2 channels: 1 height: 3 width: 4 } }
        """),
        caffe.TEST,
    )
    data = np.arange(48, dtype=np.float32).reshape(4, 1, 3, 4)
    net.set_input_arrays(data, np.arange(4, dtype=np.float32))
    np.testing.assert_array_equal(net.forward()["data"], data[:2])
    np.testing.assert_array_equal(net.forward()["label"].ravel(), [2, 3])


def test_set_input_arrays_needs_memory_data(net):
    with pytest.raises(RuntimeError, match="MemoryData"):
        net.set_input_arrays(np.zeros((4, 2, 5, 6)), np.zeros(4))


PYRAMID = '''
import caffe
import numpy as np


class EuclideanLossLayer(caffe.Layer):
    """Caffe's example of a loss in Python."""

    def setup(self, bottom, top):
        if len(bottom) != 2:
            raise Exception("two inputs")
        self.scale = float(self.param_str or 1)

    def reshape(self, bottom, top):
        self.diff = np.zeros_like(bottom[0].data, dtype=np.float32)
        top[0].reshape(1)

    def forward(self, bottom, top):
        self.diff[...] = bottom[0].data - bottom[1].data
        top[0].data[...] = self.scale * np.sum(self.diff**2) / bottom[0].num / 2.0

    def backward(self, top, propagate_down, bottom):
        for i in range(2):
            if propagate_down[i]:
                sign = 1 if i == 0 else -1
                bottom[i].diff[...] = self.scale * sign * self.diff / bottom[i].num * top[0].diff[0]


class Gain(caffe.Layer):
    def setup(self, bottom, top):
        self.blobs.add_blob(3)
        self.blobs[0].data[...] = 2

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].data.shape)

    def forward(self, bottom, top):
        top[0].data[...] = bottom[0].data * self.blobs[0].data

    def backward(self, top, propagate_down, bottom):
        self.blobs[0].diff[...] += (top[0].diff * bottom[0].data).sum(0)
        if propagate_down[0]:
            bottom[0].diff[...] = top[0].diff * self.blobs[0].data
'''

PYTHON = """
layer { name: "x" type: "Input" top: "x" top: "t" input_param { shape { dim: 4 dim: 3 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "gain" type: "Python" bottom: "ip" top: "gain"
  python_param { module: "my_layers" layer: "Gain" } }
layer { name: "loss" type: "LOSS" bottom: "gain" bottom: "t" top: "loss" loss_weight: 1 }
"""


def test_python_layers_of_a_module_that_imports_caffe(file, tmp_path, monkeypatch):
    """A loss and a layer with a parameter against the native loss; both see the net's own blobs."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name == "caffe" or name.startswith("caffe.")]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "my_layers.py").write_text(PYRAMID, encoding="utf-8")
    mine = caffe.Net(
        file(
            PYTHON.replace(
                'type: "LOSS"',
                """type: "Python"
            python_param { module: "my_layers" layer: "EuclideanLossLayer" param_str: "1" }""",
            )
        ),
        caffe.TRAIN,
    )
    theirs = caffe.Net(file(PYTHON.replace("LOSS", "EuclideanLoss"), "native.prototxt"), caffe.TRAIN)
    theirs.share_with(mine)
    for net in (mine, theirs):
        rng = np.random.default_rng(0)
        for name in ("x", "t"):
            net.blobs[name].data[...] = rng.standard_normal((4, 3))
        net.forward()
        net.backward()
    assert mine.layer_dict["gain"].blobs[0] is mine.params["gain"][0]
    assert mine.layer_dict["gain"].type == "Python"
    assert float(mine.blobs["loss"].data[0]) == pytest.approx(float(theirs.blobs["loss"].data))
    for layer in ("ip", "gain"):
        np.testing.assert_allclose(mine.params[layer][0].diff, theirs.params[layer][0].diff, rtol=1e-5)
    for net in [name for name in sys.modules if name == "caffe" or name.startswith("caffe.")]:
        monkeypatch.delitem(sys.modules, net)
    monkeypatch.delitem(sys.modules, "my_layers")


def test_python_layers_can_be_refused(file):
    with pytest.raises(SpecError, match="would run the Python module"):
        caffe.Net(file(PYTHON.replace("LOSS", "EuclideanLoss")), caffe.TRAIN, allow_python_layers=False)
