"""MatConvNet's files, made here as MATLAB would write them: axes, names, both kinds of nets."""

import numpy as np
import pytest
import torch
from cortado.nets.convert_matconvnet import read
from cortado.nets.net import Net
from cortado.nets.weights import load
from cortado.prototxt_like import SpecError, loads
from scipy.io import savemat
from scipy.sparse import csc_matrix

SPEC = """
layer:
- {name: x, type: Input, top: x, input_param: {shape: {dim: [1, 3, 6, 5]}}}
- name: conv
  type: Convolution
  bottom: x
  top: conv
  convolution_param: {num_output: 4, kernel_h: 2, kernel_w: 3, stride: 1}
- {name: relu, type: ReLU, bottom: conv, top: conv}
- {name: fc6, type: InnerProduct, bottom: conv, top: fc6, inner_product_param: {num_output: 2}}
- {name: fc7, type: InnerProduct, bottom: fc6, top: fc7, inner_product_param: {num_output: 1}}
"""
RNG = np.random.default_rng(0)
WEIGHTS = {
    "conv": (RNG.normal(size=(2, 3, 3, 4)), RNG.normal(size=(1, 4))),
    "fc6": (RNG.normal(size=(5, 3, 4, 2)), RNG.normal(size=(2, 1))),
    "fc7": (RNG.normal(size=(1, 1, 2)), RNG.normal(size=(1, 1))),  # MATLAB has no last axis of 1
}
WEIGHTS = {name: [np.float32(x) for x in values] for name, values in WEIGHTS.items()}


def struct(**fields):
    return np.array([tuple(fields.values())], [(name, object) for name in fields])


def cells(*items):
    array = np.empty((1, len(items)), object)
    array[0] = items
    return array


def simplenn(old=False):
    layers = []
    for name, (filters, biases) in WEIGHTS.items():
        weights = {"filters": filters, "biases": biases} if old else {"weights": cells(filters, biases)}
        layers.append(struct(name=name, type="conv", **weights, pad=0))
        layers.append(struct(name=f"relu_{name}", type="relu"))
    return {"layers": cells(*layers), "meta": struct(classes=np.zeros(3))}


def dagnn():
    layers, params = [], []
    for name, values in WEIGHTS.items():
        layers.append((name, "dagnn.Conv", cells(f"{name}f", f"{name}b"), cells("x")))
        layers.append((f"{name}x", "dagnn.ReLU", np.zeros((0, 0)), cells("y")))
        params += [(f"{name}{x}", value) for x, value in zip("fb", values, strict=True)]
    return {
        "layers": np.array(
            [layers], [(field, object) for field in ("name", "type", "params", "inputs")]
        ),
        "params": np.array([params], [("name", object), ("value", object)]),
        "vars": struct(name="x"),
    }


def oracle(x):
    """Caffe's sums over MATLAB's axes, and the fully connected layers as convolutions."""
    filters, biases = WEIGHTS["conv"]
    conv = np.zeros((4, 5, 3))
    for i, j in np.ndindex(5, 3):
        conv[:, i, j] = np.einsum("chw,hwco->o", x[:, i : i + 2, j : j + 3], filters)
    conv = np.maximum(conv + biases.reshape(-1, 1, 1), 0)
    fc6 = np.einsum("chw,hwco->o", conv, WEIGHTS["fc6"][0]) + WEIGHTS["fc6"][1].reshape(-1)
    return fc6 @ WEIGHTS["fc7"][0].reshape(2) + WEIGHTS["fc7"][1].item()


@pytest.mark.parametrize(
    "content",
    [simplenn(), simplenn(old=True), {"net": simplenn()}, dagnn(), {"net": dagnn()}],
    ids=["simplenn", "an old simplenn", "net simplenn", "DagNN", "net DagNN"],
)
def test_the_net_computes_the_same(tmp_path, content):
    savemat(tmp_path / "net.mat", content)
    net = Net(loads(SPEC), seed=0)
    report = load(net, tmp_path / "net.mat")
    assert (report.filled, report.missing, report.unused) == (("conv", "fc6", "fc7"), (), ())
    x = np.float32(RNG.normal(size=(3, 6, 5)))
    out = net(x=torch.from_numpy(x)[None])["fc7"]
    np.testing.assert_allclose(out.item(), oracle(x), rtol=1e-5)


def test_a_fully_connected_layer_may_stay_a_convolution(tmp_path):
    spec = SPEC.replace(
        "{name: fc6, type: InnerProduct, bottom: conv, top: fc6, inner_product_param: {num_output: 2}}",
        "{name: fc6, type: Convolution, bottom: conv, top: fc6, "
        "convolution_param: {num_output: 2, kernel_h: 5, kernel_w: 3}}",
    )
    assert spec != SPEC
    savemat(tmp_path / "net.mat", dagnn())
    x = np.float32(RNG.normal(size=(3, 6, 5)))
    out = Net(loads(spec), weights=tmp_path / "net.mat")(x=torch.from_numpy(x)[None])["fc7"]
    np.testing.assert_allclose(out.item(), oracle(x), rtol=1e-5)


def test_a_transposed_convolution(tmp_path):
    """Its bank is height, width, output, input: Caffe's Deconvolution is input, output, ..."""
    spec = """
    layer:
    - {name: x, type: Input, top: x, input_param: {shape: {dim: [1, 3, 2, 2]}}}
    - name: up
      type: Deconvolution
      bottom: x
      top: up
      convolution_param: {num_output: 2, kernel_size: 4}
    """
    bank = np.float32(RNG.normal(size=(4, 4, 2, 3)))
    layer = struct(name="up", type="convt", weights=cells(bank, np.zeros(2, np.float32)))
    savemat(tmp_path / "net.mat", {"layers": cells(layer)})
    net = Net(loads(spec), weights=tmp_path / "net.mat")
    np.testing.assert_array_equal(net.params["up"][0].detach(), bank.transpose(3, 2, 0, 1))


def test_what_does_not_fit_is_located(tmp_path):
    savemat(tmp_path / "net.mat", dagnn())
    with pytest.raises(SpecError) as caught:
        load(
            Net(loads(SPEC.replace("num_output: 2", "num_output: 7"), name="net.yaml")),
            tmp_path / "net.mat",
        )
    assert [f"{error.span.place}: {error.message}" for error in caught.value.errors] == [
        'net.yaml:10: layer "fc6": weight is [7, 60], in net.mat [2, 4, 5, 3]',
        'net.yaml:10: layer "fc6": bias is [7], in net.mat [2]',
        'net.yaml:11: layer "fc7": weight is [1, 7], in net.mat [1, 2, 1, 1]',
    ]


def test_a_batch_normalization_is_not_taken_for_caffes(tmp_path):
    """MatConvNet's has gamma, beta, and means beside deviations; Caffe's three blobs are others."""
    spec = """
    layer:
    - {name: x, type: Input, top: x, input_param: {shape: {dim: [1, 3, 2, 2]}}}
    - {name: bn, type: BatchNorm, bottom: x, top: bn}
    """
    values = cells(np.ones((3, 1)), np.ones((3, 1)), np.ones((3, 2)))
    savemat(tmp_path / "net.mat", {"layers": cells(struct(name="bn", type="bnorm", weights=values))})
    with pytest.raises(SpecError, match=r'layer "bn": .* is \[1\], in net.mat \[3, 2\]'):
        load(Net(loads(spec)), tmp_path / "net.mat")


def layer(**fields):
    return {"layers": cells(struct(name="conv", type="conv", **fields))}


def dagnn_of(params, layers):
    return {"params": params, "layers": struct(name="conv", type="dagnn.Conv", params=layers)}


PARAM = struct(name="f", value=np.ones((3, 3)))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"x": 1}, "expected a field \"layers\", got ['x']"),
        ({"layers": 1}, "expected a struct, got int64"),
        ({"net": struct(x=1)}, "expected a field \"layers\", got ['x']"),
        ({"net": "text"}, "expected a struct, got str_"),
        ({"net": np.zeros((0, 0))}, 'expected a field "layers", got []'),
        ({"net": csc_matrix(np.eye(2))}, "expected a struct, got csc_matrix"),
        ({"layers": csc_matrix(np.eye(2))}, 'expected an array as "layers", got csc_matrix'),
        ({"layers": cells("a")}, "expected a struct, got str_"),
        ({"layers": cells(np.zeros((0, 1)))}, "expected a struct, got [0, 1] of float64"),
        ({"layers": cells(struct(name="relu", type="relu"))}, "no layer has parameters"),
        (layer(weights=cells("text")), "expected parameters of up to four axes, got [1] of str128"),
        (layer(weights=cells(1j)), "expected parameters of up to four axes, got [1, 1] of complex128"),
        (
            layer(weights=cells(np.ones((2, 2, 2, 2, 2)))),
            "expected parameters of up to four axes, got [2, 2, 2, 2, 2] of float64",
        ),
        (layer(weights=np.ones(3)), "expected parameters of up to four axes, got float64"),
        (layer(weights=struct(x=1)), "expected parameters of up to four axes, got void"),
        (layer(filters=csc_matrix(np.eye(2))), 'expected an array as "filters", got csc_matrix'),
        (
            {"layers": cells(struct(name=np.array(["a", "b"]), type="conv"))},
            'expected a string as "name", got [2] of str32',
        ),
        (
            {"layers": cells(struct(name=7, type="conv"))},
            'expected a string as "name", got [1, 1] of int64',
        ),
        (dagnn_of(1, cells("f")), "expected a struct, got int64"),
        (dagnn_of(struct(name="f"), cells("f")), "expected a field \"value\", got ['name']"),
        (dagnn_of(PARAM, cells("f", "g")), 'expected parameters called "g"'),
        (dagnn_of(PARAM, np.ones(2)), 'expected a string as "params", got float64'),
        ({"params": PARAM, "layers": struct(name="a")}, "expected a field \"params\", got ['name']"),
    ],
)
def test_other_mat_files(tmp_path, content, why):
    savemat(tmp_path / "net.mat", content)
    with pytest.raises(ValueError) as caught:
        load(Net(loads(SPEC)), tmp_path / "net.mat")
    assert str(caught.value) == f"{tmp_path / 'net.mat'}: not a net of MatConvNet's: {why}"


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("content", [simplenn(), simplenn(old=True), dagnn()])
def test_damaged_files(tmp_path, content, compressed):
    path = tmp_path / "net.mat"
    savemat(path, content, do_compression=compressed)
    data = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    refusals = []
    for _ in range(100):
        damaged = data.copy()
        damaged[rng.integers(len(data), size=rng.integers(1, 9))] ^= np.uint8(1 << rng.integers(8))
        end = len(data) if rng.random() < 0.9 else rng.integers(len(data))
        path.write_bytes(damaged[:end].tobytes())
        try:
            read(path, {})
        except ValueError as error:
            refusals.append(str(error))
    assert len(refusals) > 10
    assert all(text.startswith(f"{path}: ") for text in refusals)


def test_the_hdf5_kind_is_named(tmp_path):
    (tmp_path / "net.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(512))
    with pytest.raises(ValueError, match="version 7.3 is not read: save it with -v7"):
        load(Net(loads(SPEC)), tmp_path / "net.mat")
