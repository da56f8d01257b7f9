"""The host that stands for a GPU: it runs kernels rightly, and sees what is wrong in them."""

from __future__ import annotations

from pathlib import Path

import cuda_host
import pytest
import torch
from cortado.layers._engine import cuda
from cuda_host import ORDERS, HostError, on_host

pytestmark = cuda_host.needs_compiler

# One text with a kernel for each of these bodies: x[n] -> y[n].
BODIES = {
    "reverse": """
    __shared__ acc_t row[64];
    row[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = row[63 - threadIdx.x];""",
    "reverse_without_barrier": """
    __shared__ acc_t row[64];
    row[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = row[63 - threadIdx.x];""",
    "roll_doubled": """
    extern __shared__ acc_t row[];
    const int i = (blockIdx.x * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    row[threadIdx.y * blockDim.x + threadIdx.x] = 2 * acc_t(x[i]);
    __syncthreads();
    y[i] = row[threadIdx.y * blockDim.x + (threadIdx.x + 1) % blockDim.x];""",
    "down": "y[threadIdx.x] = __shfl_down_sync(ALL_LANES, acc_t(x[threadIdx.x]), 3);",
    "up": "y[threadIdx.x] = __shfl_up_sync(ALL_LANES, acc_t(x[threadIdx.x]), 3);",
    "xor_5": "y[threadIdx.x] = __shfl_xor_sync(ALL_LANES, acc_t(x[threadIdx.x]), 5);",
    "from_7": "y[threadIdx.x] = __shfl_sync(ALL_LANES, acc_t(x[threadIdx.x]), 7);",
    "from_1_of_8": "y[threadIdx.x] = __shfl_sync(ALL_LANES, acc_t(x[threadIdx.x]), 1, 8);",
    "down_of_4": "y[threadIdx.x] = __shfl_down_sync(ALL_LANES, acc_t(x[threadIdx.x]), 1, 4);",
    "count": """
    __shared__ int count;
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    const unsigned votes = __ballot_sync(ALL_LANES, threadIdx.x % 3 == 0);
    if (threadIdx.x % 32 == 0) atomicAdd(&count, __popc(votes));
    __syncthreads();
    y[threadIdx.x] = acc_t(count);""",
    "block_sums": """
    __shared__ acc_t scratch[32];
    const acc_t value = x[threadIdx.x];
    y[threadIdx.x] = block_sum(value, scratch) + block_sum(value, scratch);""",
    "strided_sums": """
    __shared__ acc_t scratch[256];
    const acc_t value = x[threadIdx.x];
    y[threadIdx.x] = strided_sum(value, scratch, 4) + strided_sum(value, scratch, 4);""",
    "round": "GRID_STRIDE(i, n) y[i] = scalar_t(acc_t(x[i]) * acc_t(1.00390625));",
    "copy_packs": "GRID_STRIDE(i, n / 4) store<4>(y + 4 * i, load<4>(x + 4 * i));",
    "skip_first": "if (threadIdx.x > 0) y[threadIdx.x] = acc_t(0);",
    "past_the_end": "y[threadIdx.x] = x[threadIdx.x + 1];",
    "before_the_start": "y[threadIdx.x] = x[int(threadIdx.x) - 1];",
    "past_shared": "__shared__ acc_t row[63]; row[threadIdx.x] = 0;",
    "past_dynamic_shared": "extern __shared__ acc_t row[]; row[threadIdx.x] = 0;",
    "barrier_for_40": "if (threadIdx.x < 40) __syncthreads();",
    "two_barriers": "if (threadIdx.x < 40)\n__syncthreads();\nelse\n__syncthreads();",
    "shuffle_for_40": "if (threadIdx.x < 40) __shfl_sync(ALL_LANES, 0, 1);",
    "overflow": "int i = 2147483647; y[0] = acc_t(i + n);",
    "no_end": "volatile int i = 1; while (i) {}",
}


def text(bodies: dict[str, str]) -> str:
    return "".join(
        f'extern "C" __global__ void {name}'
        f"(const scalar_t* __restrict__ x, scalar_t* __restrict__ y, int n) {{\n{body}\n}}\n"
        for name, body in bodies.items()
    )


@pytest.fixture
def run(tmp_path: Path):
    """Run a kernel on x: one block of 64 threads unless told otherwise."""
    (tmp_path / "toys.cu").write_text(text(BODIES))
    kernels = cuda.Kernels(str(tmp_path / "toys.py"))

    def run(kernel: str, x: torch.Tensor, order: str = "ascending", **launch) -> torch.Tensor:
        with on_host(order):
            y = torch.empty_like(x)
            kernels.launch(kernel, x=x, y=y, n=x.numel(), **{"grid": 1, "block": 64} | launch)
        return y

    return run


def test_barriers_and_shared_memory(run):
    x = torch.arange(64.0)
    for order in ORDERS:
        assert torch.equal(run("reverse", x, order), x.flip(0))
        assert run("reverse_without_barrier", x, order).isnan().any()


def test_dynamic_shared_memory_and_grids(run):
    x = torch.arange(24.0)
    for order in ORDERS:
        found = run("roll_doubled", x, order, grid=2, block=(4, 3), shared=48)
        assert torch.equal(found, 2 * x.view(6, 4).roll(-1, 1).reshape(-1))


@pytest.mark.parametrize(
    ("kernel", "source"),
    [
        ("down", lambda i: i + 3 if i < 29 else i),
        ("up", lambda i: i - 3 if i >= 3 else i),
        ("xor_5", lambda i: i ^ 5),
        ("from_7", lambda i: 7),
        ("from_1_of_8", lambda i: i // 8 * 8 + 1),
        ("down_of_4", lambda i: i + 1 if i % 4 < 3 else i),
    ],
)
def test_shuffles(run, kernel, source):
    expected = torch.tensor([float(source(i % 32) + i // 32 * 32) for i in range(64)])
    for order in ORDERS:
        assert torch.equal(run(kernel, torch.arange(64.0), order), expected)


def test_votes_and_atomics(run):
    for order in ORDERS:
        assert run("count", torch.zeros(64), order).eq(22).all()


@pytest.mark.parametrize("threads", [32, 96, 256])
def test_the_preludes_sums(run, threads):
    x = torch.arange(1.0, threads + 1)
    for order in ORDERS:
        assert run("block_sums", x, order, block=threads).eq(2 * x.sum()).all()
        if threads != 96:
            expected = 2 * x.view(-1, 4).sum(0).repeat(threads // 4)
            assert torch.equal(run("strided_sums", x, order, block=threads), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_round_as_torchs(run, dtype):
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    expected = (x.float() * 1.00390625).to(dtype)
    torch.testing.assert_close(run("round", x, grid=4), expected, rtol=0, atol=0, equal_nan=True)


def test_packs(run):
    x = torch.randn(64)
    assert torch.equal(run("copy_packs", x), x)
    with pytest.raises(HostError, match="misaligned"):
        run("copy_packs", torch.randn(65)[1:])


def test_what_is_not_written_is_nan(run):
    assert run("skip_first", torch.zeros(64))[0].isnan()


@pytest.mark.parametrize(
    ("kernel", "report", "launch"),
    [
        ("past_the_end", "heap-buffer-overflow", {}),
        ("before_the_start", "heap-buffer-overflow", {}),
        ("past_shared", "index 63 out of bounds", {}),
        ("past_dynamic_shared", "heap-buffer-overflow", {"shared": 252}),
        ("barrier_for_40", "__syncthreads reached by 40 of 64 threads", {}),
        ("two_barriers", "__syncthreads reached by", {}),
        ("shuffle_for_40", "not all lanes of the mask", {}),
        ("down", "not all lanes of the mask", {"block": 48}),
        ("overflow", "signed integer overflow", {}),
    ],
)
def test_faults_are_reported(run, kernel, report, launch):
    for order in ORDERS:
        with pytest.raises(HostError, match=report):
            run(kernel, torch.arange(64.0), order, **launch)


def test_a_kernel_without_end_is_stopped(run, monkeypatch):
    monkeypatch.setattr(cuda_host.Host, "seconds", 1)
    with pytest.raises(HostError, match="time limit"):
        run("no_end", torch.zeros(64))


def test_what_is_written_shares_no_memory(run, tmp_path):
    kernels, x = cuda.Kernels(str(tmp_path / "toys.py")), torch.zeros(8)
    with on_host(), pytest.raises(HostError, match="y shares memory with x"):
        kernels.launch("reverse", x=x, y=x[2:], n=6, grid=1, block=32)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("atomicAdd(y, x[threadIdx.x]);", "integer atomics of 32 or 64 bits"),
        ("\n    oops;", r"^wrong\.cu:3: error: .*oops"),
    ],
)
def test_what_does_not_compile(tmp_path, body, message):
    (tmp_path / "wrong.cu").write_text(text({"kernel": body}))
    kernels, x = cuda.Kernels(str(tmp_path / "wrong.py")), torch.zeros(8)
    with on_host(), pytest.raises(cuda_host.CompileError, match=message):
        kernels.launch("kernel", x=x, y=x.clone(), n=8, grid=1, block=32)
