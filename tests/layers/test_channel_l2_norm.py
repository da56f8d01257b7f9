import math

import numpy as np
import pytest
import torch
from cortado.layers.channel_l2_norm import ChannelL2Norm, EpsilonMode, channel_l2_norm
from suite import LayerSuite
from torch.nn.functional import normalize

MAX, SQRT, NONE = EpsilonMode.MAX, EpsilonMode.SQRT, EpsilonMode.NONE


class TestChannelL2Norm(LayerSuite):
    layer = ChannelL2Norm
    wrong = (
        ((torch.zeros(3),), "expected bottom [3] to be [N, C, ...]"),
        (
            (torch.zeros(2, 3, dtype=torch.int64),),
            "expected bottom to be floating point, got torch.int64",
        ),
    )

    def oracle(self, params, bottom):
        top = np.empty_like(bottom)
        for n in range(bottom.shape[0]):
            for at in np.ndindex(bottom.shape[2:]):
                x = bottom[(n, slice(None), *at)]
                square = sum(value**2 for value in x)
                length = {
                    NONE: math.sqrt(square),
                    SQRT: math.sqrt(square + params.eps),
                    MAX: max(math.sqrt(square), params.eps),
                }[params.eps_mode]
                top[(n, slice(None), *at)] = x / length
        return (top,)


def gradient(x, g, eps, mode):
    x = torch.tensor(x, dtype=torch.float64).reshape(1, -1).requires_grad_()
    top = channel_l2_norm(x, eps, mode)
    top.backward(torch.tensor(g, dtype=torch.float64).reshape(1, -1))
    return top.detach()[0].tolist(), x.grad[0].tolist()


def test_zero_vector():
    assert gradient([0, 0], [1, -2], 1e-3, "MAX") == ([0, 0], [1e3, -2e3])
    top, grad = gradient([0, 0], [1, -2], 1e-4, "SQRT")
    assert top == [0, 0]
    assert grad == pytest.approx([100, -200])
    top, grad = gradient([0, 0], [1, -2], 1e-3, "NONE")
    assert all(map(math.isnan, top + grad))


def test_hand_computed_gradients():
    top, grad = gradient([3, 4], [1, 0], 0, "NONE")
    assert top == pytest.approx([0.6, 0.8])
    assert grad == pytest.approx([16 / 125, -12 / 125])
    top, grad = gradient([3, 4], [1, 0], 11, "SQRT")  # denominator 6
    assert grad == pytest.approx([(1 - 9 / 36) / 6, -12 / 36 / 6])
    assert gradient([3, 4], [1, 0], 8, "MAX") == ([3 / 8, 0.5], [0.125, 0])
    assert gradient([3, 4], [1, 0], 2, "MAX") == gradient([3, 4], [1, 0], 0, "NONE")


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e-6, 1e-4])
@pytest.mark.parametrize("mode", ["MAX", "SQRT"])
def test_gradient_near_zero_is_the_derivative(scale, mode):
    x = scale * torch.tensor([[1.0, -2, 2]], dtype=torch.float64)
    step = 1e-3 * max(scale, 1e-7)
    x.requires_grad_()
    jacobian = torch.autograd.functional.jacobian(lambda x: channel_l2_norm(x, 1e-6, mode), x)
    for i in range(3):
        move = torch.zeros_like(x)
        move[0, i] = step
        with torch.no_grad():
            slope = channel_l2_norm(x + move, 1e-6, mode) - channel_l2_norm(x - move, 1e-6, mode)
        assert torch.allclose(jacobian[0, :, 0, i], slope[0] / (2 * step), rtol=1e-4, atol=0.5)


@pytest.mark.parametrize("length", [1e-18, 1e-10, 1e10, 1e18])
def test_single_precision_neither_overflows_nor_underflows(length):
    x = (length * torch.tensor([[0.6, 0.8]])).requires_grad_()
    top = channel_l2_norm(x, 0.0, "NONE")
    top.backward(torch.tensor([[length, 0.0]]))
    assert torch.allclose(top, torch.tensor([[0.6, 0.8]]))
    assert torch.allclose(x.grad, torch.tensor([[0.64, -0.48]]))


def test_equals_torch_where_they_agree():
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[0, :, 0, 0] = 0
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    weight = torch.arange(x.numel(), dtype=torch.float64).reshape(x.shape)
    (channel_l2_norm(ours, 0.01) * weight).sum().backward()
    (normalize(theirs, dim=1, eps=0.01) * weight).sum().backward()
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-12, atol=1e-9)


def test_autocast_computes_in_single_precision():
    x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        top = channel_l2_norm(x)
    assert top.dtype == torch.float32
    top.sum().backward()
    assert x.grad.dtype == torch.bfloat16


def test_unknown_mode():
    with pytest.raises(ValueError) as caught:
        channel_l2_norm(torch.zeros(1, 2), 0.0, "MEAN")
    assert str(caught.value) == 'eps_mode: expected one of NONE, SQRT, MAX, got "MEAN"'
