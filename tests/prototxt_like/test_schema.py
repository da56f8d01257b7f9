"""Caffe's messages: numbers, types and defaults, held against real Caffe's files, and trees in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from cortado.prototxt_like import SpecError, loads
from cortado.prototxt_like.schema import encode, enum, message, names
from google.protobuf import text_format
from google.protobuf.unknown_fields import UnknownFieldSet
from shared import SHARED, needs_shared

KINDS = {".caffemodel": "NetParameter", ".solverstate": "SolverState", ".binaryproto": "BlobProto"}
FORKS = {  # fields of other Caffes
    "mtcnn": {("layer.softmax_param", 3), ("layer.loss_param", 4)},
    "wechat_qr": {("layer", 203), ("layer", 204)},
}


def files() -> list[tuple[str, Path]]:
    if SHARED is None:
        return []
    found = [(KINDS[path.suffix], path) for path in sorted(SHARED.rglob("*.*")) if path.suffix in KINDS]
    return [
        *found,
        ("NetParameter", SHARED / "data/caffemodels/lenet_v1_format/lenet/lenet_iter_10000"),
    ]


def unknown(found, path=""):
    yield from ((path.strip("."), field.field_number) for field in UnknownFieldSet(found))
    for field, value in found.ListFields():
        if field.message_type:
            for each in value if hasattr(value, "extend") else [value]:
                yield from unknown(each, f"{path}.{field.name}")


@needs_shared
def test_every_binary_is_read_whole_and_written_as_it_was():
    """All fields of Caffe's own files are known, and their bytes come out again."""
    for kind, path in files():
        raw = path.read_bytes()
        found = message(kind).FromString(raw)
        assert found.SerializeToString() == raw, path
        own = next((fields for fork, fields in FORKS.items() if fork in str(path)), set())
        assert set(unknown(found)) <= own, path
    assert len(files()) > 200


def test_defaults():
    layer = message("LayerParameter")()
    assert layer.lrn_param.local_size == 5
    assert layer.lrn_param.beta == 0.75
    assert layer.convolution_param.bias_term is True
    assert layer.python_param.param_str == ""
    assert layer.include.add().HasField("phase") is False
    assert message("SolverParameter")().type == "SGD"
    assert message("NetState")().phase == enum("Phase").Value("TEST")
    assert message("FillerParameter")().type == "constant"
    assert layer.pooling_param.pool == enum("PoolingParameter.PoolMethod").Value("MAX")


def test_enums_are_within_their_messages():
    assert message("V1LayerParameter").LayerType.Value("DECONVOLUTION") == 39
    assert message("LossParameter").BATCH_SIZE == 2
    assert enum("HingeLossParameter.Norm").items() == [("L1", 1), ("L2", 2)]


def test_packed_and_required():
    assert message("BlobProto")(data=[1, 2]).SerializeToString()[:2] == b"\x2a\x08"
    assert message("Datum")(float_data=[1]).SerializeToString()[:1] == b"\x35"
    assert message("ClipParameter")(min=0).FindInitializationErrors() == ["max"]


def test_all_messages_are_made():
    assert len(names()) > 60
    assert all(message(name)() == message(name)() for name in names())
    with pytest.raises(KeyError):
        message("NoSuchParameter")
    with pytest.raises(KeyError):
        enum("BlobProto")


def test_fields_of_other_caffes_are_kept():
    raw = b"\x0a\x01x" + b"\xf2\x2a\x03abc"  # name, and number 686
    layer = message("LayerParameter").FromString(raw)
    assert layer.name == "x"
    assert layer.SerializeToString() == raw


TEXT = """
name: "conv" type: "Convolution" bottom: "a" bottom: "b" loss_weight: 1e-3 propagate_down: true
param { lr_mult: 2 } param { }
include { phase: TRAIN stage: "x" }
convolution_param { num_output: 0x10 kernel_size: 3 kernel_size: 5 weight_filler { type: "msra" } }
pooling_param { pool: 1 }
norm_param { across_spatial: false } permute_param { order: 0 order: 2 }
roi_pooling_param { pooled_h: 7 } interp_param { zoom_factor: 8 }
"""


def test_a_tree_as_a_message():
    wanted = text_format.Parse(TEXT, message("LayerParameter")())
    assert encode("LayerParameter", loads(TEXT, notation="prototxt")) == wanted


def test_a_yaml_tree_as_a_message():
    """Nothing tells text from a word there but the field's type."""
    tree = loads("{name: 64, type: MAX, phase: TEST, loss_weight: [1, .5], sad_param: {x: 1}}")
    wanted = message("LayerParameter")(name="64", type="MAX", phase=1, loss_weight=[1, 0.5])
    assert encode("LayerParameter", tree) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("phase: TRIAL", "Caffe's LayerParameter cannot have TRIAL as phase"),
        ("phase: 7", "Caffe's LayerParameter cannot have 7 as phase"),
        ("loss_weight: x", "Caffe's LayerParameter cannot have x as loss_weight"),
        ("param: 1", "Caffe's LayerParameter cannot have 1 as param"),
        ("name: {x: 1}", "Caffe's LayerParameter cannot have a block as name"),
        ("convolution_param: 1", "Caffe's LayerParameter cannot have 1 as convolution_param"),
        (
            "convolution_param: {num_output: -1}",
            "Caffe's ConvolutionParameter cannot have -1 as num_output",
        ),
    ],
)
def test_values_of_another_type(text, message):
    with pytest.raises(SpecError) as caught:
        encode("LayerParameter", loads(text, name="net.yaml"))
    assert caught.value.message == message
    assert caught.value.span.line == 1
