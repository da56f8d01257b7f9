"""LSTM, RNN and LSTMUnit against Caffe, plain loops, and torch's own LSTM."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import caffe_vectors
import numpy as np
import pytest
import torch
from cortado.layers._engine.checks import BlobError
from cortado.layers._engine.declared import Role
from cortado.layers._engine.fillers import FillerParams, FillerType
from cortado.layers.standard._recurrent import Recurrent, RecurrentParams
from cortado.layers.standard.lstm import LSTM
from cortado.layers.standard.lstm_unit import LSTMUnit
from cortado.layers.standard.rnn import RNN
from shared import cases
from torch import Tensor

KINDS: list[Any] = [LSTM, RNN]
FILLER = FillerParams(type=FillerType.uniform, min=-1, max=1)
T, N, WIDTH, D = 4, 2, 3, 5


@pytest.mark.parametrize("case", cases("07_rnn"))
def test_caffe(case: Path) -> None:
    caffe_vectors.check(case)


def made(kind: Any, *bottoms: Tensor, **fields: Any) -> Any:
    params = RecurrentParams(D, FILLER, FILLER, **fields)
    shapes = tuple(tuple(bottom.shape) for bottom in bottoms)
    return kind(params, shapes, torch.Generator().manual_seed(1)).double()


def inputs(static: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(T, N, WIDTH, generator=generator, dtype=torch.double)
    cont = torch.tensor([[0, 1], [1, 1], [1, 0], [1, 1]]).double()
    return [x, cont, *([torch.randn(N, 2, generator=generator, dtype=torch.double)] if static else [])]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def loop(layer: Any, bottoms: list[Tensor], h: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, ...]:
    """Outputs and last states, stream by stream and step by step."""
    arrays = [blob.detach().numpy() for blob in layer.blobs]
    blobs = dict(zip(layer.blob_names, arrays, strict=True))
    x, cont, *static = (bottom.numpy() for bottom in bottoms)
    h, c, top = h.copy(), c.copy(), np.zeros((*x.shape[:2], D))
    for n in range(x.shape[1]):
        for t in range(x.shape[0]):
            z = blobs["weight_x"] @ x[t, n].ravel() + blobs["bias"]
            z = z + blobs["weight_h"] @ (cont[t, n] * h[n])
            if static:
                z = z + blobs["weight_static"] @ static[0][n].ravel()
            if isinstance(layer, LSTM):
                i, f, o, g = np.split(z, 4)
                c[n] = cont[t, n] * sigmoid(f) * c[n] + sigmoid(i) * np.tanh(g)
                top[t, n] = h[n] = sigmoid(o) * np.tanh(c[n])
            else:
                h[n] = np.tanh(z)
                top[t, n] = np.tanh(blobs["weight_o"] @ h[n] + blobs["bias_o"])
    return top, h, c


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_against_a_loop_and_the_state_goes_on(kind: Any, static: bool) -> None:
    bottoms = inputs(static)
    layer = made(kind, *bottoms)
    h = c = np.zeros((N, D))
    for _ in range(2):
        (top,) = layer(*bottoms)
        wanted, h, c = loop(layer, bottoms, h, c)
        np.testing.assert_allclose(top.detach().numpy(), wanted, rtol=1e-12)
    state = layer.get_extra_state()
    again = made(kind, *bottoms)
    again.set_extra_state(state)
    assert torch.equal(layer(*bottoms)[0], again(*bottoms)[0])
    layer.reset()
    wanted, *_ = loop(layer, bottoms, np.zeros((N, D)), np.zeros((N, D)))
    np.testing.assert_allclose(layer(*bottoms)[0].detach().numpy(), wanted, rtol=1e-12)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_exposed_states(kind: Any, static: bool) -> None:
    """They are read and given, and no gradient goes through them, as in Caffe."""
    bottoms = inputs(static)
    hidden = [torch.rand(1, N, D, dtype=torch.double, requires_grad=True) for _ in range(kind.states)]
    layer = made(kind, *bottoms, *hidden, expose_hidden=True)
    top, *last = layer(*bottoms, *hidden)
    first = [h.detach()[0].numpy() for h in hidden]
    wanted, *states = loop(layer, bottoms, first[0], first[-1])
    np.testing.assert_allclose(top.detach().numpy(), wanted, rtol=1e-12)
    for found, state in zip(last, states, strict=False):
        np.testing.assert_allclose(found[0].numpy(), state, rtol=1e-12)
        assert not found.requires_grad
    top.sum().backward()
    assert all(h.grad is None for h in hidden)
    shapes = tuple(tuple(b.shape) for b in (*bottoms, *hidden))
    assert kind.infer(layer.params, *shapes) == tuple(tuple(t.shape) for t in (top, *last))


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: Any) -> None:
    x, cont, static = inputs(static=True)
    layer = made(kind, x, cont, static)

    def run(x: Tensor, static: Tensor, *blobs: Tensor) -> Tensor:
        layer.reset()
        named = dict(zip(layer.blob_names, blobs, strict=True))
        return torch.func.functional_call(layer, named, (x, cont, static))[0]

    wanted = (x.requires_grad_(), static.requires_grad_(), *layer.blobs)
    assert torch.autograd.gradcheck(run, wanted)
    assert kind.record(1, 3).role is Role.LABEL


def test_torch_has_the_same_lstm() -> None:
    """Its gates are i, f, g, o; all streams begin at the first step."""
    x, cont = torch.randn(T, N, WIDTH).double(), torch.ones(T, N).double()
    cont[0] = 0
    layer = made(LSTM, x, cont)
    theirs = torch.nn.LSTM(WIDTH, D).double()
    order = torch.tensor([0, 1, 3, 2])
    with torch.no_grad():
        for name, blob in (
            ("weight_ih_l0", "weight_x"),
            ("weight_hh_l0", "weight_h"),
            ("bias_ih_l0", "bias"),
        ):
            mine = getattr(layer, blob)
            getattr(theirs, name).copy_(mine.view(4, D, *mine.shape[1:])[order].flatten(0, 1))
        theirs.bias_hh_l0.zero_()
    torch.testing.assert_close(layer(x, cont)[0], theirs(x)[0])


def test_blobs_in_caffes_order() -> None:
    shapes = ((T, N, 2, 3), (T, N), (N, 4))
    params = RecurrentParams(D)
    lstm, rnn = LSTM(params, shapes), RNN(params, shapes)
    assert [tuple(b.shape) for b in lstm.blobs] == [(20, 6), (20,), (20, 4), (20, 5)]
    assert [tuple(b.shape) for b in rnn.blobs] == [(5, 6), (5,), (5, 4), (5, 5), (5, 5), (5,)]
    assert [len(kind(params, shapes[:2]).blobs) for kind in KINDS] == [3, 5]


@pytest.mark.parametrize("kind", KINDS)
def test_samples_and_empty(kind: Any) -> None:
    for sample in kind.samples("small", np.random.default_rng(0)):
        shapes = tuple(tuple(x.shape) for x in sample.bottoms)
        layer: Recurrent = kind(sample.params, shapes).double()
        assert layer(*sample.bottoms)[0].shape == kind.infer(sample.params, *shapes)[0]
    x, cont = inputs()
    layer = made(kind, x, cont)
    assert layer(x[:0], cont[:0])[0].shape == (0, N, D)
    assert layer(x[:, :0], cont[:, :0])[0].shape == (T, 0, D)
    assert layer(x[:, :1], cont[:, :1])[0].shape == (T, 1, D), "another N begins anew"


@pytest.mark.parametrize(
    ("shapes", "fields", "message"),
    [
        (((4, 2), (4, 2)), {}, "expected x [4, 2] to be [T, N, ...]"),
        (((4, 2, 3), (4, 2, 1)), {}, "expected cont [4, 2, 1] to be [T, N] of x [4, 2, 3]"),
        (
            ((4, 2, 3), (4, 2), (3, 2)),
            {},
            "expected x_static [3, 2] to be [N, ...], N of x [4, 2, 3]",
        ),
        (
            ((4, 2, 3), (4, 2)),
            {"expose_hidden": True},
            "expected x, cont, and 2 hidden states, and at most x_static, got 2 bottoms",
        ),
        (
            ((4, 2, 3), (4, 2), (1, 2, 5), (2, 2, 5)),
            {"expose_hidden": True},
            "expected hidden [2, 2, 5] to be [1, 2, 5]",
        ),
    ],
)
def test_refused_shapes(shapes: Any, fields: Any, message: str) -> None:
    with pytest.raises(BlobError) as caught:
        LSTM.infer(RecurrentParams(D, **fields), *shapes)
    assert str(caught.value) == message


def test_refuses_another_width() -> None:
    layer = made(RNN, *inputs())
    with pytest.raises(BlobError, match=r"^x \[4, 2, 6\] gives 6 inputs, the weight takes 3$"):
        layer(torch.zeros(T, N, 6).double(), torch.ones(T, N))


def test_debug_info(caplog: pytest.LogCaptureFixture) -> None:
    bottoms = inputs()
    layer = made(LSTM, *bottoms, debug_info=True)
    with caplog.at_level(logging.INFO, "cortado.layers"):
        (top,) = layer(*bottoms)
    assert len(caplog.messages) == T
    mean = float(top[1].detach().abs().mean())
    assert caplog.messages[1] == f"step 2: mean magnitude of h {mean:.6g}"


def test_unit() -> None:
    for sample in LSTMUnit.samples("small", np.random.default_rng(0)):
        c_prev, gates, cont = sample.bottoms
        c, h = LSTMUnit()(c_prev, gates, cont)
        i, f, o, g = np.split(gates.numpy(), 4, -1)
        wanted = cont.numpy()[..., None] * sigmoid(f) * c_prev.numpy() + sigmoid(i) * np.tanh(g)
        np.testing.assert_allclose(c.numpy(), wanted, rtol=1e-12)
        np.testing.assert_allclose(h.numpy(), sigmoid(o) * np.tanh(wanted), rtol=1e-12)
        bottoms = (c_prev.requires_grad_(), gates.requires_grad_(), cont)
        assert torch.autograd.gradcheck(LSTMUnit(), bottoms)
        shapes = [tuple(x.shape) for x in sample.bottoms]
        assert LSTMUnit.infer(None, *shapes) == (tuple(c.shape), tuple(h.shape))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3, 4), (1, 3, 16), (1, 3)), "expected c_prev [2, 3, 4] to be [1, N, D]"),
        (((1, 3, 4), (1, 3, 12), (1, 3)), "expected gates [1, 3, 12] to be [1, 3, 16]"),
        (((1, 3, 4), (1, 3, 16), (3,)), "expected cont [3] to be [1, 3]"),
    ],
)
def test_unit_refuses(shapes: Any, message: str) -> None:
    with pytest.raises(BlobError) as caught:
        LSTMUnit()(*(torch.zeros(shape) for shape in shapes))
    assert str(caught.value) == message
