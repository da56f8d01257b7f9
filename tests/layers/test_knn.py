import subprocess
import sys

import cuda_host
import numpy as np
import pytest
import torch
from cortado.layers import _nearest as module
from cortado.layers._engine.checks import BlobError
from cortado.layers.knn import KNN, Params, knn, there_and_back
from suite import LayerSuite

QUERY, REFERENCE = torch.zeros(2, 3, 5), torch.zeros(2, 3, 2, 4)


class TestKNN(LayerSuite):
    layer = KNN
    wrong = (
        ((QUERY[0], REFERENCE), "expected query [3, 5] to be [N, C, P]"),
        ((QUERY, REFERENCE[0, 0]), "expected reference [2, 4] to be [N, C, H, W] or [N, C, R]"),
        ((QUERY, REFERENCE[:1]), "batch sizes differ: query [2, 3, 5], reference [1, 3, 2, 4]"),
        (
            (QUERY, REFERENCE[:, :2]),
            "bottoms disagree on channels: query [2, 3, 5], reference [2, 2, 2, 4]",
        ),
        ((QUERY, REFERENCE), "k is 9, but reference [2, 3, 2, 4] has 8 features", Params(9)),
        ((QUERY, REFERENCE[..., :0]), "k is 1, but reference [2, 3, 2, 0] has 0 features"),
        ((QUERY, REFERENCE, torch.zeros(3, 1)), "expected num_query [3, 1] to be [2, 1]"),
        (
            (QUERY, REFERENCE),
            "use_all_ref: false needs a fourth bottom with the number of valid references",
            Params(use_all_ref=False),
        ),
        ((QUERY.long(), REFERENCE.long()), "expected query to be floating point, got torch.int64"),
        (
            (QUERY, REFERENCE.half()),
            "expected one dtype and one device, got query torch.float32 on cpu, "
            "reference torch.float16 on cpu",
        ),
    )

    def oracle(self, params, query, reference, *counts):
        n, _, p = query.shape
        reference = reference.reshape(*reference.shape[:2], -1)
        distance, index = np.full((n, params.k, p), np.inf), np.full((n, params.k, p), -1)
        for m in range(n):
            queries = int(counts[0][m, 0]) if counts and not params.use_all_query else p
            valid = int(counts[1][m, 0]) if len(counts) > 1 and not params.use_all_ref else None
            for i in range(queries):
                away = [np.linalg.norm(query[m, :, i] - r) for r in reference[m].T[:valid]]
                for j, (d, at) in enumerate(
                    sorted(zip(away, range(len(away)), strict=True))[: params.k]
                ):
                    distance[m, j, i], index[m, j, i] = d, at + params.index_base
        return distance, index


def brute(query, reference, k):
    """By differences in float64, rounded to the features' type, the lowest index first."""
    differences = query.double()[:, :, None] - reference.flatten(2).double()[..., None]
    distance = differences.square().sum(1).sqrt().to(query.dtype)
    distance, index = distance.sort(dim=1, stable=True)
    return distance[:, :k], index[:, :k]


def equal(found, wanted):
    return all(
        torch.equal(a.nan_to_num(-9), b.nan_to_num(-9)) for a, b in zip(found, wanted, strict=True)
    )


def features(kind, n, channels, p, r, generator):
    query, reference = (torch.randn(n, channels, size, generator=generator) for size in (p, r))
    if kind == "duplicates":
        reference = reference[:, :, torch.randint(0, max(2, r // 10), (r,), generator=generator)]
        query[:, :, :3] = reference[:, :, :3]
    elif kind == "ties":
        query, reference = query.round(), reference.round()
    elif kind == "far from the origin":
        query, reference = query + 1e5, reference + 1e5
    elif kind == "two far clusters":
        sides = [torch.randint(-1, 2, (1, 1, size), generator=generator) for size in (p, r)]
        query, reference = query + 1e5 * sides[0], reference + 1e5 * sides[1]
    elif kind == "all the same":
        query, reference = query * 0, reference * 0
    elif kind == "tiny but for one":
        query, reference = query * 1e-22, reference * 1e-22
        query[0, :, 0] = reference[0, :, 0] = 1e15
    elif kind == "huge":
        query, reference = query * 1e30, reference * 1e30
    elif kind == "not finite":
        reference[:, 0, ::5], reference[:, 0, 1::7] = torch.nan, torch.inf
    return query, reference


kinds = pytest.mark.parametrize(
    "kind",
    [
        "normal",
        "duplicates",
        "ties",
        "far from the origin",
        "two far clusters",
        "all the same",
        "tiny but for one",
        "huge",
        "not finite",
    ],
)


@kinds
@pytest.mark.parametrize("k", [1, 3, 17])
def test_exact(kind, k):
    generator = torch.Generator().manual_seed(k)
    for n, channels, p, r in ((1, 3, 7, 40), (3, 5, 20, 2500), (2, 8, 900, 50), (2, 1, 9, 17)):
        query, reference = features(kind, n, channels, p, r, generator)
        assert equal(knn(query, reference, k), brute(query, reference, k))


@cuda_host.needs_compiler
@kinds
def test_kernels_are_exact(kind):
    generator = torch.Generator().manual_seed(0)
    for n, channels, p, r, k in ((1, 5, 4, 40, 1), (1, 3, 3, 17, 17)):
        query, reference = features(kind, n, channels, p, r, generator)
        with cuda_host.on_host("random"):
            found = knn(query, reference, k)
        assert equal(found, brute(query, reference, k))


def test_all_references_in_order():
    generator = torch.Generator().manual_seed(0)
    query, reference = features("duplicates", 1, 4, 30, 1100, generator)
    assert equal(knn(query, reference, 1100), brute(query, reference, 1100))


def test_tiles_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    query, reference = features("duplicates", 3, 6, 50, 300, generator)
    wanted = brute(query, reference, 4)
    for queries, references, block, elements in ((7, 32, 8, 64), (1, 16, 16, 1), (64, 300, 1, 10**9)):
        monkeypatch.setattr(module, "QUERIES", queries)
        monkeypatch.setattr(module, "REFERENCES", references)
        monkeypatch.setattr(module, "BLOCK", block)
        monkeypatch.setattr(module, "ELEMENTS", elements)
        assert equal(knn(query, reference, 4), wanted)


def test_reduced_precision_products_change_nothing():
    generator = torch.Generator().manual_seed(0)
    query, reference = features("normal", 1, 128, 40, 600, generator)
    torch.set_float32_matmul_precision("medium")
    try:
        found = knn(query, reference, 3)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert equal(found, brute(query, reference, 3))


def test_autocast_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    query, reference = features("normal", 1, 128, 40, 600, generator)
    with torch.autocast("cpu", torch.bfloat16):
        found = knn(query, reference, 3)
    assert equal(found, brute(query, reference, 3))


def one_way_and_the_other(first, second):
    """By differences in float64."""
    there = [x[0, 0] for x in brute(first.T[None], second.T[None], 1)]
    back = brute(second.T[None], first.T[None], 1)[1][0, 0]
    return *there, back[there[1]]


@kinds
def test_there_and_back(kind):
    generator = torch.Generator().manual_seed(0)
    for channels, p, r in ((3, 7, 40), (5, 20, 2500), (8, 2100, 50), (1, 9, 17), (4, 1, 1)):
        first, second = (x[0].T for x in features(kind, 1, channels, p, r, generator))
        if p == 9:
            first = first.contiguous()
        assert equal(there_and_back(first, second), one_way_and_the_other(first, second))


def test_there_and_back_in_parts(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    first, second = (x[0].T for x in features("duplicates", 1, 6, 170, 300, generator))
    second[40:90] = torch.nan  # more than a part
    second[90::11], first[::7] = torch.inf, torch.nan
    wanted = one_way_and_the_other(first.nan_to_num(torch.inf), second)
    sizes = ((32, 64, 16, 100), (16, 32, 4, 1), (64, 300, 8, 10**9))
    for queries, references, block, back in sizes:
        monkeypatch.setattr(module, "QUERIES", queries)
        monkeypatch.setattr(module, "REFERENCES", references)
        monkeypatch.setattr(module, "BLOCK", block)
        monkeypatch.setattr(module, "BACK", back)
        for part in (1, 2**20):  # of so many that two products are faster
            monkeypatch.setattr(module, "PART", part)
            distance, index, returned = there_and_back(first, second)
            told = ~first.isnan().any(1)
            assert equal((distance[told], index[told], returned[told]), [x[told] for x in wanted])
            assert distance[~told].isnan().all()
            assert not index[~told].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_there_and_back_of_other_types(dtype):
    generator = torch.Generator().manual_seed(0)
    first, second = (x[0].T.to(dtype) for x in features("normal", 1, 8, 40, 600, generator))
    distance, index, back = there_and_back(first, second)
    wanted = knn(first.T[None], second.T[None])
    assert distance.dtype == dtype
    assert torch.equal(distance, wanted[0][0, 0])
    assert torch.equal(index, wanted[1][0, 0])
    assert torch.equal(back, knn(second.T[None], first.T[None])[1][0, 0, index])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(there_and_back(first, second)[1], index)


def test_what_there_and_back_refuses():
    some = torch.zeros(3, 2)
    with pytest.raises(BlobError, match=r"k is 1, but reference \[1, 2, 0\] has 0 features"):
        there_and_back(some, some[:0])
    with pytest.raises(BlobError, match=r"k is 1, but reference \[1, 2, 0\] has 0 features"):
        there_and_back(some[:0], some)
    with pytest.raises(BlobError, match="bottoms disagree on channels"):
        there_and_back(some, some[:, :1])
    with pytest.raises(TypeError, match="expected one dtype and one device"):
        there_and_back(some, some.half())
    learning = torch.rand(3, 2, requires_grad=True)
    assert not there_and_back(learning, some)[0].requires_grad


def test_half_inputs_are_ranked_in_single_precision():
    generator = torch.Generator().manual_seed(0)
    query, reference = features("normal", 1, 8, 40, 600, generator)
    for dtype in (torch.float16, torch.bfloat16):
        distance, index = knn(query.to(dtype), reference.to(dtype), 3)
        wanted = brute(query.to(dtype).float(), reference.to(dtype).float(), 3)
        assert distance.dtype == dtype
        assert equal((distance, index), (wanted[0].to(dtype), wanted[1]))


def test_a_query_that_is_not_finite():
    query, reference = torch.zeros(1, 2, 3), torch.zeros(1, 2, 9)
    query[0, 1, 0], query[0, 0, 2] = torch.nan, torch.inf
    distance, index = knn(query, reference, 2)
    assert distance[0, :, 1].tolist() == [0, 0]
    assert distance[0, :, ::2].isnan().all()
    assert index[0].T.tolist() == [[0, 1]] * 3


def test_index_is_the_cell_of_a_map():
    reference = torch.arange(6.0).view(1, 1, 2, 3)
    assert knn(torch.tensor([[[4.1, 1.9]]]), reference)[1].tolist() == [[[4, 2]]]
    assert knn(torch.tensor([[[4.1, 1.9]]]), reference, index_base=1)[1].tolist() == [[[5, 3]]]


def test_padding():
    query, reference = torch.rand(2, 3, 4), torch.rand(2, 3, 5)
    distance, index = knn(
        query, reference, 3, torch.tensor([[4], [1]]), torch.tensor([[2.0], [5.0]]), 1
    )
    assert (index == -1).int().tolist() == [[[0] * 4, [0] * 4, [1] * 4], [[0, 1, 1, 1]] * 3]
    assert torch.equal(distance.isinf(), index == -1)
    assert index.max() <= 5


def test_padded_queries_get_no_gradient():
    query, reference = torch.rand(1, 3, 4, requires_grad=True), torch.rand(1, 3, 5, requires_grad=True)
    distance, _ = knn(query, reference, 2, torch.tensor([[2]]))
    distance[:, :, :2].sum().backward()
    assert not query.grad[..., 2:].any()
    assert query.grad.isfinite().all()
    padded = torch.autograd.grad(
        knn(query, reference, 2, torch.tensor([[0]]))[0].sum(), (query, reference)
    )
    assert not any(gradient.any() for gradient in padded)


def test_gradient_at_distance_zero_and_at_shared_references():
    query = torch.tensor([[[1.0, 4.0, 8.0]]], requires_grad=True)
    reference = torch.tensor([[[1.0, 6.0]]], requires_grad=True)
    knn(query, reference)[0].backward(torch.tensor([[[1.0, 2.0, 4.0]]]))
    assert query.grad.tolist() == [[[0, -2, 4]]]
    assert reference.grad.tolist() == [[[0, -2]]]


def test_empty():
    for n, p in ((0, 3), (2, 0)):
        query = torch.zeros(n, 4, p, requires_grad=True)
        distance, index = knn(query, torch.zeros(n, 4, 7), 2)
        assert distance.shape == index.shape == (n, 2, p)
        distance.sum().backward()
        assert query.grad.shape == query.shape
    distance, index = knn(torch.zeros(1, 0, 2), torch.zeros(1, 0, 3), 2)
    assert (distance.tolist(), index.tolist()) == ([[[0, 0]] * 2], [[[0, 0], [1, 1]]])


def test_k_is_checked():
    with pytest.raises(ValueError, match="k: expected at least 1, got 0"):
        knn(QUERY, REFERENCE, 0)


MEMORY = """
import torch
from cortado.layers.knn import knn
torch.set_num_threads(2)
query, reference = torch.randn(1, 128, 3000), torch.randn(1, 128, 88, 250)
knn(query[:, :, :100], reference[:, :, :10])
def status(field):
    for line in open("/proc/self/status"):
        if line.startswith(field):
            return int(line.split()[1]) / 1024
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
knn(query, reference, 5)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_at_paper_size():
    def measured():
        run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
        return float(run.stdout)

    # What else becomes resident meanwhile (huge pages, code) only adds to it: the least counts.
    assert any(measured() < 64 for _ in range(3))
