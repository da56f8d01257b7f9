"""What a field of a net or a solver is by Caffe's own message definitions, or by the few that nets have
here besides. The blocks of other layers are unknown here: their layers say what is in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from . import schema
from .message import Field, Message, Scalar

Rewrite = Callable[[str, Scalar, Any], Scalar]

STRING = "a string"
_ANY = "*"
_PAIRS = {_ANY: STRING}
_SIAMESE = {"suffix": STRING, "input": _PAIRS, "output": _PAIRS, "layer": "LayerParameter"}
_OURS: dict[str, dict[str, Any]] = {
    "NetParameter": {
        "match_param": dict.fromkeys(("image", "feature", "confidence", "similarity", "block"), STRING)
    },
    "LayerParameter": {"siamese": _SIAMESE, "include": STRING, "twin_of": STRING},
}


def is_solver(message: Message) -> bool:
    """Whether all that a spec gives belongs to a solver."""
    solver = fields("SolverParameter")
    return all(field.name in solver for field in message)


def top(message: Message) -> str:
    """The message that a spec is, a solver's or a net's, by the names that it has."""
    return "SolverParameter" if is_solver(message) else "NetParameter"


def scalars(message: Message, kind: Any = None) -> Iterator[tuple[str, Scalar, Any]]:
    """Every scalar of a spec with its field's name and its kind (:func:`of`)."""
    kind = kind or top(message)
    for field in message:
        inner = of(kind, field.name, isinstance(field.value, Message))
        if isinstance(field.value, Scalar):
            yield field.name, field.value, inner
        elif inner is not None:
            yield from scalars(field.value, inner)


def rewritten(message: Message, rewrite: Rewrite, kind: Any = None) -> Message:
    """A spec with each scalar as ``rewrite`` makes it of its field's name, the scalar and its kind, but
    for blocks of which nothing is known."""
    kind = kind or top(message)
    made = []
    for field in message:
        inner = of(kind, field.name, isinstance(field.value, Message))
        value = field.value
        if isinstance(value, Scalar):
            value = rewrite(field.name, value, inner)
        elif inner is not None:
            value = rewritten(value, rewrite, inner)
        made.append(Field(field.name, value, field.span))
    return Message(message.span, made)


def of(outer: Any, name: str, block: bool) -> Any:
    """The kind of a field of a message. Of a block: its message's name, or a dictionary of what its
    fields are; of a scalar: :data:`STRING`, or the field's descriptor; None where nothing is known."""
    if isinstance(outer, dict):
        return outer.get(name, outer.get(_ANY))
    if outer is None:
        return None
    declared = fields(outer).get(name)
    if declared is not None and block == (declared.message_type is not None):
        if declared.message_type:
            return declared.message_type.name
        return STRING if declared.cpp_type == FieldDescriptor.CPPTYPE_STRING else declared
    ours = _OURS.get(outer, {}).get(name)
    return ours if block == isinstance(ours, dict) else None


@cache
def fields(name: str) -> dict[str, FieldDescriptor]:
    """The fields of a message of Caffe's."""
    return dict(schema.message(name).DESCRIPTOR.fields_by_name)
