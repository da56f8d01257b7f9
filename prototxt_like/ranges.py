"""Integers in the range of their fields, by Caffe's own message definitions."""

from __future__ import annotations

from google.protobuf.descriptor import FieldDescriptor

from .bind import READERS
from .kinds import scalars
from .message import Message
from .source import Errors

_RANGES: dict[int | None, tuple[str, int, int]] = {
    FieldDescriptor.CPPTYPE_INT32: ("int32", -(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: ("uint32", 0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: ("int64", -(2**63), 2**63 - 1),
}


def check(message: Message) -> None:
    """Raises :class:`~.source.SpecError` at each integer that its field cannot hold, as protobuf does.

    What is no integer at all is left to whoever reads the field.
    """
    errors = Errors()
    for name, scalar, kind in scalars(message):
        declared = _RANGES.get(getattr(kind, "cpp_type", None))
        value = errors.attempt(READERS[int], scalar) if declared else None
        if declared is None or not isinstance(value, int):
            continue
        what, low, high = declared
        if not low <= value <= high:
            text = f"{name} must be from {low} to {high} ({what}), got {scalar.text}"
            errors.add(text, scalar.span)
    errors.check()
