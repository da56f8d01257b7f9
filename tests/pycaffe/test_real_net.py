"""A published net and a picture, as in Caffe's classification example."""

import cortado.pycaffe as caffe
import numpy as np
import pytest
from shared import SHARED, needs_shared
from skimage import data

pytestmark = needs_shared
CATS = (281, 282, 285)  # tabby, tiger cat, Egyptian cat


@pytest.fixture
def files():
    folder = SHARED / "data" / "weights"
    paths = folder / "squeezenet_v1.1_deploy.prototxt", folder / "squeezenet_v1.1.caffemodel"
    if not all(path.exists() for path in paths):
        pytest.skip("SqueezeNet is not in the shared folder")
    return [str(path) for path in paths]


def test_classification(files):
    net = caffe.Net(*files, caffe.TEST)
    transformer = caffe.io.Transformer({"data": net.blobs["data"].data.shape})
    transformer.set_transpose("data", (2, 0, 1))
    transformer.set_mean("data", np.array([104, 117, 123]))
    transformer.set_raw_scale("data", 255)
    transformer.set_channel_swap("data", (2, 1, 0))
    net.blobs["data"].reshape(1, 3, 227, 227)
    image = data.chelsea()[:, 70:370] / np.float32(255)
    net.blobs["data"].data[...] = transformer.preprocess("data", image)
    prob = net.forward()["prob"][0].ravel()
    assert prob.argmax() in CATS
    assert net.blobs["fire9/concat"].data.shape == (1, 512, 14, 14)
    shown = transformer.deprocess("data", net.blobs["data"].data[0])
    assert shown.min() > -1e-3
    assert shown.max() < 1 + 1e-3


def test_classifier(files):
    mean = np.array([104, 117, 123])
    net = caffe.Classifier(
        *files, mean=mean, raw_scale=255, channel_swap=(2, 1, 0), image_dims=(256, 256)
    )
    image = data.chelsea()[:, 70:370] / np.float32(255)
    assert net.predict([image], oversample=False).ravel().argmax() in CATS
