"""Published nets with their weights: held against OpenCV's importer, and UCN's start from GoogLeNet."""

import cv2
import numpy as np
import pytest
import torch
from cortado.nets.net import Net
from cortado.nets.weights import save
from cortado.prototxt_like.wire import read_net
from shared import ROOT, SHARED, needs_shared
from skimage import data

pytestmark = needs_shared
DATA = SHARED / "data" if SHARED else None
MEAN = (104, 117, 123)  # of blue, green and red

# ImageNet's classes that are right, or what stands in the picture, too: the rocket's masts are poles.
ACCEPTED = {
    "chelsea": {281: "tabby", 282: "tiger cat", 285: "Egyptian cat"},
    "coffee": {504: "coffee mug", 967: "espresso", 968: "cup"},
    "rocket": {657: "missile", 733: "pole", 744: "projectile"},
}


@pytest.fixture(autouse=True)
def one_thread():
    """OpenCV on one thread, as torch is in the tests."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(before)


def images(size):
    """The three pictures as Caffe's nets take them: the middle of 256 x 256, BGR, mean subtracted."""
    first = (256 - size) // 2
    middle = slice(first, first + size)
    found = []
    for name in ACCEPTED:
        picture = cv2.resize(getattr(data, name)(), (256, 256), interpolation=cv2.INTER_AREA)
        found.append(np.float32(picture[middle, middle, ::-1]) - np.float32(MEAN))
    return np.ascontiguousarray(np.stack(found).transpose(0, 3, 1, 2))


def ours(net, x):
    """All outputs of a net with one input."""
    with torch.no_grad():
        return {name: blob.numpy() for name, blob in net({net.inputs[0]: torch.from_numpy(x)}).items()}


def opencvs(spec, weights, x, outputs):
    net = cv2.dnn.readNetFromCaffe(str(spec), str(weights))
    net.setInput(x)
    return dict(zip(outputs, net.forward(list(outputs)), strict=True))


def check(spec, weights, x, tolerance=1e-4):
    """Every output of the net is OpenCV's; gives ours."""
    net = Net(spec, weights=weights)
    assert net.report.missing == ()
    found = ours(net, x)
    wanted = opencvs(spec, weights, x, found)
    for name, blob in found.items():
        np.testing.assert_allclose(
            blob.reshape(wanted[name].shape), wanted[name], atol=tolerance, rtol=0
        )
    return found


@pytest.mark.parametrize(("name", "size"), [("bvlc_googlenet", 224), ("squeezenet_v1.1", 227)])
def test_imagenet(name, size):
    weights = DATA / "weights"
    found = check(weights / f"{name}_deploy.prototxt", weights / f"{name}.caffemodel", images(size))
    probabilities = found["prob"].reshape(3, 1000)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    for best, accepted in zip(probabilities.argmax(1), ACCEPTED.values(), strict=True):
        assert best in accepted


@pytest.mark.parametrize(
    ("net", "size", "unused"),
    [("det1", (26, 33), ()), ("det2", (24, 24), ("conv5-3",)), ("det3", (48, 48), ())],
)
def test_mtcnn(net, size, unused):
    """The caffemodels hold the training nets: what a deploy net has is taken out by name."""
    folder = DATA / "caffemodels/mtcnn"
    spec, weights = folder / f"{net}.prototxt", folder / f"{net}.caffemodel"
    assert Net(spec, weights=weights).report.unused == unused
    x = np.random.default_rng(0).uniform(-1, 1, (2, 3, *size)).astype(np.float32)
    found = check(spec, weights, x)
    assert found["prob1"].min() >= 0
    assert np.ptp(found["prob1"]) > 1e-4


def test_tfeat():
    folder = DATA / "caffemodels/tfeat"
    x = np.random.default_rng(0).normal(size=(4, 1, 32, 32)).astype(np.float32)
    (found,) = check(folder / "TFeatLiberty.prototxt", folder / "TFeatLiberty.caffemodel", x).values()
    assert (found.shape, found.std() > 0.1) == ((4, 128), True)


LENET = """
name: "LeNet"
input: "data" input_dim: 1 input_dim: 1 input_dim: 28 input_dim: 28
layers { name: "conv1" type: CONVOLUTION bottom: "data" top: "conv1"
  convolution_param { num_output: 20 kernel_size: 5 } }
layers { name: "pool1" type: POOLING bottom: "conv1" top: "pool1"
  pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layers { name: "conv2" type: CONVOLUTION bottom: "pool1" top: "conv2"
  convolution_param { num_output: 50 kernel_size: 5 } }
layers { name: "pool2" type: POOLING bottom: "conv2" top: "pool2"
  pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layers { name: "ip1" type: INNER_PRODUCT bottom: "pool2" top: "ip1"
  inner_product_param { num_output: 500 } }
layers { name: "relu1" type: RELU bottom: "ip1" top: "ip1" }
layers { name: "ip2" type: INNER_PRODUCT bottom: "ip1" top: "ip2"
  inner_product_param { num_output: 10 } }
layers { name: "prob" type: SOFTMAX bottom: "ip2" top: "prob" }
"""


def test_lenets_v1_file(tmp_path):
    """Four axes for every blob, layer types by number; digits drawn here are read right."""
    (tmp_path / "lenet.prototxt").write_text(LENET)
    digits = np.zeros((9, 1, 28, 28), np.float32)
    for image, digit in zip(digits, "023456789", strict=True):
        cv2.putText(image[0], digit, (6, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.9, 1, 2, cv2.LINE_AA)
    weights = DATA / "caffemodels/lenet_v1_format/lenet/lenet_iter_10000"
    found = check(tmp_path / "lenet.prototxt", weights, digits)
    assert found["prob"].argmax(1).tolist() == [0, 2, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("name", ["caffemodels/mtcnn/det3", "caffemodels/tfeat/TFeatLiberty"])
def test_opencv_imports_what_is_written(tmp_path, name):
    """It computes the same bits from the file written here as from the published one."""
    spec, weights = DATA / f"{name}.prototxt", DATA / f"{name}.caffemodel"
    net = Net(spec, weights=weights)
    save(net, tmp_path / "again.caffemodel")
    x = (
        np.random.default_rng(0)
        .normal(size=(1, *net.blob_shapes[net.inputs[0]][1:]))
        .astype(np.float32)
    )
    before, after = (
        opencvs(spec, path, x, net.outputs) for path in (weights, tmp_path / "again.caffemodel")
    )
    for output in net.outputs:
        np.testing.assert_array_equal(before[output], after[output])


TRUNK = ["conv1/7x7_s2", "conv2/3x3_reduce", "conv2/3x3"] + [
    f"inception_{block}/{branch}"
    for block in ("3a", "3b", "4a")
    for branch in ("1x1", "3x3_reduce", "3x3", "5x5_reduce", "5x5", "pool_proj")
]
THETA = [f"inception_4a/{size}_theta{i}" for size in ("3x3", "5x5") for i in ("1", "2", "")]


@pytest.mark.parametrize(
    ("spec", "new"), [("ucn_hn", ["feature_conv"]), ("ucn_hn_st", [*THETA, "feature_conv"])]
)
def test_ucn_starts_from_googlenet(spec, new):
    """By layer name, once for both twins, saying which layers were filled and which were not."""
    weights = DATA / "weights/bvlc_googlenet.caffemodel"
    net = Net(ROOT / f"nets/specs/{spec}.yaml", stages=["deploy"], weights=weights)
    assert sorted(net.report.filled) == sorted([*TRUNK, *(f"{name}_p" for name in TRUNK)])
    assert sorted(net.report.missing) == sorted([*new, *(f"{name}_p" for name in new)])
    assert len(net.report.unused) == 58 - len(TRUNK) == 37
    assert "filled 42 layers; not in the file: " in str(net.report)
    stored = {layer.name: layer.blobs for layer in read_net(weights)}
    for name in TRUNK:
        for i, parameter in enumerate(net.params[name]):
            assert parameter is net.params[f"{name}_p"][i]
            np.testing.assert_array_equal(parameter.detach(), stored[name][i].reshape(parameter.shape))
