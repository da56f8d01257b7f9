"""Damaged files of the data layers and of Caffe's blobs: refused by a ValueError that names them, or
read."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from cortado.layers._data.caffe_files import read_blob, read_datum
from cortado.layers.data import hdf5_data, image_data
from cortado.prototxt_like.schema import message
from cortado.prototxt_like.wire import write_blob

MUTATIONS = 80


def hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(12, dtype=np.float32).reshape(4, 3)
        file.create_dataset("y", data=np.arange(4), chunks=(2,), compression="gzip")


def binaryproto(path: Path) -> None:
    write_blob(path, np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2))


def datum(path: Path) -> None:
    path.write_bytes(
        message("Datum")(channels=3, height=2, width=2, data=bytes(12)).SerializeToString()
    )


READERS: dict[Callable[[Path], None], Callable[[Path], object]] = {
    hdf5: lambda path: hdf5_data.read_sets(str(path), ("x", "y")),
    binaryproto: read_blob,
    datum: lambda path: read_datum(path.read_bytes()),
}


@pytest.mark.parametrize("write", READERS, ids=lambda write: write.__name__)
def test_damage(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path, rng = tmp_path / "file", random.Random(write.__name__)
    write(path)
    raw, refused = path.read_bytes(), []
    READERS[write](path)
    for i in range(MUTATIONS):
        data, at = bytearray(raw), rng.randrange(len(raw))
        if i % 4 == 0:
            del data[at:]
        else:
            length = rng.choice((1, 1, 4, 8))
            data[at : at + length] = rng.choice(
                (bytes(length), b"\xff" * length, rng.randbytes(length))
            )
        path.write_bytes(data)
        try:
            READERS[write](path)
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > MUTATIONS / 10
    assert write is datum or all(str(path) in text for text in refused)  # a record has no name


@pytest.mark.parametrize("read", [hdf5_data.read_list, image_data.read_list])
def test_lists(tmp_path: Path, read: Callable[[str], object]) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9.png 1\n")
    for name in ("none", "latin", ""):
        with pytest.raises(ValueError, match="cannot read the list of .*"):
            read(str(tmp_path / name))
    with pytest.raises(
        ValueError, match="cannot read the list of .* not a file, but a pipe or a device"
    ):
        read("/dev/zero")
