"""Reading a spec from its file, whatever its notation or age, and the files it includes.

A ``layer`` entry that says nothing but ``include: other.yaml`` stands for the ``layer`` entries of
that file, named relative to the file that includes it, in a net's list and in a Siamese trunk's; where
there is none of that name, it is the one that comes with cortado (``resnet50_to_res4f.yaml``). They
keep the places they have in their own file.

With values beside it, the file is a fragment::

    - {include: resnet_block.yaml, with: {block: 2b, bottom: res2a_relu, width: 64}}

Each ``${block}`` in the fragment's values (not in its fields' names) becomes ``2b``, also within a
longer text (``res${block}_relu``) and in what it passes on to fragments of its own. A text that is
nothing but ``${width}`` is what was given, a number or a string, though it stands in quotes, as YAML
asks inside of braces and prototxt everywhere. Every ``${...}`` of an included file needs a value, and
every value given a ``${...}``; a file that nothing includes is read as it stands.

Caffe's old forms are read as today's (:mod:`~.upgrade`); the logger ``cortado.prototxt_like`` says so.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from . import kinds, prototxt, ranges, yaml_spec
from .message import Field, Message, Scalar, describe
from .quotes import PLACE, from_prototxt
from .source import MAX_FIELDS, Errors, Source, SpecError, did_you_mean
from .upgrade import Note, upgrade

SHIPPED = Path(__file__).resolve().parents[1] / "nets" / "specs"
LOGGER = logging.getLogger("cortado.prototxt_like")
MAX_INCLUDED = 256  # files, each counted as often as it is included; ResNet-152 is of some 110
MAX_FILLED = 10_000  # characters of a text with its values: one can pass on several times itself

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
        message = self.read(_PARSERS[notation](source), notation, within)
        self.errors.check()
        for note in self.notes:
            LOGGER.warning("%s", note)
        return message

    def read(self, message: Message, notation: str, within: tuple[Path, ...]) -> Message:
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
        if _includes(field.value):
            fragment = self.errors.attempt(self.fragment, field.value, within)
            return fragment.all("layer") if fragment else []
        return [field]

    def fragment(self, entry: Message, within: tuple[Path, ...]) -> Message:
        name, given = _inclusion(entry)
        path = _found(name)
        try:
            source = Source.read(path)
        except SpecError as error:
            raise SpecError(f'cannot include "{name.text}": {error.message}', name.span) from None
        if path.resolve() in within:
            raise SpecError(f'"{name.text}" includes itself', name.span)
        self.included += 1
        if self.included > MAX_INCLUDED:
            raise SpecError(f"more than {MAX_INCLUDED} files are included", name.span)
        message = _filled(_PARSERS[_notation(path)](source), given, name.text)
        return self.read(message, _notation(path), (*within, path.resolve()))


def _found(name: Scalar) -> Path:
    """The file that is included: beside the including one, or else one that comes with cortado."""
    beside, shipped = Path(name.span.source.name).parent / name.text, SHIPPED / name.text
    plain = os.path.basename(name.text) == name.text
    return shipped if plain and not os.path.exists(beside) and os.path.isfile(shipped) else beside


def _includes(entry: Message) -> bool:
    """Whether a ``layer`` entry stands for a file; ``include`` is a layer's rule, too."""
    if "with" in entry:
        return True
    alone = entry.fields[0] if len(entry.fields) == 1 else None
    return alone is not None and alone.name == "include" and isinstance(alone.value, Scalar)


def _inclusion(entry: Message) -> tuple[Scalar, Message]:
    """The file that an entry includes, and the block of values that it gives."""
    for field in entry:
        if field.name not in ("include", "with"):
            raise SpecError(f'"with" goes with "include" alone, not with "{field.name}"', field.span)
    name = _one(entry, "include")
    given = _one(entry, "with") if "with" in entry else Message(name.span)
    if not isinstance(name, Scalar):
        raise SpecError('"include" beside "with" takes the name of a file, got a block', name.span)
    if not isinstance(given, Message):
        hint = "such as with: {block: 2b, width: 64}"
        raise SpecError(f'"with" takes a block of values, got {describe(given)}', given.span, hint)
    errors = Errors()
    for name_of in dict.fromkeys(field.name for field in given):
        value = errors.attempt(_one, given, name_of)
        if isinstance(value, Message):
            errors.add(f'"{name_of}" takes one value, got a block', value.span)
    errors.check()
    return name, given


def _one(message: Message, name: str) -> Scalar | Message:
    found = message.all(name)
    if not found:
        raise SpecError(f'"with" needs "{name}" beside it', message.span)
    if len(found) > 1:
        raise SpecError(f'"{name}" takes one value, got {len(found)}', found[1].value.span)
    return found[0].value


def _filled(fragment: Message, given: Message, file: str) -> Message:
    """A fragment with the given values in their places.

    Raises :class:`SpecError` for places without a value, and for values without a place.
    """
    errors, places = Errors(), set[str]()
    values = {field.name: field.value for field in given if isinstance(field.value, Scalar)}

    def scalar(old: Scalar, kind: Any) -> Scalar:
        names = PLACE.findall(old.text)
        places.update(names)
        for name in names:
            if name not in values:
                hint = did_you_mean(name, values, f"given at {given.span.place}")
                errors.add(f'"${{{name}}}" gets no value', old.span, hint)
        if not values.keys() >= set(names):
            return old
        if names and len(old.text) + sum(len(values[name].text) for name in names) > MAX_FILLED:
            errors.add(f"a text of more than {MAX_FILLED:,} characters with its values", old.span)
            return old
        if PLACE.fullmatch(old.text):
            value = values[names[0]]
            return Scalar(value.text, old.span, value.quoted or (old.quoted and kind == kinds.STRING))
        return Scalar(PLACE.sub(lambda at: values[at[1]].text, old.text), old.span, old.quoted)

    def block(message: Message, kind: Any) -> Message:
        made = Message(message.span)
        for name, value, span in ((field.name, field.value, field.span) for field in message):
            inner = kinds.of(kind, name, isinstance(value, Message))
            filled = scalar(value, inner) if isinstance(value, Scalar) else block(value, inner)
            made.add(name, filled, span)
        return made

    made = block(fragment, kinds.top(fragment))
    for field in given:
        if field.name not in places:
            hint = did_you_mean(field.name, places, f"{file} takes")
            errors.add(f'{file} has no place "${{{field.name}}}" for this value', field.span, hint)
    errors.check()
    return made
