"""Places and how errors show them."""

from __future__ import annotations

import pytest
from cortado.prototxt_like.source import (
    Errors,
    Source,
    Span,
    SpecError,
    closest,
    did_you_mean,
    together,
)

NET = Source("net.yaml", "name: a\r\nlayer:\r- b\tc\n")


def test_at_counts_lines_and_columns_from_one() -> None:
    assert [str(NET.at(i)) for i in (0, 7, 8, 15)] == [
        "net.yaml:1:1",
        "net.yaml:1:8",
        "net.yaml:2:1",
        "net.yaml:3:1",
    ]
    assert [NET.line(i) for i in (1, 2, 3, 4, 5)] == ["name: a", "layer:", "- b\tc", "", ""]


def test_an_error_shows_its_line() -> None:
    error = SpecError("no", Span(NET, 3, 5), "try c")
    assert str(error) == "net.yaml:3:5: error: no\n    - b c\n        ^\n  try c"
    assert Span(NET, 3, 5).place == "net.yaml:3"


def test_an_error_without_a_place() -> None:
    assert str(SpecError("no")) == "error: no"


def test_a_long_line_is_cut_around_the_place() -> None:
    source = Source("x", "  " + "a" * 500 + "!" + "b" * 500)
    _, line, caret = str(SpecError("no", source.at(502))).splitlines()
    assert len(line) == 104
    assert line[caret.index("^")] == "!"


def test_control_characters_are_not_printed() -> None:
    assert "\x1b" not in str(SpecError("no", Span(Source("x", "a: \x1b[31m"), 1, 1)))


def test_errors_stand_in_order_and_once() -> None:
    other = Source("other.yaml", "x")
    errors = [
        SpecError("c", Span(other, 1, 1)),
        SpecError("b", Span(NET, 3, 1)),
        SpecError("a", Span(NET, 1, 1)),
    ]
    joined = together([*errors, SpecError("b", Span(NET, 3, 1))])
    assert [error.message for error in joined.errors] == ["c", "a", "b"]
    assert together([errors[0], errors[0]]) is errors[0]


def test_errors_are_collected() -> None:
    def fail(message: str) -> None:
        raise SpecError(message)

    errors = Errors()
    errors.check()
    assert errors.attempt(fail, "a") is None
    with errors.catch():
        fail("b")
    with pytest.raises(KeyError), errors.catch():
        raise KeyError
    with pytest.raises(SpecError, match="error: a\nerror: b"):
        errors.check()


def test_the_closest_name() -> None:
    assert closest("relu", ["ReLU", "ELU"]) == "ReLU"
    assert did_you_mean("kernal", ["kernel", "pad"]) == 'did you mean "kernel"? accepted: kernel, pad'
    assert did_you_mean("xyz", ["kernel"], "known") == "known: kernel"
    assert did_you_mean("xyz", []) == "accepted: none"
