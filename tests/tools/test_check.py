"""``cortado check``: wiring, shapes, cost and receptive fields, against hand-computed values."""

import json
import subprocess
import sys
from fractions import Fraction
from itertools import product

import pytest
import torch
from cortado.layers._engine.reach import transposed, window
from cortado.nets.build import build
from cortado.nets.cost import Field, cells, facts, mismatches
from cortado.nets.graph import State, graph, owners
from cortado.nets.net import Net
from cortado.nets.specs import path
from cortado.prototxt_like import SpecError, load, loads
from cortado.prototxt_like.source import Errors
from cortado.tools.cli import main
from shared import SHARED, needs_shared

IMAGE = "- {name: x, type: Input, top: x, input_param: {shape: {dim: [%s]}}}\n"


def run(capfd, *args):
    """Exit code, standard output and standard error of ``cortado ARGS``."""
    with pytest.raises(SystemExit) as end:
        main(list(args))
    out, err = capfd.readouterr()
    return end.value.code or 0, out, err


def found(message, *stages, phase="TEST"):
    """The facts of a spec's layers by name."""
    built = build(message, State(phase, 0, stages), values=False)
    return {layer.name: layer for layer in facts(built)}


def seen(layer):
    """Size, stride and image point of a layer's first top, the same along both axes."""
    (field,) = set(layer.fields[0])
    return field.size, field.stride, field.point


def one(type, params, *shapes):
    """A spec of one layer and its inputs."""
    names = [f"x{i}" for i in range(len(shapes))]
    lines = [
        (IMAGE % ", ".join(map(str, shape))).replace(" x,", f" {name},")
        for name, shape in zip(names, shapes, strict=True)
    ]
    layer = f"- {{name: y, type: {type}, bottom: [{', '.join(names)}], top: y, {params}}}\n"
    return loads("layer:\n" + "".join(lines) + layer)


def test_receptive_fields_of_ucn():
    layers = found(load(path("ucn_hn")), "deploy")
    assert seen(layers["conv1/7x7_s2"]) == (7, 2, 0)
    assert seen(layers["pool1/3x3_s2"]) == (7 + 2 * 2, 4, 0)
    assert seen(layers["conv2/3x3"]) == (11 + 2 * 4, 4, 0)
    assert seen(layers["pool2/3x3_s2"]) == (27, 4, 0)
    assert seen(layers["inception_3b/output"]) == (27 + 2 * 4 * 4, 4, 0)
    # pool3 is not padded: the coordinate_offset that the spec declares
    assert seen(layers["pool3/3x3_s2"]) == (67, 4, 4)
    assert seen(layers["feature"]) == seen(layers["feature_p"]) == (67 + 4 * 4, 4, 4)
    assert layers["image1"].fields == (None,)


def test_the_transformer_and_its_convolution_see_what_a_convolution_does():
    plain, transformed = (found(load(path(name)), "deploy") for name in ("ucn_hn", "ucn_hn_st"))
    for name in ("inception_4a/3x3", "inception_4a/5x5", "feature"):
        assert seen(plain[name]) == seen(transformed[name])


def test_receptive_fields_of_vgg16():
    layers = found(load(path("scnet_ag")), "deploy")
    assert seen(layers["conv1_2"]) == (5, 1, 0)
    assert seen(layers["pool1"]) == (6, 2, 0.5)
    assert seen(layers["conv3_3"]) == (40, 4, 1.5)
    assert seen(layers["conv4_3"]) == (92, 8, 3.5)
    assert seen(layers["pool4"]) == (100, 16, 7.5)
    assert layers["roi_pool"].fields == (None,)
    assert layers["fc"].multiply_adds == 1000 * 2048 * 7 * 7 * 512
    assert layers["f"].multiply_adds == 1000 * 1000 * 2048


# What an inception reads and the channels of its 1x1, 3x3_reduce, 3x3, 5x5_reduce, 5x5, pool_proj.
INCEPTIONS = {
    "3a": (28, 192, 64, 96, 128, 16, 32, 32),
    "3b": (28, 256, 128, 128, 192, 32, 96, 64),
    "4a": (14, 480, 192, 96, 208, 16, 48, 64),
    "4b": (14, 512, 160, 112, 224, 24, 64, 64),
    "4c": (14, 512, 128, 128, 256, 24, 64, 64),
    "4d": (14, 512, 112, 144, 288, 32, 64, 64),
    "4e": (14, 528, 256, 160, 320, 32, 128, 128),
    "5a": (7, 832, 256, 160, 320, 32, 128, 128),
    "5b": (7, 832, 384, 192, 384, 48, 128, 128),
}


@needs_shared
def test_cost_of_googlenet():
    layers = found(load(SHARED / "data/prototxts/bvlc/bvlc_googlenet/deploy.prototxt"))
    weights = {"conv1": 64 * 3 * 49, "reduce": 64 * 64, "conv2": 192 * 64 * 9, "fc": 1000 * 1024}
    total = weights["conv1"] * 112**2 + (weights["reduce"] + weights["conv2"]) * 56**2 + weights["fc"]
    parameters = sum(weights.values()) + 64 + 64 + 192 + 1000
    for side, c, one, r3, three, r5, five, pool in INCEPTIONS.values():
        inside = c * (one + r3 + r5 + pool) + 9 * r3 * three + 25 * r5 * five
        total += inside * side**2
        parameters += inside + one + r3 + three + r5 + five + pool
    assert sum(layer.multiply_adds or 0 for layer in layers.values()) == 10 * total
    assert sum(layer.parameters for layer in layers.values()) == parameters
    assert layers["conv1/7x7_s2"].bytes == 4 * 10 * 64 * 112**2
    assert layers["conv1/relu_7x7"].bytes == 0  # in place
    assert seen(layers["inception_5b/output"])[:2] == (715, 32)
    assert seen(layers["pool5/7x7_s1"])[:2] == (715 + 6 * 32, 32)


@pytest.mark.parametrize(
    ("type", "params", "shapes", "expected"),
    [
        (
            "Convolution",
            "convolution_param: {num_output: 6, kernel_size: [3, 2], group: 2}",
            [(2, 4, 5, 6)],
            2 * 3 * 5 * 6 * 2 * 6,
        ),
        (
            "Deconvolution",
            "convolution_param: {num_output: 6, kernel_size: 4, stride: 2, group: 2}",
            [(2, 4, 5, 6)],
            2 * 5 * 6 * 4 * 3 * 16,
        ),
        (
            "InnerProduct",
            "inner_product_param: {num_output: 7, axis: 2, transpose: true}",
            [(2, 3, 4, 5)],
            2 * 3 * 20 * 7,
        ),
        ("RNN", "recurrent_param: {num_output: 4}", [(5, 2, 3), (5, 2)], 5 * 2 * (3 * 4 + 2 * 16)),
        (
            "LSTM",
            "recurrent_param: {num_output: 4}",
            [(5, 2, 3), (5, 2), (2, 6)],
            5 * 2 * (3 * 16 + 4 * 16) + 2 * 6 * 16,
        ),
        ("KNN", "", [(2, 8, 30), (2, 8, 4, 5)], 2 * 8 * 30 * 20),
        ("RectifiedCosine", "", [(3, 9), (5, 9)], 3 * 5 * 9),
        ("ExtractFeature", "", [(2, 8, 4, 5), (2, 30, 5)], 4 * 2 * 8 * 30),
        ("Pooling", "pooling_param: {kernel_size: 2}", [(2, 4, 5, 6)], None),
    ],
)
def test_multiply_adds(type, params, shapes, expected):
    assert found(one(type, params, *shapes))["y"].multiply_adds == expected


MAPS = [
    ("Convolution", "convolution_param: {num_output: 2, kernel_size: [3, 2], stride: [2, 1], pad: 1}"),
    ("Convolution", "convolution_param: {num_output: 2, kernel_size: 3, dilation: [1, 2], pad: 2}"),
    ("Pooling", "pooling_param: {pool: AVE, kernel_size: 3, stride: 2, pad: 1}"),
    ("Pooling", "pooling_param: {pool: AVE, kernel_h: 2, kernel_w: 4, stride: 3}"),
    ("Im2col", "convolution_param: {kernel_size: 3, stride: 2}"),
    ("LRN", "lrn_param: {norm_region: WITHIN_CHANNEL, local_size: 3}"),
    ("Deconvolution", "convolution_param: {num_output: 2, kernel_size: 4, stride: 2, pad: 1}"),
    ("Deconvolution", "convolution_param: {num_output: 2, kernel_size: 3, stride: 3, dilation: 2}"),
    ("Crop", "crop_param: {axis: 2, offset: [2, 1]}"),
    ("Interp", "interp_param: {zoom_factor: 3}"),
    ("Interp", "interp_param: {shrink_factor: 2, pad_beg: -2}"),
    ("ConvolutionalSpatialTransformer", "convolutional_spatial_transformer_param: {kernel_size: 3}"),
    ("TanH", ""),
]


@pytest.mark.parametrize(("type", "params"), MAPS)
def test_fields_hold_what_the_layer_reads(type, params):
    """Every cell's support, from the gradient, lies in its field, whose ends some cells reach."""
    shapes = [(1, 2, 9, 10)]
    shapes += {"Crop": [(1, 2, 5, 6)], "ConvolutionalSpatialTransformer": [(1, 4, 9, 10)]}.get(type, [])
    message = one(type, params, *shapes)
    fields = found(message)["y"].fields[0]
    net = Net(message, seed=0)
    for blobs in net.params.values():
        for blob in blobs:
            torch.nn.init.uniform_(blob, 0.5, 1)
    inputs = [torch.rand(shape) + 1 for shape in shapes]
    if type == "ConvolutionalSpatialTransformer":
        inputs[1] = torch.zeros(shapes[1])  # the identity
    inputs[0].requires_grad_()
    top = net({f"x{i}": x for i, x in enumerate(inputs)})["y"]
    reached = set()
    for cell in product(*map(range, top.shape[2:])):
        (gradient,) = torch.autograd.grad(top[0, :, *cell].sum(), inputs[0], retain_graph=True)
        support = (gradient[0].abs().sum(0) > 1e-3).nonzero()
        if not len(support):
            continue  # a window beyond the border, or between the strides of a deconvolution
        for axis, (field, u) in enumerate(zip(fields, cell, strict=True)):
            low, high = field.low + u * field.stride, field.high + u * field.stride
            first, last = int(support[:, axis].min()), int(support[:, axis].max())
            assert low <= first
            assert last <= high
            reached |= {(axis, "low")} if low == first else set()
            reached |= {(axis, "high")} if high == last else set()
    assert reached == set(product((0, 1), ("low", "high")))


@pytest.mark.parametrize(
    ("type", "params", "shape"),
    [
        ("Flatten", "", (1, 2, 4, 4)),
        ("InnerProduct", "inner_product_param: {num_output: 4, axis: 2}", (1, 2, 4)),
        ("Permute", "permute_param: {order: [0, 1, 3, 2]}", (1, 2, 4, 4)),
        ("Reduction", "", (1, 2, 4, 4)),
    ],
)
def test_what_is_no_map_has_no_field(type, params, shape):
    assert found(one(type, params, shape))["y"].fields == (None,)


def test_a_cell_sees_what_any_branch_sees():
    one = "num_output: 1, kernel_size: 1"
    five = "num_output: 1, kernel_size: 5, pad: 2"
    half = "kernel_size: 1, stride: 2"
    text = "layer:\n" + IMAGE % "1, 2, 8, 8"
    for name, type, bottom, params in (
        ("a", "Convolution", "x", f"convolution_param: {{{one}}}"),
        ("b", "Convolution", "x", f"convolution_param: {{{five}}}"),
        ("half", "Pooling", "x", f"pooling_param: {{{half}}}"),
        ("up", "Interp", "half", "interp_param: {height: 8, width: 8}"),
        ("y", "Concat", "[a, b]", ""),
        ("z", "Concat", "[a, up]", ""),
    ):
        text += f"- {{name: {name}, type: {type}, bottom: {bottom}, top: {name}, {params}}}\n"
    layers = found(loads(text))
    assert seen(layers["y"]) == (5, 1, 0)
    assert layers["z"].fields == (None,)  # the cells of "up" lie elsewhere


def test_a_declared_geometry_that_is_not_the_nets_is_noted(capfd, tmp_path):
    text = path("ucn_hn").read_text(encoding="utf-8").replace("pad: 0}", "pad: 1}")
    built = build(loads(text, name=str(path("ucn_hn"))), State("TEST", 0, ("deploy",)), values=False)
    assert mismatches(built.graph.match, facts(built)) == [
        f'match_param puts cell u of "feature{i}" at 4u + 4; it lies at 4u' for i in (1, 2)
    ]
    right = build(load(path("ucn_hn")), State("TEST", 0, ("deploy",)), values=False)
    assert mismatches(right.graph.match, facts(right)) == []
    assert [cells(1, -0.5), cells(0.5, 0)] == ["u - 0.5", "0.5u"]


def test_json_holds_the_facts(capfd):
    code, out, _ = run(capfd, "check", str(path("ucn_hn")), "--stage", "deploy", "--json")
    assert code == 0
    record = json.loads(out)
    layers = {layer["name"]: layer for layer in record["layers"]}
    assert layers["feature"]["tops"] == [
        {
            "name": "feature1",
            "shape": [1, 128, 31, 103],
            "receptive_field": [83, 83],
            "stride": [4, 4],
            "image_point": [4, 4],
        }
    ]
    assert layers["conv1/7x7_s2_p"]["shared_with"] == ["conv1/7x7_s2"]
    assert layers["conv1/7x7_s2_p"]["parameters"] == 0
    assert layers["conv1/7x7_s2"]["multiply_adds"] == 64 * 3 * 49 * 64 * 208
    assert record["parameters"] == 1118688
    assert record["outputs"] == ["feature1", "feature2"]


def test_a_table_of_the_same(capfd):
    code, out, _ = run(capfd, "check", str(path("ucn_hn")), "--stage", "deploy")
    assert code == 0
    (row,) = (line for line in out.splitlines() if line.startswith(" feature "))
    assert "feature1 [1, 128, 31, 103]" in row
    assert row.rstrip().endswith("83   4u + 4")


def test_mistakes_have_their_places_in_json_too(capfd, tmp_path):
    spec = tmp_path / "bad.yaml"
    spec.write_text("layer:\n" + IMAGE % "1, 2" + "- {name: y, type: ReLo, bottom: [x], top: y}\n")
    code, out, _ = run(capfd, "check", str(spec), "--json")
    assert code == 2
    (error,) = json.loads(out)["errors"]
    assert (error["file"], error["line"], error["column"]) == (str(spec), 3, 19)
    assert 'unknown type "ReLo"' in error["message"]
    assert "ReLU" in error["hint"]
    code, _, err = run(capfd, "check", str(spec))
    assert (code, err.startswith(f"{spec}:3:19: error: ")) == (2, True)
    code, out, _ = run(capfd, "check", str(spec), "--no-shapes")
    assert (code, "ReLo" in out, "outputs: y" in out) == (0, True, True)


def without_torch(*args):
    """What ``cortado ARGS`` prints in a process of its own, which must not import torch."""
    code = (
        "import sys\nfrom cortado.tools.cli import cli\n"
        f"cli(args={list(args)!r}, prog_name='cortado', standalone_mode=False)\n"
        "assert 'cortado.nets.graph' in sys.modules\n"
        "assert not {'torch', 'numpy'} & sys.modules.keys(), 'torch or numpy is imported'\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wiring_needs_no_torch():
    out = without_torch("check", str(path("ucn_hn_st")), "--no-shapes", "--json")
    layers = {layer["name"]: layer for layer in json.loads(out)["layers"]}
    assert layers["conv1/7x7_s2_p"]["shared_with"] == ["conv1/7x7_s2"]
    assert layers["pool1/3x3_s2_p"]["shared_with"] == []
    assert layers["loss"]["bottoms"] == ["feature1", "feature2", "mined"]


def test_owners_are_found_by_name():
    text = "layer:\n" + IMAGE % "1, 2"
    for name in "ab":
        text += f"- {{name: {name}, type: Odd, bottom: x, top: {name}, param: [{{name: w}}, {{}}]}}\n"
    assert owners(graph(loads(text))) == {"b": ("a",)}


def test_without_values_mistakes_are_the_same():
    params = "convolution_param: {num_output: 2, kernel_size: [2, 3], weight_filler: {type: bilinear}}"
    messages = []
    for values in (True, False):
        with pytest.raises(SpecError, match="square") as error:
            build(one("Convolution", params, (1, 2, 5, 5)), values=values)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    built = build(one("Convolution", params.replace("[2, 3]", "2"), (1, 2, 5, 5)), values=False)
    assert all(blob.parameter.is_meta for blob in built.learnable)
    net = Net(one("InnerProduct", "inner_product_param: {num_output: 2}", (1, 2)))
    assert not any(blob.is_meta for blob in net.parameters())


def test_what_can_be_built_is_given_beside_the_mistakes():
    text = "layer:\n" + IMAGE % "1, 2"
    text += (
        "- {name: y, type: Nothing, bottom: x, top: y}\n- {name: z, type: ReLU, bottom: x, top: z}\n"
    )
    errors = Errors()
    built = build(loads(text), found=errors, values=False)
    assert [made.node.name for made in built.layers] == ["x", "z"]
    assert len(errors.found) == 1


def test_fields_are_exact():
    field = Field().through(window(2, 2)).through(transposed(3, 3))
    assert (field.size, field.stride * 3, field.point * 6) == (Fraction(10, 3), 2, -1)
