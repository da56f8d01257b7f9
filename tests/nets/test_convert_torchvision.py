"""torchvision's state_dicts, made here with its published architectures' keys and shapes."""

import numpy as np
import pytest
import torch
from cortado.nets.convert_torchvision import convert
from cortado.nets.net import Net
from cortado.nets.weights import load
from cortado.prototxt_like import loads
from torch import nn
from torch.nn import functional


class Fake(dict):
    """A state_dict in which all tensors of a shape are one, as its numbers do not matter."""

    def conv(self, name, out, into, kernel, bias=False):
        self[f"{name}.weight"] = torch.zeros(()).expand(out, into, kernel, kernel)
        if bias:
            self[f"{name}.bias"] = torch.zeros(()).expand(out)

    def norm(self, name, size):
        for field in ("weight", "bias", "running_mean", "running_var"):
            self[f"{name}.{field}"] = torch.ones(()).expand(size)
        self[f"{name}.num_batches_tracked"] = torch.tensor(1)

    def linear(self, name, out, into):
        self[f"{name}.weight"] = torch.zeros(()).expand(out, into)
        self[f"{name}.bias"] = torch.zeros(()).expand(out)

    def basic(self, name, out, into, kernel):
        self.conv(f"{name}.conv", out, into, kernel)
        self.norm(f"{name}.bn", out)


def vgg16():
    state, into = Fake(), 3
    for i, out in {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256}.items():
        state.conv(f"features.{i}", out, into, 3, bias=True)
        into = out
    for i in (17, 19, 21, 24, 26, 28):
        state.conv(f"features.{i}", 512, into, 3, bias=True)
        into = 512
    state.linear("classifier.0", 4096, 25088)
    state.linear("classifier.3", 4096, 4096)
    state.linear("classifier.6", 1000, 4096)
    return state


def googlenet(aux=True):
    state = Fake()
    state.basic("conv1", 64, 3, 7)
    state.basic("conv2", 64, 64, 1)
    state.basic("conv3", 192, 64, 3)
    table = {  # in, 1x1, 3x3 reduce, 3x3, "5x5" reduce, "5x5", pool
        "3a": (192, 64, 96, 128, 16, 32, 32),
        "3b": (256, 128, 128, 192, 32, 96, 64),
        "4a": (480, 192, 96, 208, 16, 48, 64),
        "4b": (512, 160, 112, 224, 24, 64, 64),
        "4c": (512, 128, 128, 256, 24, 64, 64),
        "4d": (512, 112, 144, 288, 32, 64, 64),
        "4e": (528, 256, 160, 320, 32, 128, 128),
        "5a": (832, 256, 160, 320, 32, 128, 128),
        "5b": (832, 384, 192, 384, 48, 128, 128),
    }
    for block, (into, one, reduce3, three, reduce5, five, pool) in table.items():
        state.basic(f"inception{block}.branch1", one, into, 1)
        state.basic(f"inception{block}.branch2.0", reduce3, into, 1)
        state.basic(f"inception{block}.branch2.1", three, reduce3, 3)
        state.basic(f"inception{block}.branch3.0", reduce5, into, 1)
        state.basic(f"inception{block}.branch3.1", five, reduce5, 3)
        state.basic(f"inception{block}.branch4.1", pool, into, 1)
    for i, into in ((1, 512), (2, 528)) if aux else ():
        state.basic(f"aux{i}.conv", 128, into, 1)
        state.linear(f"aux{i}.fc1", 1024, 2048)
        state.linear(f"aux{i}.fc2", 1000, 1024)
    state.linear("fc", 1000, 1024)
    return state


def resnet(blocks):
    state, into = Fake(), 64
    state.conv("conv1", 64, 3, 7)
    state.norm("bn1", 64)
    for stage, (count, width) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True), start=1):
        for j in range(count):
            name = f"layer{stage}.{j}"
            for k, (out, of, kernel) in enumerate(
                ((width, into, 1), (width, width, 3), (4 * width, width, 1)), start=1
            ):
                state.conv(f"{name}.conv{k}", out, of, kernel)
                state.norm(f"{name}.bn{k}", out)
            if j == 0:
                state.conv(f"{name}.downsample.0", 4 * width, into, 1)
                state.norm(f"{name}.downsample.1", 4 * width)
            into = 4 * width
    state.linear("fc", 1000, 2048)
    return state


def shapes(layers):
    return {layer.layer: [tuple(blob.shape) for blob in layer.blobs.values()] for layer in layers}


def test_vgg16():
    found = shapes(convert(vgg16(), {}))
    assert list(found) == [
        *(f"conv{block}_{i}" for block, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)),
        *("fc6", "fc7", "fc8"),
    ]
    assert found["conv1_1"] == [(64, 3, 3, 3), (64,)]
    assert found["conv3_1"] == [(256, 128, 3, 3), (256,)]
    assert found["conv5_3"] == [(512, 512, 3, 3), (512,)]
    assert found["fc6"] == [(4096, 25088), (4096,)]


@pytest.mark.parametrize(("blocks", "layers"), [((3, 4, 6, 3), 50), ((3, 4, 23, 3), 101)])
def test_resnet(blocks, layers):
    found = shapes(convert(resnet(blocks), {}))
    convolutions = [name for name in found if name.startswith(("res", "conv1"))]
    assert len(convolutions) == layers - 1 + 4  # with the four of the shortcuts, without fc1000
    assert found["bn_conv1"] == [(64,), (64,), (1,)]
    assert found["scale_conv1"] == [(64,), (64,)]
    assert found["res2a_branch1"] == [(256, 64, 1, 1)]
    assert found["scale5c_branch2c"] == [(2048,), (2048,)]
    third, fourth = ("res3d", "res4f") if layers == 50 else ("res3b3", "res4b22")
    assert found[f"{third}_branch2b"] == [(128, 128, 3, 3)]
    assert found[f"{fourth}_branch2c"] == [(1024, 256, 1, 1)]
    assert found["fc1000"] == [(1000, 2048), (1000,)]
    names = {name[3:] for name in convolutions if name.startswith("res")}
    assert names == {name[2:] for name in found if name.startswith("bn") and name != "bn_conv1"}
    assert names == {name[5:] for name in found if name.startswith("scale") and name != "scale_conv1"}


def test_googlenet():
    spec = loads(INCEPTION)
    wanted = {name: [tuple(b.shape) for b in blobs] for name, blobs in Net(spec).params.items()}
    found = shapes(convert(googlenet(), wanted))
    assert len(found) == 3 + 9 * 6 + 2 * 3 + 1
    assert found["inception_3a/5x5"] == wanted["inception_3a/5x5"] == [(32, 16, 5, 5), (32,)]
    assert found["inception_3b/5x5"] == [(96, 32, 3, 3), (96,)]  # no net asks for more
    assert found["conv1/7x7_s2"] == [(64, 3, 7, 7), (64,)]
    assert found["loss1/fc"] == [(1024, 2048), (1024,)]
    assert found["loss3/classifier"] == [(1000, 1024), (1000,)]
    assert "loss1/conv" not in shapes(convert(googlenet(aux=False), wanted))


INCEPTION = """
layer:
- {name: x, type: Input, top: x, input_param: {shape: {dim: [2, 16, 6, 7]}}}
- name: inception_3a/5x5
  type: Convolution
  bottom: x
  top: y
  convolution_param: {num_output: 32, kernel_size: 5, pad: 2}
"""


def fill(state, seed=0):
    rng = np.random.default_rng(seed)
    for name, tensor in state.items():
        if tensor.is_floating_point():
            values = torch.from_numpy(np.float32(rng.uniform(0.5, 1.5, tensor.shape)))
            state[name] = values - 1 if name.endswith(("conv.weight", ".bias")) else values
    return state


def test_googlenets_folded_convolution_computes_the_same(tmp_path):
    """A 3x3 convolution with batch normalization is the 5x5 convolution with a bias."""
    state = googlenet(aux=False)
    name = "inception3a.branch3.1"
    for key, values in fill({k: v for k, v in state.items() if k.startswith(name)}).items():
        state[key] = values
    torch.save({key: tensor.clone() for key, tensor in state.items()}, tmp_path / "googlenet.pth")
    net = Net(loads(INCEPTION), weights=tmp_path / "googlenet.pth")
    assert net.report.missing == ()
    assert "conv1/7x7_s2" in net.report.unused
    x = torch.from_numpy(np.float32(np.random.default_rng(1).normal(size=(2, 16, 6, 7))))
    y = functional.conv2d(x, state[f"{name}.conv.weight"], padding=1)
    mean, variance, gamma, beta = (
        state[f"{name}.bn.{field}"] for field in ("running_mean", "running_var", "weight", "bias")
    )
    wanted = functional.batch_norm(y, mean, variance, gamma, beta, eps=1e-3)
    torch.testing.assert_close(net(x=x)["y"], wanted, rtol=1e-5, atol=1e-5)


STEM = """
layer:
- {name: x, type: Input, top: x, input_param: {shape: {dim: [2, 3, 9, 9]}}}
- name: conv1
  type: Convolution
  bottom: x
  top: conv1
  convolution_param: {num_output: 64, kernel_size: 7, stride: 2, pad: 3, bias_term: BIAS}
- {name: bn_conv1, type: BatchNorm, bottom: conv1, top: conv1}
- {name: scale_conv1, type: Scale, bottom: conv1, top: conv1, scale_param: {bias_term: true}}
"""


@pytest.mark.parametrize("bias", ["true", "false"])
def test_resnets_stem_computes_the_same(tmp_path, bias):
    """He's ResNet-50 has a bias there, which torchvision's does not."""
    state = resnet((3, 4, 6, 3))
    stem = fill({key: state[key] for key in state if key.startswith(("conv1", "bn1"))})
    state.update(stem)
    torch.save(dict(state), tmp_path / "resnet50.pth")
    net = Net(loads(STEM.replace("BIAS", bias)), seed=0)
    report = load(net, tmp_path / "resnet50.pth")
    assert report.missing == ()
    theirs = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)).eval()
    theirs.load_state_dict(
        {key.replace("conv1.", "0.").replace("bn1.", "1."): value for key, value in stem.items()}
    )
    x = torch.from_numpy(np.float32(np.random.default_rng(1).normal(size=(2, 3, 9, 9))))
    torch.testing.assert_close(net(x=x)["conv1"], theirs(x), rtol=1e-5, atol=1e-5)


def test_other_nets_are_not_taken_for_one_of_these():
    assert convert({"layers.conv1.weight": torch.zeros(1)}, {}) is None
    short = resnet((3, 4, 6, 3))
    del short["layer4.2.bn3.weight"], short["layer4.2.bn3.bias"]
    for field in ("running_mean", "running_var", "num_batches_tracked"):
        del short[f"layer4.2.bn3.{field}"]
    assert convert(short, {}) is None
    assert convert(resnet((3, 4, 6, 3)) | {"layer4.2.se.weight": torch.zeros(1)}, {}) is None
    assert convert(resnet((2, 2, 2, 2)), {}) is None


def test_a_trunk_without_its_head():
    state = {key: value for key, value in vgg16().items() if key.startswith("features")}
    assert [layer.layer for layer in convert(state, {})][-1] == "conv5_3"
