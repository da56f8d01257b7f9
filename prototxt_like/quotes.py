"""Quotes as each notation wants them, by Caffe's own message definitions.

Protobuf's text format has every string in quotes and no enum; YAML needs few of them. In the tree a
quoted text is a string and nothing else, so quotes are only asked for, put or left out where the
field is known: one of Caffe's messages, or of the few that nets have here besides. The blocks of other
layers are left as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from io import StringIO
from typing import Any

import yaml
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor

from . import schema
from .message import Field, Message, Scalar, describe
from .source import Errors, did_you_mean

Rewrite = Callable[[str, Scalar, Any], Scalar]

_STRING = "a string"
_ANY = "*"
_PAIRS = {_ANY: _STRING}
_SIAMESE = {"suffix": _STRING, "input": _PAIRS, "output": _PAIRS, "layer": "LayerParameter"}
_OURS: dict[str, dict[str, Any]] = {
    "NetParameter": {"match_param": {"image": _STRING, "feature": _STRING}},
    "LayerParameter": {"siamese": _SIAMESE, "include": _STRING, "twin_of": _STRING},
}
_RESOLVER = yaml.resolver.Resolver()
_EMITTER = yaml.emitter.Emitter(StringIO(), allow_unicode=True)


def from_prototxt(message: Message) -> Message:
    """The spec of a net or a solver as protobuf reads it: an enum's number becomes its name.

    Raises :class:`SpecError` for strings without quotes, and for enums with them.
    """
    errors = Errors()

    def rewrite(name: str, scalar: Scalar, kind: Any) -> Scalar:
        if kind == _STRING and not scalar.quoted:
            errors.add(f"{name}: expected a string in quotes, got {describe(scalar)}", scalar.span)
        elif isinstance(kind, EnumDescriptor):
            if scalar.quoted:
                hint = did_you_mean(scalar.text, kind.values_by_name)
                got = describe(scalar)
                errors.add(f"{name}: expected a name without quotes, got {got}", scalar.span, hint)
            for value in kind.values:
                if scalar.text == str(value.number):
                    return Scalar(value.name, scalar.span)
        return scalar

    made = _rewritten(message, _top(message), rewrite)
    errors.check()
    return made


def for_prototxt(message: Message) -> Message:
    """The spec of a net or a solver with its strings in quotes and its enums without."""

    def rewrite(name: str, scalar: Scalar, kind: Any) -> Scalar:
        if _quotable(kind) and scalar.text:
            return Scalar(scalar.text, scalar.span, quoted=kind == _STRING)
        return scalar

    return _rewritten(message, _top(message), rewrite)


def for_yaml(message: Message) -> Message:
    """The same with quotes only where YAML itself would take a string for something else."""

    def rewrite(name: str, scalar: Scalar, kind: Any) -> Scalar:
        if not _quotable(kind) or not scalar.text:
            return scalar
        return Scalar(scalar.text, scalar.span, quoted=kind == _STRING and not _plain(scalar.text))

    return _rewritten(message, _top(message), rewrite)


def _quotable(kind: Any) -> bool:
    return kind == _STRING or isinstance(kind, EnumDescriptor)


def _plain(text: str) -> bool:
    """Whether every reader of YAML takes the text, without quotes, for a string."""
    tag = _RESOLVER.resolve(yaml.ScalarNode, text, (True, False))
    style = _EMITTER.analyze_scalar(text)
    return bool(tag == "tag:yaml.org,2002:str" and style.allow_flow_plain and not style.multiline)


def _top(message: Message) -> str:
    """Whether this is a solver or a net, by the names that it has."""
    solver = _fields("SolverParameter")
    return "SolverParameter" if all(field.name in solver for field in message) else "NetParameter"


def _rewritten(message: Message, kind: Any, rewrite: Rewrite) -> Message:
    fields = []
    for field in message:
        inner = _kind(kind, field.name, isinstance(field.value, Message))
        value: Scalar | Message
        if isinstance(field.value, Message):
            value = _rewritten(field.value, inner, rewrite)
        else:
            value = rewrite(field.name, field.value, inner)
        fields.append(Field(field.name, value, field.span))
    return Message(message.span, fields)


def _kind(outer: Any, name: str, block: bool) -> Any:
    """What a field of a message is. For a block: a message's name, or a dictionary of what its fields
    are; for a scalar: a string, an enum's descriptor; None for others, and where nothing is known."""
    if isinstance(outer, dict):
        return outer.get(name, outer.get(_ANY))
    if outer is None:
        return None
    declared = _fields(outer).get(name)
    if declared is not None and block == (declared.message_type is not None):
        if declared.message_type:
            return declared.message_type.name
        is_string = declared.cpp_type == FieldDescriptor.CPPTYPE_STRING
        return declared.enum_type or (_STRING if is_string else None)
    ours = _OURS.get(outer, {}).get(name)
    return ours if block == isinstance(ours, dict) else None


@cache
def _fields(name: str) -> dict[str, FieldDescriptor]:
    """The fields of a message of Caffe's."""
    return dict(schema.message(name).DESCRIPTOR.fields_by_name)
