"""Binary nets: files built here byte by byte, real Caffe's, and broken ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cortado.prototxt_like import SpecError
from cortado.prototxt_like.wire import read_net
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shared import SHARED, cases, needs_shared


def varint(value: int) -> bytes:
    value %= 2**64
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def put(number: int, value: int | bytes) -> bytes:
    """A field as protobuf writes it."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def shape(*dims: int) -> bytes:
    return put(7, put(1, b"".join(map(varint, dims))))


def floats(*values: float) -> bytes:
    return put(5, np.array(values, "<f4").tobytes())


def layer(*blobs: bytes, name: bytes = b"ip") -> bytes:
    return put(100, put(1, name) + put(2, b"InnerProduct") + b"".join(put(7, blob) for blob in blobs))


@pytest.fixture
def model(tmp_path: Path):
    """Write bytes to a file and read it as a net."""

    def read(raw: bytes) -> list:
        path = tmp_path / "net.caffemodel"
        path.write_bytes(raw)
        return read_net(path)

    return read


def test_a_net(model) -> None:
    first, second = model(
        put(1, b"net")
        + layer(shape(2, 3) + floats(*range(6)), shape(2) + floats(7, 8))
        + layer(name=b"r")
    )
    assert (first.name, first.type, second.name, second.blobs) == ("ip", "InnerProduct", "r", [])
    np.testing.assert_array_equal(first.blobs[0], np.arange(6, dtype=np.float32).reshape(2, 3))
    assert [b.dtype for b in first.blobs] == [np.float32, np.float32]
    first.blobs[1][0] = 1  # writable


def test_a_v1_net(model) -> None:
    blob = put(1, 1) + put(2, 1) + put(3, 2) + put(4, 1) + floats(1, 2)
    (found,) = model(put(2, put(4, b"conv") + put(5, 4) + put(6, blob)))
    assert (found.name, found.type, found.blobs[0].shape) == ("conv", "Convolution", (1, 1, 2, 1))


@pytest.mark.parametrize(
    "blob",
    [
        shape(2) + put(5, np.float32(1).tobytes()) + put(5, np.float32(2).tobytes()),
        shape(2) + b"".join(varint(5 << 3 | 5) + np.float32(x).tobytes() for x in (1, 2)),
        shape(2) + put(8, np.array([1.0, 2.0]).tobytes()),
        shape(2) + b"".join(varint(8 << 3 | 1) + np.float64(x).tobytes() for x in (1, 2)),
        put(7, put(1, 2)) + floats(1, 2),
        shape(2) + floats(1, 2) + put(6, np.ones(2, "<f4").tobytes()),
    ],
    ids=["in pieces", "unpacked", "double", "unpacked double", "unpacked shape", "with a diff"],
)
def test_all_that_protobuf_allows(model, blob: bytes) -> None:
    np.testing.assert_array_equal(model(layer(blob))[0].blobs[0], np.array([1, 2], np.float32))


def test_odd_blobs(model) -> None:
    blobs = model(layer(put(7, b"") + floats(5), shape(0, 3)))[0].blobs
    assert [b.shape for b in blobs] == [(), (0, 3)]


def test_a_name_that_is_not_utf8(model) -> None:
    assert model(layer(name=b"caf\xe9"))[0].name == "caf\ufffd"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not a Caffe model: it holds no layers"),
        (put(1, b"net"), "not a Caffe model: it holds no layers"),
        (b'name: "net"\n', "not a Caffe model, or cut off"),
        (layer(shape(2) + floats(1, 2))[:-3], "not a Caffe model, or cut off"),
        (layer(shape(3) + floats(1, 2)), 'layer "ip", blob 0: 2 values do not fill the shape [3]'),
        (
            layer(shape(2**62, 4) + floats(1)),
            f'layer "ip", blob 0: 1 values do not fill the shape [{2**62}, 4]',
        ),
        (
            layer(shape(-1, -2) + floats(1, 2)),
            'layer "ip", blob 0: 2 values do not fill the shape [-1, -2]',
        ),
        (
            layer(shape(1) + put(5, b"abc")),
            'layer "ip", blob 0: buffer size must be a multiple of element size',
        ),
    ],
)
def test_broken_files(model, tmp_path: Path, raw: bytes, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        model(raw)
    assert str(caught.value) == f"error: {tmp_path / 'net.caffemodel'}: {message}"


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"x\.caffemodel: cannot read the file: No such file"):
        read_net(tmp_path / "x.caffemodel")


GOOD = layer(shape(2, 2) + floats(1, 2, 3, 4)) + put(2, put(4, b"conv") + put(6, put(1, 1) + floats(1)))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary() | st.tuples(st.integers(0, len(GOOD)), st.binary(max_size=4)))
def test_any_bytes_are_read_or_refused(model, change: bytes | tuple[int, bytes]) -> None:
    if isinstance(change, tuple):
        at, bytes_ = change
        change = GOOD[:at] + bytes_ + GOOD[at + len(bytes_) :]
    try:
        model(change)
    except SpecError as error:
        print(error)


@needs_shared
@pytest.mark.parametrize(
    ("name", "layers", "values"),
    [
        ("weights/bvlc_googlenet.caffemodel", 152, 6_998_552),
        ("weights/squeezenet_v1.1.caffemodel", 75, 1_235_496),
        ("caffemodels/mtcnn/det1.caffemodel", 18, 6_632),
        ("caffemodels/tfeat/TFeatLiberty.caffemodel", 9, 599_810),
        ("caffemodels/lenet_v1_format/lenet/lenet_iter_10000", 9, 431_080),
    ],
)
def test_real_weights(name: str, layers: int, values: int) -> None:
    assert SHARED
    found = read_net(SHARED / "data" / name)
    assert (len(found), sum(blob.size for each in found for blob in each.blobs)) == (layers, values)
    assert all(np.isfinite(blob).all() for each in found for blob in each.blobs)


@pytest.mark.parametrize("case", cases("01_conv", "04_ip"))
def test_the_parameters_that_caffe_itself_reads(case: Path) -> None:
    layers = {layer.name: layer for layer in read_net(case / "weights.caffemodel")}
    with np.load(case / "data.npz") as data:
        keys = [key for key in data.files if key.startswith("param/")]
        for key in keys:
            name, index = key.removeprefix("param/").rsplit("/", 1)
            np.testing.assert_array_equal(layers[name].blobs[int(index)], data[key])
    assert keys
