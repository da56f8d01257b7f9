"""Binary nets, blobs and states: files built here byte by byte, real Caffe's, and broken ones."""

from __future__ import annotations

import resource
import time
import tracemalloc
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
from cortado.prototxt_like import SpecError
from cortado.prototxt_like.schema import enum, message
from cortado.prototxt_like.wire import (
    MAX_FIELDS,
    read_blobs,
    read_net,
    read_solver_state,
    write_blob,
    write_blobs,
    write_net,
    write_solver_state,
)
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


def test_v1_types_have_todays_names(model) -> None:
    for name, number in enum("V1LayerParameter.LayerType").items():
        (found,) = model(put(2, put(4, b"x") + put(5, number)))
        wanted = {"NONE": "", "SOFTMAX_LOSS": "softmaxwithloss"}.get(
            name, name.replace("_", "").lower()
        )
        assert found.type.lower() == wanted


def test_a_v0_net(model) -> None:
    v0 = put(1, b"fc6") + put(2, b"innerproduct") + put(50, shape(1, 1, 1, 2) + floats(1, 2))
    (found,) = model(put(2, put(1, v0) + put(2, b"data") + put(3, b"fc6")))
    assert (found.name, found.type, found.blobs[0].shape) == ("fc6", "innerproduct", (1, 1, 1, 2))


@pytest.mark.parametrize(
    "blob",
    [
        shape(2) + put(5, np.float32(1).tobytes()) + put(5, np.float32(2).tobytes()),
        shape(2) + b"".join(varint(5 << 3 | 5) + np.float32(x).tobytes() for x in (1, 2)),
        shape(2) + put(8, np.array([1.0, 2.0]).tobytes()),
        shape(2) + b"".join(varint(8 << 3 | 1) + np.float64(x).tobytes() for x in (1, 2)),
        put(7, put(1, 2)) + floats(1, 2),
        shape(2) + floats(1, 2) + put(6, np.ones(2, "<f4").tobytes()),
        shape(2) + floats(1) + varint(5 << 3 | 5) + np.float32(2).tobytes(),
        floats(1, 2) + shape(2) + put(77, b"of another Caffe"),
    ],
    ids=[
        "in pieces",
        "unpacked",
        "double",
        "unpacked double",
        "unpacked shape",
        "with a diff",
        "half packed",
        "with another field",
    ],
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
        (b'name: "net"\n', "not a Caffe model, or cut off; it is text: is it a spec, not weights?"),
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
        (layer(shape(*[1] * 33) + floats(1)), 'layer "ip", blob 0: more than 32 axes'),
        (layer(name=b""), "not a Caffe model: it holds no layers"),
        (put(100, 7), "not a Caffe model, or cut off"),
        (put(100, put(1, 5)), "not a Caffe model, or cut off"),
        (layer(put(7, b"\x0a\x7f")), "not a Caffe model, or cut off"),
        (b"\xff" * 20, "not a Caffe model, or cut off"),
    ],
)
def test_broken_files(model, tmp_path: Path, raw: bytes, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        model(raw)
    assert str(caught.value) == f"error: {tmp_path / 'net.caffemodel'}: {message}"


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"x\.caffemodel: cannot read the file: No such file"):
        read_net(tmp_path / "x.caffemodel")


V1_BLOB = b"".join(put(axis, 1) for axis in (1, 2, 3, 4)) + floats(1)
GOOD = layer(shape(2, 2) + floats(1, 2, 3, 4)) + put(2, put(4, b"conv") + put(6, V1_BLOB))


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


HOSTILE = {
    "empty layers": put(100, b"") * 10**6,
    "empty blobs": layer(*[b""] * 10**6),
    "values one by one": layer((varint(5 << 3 | 5) + b"abcd") * 10**6),
    "shapes": layer(put(7, b"") * 10**6),
    "a long shape": layer(shape(*[2**62] * 10**5)),
    "a large shape without values": layer(shape(0, 2**62, 2**62)),
    "negative": layer(shape(2**31, -1) + floats(1)),
    "a length past the end": put(1, b"x") + varint(100 << 3 | 2) + varint(2**63),
    "deep messages": reduce(lambda inner, _: put(100, inner), range(10**4), b""),
    "deep old messages": reduce(lambda inner, _: put(1, inner), range(10**4), b""),
    "deep groups": layer(bytes([11 << 3 | 3]) * 10**4),
    "a large head": layer(put(3, 1) * 10 + put(99, b"x" * 2**21)),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_are_refused_soon(model, what: str) -> None:
    """Within a second (here with room for a slow machine) and in bounded memory."""
    held, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(SpecError):
        model(HOSTILE[what])
    assert time.perf_counter() - begin < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held < 2**16  # KiB


def test_the_number_of_fields_is_limited(model) -> None:
    with pytest.raises(SpecError, match=f"more than {MAX_FIELDS} fields beside the blobs' values"):
        model(put(3, b"input") * (MAX_FIELDS + 1))


def test_random_changes_of_a_real_net(model) -> None:
    """What is cut, overwritten or doubled is read or refused, and never anything else."""
    rng, refused = np.random.default_rng(0), 0
    good = np.frombuffer(GOOD, np.uint8)
    model(GOOD)
    for _ in range(200):
        raw = good.copy()
        raw[rng.integers(len(raw), size=2)] = rng.integers(256, size=2)
        at, stop = sorted(rng.integers(len(raw), size=2))
        try:
            model([raw[:at], raw, np.delete(raw, slice(at, stop))][rng.integers(3)].tobytes())
        except SpecError:
            refused += 1
    assert 100 < refused < 190


def test_the_values_stay_in_the_file(tmp_path: Path) -> None:
    blob = np.arange(2**20, dtype=np.float32)
    write_net(tmp_path / "x.caffemodel", "x", [(message("LayerParameter")(name="ip"), [blob])])
    tracemalloc.start()
    found = read_net(tmp_path / "x.caffemodel")[0].blobs[0]
    assert tracemalloc.get_traced_memory()[0] < 2**16
    tracemalloc.stop()
    found[0] = 5  # of this process alone
    assert read_net(tmp_path / "x.caffemodel")[0].blobs[0][0] == 0
    np.testing.assert_array_equal(found[1:], blob[1:])


@pytest.mark.parametrize("dims", [(), (0,), (2, 3), (2, 0, 3), (1,) * 32])
def test_a_blob_is_written_and_read(tmp_path: Path, dims: tuple[int, ...]) -> None:
    blob = np.arange(np.prod(dims), dtype=np.float32).reshape(dims)
    write_blob(tmp_path / "mean.binaryproto", blob)
    shape = message("BlobShape")(dim=dims) if dims else None
    wanted = message("BlobProto")(data=blob.reshape(-1), shape=shape)
    assert (tmp_path / "mean.binaryproto").read_bytes() == wanted.SerializeToString()
    (found,) = read_blobs(tmp_path / "mean.binaryproto")
    np.testing.assert_array_equal(found, blob, strict=True)


def test_a_vector_of_blobs(tmp_path: Path) -> None:
    blobs = [np.ones((2, 3), np.float32), np.arange(8, dtype=np.float64).reshape(2, 4)[:, ::2]]
    write_blobs(tmp_path / "x.binaryproto", blobs)
    found = message("BlobProtoVector").FromString((tmp_path / "x.binaryproto").read_bytes())
    assert [list(blob.data) for blob in found.blobs] == [[1] * 6, [0, 2, 4, 6]]
    for blob, wanted in zip(read_blobs(tmp_path / "x.binaryproto"), blobs, strict=True):
        np.testing.assert_array_equal(blob, wanted)


def test_a_broken_blob(tmp_path: Path) -> None:
    (tmp_path / "x.binaryproto").write_bytes(shape(3) + floats(1, 2))
    with pytest.raises(
        SpecError, match=r"x\.binaryproto: the blob: 2 values do not fill the shape \[3\]"
    ):
        read_blobs(tmp_path / "x.binaryproto")
    (tmp_path / "x.binaryproto").write_bytes(b"no blob")
    with pytest.raises(SpecError, match=r"x\.binaryproto: not a binary blob, or cut off"):
        read_blobs(tmp_path / "x.binaryproto")


def test_a_solver_state(tmp_path: Path) -> None:
    path, history = tmp_path / "x.solverstate", [np.ones((2, 3), np.float32), np.zeros((), np.float32)]
    write_solver_state(path, 7, "x.caffemodel", history, 2, b"\x00ours")
    found = read_solver_state(path)
    assert (found.iter, found.learned_net, found.current_step) == (7, "x.caffemodel", 2)
    assert found.extra == b"\x00ours"
    for array, wanted in zip(found.history, history, strict=True):
        np.testing.assert_array_equal(array, wanted, strict=True)
        assert array.flags.aligned
    caffe = message("SolverState").FromString(path.read_bytes())
    assert (caffe.iter, len(caffe.history), caffe.history[0].shape.dim) == (7, 2, [2, 3])


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"", "not a solver's state: it has no iter"),
        (put(1, 3) + put(3, shape(2) + floats(1)), r"history 0: 1 values do not fill the shape \[2\]"),
        (put(1, 3)[:-1], "not a solver's state, or cut off"),
    ],
)
def test_broken_solver_states(tmp_path: Path, raw: bytes, text: str) -> None:
    (tmp_path / "x.solverstate").write_bytes(raw)
    with pytest.raises(SpecError, match=rf"x\.solverstate: {text}"):
        read_solver_state(tmp_path / "x.solverstate")


@pytest.mark.parametrize("case", cases("10_restore_adam"))
def test_caffes_own_solver_states(case: Path, tmp_path: Path) -> None:
    """They are written again as the same message; the model beside them, too."""
    path, again = case / "snap_iter_5.solverstate", tmp_path / "again"
    state = read_solver_state(path)
    assert (state.iter, len(state.history)) == (5, 8)
    write_solver_state(again, *state[:2], state.history, state.current_step)
    assert parsed("SolverState", again) == parsed("SolverState", path)


@pytest.mark.parametrize("case", cases("10_restore_adam", "05_scale_scalar", "08_siamese"))
def test_a_net_is_written_again_as_the_same_message(case: Path, tmp_path: Path) -> None:
    net = parsed("NetParameter", case / "weights.caffemodel")
    blobs = [layer.blobs for layer in read_net(case / "weights.caffemodel")]
    heads = []
    for layer in net.layer:
        heads.append(message("LayerParameter")())
        heads[-1].CopyFrom(layer)
        heads[-1].ClearField("blobs")
    write_net(tmp_path / "again", net.name, zip(heads, blobs, strict=True))
    assert parsed("NetParameter", tmp_path / "again") == net


def parsed(name: str, path: Path):
    return message(name).FromString(path.read_bytes())


def test_a_net_that_protobuf_could_not_read_is_not_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("cortado.prototxt_like.wire.MAX_BYTES", 100)
    head = message("LayerParameter")(name="ip")
    (tmp_path / "x.caffemodel").write_bytes(b"old")
    with pytest.raises(ValueError, match=r"x\.caffemodel: larger than protobuf's limit of 2 GiB"):
        write_net(tmp_path / "x.caffemodel", "x", [(head, [np.zeros(50, np.float32)])])
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x.caffemodel", b"old")]


@needs_shared
def test_a_mean_image() -> None:
    (mean,) = read_blobs(SHARED / "data/caffemodels/lenet_v1_format/lenet/mnist_mean.binaryproto")
    assert (mean.shape, 30 < mean.mean() < 40) == ((1, 1, 28, 28), True)


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
