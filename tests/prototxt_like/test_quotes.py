"""Quotes are put or left out where Caffe's messages say what a field is, and nowhere else."""

from __future__ import annotations

import pytest
from cortado.prototxt_like import SpecError, dump, loads, prototxt
from cortado.prototxt_like.quotes import for_prototxt, for_yaml

YAML = """\
name: 12:30
layer:
- name: data
  type: Python
  include: [{phase: TRAIN, stage: [deploy, "no"]}]
  transform_param: {mean_file: mean.npy, scale: 1}
  python_param: {param_str: "{a: 1}\\n"}
- name: pool
  type: Pooling
  pooling_param: {pool: "MAX", kernel_size: 3}
- name: mine
  type: Mine
  mine_param: {mode: FAST, word: "plain", file: a/b}
- siamese:
    suffix: _p
    input: {data: [image1, image2]}
    output: {conv1/7x7: [a, b]}
    layer:
    - {name: conv, type: Convolution, twin_of: other}
match_param: {image: [a, b], downsampling_factor: 4}
"""
PROTOTXT = """\
name: "12:30"
layer {
  name: "data"
  type: "Python"
  include { phase: TRAIN stage: "deploy" stage: "no" }
  transform_param { mean_file: "mean.npy" scale: 1 }
  python_param { param_str: "{a: 1}\\n" }
}
layer {
  name: "pool"
  type: "Pooling"
  pooling_param { pool: MAX kernel_size: 3 }
}
layer {
  name: "mine"
  type: "Mine"
  mine_param { mode: FAST word: "plain" file: "a/b" }
}
layer {
  siamese {
    suffix: "_p"
    input { data: "image1" data: "image2" }
    output { [conv1/7x7]: "a" [conv1/7x7]: "b" }
    layer {
      name: "conv"
      type: "Convolution"
      twin_of: "other"
    }
  }
}
match_param { image: "a" image: "b" downsampling_factor: 4 }
"""


def test_yaml_to_prototxt() -> None:
    assert prototxt.dump(for_prototxt(loads(YAML))) == PROTOTXT


def test_prototxt_to_yaml() -> None:
    text = dump(for_yaml(loads(PROTOTXT, notation="prototxt")))
    changed = {
        "name: 12:30": 'name: "12:30"',  # other readers of YAML take it for a number
        'pool: "MAX"': "pool: MAX",
        "file: a/b": 'file: "a/b"',  # nobody here knows that mine_param's file is a string
    }
    wanted = YAML
    for old, new in changed.items():
        assert old in wanted
        wanted = wanted.replace(old, new)
    assert text == dump(loads(wanted))


def test_a_solver_is_known_by_its_names() -> None:
    tree = loads("net: a.yaml\ntype: Adam\nsnapshot_format: HDF5\ntest_state: {stage: a}")
    assert prototxt.dump(for_prototxt(tree)) == (
        'net: "a.yaml"\ntype: "Adam"\nsnapshot_format: HDF5\ntest_state { stage: "a" }\n'
    )


def test_what_is_of_the_wrong_kind_is_left_alone() -> None:
    text = 'name { a: b }\nlayer: "x"\nstate { level: "3" phase { } }\n'
    tree = loads(text, notation="prototxt")
    assert (
        prototxt.dump(for_prototxt(tree))
        == 'name { a: b }\nlayer: "x"\nstate { level: "3" phase { } }\n'
    )


def test_prototxt_is_held_to_protobufs_rules() -> None:
    text = (
        "name: net\n"
        'layer { type: "Pooling" pooling_param { pool: "MAX" } mine_param { mode: x word: "y" } }\n'
        'layer { siamese { suffix: _p input { data: a data: "b" } } }\n'
    )
    with pytest.raises(SpecError) as caught:
        loads(text, notation="prototxt")
    assert [f"{e.span.line}:{e.span.column} {e.message}" for e in caught.value.errors if e.span] == [
        "1:7 name: expected a string in quotes, got net",
        '2:47 pool: expected a name without quotes, got the string "MAX"',
        "3:27 suffix: expected a string in quotes, got _p",
        "3:44 data: expected a string in quotes, got a",
    ]


def test_enums_by_number() -> None:
    text = "state { phase: 1 } layer { pooling_param { pool: 1 stride: 1 } param { share_mode: 7 } }"
    assert prototxt.dump(loads(text, notation="prototxt")) == (
        "state { phase: TEST }\nlayer {\n  pooling_param { pool: AVE stride: 1 }\n"
        "  param { share_mode: 7 }\n}\n"
    )
