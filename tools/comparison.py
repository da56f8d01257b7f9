"""Two runs of ``cortado bench`` compared, row by row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import click

from .results import NO_GRADIENT, NO_SAMPLES, OURS, Result, number, read, shown

MEMORY = 0.125  # MiB: less is the allocator's rounding, not a regression


@dataclass(frozen=True)
class Change:
    """One row in both runs: milliseconds, MiB, and in words what is worse or better."""

    layer: str
    size: str
    direction: str
    dtype: str
    implementation: str
    old_ms: float | None
    new_ms: float | None
    old_mib: float | None
    new_mib: float | None
    change: float | None
    """Of the time, as a fraction of the old one."""
    verdict: str
    regression: bool


def _percent(context: click.Context, option: click.Parameter, text: str) -> float:
    try:
        percent = float(text.strip().removesuffix("%"))
    except ValueError:
        percent = -1.0
    if not 0 <= percent < float("inf"):
        raise click.BadParameter(f'expected a percentage such as 10%, got "{text}"')
    return percent / 100


@click.command()
@click.argument("old", type=click.Path(exists=True, dir_okay=False))
@click.argument("new", type=click.Path(exists=True, dir_okay=False))
@click.option("--fail-above", default="10%", show_default=True, metavar="PERCENT", callback=_percent)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def compare(old: str, new: str, fail_above: float, as_json: bool) -> None:
    """Compare two files of results, JSON or CSV; exit code 1 if a layer became worse.

    Worse: its median time or its memory grew by more than --fail-above, or it has no figure any
    more. Alternatives are shown and never count; of a CSV file with several runs the last is read.

    \b
    cortado bench compare old.json new.json --fail-above 10%
    """
    before, after = read(old), read(new)
    changes = compared(before, after, fail_above)
    if not changes:
        raise ValueError(f"{old} and {new} have no row in common")
    said = differences(before, after)
    if as_json:
        found = {"differences": said, "changes": [asdict(change) for change in changes]}
        click.echo(json.dumps(found))
    else:
        _show(changes, said)
    if any(change.regression for change in changes):
        raise SystemExit(1)


def compared(old: Sequence[Result], new: Sequence[Result], above: float) -> list[Change]:
    """The rows that both runs have, a regression being more than the fraction ``above``."""
    after = {row.key: row for row in new}
    both = [(row, after[row.key]) for row in old if row.key in after]
    return [_change(a, b, above) for a, b in both if a.note not in (NO_SAMPLES, NO_GRADIENT)]


def _change(old: Result, new: Result, above: float) -> Change:
    grown = new.p50_ms / old.p50_ms - 1 if old.p50_ms and new.p50_ms is not None else None
    verdicts = []
    if old.p50_ms is not None and new.p50_ms is None:
        verdicts.append(f"lost: {new.note}")
    if grown is not None and grown > above:
        verdicts.append("slower")
    more = (new.peak_extra_mib or 0) - (old.peak_extra_mib or 0)
    if old.peak_extra_mib is not None and more > max(MEMORY, above * old.peak_extra_mib):
        verdicts.append("more memory")
    worse = bool(verdicts) and old.implementation == OURS
    if grown is not None and grown < -above:
        verdicts.append("faster")
    return Change(
        *(*old.what, old.dtype, old.implementation, old.p50_ms, new.p50_ms),
        *(old.peak_extra_mib, new.peak_extra_mib, grown, ", ".join(verdicts), worse),
    )


def differences(old: Sequence[Result], new: Sequence[Result]) -> list[str]:
    """In words, what besides the code may explain a change, and which rows only one run has."""
    said = []
    for name in ("device", "threads", "versions", "commit"):
        a, b = getattr(old[0], name), getattr(new[0], name)
        if a != b:
            said.append(f"{name}: {a or 'unknown'} then, {b or 'unknown'} now")
    for rows, others, which in ((old, new, "first"), (new, old, "second")):
        alone = {row.key for row in rows} - {row.key for row in others}
        if alone:
            layers = ", ".join(sorted({key[0] for key in alone}))
            said.append(f"{len(alone)} rows only in the {which} file: {layers}")
    return said


def _show(changes: Sequence[Change], said: Sequence[str]) -> None:
    def cells(change: Change) -> list[Any]:
        what = [change.layer, change.size, change.direction, change.dtype, change.implementation]
        moved = "" if change.change is None else f"{change.change:+.1%}"
        memory = [number(x) for x in (change.old_mib, change.new_mib)]
        return [*what, number(change.old_ms), number(change.new_ms), moved, *memory, change.verdict]

    columns = ["layer", "size", "direction", "dtype", "by"]
    numbers = ["old ms", "new ms", "change", "old MiB", "new MiB", ""]
    console = shown(columns, numbers, [cells(change) for change in changes])
    for line in said:
        console.print(line, highlight=False)
    worse = sum(change.regression for change in changes)
    console.print(f"{len(changes)} rows compared, {worse} worse", highlight=False)
