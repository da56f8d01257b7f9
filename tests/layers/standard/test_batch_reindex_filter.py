"""BatchReindex and Filter against Caffe, and what they refuse; Parameter."""

from __future__ import annotations

from pathlib import Path

import caffe_vectors
import pytest
import torch
from cortado.layers._engine.checks import BlobError
from cortado.layers.standard.batch_reindex import BatchReindex
from cortado.layers.standard.filter import Filter
from cortado.layers.standard.parameter import BlobShape, Parameter, Params
from cortado.nets.net import Net
from cortado.prototxt_like import loads
from shared import cases


@pytest.mark.parametrize("case", cases("06_batch_reindex", "06_filter"))
def test_caffe(case: Path) -> None:
    caffe_vectors.check(case)


def test_reindex() -> None:
    x, index = torch.randn(3, 2, requires_grad=True), torch.tensor([2, 0, 2, 1.9])
    top = BatchReindex()(x, index)
    assert torch.equal(top, x[[2, 0, 2, 1]])
    top.sum().backward()
    assert x.grad[:, 0].tolist() == [1, 1, 2]
    assert BatchReindex()(x, torch.tensor([1, 1])).shape == (2, 2), "integers will do"
    assert BatchReindex()(x, index[:0]).shape == (0, 2)


@pytest.mark.parametrize(
    ("batch", "index", "message"),
    [
        ((3, 2), [0, 3], "index [2]: 3 at 1 is no item of batch [3, 2]"),
        ((3, 2), [-1], "index [1]: -1 at 0 is no item of batch [3, 2]"),
        ((3, 2), [0, float("nan")], "index [2]: nan at 1 is no item of batch [3, 2]"),
        ((0, 2), [0], "index [1]: 0 at 0 is no item of batch [0, 2]"),
        ((3, 2), [[0]], "expected index [1, 1] to be [M]"),
        ((), [0], "expected batch [] to be [N, ...]"),
    ],
)
def test_refused_indices(batch: tuple[int, ...], index: list, message: str) -> None:
    with pytest.raises(BlobError) as caught:
        BatchReindex()(torch.zeros(batch), torch.tensor(index).float())
    assert str(caught.value) == message


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 1, 1)])
def test_filter(shape: tuple[int, ...]) -> None:
    a, b = torch.randn(4, 2, requires_grad=True), torch.randn(4, 3, 2)
    selector = torch.tensor([1.0, 0.0, -0.5, 0.0]).view(shape)
    top_a, top_b = Filter()(a, b, selector)
    assert torch.equal(top_a, a[[0, 2]])
    assert torch.equal(top_b, b[[0, 2]])
    top_a.sum().backward()
    assert a.grad[:, 0].tolist() == [1, 0, 1, 0]
    assert Filter.infer(None, (4, 2), (4, 3, 2), shape) == ((4, 2), (4, 3, 2)), "the largest"


def test_filter_of_nothing() -> None:
    a = torch.randn(4, 2, requires_grad=True)
    (top,) = Filter()(a, torch.zeros(4))
    top.sum().backward()
    assert top.shape == (0, 2)
    assert not a.grad.any()


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(4, 2), (4, 2)], "expected the selector bottom1 [4, 2] to be [N] or [N, 1, ...]"),
        ([(4, 2), ()], "expected the selector bottom1 [] to be [N] or [N, 1, ...]"),
        (
            [(4, 2), (3, 2), (4,)],
            "bottom1 [3, 2] and the selector bottom2 [4] differ in their number of items",
        ),
    ],
)
def test_refused_selectors(shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(BlobError) as caught:
        Filter()(*(torch.zeros(shape) for shape in shapes))
    assert str(caught.value) == message


def test_parameter() -> None:
    """A net whose only parameter is a top: its gradient is that of the top."""
    spec = """layer { name: "p" type: "Parameter" top: "w" parameter_param { shape { dim: 2 dim: 3 } } }
layer { name: "s" type: "Reduction" bottom: "w" top: "s" loss_weight: 2
  reduction_param { operation: SUMSQ } }"""
    net = Net(loads(spec, notation="prototxt"), "TRAIN")
    (value,) = net.params["p"]
    assert not value.any()
    value.data = torch.randn(2, 3)
    net().loss.backward()
    torch.testing.assert_close(value.grad, 4 * value.detach())
    assert Parameter.infer(Params(BlobShape((2, 3)))) == ((2, 3),)
