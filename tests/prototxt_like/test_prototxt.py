"""Prototxt: scalars as protobuf writes them, and that no text makes it stumble."""

from __future__ import annotations

import pytest
from cortado.prototxt_like import Scalar, SpecError, dump, loads
from hypothesis import given, settings
from hypothesis import strategies as st

PIECES = st.sampled_from(
    [
        *"ab:{}<>[],;'\"\\-+1./é \n",
        "#x\n",
        "0x1",
        "1.5e3",
        "inf",
        "\\n",
        "\\303\\251",
        "\\u00e9",
        "'x'",
        '"y"',
        "a: 1 ",
        "b { ",
        "\0",
        "\ufeff",
        "\ud800",
        "layer { include: 'x' }",
    ]
)


def read(text: str) -> Scalar:
    value = loads(f"a: {text}", notation="prototxt").fields[0].value
    assert isinstance(value, Scalar)
    return value


@settings(deadline=None, max_examples=500)
@given(st.lists(PIECES, max_size=25).map("".join) | st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        tree = loads(text, notation="prototxt")
    except SpecError as error:
        print(error)
    else:
        assert dump(loads(dump(tree))) == dump(tree)


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (r'"a\n\t\\\"\'\?"', "a\n\t\\\"'?"),
        (r'"\a\b\f\r\v"', "\a\b\f\r\v"),
        (r'"\0\101\x41\X4a"', "\0AAJ"),
        (r'"\303\251\xc3\xa9\u00e9\U0001f600"', "ééé😀"),
        ("'a' \"b\" # and\n 'c'", "abc"),
        ("'it\\'s # no comment'", "it's # no comment"),
        ("''", ""),
    ],
)
def test_strings(written: str, text: str) -> None:
    assert (read(written).text, read(written).quoted) == (text, True)


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "-1",
        "0x1F",
        "-0XaB",
        "1.",
        ".5",
        "1e-4",
        "1.5E+3",
        "1.0f",
        "inf",
        "-inf",
        "-nan",
        "MAX",
        "true",
    ],
)
def test_plain_values(text: str) -> None:
    assert (read(text).text, read(text).quoted) == (text, False)


def test_a_sign_may_stand_apart() -> None:
    assert read("- # minus\n 3").text == "-3"


@pytest.mark.parametrize("text", ["+3", "1e", "0x", "--1", "-MAX", "1.2.3", "3px", ".", "-"])
def test_what_is_no_value(text: str) -> None:
    with pytest.raises(SpecError, match="neither a number nor a name"):
        read(text)


@pytest.mark.parametrize(
    "text",
    [
        "a{b:1}",
        "a:{b:1}",
        "a<b:1>",
        "a: <b: 1;>",
        "a { b: 1, }",
        "a: [{b: 1}]",
        "a [<b: [1]>]",
        "a{b:1};",
    ],
)
def test_blocks(text: str) -> None:
    assert dump(loads(text, notation="prototxt")) == "a: {b: 1}\n"


def test_places() -> None:
    tree = loads(
        "# net\nlayer {\n  name: \"a\" 'b'\n  dim: [1,\n   2]\n}\n", "net.prototxt", "prototxt"
    )
    (layer,) = tree
    assert (str(layer.span), str(layer.value.span)) == ("net.prototxt:2:1", "net.prototxt:2:7")
    assert [str(f.span) for f in layer.value] == [
        "net.prototxt:3:3",
        "net.prototxt:4:3",
        "net.prototxt:4:3",
    ]
    assert str(layer.value.fields[2].value.span) == "net.prototxt:5:4"
