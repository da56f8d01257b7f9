"""Wiring: rules, in-place blobs, outputs, and the mistakes of wiring."""

import json
import subprocess
import sys

import pytest
from cortado.nets.graph import State, graph
from cortado.prototxt_like import SpecError, load, loads
from shared import cases

HEAD = "layer:\n- {name: x, type: Input, top: x}\n"


@pytest.mark.parametrize("case", cases("11_rules"), ids=lambda case: case.name)
def test_rules_as_caffe(case):
    message = load(case / "net.prototxt")
    combinations = json.loads((case / "rules.json").read_text())
    assert len(combinations) == 60
    for wanted in combinations:
        made = graph(message, State(wanted["phase"], wanted["level"], tuple(wanted["stages"])))
        assert [node.name for node in made.nodes] == wanted["layers"]
        assert list(made.outputs) == wanted["outputs"]


@pytest.mark.parametrize("case", cases("11_outputs_sorted"), ids=lambda case: case.name)
def test_outputs_are_sorted_by_name(case):
    assert graph(load(case / "net.prototxt"), State("TRAIN")).outputs == ("Mm", "aa", "zz")


def test_needs_no_torch():
    code = "import sys, cortado.nets.graph; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_in_place_blobs_are_outputs_once():
    made = graph(
        loads(
            HEAD
            + "- {name: a, type: ReLU, bottom: x, top: x}\n- {name: b, type: TanH, bottom: x, top: x}\n"
        )
    )
    assert made.outputs == ("x",)
    assert [node.in_place(0) for node in made.nodes] == [False, True, True]


def test_the_specs_own_stages_are_added():
    text = HEAD + "- {name: y, type: ReLU, bottom: x, top: y, include: {stage: [a, b]}}\n"
    message = loads("state: {stage: a}\n" + text)
    assert graph(message, State(stages=("b",))).outputs == ("y",)
    assert graph(message).outputs == ("x",)


def errors_of(text, *args):
    with pytest.raises(SpecError) as caught:
        graph(loads(text, name="net.yaml"), *args)
    return [f"{error.span.line}: {error.message}" for error in caught.value.errors]


@pytest.mark.parametrize(
    ("layers", "wanted"),
    [
        (
            "- {name: k, type: KNN, bottom: [x, y]}\n- {name: f, type: ReLU, bottom: x, top: y}",
            'layer "k" reads "y", which no layer above produces (layer "f", line 4, does so below)',
        ),
        (
            "- {name: k, type: KNN, bottom: [x, y]}\n"
            "- {name: f, type: ReLU, bottom: x, top: y, include: {phase: TRAIN}}",
            'layer "k" reads "y", which no layer above produces '
            '(layer "f", line 4, does, but is not included in phase TEST)',
        ),
        ("- {name: k, type: KNN, bottom: [q]}", 'layer "k" reads "q", which no layer above produces'),
        (
            "- {name: f, type: ReLU, bottom: x, top: feature_2}\n"
            "- {name: k, type: KNN, bottom: feature2}",
            'layer "k" reads "feature2", which no layer above produces (closest: "feature_2", line 3)',
        ),
        (
            "- {name: f, type: ReLU, bottom: x, top: y}\n- {name: g, type: ReLU, bottom: x, top: y}",
            'layer "g" produces "y" again, after layer "f", line 3',
        ),
        ("- {name: f, type: Slice, bottom: x, top: [y, y]}", 'layer "f" produces "y" more than once'),
        (
            "- {name: f, type: ReLU, bottom: x, top: y, include: {}, exclude: {}}",
            'layer "f" has both include and exclude rules',
        ),
        (
            "- {name: f, type: ReLU, bottom: x, top: y, propagate_down: [true, false]}",
            'layer "f" has propagate_down of 2 values for 1 bottoms',
        ),
    ],
)
def test_wiring_mistakes(layers, wanted):
    (found,) = errors_of(HEAD + layers)
    assert found.partition(": ")[2] == wanted


def test_an_unreadable_layer_hides_no_other_mistake_and_causes_none():
    layers = (
        "- {name: f, type: ReLU, bottom: x, top: y, kernel: 3}\n"
        "- {name: g, type: ReLU, bottom: y, top: z}\n"
        "- {name: h, type: ReLU, bottom: w, top: v}\n"
    )
    assert errors_of("nmae: demo\n" + HEAD + layers) == [
        '1: a net has no field "nmae"',
        '4: a layer has no parameter "kernel"',
        '6: layer "h" reads "w", which no layer above produces',
    ]


def test_a_net_needs_layers():
    assert errors_of("name: empty") == ['1: a net needs at least one "layer"']


def test_a_state_has_a_phase():
    with pytest.raises(ValueError, match='expected "TRAIN" or "TEST", got "test"'):
        State("test")


def test_match_param():
    made = graph(loads(HEAD + "match_param: {image: [a, b], feature: [c, d], coordinate_offset: 4}"))
    assert (made.match.image, made.match.feature) == (("a", "b"), ("c", "d"))
    assert (made.match.downsampling_factor, made.match.coordinate_offset) == (4, 4)
    assert errors_of(HEAD + "match_param: {image: a}") == [
        "3: match_param names two image blobs and two feature blobs"
    ]
