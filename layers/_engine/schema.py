"""Parameters as the scalars of an operator's schema, and back.

A field of ``Params`` enters as int, float, bool, str, a list of these, or an optional one; an enum by
its name; the fields of a nested block under ``<block>_<field>``. Integers may be symbolic. What is not
mathematics stays outside: fillers, which describe blobs, and Caffe's engines, which have no effect.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from .fillers import FillerParams
from .params import Engine, choice, valid

OUTSIDE = (FillerParams, Engine)
REMEMBERED = 256  # parameters of one layer: who varies one at each call must not fill the memory
SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
_TYPES: dict[Any, str] = {float: "float", int: "SymInt", bool: "bool", str: "str"}


class Scalar(NamedTuple):
    """One of them: its name and type in the schema, the field, and the blocks that the field is in."""

    name: str
    kind: str
    choices: type[enum.Enum] | None
    default: str
    field: str
    blocks: tuple[str, ...]


class Schema:
    """A ``Params`` class as scalars."""

    def __init__(self, Params: type) -> None:
        self.Params, self.fields = Params, tuple(_scalars(Params))
        self.enums = {
            field.name: field.choices for field in self.fields if field.choices and not field.blocks
        }
        self.order = [field.name for field in dataclasses.fields(Params)]
        self._made: dict[Any, Any] = {}

    @property
    def arguments(self) -> list[str]:
        """As the schema declares them; the last have their defaults, as a schema wants it."""
        without = [i for i, field in enumerate(self.fields) if not field.default]
        first = max(without, default=-1) + 1
        return [
            f"{field.kind} {field.name}{field.default if i >= first else ''}"
            for i, field in enumerate(self.fields)
        ]

    def given(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The checked parameters of a functional form's arguments; enums may come by their names."""
        values = {**dict(zip(self.order, args, strict=False)), **kwargs}
        for name, kind in self.enums.items():
            if name in values:
                values[name] = choice(kind, values[name], name)
        return valid(self.Params(**values))

    def scalars(self, params: Any) -> tuple[Any, ...]:
        """The values that enter the operator."""
        found = []
        for _, _, kind, _, field, blocks in self.fields:
            holder = params
            for block in blocks:
                holder = getattr(holder, block)
            value = getattr(holder, field)
            found.append(value.name if kind and value is not None else value)
        return tuple(found)

    def params(self, scalars: Sequence[Any]) -> Any:
        """The parameters again."""
        values = tuple([tuple(x) if isinstance(x, list) else x for x in scalars])
        if any(isinstance(x, SYMBOLIC) for x in values):
            return self._params(values)
        if values not in self._made:
            if len(self._made) >= REMEMBERED:
                self._made.clear()
            self._made[values] = self._params(values)
        return self._made[values]

    def _params(self, values: Sequence[Any]) -> Any:
        given: dict[tuple[str, ...], dict[str, Any]] = {}
        for (_, _, kind, _, field, blocks), x in zip(self.fields, values, strict=True):
            given.setdefault(blocks, {})[field] = kind[x] if kind and x is not None else x
        return _built(self.Params, given, ())


def _built(Params: type, given: dict[tuple[str, ...], dict[str, Any]], blocks: tuple[str, ...]) -> Any:
    values = dict(given.get(blocks, {}))
    hints = typing.get_type_hints(Params)
    for deeper in {key[: len(blocks) + 1] for key in given if len(key) > len(blocks)}:
        if deeper[:-1] == blocks:
            values[deeper[-1]] = _built(hints[deeper[-1]], given, deeper)
    return Params(**values)


def _scalars(Params: type, blocks: tuple[str, ...] = ()) -> Iterator[Scalar]:
    hints = typing.get_type_hints(Params)
    for field in dataclasses.fields(Params):
        hint = hints[field.name]
        if hint in OUTSIDE:
            continue
        if dataclasses.is_dataclass(hint):
            yield from _scalars(typing.cast(type, hint), (*blocks, field.name))
            continue
        name = "_".join((*blocks, field.name))
        inner = _inner(hint)
        kind = inner if isinstance(inner, type) and issubclass(inner, enum.Enum) else None
        yield Scalar(name, _type(hint), kind, _default(field), field.name, blocks)


def _inner(hint: Any) -> Any:
    """Of ``X | None``, X."""
    if typing.get_origin(hint) not in (types.UnionType, typing.Union):
        return hint
    (inner,) = [x for x in typing.get_args(hint) if x is not type(None)]
    return inner


def _type(hint: Any) -> str:
    inner = _inner(hint)
    if typing.get_origin(inner) is tuple:
        found = f"{_type(typing.get_args(inner)[0])}[]"
    else:
        found = "str" if issubclass(inner, enum.Enum) else _TYPES[inner]
    return found if inner is hint else f"{found}?"


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if value is dataclasses.MISSING or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    value = value.name if isinstance(value, enum.Enum) else value
    shown = (
        f'"{value}"' if isinstance(value, str) else list(value) if isinstance(value, tuple) else value
    )
    return f"={shown}"
