"""YAML: what is a string, what aliases make, and that whatever is read can be written."""

from __future__ import annotations

import pytest
from cortado.prototxt_like import Message, Scalar, SpecError, dump, loads
from cortado.prototxt_like.message import same
from hypothesis import given, settings
from hypothesis import strategies as st

PIECES = st.sampled_from(
    [
        *"ab12 :,[]{}#&*!|>'\"%@`-?<~\n\t.=\\é",
        "\n  ",
        "a: ",
        "b: ",
        "- ",
        ": ",
        "<<: ",
        "&a ",
        "*a",
        "!!str ",
        "---\n",
        "...",
        "''",
        '""',
        "\u2028",
        "\x85",
        "\ufeff",
        "\0",
        "layer: ",
        "include: ",
    ]
)


@settings(deadline=None, max_examples=500)
@given(st.lists(PIECES, max_size=25).map("".join) | st.text())
def test_any_text_is_read_or_refused_and_what_is_read_can_be_written(text: str) -> None:
    try:
        tree = loads(text)
    except SpecError as error:
        print(error)
    else:
        assert same(tree, loads(dump(tree)))


PLACE = loads("a: b").span


def build(fields: list[tuple[str, Scalar | Message]]) -> Message:
    message = Message(PLACE)
    for name, value in fields:
        message.add(name, value)
    return message


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1)
TREES = st.recursive(
    st.text().map(lambda text: Scalar(text, PLACE, quoted=True)),
    lambda values: st.lists(st.tuples(NAMES, values), max_size=4, unique_by=lambda f: f[0]).map(build),
)


@settings(deadline=None, max_examples=100)
@given(TREES)
def test_any_tree_of_strings_comes_back(tree: Scalar | Message) -> None:
    message = build([("a", tree)])
    assert same(message, loads(dump(message)))


@pytest.mark.parametrize(
    ("written", "text", "quoted"),
    [
        ("1e-4", "1e-4", False),
        ("no", "no", False),
        ("12:30", "12:30", False),
        ("0o17", "0o17", False),
        ("2001-01-01", "2001-01-01", False),
        ("", "", False),
        ("~", "~", False),
        ("null", "null", False),
        ("'64'", "64", True),
        ('"64"', "64", True),
        ("!!str 64", "64", True),
        ("!!int '64'", "64", False),
        ("|\n  64", "64", True),
        (">-\n  a\n  b", "a b", True),
    ],
)
def test_scalars_are_texts(written: str, text: str, quoted: bool) -> None:
    value = loads(f"a: {written}").fields[0].value
    assert isinstance(value, Scalar)
    assert (value.text, value.quoted) == (text, quoted)


def test_an_alias_gives_nodes_of_its_own() -> None:
    tree = loads("a: &a {b: {c: 1}}\nd: *a\n")
    first, second = (field.value for field in tree)
    assert isinstance(first, Message)
    first.add("e", "f")
    assert not same(first, second)
    assert str(second.span) == "<string>:1:4"  # where it is written


def test_merge_prefers_the_nearer() -> None:
    tree = loads("a: &a {x: 1, y: [1, 2]}\nb: &b {x: 2, z: 3}\nc: {y: [], <<: [*a, *b], w: 4}\n")
    assert dump(Message(PLACE, tree.fields[2:])) == "c: {x: 1, z: 3, w: 4}\n"


def test_dump_is_readable() -> None:
    text = """\
name: UCN
layer:
- name: conv1
  type: Convolution
  bottom: data
  param:
  - {lr_mult: 1}
  - {lr_mult: 2, decay_mult: 0}
  convolution_param:
    num_output: 64
    weight_filler: {type: "gaussian", std: 1e-2}
- {name: norm, type: ChannelL2Norm}
exclude: {}
dim: [1, 3, 128, 416]
source:
"""
    assert dump(loads(text)) == text


def test_dump_brings_repeated_fields_together() -> None:
    tree = loads("a: 1 b: 2 a: 3", notation="prototxt")
    assert dump(tree) == "a: [1, 3]\nb: 2\n"


def test_all_mistakes_are_shown_once() -> None:
    with pytest.raises(SpecError) as caught:
        loads("".join(f"a: {i}\n" for i in range(40)))
    assert len(caught.value.errors) == 39
    assert str(caught.value).endswith("... and 19 more errors")
