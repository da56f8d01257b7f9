"""Caffe's protobuf messages and enums by name, as in the module that protoc makes:
``caffe_pb2.NetParameter()``, ``caffe_pb2.TEST``, ``caffe_pb2.PoolingParameter.MAX``."""

from __future__ import annotations

from typing import Any

from cortado.prototxt_like import schema

_PHASE = schema.enum("Phase")


def __getattr__(name: str) -> Any:
    if name in schema.names():
        return schema.message(name)
    if name == "Phase":
        return _PHASE
    if name in _PHASE.DESCRIPTOR.values_by_name:
        return _PHASE.Value(name)
    if name == "DESCRIPTOR":
        return _PHASE.DESCRIPTOR.file
    raise AttributeError(f"Caffe has no message {name!r}")


def __dir__() -> list[str]:
    return sorted(["DESCRIPTOR", "Phase", *_PHASE.DESCRIPTOR.values_by_name, *schema.names()])
