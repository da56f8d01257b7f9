"""Reading a spec from its file, whatever its notation or age, and the files it includes.

A ``layer`` entry that says nothing but ``include: other.yaml`` stands for the ``layer`` entries of
that file, named relative to the file that includes it, in a net's list and in a Siamese trunk's.
They keep the places they have in their own file.

Caffe's old forms are read as today's (:mod:`~.upgrade`); the logger ``cortado.prototxt_like`` says so.
"""

from __future__ import annotations

import logging
from pathlib import Path

from . import prototxt, ranges, yaml_spec
from .message import Field, Message, Scalar
from .quotes import from_prototxt
from .source import MAX_FIELDS, Errors, Source, SpecError
from .upgrade import Note, upgrade

LOGGER = logging.getLogger("cortado.prototxt_like")
MAX_INCLUDED = 64  # files, each counted as often as it is included

_PARSERS = {"yaml": yaml_spec.parse, "prototxt": prototxt.parse}


def load(path: str | Path) -> Message:
    """Read a spec: YAML if the file's suffix is .yaml or .yml, else prototxt.

    Raises :class:`SpecError`, located, for whatever is wrong with the file or with one it includes.
    """
    return _Reader().spec(Source.read(path), _notation(path), (Path(path).resolve(),))


def loads(text: str, name: str = "<string>", notation: str = "yaml") -> Message:
    """Read a spec from a string in the notation "yaml" or "prototxt".

    ``name`` is the file's in errors; what the spec includes is looked for beside it.
    """
    return _Reader().spec(Source(name, text), notation, ())


def _notation(path: str | Path) -> str:
    return "yaml" if Path(path).suffix.lower() in (".yaml", ".yml") else "prototxt"


class _Reader:
    """Reads one spec: collects the mistakes of all its files, and counts the included ones and their
    values."""

    def __init__(self) -> None:
        self.errors = Errors()
        self.notes: list[Note] = []
        self.included = self.size = 0

    def spec(self, source: Source, notation: str, within: tuple[Path, ...]) -> Message:
        message = self.read(source, notation, within)
        self.errors.check()
        for note in self.notes:
            LOGGER.warning("%s", note)
        return message

    def read(self, source: Source, notation: str, within: tuple[Path, ...]) -> Message:
        message = _PARSERS[notation](source)
        self.size += message.size()
        if self.size > MAX_FIELDS:
            raise SpecError(f"more than {MAX_FIELDS:,} values with what is included", message.span)
        before = len(self.errors.found)
        if notation == "prototxt":
            message = self.errors.attempt(from_prototxt, message) or message
        if len(self.errors.found) == before:
            self.notes += self.errors.attempt(upgrade, message) or []
        if len(self.errors.found) == before:
            self.errors.attempt(ranges.check, message)
        self.resolve(message, within)
        return message

    def resolve(self, message: Message, within: tuple[Path, ...]) -> None:
        """Put what is included in its place; ``within`` are the files being read, outermost first."""
        message.fields = [each for field in message for each in self.expand(field, within)]

    def expand(self, field: Field, within: tuple[Path, ...]) -> list[Field]:
        if field.name != "layer" or not isinstance(field.value, Message):
            return [field]
        for part in field.value.all("siamese"):
            if isinstance(part.value, Message):
                self.resolve(part.value, within)
        if name := _included(field.value):
            fragment = self.errors.attempt(self.fragment, name, within)
            return fragment.all("layer") if fragment else []
        return [field]

    def fragment(self, name: Scalar, within: tuple[Path, ...]) -> Message:
        path = Path(name.span.source.name).parent / name.text
        try:
            source = Source.read(path)
        except SpecError as error:
            raise SpecError(f'cannot include "{name.text}": {error.message}', name.span) from None
        if path.resolve() in within:
            raise SpecError(f'"{name.text}" includes itself', name.span)
        self.included += 1
        if self.included > MAX_INCLUDED:
            raise SpecError(f"more than {MAX_INCLUDED} files are included", name.span)
        return self.read(source, _notation(path), (*within, path.resolve()))


def _included(entry: Message) -> Scalar | None:
    """The file that a ``layer`` entry includes, if that is all it does."""
    value = entry.fields[0].value if len(entry.fields) == 1 else None
    return value if isinstance(value, Scalar) and entry.fields[0].name == "include" else None
