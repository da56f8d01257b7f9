"""Weights in NumPy's ``.npz``: arrays called ``<layer>|<blob index>``, in Caffe's layout.

Names that begin with two underscores, such as ``__mean_bgr_channel``, are no layers'. Nothing is
unpickled, and an array is read when it is used: what other layers' arrays claim to be costs nothing.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from cortado.layers._engine.checks import Shape
from cortado.prototxt_like.files import open_file

from .stored import Shapes, Stored

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_PIECE = 2**20  # bytes


@dataclass(frozen=True)
class Blob:
    """An array of a file, of which the shape and the type are known; ``blob[()]`` reads it."""

    file: zipfile.ZipFile
    name: str
    shape: Shape
    dtype: np.dtype[Any]

    def __getitem__(self, index: tuple[()]) -> Any:
        with self.file.open(self.name) as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)

    def expect_readable(self) -> None:
        """Read the bytes, whose checksum ``zipfile`` compares, and keep none."""
        with self.file.open(self.name) as stream:
            while stream.read(_PIECE):
                pass


def read(path: Path, shapes: Shapes) -> list[Stored]:
    """The layers of a file, their blobs as arrays that are read when they are used.

    Blobs as large as those in ``shapes`` of the net to fill are read once to see that they can be.
    Raises ValueError for another kind of file or a damaged one, OSError for none.
    """
    open_file(path).close()
    layers: dict[str, Stored] = {}
    with _reading(path):
        file = zipfile.ZipFile(path)
    for info in file.infolist():
        key = info.filename.removesuffix(".npy")
        if key.startswith("__"):
            continue
        layer, _, index = key.rpartition("|")
        if not (layer and index.isdecimal() and index.isascii() and len(index) < 10):
            raise ValueError(f'{path}: "{key}" is no blob of a layer: expected names such as "conv1|0"')
        blobs = layers.setdefault(layer, Stored(layer, {})).blobs
        if int(index) in blobs:
            raise ValueError(f'{path}: "{key}" is there twice')
        blobs[int(index)] = _blob(path, file, info, {*map(prod, shapes.get(layer, ()))})
    return list(layers.values())


def _blob(path: Path, file: zipfile.ZipFile, info: zipfile.ZipInfo, wanted: set[int]) -> Blob:
    with _reading(path, info.filename):
        with file.open(info) as stream:
            shape, dtype = _header(stream)
            header = stream.tell()
        if dtype.kind not in "fiu":
            raise ValueError(f"it holds no numbers, but {list(shape)} of {dtype}")
        size, there = header + prod(shape) * dtype.itemsize, info.file_size
        if size != there:
            raise ValueError(f"{list(shape)} of {dtype} are {size:,} bytes, there are {there:,}")
        blob = Blob(file, info.filename, shape, dtype)
        if prod(shape) in wanted:
            blob.expect_readable()
    return blob


def _header(stream: IO[bytes]) -> tuple[Shape, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"its format {version} is not that of an array of numbers")
    shape, _, dtype = _HEADERS[version](stream)
    if any(length < 0 for length in shape):
        raise ValueError(f"its shape is {list(shape)}")
    return shape, dtype


@contextmanager
def _reading(path: Path, name: str = "") -> Iterator[None]:
    """What is raised within for a damaged file becomes a ValueError that names it."""
    try:
        yield
    except Exception as error:  # zipfile and NumPy document none: zlib's and the parser's among others
        member = f' "{name}":' if name else ""
        why = str(error).split("\n")[0] or type(error).__name__
        raise ValueError(f"{path}: not a file of weights:{member} {why}") from None
