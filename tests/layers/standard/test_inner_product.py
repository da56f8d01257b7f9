"""InnerProduct against Caffe, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import caffe_vectors
import numpy as np
import pytest
import torch
from cortado.layers._engine.checks import BlobError
from cortado.layers.standard.inner_product import InnerProduct, Params
from shared import cases


@pytest.mark.parametrize("case", cases("04_ip_"))
def test_caffe(case: Path) -> None:
    caffe_vectors.check(case)


def test_infer_and_empty_batch() -> None:
    for sample in InnerProduct.samples("small", np.random.default_rng(0)):
        for bottom in (sample.bottoms[0].float(), sample.bottoms[0][:0].float()):
            shape = tuple(bottom.shape)
            top = InnerProduct(sample.params, (shape,))(bottom)
            assert InnerProduct.infer(sample.params, shape) == (tuple(top.shape),)


def test_blobs() -> None:
    layer = InnerProduct(Params(5, transpose=True), ((3, 2, 4),))
    assert [tuple(blob.shape) for blob in layer.blobs] == [(8, 5), (5,)]
    assert all(not blob.any() for blob in layer.blobs), "constant 0 unless a filler is given"
    assert len(InnerProduct(Params(5, False), ((3, 2, 4),)).blobs) == 1


def test_refusals() -> None:
    layer = InnerProduct(Params(2), ((2, 3),))
    with pytest.raises(BlobError, match=r"^bottom \[2, 5\] gives 5 inputs, the weight takes 3$"):
        layer(torch.zeros(2, 5))
    with pytest.raises(BlobError, match=r"^bottom \[2, 5\] has no axis 2$"):
        InnerProduct(Params(2, axis=2), ((2, 5),))
