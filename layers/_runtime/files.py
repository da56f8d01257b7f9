"""The one way of opening and of replacing files, for layers: :mod:`cortado.prototxt_like.files`."""

from __future__ import annotations

from collections.abc import Callable
from io import BufferedReader
from pathlib import Path


def open_file(path: str | Path) -> BufferedReader:
    """Open a file for reading; raises OSError for what is none."""
    from cortado.prototxt_like import files

    return files.open_file(path)


def read_text(path: str | Path, what: str) -> str:
    """A text in UTF-8; raises ValueError, which calls it ``what``, where it cannot be read."""
    try:
        with open_file(path) as file:
            return file.read().decode("utf-8")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f'cannot read {what} "{path}": {why}') from None


def replace_file(path: str | Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all; raises OSError that names it."""
    from cortado.prototxt_like import files

    files.replace_file(path, write)
