"""Whole nets of these layers, from their prototxt and caffemodel, against Caffe."""

from __future__ import annotations

from pathlib import Path

import caffe_vectors
import pytest
import torch
from cortado.layers.standard.input import BlobShape, Input, Params
from cortado.layers.standard.silence import Silence
from shared import cases


@pytest.mark.parametrize("case", cases("12_googlenet_cut"))
def test_googlenet(case: Path) -> None:
    caffe_vectors.check(case)


def test_input_and_silence() -> None:
    assert Input.infer(Params((BlobShape((2, 3)), BlobShape((4,))))) == ((2, 3), (4,))
    assert Input.infer(Params()) == ((),)
    assert Silence.infer(None, (2, 3), (4,)) == ()
    assert Silence()(torch.zeros(2, 3)) == ()
