"""Old forms become today's, each with a note and every value at its place."""

from __future__ import annotations

import logging

import pytest
from cortado.prototxt_like import Message, SpecError, load, loads, prototxt
from cortado.prototxt_like.include import LOGGER
from shared import SHARED, needs_shared


def upgraded(text: str, caplog: pytest.LogCaptureFixture) -> tuple[str, list[str]]:
    """What a prototxt is read as, and the notes on it."""
    with caplog.at_level(logging.WARNING, LOGGER.name):
        tree = loads(text, "net.prototxt", "prototxt")
    return prototxt.dump(tree), [record.getMessage() for record in caplog.records]


V1 = """\
name: "old"
layers {
  bottom: "data" top: "conv" name: "conv" type: CONVOLUTION
  param: "w" blobs_lr: 1 blobs_lr: 2 weight_decay: 1 weight_decay: 0 blob_share_mode: PERMISSIVE
  convolution_param { num_output: 3 }
  include: { phase: TRAIN }
}
layers { name: "loss" type: 21 bottom: "conv" bottom: "label" top: "loss" loss_weight: 2 }
layers { name: "odd" type: PRELU bottom: "conv" top: "conv" }
"""
V1_TODAY = """\
name: "old"
layer {
  name: "conv"
  type: "Convolution"
  bottom: "data"
  top: "conv"
  param { name: "w" share_mode: PERMISSIVE lr_mult: 1 decay_mult: 1 }
  param { lr_mult: 2 decay_mult: 0 }
  convolution_param { num_output: 3 }
  include { phase: TRAIN }
}
layer {
  name: "loss"
  type: "SoftmaxWithLoss"
  bottom: "conv"
  bottom: "label"
  top: "loss"
  loss_weight: 2
}
layer {
  name: "odd"
  type: "PRELU"
  bottom: "conv"
  top: "conv"
}
"""
V0 = """\
layers { layer { name: "data" type: "data" source: "db" meanfile: "mean" batchsize: 64 cropsize: 227
                 mirror: true scale: 0.5 rand_skip: 3 } top: "data" top: "label" }
layers { layer { name: "pad1" type: "padding" pad: 2 } bottom: "data" top: "pad1" }
layers { layer { name: "conv1" type: "conv" num_output: 96 kernelsize: 11 group: 2 biasterm: false
                 weight_filler { type: "gaussian" } blobs_lr: 1. weight_decay: 0. dropout_ratio: 0.5 }
         bottom: "pad1" top: "conv1" }
layers { layer { name: "pool1" type: "pool" pool: AVE kernelsize: 3 stride: 2 } bottom: "conv1"
         top: "p" }
layers { layer { name: "det" type: "window_data" det_fg_threshold: 0.6 det_crop_mode: "square" }
         top: "d" }
"""
V0_TODAY = """\
layer {
  name: "data"
  type: "Data"
  top: "data"
  top: "label"
  data_param { source: "db" batch_size: 64 rand_skip: 3 }
  transform_param { mean_file: "mean" crop_size: 227 mirror: true scale: 0.5 }
}
layer {
  name: "conv1"
  type: "Convolution"
  bottom: "data"
  top: "conv1"
  param { lr_mult: 1. decay_mult: 0. }
  convolution_param {
    num_output: 96
    kernel_size: 11
    group: 2
    bias_term: false
    weight_filler { type: "gaussian" }
    pad: 2
  }
}
layer {
  name: "pool1"
  type: "Pooling"
  bottom: "conv1"
  top: "p"
  pooling_param { pool: AVE kernel_size: 3 stride: 2 }
}
layer {
  name: "det"
  type: "WindowData"
  top: "d"
  window_data_param { fg_threshold: 0.6 crop_mode: "square" }
}
"""
INPUTS = """\
name: "n"
input: "a" input: "b"
input_dim: 2 input_dim: 3 input_dim: 4 input_dim: 5 input_dim: 2 input_dim: 1 input_dim: 1 input_dim: 1
"""
INPUTS_TODAY = """\
name: "n"
layer {
  name: "input"
  type: "Input"
  top: "a"
  top: "b"
  input_param {
    shape { dim: 2 dim: 3 dim: 4 dim: 5 }
    shape { dim: 2 dim: 1 dim: 1 dim: 1 }
  }
}
"""
BATCH_NORM = """\
layer {
  type: "BatchNorm"
  param { lr_mult: 1 }
  param { lr_mult: 0.0 }
  param { name: "c" decay_mult: 1 }
}
"""
BATCH_NORM_TODAY = """\
layer {
  type: "BatchNorm"
  param { lr_mult: 0 decay_mult: 0 }
  param { lr_mult: 0.0 }
  param { name: "c" lr_mult: 0 decay_mult: 0 }
}
"""
INPUT_NOTE = '"input" and "input_dim" are an old form, read as one layer "input" of type Input'

CASES = {
    "V1": (
        V1,
        V1_TODAY,
        ['net.prototxt:2:1: note: "layers" are an old form (V1) of "layer", and read as such'],
    ),
    "V0": (
        V0,
        V0_TODAY,
        [
            'net.prototxt:1:1: note: "layers" are an old form (V0) of "layer", and read as such',
            'net.prototxt:5:83: note: "dropout_ratio" is nothing to a V0 layer of type "conv"',
        ],
    ),
    "V1 data": (
        'layers { type: DATA data_param { source: "s" scale: 2 crop_size: 3 }'
        " transform_param { mirror: 1 } }",
        'layer {\n  type: "Data"\n  data_param { source: "s" }\n'
        "  transform_param { mirror: 1 scale: 2 crop_size: 3 }\n}\n",
        [
            'net.prototxt:1:1: note: "layers" are an old form (V1) of "layer", and read as such',
            "net.prototxt:1:21: note: scale, crop_size of data_param stand in transform_param today, "
            "and are read there",
        ],
    ),
    "inputs": (INPUTS, INPUTS_TODAY, [f"net.prototxt:2:1: note: {INPUT_NOTE}"]),
    "inputs below": (
        'layer { name: "x" } input: "a" input_shape { } input_shape { dim: 1 }',
        'layer {\n  name: "input"\n  type: "Input"\n  top: "a"\n  input_param { shape { } }\n}\n'
        'layer {\n  name: "x"\n}\n',
        [f"net.prototxt:1:21: note: {INPUT_NOTE.replace('dim', 'shape')}"],
    ),
    "input alone": (
        'input: "a"',
        "",
        [
            'net.prototxt:1:1: note: "input" without a shape is an old form that makes no blob, '
            "and is passed over"
        ],
    ),
    "BatchNorm": (
        BATCH_NORM,
        BATCH_NORM_TODAY,
        [
            "net.prototxt:3:3: note: the three param of a BatchNorm get lr_mult 0 and decay_mult 0: "
            "they are statistics"
        ],
    ),
    "solver": (
        "solver_type: NESTEROV net_param { input_dim: 1 }",
        'type: "Nesterov"\nnet_param { }\n',
        [
            'net.prototxt:1:35: note: "input_dim" without "input" is an old form that makes no blob, '
            "and is passed over",
            'net.prototxt:1:1: note: solver_type: NESTEROV is an old form, read as type: "Nesterov"',
        ],
    ),
    "solver by number": (
        "solver_type: 5",
        'type: "Adam"\n',
        ['net.prototxt:1:1: note: solver_type: ADAM is an old form, read as type: "Adam"'],
    ),
}


@pytest.mark.parametrize("old", CASES)
def test_old_forms(old: str, caplog: pytest.LogCaptureFixture) -> None:
    text, today, notes = CASES[old]
    assert upgraded(text, caplog) == (today, notes)


@pytest.mark.parametrize("old", CASES)
def test_what_is_of_today_stays_as_it_is(old: str, caplog: pytest.LogCaptureFixture) -> None:
    _, today, _ = CASES[old]
    if today:
        assert upgraded(today, caplog) == (today, [])


MISTAKES = {
    'layers { type: "Convolution" }': "1:16: type: expected a name without quotes, "
    'got the string "Convolution"',
    "layers { type: Convolution }": '1:16: "Convolution" is no type of the old "layers" entries, '
    "such as CONVOLUTION",
    "layers { } layer { }": '1:12: a net has either "layer" or the old "layers" entries',
    "layers: 1": '1:9: "layers" is a block of fields',
    "layers { type: RELU param { } }": '1:27: "param" of a "layers" entry is a single value',
    "layers { layer { } }": '1:16: "" is no layer type of the form V0',
    'layers { layer { type: "cnov" } }': '1:24: "cnov" is no layer type of the form V0',
    'layers { layer { type: "conv" kernal: 1 } }': '1:31: a V0 layer has no field "kernal"',
    'layers { layer { type: "padding" pad: 1 } bottom: "a" top: "b" } '
    'layers { layer { type: "relu" } bottom: "b" }': "1:73: a V0 padding layer is read by a "
    "convolution or a pooling",
    'input: "a" input_dim: 1': "1:1: an input has four input_dim: expected 4, got 1",
    'input: "a" input: "b" input_shape { }': "1:12: an input has one input_shape: expected 2, got 1",
    'input: "a" input_shape: 3': '1:25: "input_shape" is a block of fields',
    'solver_type: SGD type: "SGD"': '1:1: "solver_type" is the old form of "type": give one of them',
    "solver_type: FOO": '1:14: solver_type has no value "FOO"',
    f"solver_type: {'9' * 5000}": f'1:14: solver_type has no value "{"9" * 5000}"',
}


@pytest.mark.parametrize("text", MISTAKES, ids=range(len(MISTAKES)))
def test_mistakes(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        loads(text, "net.prototxt", "prototxt")
    error = caught.value
    assert error.span
    assert f"{error.span.line}:{error.span.column}: {error.message}" == MISTAKES[text]


def test_places_are_kept() -> None:
    (layer,) = loads(V1, "net.prototxt", "prototxt").all("layer")[:1]
    assert isinstance(layer.value, Message)
    second = layer.value.all("param")[1].value
    assert isinstance(second, Message)
    places = {field.name: str(field.value.span) for field in second}
    assert places == {"lr_mult": "net.prototxt:4:36", "decay_mult": "net.prototxt:4:68"}


def test_yaml_has_the_old_forms_too() -> None:
    tree = loads("layers:\n- {name: a, type: RELU, bottom: x, top: x, blobs_lr: [1, 2]}\n")
    (layer,) = tree.all("layer")
    assert isinstance(layer.value, Message)
    assert layer.value.text("type") == "ReLU"
    assert len(layer.value.all("param")) == 2


def test_trunks_and_inclusions_are_upgraded(tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "old.prototxt").write_text("layers { type: RELU }")
    norm = "{type: BatchNorm, param: [{}, {}, {}]}"
    (tmp_path / "net.yaml").write_text(
        f"layer: {{siamese: {{layer: [{{include: old.prototxt}}, {norm}]}}}}"
    )
    text = prototxt.dump(load(tmp_path / "net.yaml"))
    assert 'type: "ReLU"' in text
    assert text.count("lr_mult: 0 decay_mult: 0") == 3
    assert len(caplog.records) == 2


@needs_shared
def test_lenets_old_net() -> None:
    assert SHARED
    folder = SHARED / "data" / "caffemodels" / "lenet_v1_format" / "lenet"
    tree = load(folder / "lenet_image_memory_data.prototxt")
    types = [f.value.text("type") for f in tree.all("layer") if isinstance(f.value, Message)]
    assert types[:3] == ["ImageData", "Convolution", "Pooling"]
    assert types[3:] == ["Convolution", "Pooling", "InnerProduct", "ReLU", "InnerProduct", "Softmax"]
    data = tree.all("layer")[0].value
    assert isinstance(data, Message)
    assert "scale: 0.00390625" in prototxt.dump(data)
