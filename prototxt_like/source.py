"""Where a thing stands in a file, and errors that show the place.

Every node of a message tree carries a :class:`Span`; every complaint about a spec is a
:class:`SpecError` that prints the file, the line and the column, the line itself with a caret,
and a hint::

    ucn.yaml:41:7: error: ConvolutionalSpatialTransformer has no parameter "kernal_size"
        kernal_size: 3
        ^
      did you mean "kernel_size"? accepted: kernel_size, theta_mode, type
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from .files import open_file

MAX_BYTES = 4 * 1024 * 1024
MAX_DEPTH = 64
MAX_FIELDS = 250_000  # of a spec, with all that it includes; a ResNet-1001 has 45,000
MAX_SHOWN = 20  # errors
MAX_ERRORS = 100  # after which nothing more is looked for
MAX_NAMES = 5_000  # among which the closest is looked for
MAX_LISTED = 100

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Source:
    """A file's name as the user gave it, and its text, without a byte order mark and with every line
    ended by ``\\n``."""

    name: str
    text: str = field(repr=False)

    def __post_init__(self) -> None:
        # A lone \r ends a line for YAML and not for others: with one kind of line end all count alike.
        text = self.text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
        object.__setattr__(self, "text", text)

    @classmethod
    def read(cls, path: str | Path) -> Source:
        """Read a spec file; raises :class:`SpecError` if it is missing, larger than 4 MiB,
        empty or not UTF-8."""
        source = cls(str(path), "")
        nowhere = Span(source, 1, 1)
        try:
            with open_file(path) as file:
                raw = file.read(MAX_BYTES + 1)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            reason = getattr(error, "strerror", None) or str(error)
            raise SpecError(f"cannot read the file: {reason}", nowhere) from None
        if len(raw) > MAX_BYTES:
            raise SpecError(f"the file is larger than {MAX_BYTES // 2**20} MiB", nowhere)
        if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise SpecError("the text is in UTF-16", nowhere, "save it as UTF-8")
        if kind := _binary(raw):
            hint = "a net's spec and its weights are two files: are they swapped?"
            raise SpecError(f"this is {kind}, not the text of a spec", nowhere, hint)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            good = cls(str(path), raw[: error.start].decode("utf-8"))
            byte = f"byte 0x{raw[error.start]:02x}"
            raise SpecError(f"not UTF-8: {byte}", good.at(len(good.text))) from None
        if not text.strip():
            raise SpecError("the file is empty", nowhere)
        return cls(str(path), text)

    def at(self, offset: int) -> Span:
        """The place of a character of ``text``, counted from 0."""
        line = self.text.count("\n", 0, offset) + 1
        return Span(self, line, offset - self.text.rfind("\n", 0, offset))

    def line(self, number: int) -> str:
        """A line of the text, counted from 1; "" beyond the last."""
        lines = self.text.split("\n")
        return lines[number - 1] if number <= len(lines) else ""


_MAGIC = {
    b"\x89HDF": "an HDF5 file",
    b"PK\x03\x04": "a zip archive, as PyTorch's weights are",
    b"\x80\x02": "a pickle, as PyTorch's old weights are",
    b"MATLAB": "a .mat file",
}
_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


def _binary(raw: bytes) -> str:
    """What a file is that is no text, "" for one that may be."""
    for magic, kind in _MAGIC.items():
        if raw.startswith(magic):
            return kind
    return "a binary file, such as a Caffe model" if b"\0" in raw[:4096] or _controlled(raw) else ""


def _controlled(raw: bytes) -> bool:
    """Whether control characters stand between bytes that are no UTF-8."""
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return bool(_CONTROLS.search(raw[:4096]))
    return False


@dataclass(frozen=True, slots=True)
class Span:
    """A position in a source: line and column, both 1-based."""

    source: Source
    line: int
    column: int

    @property
    def place(self) -> str:
        """``file:line``, as run-time errors name a layer's declaration."""
        return f"{self.source.name}:{self.line}"

    def __str__(self) -> str:
        return f"{self.source.name}:{self.line}:{self.column}"


class SpecError(Exception):
    """A mistake in a spec, shown with its place.

    ``errors`` holds the single complaints (itself alone, or those joined by :func:`together`).
    """

    def __init__(self, message: str, span: Span | None = None, hint: str = "") -> None:
        self.message, self.span, self.hint = message, span, hint
        self.errors: Sequence[SpecError] = (self,)
        super().__init__(message)

    def __str__(self) -> str:
        if len(self.errors) > 1:
            return _listing(self.errors)
        text = f"{self.span}: error: {self.message}" if self.span else f"error: {self.message}"
        if self.span and (line := self.span.source.line(self.span.line)):
            text += "\n" + _caret(line, self.span.column)
        return text + (f"\n  {self.hint}" if self.hint else "")


def _caret(line: str, column: int, width: int = 100) -> str:
    """The source line, cut around the column when it is long, with a caret below."""
    start = max(0, column - 1 - width // 2) if len(line) > width else 0
    shown = "".join(c if c.isprintable() else " " for c in line[start : start + width])
    indent = len(shown) - len(shown.lstrip())
    return f"    {shown.strip()}\n    {' ' * max(0, column - 1 - start - indent)}^"


def _listing(errors: Sequence[SpecError]) -> str:
    shown = [str(error) for error in errors[:MAX_SHOWN]]
    if len(errors) >= MAX_ERRORS:
        shown.append("... and more errors")
    elif len(errors) > MAX_SHOWN:
        shown.append(f"... and {len(errors) - MAX_SHOWN} more errors")
    return "\n".join(shown)


def together(errors: Iterable[SpecError]) -> SpecError:
    """Join independent errors of one spec into one exception, each once, in order of place.

    Files stand in the order of their first error. One mistake can be met twice: what is included
    or aliased twice is read twice.
    """
    singles = {(_place(single), single.message): single for error in errors for single in error.errors}
    files = list(dict.fromkeys(place[0] for place, _ in singles))
    flat = sorted(singles.values(), key=lambda e: (files.index(_place(e)[0]), _place(e)[1:]))
    if len(flat) == 1:
        return flat[0]
    joined = SpecError(f"{len(flat)} errors", flat[0].span)
    joined.errors = tuple(flat)
    return joined


def _place(error: SpecError) -> tuple[str, int, int]:
    span = error.span
    return (span.source.name, span.line, span.column) if span else ("", 0, 0)


class Errors:
    """Collects independent errors so that all are shown at once. With the hundredth they are raised,
    by whatever collects it: whoever finds so many looks at a file of another kind.

    >>> errors = Errors()
    >>> with errors.catch():
    ...     raise SpecError("one")
    >>> errors.found[0].message
    'one'
    """

    def __init__(self) -> None:
        self.found: list[SpecError] = []

    def add(self, message: str, span: Span | None = None, hint: str = "") -> None:
        self.keep(SpecError(message, span, hint))

    def keep(self, error: SpecError) -> None:
        """Collect an error that was raised."""
        self.found.append(error)
        if len(self.found) >= MAX_ERRORS:
            raise together(self.found)

    def attempt(self, function: Callable[..., T], *args: object, **kwargs: object) -> T | None:
        """Call the function; a SpecError is kept and None returned."""
        try:
            return function(*args, **kwargs)
        except SpecError as error:
            self.keep(error)
            return None

    def catch(self) -> _Catch:
        return _Catch(self)

    def check(self) -> None:
        """Raise what was collected, if anything."""
        if self.found:
            raise together(self.found)


class _Catch:
    def __init__(self, errors: Errors) -> None:
        self.errors = errors

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, SpecError):
            self.errors.keep(error)
            return True
        return False


def closest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The known name most like this one, or "" when none is near, or there are thousands.

    ``cutoff`` is difflib's ratio of what is near.
    """
    names = list(known)
    if len(names) > MAX_NAMES:
        return ""
    folded = {other.lower(): other for other in names}
    match = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=cutoff)
    return folded[match[0]] if match else ""


def did_you_mean(name: str, known: Iterable[str], what: str = "accepted") -> str:
    """``did you mean "x"? accepted: x, y`` for an unknown name."""
    names = sorted(set(known))
    near = closest(name, names)
    more = ", ..." if len(names) > MAX_LISTED else ""
    listing = f"{what}: {', '.join(names[:MAX_LISTED]) or 'none'}{more}"
    return f'did you mean "{near}"? {listing}' if near else listing
