"""caffe.io, NetSpec, coord_map, draw, caffe_pb2, Classifier and Detector."""

import stat

import cortado.pycaffe as caffe
import numpy as np
import pytest
from cortado.pycaffe import coord_map, draw
from cortado.pycaffe import layers as L
from cortado.pycaffe import params as P
from cortado.pycaffe.proto import caffe_pb2
from google.protobuf import text_format

# --------------------------------------------------------------------- messages


def test_messages_and_enums():
    net = caffe_pb2.NetParameter()
    text_format.Merge('name: "n" layer { name: "p" type: "Pooling" pooling_param { pool: AVE } }', net)
    assert net.layer[0].pooling_param.pool == caffe_pb2.PoolingParameter.AVE == P.Pooling.AVE
    assert (caffe.TRAIN, caffe.TEST) == (caffe_pb2.TRAIN, caffe_pb2.TEST) == (0, 1)
    assert caffe_pb2.Phase.Value("TEST") == 1
    assert caffe.proto.caffe_pb2 is caffe_pb2
    assert "NetParameter" in dir(caffe_pb2)
    assert "NetParameter" in caffe_pb2.DESCRIPTOR.message_types_by_name
    with pytest.raises(AttributeError, match="no message 'Nothing'"):
        caffe_pb2.Nothing  # noqa: B018


def test_blob_messages():
    array, diff = np.arange(6.0).reshape(1, 2, 3), np.ones((1, 2, 3))
    blob = caffe.io.array_to_blobproto(array, diff)
    np.testing.assert_array_equal(caffe.io.blobproto_to_array(blob), array)
    np.testing.assert_array_equal(caffe.io.blobproto_to_array(blob, return_diff=True), diff)
    old = caffe_pb2.BlobProto(num=1, channels=1, height=2, width=3, data=range(6))
    assert caffe.io.blobproto_to_array(old).shape == (1, 1, 2, 3)
    packed = caffe.io.arraylist_to_blobprotovector_str([array, diff])
    found = caffe.io.blobprotovector_str_to_arraylist(packed)
    np.testing.assert_array_equal(found, [array, diff])


def test_datums():
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    datum = caffe.io.array_to_datum(array, label=3)
    assert datum.label == 3
    np.testing.assert_array_equal(caffe.io.datum_to_array(datum), array)
    assert caffe.io.datum_to_array(datum).dtype == np.uint8
    floats = caffe.io.array_to_datum(array.astype(float) / 2)
    np.testing.assert_array_equal(caffe.io.datum_to_array(floats), array / 2)
    assert caffe.io.datum_to_array(floats).dtype == np.float64
    with pytest.raises(ValueError, match=r"\[C, H, W\], got \[3, 4\]"):
        caffe.io.array_to_datum(array[0])


# --------------------------------------------------------------------- images


def transformer(shape=(1, 3, 4, 6)):
    made = caffe.io.Transformer({"data": shape})
    made.set_transpose("data", (2, 0, 1))
    made.set_channel_swap("data", (2, 1, 0))
    made.set_raw_scale("data", 255)
    made.set_mean("data", np.array([104.0, 117, 123]))
    made.set_input_scale("data", 0.5)
    return made


def test_preprocess_in_caffes_order():
    image = np.random.default_rng(0).random((4, 6, 3)).astype(np.float32)
    kept = image.copy()
    found = transformer().preprocess("data", image)
    wanted = (
        image[:, :, ::-1].transpose(2, 0, 1) * 255 - np.array([104, 117, 123])[:, None, None]
    ) * 0.5
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(image, kept)
    np.testing.assert_allclose(transformer().deprocess("data", found[None]), image, atol=1e-6)


def test_preprocess_changes_a_float_image_in_place_as_caffe_does():
    made = caffe.io.Transformer({"data": (1, 3, 4, 6)})
    made.set_transpose("data", (2, 0, 1))
    made.set_raw_scale("data", 2)
    image = np.ones((4, 6, 3), np.float32)
    found = made.preprocess("data", image)
    assert (image == 2).all()
    assert found.base is not None
    integers = np.ones((4, 6, 3), np.uint8)
    made.preprocess("data", integers)
    assert (integers == 1).all()


def test_preprocess_resizes():
    image = np.linspace(0, 1, 8 * 12 * 3).reshape(8, 12, 3).astype(np.float32)
    assert transformer().preprocess("data", image).shape == (3, 4, 6)
    assert transformer((2, 3, 16, 24)).preprocess("data", image).dtype == np.float32


def test_mean_images():
    made = transformer()
    made.set_mean("data", np.arange(72.0).reshape(3, 4, 6))
    assert made.mean["data"].shape == (3, 4, 6)
    made.set_mean("data", np.arange(288.0).reshape(3, 8, 12))
    assert made.mean["data"].shape == (3, 4, 6)
    assert made.mean["data"].min() >= 0
    assert made.mean["data"].max() <= 287
    for channels, shape in ((3, (3, 8, 12)), (2, (2, 3, 3))):
        made = caffe.io.Transformer({"data": (1, channels, 4, 6)})
        made.set_mean("data", np.full(shape, 128.0))  # of which Caffe makes NaN
        np.testing.assert_array_equal(made.mean["data"], np.full((channels, 4, 6), 128))
    made = caffe.io.Transformer({"data": (1, 1, 4, 6)})
    made.set_transpose("data", (2, 0, 1))
    made.set_mean("data", np.full((4, 6), 128.0))  # which Caffe takes for one channel
    assert (made.preprocess("data", np.zeros((4, 6, 1))) == np.full((1, 4, 6), -128)).all()


@pytest.mark.parametrize(
    ("setter", "value", "error"),
    [
        ("set_transpose", (1, 0), "order of 2 axes for an input of 3"),
        ("set_channel_swap", (1, 0), "order of 2 channels for an input of 3"),
        ("set_mean", np.zeros(2), "mean of 2 channels for an input of 3"),
        (
            "set_mean",
            np.zeros((1, 3, 4, 6)),
            r"expected a mean \[K\] or \[K, H, W\], got \[1, 3, 4, 6\]",
        ),
        ("set_mean", np.full((4, 6), 128.0), r"expected a mean \[K\] or \[K, H, W\], got \[4, 6\]"),
        ("set_mean", np.full((12, 14), 128.0), r"expected a mean \[K\] or \[K, H, W\], got \[12, 14\]"),
    ],
)
def test_wrong_preprocessing(setter, value, error):
    with pytest.raises(ValueError, match=error):
        getattr(transformer(), setter)("data", value)
    with pytest.raises(ValueError, match='"dada" is not one of the inputs: data'):
        getattr(transformer(), setter)("dada", value)


def test_resize_image():
    ramp = np.repeat(np.arange(4.0)[:, None, None], 5, axis=1)
    for channels in (1, 2, 3):
        found = caffe.io.resize_image(np.repeat(ramp, channels, axis=2), (8, 10))
        assert found.shape == (8, 10, channels)
        assert found.dtype == np.float32
        inside = found[1:-1, 4, 0]
        assert (np.diff(inside) > 0).all()
        assert inside[0] >= 0
        assert inside[-1] <= 3
    constant = caffe.io.resize_image(np.full((3, 3, 3), 7.0), (2, 5))
    assert (constant == 7).all()


def test_oversample():
    image = np.arange(6 * 7 * 2, dtype=np.float32).reshape(6, 7, 2)
    crops = caffe.io.oversample([image, -image], (4, 3))
    assert crops.shape == (20, 4, 3, 2)
    np.testing.assert_array_equal(crops[0], image[:4, :3])
    np.testing.assert_array_equal(crops[1], image[:4, 4:])
    np.testing.assert_array_equal(crops[2], image[2:, :3])
    np.testing.assert_array_equal(crops[3], image[2:, 4:])
    np.testing.assert_array_equal(crops[4], image[1:5, 2:5])
    np.testing.assert_array_equal(crops[5:10], crops[:5, :, ::-1])
    np.testing.assert_array_equal(crops[10:], -crops[:10])


@pytest.fixture
def picture(tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png", pixels


def pictures():
    from PIL import Image

    rng = np.random.default_rng(0)
    rgb, deep = rng.integers(0, 256, (7, 9, 3), np.uint8), rng.integers(0, 65536, (7, 9), np.uint16)
    yield "grey.png", Image.fromarray(rgb[..., 0])
    yield "grey.jpg", Image.fromarray(rgb[..., 0])
    yield "16 bits.png", Image.fromarray(deep)
    yield "16 bits.tif", Image.fromarray(deep)
    yield "1 bit.png", Image.fromarray(rgb[..., 0] > 99)
    yield "rgb.png", Image.fromarray(rgb)
    yield "rgb.jpg", Image.fromarray(rgb)
    yield "rgb.bmp", Image.fromarray(rgb)
    yield "rgb.webp", Image.fromarray(rgb)
    yield "palette.png", Image.fromarray(rgb).quantize(16)
    yield "floats.tif", Image.fromarray(rng.random((7, 9), np.float32))
    opaque = np.dstack([rgb, np.full((7, 9), 255, np.uint8)])
    yield "transparency.png", Image.fromarray(opaque)


PICTURES = dict(pictures())


@pytest.mark.parametrize("name", PICTURES)
def test_load_image_as_scikit_image(tmp_path, name):
    from skimage import img_as_float
    from skimage.io import imread

    PICTURES[name].save(tmp_path / name)
    wanted = np.atleast_3d(img_as_float(imread(tmp_path / name)))
    found = caffe.io.load_image(tmp_path / name)
    assert found.dtype == np.float32
    assert found.shape == (7, 9, 3)
    np.testing.assert_array_equal(found, np.broadcast_to(wanted[..., :3], (7, 9, 3)).astype(np.float32))
    wanted = img_as_float(imread(tmp_path / name, as_gray=True))
    found = caffe.io.load_image(str(tmp_path / name), color=False)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted[..., None], atol=1e-7)


def test_load_image_does_not_turn_and_drops_transparency(tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 4), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path, exif=exif.tobytes())
    np.testing.assert_array_equal(caffe.io.load_image(path), np.float32(pixels[..., :3] / 255))
    grey = caffe.io.load_image(path, color=False)
    np.testing.assert_allclose(
        grey[..., 0], pixels[..., :3] / 255 @ [0.2125, 0.7154, 0.0721], atol=1e-6
    )
    Image.frombytes("LA", (60, 40), pixels[..., :2].tobytes()).save(path)
    assert caffe.io.load_image(path).shape == (40, 60, 3)
    path.write_text("no image")
    with pytest.raises(ValueError, match=r"^cannot read .*image\.png: it is no PNG"):
        caffe.io.load_image(path)


# --------------------------------------------------------------------- classifying

CLASSES = """
name: "brightest channel"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 4 dim: 3 dim: 8 dim: 10 } } }
layer { name: "pool" type: "Pooling" bottom: "data" top: "pool"
  pooling_param { pool: AVE global_pooling: true } }
layer { name: "flat" type: "Flatten" bottom: "pool" top: "flat" }
layer { name: "scale" type: "Scale" bottom: "flat" top: "scale" }
layer { name: "prob" type: "Softmax" bottom: "scale" top: "prob" }
"""


@pytest.fixture
def files(tmp_path):
    model, weights = str(tmp_path / "net.prototxt"), str(tmp_path / "net.caffemodel")
    with open(model, "w", encoding="utf-8") as file:
        file.write(CLASSES)
    net = caffe.Net(model, caffe.TEST)
    net.params["scale"][0].data[...] = 10
    net.save(weights)
    return model, weights


@pytest.mark.parametrize("oversample", [True, False])
def test_classifier(files, oversample):
    net = caffe.Classifier(*files, image_dims=(12, 14), channel_swap=(2, 1, 0), mean=np.zeros(3))
    images = np.full((3, 20, 30, 3), 0.2, np.float32)
    for i in range(3):
        images[i, :, :, i] = 0.9
    found = net.predict(list(images), oversample=oversample)
    assert found.shape == (3, 3)
    np.testing.assert_array_equal(found.argmax(1), [2, 1, 0])  # RGB to BGR
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)


def test_detector(files, picture):
    path, pixels = picture
    for options in ({}, {"context_pad": 2, "mean": np.array([0.1, 0.2, 0.3]), "raw_scale": 1.0}):
        net = caffe.Detector(*files, channel_swap=(2, 1, 0), **options)
        windows = [np.array([0, 0, 20, 20]), np.array([5, 10, 40, 60]), np.array([2, 3, 30, 25])]
        found = net.detect_windows([(str(path), windows)])
        assert [each["filename"] for each in found] == [str(path)] * 3
        assert [each["window"].tolist() for each in found] == [w.tolist() for w in windows]
        assert all(each["prediction"].sum() == pytest.approx(1, rel=1e-5) for each in found)
    image = pixels / np.float32(255)
    crop = net.crop(image, np.array([0, 0, 20, 20]))
    assert crop.shape == (8, 10, 3)
    np.testing.assert_allclose(crop[0, 0], [0.3, 0.2, 0.1], rtol=1e-6)  # the mean, as RGB
    assert len(net.detect_selective_search([str(path)], count=5)) == 5
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # the proposals are those of the image that is cropped, which is not turned
    Image.fromarray(pixels).save(path, exif=exif.tobytes())
    turned = net.detect_selective_search([str(path)], count=5)
    assert max(each["window"][2] for each in turned) == 40


# --------------------------------------------------------------------- specifications


def test_net_spec(tmp_path):
    n = caffe.NetSpec()
    n.data, n.label = L.DummyData(
        shape=[{"dim": [2, 1, 6, 6]}, {"dim": [2]}], transform_param={"scale": 0.5}, ntop=2
    )
    n.conv = L.Convolution(
        n.data,
        kernel_size=3,
        num_output=4,
        weight_filler={"type": "xavier"},
        param=[{"lr_mult": 1}, {"lr_mult": 2, "decay_mult": 0}],
    )
    n.pool = L.Pooling(n.conv, kernel_size=2, stride=2, pool=P.Pooling.MAX)
    n.relu = L.ReLU(n.pool, in_place=True)
    n["ip"] = L.InnerProduct(n.relu, num_output=3)
    n.loss = L.SoftmaxWithLoss(n.ip, n.label, loss_weight=2, include={"phase": caffe.TRAIN})
    n.silent = L.Silence(n.label, ntop=0, include={"phase": caffe.TEST})
    message = n.to_proto()
    layers = {layer.name: layer for layer in message.layer}
    assert list(layers) == ["data", "conv", "pool", "relu", "ip", "loss", "silent"]
    relu = layers["relu"]
    assert list(relu.top) == list(relu.bottom) == list(layers["ip"].bottom) == ["pool"]
    assert [spec.lr_mult for spec in layers["conv"].param] == [1, 2]
    assert layers["data"].transform_param.scale == 0.5
    assert layers["loss"].include[0].phase == caffe.TRAIN
    path = tmp_path / "net.prototxt"
    path.write_text(str(message), encoding="utf-8")
    net = caffe.Net(str(path), caffe.TRAIN)
    net.forward()
    net.backward()
    assert net.params["conv"][0].diff.shape == (4, 1, 3, 3)


def test_names_made_for_what_has_none():
    data = L.Input(shape={"dim": [1, 3]})
    twice = L.TanH(L.TanH(data))
    assert [layer.name for layer in caffe.to_proto(twice).layer] == ["Input1", "TanH1", "TanH2"]
    assert caffe.to_proto(twice) == twice.to_proto()
    both = caffe.to_proto(L.Silence(data, twice, ntop=0))
    assert [layer.type for layer in both.layer] == ["Input", "TanH", "TanH", "Silence"]


def test_wrong_specifications():
    tops = L.Input(ntop=2)
    with pytest.raises(TypeError, match="Silence input 0 is not a Top"):
        L.Silence(tops, ntop=0)
    with pytest.raises(AttributeError, match="LayerParameter has no field 'kernal_size'"):
        L.Convolution(tops[0], kernal_size=3).to_proto()
    with pytest.raises(AttributeError, match="no top 'missing'"):
        caffe.NetSpec().missing  # noqa: B018
    with pytest.raises(AttributeError, match="no NothingParameter"):
        P.Nothing  # noqa: B018


def upsampled(kernel=3, pool=2, stride=2, pad=0):
    n = caffe.NetSpec()
    n.data = L.Input(shape={"dim": [1, 1, 100, 100]})
    n.conv = L.Convolution(n.data, num_output=2, kernel_size=kernel, pad=pad)
    n.pool = L.Pooling(n.conv, kernel_size=pool, stride=pool)
    n.relu = L.ReLU(n.pool, in_place=True)
    n.up = L.Deconvolution(
        n.relu, convolution_param={"num_output": 2, "kernel_size": 2 * stride, "stride": stride}
    )
    return n


def test_coordinates():
    n = upsampled()
    axis, scale, shift = coord_map.coord_map_from_to(n.up, n.data)
    assert (axis, scale, shift) == (1, 1, 0)
    padded = upsampled(pad=5)
    assert coord_map.coord_map_from_to(padded.up, padded.data)[2] == -5
    cropped = L.Crop(n.up, n.data, crop_param={"axis": 2, "offset": 4})
    assert coord_map.coord_map_from_to(cropped, n.data)[2] == 4


def test_crop():
    n = upsampled(pad=5)
    made = coord_map.crop(n.up, n.data)
    assert made.fn.params["crop_param"] == {"axis": 2, "offset": [5]}
    assert coord_map.crop(n.relu, n.relu).fn.params["crop_param"]["axis"] == 2
    mismatch = upsampled(pool=3)
    with pytest.raises(AssertionError, match="times the cells"):
        coord_map.crop(mismatch.up, mismatch.data)
    unpadded = upsampled(kernel=5)
    with pytest.raises(AssertionError, match="negative offset"):
        coord_map.crop(unpadded.up, unpadded.data)
    with pytest.raises(RuntimeError, match="share no ancestor"):
        coord_map.coord_map_from_to(L.InnerProduct(n.up, num_output=1), n.data)
    with pytest.raises(ValueError, match="kernel_h"):
        coord_map.coord_map(L.Convolution(n.data, kernel_h=3, kernel_w=1, num_output=1).fn)


# --------------------------------------------------------------------- pictures

DRAWN = """
name: "drawn"
layer { name: "data" type: "Input" top: "data" include { phase: TEST } }
layer { name: "c" type: "Convolution" bottom: "data" top: "c" param { lr_mult: 1 } param { lr_mult: 2 }
  convolution_param { num_output: 7 kernel_size: 3 stride: 2 } }
layer { name: "p" type: "Pooling" bottom: "c" top: "p" pooling_param { pool: AVE kernel_size: 2 } }
layer { name: "r" type: "ReLU" bottom: "p" top: "p" exclude { phase: TRAIN } }
layer { name: "say \\"hi\\"" type: "InnerProduct" bottom: "p" top: "i"
  inner_product_param { num_output: 9 } }
"""


def drawn():
    return text_format.Parse(DRAWN, caffe_pb2.NetParameter())


def test_dot():
    text = draw.get_dot(drawn(), "TB", display_lrm=True)
    assert text.startswith('digraph "drawn" {\nrankdir=TB;\n')
    assert '"c (Convolution) kernel size: 3 stride: 2 pad: 0 lr mult: 1.0, 2.0"' in text
    assert '"p (Pooling AVE) kernel size: 2 stride: 1 pad: 0"' in text
    assert '"c_Convolution" -> "c_blob" [label="7"];' in text
    assert '"p_blob" -> "r_ReLU";' in text
    assert r'"say \"hi\"_InnerProduct"' in text
    lines = draw.get_dot(drawn(), "LR")
    assert r"p\n(Pooling AVE)\nkernel size: 2" in lines
    assert "#90EE90" in lines
    only = draw.get_dot(drawn(), "LR", phase=caffe.TRAIN)
    assert "r_ReLU" not in only
    assert "data_Input" not in only


def test_files(tmp_path, monkeypatch):
    """Raw text needs no Graphviz; a picture is what its program gives."""
    draw.draw_net_to_file(drawn(), str(tmp_path / "net.raw"))
    assert (tmp_path / "net.raw").read_text(encoding="utf-8") == draw.get_dot(drawn())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="png pictures need Graphviz"):
        draw.draw_net(drawn(), "LR")
    program = tmp_path / "dot"
    program.write_text("#!/bin/sh\necho picture $1\n", encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    assert draw.draw_net(drawn(), "LR", "svg") == b"picture -Tsvg\n"
    program.write_text("#!/bin/sh\necho no such format >&2; exit 1\n", encoding="utf-8")
    with pytest.raises(RuntimeError, match="dot: no such format"):
        draw.draw_net(drawn(), "LR", "xyz")


def test_learning_rates_drawn():
    layer = drawn().layer[4]
    assert draw.get_layer_lr_mult(layer) == (1, 1)
    with pytest.raises(ValueError, match="Pooling layers have no learning rate"):
        draw.get_layer_lr_mult(drawn().layer[2])
