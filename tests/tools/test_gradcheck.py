import pytest
import torch
from cortado.tools.gradcheck import GradientError, caffe_check, directional


class Cube(torch.autograd.Function):
    """x^3 with a gradient of ``factor`` times the true one."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.save_for_backward(x)
        ctx.factor = factor
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return ctx.factor * 3 * x**2 * gradient, None


X = torch.linspace(-1, 2, 12, dtype=torch.float64).reshape(3, 4)


@pytest.mark.parametrize("check", [directional, caffe_check])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_a_true_gradient_passes_at_any_scale(check, scale):
    errors = check(lambda x: scale * Cube.apply(x, 1.0), [X])
    assert len(errors) == 1
    assert errors[0] < 1e-3


@pytest.mark.parametrize("check", [directional, caffe_check])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
@pytest.mark.parametrize("factor", [0.0, 0.9, -1.0, 1.01, float("nan")])
def test_a_false_gradient_is_caught_at_any_scale(check, scale, factor):
    with pytest.raises(GradientError, match="gradient is off for input 0 by"):
        check(lambda x: scale * Cube.apply(x, factor), [X])


def test_one_wrong_element_among_many_is_caught():
    def spoiled(x):
        wrong = torch.zeros_like(x)
        wrong[500] = 1
        return Cube.apply(x, 1.0 + 0.5 * wrong)

    x = torch.linspace(1, 2, 1000, dtype=torch.float64)
    with pytest.raises(GradientError):
        directional(spoiled, [x])


def test_each_input_is_judged_by_itself():
    def function(a, b):
        return 1e6 * a**2 + Cube.apply(b, 0.9)

    with pytest.raises(GradientError) as caught:
        directional(function, [X, X], wrt=(0, 1))
    assert str(caught.value) == "directional: gradient is off for input 1 by 0.1 (threshold 1e-05)"
    assert directional(function, [X, X], wrt=(0,))[0] < 1e-5


def test_only_the_chosen_tops_count():
    def function(x):
        return x**2, Cube.apply(x, 0.0)

    assert directional(function, [X], tops=(0,))[0] < 1e-5
    with pytest.raises(GradientError):
        directional(function, [X], tops=(1,))


def test_a_constant_has_no_gradient():
    def constant(x):
        return torch.zeros_like(x) * x

    assert directional(constant, [X]) == [0.0]
    assert caffe_check(constant, [X]) == [0.0]
    with pytest.raises(GradientError, match="by inf"):
        caffe_check(lambda x: x - x.detach(), [X * 0], step=1e-3, threshold=1e-3)


@pytest.mark.parametrize("kink_range", [0.02, 0.3])
def test_elements_at_a_kink_are_left_out(kink_range):
    x = torch.tensor([-2.0, -1.001, 0.5, 0.999, 2.0], dtype=torch.float64)

    def hinge(x):
        return torch.relu(x.abs() - 1)

    with pytest.raises(GradientError):
        caffe_check(hinge, [x])
    assert caffe_check(hinge, [x], kink=1.0, kink_range=kink_range)[0] < 1e-9


def test_scale_is_not_floored_at_one():
    with pytest.raises(GradientError, match="by 1 "):
        caffe_check(lambda x: 1e-5 * Cube.apply(x, 0.0), [X])


def test_inputs_are_left_as_they_were():
    x = X.clone()
    caffe_check(lambda x: x**2, [x])
    directional(lambda x: x**2, [x])
    assert torch.equal(x, X)
    assert not x.requires_grad


def test_single_precision_is_refused():
    for check in (directional, caffe_check):
        with pytest.raises(TypeError) as caught:
            check(lambda x: x, [X.float()])
        assert str(caught.value) == "expected input 0 to be float64, got torch.float32"
