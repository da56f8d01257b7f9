"""The command line: one file of this folder a command, imported when it is called."""

from __future__ import annotations

import importlib
import io
import re
import sys
from typing import Any

import click
import cortado

COMMANDS = (
    "beam_search",
    "bench",
    "check",
    "convert",
    "demo",
    "demo_scnet",
    "demo_train",
    "device_query",
    "draw",
    "evaluate",
    "gradcheck",
    "kernels",
    "match",
    "specs",
    "test",
    "time",
    "train",
)


class Commands(click.Group):
    """Finds ``cortado x`` in ``tools/x.py``, so that ``--help`` need not import torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"cortado.tools.{name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _first_line(name)) for name in self.list_commands(ctx)])


def _first_line(name: str) -> str:
    """A command's summary: the first line of its file's docstring, read without importing it."""
    import ast
    from pathlib import Path

    tree = ast.parse((Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").split("\n", 1)[0]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(cortado.__version__, prog_name="cortado")
def cli() -> None:
    """Caffe-era visual correspondence on today's PyTorch."""


def main(args: list[str] | None = None) -> Any:
    """Run a command; a user's mistake prints its message and exits with 2."""
    from .options import modern

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may lack a name's characters
            stream.reconfigure(errors="backslashreplace")
    try:
        return cli(args=modern(sys.argv[1:] if args is None else args), prog_name="cortado")
    except Exception as error:
        text = explained(error)
        if not text:
            raise  # a mistake of ours, not the user's
        click.echo(text, err=True)
        sys.exit(2)


_MEMORY = re.compile(r"can't allocate memory|out of memory|not enough memory", re.IGNORECASE)
_PLACE = re.compile(r"layer \".*?\" \(.*?\): ")


def explained(error: Exception) -> str:
    """What the user is told of an error that is not a mistake of ours; "" for one that is."""
    from cortado.prototxt_like.source import SpecError

    from .opencv import NoOpenCV

    text, place, cause = str(error), _place(error), error.__cause__
    kinds = (SpecError, LookupError, OSError, ValueError, FloatingPointError, NoOpenCV)
    known = isinstance(error, kinds) and not isinstance(error, (KeyError, IndexError))
    if lines := _users_lines("called_lines", error):
        return f"error: {place}{lines}"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _MEMORY.search(text)):
        return f"error: {place}out of memory: {text.split(chr(10))[0]}".rstrip(": ")
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"error: {error.filename}: {error.strerror}"
    # What a plugin's author says of a user's mistake is enough; a fault in a plugin shows its lines.
    fault = cause if isinstance(cause, (TypeError, RuntimeError)) else None if known else error
    if fault is not None and (lines := _users_lines("plugin_lines", fault)):
        return f"error: {place}{lines}"
    if not known:
        return ""
    return text if isinstance(error, SpecError) else f"error: {text}"


def _users_lines(which: str, error: BaseException) -> str:
    """What :mod:`cortado.layers._engine.users` says, if anything was imported that uses it."""
    users: Any = sys.modules.get("cortado.layers._engine.users")
    return getattr(users, which)(error) if users else ""


def _place(error: Exception) -> str:
    """The layer, by the notes that nets add to errors, or as an error of theirs begins."""
    if notes := getattr(error, "__notes__", ()):
        return "".join(f"{note}: " for note in notes)
    if span := getattr(error, "span", None):
        return f"{span}: "
    found = _PLACE.match(str(error))
    return found[0] if found else ""
