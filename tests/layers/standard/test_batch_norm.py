"""BatchNorm against Caffe, its sums, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import caffe_vectors
import pytest
import torch
from cortado.layers._engine.checks import BlobError
from cortado.layers.standard.batch_norm import BatchNorm, Params
from cortado.nets.net import Net
from cortado.prototxt_like import loads
from cortado.prototxt_like.source import SpecError
from shared import cases

SPEC = """force_backward: true
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 4 dim: 3 dim: 2 } } }
layer { name: "bn" type: "BatchNorm" bottom: "x" top: "y" %s }"""


@pytest.mark.parametrize("case", cases("05_bn_"))
def test_caffe(case: Path) -> None:
    caffe_vectors.check(case)


def test_sums() -> None:
    """After k forwards the count is 1 + f + ... + f^(k-1), and the means are weighted likewise."""
    layer, x = BatchNorm(Params(moving_average_fraction=0.5), ((4, 3, 2),)), torch.randn(4, 3, 2)
    for scale in (1.0, 2.0, 3.0):
        layer(scale * x)
    weights = 0.25 + 2 * 0.5 + 3
    assert layer.count.tolist() == [1.75]
    torch.testing.assert_close(layer.mean.data, weights * x.mean((0, 2)))
    squares = 0.25 + 4 * 0.5 + 9
    torch.testing.assert_close(layer.variance.data, squares * x.var((0, 2), correction=1))


@pytest.mark.parametrize("axes", [(), (2,), (2, 2)])
def test_no_variance_and_no_eps_is_nan(axes: tuple[int, ...]) -> None:
    """0 / 0, where torch makes 0; the other channels are what they are."""
    x = torch.randn(4, 2, *axes)
    x[:, 0] = 3
    top = BatchNorm(Params(eps=0.0), (tuple(x.shape),))(x)
    assert top[:, 0].isnan().all()
    rest = x[:, 1]
    torch.testing.assert_close(top[:, 1], (rest - rest.mean()) / rest.std(correction=0))


def test_phases() -> None:
    x = torch.randn(5, 3)
    layer = BatchNorm(Params(), ((5, 3),))
    torch.testing.assert_close(layer.eval()(x), x / 1e-5**0.5)
    assert not layer.count.any(), "the stored statistics are only read"
    layer.train()(x)
    wanted = (x - x.mean(0)) / (x.var(0) + 1e-5).sqrt()
    torch.testing.assert_close(layer.eval()(x), wanted)
    always = BatchNorm(Params(use_global_stats=False), ((5, 3),)).eval()
    always(x)
    assert always.count.tolist() == [1]


def test_any_eps_is_added() -> None:
    """Of batch and stored variance 4: (x - 3) / sqrt(4 + eps), where Caffe asks nothing of eps."""
    x = torch.tensor([[1.0], [5.0]])
    for eps, scale in ((0.0, 2.0), (-3.0, 1.0), (5.0, 3.0)):
        layer = BatchNorm(Params(eps=eps), ((2, 1),))
        torch.testing.assert_close(layer(x), (x - 3) / scale)
        layer.variance.data.fill_(4)
        torch.testing.assert_close(layer.eval()(x), (x - 3) / scale)


def test_one_element_a_channel() -> None:
    layer, x = BatchNorm(Params(), ((1, 3),)), torch.tensor([[5.0, -7.0, 1e6]], requires_grad=True)
    top = layer(x)
    top.backward(torch.ones(1, 3))
    assert not top.any()
    assert not x.grad.any()
    assert layer.mean.tolist() == x[0].tolist()
    assert not layer.variance.any()


def test_an_empty_batch_leaves_the_statistics() -> None:
    layer = BatchNorm(Params(), ((4, 3, 2),))
    assert layer(torch.zeros(0, 3, 2)).shape == (0, 3, 2)
    assert not layer.count.any()


def test_statistics_do_not_learn() -> None:
    net = Net(loads(SPEC % "", notation="prototxt"), "TRAIN")
    assert [blob.lr_mult for blob in net.learnable] == [0, 0, 0]
    net(x=torch.randn(4, 3, 2))["y"].square().sum().backward()
    assert all(blob.grad is None or not blob.grad.any() for blob in net.params["bn"])


def test_a_learning_rate_for_statistics() -> None:
    with pytest.raises(SpecError, match=r'"bn" \(BatchNorm\) has statistics .*: expected lr_mult: 0'):
        Net(loads(SPEC % "param { lr_mult: 1 }", notation="prototxt"), "TRAIN")


def test_refused_shapes() -> None:
    with pytest.raises(BlobError, match=r"^expected bottom \[3\] to be \[N, C, \.\.\.\]$"):
        BatchNorm(Params(), ((3,),))
    layer = BatchNorm(Params(), ((2, 3),))
    with pytest.raises(BlobError, match=r"^bottom \[2, 4\] has 4 channels, the statistics are of 3$"):
        layer(torch.zeros(2, 4))


def test_statistics_owe_nothing_to_uninitialised_memory():
    """torch's deterministic mode fills new memory with NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        layer = BatchNorm(Params(use_global_stats=False), ((4, 3, 2, 2),))
        layer(torch.randn(4, 3, 2, 2))
    finally:
        torch.use_deterministic_algorithms(before)
    assert all(blob.isfinite().all() for blob in layer.blobs)
