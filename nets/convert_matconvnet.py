"""MatConvNet's nets (``.mat``): the parameters of a simplenn or a DagNN by layer name.

A filter bank lies there as [height, width, input, output] and becomes Caffe's [output, input, height,
width], for a transposed convolution (whose bank is [height, width, output, input]) [input, output,
height, width]. MATLAB drops last axes of 1. A fully connected layer is a convolution there: where the
net to fill has an InnerProduct of that name, its filters become the rows of a matrix, whose columns
follow Caffe's order (channel, row, column).

The images that a net takes are the spec's matter: nets trained in MatConvNet take RGB.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .stored import Shapes, Stored

Array = npt.NDArray[Any]

# What loadmat raises for bytes that are no such file, and a file of something else leads to.
_BROKEN = (ValueError, TypeError, LookupError, StopIteration, EOFError, struct.error, zlib.error)

CONVOLUTIONS = ("conv", "convt", "dagnn.Conv", "dagnn.ConvTranspose")


def read(path: Path, shapes: Shapes) -> list[Stored]:
    """The layers of a file that have parameters, suited to the ``shapes`` of the net to fill.

    Raises ValueError where the file is no net of MatConvNet's, or of MATLAB's version 7.3.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        with open(path, "rb") as stream:
            file = loadmat(stream)
        net = next(_records(file["net"])) if "net" in file else file
        layers = list(_records(net["layers"]))
        found = _dagnn(net, layers) if "params" in _names(net) else map(_simplenn, layers)
        stored = [
            Stored(name, dict(enumerate(_blobs(type, values, shapes.get(name, ())))))
            for name, type, values in found
            if values
        ]
    except NotImplementedError:
        hint = "MATLAB's version 7.3 is not read: save it with -v7"
        raise ValueError(f"{path}: {hint}") from None
    except (*_BROKEN, MatReadError) as error:
        raise ValueError(f"{path}: not a net of MatConvNet's: {error!r}") from None
    if not stored:
        raise ValueError(f"{path}: not a net of MatConvNet's: no layer has parameters")
    return stored


def _dagnn(net: Any, layers: list[Any]) -> Iterator[tuple[str, str, list[Array]]]:
    """Each layer's name, type and parameters, which the net holds by name."""
    params = {_text(param, "name"): param["value"] for param in _records(net["params"])}
    for layer in layers:
        values = [params[str(name.item())] for name in layer["params"].ravel()]
        yield _text(layer, "name"), _text(layer, "type"), values


def _simplenn(layer: Any) -> tuple[str, str, list[Array]]:
    """A layer's name, type and parameters: ``weights``, or in old files ``filters`` and ``biases``."""
    names = _names(layer)
    old = [layer[name] for name in ("filters", "biases") if name in names]
    values = list(layer["weights"].ravel()) if "weights" in names else old
    return _text(layer, "name"), _text(layer, "type"), values


def _blobs(type: str, values: Sequence[Array], wanted: Sequence[tuple[int, ...]]) -> Iterator[Array]:
    for i, value in enumerate(values):
        if type in CONVOLUTIONS and i == 0:
            axes = value.shape + (1,) * (4 - value.ndim)
            filters = value.reshape(axes).transpose(3, 2, 0, 1)
            matrix = (axes[3], axes[0] * axes[1] * axes[2])
            yield filters.reshape(matrix) if i < len(wanted) and wanted[i] == matrix else filters
        else:
            yield value.reshape([size for size in value.shape if size != 1] or [1])


def _records(array: Array) -> Iterator[Any]:
    """The structs of a struct array, or of a cell array of structs."""
    for item in array.ravel():
        yield item.ravel()[0] if isinstance(item, np.ndarray) else item


def _names(record: Any) -> Sequence[str]:
    return list(record) if isinstance(record, dict) else record.dtype.names or ()


def _text(record: Any, name: str) -> str:
    value = record[name] if name in _names(record) else ""
    return str(value.item()) if isinstance(value, np.ndarray) and value.size else ""
