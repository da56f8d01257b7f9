"""Each layer's ``Params`` has the fields of Caffe's message, of the same types, with its defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from enum import Enum
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from cortado.layers._engine import registry
from cortado.prototxt_like import schema
from google.protobuf.descriptor import Descriptor, FieldDescriptor

BLOCKS = schema.message("LayerParameter").DESCRIPTOR.fields_by_name
OF_CAFFE = [
    entry
    for entry in registry.entries()
    if entry.place.rsplit("/", 2)[-2] in ("standard", "data") and entry.layer.block in BLOCKS
]

# Fields of Caffe's that no layer reads, and why.
MOVED = "reading a spec moves it to transform_param"
LEFT_OUT = {
    f"{block}.{name}": MOVED
    for block in ("DataParameter", "ImageDataParameter")
    for name in ("scale", "mean_file", "crop_size", "mirror")
}

# Fields that Caffe's message does not have, and why.
ADDED = {
    "BatchNormParameter.engine": "NVIDIA's fork writes it",
    "TransformationParameter.channel_order": "this library's own",
    "TransformationParameter.std_value": "this library's own",
}

# Defaults that are not those of the message, and why.
GIVEN_OR_NOT = "whether it is given matters: the layer itself fills in Caffe's default"
FILLED = "the layer fills in its own filler where none is given, as in Caffe"
OTHER_DEFAULT = {
    "ConcatParameter.axis": GIVEN_OR_NOT,
    "ConcatParameter.concat_dim": GIVEN_OR_NOT,
    "SliceParameter.axis": GIVEN_OR_NOT,
    "SliceParameter.slice_dim": GIVEN_OR_NOT,
    "PoolingParameter.stride": GIVEN_OR_NOT,
    "LossParameter.normalization": GIVEN_OR_NOT,
    "InterpParameter.zoom_factor": GIVEN_OR_NOT,
    "InterpParameter.shrink_factor": GIVEN_OR_NOT,
    "ScaleParameter.filler": FILLED,
    "PReLUParameter.filler": FILLED,
    "NormalizeParameter.scale_filler": FILLED,
}

KINDS: dict[int, type | tuple[type, ...]] = {
    FieldDescriptor.CPPTYPE_INT32: int,
    FieldDescriptor.CPPTYPE_INT64: int,
    FieldDescriptor.CPPTYPE_UINT32: int,
    FieldDescriptor.CPPTYPE_FLOAT: float,
    FieldDescriptor.CPPTYPE_BOOL: bool,
    FieldDescriptor.CPPTYPE_ENUM: Enum,
    FieldDescriptor.CPPTYPE_STRING: (str, Enum),  # the name of a filler
}


def pairs(params: type, message: Descriptor) -> Iterator[tuple[type, Descriptor]]:
    """A class of parameters with its message, and those of its blocks."""
    yield params, message
    for name, hint in get_type_hints(params).items():
        inner = next((kind for kind in (hint, *get_args(hint)) if dataclasses.is_dataclass(kind)), None)
        if inner is not None:
            beside = BLOCKS if name.endswith("_param") else message.fields_by_name
            yield from pairs(inner, beside[name].message_type)


FOUND = {
    pair: None
    for entry in OF_CAFFE
    for pair in pairs(entry.layer.Params, BLOCKS[entry.layer.block].message_type)
}  # a set with an order


def names(params: type) -> set[str]:
    return {field.name for field in dataclasses.fields(params) if not field.name.endswith("_param")}


def repeats(theirs: FieldDescriptor) -> bool:
    return bool(theirs.default_value == [])


# ``Message.field``: our field, its type, and Caffe's.
COMMON = {
    f"{message.name}.{field.name}": (field, get_type_hints(params)[field.name], theirs)
    for params, message in FOUND
    for field in dataclasses.fields(params)
    if (theirs := message.fields_by_name.get(field.name)) is not None
}


def test_names() -> None:
    lacking = {f"{m.name}.{name}" for p, m in FOUND for name in set(m.fields_by_name) - names(p)}
    added = {f"{m.name}.{name}" for p, m in FOUND for name in names(p) - set(m.fields_by_name)}
    assert (lacking, added) == (set(LEFT_OUT), set(ADDED))


def test_every_block_has_a_layer() -> None:
    read = {entry.layer.block for entry in registry.entries()} | {"transform_param"}
    unread = {name for name in BLOCKS if name.endswith("_param")} - read
    assert unread == {"window_data_param"}  # the windows that R-CNN was trained on


@pytest.mark.parametrize("name", COMMON)
def test_types(name: str) -> None:
    _, hint, theirs = COMMON[name]
    kind = next(kind for kind in (*get_args(hint), hint) if isinstance(kind, type))
    assert repeats(theirs) == (get_origin(hint) is tuple)
    if theirs.message_type:
        assert dataclasses.is_dataclass(kind)
    else:
        assert issubclass(kind, KINDS[theirs.cpp_type])
    if theirs.enum_type:
        members = {member.name: member.value for member in kind}
        assert members == {value.name: value.number for value in theirs.enum_type.values}


def test_defaults() -> None:
    other = {name for name, (field, _, theirs) in COMMON.items() if not same(field.default, theirs)}
    assert other == set(OTHER_DEFAULT)


def same(ours: Any, theirs: FieldDescriptor) -> bool:
    """A field that must be given, or whose absence counts, has no default in Caffe either."""
    if repeats(theirs):
        return bool(ours == ())
    if ours is None or ours is dataclasses.MISSING:
        return not theirs.has_default_value
    if theirs.message_type:
        return bool(ours == type(ours)())
    value = ours.value if isinstance(ours, Enum) else ours
    return bool((np.float32(value) if isinstance(value, float) else value) == theirs.default_value)
