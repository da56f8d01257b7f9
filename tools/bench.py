"""Time any layers, forward and backward, against alternatives and the least that is possible."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click

from .comparison import compare
from .options import device_options, plugins, the_device
from .results import (
    COMPILED,
    NO_GRADIENT,
    NO_SAMPLES,
    OURS,
    PLAIN,
    TORCHVISION,
    Result,
    about,
    data,
    number,
    shown,
    write_csv,
)

ALTERNATIVES = {"torch": PLAIN, "compile": COMPILED, "torchvision": TORCHVISION}
SIZES = ("small", "paper", "large")
DTYPES = ("float64", "float32", "float16", "bfloat16")


class Bench(click.Command):
    """``bench compare`` is a command of its own; all other words are the names of layers."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args[:1] == ["compare"]:
            return compare.make_context(f"{info_name} compare", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


def _alternatives(context: click.Context, option: click.Parameter, text: str) -> tuple[str, ...]:
    names = dict.fromkeys(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in ALTERNATIVES:
            raise click.BadParameter(f'"{name}" is none of {", ".join(ALTERNATIVES)}')
    return tuple(ALTERNATIVES[name] for name in names)


@click.command(cls=Bench)
@click.argument("layers", metavar="[LAYER]...", nargs=-1)
@click.option("--size", type=click.Choice(SIZES), default="paper", show_default=True)
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True)
@click.option(
    "--against", default="", metavar="LIST", callback=_alternatives, help="torch,compile,torchvision"
)
@click.option(
    "--seconds", type=click.FloatRange(0), default=0.3, show_default=True, help="Of rounds, each."
)
@click.option("--iterations", type=click.IntRange(1), help="So many rounds instead.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--csv", "as_csv", is_flag=True, help="Print a CSV file.")
@plugins
@device_options
def command(
    layers: tuple[str, ...],
    size: str,
    dtype: str,
    against: tuple[str, ...],
    seconds: float,
    iterations: int | None,
    as_json: bool,
    as_csv: bool,
    **options: Any,
) -> None:
    """Measure every layer, or those named, on its own samples; exit code 1 if one of them fails.

    Times are medians of rounds, with their 20th and 80th percentiles; on a GPU the inputs pass its
    cache. MiB: the most held at once beyond the inputs, for backward together with its forward.
    Floor: a copy of as many bytes as must be read and written, or, of a forward pass, a matrix product
    of as many multiply-adds, whichever takes longer; Winograd's convolutions need fewer.

    --against torch: what a user would write in torch's operations, or on a GPU the layer's own torch
    path; compile: torch.compile of that, or of the layer. "compare OLD NEW" compares two files.

    \b
    cortado bench KNN ROIPooling --against torch,compile
    cortado bench --size small --json > new.json
    cortado bench compare old.json new.json --fail-above 10%
    """
    import torch
    from cortado.layers._engine import registry

    from . import progress, subjects
    from .layer_bench import Settings, bench_layer

    if as_json and as_csv:
        raise click.UsageError("--json or --csv, not both")
    kinds = list(dict.fromkeys(subjects.layer_class(name) for name in layers))
    kinds = kinds or [entry.layer for entry in registry.entries()]
    device = the_device(options)
    settings = Settings(size, getattr(torch, dtype), device, against, seconds, iterations or 0)
    known = about(device)
    results = [
        result.but(**known)
        for kind in progress.through(kinds, lambda kind: kind.type_name)
        for result in bench_layer(kind, settings)
    ]
    if as_json:
        click.echo(json.dumps(data(results)))
    elif as_csv:
        write_csv(sys.stdout, results)
    else:
        show(results)
    if any(failed(result) for result in results):
        raise SystemExit(1)


def failed(result: Result) -> bool:
    """Whether one of our own layers should have been measured and was not."""
    blank = result.p50_ms is None and result.note not in (NO_SAMPLES, NO_GRADIENT)
    return blank and result.implementation == OURS


def show(results: Sequence[Result]) -> None:
    """The table a person reads: a line for each sample and direction, then why cells are blank."""
    others = list(dict.fromkeys(row.implementation for row in results if row.implementation != OURS))
    numbers = ["ms", "20% to 80%", "MiB", "floor ms", "x floor"]
    for name in others:
        numbers += [f"{name} ms", "x", "MiB"]
    found = {(*row.what, row.implementation): row for row in results}
    lines = []
    for row in results:
        if row.implementation == OURS and row.note not in (NO_SAMPLES, NO_GRADIENT):
            cells = [*row.what, number(row.p50_ms), _spread(row), number(row.peak_extra_mib)]
            cells += [number(row.floor_ms), _ratio(row.p50_ms, row.floor_ms)]
            for name in others:
                other = found.get((*row.what, name), row.but(p50_ms=None, peak_extra_mib=None))
                ratio = _ratio(other.p50_ms, row.p50_ms)
                cells += [number(other.p50_ms), ratio, number(other.peak_extra_mib)]
            lines.append(cells)
    console = shown(["layer", "size", "direction"], numbers, lines)
    for text in (*_notes(results), _about(results[0])):
        console.print(text, highlight=False, markup=False)


def _spread(row: Result) -> str:
    return "" if row.p20_ms is None else f"{number(row.p20_ms)} to {number(row.p80_ms)}"


def _ratio(above: float | None, below: float | None) -> str:
    return f"{above / below:.2f}" if above and below else ""


def _notes(results: Sequence[Result]) -> Iterator[str]:
    """Each note once, with the layers it is said of, or the sample if it is of one only."""
    rows: dict[tuple[str, str], list[Result]] = {}
    for row in results:
        if row.note:
            rows.setdefault((row.implementation, row.note), []).append(row)
    for (name, note), of in rows.items():
        layers = dict.fromkeys(row.layer for row in of)
        where = ", ".join(of[0].what) if len(of) == 1 and of[0].size else ", ".join(layers)
        yield f"{name}: {note}: {where}"


def _about(row: Result) -> str:
    parts = (f"{row.device}, {row.threads} threads", row.dtype, row.versions, row.commit)
    return ", ".join(part for part in parts if part)
