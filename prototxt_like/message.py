"""One tree for both notations: a message is an ordered list of fields, keys may repeat.

``Message`` knows no schema: it is what prototxt text or YAML says, with a span on every node.
:mod:`cortado.prototxt_like.bind` gives it types.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from .source import Span


@dataclass(frozen=True, slots=True)
class Scalar:
    """A leaf as it was written. ``quoted`` tells ``"64"`` from ``64``; its type is the reader's."""

    text: str
    span: Span
    quoted: bool = False


@dataclass(frozen=True, slots=True)
class Field:
    """One ``name: value`` of a message; ``span`` is the name's place."""

    name: str
    value: Scalar | Message
    span: Span


@dataclass(slots=True)
class Message:
    """An ordered multimap of fields.

    A YAML list under a key, and a prototxt field that repeats, both become one Field an element
    (each with the place of the key; its value has the element's own). ``span`` is where the block
    begins: its opening brace, or its first key.
    """

    span: Span
    fields: list[Field] = field(default_factory=list)

    def __iter__(self) -> Iterator[Field]:
        return iter(self.fields)

    def __contains__(self, name: str) -> bool:
        return any(f.name == name for f in self.fields)

    def all(self, name: str) -> list[Field]:
        """Every field of this name, in order."""
        return [f for f in self.fields if f.name == name]

    def get(self, name: str) -> Field | None:
        """The last field of this name (protobuf's rule for singular fields), or None."""
        found = self.all(name)
        return found[-1] if found else None

    def text(self, name: str, default: str = "") -> str:
        """The text of a scalar field, or the default."""
        found = self.get(name)
        return found.value.text if found and isinstance(found.value, Scalar) else default

    def size(self) -> int:
        """Number of values, with those of the blocks inside."""
        return sum(1 + f.value.size() if isinstance(f.value, Message) else 1 for f in self.fields)

    def add(self, name: str, value: Scalar | Message | str, span: Span | None = None) -> None:
        """Append a field; a plain string becomes a quoted scalar at the same place."""
        where = span or self.span
        if isinstance(value, str):
            value = Scalar(value, where, quoted=True)
        self.fields.append(Field(name, value, where))


def describe(value: Scalar | Message) -> str:
    """What stands there, for an error to say: ``a block``, ``the string "64"``, ``64``, ``nothing``."""
    if isinstance(value, Message):
        return "a block"
    shown = value.text if len(value.text) <= 40 else value.text[:39] + "…"
    if value.quoted:
        return f"the string {json.dumps(shown, ensure_ascii=False)}"
    return shown or "nothing"


def same(a: Scalar | Message, b: Scalar | Message) -> bool:
    """Equal trees, places aside."""
    if isinstance(a, Scalar) or isinstance(b, Scalar):
        return (
            isinstance(a, Scalar) and isinstance(b, Scalar) and (a.text, a.quoted) == (b.text, b.quoted)
        )
    return len(a.fields) == len(b.fields) and all(
        x.name == y.name and same(x.value, y.value) for x, y in zip(a.fields, b.fields, strict=True)
    )
