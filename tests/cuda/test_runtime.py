"""The launch layer: what a plan checks, with neither GPU nor CuPy."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cortado.layers._engine import checks, cuda, dispatch

TEXT = """
// constant WIDTH: 1 2 4
/* extern "C" __global__ void not_this(int a) */
extern "C" __global__ void __launch_bounds__(256, 2)
scale(const scalar_t* __restrict__ x, scalar_t *y,  // in, out
      const acc_t* weight, const long long* index, int n, long long size, acc_t factor, bool flip) {
}
extern "C" __global__ void nothing() {}
"""


@pytest.fixture
def kernels(tmp_path: Path) -> cuda.Kernels:
    (tmp_path / "toy.cu").write_text(TEXT)
    return cuda.Kernels(str(tmp_path / "toy.py"))


def arguments(dtype: torch.dtype = torch.float32, **changes):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    given = {
        "x": torch.zeros(4, dtype=dtype),
        "y": torch.zeros(4, dtype=dtype),
        "weight": torch.zeros(4, dtype=wide),
        "index": torch.zeros(4, dtype=torch.int64),
        "n": 4,
        "size": 2**40,
        "factor": 0.5,
        "flip": True,
        "grid": 2,
        "block": (32, 4),
    }
    return given | changes


def test_signatures(kernels):
    scale = kernels.text.signatures["scale"]
    assert list(kernels.text.signatures) == ["scale", "nothing"]
    assert (scale.max_threads, scale.line) == (256, 4)
    assert [p.name for p in scale.parameters] == [
        *("x", "y", "weight", "index"),
        *("n", "size", "factor", "flip"),
    ]


@pytest.mark.parametrize(
    ("dtype", "scalar", "wide", "size"),
    [
        (torch.float32, "float", "float", 4),
        (torch.float64, "double", "double", 8),
        (torch.float16, "__half", "float", 4),
        (torch.bfloat16, "__nv_bfloat16", "float", 4),
    ],
)
def test_arguments_have_the_declared_order_type_and_width(kernels, dtype, scalar, wide, size):
    plan = kernels.plan("scale", **arguments(dtype))
    assert [a.ctype for a in plan.arguments] == [
        f"const {scalar}*",
        f"{scalar}*",
        f"const {wide}*",
        "const long long*",
        "int",
        "long long",
        wide,
        "bool",
    ]
    assert [len(a.pack()) for a in plan.arguments] == [8, 8, 8, 8, 4, 8, size, 1]
    assert plan.grid == (2, 1, 1)
    assert plan.block == (32, 4, 1)
    assert plan.constants == (("WIDTH", 1),)
    assert kernels.plan("scale", **arguments(constants={"WIDTH": 4})).constants == (("WIDTH", 4),)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.zeros(4, dtype=torch.int32)}, TypeError, "expected tensors of one floating type"),
        ({"y": torch.zeros(4).double()}, TypeError, "one floating type, got x torch.float32, y"),
        ({"index": torch.zeros(4, dtype=torch.int32)}, TypeError, "index: expected torch.int64"),
        ({"weight": torch.zeros(4).double()}, TypeError, "weight: expected torch.float32"),
        ({"x": torch.zeros(4, 2)[:, 0]}, ValueError, "x: expected a contiguous tensor"),
        ({"x": torch.zeros(4, device="meta")}, TypeError, "tensors on one device, got x on meta"),
        ({"n": 2**31}, cuda.PlanError, "n: 2147483648 does not fit int"),
        ({"n": 2.0}, cuda.PlanError, "n: expected a number for int, got 2.0"),
        ({"n": torch.zeros(1)}, cuda.PlanError, "n: expected a number for int"),
        ({"x": 3}, cuda.PlanError, "x: expected a tensor, got 3"),
        ({"block": 512}, cuda.PlanError, r"block \(512, 1, 1\) not within 256 threads"),
        ({"grid": (1, 2**16)}, cuda.PlanError, "beyond CUDA's limits"),
        ({"shared": 2**20}, cuda.PlanError, "bytes of shared memory"),
        ({"constants": {"WIDTH": 3}}, cuda.PlanError, "toy.cu declares no constant WIDTH = 3"),
        ({"extra": 1}, cuda.PlanError, r"missing \[\], not a parameter \['extra'\]"),
    ],
)
def test_what_does_not_fit_is_named(kernels, changes, error, message):
    with pytest.raises(error, match=message):
        kernels.plan("scale", **arguments(**changes))


def test_missing_arguments_and_kernels(kernels):
    given = arguments()
    del given["size"]
    with pytest.raises(cuda.PlanError, match=r"missing \['size'\]"):
        kernels.plan("scale", **given)
    with pytest.raises(cuda.PlanError, match=r"toy\.cu has no kernel scales"):
        kernels.plan("scales", **given)


def test_a_null_pointer_is_allowed(kernels):
    plan = kernels.plan("scale", **arguments(weight=None))
    assert plan.arguments[2].pack() == bytes(8)


def test_parameters_of_unknown_types_are_refused(tmp_path):
    (tmp_path / "toy.cu").write_text('extern "C" __global__ void kernel(size_t n) {}')
    with pytest.raises(cuda.PlanError, match="'size_t n' is of a type the launcher lacks"):
        _ = cuda.Kernels(str(tmp_path / "toy.py")).text


def test_nothing_is_launched_for_an_empty_grid(kernels):
    launched = []
    with cuda.executed_by(launched.append):
        kernels.launch("scale", **arguments(grid=(3, 0)))
        assert not launched
        kernels.launch("scale", **arguments())
    assert [plan.kernel for plan in launched] == ["scale"]


def test_lines_are_counted_by_file(kernels):
    full = kernels.text.full
    assert full.startswith('#line 1 "prelude.cu"\n')
    assert full.endswith(f'#line 1 "toy.cu"\n{TEXT}')


def test_compilers_errors():
    nvrtc = 'x\nknn.cu(12): error: identifier "y" is undefined\n 1 error'
    assert cuda.first_error(nvrtc) == 'knn.cu:12: error: identifier "y" is undefined'
    assert cuda.first_error("knn.cu:7:3: fatal error: no") == "knn.cu:7: fatal error: no"
    assert cuda.first_error("else") == "else"


def test_sizes():
    assert [cuda.blocks(n, 64) for n in (0, 1, 64, 65)] == [0, 1, 1, 2]
    assert cuda.threads(256) == 256
    with cuda.block_size(64):
        assert cuda.threads(256) == 64
    x = torch.zeros(65)[:64]
    assert [cuda.vector(n, x) for n in (8, 6, 7)] == [4, 2, 1]
    assert cuda.vector(8, x, torch.zeros(65)[1:]) == 1


def test_what_cupy_is_given(kernels, monkeypatch):
    """The one executor that needs a GPU, with CuPy and the stream replaced by recorders."""
    calls = {}

    def function(grid, block, args, shared_mem):
        calls["launch"] = (grid, block, shared_mem)
        calls["args"] = [(type(arg).__name__, arg.itemsize) for arg in args]

    def module(**given):
        calls["module"] = given
        return SimpleNamespace(compile=lambda: None, get_function=lambda name: function)

    fake = SimpleNamespace(
        RawModule=module,
        cuda=SimpleNamespace(
            Device=lambda index: nullcontext(),
            ExternalStream=lambda stream, index: nullcontext(
                calls.setdefault("stream", (stream, index))
            ),
            compiler=SimpleNamespace(CompileException=RuntimeError),
        ),
    )
    monkeypatch.setattr(cuda, "_cupy", lambda: fake)
    monkeypatch.setattr(cuda, "_cupy_problem", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=77))
    kernels.launch("scale", **arguments(torch.float16, shared=64, constants={"WIDTH": 4}))
    assert calls["launch"] == ((2, 1, 1), (32, 4, 1), 64)
    pointers, values = [("uint64", 8)] * 4, [("int32", 4), ("int64", 8), ("float32", 4), ("bool", 1)]
    assert calls["args"] == pointers + values
    assert calls["stream"] == (77, 0)
    assert calls["module"]["code"] == kernels.text.full
    macros = ("SCALAR=__half", "ACC=float", "INCLUDE=<cuda_fp16.h>")
    assert calls["module"]["options"] == (
        *("--std=c++17", *(f"-DCORTADO_{macro}" for macro in macros)),
        "-DWIDTH=4",
    )


class TestPaths:
    def test_cpu_tensors_take_the_torch_path(self):
        assert not dispatch.use_cuda(torch.zeros(1))
        with dispatch.impl("cuda"), pytest.raises(RuntimeError, match="needs CUDA tensors, got cpu"):
            dispatch.use_cuda(torch.zeros(1))

    def test_an_executor_takes_cpu_tensors(self):
        with cuda.executed_by(lambda plan: None):
            assert dispatch.use_cuda(torch.zeros(1))
            with dispatch.impl("torch"):
                assert not dispatch.use_cuda(torch.zeros(1))
        assert not dispatch.use_cuda(torch.zeros(1))

    def test_without_cupy_the_torch_path_runs_and_says_so(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.version, "cuda", "12.8")
        monkeypatch.setitem(sys.modules, "cupy", None)
        monkeypatch.setattr(dispatch, "_noted", False)
        cuda._cupy_problem.cache_clear()
        try:
            assert "pip install 'cortado[cuda12]'" in (cuda.problem() or "")
            with pytest.raises(cuda.CudaError, match="CuPy is not installed"):
                cuda.require()
            tensor = torch.zeros(1)
            monkeypatch.setattr(cuda, "takes", lambda tensor: True)
            with pytest.warns(UserWarning, match="in torch operations, not its kernels"):
                assert not dispatch.use_cuda(tensor)
            assert not dispatch.use_cuda(tensor)  # said once
        finally:
            cuda._cupy_problem.cache_clear()


class TestValueChecks:
    def test_on_the_cpu_at_once(self):
        checks.expect_finite("rois", torch.ones(3))
        with pytest.raises(ValueError, match="expected finite rois"):
            checks.expect_finite("rois", torch.tensor([1.0, float("nan")]))
        flag = checks.value_flag(torch.zeros(1))
        checks.raise_if(flag, "never")
        with pytest.raises(ValueError, match="bad"):
            checks.raise_if(flag + 1, "bad")

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_on_a_device_later(self):
        bad = torch.full((3,), float("inf"), device="cuda")
        torch.cuda.set_sync_debug_mode("error")
        try:
            checks.expect_finite("rois", bad)
        except ValueError:
            pass  # the flag had arrived already
        else:
            with pytest.raises(ValueError, match="expected finite rois"):
                checks.settle()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        with checks.checks(True), pytest.raises(ValueError, match="expected finite rois"):
            checks.expect_finite("rois", bad)
