"""The Python layer: Caffe's interface around a user's class."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cortado.layers.standard.python import Params, Python
from torch import Tensor

MODULE = '''
import numpy as np

class Affine:
    """top = scale * bottom + shift: a parameter, a param_str, both bottoms' gradients."""

    def setup(self, bottom, top):
        self.shift = float(self.param_str)
        self.blobs.add_blob(1)
        self.blobs[0].data[...] = 2
        self.log = ["setup"]

    def reshape(self, bottom, top):
        self.log.append("reshape")
        top[0].reshape(*bottom[0].data.shape)

    def forward(self, bottom, top):
        self.log.append("forward")
        top[0].data[...] = self.blobs[0].data * bottom[0].data + self.shift

    def backward(self, top, propagate_down, bottom):
        self.log.append(propagate_down)
        if propagate_down[0]:
            bottom[0].diff[...] = self.blobs[0].data * top[0].diff
        self.blobs[0].diff[0] += (top[0].diff * bottom[0].data).sum()

class Difference:
    """Two bottoms, two tops; what forward found is used again by backward."""

    def setup(self, bottom, top):
        if len(bottom) != 2:
            raise Exception("two bottoms")

    def reshape(self, bottom, top):
        top[0].reshape(1)
        top[1].reshape(bottom[0].num, bottom[0].channels)

    def forward(self, bottom, top):
        top[1].data[...] = bottom[0].data - bottom[1].data
        top[0].data[0] = (top[1].data ** 2).sum() / bottom[0].num / 2

    def backward(self, top, propagate_down, bottom):
        for i, sign in enumerate((1, -1)):
            if propagate_down[i]:
                found = top[0].diff[0] * top[1].data / bottom[i].num + top[1].diff
                bottom[i].diff[...] = sign * found

class Counter:
    """No bottoms; a running count kept in a parameter."""

    def setup(self, bottom, top):
        self.blobs.add_blob(2, 1)

    def reshape(self, bottom, top):
        top[0].reshape(3, 2)

    def forward(self, bottom, top):
        self.blobs[0].data[...] += 1
        top[0].data[...] = self.blobs[0].data[0] + 10 * self.phase

    def backward(self, top, propagate_down, bottom):
        pass

class Clear:
    """In place: the top is the bottom."""

    def setup(self, bottom, top):
        pass

    def reshape(self, bottom, top):
        pass

    def forward(self, bottom, top):
        top[0].data[bottom[0].data < 0] = 0

    def backward(self, top, propagate_down, bottom):
        bottom[0].diff[top[0].data <= 0] = 0

class Sink(Clear):
    seen = []

    def forward(self, bottom, top):
        self.seen.append(bottom[0].data.copy())

class Half:
    def setup(self, bottom, top):
        pass
'''


@pytest.fixture(autouse=True)
def users_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "affine_layers.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("affine_layers", None)


def made(
    name: str,
    *shapes: tuple[int, ...],
    param_str: str = "",
    tops: tuple[str, ...] = ("top",),
    training: bool = True,
) -> Python:
    layer = Python(Params("affine_layers", name, param_str), shapes)
    layer.bottoms, layer.tops = ("a", "b")[: len(shapes)], tops
    layer.train(training)
    layer.shapes = layer.infer(layer.params, *shapes)
    return layer


def test_calls_values_and_gradients() -> None:
    layer = made("Affine", (2, 3), param_str="1.5")
    assert layer.shapes == ((2, 3),)
    assert layer.blob_names == ("blob0",)
    x = torch.randn(2, 3, requires_grad=True)
    (top,) = layer(x)
    torch.testing.assert_close(top, 2 * x + 1.5)
    for _ in range(2):  # gradients add up
        layer(x)[0].sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[4] * 3] * 2
    torch.testing.assert_close(layer.blobs[0].grad, 2 * x.detach().sum()[None])
    assert layer.user.log[:4] == ["setup", "reshape", "reshape", "forward"]
    assert layer.user.log[-1] == [True]


def test_only_wanted_gradients() -> None:
    layer = made("Affine", (2,), param_str="0")
    layer(torch.ones(2))[0].sum().backward()
    assert layer.user.log[-1] == [False]
    layer.blobs[0].requires_grad_(False)
    assert not layer(torch.ones(2))[0].requires_grad


def test_gradcheck_in_double() -> None:
    layer = made("Affine", (2, 3), param_str="1").double()
    x = torch.randn(2, 3, dtype=torch.double, requires_grad=True)

    def run(x: Tensor, blob: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"blob0": blob}, (x,))[0]

    assert torch.autograd.gradcheck(run, (x, *layer.blobs))
    pair = [torch.randn(2, 3, dtype=torch.double, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(made("Difference", (2, 3), (2, 3), tops=("loss", "d")), pair)


def test_backward_after_other_forwards() -> None:
    """Bottoms and tops hold again what they held in that forward."""
    layer = made("Difference", (2, 3), (2, 3), tops=("loss", "d"))
    a, b = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)
    loss, _ = layer(a, b)
    layer(torch.zeros(2, 3), torch.zeros(2, 3))
    loss.sum().backward()
    assert a.grad is not None
    torch.testing.assert_close(a.grad, (a.detach() - b) / 2)


def test_a_shape_that_changes_and_non_contiguous() -> None:
    layer = made("Affine", (2, 3), param_str="0")
    for shape in ((4, 5), (1,), (0, 3)):
        x = torch.randn(*shape, requires_grad=True)
        (top,) = layer(x)
        torch.testing.assert_close(top, 2 * x)
        top.sum().backward()
        assert x.grad is not None
        assert x.grad.shape == x.shape
    x = torch.randn(3, 4).t()
    torch.testing.assert_close(layer(x)[0], 2 * x)


def test_half_is_given_as_float32() -> None:
    layer = made("Affine", (2,), param_str="0")
    x = torch.ones(2, dtype=torch.float16, requires_grad=True)
    (top,) = layer(x)
    top.sum().backward()
    assert top.dtype is torch.float32
    assert x.grad is not None
    assert x.grad.dtype is torch.float16


@pytest.mark.parametrize(("training", "added"), [(True, 0), (False, 10)])
def test_no_bottoms_and_a_parameter_that_forward_writes(training: bool, added: int) -> None:
    layer = made("Counter", training=training)
    layer.blobs[0].data.fill_(5)  # as weights do that are loaded
    for count in (6, 7):
        with torch.no_grad():
            assert layer()[0].tolist() == [[count + added] * 2] * 3
        assert layer.blobs[0].tolist() == [[count]] * 2


def test_in_place() -> None:
    layer = made("Clear", (4,), tops=("a",))
    assert layer.top[0] is layer.bottom[0]
    x = torch.tensor([-1.0, 2, 0, 3], requires_grad=True)
    (top,) = layer(x)
    assert top.tolist() == [0, 2, 0, 3]
    assert x.tolist() == [-1, 2, 0, 3]
    top.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 0, 1]


def test_no_tops() -> None:
    layer = made("Sink", (2,), tops=())
    assert layer(torch.ones(2, requires_grad=True)) == ()
    np.testing.assert_array_equal(layer.user.seen[-1], [1, 1])


@pytest.mark.parametrize(
    ("module", "name", "message"),
    [
        ("no_such_module", "A", 'cannot import the Python layer\'s module "no_such_module": No module'),
        ("affine_layers", "Afine", 'has no class "Afine" (did you mean "Affine"?)'),
        ("affine_layers", "np", 'module "affine_layers" has no class "np"'),
        ("affine_layers", "Half", "has no method reshape, forward, backward"),
    ],
)
def test_refusals(module: str, name: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Python(Params(module, name))
    assert message in str(caught.value)


def test_what_the_users_code_raises_comes_through() -> None:
    with pytest.raises(Exception, match=r"^two bottoms$"):
        made("Difference", (2, 3))
