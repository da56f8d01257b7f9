"""The specs that come with cortado, found by their bare names: ``load("ucn_hn")``."""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path

from cortado import prototxt_like
from cortado.prototxt_like.include import SHIPPED
from cortado.prototxt_like.message import Message
from cortado.prototxt_like.source import Source, Span, SpecError, did_you_mean

FOLDER = SHIPPED


def names() -> list[str]:
    """The names of all of them, fragments that others include among them."""
    return sorted(found.stem for found in FOLDER.glob("*.yaml"))


def summaries() -> dict[str, str]:
    """The nets and solvers among them, and the first sentence of what their files say of themselves."""
    found = {}
    for name in names():
        text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
        if kind := re.search(r"^(name|net): (.*)$", text, re.MULTILINE):
            head = takewhile(lambda line: line.startswith("#"), text.splitlines())
            about = " ".join(line.strip("# ") for line in head).split(". ")[0].rstrip(".")
            found[name] = about or f"Solver of {kind[2].removesuffix('.yaml')}"
    return found


def find(spec: str | Path) -> Path:
    """The file that a path or a bare name (with or without ``.yaml``) stands for: a file of the
    user's own first, then the spec of this name that comes with cortado.

    Raises SpecError that lists the names for one that is neither; a path is given back as it is.
    """
    given = Path(spec)
    if given.name != str(spec) or (given.exists() and not given.is_dir()):
        return given
    name = given.name.removesuffix(".yaml")
    if name in names():
        return FOLDER / f"{name}.yaml"
    if given.suffix:
        return given
    raise SpecError(
        f'no file "{spec}" here, and no spec of that name comes with cortado',
        Span(Source(str(spec), ""), 1, 1),
        did_you_mean(name, summaries(), "they are"),
    )


def path(name: str) -> Path:
    """The file of a spec that comes with cortado. Raises FileNotFoundError that lists them."""
    file = FOLDER / f"{name.removesuffix('.yaml')}.yaml"
    if not file.is_file():
        known = ", ".join(names())
        raise FileNotFoundError(f'no spec "{name}" comes with cortado; there are {known}')
    return file


def load(spec: str | Path) -> Message:
    """Read a spec by its path or name (:func:`find`); raises as :func:`cortado.prototxt_like.load`."""
    return prototxt_like.load(find(spec))
