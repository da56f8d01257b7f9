"""What layers read of Caffe's own binary files: mean images and matrices, and database records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .images import planes, read_image

Array = npt.NDArray[Any]


def read_blob(path: str | Path) -> Array:
    """The one blob of a ``.binaryproto``, float32; raises ValueError if the file holds none."""
    from cortado.prototxt_like.source import SpecError
    from cortado.prototxt_like.wire import read_blobs

    try:
        found = read_blobs(path)
    except SpecError as error:
        raise ValueError(error.message) from None
    if len(found) != 1:
        raise ValueError(f"{path}: expected one blob, found {len(found)}")
    return np.array(found[0], np.float32)


def read_datum(record: bytes, color: bool | None = None) -> tuple[Array, int]:
    """The image [C, H, W] of a serialised Datum, uint8 or float32, and its label.

    An encoded image is BGR as OpenCV reads it: with ``color`` true of three channels, false of one,
    None as it is stored. Raises ValueError for what is no Datum, or one that is not whole, and as
    :func:`~cortado.layers._data.images.read_image` does.
    """
    from cortado.prototxt_like.schema import message
    from google.protobuf.message import DecodeError

    datum = message("Datum")()
    try:
        datum.ParseFromString(record)
    except DecodeError:
        raise ValueError("the record is not a Datum") from None
    if datum.encoded:
        return planes(read_image(datum.data, color, "an encoded Datum")), datum.label
    shape = (datum.channels, datum.height, datum.width)
    values = np.frombuffer(datum.data, np.uint8) if datum.data else np.float32(datum.float_data)
    if min(shape) < 1 or values.size != shape[0] * shape[1] * shape[2]:
        raise ValueError(f"a Datum of {list(shape)} has {values.size} values")
    return values.reshape(shape), datum.label
