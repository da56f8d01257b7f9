"""Quotes as each notation wants them, by Caffe's own message definitions.

Protobuf's text format has every string in quotes and no enum; YAML needs few of them. In the tree a
quoted text is a string and nothing else, so quotes are only asked for, put or left out where the
field is known (:mod:`~.kinds`). The blocks of other layers are left as they are.
"""

from __future__ import annotations

import re
from io import StringIO
from typing import Any

import yaml
from google.protobuf.descriptor import EnumDescriptor

from .kinds import STRING, rewritten
from .message import Message, Scalar, describe
from .source import Errors, did_you_mean

PLACE = re.compile(r"\$\{([^{}]*)\}")
"""Where a fragment takes a value (:mod:`~.include`): quotes around it say nothing of the value."""

_RESOLVER = yaml.resolver.Resolver()
_EMITTER = yaml.emitter.Emitter(StringIO(), allow_unicode=True)


def from_prototxt(message: Message) -> Message:
    """The spec of a net or a solver as protobuf reads it: an enum's number becomes its name.

    Raises :class:`SpecError` for strings without quotes, and for enums with them.
    """
    errors = Errors()

    def rewrite(name: str, scalar: Scalar, kind: Any) -> Scalar:
        if kind == STRING and not scalar.quoted:
            errors.add(f"{name}: expected a string in quotes, got {describe(scalar)}", scalar.span)
        elif enum := _enum(kind):
            if scalar.quoted and not PLACE.fullmatch(scalar.text):
                hint = did_you_mean(scalar.text, enum.values_by_name)
                got = describe(scalar)
                errors.add(f"{name}: expected a name without quotes, got {got}", scalar.span, hint)
            for value in enum.values:
                if scalar.text == str(value.number):
                    return Scalar(value.name, scalar.span)
        return scalar

    made = rewritten(message, rewrite)
    errors.check()
    return made


def for_prototxt(message: Message) -> Message:
    """The spec of a net or a solver with its strings in quotes and its enums without."""

    def rewrite(name: str, scalar: Scalar, kind: Any) -> Scalar:
        if _quotable(kind) and scalar.text:
            return Scalar(scalar.text, scalar.span, quoted=kind == STRING)
        return scalar

    return rewritten(message, rewrite)


def for_yaml(message: Message) -> Message:
    """The same with quotes only where YAML itself would take a string for something else."""

    def rewrite(name: str, scalar: Scalar, kind: Any) -> Scalar:
        if not _quotable(kind) or not scalar.text:
            return scalar
        return Scalar(scalar.text, scalar.span, quoted=kind == STRING and not _plain(scalar.text))

    return rewritten(message, rewrite)


def _enum(kind: Any) -> EnumDescriptor | None:
    """The enum of a scalar's kind."""
    return getattr(kind, "enum_type", None)


def _quotable(kind: Any) -> bool:
    return kind == STRING or _enum(kind) is not None


def _plain(text: str) -> bool:
    """Whether every reader of YAML takes the text, without quotes, for a string."""
    tag = _RESOLVER.resolve(yaml.ScalarNode, text, (True, False))
    style = _EMITTER.analyze_scalar(text)
    return bool(tag == "tag:yaml.org,2002:str" and style.allow_flow_plain and not style.multiline)
