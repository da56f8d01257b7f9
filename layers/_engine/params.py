"""Declaring a layer's parameters: fields of a frozen dataclass with unit, range and meaning.

The spec's ``<type>_param`` block binds to the layer's ``Params`` by these declarations alone
(:mod:`cortado.prototxt_like.bind` reads the metadata); nothing else describes a layer's schema.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar, cast

import numpy as np

from .checks import NUMBERS, kind_of

Member = TypeVar("Member", bound=Enum)
P = TypeVar("P")


def param(
    default: Any = dataclasses.MISSING,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    unit: str = "",
    doc: str = "",
    aliases: tuple[str, ...] = (),
    factory: Callable[[], Any] | None = None,
    infinite: bool = False,
    wide: bool = False,
) -> Any:
    """A field of ``Params``. Without ``default`` or ``factory`` the spec must give it.

    ``low`` and ``high`` are inclusive bounds (of each element of a repeated field), ``above`` an
    exclusive lower one; ``aliases`` are other spellings a spec may use. A float is finite unless it may
    be ``infinite``; an integer has 32 bits unless it is ``wide``.
    """
    metadata = {"low": low, "high": high, "above": above, "unit": unit, "doc": doc, "aliases": aliases}
    metadata |= {"infinite": infinite, "wide": wide}
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def valid(params: P) -> P:
    """The same parameters, NumPy's numbers as Python's, in tuples too.

    Raises TypeError for one that is not what its field declares, a number, an integer, or True or
    False, and ValueError for one out of its range.

    A spec's values are held to the ranges when they are bound; this is for functional forms.
    """
    changed = {}
    for field in dataclasses.fields(cast(Any, params)):
        given = getattr(params, field.name)
        value = _python(given)
        if value is not given:
            changed[field.name] = value
        _expect_type(field, value)
        values = value if isinstance(value, tuple) else (value,)
        for x in values:
            if isinstance(x, float) and not (
                x - x == 0 or (x == x and field.metadata.get("infinite"))  # finite, a symbol too
            ):
                kind = "a number" if field.metadata.get("infinite") else "a finite number"
                raise ValueError(f"{field.name}: expected {kind}, got {x}")
        for bound, word, fits in _BOUNDS:
            if (limit := field.metadata.get(bound)) is None:
                continue
            for x in values:
                if x is not None and not fits(x, limit):
                    raise ValueError(f"{field.name}: expected {word} {limit:g}, got {x}")
    return dataclasses.replace(cast(Any, params), **changed) if changed else params


def _python(value: Any) -> Any:
    if isinstance(value, tuple) and any(isinstance(x, np.generic) for x in value):
        return tuple(map(_python, value))
    return value.item() if isinstance(value, np.generic) else value


_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "bool": ((bool,), "True or False"),
    "int": ((int,), "an integer"),
    "float": (NUMBERS, "a number"),
}


def _expect_type(field: dataclasses.Field[Any], value: Any) -> None:
    declared = str(field.type)
    if type(value).__name__ == declared or (value is None and declared.endswith(" | None")):
        return
    name = declared.removesuffix(" | None").removeprefix("tuple[").removesuffix(", ...]")
    if name not in _TYPES:
        return
    types, words = _TYPES[name]
    many = declared.startswith("tuple[")
    if many and not isinstance(value, tuple):
        raise TypeError(f"{field.name}: expected a tuple, got {kind_of(value)}")
    for x in value if many else (value,):
        if not isinstance(x, types) or (name != "bool" and isinstance(x, bool)):
            raise TypeError(f"{field.name}: expected {words}, got {kind_of(x)}")


_BOUNDS = (
    ("low", "at least", operator.ge),
    ("high", "at most", operator.le),
    ("above", "above", operator.gt),
)


@dataclasses.dataclass(frozen=True)
class NoParams:
    """The parameters of a layer that has none."""


@dataclasses.dataclass(frozen=True)
class BlobShape:
    """A ``shape`` block."""

    dim: tuple[int, ...] = param((), low=0, wide=True, doc="lengths of the axes")


class Gradient(Enum):
    """The derivative of the forward, or the released layer's backward."""

    exact = 0
    published = 1


class Engine(Enum):
    """Caffe's ``engine`` fields. Specs give them; every path computes the same, so all are ignored."""

    DEFAULT = 0
    CAFFE = 1
    CUDNN = 2


def choice(kind: type[Member], value: Member | str, name: str) -> Member:
    """The member of an enum given by itself or by its name, as functional forms take it."""
    if isinstance(value, kind):
        return value
    if not isinstance(value, str) or value not in kind.__members__:
        raise ValueError(f'{name}: expected one of {", ".join(kind.__members__)}, got "{value}"')
    return kind[str(value)]
