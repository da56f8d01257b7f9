"""A run's results on a GPU as a table to read."""

from __future__ import annotations

from collections.abc import Sequence

from cortado.tools.results import OURS, Result, number

DEVICE = "the device"
"""The layer of rows that say what the device reaches."""

HEAD = (
    "| layer | size | direction | dtype | ms (p20 to p80) | best alternative | times as fast "
    "| MiB | alternative MiB | floor ms | times the floor |\n"
    "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
)
EVERY = (
    "| layer | size | direction | implementation | ms | MiB | |\n"
    "| --- | --- | --- | --- | ---: | ---: | --- |"
)


def render(results: Sequence[Result]) -> str:
    """One run's rows as Markdown."""
    if not results:
        return "# Nothing was measured\n"
    first = results[0]
    ours = [row for row in results if row.implementation == OURS]
    others = [row for row in results if row.implementation != OURS and row.layer != DEVICE]
    reached = [f"- {row.size}: {row.note}" for row in results if row.layer == DEVICE]
    lines = [
        f"# The layers on {first.device or 'a device'}",
        "",
        f"{first.date}, commit {first.commit}; {first.versions}.",
        "",
        "Medians of rounds over sets of inputs that pass the cache several times, by CUDA events,",
        "queued while the device sleeps so that no launch is waited for; float32 without TF32.",
        "MiB: the most that torch's allocator held beyond the inputs, tops included, for backward",
        "together with its forward. Floor: each input, top and gradient moved once at the measured",
        "copy bandwidth (of a map read at points, the cells read), or the products at the measured",
        "matrix rate, whichever takes longer. The best alternative is in float32.",
        "",
        *reached,
        "",
        HEAD,
        *(_line(row, _best(row, others)) for row in ours),
        "",
        "## The alternatives",
        "",
        EVERY,
        *map(_other, others),
    ]
    return "\n".join(lines) + "\n"


def _best(row: Result, others: Sequence[Result]) -> Result | None:
    """The fastest alternative; where none came to an end, the one that says why."""
    rivals = [other for other in others if other.what == row.what]
    return min(rivals, key=lambda other: other.p50_ms or float("inf"), default=None)


def _line(row: Result, best: Result | None) -> str:
    name, size, direction = row.what
    alternative = "" if best is None else f"{_ms(best)} {best.implementation}"
    cells = [name, size, direction, row.dtype, _spread(row), alternative]
    cells += [_ratio(best and best.p50_ms, row.p50_ms), _mib(row), "" if best is None else _mib(best)]
    cells += [number(row.floor_ms), _ratio(row.p50_ms, row.floor_ms)]
    return f"| {' | '.join(cells)} |"


def _other(row: Result) -> str:
    note = row.note if row.p50_ms is not None else ""
    return f"| {' | '.join((*row.what, row.implementation, _ms(row), _mib(row), note))} |"


def _ms(row: Result) -> str:
    return row.note or "not measured" if row.p50_ms is None else number(row.p50_ms)


def _spread(row: Result) -> str:
    if row.p50_ms is None:
        return _ms(row)
    spread = f"{number(row.p50_ms)} ({number(row.p20_ms)} to {number(row.p80_ms)})"
    return f"{spread}, {row.note}" if row.note else spread


def _mib(row: Result) -> str:
    return "" if row.peak_extra_mib is None else f"{row.peak_extra_mib:.1f}"


def _ratio(above: float | None, below: float | None) -> str:
    return f"{above / below:.2f}" if above and below else ""
