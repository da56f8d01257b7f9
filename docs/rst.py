"""Pieces of reStructuredText, and the tables of the repository's Markdown files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mathematics import tex

Row = Sequence[str]


@dataclass(frozen=True)
class Table:
    """A Markdown table: the heading and the text that it stands under, its head, its rows."""

    heading: str
    text: str
    head: Row
    rows: Sequence[Row]


def heading(text: str, underline: str = "-") -> str:
    return f"{text}\n{underline * len(text)}\n"


def block(text: str, indent: str = "   ") -> str:
    """The lines indented."""
    return "\n".join(f"{indent}{line}".rstrip() for line in text.strip("\n").split("\n"))


def code(text: str, language: str) -> str:
    return f".. code-block:: {language}\n\n{block(text)}\n"


def table(head: Row, rows: Iterable[Row]) -> str:
    """A table whose cells are inline text."""
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in (head, *rows):
        for i, cell in enumerate(row):
            lines.append(f"   {'*' if i == 0 else ' '} - {cell}".rstrip())
    return "\n".join(lines) + "\n"


def literal(text: str) -> str:
    return f"``{text}``" if text else ""


def equations(docstring: str) -> str:
    """A docstring whose equations, blocks indented by four spaces, are mathematics."""

    def formula(found: re.Match[str]) -> str:
        return f".. math::\n\n{block(tex(found[0]))}\n"

    return re.sub(r"(?<=\n\n)(?:    \S.*\n(?:    .*\n)*)", formula, docstring)


def inline(markdown: str) -> str:
    """Markdown's inline text: code and escapes; links lead to files that are not here."""
    return re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", markdown))


def tables(markdown: str) -> list[Table]:
    """The tables of a Markdown text, in order; ``text`` are the paragraphs since the one before."""
    found: list[Table] = []
    title, text = "", list[str]()
    for paragraph in re.split(r"\n\s*\n", markdown.strip()):
        lines = paragraph.split("\n")
        if lines[0].startswith("#"):
            title, text = lines.pop(0).lstrip("# "), []
        if lines and lines[0].startswith("|"):
            head, _, *rows = (_cells(line) for line in lines)
            found.append(Table(title, "\n\n".join(text), head, rows))
            text = []
        elif lines:
            text.append(inline("\n".join(lines)))
    return found


def _cells(line: str) -> Row:
    return [inline(cell.strip()) for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]
