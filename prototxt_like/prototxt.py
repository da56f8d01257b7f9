"""Protobuf's text format to a message tree, and back.

Schema-free, and as strict as protobuf's own reader: ``name: value``, ``name { ... }`` (or
``< ... >``, or with a colon), ``name: [a, b]``, adjacent strings with C's escapes, ``#`` comments,
``,`` or ``;`` after a field, names in brackets (``[extension.name]``), which may have ``.``, ``/``,
``+`` and ``-``. Numbers and names stay the texts they are, but for octal numbers, which become
hexadecimal: other notations read 010 as ten.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator

from .message import Field, Message, Scalar
from .source import MAX_DEPTH, MAX_FIELDS, Source, Span, SpecError

_BLANK = re.compile(r"(?:[ \t\n\f\v]++|#[^\n]*+)*+")
_WORD = re.compile(r"[\w./+-]+", re.ASCII)  # whatever could be meant as one name or number
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_NUMBER = re.compile(
    r"-?(?:0[xX][0-9a-fA-F]+|0[0-7]+|"
    r"(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[fF]?)"
    r"|-(?i:inf|infinity|nan)"
)
_OCTAL = re.compile(r"(-?)0([0-7]+)")
_STRING = {
    '"': re.compile(r'"((?:[^"\\\n]++|\\[^\n])*+)"'),
    "'": re.compile(r"'((?:[^'\\\n]++|\\[^\n])*+)'"),
}
_ESCAPE = re.compile(
    r"\\(?:(?P<octal>[0-7]{1,3})|[xX](?P<byte>[0-9a-fA-F]{1,2})"
    r"|(?:u(?P<short>[0-9a-fA-F]{4})|U(?P<long>[0-9a-fA-F]{8}))|(?P<letter>.))"
)
_LETTERS = dict(zip("abfnrtv\\'\"?", b"\a\b\f\n\r\t\v\\'\"?", strict=True))
_ESCAPED = re.compile(r'[\x00-\x1f\x7f"\\]')
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t", '"': r"\"", "\\": r"\\"}
_YAMLS_NUMBER = re.compile(
    r"\+?(?P<positive>\.?\d.*)|(?P<sign>[-+]?)\.?(?P<special>inf|infinity|nan)", re.IGNORECASE
)
_CLOSING = {"{": "}", "<": ">"}


def parse(source: Source) -> Message:
    """Read a prototxt text; raises :class:`SpecError` at its first mistake."""
    return _Parser(source).document()


class _Parser:
    def __init__(self, source: Source) -> None:
        self.source, self.text = source, source.text
        self.lines = [0, *(end.end() for end in re.finditer("\n", self.text))]
        self.pos = self.count = 0
        self.skip(0)

    # Looking: every token is followed by skip, so that ``pos`` always stands at one.

    def skip(self, to: int) -> None:
        blank = _BLANK.match(self.text, to)
        self.pos = blank.end() if blank else to

    def peek(self) -> str:
        return self.text[self.pos : self.pos + 1]

    def take(self, marks: str) -> str:
        """The next character if it is one of these, else ""."""
        mark = self.peek()
        if not mark or mark not in marks:
            return ""
        self.skip(self.pos + 1)
        return mark

    def word(self) -> str:
        """The next name or number, or "" if something else stands here."""
        found = _WORD.match(self.text, self.pos)
        if not found:
            return ""
        self.skip(found.end())
        return found[0]

    def span(self) -> Span:
        return self.at(self.pos)

    def at(self, pos: int) -> Span:
        line = bisect_right(self.lines, pos)
        return Span(self.source, line, pos - self.lines[line - 1] + 1)

    def expected(self, what: str, hint: str = "") -> SpecError:
        found = _WORD.match(self.text, self.pos)
        got = f'"{found[0] if found else self.peek()}"' if self.peek() else "the end of the file"
        return SpecError(f"expected {what}, got {got}", self.span(), hint)

    # Reading: one method for each rule of the grammar.

    def document(self) -> Message:
        message = Message(Span(self.source, 1, 1))
        self.fields(message, depth=0)
        if self.peek():
            raise SpecError(f'"{self.peek()}" closes nothing', self.span())
        return message

    def fields(self, message: Message, depth: int) -> None:
        while self.peek() not in ("}", ">", ""):
            span = self.span()
            name = self.name()
            message.fields += [Field(name, value, span) for value in self.values(name, depth)]
            self.take(",;")

    def name(self) -> str:
        span = self.span()
        if self.take("["):
            name = self.word()
            if not name or not self.take("]"):
                raise self.expected('"]"' if name else "a name", f'the "[" of {span} is not closed')
            return name
        found = _WORD.match(self.text, self.pos)
        if not (found and _NAME.fullmatch(found[0])):
            raise self.expected("a field's name")
        return self.word()

    def values(self, name: str, depth: int) -> list[Scalar | Message]:
        colon = bool(self.take(":"))
        span = self.span()
        if not self.take("["):
            return [self.value(name, colon, depth)]
        values: list[Scalar | Message] = []
        while not self.take("]"):
            if values and not self.take(","):
                raise self.expected('"," or "]"', f'the "[" of {span} is not closed')
            values.append(self.value(name, colon, depth))
        return values

    def value(self, name: str, colon: bool, depth: int) -> Scalar | Message:
        self.count += 1
        if self.count > MAX_FIELDS:
            raise SpecError(f"more than {MAX_FIELDS:,} values", self.span())
        if self.peek() in _CLOSING:
            return self.block(depth + 1)
        if not colon:
            raise self.expected(f'":" or "{{" after "{name}"')
        return self.string() if self.peek() in _STRING else self.plain(name)

    def block(self, depth: int) -> Message:
        message = Message(self.span())
        if depth > MAX_DEPTH:
            raise SpecError(f"nested more than {MAX_DEPTH} deep", message.span)
        opening = self.take("{<")
        self.fields(message, depth)
        if not self.take(_CLOSING[opening]):
            hint = f'the "{opening}" of {message.span} is not closed'
            raise self.expected(f'"{_CLOSING[opening]}"', hint)
        return message

    def plain(self, name: str) -> Scalar:
        span = self.span()
        text = self.word()
        if text == "-":
            text += self.word()
        if not text:
            raise self.expected(f'a value of "{name}"')
        if not (_NAME.fullmatch(text) or _NUMBER.fullmatch(text)):
            raise SpecError(f'"{text}" is neither a number nor a name', span, "strings stand in quotes")
        if octal := _OCTAL.fullmatch(text):
            text = f"{octal[1]}{int(octal[2], 8):#x}"
        return Scalar(text, span)

    def string(self) -> Scalar:
        span = self.span()
        raw = bytearray()
        while quote := _STRING.get(self.peek()):
            found = quote.match(self.text, self.pos)
            if not found:
                raise SpecError("the string does not end on its line", self.span())
            raw += self.unescape(found[1], found.start(1))
            self.skip(found.end())
        try:
            return Scalar(raw.decode("utf-8"), span, quoted=True)
        except UnicodeDecodeError:
            raise SpecError("the string's escapes are not UTF-8", span) from None

    def unescape(self, body: str, start: int) -> bytearray:
        """The string's bytes: an octal or hexadecimal escape is one byte of UTF-8."""
        raw, done = bytearray(), 0
        for escape in _ESCAPE.finditer(body):
            raw += body[done : escape.start()].encode("utf-8", "surrogatepass")
            done = escape.end()
            try:
                raw += _unescaped(escape)
            except (KeyError, ValueError, OverflowError):
                where = self.at(start + escape.start())
                raise SpecError(
                    f'"{escape[0]}" is not an escape', where, r"a backslash is written \\"
                ) from None
        return raw + body[done:].encode("utf-8", "surrogatepass")


def _unescaped(escape: re.Match[str]) -> bytes:
    kind, digits = escape.lastgroup, escape[escape.lastgroup or 0]
    if kind == "letter":
        return bytes([_LETTERS[digits]])
    if kind in ("octal", "byte"):
        return bytes([int(digits, 8 if kind == "octal" else 16)])
    return chr(int(digits, 16)).encode("utf-8")


WIDTH = 88  # a block is written on one line if that fits


def dump(message: Message) -> str:
    """Write a tree as prototxt, in protobuf's own spelling; ``parse`` gives the same tree back.

    What YAML writes without quotes and prototxt cannot (``train.txt``) is put in quotes; numbers in
    YAML's spelling (``+3``, ``.inf``) lose it. Raises :class:`SpecError` for a field without a value,
    and for a field's name that prototxt cannot write.
    """
    return "".join(f"{line}\n" for line in _lines(message, ""))


def _lines(message: Message, indent: str) -> Iterator[str]:
    for field in message:
        line = indent + _on_one_line(field)
        if isinstance(field.value, Scalar) or (field.name != "layer" and len(line) <= WIDTH):
            yield line
        else:
            yield f"{indent}{_name(field)} {{"
            yield from _lines(field.value, indent + "  ")
            yield indent + "}"


def _on_one_line(field: Field) -> str:
    if isinstance(field.value, Message):
        return " ".join([_name(field), "{", *map(_on_one_line, field.value), "}"])
    return f"{_name(field)}: {_value(field.value, field.name)}"


def _name(field: Field) -> str:
    if _NAME.fullmatch(field.name):
        return field.name
    if _WORD.fullmatch(field.name):
        return f"[{field.name}]"
    raise SpecError(f'prototxt cannot name a field "{field.name}"', field.span)


def _value(scalar: Scalar, name: str) -> str:
    text = scalar.text
    if not scalar.quoted:
        if not text:
            raise SpecError(f'prototxt cannot write "{name}" without a value', scalar.span)
        if found := _YAMLS_NUMBER.fullmatch(text):
            text = found["positive"] or found["sign"].strip("+") + found["special"]
        plain = _NAME.fullmatch(text) or _NUMBER.fullmatch(text)
        if plain and not _OCTAL.fullmatch(text):
            return text
    return f'"{_ESCAPED.sub(_escape, scalar.text)}"'


def _escape(found: re.Match[str]) -> str:
    return _SHORT.get(found[0]) or f"\\{ord(found[0]):03o}"
