"""Caffe's binary files: ``.caffemodel``, ``.solverstate`` and ``.binaryproto``, read and written.

Protobuf would hold a second copy of all weights while it reads or writes them. So a file is mapped
into memory, the fields around the blobs are walked over here, and the values stay where they lie:
the arrays are views of the map, whose pages are read on first use and are private to the process (an
array can be written to; the file stays as it is). Protobuf reads what is small, a blob's shape.

What a hostile file can make this do is bounded: only blobs' values are larger than what is walked
over, and the fields walked over are counted.
"""

from __future__ import annotations

import math
import mmap
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from .files import open_file, replace_file
from .schema import message
from .source import SpecError
from .upgrade import V1_TYPES

MAX_BYTES = 2**31 - 1  # protobuf's own limit
MAX_FIELDS = 2**17  # GoogLeNet has 2,000
MAX_HEAD = 2**20  # bytes of a blob beside its packed values
MAX_AXES = 32  # Caffe's own limit

Array: TypeAlias = npt.NDArray[np.float32]
Chunk: TypeAlias = bytes | memoryview

# Numbers of the fields that are walked over, in Caffe's messages.
_NET_V1_LAYER, _NET_LAYER = 2, 100
_BLOB_DATA, _BLOB_DIFF, _BLOB_DOUBLE_DATA, _BLOB_DOUBLE_DIFF = 5, 6, 8, 9
_BLOB_VALUES = (_BLOB_DATA, _BLOB_DIFF, _BLOB_DOUBLE_DATA, _BLOB_DOUBLE_DIFF)
_VECTOR_BLOBS = 1
_STATE_NET, _STATE_HISTORY, _STATE_EXTRA = 2, 3, 1000  # the last is ours: Caffe passes over it
_LEGACY_AXES = ("num", "channels", "height", "width")

_SPEC = re.compile(rb"[ \t\r\n]*(#|[A-Za-z_]\w*[ \t]*[:{])")  # how the text of a net begins

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


class _Numbers(NamedTuple):
    """Where a generation of layers keeps what is read of it; ``inner`` is V1's box for a V0 layer."""

    name: int
    type: int
    blobs: int
    inner: int = -1


_LAYER, _V1_LAYER, _V0_LAYER = _Numbers(1, 2, 7), _Numbers(4, 5, 6, 1), _Numbers(1, 2, 50)

_V1_NAMES = dict(enumerate(V1_TYPES.values(), start=1))


class WireLayer(NamedTuple):
    """A layer of a binary net and its parameter blobs. ``type`` is today's name of a V1 layer's type,
    and what stands in the file for the others."""

    name: str
    type: str
    blobs: list[Array]


class SolverState(NamedTuple):
    """A solver's state as Caffe stores it: iterations done, the file of the weights, the steps that a
    policy took, each parameter's history, and ``extra`` bytes, ours, that Caffe passes over."""

    iter: int
    learned_net: str
    current_step: int
    history: list[Array]
    extra: bytes = b""


def read_net(path: str | Path) -> list[WireLayer]:
    """Read the layers of a ``.caffemodel``: a NetParameter of today's, the V1 or the V0 format.

    All layers are returned in the file's order, those without blobs, too. A blob is a writable
    float32 array of the shape in the file, which in old files has always four axes; it is a view of
    the mapped file (so it need not be aligned) unless the file holds doubles.

    Raises :class:`SpecError`, which names the file, if it cannot be read, is cut off, holds no
    layers, or holds a blob whose values do not fill its shape.
    """
    with _mapped(path, "a Caffe model") as file:
        layers = []
        for number, value, _ in file.fields(file.content):
            if number == _NET_LAYER:
                layers.append(file.layer(_sub(value), _LAYER))
            elif number == _NET_V1_LAYER:
                layers.append(file.layer(_sub(value), _V1_LAYER))
    if not any(layer.name for layer in layers):
        raise SpecError(f"{path}: not a Caffe model: it holds no layers")
    return layers


def write_net(path: str | Path, name: str, layers: Iterable[tuple[Any, Sequence[Array]]]) -> None:
    """Write a ``.caffemodel``: each layer's LayerParameter without its blobs, and the blobs.

    The arrays are written as they lie in memory. Raises ValueError where the file would be larger
    than 2 GiB, which protobuf does not read.
    """
    net = message("NetParameter")(name=name).SerializeToString()
    chunks = (
        _field(_NET_LAYER, head.SerializePartialToString(), *_blobs(_LAYER.blobs, blobs))
        for head, blobs in layers
    )
    _write(path, chain([[net]], chunks))


def read_solver_state(path: str | Path) -> SolverState:
    """Read a ``.solverstate``; raises :class:`SpecError`, which names the file, where it is none."""
    what = "a solver's state"
    history: list[Array] = []
    head, learned_net, extra = bytearray(), "", b""
    with _mapped(path, what) as file:
        for number, value, field in file.fields(file.content):
            if number == _STATE_HISTORY:
                array = file.blob(_sub(value), f"history {len(history)}")
                history.append(np.require(array, requirements=["A"]))
            elif number == _STATE_NET:
                learned_net = _text(value)
            elif number == _STATE_EXTRA:
                extra = bytes(_sub(value))
            else:
                _append(head, field)
        state = message("SolverState").FromString(bytes(head))
        if not state.HasField("iter"):
            raise SpecError(f"{path}: not {what}: it has no iter")
        return SolverState(state.iter, learned_net, state.current_step, history, extra)


def write_solver_state(
    path: str | Path,
    iter: int,
    learned_net: str,
    history: Sequence[Array],
    current_step: int = 0,
    extra: bytes = b"",
) -> None:
    """Write a ``.solverstate`` (see :class:`SolverState`). Raises ValueError as :func:`write_net`."""
    head = message("SolverState")(iter=iter, learned_net=learned_net, current_step=current_step)
    last = _field(_STATE_EXTRA, extra) if extra else []
    _write(path, [[head.SerializeToString()], _blobs(_STATE_HISTORY, history), last])


def read_blobs(path: str | Path) -> list[Array]:
    """The blob of a ``.binaryproto`` (a mean image), or all of a BlobProtoVector.

    Arrays and errors are as :func:`read_net`'s.
    """
    with _mapped(path, "a binary blob") as file:
        vector = [value for number, value, _ in file.fields(file.content) if number == _VECTOR_BLOBS]
        if any(isinstance(value, memoryview) for value in vector):
            return [file.blob(_sub(value), f"blob {i}") for i, value in enumerate(vector)]
        return [file.blob(file.content, "the blob")]


def write_blob(path: str | Path, blob: Array) -> None:
    """Write a ``.binaryproto`` of one blob."""
    _write(path, [_blob(blob)])


def write_blobs(path: str | Path, blobs: Sequence[Array]) -> None:
    """Write a BlobProtoVector."""
    _write(path, [_blobs(_VECTOR_BLOBS, blobs)])


# Reading


@contextmanager
def _mapped(path: str | Path, what: str) -> Iterator[_File]:
    """The file, walked over in the block; what is malformed there is an error that names it."""
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise SpecError(f"{path}: the file is larger than protobuf's limit of 2 GiB")
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if size else b""
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SpecError(f"{path}: cannot read the file: {reason}") from None
    try:
        yield _File(str(path), memoryview(content))
    except (_Malformed, DecodeError):
        swapped = what == "a Caffe model" and _SPEC.match(content)
        text = "; it is text: is it a spec, not weights?" if swapped else ""
        raise SpecError(f"{path}: not {what}, or cut off{text}") from None


class _Malformed(Exception):
    """Bytes that are no message."""


class _File:
    """The bytes of a file, and how many fields of them were walked over."""

    def __init__(self, path: str, content: memoryview) -> None:
        self.path, self.content, self.walked = path, content, 0

    def fields(self, message: memoryview) -> Iterator[tuple[int, int | memoryview, memoryview]]:
        """Each field's number, its value (bytes, or an integer of a varint), and all its bytes."""
        at, end = 0, len(message)
        while at < end:
            self.walked += 1
            if self.walked > MAX_FIELDS:
                raise SpecError(f"{self.path}: more than {MAX_FIELDS} fields beside the blobs' values")
            start = at
            key, at = _varint(message, at)
            wire = key & 7
            value, at = _varint(message, at) if wire in (_VARINT, _BYTES) else (0, at)
            last = at + {_VARINT: 0, _FIXED64: 8, _BYTES: value, _FIXED32: 4}.get(wire, end + 1)
            if last > end:
                raise _Malformed
            yield key >> 3, message[at:last] if wire == _BYTES else value, message[start:last]
            at = last

    def layer(self, message: memoryview, numbers: _Numbers) -> WireLayer:
        name = type = ""
        found: list[memoryview] = []
        blobs: list[Array] = []
        for number, value, _ in self.fields(message):
            if number == numbers.name:
                name = _text(value)
            elif number == numbers.type:
                type = _V1_NAMES.get(value, "") if isinstance(value, int) else _text(value)
            elif number == numbers.blobs:
                found.append(_sub(value))
            elif number == numbers.inner:
                name, type, blobs = self.layer(_sub(value), _V0_LAYER)
        for raw in found:
            blobs.append(self.blob(raw, f'layer "{name}", blob {len(blobs)}'))
        return WireLayer(name, type, blobs)

    def blob(self, raw: memoryview, where: str) -> Array:
        """A blob's values in its shape; ``where`` says in errors which blob it is."""
        head = bytearray()
        values: dict[int, list[memoryview]] = {number: [] for number in _BLOB_VALUES}
        for number, value, field in self.fields(raw):
            if number in values and isinstance(value, memoryview):
                values[number].append(value)
            else:
                _append(head, field)
        blob = message("BlobProto").FromString(bytes(head))
        try:
            if blob.data or blob.double_data:  # one by one, or in both ways
                blob = message("BlobProto").FromString(raw)
                array = np.array(blob.double_data or blob.data)
            elif values[_BLOB_DOUBLE_DATA]:
                array = _joined(values[_BLOB_DOUBLE_DATA], "<f8")
            else:
                array = _joined(values[_BLOB_DATA], "<f4")
            with np.errstate(over="ignore"):
                return array.astype(np.float32, copy=False).reshape(_shape(blob, array.size))
        except ValueError as error:
            raise SpecError(f"{self.path}: {where}: {error}") from None


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The integer that begins there, and where it ends."""
    value = 0
    for i, byte in enumerate(message[at : at + 10]):
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value, at + i + 1
    raise _Malformed


def _sub(value: int | memoryview) -> memoryview:
    """The value of a field that must be bytes."""
    if isinstance(value, int):
        raise _Malformed
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_sub(value)).decode("utf-8", "replace")  # nothing makes Caffe's names be UTF-8


def _append(head: bytearray, field: memoryview) -> None:
    if len(head) + len(field) > MAX_HEAD:
        raise _Malformed
    head += field


def _joined(chunks: list[memoryview], dtype: str) -> npt.NDArray[Any]:
    """A view of the packed values, which Caffe writes in one piece."""
    arrays = [np.frombuffer(chunk, dtype) for chunk in chunks if chunk]
    return arrays[0] if len(arrays) == 1 else np.concatenate([np.zeros(0, dtype), *arrays])


def _shape(blob: Any, size: int) -> list[int]:
    legacy = any(blob.HasField(axis) for axis in _LEGACY_AXES)
    shape = [getattr(blob, axis) for axis in _LEGACY_AXES] if legacy else blob.shape.dim[: MAX_AXES + 1]
    if len(shape) > MAX_AXES:
        raise ValueError(f"more than {MAX_AXES} axes")
    if min(shape, default=0) < 0 or math.prod(shape) != size:
        raise ValueError(f"{size} values do not fill the shape {shape}")
    return shape


# Writing


def _field(number: int, *chunks: Chunk) -> list[Chunk]:
    """A field of bytes, as the pieces to write one after the other."""
    size = sum(len(chunk) for chunk in chunks)
    return [_varint_of(number << 3 | _BYTES) + _varint_of(size), *chunks]


def _varint_of(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + _varint_of(rest) if rest else bytes([low])


def _blob(array: Array) -> list[Chunk]:
    values = np.asarray(array, "<f4", order="C")
    data = _field(_BLOB_DATA, values.reshape(-1).view(np.uint8).data) if values.size else []
    shape = message("BlobShape")(dim=values.shape) if values.shape else None  # as Caffe's scalars
    return [*data, message("BlobProto")(shape=shape).SerializeToString()]


def _blobs(number: int, arrays: Iterable[Array]) -> list[Chunk]:
    return [chunk for array in arrays for chunk in _field(number, *_blob(array))]


def _write(path: str | Path, parts: Iterable[list[Chunk]]) -> None:
    """Write the parts one after the other; the file is replaced whole or not at all."""

    def write(beside: Path) -> None:
        with open(beside, "wb") as file:
            for part in parts:
                file.writelines(part)
                if file.tell() > MAX_BYTES:
                    raise ValueError(f"{path}: larger than protobuf's limit of 2 GiB")

    replace_file(path, write)
