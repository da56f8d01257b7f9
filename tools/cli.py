"""The command line: one file of this folder a command, imported when it is called."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click
import cortado

COMMANDS = (
    "bench",
    "check",
    "convert",
    "demo",
    "demo_scnet",
    "device_query",
    "draw",
    "gradcheck",
    "kernels",
    "match",
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

    try:
        return cli(args=modern(sys.argv[1:] if args is None else args), prog_name="cortado")
    except Exception as error:
        from cortado.prototxt_like.source import SpecError

        known = (SpecError, LookupError, OSError, ValueError, FloatingPointError)
        if not isinstance(error, known) or isinstance(error, (KeyError, IndexError)):
            raise  # a mistake of ours, not the user's
        click.echo(str(error) if isinstance(error, SpecError) else f"error: {error}", err=True)
        sys.exit(2)
