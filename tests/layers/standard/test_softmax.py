"""Softmax against Caffe."""

from __future__ import annotations

from pathlib import Path

import caffe_vectors
import pytest
import torch
from cortado.layers._engine.checks import BlobError
from cortado.layers.standard.softmax import Softmax
from shared import cases


@pytest.mark.parametrize("case", cases("07_softmax_"))
def test_caffe(case: Path) -> None:
    caffe_vectors.check(case)


def test_no_such_axis() -> None:
    with pytest.raises(BlobError, match=r"^bottom \[3\] has no axis 1$"):
        Softmax()(torch.zeros(3))
