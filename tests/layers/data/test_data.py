"""Data: an LMDB of Datums, raw, encoded and of floats."""

from __future__ import annotations

import copy
import io
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cortado.layers._data.caffe_files import read_datum
from cortado.layers._data.transform import TransformParams
from cortado.layers.data.data import Backend, Data, Params
from cortado.nets.net import Net
from cortado.prototxt_like import loads
from cortado.prototxt_like.schema import message
from cortado.prototxt_like.source import SpecError
from PIL import Image

lmdb = pytest.importorskip("lmdb", reason="lmdb is not installed")
RNG = np.random.default_rng(0)


def datum(image: np.ndarray, label: int = 0, encoded: str = "") -> bytes:
    """An image [C, H, W] (RGB or grey where it is encoded) as a record."""
    made = message("Datum")(label=label, encoded=bool(encoded))
    if encoded:
        file = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0).squeeze()).save(file, encoded)
        made.data = file.getvalue()
        return made.SerializeToString()
    made.channels, made.height, made.width = image.shape
    if image.dtype == np.uint8:
        made.data = image.tobytes()
    else:
        made.float_data.extend(image.ravel().tolist())
    return made.SerializeToString()


def database(folder: Path, *records: bytes) -> Path:
    environment = lmdb.open(str(folder / "db"), map_size=1 << 20)
    with environment, environment.begin(write=True) as transaction:
        for i, record in reversed(list(enumerate(records))):  # read by their keys
            transaction.put(f"{i:08d}".encode(), record)
    return folder / "db"


def made(source: Path, *, seed: int = 0, **fields: Any) -> Data:
    given = {"source": str(source), "batch_size": 2, "backend": Backend.LMDB} | fields
    return Data(Params(**given), (), torch.Generator().manual_seed(seed))


def test_records_in_the_order_of_their_keys(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (3, 2, 4, 5), dtype=np.uint8)
    records = [datum(image, label) for label, image in enumerate(images, 7)]
    layer = made(database(tmp_path, *records))
    assert layer.infer(layer.params) == ((2, 2, 4, 5), (2,))
    for batch in ([0, 1], [2, 0], [1, 2]):
        found, labels = layer()
        np.testing.assert_array_equal(found.numpy(), images[batch])
        assert labels.tolist() == [7.0 + i for i in batch]


def test_resumes_in_the_middle(tmp_path: Path) -> None:
    records = [datum(RNG.integers(0, 256, (1, 5, 5), dtype=np.uint8), i) for i in range(5)]
    fields = {"transform_param": TransformParams(crop_size=3, mirror=True)}
    source = database(tmp_path, *records)
    layer, resumed = made(source, seed=1, **fields), made(source, seed=2, **fields)
    layer(), layer()
    resumed.set_extra_state(layer.get_extra_state())
    for _ in range(3):
        for one, two in zip(layer(), resumed(), strict=True):
            assert torch.equal(one, two)


def test_kinds_of_datum() -> None:
    floats = RNG.standard_normal((2, 3, 4)).astype(np.float32)
    found, label = read_datum(datum(floats, -3))
    np.testing.assert_array_equal(found, floats)
    assert label == -3
    colour = RNG.integers(0, 256, (3, 4, 5), dtype=np.uint8)
    grey = colour[:1]
    np.testing.assert_array_equal(read_datum(datum(colour, encoded="PNG"))[0], colour[::-1])
    np.testing.assert_array_equal(read_datum(datum(grey, encoded="PNG"))[0], grey)
    np.testing.assert_array_equal(
        read_datum(datum(grey, encoded="PNG"), color=True)[0], np.repeat(grey, 3, 0)
    )
    assert read_datum(datum(colour, encoded="PNG"), color=False)[0].shape == (1, 4, 5)
    deep = datum(grey.astype(np.uint16) * 256, encoded="PNG")
    for color in (True, False):
        found, _ = read_datum(deep, color)
        np.testing.assert_array_equal(found, np.repeat(grey, 3 if color else 1, 0))
    with pytest.raises(
        ValueError, match=r"^cannot read an encoded Datum: 16 bits a channel: force_color"
    ):
        read_datum(deep)


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (b"\xff\xff\xff", r"^the record is not a Datum$"),
        (b"", r"^a Datum of \[0, 0, 0\] has 0 values$"),
        (datum(np.zeros((1, 2, 3), np.uint8))[:-6], r"^the record is not a Datum$"),
        (message("Datum")(data=b"no image", encoded=True).SerializeToString(), r"^cannot read an enc"),
    ],
)
def test_records_that_are_broken(record: bytes, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        read_datum(record)


def net(source: Path, fields: str = "backend: LMDB", transform: str = "") -> Net:
    text = f"""
        layer {{ name: "d" type: "Data" top: "data" transform_param {{ {transform} }}
                data_param {{ source: "{source}" batch_size: 1 {fields} }} }}"""
    return Net(loads(text, "net.prototxt", notation="prototxt"), "TEST", seed=1)


def test_in_a_net_with_one_top(tmp_path: Path) -> None:
    colour = RNG.integers(0, 256, (3, 4, 5), dtype=np.uint8)
    source = database(tmp_path, datum(colour, encoded="PNG"))
    made = net(source, transform="crop_size: 2 scale: 0.5")
    assert made.blob_shapes == {"data": (1, 3, 2, 2)}
    np.testing.assert_array_equal(made()["data"][0].numpy(), colour[::-1, 1:3, 1:3] * 0.5)
    assert net(source, transform="force_gray: true").blob_shapes == {"data": (1, 1, 4, 5)}
    forced = net(source, "backend: LMDB force_encoded_color: true prefetch: 2")
    assert forced.blob_shapes == {"data": (1, 3, 4, 5)}


def test_refusals_are_located(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"net\.prototxt:3:.*LevelDB is not read: convert"):
        net(tmp_path, "")
    with pytest.raises(SpecError, match=r'net\.prototxt:2:.*there is no database ".*missing"'):
        net(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpecError, match=r'there is no data\.mdb in ".*empty"'):
        net(tmp_path / "empty")
    source = database(tmp_path, b"\xff\xff\xff")
    with pytest.raises(SpecError, match=r'record 0 of ".*db": the record is not a Datum'):
        net(source)
    database(tmp_path / "empty")
    with pytest.raises(SpecError, match=r'the database ".*db" is empty'):
        net(tmp_path / "empty" / "db")


def test_sizes_may_differ_in_batches_of_one(tmp_path: Path) -> None:
    source = database(tmp_path, *(datum(np.zeros((1, 2, w), np.uint8)) for w in (3, 4)))
    layer = made(source, batch_size=1)
    assert [layer()[0].shape[3] for _ in range(3)] == [3, 4, 3]
    with pytest.raises(ValueError) as caught:
        made(source)()
    assert str(caught.value) == (
        "images of a batch have one size: record 1 is [1, 2, 4], the batch's first [1, 2, 3]"
    )


def test_a_database_that_is_cut_short(tmp_path: Path) -> None:
    source = database(tmp_path, *(datum(np.zeros((1, 30, 30), np.uint8)) for _ in range(99)))
    size = (source / "data.mdb").stat().st_size
    os.truncate(source / "data.mdb", size - 3000)
    with pytest.raises(
        SpecError, match=rf'layer "d": .*db" is cut short: 3000 of {size} bytes are missing'
    ):
        net(source)


def test_a_database_that_its_writer_has_open(tmp_path: Path) -> None:
    """It can be opened beside a net, a net beside it, and both once the net is gone."""
    path = str(database(tmp_path, datum(np.zeros((1, 1, 1), np.uint8))))
    with lmdb.open(path):
        made = net(Path(path))
        made()
    for _ in range(2):
        with lmdb.open(path, readonly=True) as environment:
            assert environment.stat()["entries"] == 1
        made = None


def test_a_database_that_is_made_anew(tmp_path: Path) -> None:
    """A layer reads on what it has opened; the next, or a copy, reads what is there."""
    source = database(tmp_path, *(datum(np.full((1, 1, 1), i, np.uint8), i) for i in range(3)))
    old = made(source)
    old()
    shutil.rmtree(source)
    database(tmp_path, *(datum(np.full((1, 1, 1), i, np.uint8), 10 + i) for i in range(3)))
    for layer in (copy.deepcopy(old), pickle.loads(pickle.dumps(old))):
        assert [layer()[1].tolist() for _ in range(2)] == [[12, 10], [11, 12]]
    assert made(source)()[1].tolist() == [10, 11]
    assert [old()[1].tolist() for _ in range(2)] == [[2, 0], [1, 2]]


def test_a_database_that_is_written_to(tmp_path: Path) -> None:
    source = database(tmp_path, datum(np.zeros((1, 1, 1), np.uint8), 1))
    layer = made(source)
    layer.infer(layer.params)
    database(tmp_path, *[datum(np.zeros((1, 1, 1), np.uint8), 2)] * 3)
    assert layer()[1].tolist() == [1, 1]
    database(tmp_path, *[datum(np.zeros((1, 1, 1), np.uint8), 3)] * 3)
    with pytest.raises(ValueError, match=r'^the database ".*db" was changed while it was read$'):
        layer()
    assert made(source)()[1].tolist() == [3, 3]


def test_without_lmdb(tmp_path: Path, monkeypatch: Any) -> None:
    """The reader is cortado's own."""
    layer = made(database(tmp_path, datum(np.zeros((1, 1, 1), np.uint8), 5)))
    monkeypatch.setitem(sys.modules, "lmdb", None)
    assert layer()[1].tolist() == [5, 5]
