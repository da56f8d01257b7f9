"""A message tree to a frozen dataclass, and back: where texts get their types.

The dataclass is the schema. Its fields are ``int``, ``float``, ``bool``, ``str``, an ``Enum`` (by
its members' names), another dataclass (a block), ``tuple[T, ...]`` of one of these (a repeated
field) or ``T | None``. Their metadata may bound a number (``low``, ``high``, ``above``), allow it to be
``infinite`` or an integer to be ``wide`` (64 bits instead of 32), give other spellings of the name
(``aliases``) and say what it is (``doc``). No number is NaN.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import re
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from functools import cache
from typing import Any, TypeVar

from .message import Field, Message, Scalar, describe
from .source import Errors, Source, Span, SpecError, did_you_mean

T = TypeVar("T")
Bound = tuple[str, Callable[[Any, Any], bool], float]

_INTEGER = re.compile(r"[-+]?(?:0[xX][0-9a-fA-F]+|0|[1-9][0-9]*)")
_NUMBER = re.compile(r"([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)[fF]?")
_SPECIAL = re.compile(r"([-+]?)\.?(inf|infinity|nan)", re.IGNORECASE)
FLOAT_MAX = 3.4028235677973366e38  # what does not round to float32's infinity lies below it
_TRUE, _FALSE = ("true", "True", "t", "1"), ("false", "False", "f", "0")
_BOUNDS = {
    "low": ("at least", operator.ge),
    "high": ("at most", operator.le),
    "above": ("above", operator.gt),
}


def bind(
    cls: type[T],
    message: Message,
    *,
    what: str = "",
    ignore: Callable[[str], bool] = lambda name: False,
) -> T:
    """Read a message as an instance of the dataclass ``cls``.

    ``what`` is what errors call the message (default: the name of ``cls``). A field that ``cls``
    does not have is an error, unless ``ignore`` says of its name that it is read elsewhere.

    Raises :class:`SpecError` with all mistakes at once: unknown and missing fields, values of the
    wrong type or out of range, a second value of a field that takes one. A ``ValueError`` by which
    ``cls`` refuses its values becomes one, too.
    """
    what = what or cls.__name__
    errors = Errors()
    schema = _slots(typing.cast(Any, cls))
    slots = {name: slot for slot in schema for name in (slot.name, *slot.aliases)}
    given: dict[str, list[Field]] = {}
    for field in message:
        if field.name in slots:
            given.setdefault(slots[field.name].name, []).append(field)
        elif not ignore(field.name):
            hint = did_you_mean(field.name, slots)
            errors.add(f'{what} has no parameter "{field.name}"', field.span, hint)
    values = {name: errors.attempt(slots[name].read, fields) for name, fields in given.items()}
    for slot in schema:
        if slot.required and slot.name not in given:
            errors.add(f'{what} needs "{slot.name}"', message.span, f"{slot.name}: {slot.meaning}")
    errors.check()
    try:
        return cls(**values)
    except ValueError as error:
        raise SpecError(f"{what}: {error}", message.span) from None


@dataclasses.dataclass(frozen=True)
class _Slot:
    """A field of a dataclass, as a spec fills it."""

    name: str
    aliases: tuple[str, ...]
    type: Any
    repeated: bool
    required: bool
    bounds: tuple[Bound, ...]
    doc: str
    infinite: bool
    wide: bool

    @property
    def kind(self) -> str:
        if dataclasses.is_dataclass(self.type):
            return "a block"
        return f"one of {', '.join(_members(self.type))}" if _members(self.type) else _KINDS[self.type]

    @property
    def meaning(self) -> str:
        bounds = [f"{words} {limit:.12g}" for words, _, limit in self.bounds]
        return ", ".join([self.kind, *bounds, *([self.doc] if self.doc else [])])

    def read(self, fields: Sequence[Field]) -> Any:
        """The value that all the fields of this name give together."""
        if not self.repeated:
            if len(fields) > 1:
                message = f'"{self.name}" takes one value, already given at {fields[0].value.span}'
                raise SpecError(message, fields[1].value.span)
            return self.value(fields[0].value)
        errors = Errors()
        values = tuple(errors.attempt(self.value, field.value) for field in fields)
        errors.check()
        return values

    def value(self, value: Scalar | Message) -> Any:
        if isinstance(value, Message) != dataclasses.is_dataclass(self.type):
            raise SpecError(f"{self.name}: expected {self.kind}, got {describe(value)}", value.span)
        if isinstance(value, Message):
            return bind(self.type, value, what=self.name)
        if members := _members(self.type):
            if value.text in members:
                return members[value.text]
            hint = did_you_mean(value.text, members)
            raise SpecError(f'{self.name} has no value "{value.text}"', value.span, hint)
        found = READERS[self.type](value)
        if found is None:
            raise SpecError(f"{self.name}: expected {self.kind}, got {describe(value)}", value.span)
        self.check_range(found, value)
        for words, fits, limit in self.bounds:
            if not fits(found, limit):
                bound = f"{words} {limit:.12g}"
                raise SpecError(f"{self.name} must be {bound}, got {value.text}", value.span)
        return found

    def check_range(self, found: Any, value: Scalar) -> None:
        if isinstance(found, float):
            if math.isnan(found) or (math.isinf(found) and not self.infinite):
                text = f"{self.name} must be a finite number, got {value.text}"
                raise SpecError(text.replace("a finite ", "a ") if self.infinite else text, value.span)
            if FLOAT_MAX < abs(found) < math.inf:
                raise SpecError(f"{self.name}: {value.text} is too large for a float", value.span)
        elif type(found) is int and not (self.wide or -(2**31) <= found < 2**32):
            raise SpecError(f"{self.name}: {value.text} is out of the range of 32 bits", value.span)


@cache
def _slots(cls: type) -> tuple[_Slot, ...]:
    hints = typing.get_type_hints(cls)
    return tuple(_slot(field, hints[field.name]) for field in dataclasses.fields(cls) if field.init)


def _slot(field: dataclasses.Field[Any], hint: Any) -> _Slot:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (arm for arm in typing.get_args(hint) if arm is not types.NoneType)
    repeated = typing.get_origin(hint) is tuple
    type = typing.get_args(hint)[0] if repeated else hint
    if not (type in READERS or dataclasses.is_dataclass(type) or _members(type)):
        raise TypeError(f"no spec can fill the field {field.name}: {hint}")
    limits = {name: field.metadata.get(name) for name in _BOUNDS}
    return _Slot(
        field.name,
        tuple(field.metadata.get("aliases", ())),
        type,
        repeated,
        field.default is field.default_factory is dataclasses.MISSING,
        tuple((*_BOUNDS[name], limit) for name, limit in limits.items() if limit is not None),
        field.metadata.get("doc", ""),
        bool(field.metadata.get("infinite")),
        bool(field.metadata.get("wide")),
    )


def _members(cls: Any) -> dict[str, Enum]:
    return dict(cls.__members__) if isinstance(cls, type) and issubclass(cls, Enum) else {}


# A reader gives the value of a scalar, or None if the text is nothing of its type.


def _int(scalar: Scalar) -> int | None:
    if scalar.quoted or not _INTEGER.fullmatch(scalar.text):
        return None
    value = int(scalar.text, 0) if len(scalar.text) < 32 else 2**64
    if not -(2**63) <= value < 2**63:
        raise SpecError(f"{describe(scalar)} does not fit in 64 bits", scalar.span)
    return value


def _float(scalar: Scalar) -> float | None:
    if scalar.quoted:
        return None
    if special := _SPECIAL.fullmatch(scalar.text):
        return float(special[1] + special[2])
    number = _NUMBER.fullmatch(scalar.text)
    if not number:
        return None
    value = float(number[1])
    if math.isinf(value):
        raise SpecError(f"{describe(scalar)} is too large for a float", scalar.span)
    return value


def _bool(scalar: Scalar) -> bool | None:
    if scalar.quoted or scalar.text not in _TRUE + _FALSE:
        return None
    return scalar.text in _TRUE


def _str(scalar: Scalar) -> str | None:
    return scalar.text if scalar.text or scalar.quoted else None


READERS: dict[type, Callable[[Scalar], int | float | bool | str | None]] = {
    int: _int,
    float: _float,
    bool: _bool,
    str: _str,
}
_KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}


def unbind(value: Any, *, defaults: bool = False) -> Message:
    """Write an instance of a dataclass as a message, from which ``bind`` makes an equal instance.

    Fields that have their defaults are left out unless ``defaults``. Raises ``ValueError`` for what
    no spec can say: None, or an empty tuple, where the default is another.
    """
    span = Span(Source(f"<{type(value).__name__}>", ""), 1, 1)
    return Message(span, list(_fields(value, span, defaults)))


def _fields(value: Any, span: Span, defaults: bool) -> Iterator[Field]:
    for field in dataclasses.fields(value):
        given, default = getattr(value, field.name), _default(field)
        if not field.init or (given == default and not defaults):
            continue
        elements = given if isinstance(given, tuple) else () if given is None else (given,)
        if not elements and given != default:
            raise ValueError(f"no spec can set {field.name} to {given!r}")
        for element in elements:
            yield Field(field.name, _written(element, span, defaults), span)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _written(value: Any, span: Span, defaults: bool) -> Scalar | Message:
    if dataclasses.is_dataclass(value):
        return Message(span, list(_fields(value, span, defaults)))
    if isinstance(value, str) and not isinstance(value, Enum):
        return Scalar(value, span, quoted=True)
    if isinstance(value, Enum):
        return Scalar(value.name, span)
    if isinstance(value, bool):
        return Scalar("true" if value else "false", span)
    return Scalar(repr(value), span)
