"""The language: prototxt and YAML text to one message tree, with a position on every node."""

from .include import load, loads
from .message import Field, Message, Scalar
from .source import Source, Span, SpecError
from .yaml_spec import dump

__all__ = [
    "Field",
    "Message",
    "Scalar",
    "Source",
    "Span",
    "SpecError",
    "dump",
    "load",
    "loads",
]
