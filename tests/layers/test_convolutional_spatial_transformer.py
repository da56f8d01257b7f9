import itertools
import math

import cuda_host
import numpy as np
import pytest
import torch
from cortado.layers.convolutional_spatial_transformer import (
    ConvolutionalSpatialTransformer,
    Params,
    ThetaMode,
    convolutional_spatial_transformer,
)
from suite import LayerSuite, close
from torch.nn.functional import grid_sample

U, THETA = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 4, 5)


class TestConvolutionalSpatialTransformer(LayerSuite):
    layer = ConvolutionalSpatialTransformer
    wrong = (
        ((U[0], THETA), "expected u [3, 4, 5] to be [N, C, H, W]"),
        ((U, THETA[0]), "expected theta [4, 4, 5] to be [N, C, H, W]"),
        ((U, THETA[:, :3]), "expected theta [2, 3, 4, 5] to have 4 or 6 channels"),
        ((U, THETA[:1]), "bottoms disagree on N, H or W: u [2, 3, 4, 5], theta [1, 4, 4, 5]"),
        ((U, THETA[..., :4]), "bottoms disagree on N, H or W: u [2, 3, 4, 5], theta [2, 4, 4, 4]"),
        ((U.long(), THETA), "expected u to be floating point, got torch.int64"),
        (
            (U, THETA.double()),
            "expected one dtype and one device, got u torch.float32 on cpu, theta torch.float64 on cpu",
        ),
    )

    def samples(self, size="small"):
        """At paper size 5 x 5 alone: the float64 check of 3 x 3 takes seconds and shows no more."""
        return super().samples(size)[-1:] if size == "paper" else super().samples(size)

    def oracle(self, params, u, theta):
        n, channels, height, width = u.shape
        k = params.kernel_size
        one = 1 if params.theta_mode is ThetaMode.RELATIVE else 0
        top = np.zeros((n, channels, k * height, k * width))
        for m, i, j, row, column in itertools.product(
            range(n), range(height), range(width), range(k), range(k)
        ):
            t = theta[m, :, i, j]
            t1, t2, t3, t4, t5, t6 = t if len(t) == 6 else (t[0], t[1], 0, t[2], t[3], 0)
            dx, dy = column - (k - 1) / 2, row - (k - 1) / 2
            x = j + (t1 + one) * dx + t2 * dy + t3
            y = i + t4 * dx + (t5 + one) * dy + t6
            for v, h in itertools.product(range(height), range(width)):
                share = max(0, 1 - abs(x - h)) * max(0, 1 - abs(y - v))
                top[m, :, i * k + row, j * k + column] += share * u[m, :, v, h]
        return (top,)

    def test_accuracy_in_single_precision_at_paper_width(self):
        (sample,) = self.samples("paper")
        u, theta = (x.to(self.device)[:, :4] for x in sample.bottoms)
        exact = convolutional_spatial_transformer(u, theta, 5)
        found = convolutional_spatial_transformer(u.float(), theta.float(), 5)
        close(found, exact, 2 * 311 * 1.2e-7, "top")


def test_zero_theta_gives_the_patches():
    u = torch.arange(12, dtype=torch.float64).view(1, 1, 3, 4)
    top = convolutional_spatial_transformer(u, torch.zeros(1, 4, 3, 4).double(), 3)
    patches = torch.nn.functional.unfold(u, 3, padding=1).view(3, 3, 3, 4)
    close(top[0, 0], patches.permute(2, 0, 3, 1).reshape(9, 12), 1e-14, "top")


def test_absolute_zero_reads_the_centre():
    u = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    top = convolutional_spatial_transformer(u, torch.zeros(2, 6, 4, 5).double(), 2, "ABSOLUTE")
    close(top, u.repeat_interleave(2, 2).repeat_interleave(2, 3), 1e-14, "top")


def test_quarter_turn():
    u = torch.arange(9, dtype=torch.float64).view(1, 1, 3, 3)
    theta = torch.tensor([0, -1, 1, 0], dtype=torch.float64).view(1, 4, 1, 1).expand(1, 4, 3, 3)
    top = convolutional_spatial_transformer(u, theta, 3, "ABSOLUTE")
    close(top[0, 0, 3:6, 3:6], [[2, 5, 8], [1, 4, 7], [0, 3, 6]], 1e-14, "the middle's patch")


def test_translation_is_in_cells_and_zero_outside():
    u = torch.arange(1, 5, dtype=torch.float64).view(1, 1, 1, 4)
    theta = torch.zeros(1, 6, 1, 4, dtype=torch.float64)
    theta[:, 2] = 0.5
    assert convolutional_spatial_transformer(u, theta, 1)[0, 0, 0].tolist() == [1.5, 2.5, 3.5, 2]
    theta[:, 2], theta[:, 5] = 0, -0.25
    close(convolutional_spatial_transformer(u, theta, 1), 0.75 * u, 1e-14, "top")
    theta[:, 5] = -9
    assert not convolutional_spatial_transformer(u, theta, 1).any()


def test_even_kernels_are_centred_between_cells():
    u = torch.arange(4, dtype=torch.float64).view(1, 1, 1, 4)
    theta = torch.zeros(1, 4, 1, 4, dtype=torch.float64)
    top = convolutional_spatial_transformer(u, theta, 2)[0, 0]
    close(top[0], 0.5 * torch.tensor([0, 0.5, 0.5, 1.5, 1.5, 2.5, 2.5, 1.5]), 1e-14, "row")


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_groups_of_channels_change_nothing(threads, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    u = torch.randn(1, 6, 5, 7, dtype=torch.float64, generator=generator).requires_grad_()
    theta = torch.randn(1, 6, 5, 7, dtype=torch.float64, generator=generator).requires_grad_()
    given = torch.randn(1, 6, 15, 21, dtype=torch.float64, generator=generator)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    top = convolutional_spatial_transformer(u, theta, 3)
    found = torch.autograd.grad(top, (u, theta), given)
    theirs = _by_grid_sample(u, theta, 3)
    close(top.detach(), theirs.detach(), 1e-13, "top")
    for a, b in zip(found, torch.autograd.grad(theirs, (u, theta), given), strict=True):
        close(a, b, 1e-13, "gradient")


def _by_grid_sample(u, theta, k):
    n, _, height, width = u.shape
    d = torch.arange(k, dtype=u.dtype) - (k - 1) / 2
    dy, dx = d[:, None, None], d
    t = [theta[:, c].view(n, height, 1, width, 1) for c in range(6)]
    x = torch.arange(width)[:, None] + (1 + t[0]) * dx + t[1] * dy + t[2]
    y = torch.arange(height).view(-1, 1, 1, 1) + t[3] * dx + (1 + t[4]) * dy + t[5]
    grid = torch.stack((2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1), -1)
    return grid_sample(u, grid.view(n, k * height, k * width, 2), align_corners=True)


def test_only_the_wanted_gradients():
    u, theta = torch.randn(1, 2, 3, 4), torch.randn(1, 4, 3, 4)
    for wanted in (u, theta):
        wanted.requires_grad_()
        convolutional_spatial_transformer(u, theta, 3).sum().backward()
        assert wanted.grad.isfinite().all()
        wanted.requires_grad_(False)


def test_empty_maps():
    for shape in ((0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5)):
        u = torch.zeros(shape, requires_grad=True)
        theta = torch.zeros(shape[0], 4, *shape[2:], requires_grad=True)
        top = convolutional_spatial_transformer(u, theta, 3)
        assert top.shape == (*shape[:2], 3 * shape[2], 3 * shape[3])
        top.sum().backward()
        assert u.grad.shape == u.shape
        assert not theta.grad.any()


@cuda_host.needs_compiler
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, -1e30])
def test_points_anywhere_by_both_paths(value):
    generator = torch.Generator().manual_seed(2)
    u = torch.randn(2, 3, 4, 5, generator=generator).requires_grad_()
    theta = torch.full((2, 6, 4, 5), 0.3)
    theta[0, 0, 1, 1] = theta[0, 2, 2, 2] = theta[1, 4, 3, 3] = theta[1, 5, 0, 4] = value
    theta.requires_grad_()

    def results():
        top = convolutional_spatial_transformer(u, theta, 2)
        by_u, by_theta = torch.autograd.grad(top, (u, theta), torch.ones_like(top))
        # which parts of a location's gradient are NaN, where theta is, is up to BLAS
        return top.detach(), by_u, by_theta.where(theta.isfinite().all(1, keepdim=True), 0)

    with cuda_host.on_host("random"):
        found = results()
    top, u_gradient, _ = expected = results()
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=0, atol=1e-5)
    assert u_gradient.isfinite().all()
    assert int((~top.isfinite()).sum()) == (0 if math.isfinite(value) else 4 * 4 * 3)


def test_options_are_checked():
    with pytest.raises(ValueError, match="kernel_size: expected at least 1, got 0"):
        convolutional_spatial_transformer(U, THETA, 0)
    with pytest.raises(ValueError, match='theta_mode: expected one of ABSOLUTE, RELATIVE, got "x"'):
        convolutional_spatial_transformer(U, THETA, 3, "x")


def test_params():
    assert Params().theta_mode is ThetaMode.RELATIVE
