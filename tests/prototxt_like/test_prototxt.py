"""Prototxt: scalars as protobuf writes them, what is written, and that no text makes it stumble."""

from __future__ import annotations

import pytest
from cortado.prototxt_like import Scalar, SpecError, dump, loads, prototxt
from cortado.prototxt_like.message import same
from hypothesis import given, settings
from hypothesis import strategies as st
from mutilate import mutilated

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
        "017",
        "[a.b/c]: ",
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
        assert same(tree, loads(prototxt.dump(tree), notation="prototxt"))


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


@pytest.mark.parametrize(("octal", "text"), [("010", "0x8"), ("-0777", "-0x1ff"), ("00", "0x0")])
def test_octal_numbers_mean_the_same_everywhere(octal: str, text: str) -> None:
    assert (read(octal).text, read(octal).quoted) == (text, False)


def test_a_sign_may_stand_apart() -> None:
    assert read("- # minus\n 3").text == "-3"


@pytest.mark.parametrize(
    "text", ["08", "00.5", "+3", "1e", "0x", "--1", "-MAX", "1.2.3", "3px", ".", "-"]
)
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


def test_names_in_brackets() -> None:
    text = "[caffe.my_ext] { [conv1/7x7]: 1 } [ type.googleapis.com/x.Y # any\n ]: 2\n"
    tree = loads(text, notation="prototxt")
    assert [field.name for field in tree] == ["caffe.my_ext", "type.googleapis.com/x.Y"]
    assert prototxt.dump(tree) == "[caffe.my_ext] { [conv1/7x7]: 1 }\n[type.googleapis.com/x.Y]: 2\n"


@pytest.mark.parametrize("text", ["[a: 1", "[]: 1", "[a b]: 1", "[a.b"])
def test_brackets_hold_one_name(text: str) -> None:
    with pytest.raises(SpecError, match="expected"):
        loads(text, notation="prototxt")


def test_dump_is_readable() -> None:
    text = """\
name: "UCN"
layer {
  name: "conv1"
  type: "Convolution"
  bottom: "data"
  param { lr_mult: 1 }
  param { lr_mult: 2 decay_mult: 0 }
  convolution_param {
    num_output: 64
    kernel_size: 0x7
    engine: CAFFE
    weight_filler { type: "gaussian" std: 1e-2 }
    bias_filler { type: "a longer one" value: -inf }
  }
  include { }
}
state { phase: TEST }
"""
    assert prototxt.dump(loads(text, notation="prototxt")) == text


@pytest.mark.parametrize(
    ("yaml", "text"),
    [
        ("conv1", "conv1"),
        ("train.txt", '"train.txt"'),
        ("conv1/7x7", '"conv1/7x7"'),
        ("+3", "3"),
        (".5", ".5"),
        ("-.inf", "-inf"),
        ("+.Inf", "Inf"),
        (".nan", "nan"),
        ("010", '"010"'),
        ("12:30", '"12:30"'),
        ("'64'", '"64"'),
        ("~", '"~"'),
        ('"\\n\\r\\t\\"\\\\ \\x01 é"', '"\\n\\r\\t\\"\\\\ \\001 é"'),
    ],
)
def test_what_yaml_says_in_prototxt(yaml: str, text: str) -> None:
    assert prototxt.dump(loads(f"a: {yaml}")) == f"a: {text}\n"


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("a:", 'net.yaml:1:3: error: prototxt cannot write "a" without a value'),
        ("a b: 1", 'net.yaml:1:1: error: prototxt cannot name a field "a b"'),
    ],
)
def test_what_prototxt_cannot_say(yaml: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        prototxt.dump(loads(yaml, "net.yaml"))
    assert str(caught.value).startswith(message)


NET = """\
name: "n" # a net
input: 'data' input_dim: [1, 3, 8, 0x8];
layers { name: "conv" 'x' type: CONVOLUTION bottom: "data" top: "conv" blobs_lr: 1. blobs_lr: 2
  convolution_param < num_output: 2 pad: 1 weight_filler { type: "xavier" std: -1.5e-3f } >
  include: { phase: TRAIN stage: "a" } }
layers { layer { name: "p" type: "pool" kernelsize: 2 } bottom: "conv" top: "p" }
"""


@pytest.mark.parametrize("notation", ["prototxt", "yaml"])
def test_a_mutilated_net_is_read_or_refused(notation: str) -> None:
    text = NET if notation == "prototxt" else dump(loads(NET, notation="prototxt"))
    read = 0
    for changed in mutilated(text, 300):
        try:
            loads(changed, notation=notation)
            read += 1
        except SpecError as error:
            print(error)
    assert 10 < read < 200
