"""Pooling against Caffe, torch's path against the padded one, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import caffe_vectors
import numpy as np
import pytest
import torch
from cortado.layers._engine.checks import BlobError
from cortado.layers.standard import _pool as pool
from cortado.layers.standard.pooling import Params, Pooling, PoolMethod, RoundMode, infer
from shared import cases


@pytest.mark.parametrize("case", cases("02_"))
def test_caffe(case: Path) -> None:
    caffe_vectors.check(case)


def tops(params: Params, x: torch.Tensor) -> list[torch.Tensor]:
    """The layer's tops and the gradient of the first."""
    x = x.clone().requires_grad_()
    found = Pooling(params, (tuple(x.shape),))(x)
    found = found if isinstance(found, tuple) else (found,)
    weights = torch.arange(found[0].numel(), dtype=x.dtype).view_as(found[0]).cos()
    (gradient,) = torch.autograd.grad(found[0], x, weights)
    return [*found, gradient]


@pytest.mark.parametrize("method", [PoolMethod.MAX, PoolMethod.AVE])
@pytest.mark.parametrize("rounding", list(RoundMode))
def test_both_paths_agree(
    method: PoolMethod, rounding: RoundMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    for kernel, stride, pad, length in ((3, 2, 1, 7), (3, 1, 1, 5), (2, 2, 0, 7), (4, 3, 2, 9)):
        params = Params(method, pad, kernel_size=kernel, stride=stride, round_mode=rounding)
        x = torch.from_numpy(rng.integers(-2, 3, (2, 3, length, length + 2)).astype(float))
        native = tops(params, x)
        with monkeypatch.context() as patch:
            patch.setattr(pool.Windows, "native", False)
            padded = tops(params, x)
        for a, b in zip(native, padded, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("native", [True, False])
def test_ties_go_to_the_first_by_rows(
    native: bool, layout: torch.memory_format, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of three equal elements, among them zeros of both signs, in windows of 2 x 3 and padding."""
    monkeypatch.setattr(pool.Windows, "native", native)
    x = torch.zeros(1, 16, 4, 3, dtype=dtype)
    x[:, :, 0, 0] = -0.0
    x[:, :, 2:] = 5
    x = x.to(memory_format=layout).requires_grad_()
    params = Params(kernel_h=2, kernel_w=3, stride=2, pad_h=0, pad_w=1)
    for wanted in (("top", "mask"), ("top",)):
        layer = Pooling(params)
        layer.tops = wanted
        found = layer(x)
        top, *mask = found if isinstance(found, tuple) else (found,)
        (gradient,) = torch.autograd.grad(top.sum(), x)
        assert (top == torch.tensor([[0, 0], [5, 5]])).all()
        assert all((each == torch.tensor([[0, 1], [6, 7]])).all() for each in mask)
        assert (gradient == torch.tensor([[1, 1, 0], [0, 0, 0], [1, 1, 0], [0, 0, 0]])).all()


def test_gradcheck_infer_and_empty_batch() -> None:
    for sample in Pooling.samples("small", np.random.default_rng(0)):
        x = sample.bottoms[0]
        layer = Pooling(sample.params)
        assert torch.autograd.gradcheck(layer, x.clone().requires_grad_(), fast_mode=True)
        for bottom in (x, x[:0]):
            found = layer(bottom)
            found = found if isinstance(found, tuple) else (found,)
            assert infer(sample.params, tuple(bottom.shape)) == tuple(t.shape for t in found)


def test_global_pooling() -> None:
    x = torch.randn(2, 3, 4, 5)
    average = Pooling(Params(PoolMethod.AVE, global_pooling=True))(x)
    torch.testing.assert_close(average, x.mean((2, 3), keepdim=True))
    top, mask = Pooling(Params(global_pooling=True))(x)
    torch.testing.assert_close(top, x.amax((2, 3), keepdim=True))
    assert torch.equal(mask.flatten(), x.flatten(2).argmax(2).float().flatten())


def test_one_of_kernel_h_and_kernel_w_beside_kernel_size_is_passed_over() -> None:
    for given in ({"kernel_h": 5}, {"kernel_w": 5}):
        assert infer(Params(kernel_size=3, **given), (1, 2, 6, 7))[0] == (1, 2, 4, 5)


def test_the_mask_only_if_asked_for() -> None:
    layer, x = Pooling(Params(kernel_size=2)), torch.randn(1, 2, 3, 4)
    both = layer(x)
    layer.tops = ("pool",)
    assert torch.equal(layer(x), both[0])


STOCHASTIC = Params(PoolMethod.STOCHASTIC, kernel_size=2, stride=2)


def test_stochastic_in_training() -> None:
    """Elements 1, 2, 3, 4 of each window, drawn in proportion; at the border the fifth alone."""
    torch.manual_seed(3)
    x = torch.tensor([[1.0, 2.0, 5.0], [3.0, 4.0, 0.0]]).repeat(4000, 1, 1, 1).requires_grad_()
    top = Pooling(STOCHASTIC)(x)
    top.sum().backward()
    assert top.shape == (4000, 1, 1, 2)
    assert (top[..., 1] == 5).all()
    share = torch.stack([(top[..., 0] == k).float().mean() for k in (1, 2, 3, 4)])
    torch.testing.assert_close(share, torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=0.03, rtol=0)
    assert (x.grad.sum((1, 2, 3)) == 2).all()
    assert torch.equal((x.grad * x).detach()[..., :2].sum((1, 2, 3)), top[:, 0, 0, 0].detach())


def test_stochastic_in_testing() -> None:
    x = torch.tensor([[[[1.0, 2.0, 5.0, 0.0], [3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]]])
    top = Pooling(STOCHASTIC).eval()(x)
    torch.testing.assert_close(top, torch.tensor([[[[3.0, 5.0], [0.0, 1.0]]]]))
    assert torch.autograd.gradcheck(Pooling(STOCHASTIC).eval(), x[:, :, :2].double().requires_grad_())


def test_stochastic_of_nothing() -> None:
    for training in (True, False):
        x = torch.zeros(1, 1, 4, 4, requires_grad=True)
        top = Pooling(STOCHASTIC).train(training)(x)
        top.sum().backward()
        assert not top.any()
        assert x.grad.isfinite().all()


def test_a_window_without_pixels() -> None:
    """H = 4, kernel 1, stride 4, no padding: the second window starts at row 4."""
    x = torch.arange(16.0).view(1, 1, 4, 4)
    top, mask = Pooling(Params(kernel_size=1, stride=4))(x)
    lowest = torch.finfo(torch.float32).min
    assert top.flatten().tolist() == [0, lowest, lowest, lowest]
    assert mask.flatten().tolist() == [0, -1, -1, -1]


def test_average_of_ones_shows_the_divisor() -> None:
    params = Params(PoolMethod.AVE, pad=1, kernel_size=3, stride=2)
    top = Pooling(params)(torch.ones(1, 1, 6, 6))[0, 0]
    torch.testing.assert_close(top[0], torch.tensor([4 / 9, 6 / 9, 6 / 9, 2 / 6]))
    assert float(top[3, 3]) == 0.25


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give kernel_size, or kernel_h and kernel_w"),
        ({"kernel_h": 2}, "give kernel_size, or both kernel_h and kernel_w"),
        (
            {"kernel_size": 2, "kernel_h": 2, "kernel_w": 2},
            "give kernel_size, or both kernel_h and kernel_w",
        ),
        ({"kernel_size": 2, "pad_h": 1}, "give pad, or both pad_h and pad_w"),
        ({"kernel_size": 2, "stride": 2, "stride_h": 1}, "give stride, or both stride_h and stride_w"),
        ({"kernel_size": 2, "pad": 2}, "pad (2, 2) must be smaller than the kernel (2, 2)"),
        ({"global_pooling": True, "kernel_size": 2}, "global_pooling takes no kernel size"),
        ({"global_pooling": True, "stride": 2}, "global_pooling takes no pad and no stride"),
        ({"global_pooling": True, "pad": 1}, "global_pooling takes no pad and no stride"),
        (
            {"kernel_size": 2, "pad": 1, "pool": PoolMethod.STOCHASTIC},
            "STOCHASTIC pooling takes no pad",
        ),
    ],
)
def test_refused_parameters(given: dict, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Params(**given)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("given", "shape", "message"),
    [
        ({"kernel_size": 5}, (4, 6, 6), "expected bottom [4, 6, 6] to be [N, C, H, W]"),
        ({"kernel_size": 5}, (1, 4, 3, 9), "no window of 5 x 5 fits bottom [1, 4, 3, 9]"),
        ({"global_pooling": True}, (1, 4, 0, 9), "no window of 0 x 9 fits bottom [1, 4, 0, 9]"),
    ],
)
def test_refused_shapes(given: dict, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(BlobError) as caught:
        Pooling(Params(**given))(torch.zeros(shape))
    assert str(caught.value) == message
