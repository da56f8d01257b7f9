"""MatConvNet's nets (``.mat``): the parameters of a simplenn or a DagNN by layer name.

A filter bank lies there as [height, width, input, output] and becomes Caffe's [output, input, height,
width], for a transposed convolution (whose bank is [height, width, output, input]) [input, output,
height, width]. MATLAB drops last axes of 1. A fully connected layer is a convolution there: where the
net to fill has an InnerProduct of that name, its filters become the rows of a matrix, whose columns
follow Caffe's order (channel, row, column).

The images that a net takes are the spec's matter: nets trained in MatConvNet take RGB.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from cortado.layers._data import mat_file

from .stored import Shapes, Stored

Array = npt.NDArray[Any]
Struct: TypeAlias = Mapping[str, Any] | np.void
Layer: TypeAlias = tuple[str, str, list[Array]]
"""A layer's name, type and parameters."""

CONVOLUTIONS = ("conv", "convt", "dagnn.Conv", "dagnn.ConvTranspose")


def read(path: Path, shapes: Shapes) -> list[Stored]:
    """The layers of a file that have parameters, suited to the ``shapes`` of the net to fill.

    Raises ValueError where the file is damaged, of MATLAB's version 7.3, or no net of MatConvNet's.
    """
    file = mat_file.read(path)
    try:
        net = next(_structs(file["net"]), {}) if "net" in file else file
        layers = list(_structs(_field(net, "layers")))
        found = _dagnn(net, layers) if "params" in _names(net) else map(_simplenn, layers)
        stored = [
            Stored(name, dict(enumerate(_blobs(type, values, shapes.get(name, ())))))
            for name, type, values in found
            if values
        ]
        if not stored:
            raise ValueError("no layer has parameters")
    except ValueError as error:
        raise ValueError(f"{path}: not a net of MatConvNet's: {error}") from None
    return stored


def _dagnn(net: Struct, layers: list[Struct]) -> Iterator[Layer]:
    params = {_text(param, "name"): _field(param, "value") for param in _structs(_field(net, "params"))}
    for layer in layers:
        names = [_string(name, "params") for name in _field(layer, "params").ravel()]
        if missing := set(names) - set(params):
            raise ValueError(f'expected parameters called "{min(missing)}"')
        yield _text(layer, "name"), _text(layer, "type"), [params[name] for name in names]


def _simplenn(layer: Struct) -> Layer:
    """A layer's parameters are its ``weights``, or in old files ``filters`` and ``biases``."""
    names = _names(layer)
    old = [_field(layer, name) for name in ("filters", "biases") if name in names]
    values = list(_field(layer, "weights").ravel()) if "weights" in names else old
    return _text(layer, "name"), _text(layer, "type"), values


def _blobs(type: str, values: Sequence[Array], wanted: Sequence[tuple[int, ...]]) -> Iterator[Array]:
    for i, value in enumerate(values):
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu" or value.ndim > 4:
            raise ValueError(f"expected parameters of up to four axes, got {_shown(value)}")
        if type in CONVOLUTIONS and i == 0:
            axes = value.shape + (1,) * (4 - value.ndim)
            filters = value.reshape(axes).transpose(3, 2, 0, 1)
            matrix = (axes[3], axes[0] * axes[1] * axes[2])
            yield filters.reshape(matrix) if i < len(wanted) and wanted[i] == matrix else filters
        else:
            yield value.reshape([size for size in value.shape if size != 1] or [1])


def _structs(array: Any) -> Iterator[Struct]:
    """The structs of a struct array, or of a cell array of structs."""
    for item in array.ravel() if isinstance(array, np.ndarray) else [array]:
        struct = item.flat[0] if isinstance(item, np.ndarray) and item.size else item
        if not isinstance(struct, np.void):
            raise ValueError(f"expected a struct, got {_shown(struct)}")
        yield struct


def _names(struct: Struct) -> Sequence[str]:
    return list(struct) if isinstance(struct, Mapping) else struct.dtype.names or ()


def _field(struct: Struct, name: str) -> Array:
    if name not in _names(struct):
        raise ValueError(f'expected a field "{name}", got {list(_names(struct))}')
    value = struct[name]
    if not isinstance(value, np.ndarray):
        raise ValueError(f'expected an array as "{name}", got {_shown(value)}')
    return value


def _text(struct: Struct, name: str) -> str:
    return _string(struct[name], name) if name in _names(struct) else ""


def _string(value: Any, name: str) -> str:
    """The one string of an array, or of an empty one none."""
    if isinstance(value, np.ndarray) and not value.size:
        return ""
    if not isinstance(value, np.ndarray) or value.dtype.kind != "U" or value.size > 1:
        raise ValueError(f'expected a string as "{name}", got {_shown(value)}')
    return str(value.item())


def _shown(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return type(value).__name__
    return f"{list(value.shape)} of {value.dtype.name if value.dtype.names is None else 'structs'}"
