"""Wiring: rules, in-place blobs, outputs, and the mistakes of wiring."""

import json
import subprocess
import sys

import pytest
from cortado.nets.graph import Phase, State, StateFields, graph, merged, with_splits
from cortado.prototxt_like import SpecError, dump, load, loads, prototxt
from cortado.prototxt_like.quotes import for_prototxt
from mutilate import mutilated
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


WIRED = (
    "04_inplace",
    "05_bn_scale",
    "06_",
    "07_smloss",
    "08_siamese",
    "11_leg",
    "11_loss",
    "11_two",
    "12_",
)


@pytest.mark.parametrize("case", cases(*WIRED), ids=lambda case: case.name)
def test_splits_as_caffe(case):
    meta = json.loads((case / "meta.json").read_text())
    state = State(meta["phase"], meta.get("level", 0), tuple(meta.get("stages", ())))
    made = with_splits(graph(load(case / "net.prototxt"), state))
    wanted = [(each["name"], each["type"], each["bottoms"], each["tops"]) for each in meta["layers"]]
    assert [(n.name, n.type, list(n.bottoms), list(n.tops)) for n in made.nodes] == wanted
    assert list(made.outputs) == meta["outputs"]


def test_a_loss_weight_moves_to_the_splits_first_top():
    layers = "- {name: h, type: Slice, bottom: x, top: [a, b], loss_weight: [0.5, 2]}\n"
    layers += "- {name: r, type: ReLU, bottom: a, top: r}\n"
    made = with_splits(graph(loads(HEAD + layers, "net.yaml")))
    _, h, split, r = made.nodes
    assert (h.loss_weights, split.loss_weights) == ((0, 2), (0.5, 0))
    assert (split.name, split.bottoms, split.tops) == (
        "a_h_0_split",
        ("a",),
        ("a_h_0_split_0", "a_h_0_split_1"),
    )
    assert r.bottoms == ("a_h_0_split_1",)
    assert made.outputs == ("a_h_0_split_0", "b", "r")
    assert [dump(node.message) for node in (h, split, r)] == [
        "name: h\ntype: Slice\nbottom: x\ntop: [a, b]\nloss_weight: [0, 2]\n",
        'name: "a_h_0_split"\ntype: "Split"\nbottom: "a"\ntop: ["a_h_0_split_0", "a_h_0_split_1"]\n'
        "loss_weight: [0.5, 0]\n",
        'name: r\ntype: ReLU\nbottom: "a_h_0_split_1"\ntop: r\n',
    ]
    assert str(split.span) == "net.yaml:3:3"
    assert with_splits(made) == made


def test_solvers_states_are_merged_as_caffe():
    own = StateFields(Phase.TRAIN, 3, ("a", "b"))
    assert merged("TEST") == State("TEST")
    assert merged("TEST", own) == State("TRAIN", 3, ("a", "b"))
    assert merged("TRAIN", own, StateFields(Phase.TEST, 0, ("b", "c"))) == State(
        "TEST", 0, ("a", "b", "c")
    )
    assert merged("TRAIN", own, StateFields()) == State("TRAIN", 3, ("a", "b"))


def test_names_may_be_missing_or_the_same():
    layers = "- {type: Foo, bottom: x, top: y}\n- {name: a, type: Bar, bottom: y, top: z}\n"
    made = graph(loads(HEAD + layers + "- {name: a, type: Bar, bottom: z, top: w}"))
    assert [node.name for node in made.nodes] == ["x", "", "a", "a"]
    assert [str(node) for node in made.nodes[1:3]] == ["the unnamed Foo layer", 'layer "a"']


def test_a_mutilated_net_is_wired_or_refused():
    net = prototxt.dump(
        for_prototxt(
            loads(
                HEAD
                + "- {name: a, type: Foo, bottom: x, top: [y, z], include: {phase: TEST, stage: s}}\n"
                + "- siamese: {input: {i: [x, y]}, output: {o: [p, q]}, layer: ["
                + "{name: b, type: Bar, bottom: i, top: o, param: {lr_mult: 1}}]}\n"
            )
        )
    )
    wired = 0
    for text in mutilated(net, 300):
        try:
            with_splits(graph(loads(text, notation="prototxt"), State(stages=("s",))))
            wired += 1
        except SpecError as error:
            print(error)
    assert 0 < wired < 200


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
            "- {name: f, type: ReLU, bottom: x, top: y}\n- {name: g, type: ReLU, bottom: x, top: x}",
            'layer "g" cannot write "x" in place: layer "f", line 3, reads it, too',
        ),
        (
            "- {name: f, type: Eltwise, bottom: [x, x], top: x}",
            'layer "f" cannot write "x" in place: it is read twice',
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


CONFIDENCE = HEAD + "- {name: c, type: Foo, bottom: x, top: [s, c]}\nmatch_param: "


def test_match_param_of_a_confidence():
    text = (
        "{confidence: c, similarity: s, jump: 8, receptive_field: 43, margin: 8, longer_side: 300,"
        " block: [x, s, c], block_jump: [4, 8], block_receptive_field: [11, 43]}"
    )
    match = graph(loads(CONFIDENCE + text)).match
    assert (match.image, match.feature, match.confidence) == (("image1", "image2"), (), "c")
    assert (match.downsampling_factor, match.receptive_field, match.margin) == (8, 43, 8)
    assert (match.block, match.block_jump) == (("x", "s", "c"), (4, 8))
    plain = graph(loads(CONFIDENCE + "{confidence: c}")).match
    assert (plain.longer_side, plain.margin, plain.block) == (0, None, ())


@pytest.mark.parametrize(
    ("text", "messages"),
    {
        "{confidence: c, feature: [s, s]}": [
            "match_param names a confidence or two features, not both"
        ],
        "{confidence: c, image: s}": ["match_param names two image blobs"],
        "{confidence: c, coordinate_offset: 0}": [
            "match_param: a confidence's cell (0, 0) lies at 0: coordinate_offset goes with features"
        ],
        "{similarity: s, margin: 3}": [
            '"similarity" of match_param goes with a confidence',
            '"margin" of match_param goes with a confidence',
        ],
        "{confidence: cc, block: [x, foo]}": [
            'match_param: confidence "cc" is no blob of the net',
            'match_param: block "foo" is no blob of the net',
        ],
        "{confidence: c, block: x, block_jump: [4, 8], block_receptive_field: [11, 19]}": [
            "block_jump and block_receptive_field are as many, and no more than block: got 1, 2 and 2"
        ],
        "{confidence: c, block: x, block_receptive_field: 11}": [
            "block_jump and block_receptive_field are as many, and no more than block: got 1, 0 and 1"
        ],
        "{confidence: c, longer_side: -1}": ["longer_side must be at least 0, got -1"],
        "{confidence: c, block: x, block_jump: 0}": ["block_jump must be above 0, got 0"],
    }.items(),
)
def test_mistakes_of_match_param(text, messages):
    assert errors_of(CONFIDENCE + text) == [f"4: {message}" for message in messages]
