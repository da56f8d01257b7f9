"""Texts get their types: each type's spellings, each mistake's message, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum, IntEnum

import pytest
from cortado.prototxt_like import SpecError, dump, loads
from cortado.prototxt_like.bind import bind, unbind
from hypothesis import given, settings
from hypothesis import strategies as st


class Mode(Enum):
    RELATIVE = "relative"
    ABSOLUTE = "absolute"


class Engine(IntEnum):
    DEFAULT = 0
    CAFFE = 1


@dataclass(frozen=True)
class Filler:
    type: str = "constant"
    value: float = field(default=0.0, metadata={"infinite": True})
    std: float = field(default=1.0, metadata={"above": 0})


@dataclass(frozen=True)
class Params:
    num_output: int = field(metadata={"low": 1, "doc": "channels of the top", "wide": True})
    kernel_size: tuple[int, ...] = field(default=(3,), metadata={"low": 1})
    ratio: float = field(default=0.5, metadata={"low": 0, "high": 1})
    mode: Mode = Mode.RELATIVE
    engine: Engine = Engine.DEFAULT
    bias_term: bool = True
    filler: Filler = field(default_factory=lambda: Filler("xavier"))
    fillers: tuple[Filler, ...] = ()
    modes: tuple[Mode, ...] = ()
    axis: int | None = field(default=None, metadata={"wide": True})
    name: str | None = None
    downsampling_factor: float = field(default=4.0, metadata={"aliases": ("down_sampling_factor",)})

    def __post_init__(self) -> None:
        if self.axis == self.num_output:
            raise ValueError("axis and num_output differ")


def read(text: str, **kwargs: object) -> Params:
    return bind(Params, loads(text, "net.yaml"), **kwargs)  # type: ignore[arg-type]


def complaint(text: str) -> str:
    with pytest.raises(SpecError) as caught:
        read(text)
    return str(caught.value)


def test_a_block() -> None:
    text = """
num_output: 0x40
kernel_size: [1, 3]
ratio: 1
mode: ABSOLUTE
engine: "CAFFE"
bias_term: false
filler: {type: gaussian, std: 1e-2}
fillers: [{}, {value: -inf}]
modes: [ABSOLUTE, RELATIVE]
axis: -1
name: 12:30
down_sampling_factor: 8
"""
    assert read(text) == Params(
        num_output=64,
        kernel_size=(1, 3),
        ratio=1.0,
        mode=Mode.ABSOLUTE,
        engine=Engine.CAFFE,
        bias_term=False,
        filler=Filler("gaussian", 0.0, 0.01),
        fillers=(Filler(), Filler(value=-math.inf)),
        modes=(Mode.ABSOLUTE, Mode.RELATIVE),
        axis=-1,
        name="12:30",
        downsampling_factor=8.0,
    )


def test_a_block_in_the_tree_starts_from_its_own_defaults() -> None:
    assert read("num_output: 1").filler == Filler("xavier")
    assert read("num_output: 1\nfiller: {}").filler == Filler("constant")


@dataclass(frozen=True)
class One:
    i: int = 0
    wide: int = field(default=0, metadata={"wide": True})
    f: float = 0.0
    infinite: float = field(default=0.0, metadata={"infinite": True})
    b: bool = False
    s: str = ""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("+3", 3),
        ("-3", -3),
        ("0x1F", 31),
        ("-0X1f", -31),
        ("4294967295", 2**32 - 1),
        ("-2147483648", -(2**31)),
    ],
)
def test_integers(text: str, value: int) -> None:
    assert bind(One, loads(f"i: {text}")).i == value


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63)])
def test_wide_integers(value: int) -> None:
    assert bind(One, loads(f"wide: {value}")).wide == value
    with pytest.raises(SpecError, match=f"1:4: error: i: {value} is out of the range of 32 bits"):
        bind(One, loads(f"i: {value}"))


@pytest.mark.parametrize("value", [2**32, -(2**31) - 1])
def test_integers_of_more_than_32_bits(value: int) -> None:
    with pytest.raises(SpecError, match="is out of the range of 32 bits"):
        bind(One, loads(f"i: {value}"))


@pytest.mark.parametrize(
    "text", ["1.0", "1e3", "010", "1_000", "0o7", "true", "~", "''", "٣", "0x", "{}"]
)
def test_what_is_no_integer(text: str) -> None:
    with pytest.raises(SpecError, match="i: expected an integer, got "):
        bind(One, loads(f"i: {text}"))


@pytest.mark.parametrize("text", ["9223372036854775808", "-0x8000000000000001", "9" * 6000])
def test_integers_that_do_not_fit(text: str) -> None:
    with pytest.raises(SpecError, match="does not fit in 64 bits"):
        bind(One, loads(f"i: {text}"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1.0),
        ("-1.5", -1.5),
        ("1.", 1.0),
        (".5", 0.5),
        ("1e-4", 1e-4),
        ("1E+2", 100.0),
        ("2.5f", 2.5),
        ("3.4028235e38", 3.4028235e38),
        ("1e-400", 0.0),
    ],
)
def test_numbers(text: str, value: float) -> None:
    assert bind(One, loads(f"f: {text}")).f == value


@pytest.mark.parametrize("text", ["1e999", "-1e39", "3.4028236e38"])
def test_a_number_beyond_all_floats(text: str) -> None:
    with pytest.raises(SpecError, match=f"{text} is too large for a float"):
        bind(One, loads(f"f: {text}"))


@pytest.mark.parametrize(
    ("text", "value"), [("inf", math.inf), ("-Infinity", -math.inf), ("-.inf", -math.inf)]
)
def test_infinity(text: str, value: float) -> None:
    assert bind(One, loads(f"infinite: {text}")).infinite == value
    with pytest.raises(SpecError, match=f"f must be a finite number, got {text}"):
        bind(One, loads(f"f: {text}"))


def test_nan() -> None:
    with pytest.raises(SpecError, match="f must be a finite number, got nan"):
        bind(One, loads("f: nan"))
    with pytest.raises(SpecError, match="infinite must be a number, got nan"):
        bind(One, loads("infinite: nan"))


@pytest.mark.parametrize("text", ["0x10", "1e", "one", "12:30", "1_0.0", "1,5", "'1'", "", "true"])
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(SpecError, match="f: expected a number, got "):
        bind(One, loads(f"f: {text}"))


@pytest.mark.parametrize("text", ["true", "True", "t", "1"])
def test_true(text: str) -> None:
    assert bind(One, loads(f"b: {text}")).b is True


@pytest.mark.parametrize("text", ["false", "False", "f", "0"])
def test_false(text: str) -> None:
    assert bind(One, loads(f"b: {text}", notation="prototxt")).b is False


@pytest.mark.parametrize("text", ["no", "yes", "TRUE", "on", "2", "'true'", ""])
def test_what_is_neither(text: str) -> None:
    with pytest.raises(SpecError, match="b: expected true or false, got "):
        bind(One, loads(f"b: {text}"))


MISTAKES = {
    "num_output: 1\nkernal_size: 3": """\
net.yaml:2:1: error: Params has no parameter "kernal_size"
    kernal_size: 3
    ^
  did you mean "kernel_size"? accepted: axis, bias_term, down_sampling_factor, downsampling_factor, \
engine, filler, fillers, kernel_size, mode, modes, name, num_output, ratio""",
    'num_output: "64"': """\
net.yaml:1:13: error: num_output: expected an integer, got the string "64"
    num_output: "64"
                ^""",
    "axis: 1": """\
net.yaml:1:1: error: Params needs "num_output"
    axis: 1
    ^
  num_output: an integer, at least 1, channels of the top""",
    "num_output: 1\nkernel_size: [3, 0]": """\
net.yaml:2:18: error: kernel_size must be at least 1, got 0
    kernel_size: [3, 0]
                     ^""",
    "num_output: 1\nratio: 1.5": """\
net.yaml:2:8: error: ratio must be at most 1, got 1.5
    ratio: 1.5
           ^""",
    "num_output: 1\nratio: nan": """\
net.yaml:2:8: error: ratio must be a finite number, got nan
    ratio: nan
           ^""",
    "num_output: 1\nfiller: {std: 0}": """\
net.yaml:2:15: error: std must be above 0, got 0
    filler: {std: 0}
                  ^""",
    "num_output: 1\nfiller: {vlaue: 0}": """\
net.yaml:2:10: error: filler has no parameter "vlaue"
    filler: {vlaue: 0}
             ^
  did you mean "value"? accepted: std, type, value""",
    "num_output: 1\nfiller: gaussian": """\
net.yaml:2:9: error: filler: expected a block, got gaussian
    filler: gaussian
            ^""",
    "num_output: {a: 1}": """\
net.yaml:1:13: error: num_output: expected an integer, got a block
    num_output: {a: 1}
                ^""",
    "num_output:": """\
net.yaml:1:12: error: num_output: expected an integer, got nothing
    num_output:
               ^""",
    "num_output: 1\nname:": """\
net.yaml:2:6: error: name: expected a string, got nothing
    name:
         ^""",
    "num_output: 1\nmode: absolute": """\
net.yaml:2:7: error: mode has no value "absolute"
    mode: absolute
          ^
  did you mean "ABSOLUTE"? accepted: ABSOLUTE, RELATIVE""",
    "num_output: 1\nmode: {}": """\
net.yaml:2:7: error: mode: expected one of RELATIVE, ABSOLUTE, got a block
    mode: {}
          ^""",
    "num_output: [1, 2]": """\
net.yaml:1:17: error: "num_output" takes one value, already given at net.yaml:1:14
    num_output: [1, 2]
                    ^""",
    "num_output: 1\ndownsampling_factor: 4\ndown_sampling_factor: 4": """\
net.yaml:3:23: error: "downsampling_factor" takes one value, already given at net.yaml:2:22
    down_sampling_factor: 4
                          ^""",
    "num_output: 2\naxis: 2": """\
net.yaml:1:1: error: Params: axis and num_output differ
    num_output: 2
    ^""",
    "ratio: x\nnum_output: y\nnam: z": """\
net.yaml:1:8: error: ratio: expected a number, got x
    ratio: x
           ^
net.yaml:2:13: error: num_output: expected an integer, got y
    num_output: y
                ^
net.yaml:3:1: error: Params has no parameter "nam"
    nam: z
    ^
  did you mean "name"? accepted: axis, bias_term, down_sampling_factor, downsampling_factor, \
engine, filler, fillers, kernel_size, mode, modes, name, num_output, ratio""",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes(text: str) -> None:
    assert complaint(text) == MISTAKES[text]


def test_what_the_message_is_called() -> None:
    with pytest.raises(SpecError, match='Convolution has no parameter "x"'):
        read("num_output: 1\nx: 2", what="Convolution")


def test_fields_that_are_read_elsewhere() -> None:
    assert (
        read("num_output: 1\nx_param: 2", ignore=lambda name: name.endswith("_param")).num_output == 1
    )


def test_a_type_that_no_spec_can_fill() -> None:
    @dataclass
    class Odd:
        when: complex = 0j

    with pytest.raises(TypeError, match="no spec can fill the field when"):
        bind(Odd, loads("when: 1"))


def test_unbind_leaves_defaults_out() -> None:
    params = Params(3, filler=Filler("gaussian", std=1e-5), modes=(Mode.ABSOLUTE,), bias_term=False)
    assert dump(unbind(params)) == (
        'num_output: 3\nbias_term: false\nfiller: {type: "gaussian", std: 1e-05}\nmodes: ABSOLUTE\n'
    )
    assert "kernel_size: 3" in dump(unbind(params, defaults=True))


def test_unbind_refuses_what_no_spec_can_say() -> None:
    with pytest.raises(ValueError, match=r"no spec can set kernel_size to \(\)"):
        unbind(Params(1, kernel_size=()))


LARGEST = 3.4028235e38
FINITE = st.floats(-LARGEST, LARGEST)
FILLERS = st.builds(
    Filler, st.text(), FINITE | st.sampled_from([math.inf, -math.inf]), st.floats(1e-300, LARGEST)
)


@settings(deadline=None, max_examples=60)
@given(
    st.builds(
        Params,
        num_output=st.integers(1, 2**63 - 1),
        kernel_size=st.lists(st.integers(1, 99), min_size=1).map(tuple),
        ratio=st.floats(0, 1),
        mode=st.sampled_from(Mode),
        engine=st.sampled_from(Engine),
        bias_term=st.booleans(),
        filler=FILLERS,
        fillers=st.lists(FILLERS, max_size=3).map(tuple),
        modes=st.lists(st.sampled_from(Mode)).map(tuple),
        axis=st.none() | st.integers(-(2**63), 0),
        name=st.none() | st.text(),
        downsampling_factor=FINITE,
    ),
    st.booleans(),
)
def test_what_is_unbound_binds_to_the_same(params: Params, defaults: bool) -> None:
    assert bind(Params, unbind(params, defaults=defaults)) == params
    assert bind(Params, loads(dump(unbind(params, defaults=defaults)))) == params
