"""Collects the rows of the benchmarks and prints them as one table."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .measure import HEADER, Row

_rows: list[Row] = []


@pytest.fixture
def rows() -> Iterator[list[Row]]:
    return _rows


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _rows:
        terminalreporter.section("against the alternatives")
        terminalreporter.write_line("\n".join([HEADER, *map(str, _rows)]))
