"""onnxruntime's MaxRoiPool: Fast R-CNN's ROI pooling by others."""

from __future__ import annotations

import struct
from collections.abc import Callable

import torch
from torch import Tensor


def max_roi_pool(size: tuple[int, int], scale: float) -> Callable[[Tensor, Tensor], Tensor]:
    """ROI pooling to (pooled_h, pooled_w) by onnxruntime, on one thread: (data, rois) -> top."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = _model(size, scale)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def pool(data: Tensor, rois: Tensor) -> Tensor:
        (top,) = session.run(None, {"x": data.numpy(), "rois": rois.numpy()})
        return torch.from_numpy(top)

    return pool


def _model(size: tuple[int, int], scale: float) -> bytes:
    """An ONNX model of one MaxRoiPool, which saves depending on the onnx package."""
    height, width = size
    shape = _field(1, "pooled_shape") + _field(8, height) + _field(8, width) + _field(20, 7)
    factor = _field(1, "spatial_scale") + _field(2, scale) + _field(20, 1)
    node = b"".join(_field(*x) for x in ((1, "x"), (1, "rois"), (2, "y"), (4, "MaxRoiPool")))
    node += _field(5, shape) + _field(5, factor)
    graph = _field(1, node) + _field(2, "g") + _field(11, _value("x", "nchw"))
    graph += _field(11, _value("rois", "ab")) + _field(12, _value("y", "defg"))
    return _field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 13))


def _value(name: str, axes: str) -> bytes:
    dims = b"".join(_field(1, _field(2, axis)) for axis in axes)
    return _field(1, name) + _field(2, _field(1, _field(1, 1) + _field(2, dims)))


def _field(number: int, value: int | float | str | bytes) -> bytes:
    """One field of a protobuf message."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    value = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(n: int) -> bytes:
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + _varint(n >> 7)
