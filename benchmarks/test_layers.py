"""``make bench``: the paper's layers, forward and backward, in rounds shared with the alternatives."""

from __future__ import annotations

from typing import Any

import pytest
from cortado.tools.measuring import peak

from .cases import Case, cases
from .measure import Row, seconds

ROUNDS = 11


def _pairs() -> list[Any]:
    return [
        pytest.param(case, direction, id=f"{case.name}, {direction}")
        for case in cases()
        for direction in case.directions
    ]


@pytest.mark.parametrize(("case", "direction"), _pairs())
def test_layer(benchmark: Any, rows: list[Row], case: Case, direction: str) -> None:
    ours, theirs, floor = case.calls(direction)
    times: list[list[float]] = [[], []]

    def others() -> None:
        for call, column in zip((theirs, floor), times, strict=True):
            column.append(seconds(call))

    theirs()
    benchmark.pedantic(ours, setup=others, rounds=ROUNDS, warmup_rounds=1)
    if benchmark.disabled:
        return
    measured = list(benchmark.stats.stats.data)
    kept = [column[-len(measured) :] for column in times]
    memory = [peak(call) for call in case.whole(direction)]
    row = Row(case.name, direction, measured, *kept, *memory)
    benchmark.extra_info.update(ratio=row.ratio, mebibytes=memory[0], alternative_mebibytes=memory[1])
    rows.append(row)
