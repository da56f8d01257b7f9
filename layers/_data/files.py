"""The one way of opening and of replacing files, for layers: :mod:`cortado.prototxt_like.files`."""

from __future__ import annotations

import re
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from xml.etree import ElementTree

# Declarations may grow without bound; Boost writes a document type without any. UTF-16 would hide them.
DECLARES = re.compile(r"""<!ENTITY|<!DOCTYPE[^<>]*["'[]|\0""")


def open_file(path: str | Path) -> BufferedReader:
    """Open a file for reading; raises OSError for what is none."""
    from cortado.prototxt_like import files

    return files.open_file(path)


def read_text(path: str | Path, what: str) -> str:
    """A text in UTF-8, without its byte order mark; raises ValueError, which calls it ``what``, where
    it cannot be read."""
    try:
        with open_file(path) as file:
            return file.read().decode("utf-8-sig")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f'cannot read {what} "{path}": {why}') from None


def read_xml(text: str, path: str | Path, what: str = "XML") -> ElementTree.Element:
    """The root of a file's text; raises ValueError, which calls it ``what``, for a text that is none,
    or that has the declarations of a document type."""
    if DECLARES.search(text):
        found = "found a document type's declarations, or UTF-16"
        raise ValueError(f"{path}: expected {what}, {found}")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise ValueError(f"{path}: expected {what}: {error}") from None


def replace_file(path: str | Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all; raises OSError that names it."""
    from cortado.prototxt_like import files

    files.replace_file(path, write)
