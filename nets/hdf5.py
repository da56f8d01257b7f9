"""Caffe's HDF5 weights (``.caffemodel.h5``): ``data/<layer>/<index>``, shared blobs at their owner."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cortado.layers._data import hdf5_file
from cortado.prototxt_like.files import open_file
from cortado.prototxt_like.wire import Array

from .stored import Stored

MAGIC = b"\x89HDF\r\n\x1a\n"


def is_hdf5(path: Path) -> bool:
    """Whether a file begins as HDF5's do; a file that cannot be read does not."""
    with suppress(OSError), open_file(path) as file:
        return file.read(len(MAGIC)) == MAGIC
    return False


def read(path: Path) -> list[Stored]:
    """The layers of a file, their blobs as datasets that are read when they are used.

    Raises ValueError for another kind of file or a damaged one, OSError for none.
    """
    open_file(path).close()
    layers: dict[str, Stored] = {}
    data = hdf5_file.member(path, hdf5_file.open_hdf5(path), "data")
    for name, blob in hdf5_file.datasets(path, data):
        layer, _, index = name.rpartition("/")
        if not (index.isdecimal() and index.isascii() and len(index) < 10):
            raise ValueError(f'{path}: not a Caffe model: "data/{name}" is no index of a blob')
        hdf5_file.expect_numbers(path, name, blob)
        hdf5_file.expect_readable(path, name, blob)
        layers.setdefault(layer, Stored(layer, {}, owners_only=True)).blobs[int(index)] = blob
    return list(layers.values())


def write(path: Path, layers: Iterable[tuple[str, Mapping[int, Array]]]) -> None:
    """Write layers with the blobs that each owns; a layer without any is a group, as in Caffe."""

    def fill(file: Any) -> None:
        data = file.create_group("data")
        for layer, blobs in layers:
            group = data.require_group(layer)
            for index, blob in blobs.items():
                group.create_dataset(str(index), data=blob)

    hdf5_file.write_hdf5(path, fill)
