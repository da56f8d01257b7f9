"""The command line's page, from the commands' own help."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click
from cortado.tools.cli import cli
from rst import code, heading, literal, table

INTRODUCTION = """\
A user's mistake is shown with its place and exits with 2; a check that fails exits with 1. Caffe's
spelling is understood, too: ``-solver``, ``-weights``, ``-gpu``, ``-sigint_effect=stop``.
"""


def page() -> str:
    """Every command: what it does, an example, its arguments and options."""
    context = click.Context(cli, info_name="cortado")
    parts = [heading("Command line", "="), INTRODUCTION]
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        parts += _command(command, click.Context(command, info_name=name, parent=context))
    return "\n".join(parts)


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    yield heading(f"cortado {context.info_name}")
    usage = " ".join(command.collect_usage_pieces(context))
    yield code(f"{context.command_path} {usage}", "console")
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        yield _paragraph(paragraph)
    options = (p for p in command.get_params(context) if isinstance(p, click.Option))
    records = (record for option in options if (record := option.get_help_record(context)))
    yield table(("option", "meaning"), ((literal(names), _plain(text)) for names, text in records))


def _paragraph(text: str) -> str:
    """Text, or, after click's mark for lines that stay as they are, an example."""
    if text.startswith("\b\n"):
        return code(text.removeprefix("\b\n"), "console")
    return f"{_plain(' '.join(text.split()))}\n"


def _plain(text: str) -> str:
    """Help is no markup."""
    return re.sub(r"([*`|\\])|(?<=\w)_(?!\w)", r"\\\g<0>", text)
