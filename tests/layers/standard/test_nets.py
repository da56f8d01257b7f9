"""Whole nets of these layers, from their prototxt and caffemodel, against Caffe."""

from __future__ import annotations

import json
from pathlib import Path

import caffe_vectors
import pytest
import torch
from cortado.layers.standard.input import BlobShape, Input, Params
from cortado.layers.standard.silence import Silence
from cortado.nets.net import Net
from cortado.prototxt_like.source import SpecError
from shared import case, cases


@pytest.mark.parametrize("case", cases("12_googlenet_cut"))
def test_googlenet(case: Path) -> None:
    caffe_vectors.check(case)


def test_input_and_silence() -> None:
    assert Input.infer(Params((BlobShape((2, 3)), BlobShape((4,))))) == ((2, 3), (4,))
    assert Input.infer(Params()) == ((),)
    assert Silence.infer(None, (2, 3), (4,)) == ()
    assert Silence()(torch.zeros(2, 3)) == ()


@pytest.mark.caffe_vector
def test_refuses_what_caffe_refuses() -> None:
    """Of the nets that Caffe was tried on, those of these layers."""
    folder = case("11_errors")
    tried = json.loads((folder / "errors.json").read_text(encoding="utf-8"))
    ours = ("conv_", "pool_", "eltwise_", "filler_", "dropout_", "relu_", "input_")
    chosen = [entry for entry in tried if entry["name"].startswith(ours)]
    assert len(chosen) > 20
    for entry in chosen:
        if entry["aborts"]:
            with pytest.raises(SpecError, match=r"prototxt:\d+:\d+: error: "):
                Net(folder / entry["file"], "TRAIN")
        else:
            Net(folder / entry["file"], "TRAIN")
