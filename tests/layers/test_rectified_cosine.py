import math

import numpy as np
import pytest
import torch
from cortado.layers.rectified_cosine import Params, RectifiedCosine, rectified_cosine
from suite import LayerSuite
from torch.nn.functional import cosine_similarity

A, B = torch.zeros(4, 6), torch.zeros(5, 6)


class TestRectifiedCosine(LayerSuite):
    layer = RectifiedCosine
    wrong = (
        ((A[0], B), "expected a [6] to be [P, D] or [N, P, D]"),
        ((A, B[:, :, None, None, None]), "expected b [5, 6, 1, 1, 1] to be [P, D] or [N, P, D]"),
        ((A, B[None]), "batch sizes differ: a [4, 6], b [1, 5, 6]"),
        ((A[None].expand(2, 4, 6), B[None]), "batch sizes differ: a [2, 4, 6], b [1, 5, 6]"),
        ((A, B[:, :5]), "dimensions differ: a [4, 6], b [5, 5]"),
        ((A.int(), B), "expected a to be floating point, got torch.int32"),
        (
            (A, B.double()),
            "expected one dtype and one device, got a torch.float32 on cpu, b torch.float64 on cpu",
        ),
    )

    def oracle(self, params, a, b):
        if a.ndim == 3:
            pairs = zip(a, b, strict=True)
            return (np.array([self.oracle(params, *pair)[0] for pair in pairs]).reshape(-1, 3, 5),)
        a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
        top = np.zeros((len(a), len(b)))
        for i, j in np.ndindex(top.shape):
            lengths = [max(math.sqrt(sum(x**2)), params.eps) for x in (a[i], b[j])]
            length = 1 if params.normalized else math.prod(lengths)
            top[i, j] = max(0, sum(a[i] * b[j]) / length) ** params.exponent
        return (top,)


def test_hand_computed():
    a = torch.tensor([[3.0, 4]], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([[0.0, 2], [-1, 0]], dtype=torch.float64, requires_grad=True)
    top = rectified_cosine(a, b, exponent=2)
    assert top.tolist() == [pytest.approx([0.64, 0])]
    top.sum().backward()
    # 2 cos (c(s) - c(r) cos) / |a| = 1.6 ((0, 1) - 0.8 (0.6, 0.8)) / 5
    assert a.grad.tolist() == [pytest.approx([-1.6 * 0.48 / 5, 1.6 * 0.36 / 5])]
    assert b.grad.tolist() == [pytest.approx([1.6 * 0.6 / 2, 0]), [0, 0]]


def test_a_cosine_of_zero_and_a_vector_of_zeros():
    a = torch.tensor([[1.0, 0], [0, 0]], requires_grad=True)
    top = rectified_cosine(a, torch.tensor([[0.0, 1]]))
    assert top.tolist() == [[0], [0]]
    top.sum().backward()
    assert not a.grad.any()


def test_unit_vectors_are_taken_as_they_are():
    a = torch.tensor([[2.0, 0]], requires_grad=True)
    top = rectified_cosine(a, torch.tensor([[3.0, 1]]), normalized=True)
    assert top.item() == 6
    top.backward()
    assert a.grad.tolist() == [[3, 1]]


@pytest.mark.parametrize("batch", [(), (3,)])
def test_equals_torch(batch):
    generator = torch.Generator().manual_seed(0)
    a, b = (
        torch.randn(*batch, n, 7, dtype=torch.float64, generator=generator).requires_grad_()
        for n in (5, 4)
    )
    ours = rectified_cosine(a, b, exponent=3)
    theirs = cosine_similarity(a[..., :, None, :], b[..., None, :, :], dim=-1).clamp(min=0) ** 3
    assert torch.allclose(ours, theirs, rtol=1e-12)
    found = torch.autograd.grad(ours, (a, b), torch.ones_like(ours))
    wanted = torch.autograd.grad(theirs, (a, b), torch.ones_like(ours))
    for x, y in zip(found, wanted, strict=True):
        assert torch.allclose(x, y, rtol=1e-10, atol=1e-12)


def test_only_one_side_learns():
    a = torch.ones(2, 3, requires_grad=True)
    b = torch.ones(4, 3)
    rectified_cosine(a, b).sum().backward()
    assert b.grad is None


def test_no_regions():
    assert rectified_cosine(A[:0], B).shape == (0, 5)
    assert rectified_cosine(A, B[:0]).shape == (4, 0)
    assert rectified_cosine(A[:, :0], B[:, :0]).tolist() == torch.zeros(4, 5).tolist()


def test_autocast_computes_in_single_precision():
    a = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        top = rectified_cosine(a, a)
    assert top.dtype == torch.float32
    top.sum().backward()
    assert a.grad.dtype == torch.bfloat16


def test_bounds():
    assert RectifiedCosine.infer(Params(), (4, 6, 1, 1), (5, 6)) == ((4, 5),)
