"""Embed against Caffe, its gradients, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import caffe_vectors
import numpy as np
import pytest
import torch
from cortado.layers.standard.embed import Embed, Params
from cortado.nets.net import Net
from shared import case, cases


@pytest.mark.parametrize("case", cases("06_embed"))
def test_caffe(case: Path) -> None:
    caffe_vectors.check(case)


def test_rows_and_gradients() -> None:
    for sample in Embed.samples("small", np.random.default_rng(0)):
        (index,) = sample.bottoms
        layer = Embed(sample.params, (tuple(index.shape),)).double()
        top = layer(index)
        assert Embed.infer(sample.params, tuple(index.shape)) == (tuple(top.shape),)
        bias = torch.zeros(3) if layer.bias is None else layer.bias
        for at in np.ndindex(index.shape):
            torch.testing.assert_close(top[at], layer.weight[index[at]] + bias)

        def run(*blobs: torch.Tensor, layer=layer, index=index) -> torch.Tensor:
            names = dict(zip(layer.blob_names, blobs, strict=True))
            return torch.func.functional_call(layer, names, index)

        assert torch.autograd.gradcheck(run, tuple(layer.blobs))


def test_shapes_and_truncation() -> None:
    layer = Embed(Params(3, 5))
    assert [tuple(blob.shape) for blob in layer.blobs] == [(5, 3), (3,)]
    layer.weight.data.copy_(torch.arange(15.0).view(5, 3))
    assert layer(torch.tensor([[1.9], [-0.5]])).tolist() == [[[3, 4, 5]], [[0, 1, 2]]]
    assert layer(torch.zeros(0, 2)).shape == (0, 2, 3)


@pytest.mark.parametrize("index", [5.0, -1.0, float("nan")])
def test_refuses_other_rows(index: float) -> None:
    with pytest.raises(ValueError, match=r"^expected indices from 0 to 4$"):
        Embed(Params(3, 5))(torch.tensor([index]))


@pytest.mark.caffe_vector
def test_refuses_a_gradient_of_its_index() -> None:
    net = Net(case("11_errors") / "nets/embed_force_backward.prototxt", "TRAIN")
    made = net.built.layers[-1]
    refused = net.built.backward[-1].refused(made.layer)
    assert refused == "Embed gives its bottom 0 no gradient"
