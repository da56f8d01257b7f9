"""Caffe's binary files: the weights of a ``.caffemodel`` as NumPy arrays.

Protobuf reads the bytes. The few messages that matter are declared here by BVLC Caffe's field
numbers; whatever else a file holds is passed over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from .source import SpecError

MAX_BYTES = 2**31 - 1  # protobuf's own limit

# Message: (field, number, type); a star marks a repeated field. Texts are bytes here, as nothing
# makes Caffe's be UTF-8, and so are packed floats: their bytes are an array's bytes already.
_SCHEMA = {
    "Net": [("layers", 2, "V1Layer*"), ("layer", 100, "Layer*")],
    "Layer": [("name", 1, "bytes"), ("type", 2, "bytes"), ("blobs", 7, "Blob*")],
    "V1Layer": [("name", 4, "bytes"), ("type", 5, "int32"), ("blobs", 6, "Blob*")],
    "Blob": [
        ("num", 1, "int64"),
        ("channels", 2, "int64"),
        ("height", 3, "int64"),
        ("width", 4, "int64"),
        ("data", 5, "bytes*"),
        ("shape", 7, "Shape"),
        ("double_data", 8, "bytes*"),
    ],
    "Shape": [("dim", 1, "int64*")],
}
_LEGACY_AXES = ("num", "channels", "height", "width")
_DATA, _DOUBLE_DATA = (5, 5), (8, 1)  # number and, of a value that is not packed, wire type

# The enum of layer types of the V1 format, from 1 up, by today's names.
_V1_NAMES = """
    Accuracy BNLL Concat Convolution Data Dropout EuclideanLoss Flatten HDF5Data HDF5Output Im2col
    ImageData InfogainLoss InnerProduct LRN MultinomialLogisticLoss Pooling ReLU Sigmoid Softmax
    SoftmaxWithLoss Split TanH WindowData Eltwise Power SigmoidCrossEntropyLoss HingeLoss MemoryData
    ArgMax Threshold DummyData Slice MVN AbsVal Silence ContrastiveLoss Exp Deconvolution
"""
_V1_TYPES = dict(enumerate(_V1_NAMES.split(), start=1))


@dataclass(frozen=True)
class WireLayer:
    """A layer of a binary net: its type by today's name, and its parameter blobs."""

    name: str
    type: str
    blobs: list[npt.NDArray[np.float32]]


def read_net(path: str | Path) -> list[WireLayer]:
    """Read the layers of a ``.caffemodel`` (a binary ``NetParameter``, of today's or the V1 format).

    All layers are returned in the file's order, those without blobs, too. A blob is a writable
    float32 array of the shape in the file, which in old files has always four axes.

    Raises :class:`SpecError`, which names the file, if it cannot be read, is cut off, holds no
    layers, or holds a blob whose values do not fill its shape.
    """
    net = _parse(path)
    layers = [
        *(_layer(path, layer, _V1_TYPES.get(layer.type, "")) for layer in net.layers),
        *(_layer(path, layer, _text(layer.type)) for layer in net.layer),
    ]
    if not layers:
        raise SpecError(f"{path}: not a Caffe model: it holds no layers")
    return layers


def _parse(path: str | Path) -> Any:
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SpecError(f"{path}: cannot read the file: {reason}") from None
    if len(raw) > MAX_BYTES:
        raise SpecError(f"{path}: the file is larger than protobuf's limit of 2 GiB")
    try:
        return _net_class().FromString(raw)
    except DecodeError:
        raise SpecError(f"{path}: not a Caffe model, or cut off") from None


@cache
def _net_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="cortado.proto", package="cortado", syntax="proto2")
    for message, fields in _SCHEMA.items():
        declared = file.message_type.add(name=message)
        for name, number, type in fields:
            field = declared.field.add(name=name, number=number)
            field.label = field.LABEL_REPEATED if type.endswith("*") else field.LABEL_OPTIONAL
            type = type.rstrip("*")
            if type in _SCHEMA:
                field.type, field.type_name = field.TYPE_MESSAGE, f".cortado.{type}"
            else:
                field.type = field.Type.Value(f"TYPE_{type.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("cortado.Net"))


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _layer(path: str | Path, layer: Any, type: str) -> WireLayer:
    found = WireLayer(_text(layer.name), type, [])
    for blob in layer.blobs:
        try:
            found.blobs.append(_array(blob))
        except ValueError as error:
            where = f'layer "{found.name}", blob {len(found.blobs)}'
            raise SpecError(f"{path}: {where}: {error}") from None
    return found


def _array(blob: Any) -> npt.NDArray[np.float32]:
    values = _values(blob, blob.double_data, _DOUBLE_DATA, "<f8")
    if not values.size:
        values = _values(blob, blob.data, _DATA, "<f4")
    legacy = any(blob.HasField(axis) for axis in _LEGACY_AXES)
    shape = [getattr(blob, axis) for axis in _LEGACY_AXES] if legacy else list(blob.shape.dim)
    if min(shape, default=0) < 0 or math.prod(shape) != values.size:
        raise ValueError(f"{values.size} values do not fill the shape {shape}")
    with np.errstate(over="ignore"):
        return values.astype(np.float32).reshape(shape)


def _values(blob: Any, chunks: list[bytes], key: tuple[int, int], dtype: str) -> npt.NDArray[Any]:
    """The floats of a field: packed, as Caffe writes them, or one by one, as protobuf allows."""
    if raw := b"".join(chunks):
        return np.frombuffer(raw, dtype)
    unknown: Any = UnknownFieldSet(blob)
    singly = [f.data for f in unknown if (f.field_number, f.wire_type) == key]
    return np.array(singly, dtype.replace("f", "u")).view(dtype)
