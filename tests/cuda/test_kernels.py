"""Every layer's kernels, by the registry: run on the host, compiled for devices, planned at full size.

A layer with kernels needs no test of its own here: its samples are what is run.
"""

from __future__ import annotations

import cuda_host
import cuda_proof
import pytest
import torch
from cortado.layers._engine import cuda
from cortado.layers._engine.dispatch import impl
from cortado.tools import kernels
from cuda_proof import DTYPES, Case

ENTRIES = cuda_proof.layers()
layers = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.type_name)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).split(".")[1])

# Every order of threads, several sizes of blocks (None: the layer's own)
RUNS = (("ascending", None), ("descending", 32), ("random", 64), ("random", 256))


def check(case: Case, order: str, threads: int | None) -> None:
    expected = case.expected()
    with cuda_host.on_host(order, threads) as host:
        found = case.results()
    problems = cuda_proof.differences(found, expected, case.dtype)
    assert not problems, f"{case.name}, {order}, {threads} threads: {problems}"
    assert host.plans or case.sample.name == "empty" or not _has_kernel(case)


def _has_kernel(case: Case) -> bool:
    """Some of a layer's parameters may be the torch path's alone: the layer says so."""
    covers = getattr(cuda_proof.module(case.entry), "covers", None)
    return covers is None or covers(case.sample.params)


@cuda_host.needs_compiler
@dtypes
@layers
def test_on_the_host(entry, dtype):
    for case in cuda_proof.cases(entry, [dtype]):
        for order, threads in RUNS:
            check(case, order, threads)


@cuda_host.needs_compiler
@layers
def test_odd_tensors(entry):
    for case in cuda_proof.cases(entry, [torch.float32]):
        check(Case(entry, case.sample, case.dtype, misaligned=True), "random", None)
    check(cuda_proof.empty(case), "ascending", None)


# Dynamo makes an instance of a Function, for its context
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@cuda_host.needs_compiler
@layers
def test_compiled(entry):
    """A whole graph runs the kernels, forward and backward, for the same bits."""
    case = next(case for case in cuda_proof.cases(entry, [torch.float32]) if _has_kernel(case))
    with cuda_host.on_host() as host:
        wanted = case.results()
        eager = len(host.plans)
        found = case.results(compiled=True)
    assert [plan.kernel for plan in host.plans[:eager]] == [plan.kernel for plan in host.plans[eager:]]
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


@layers
def test_plans_at_paper_size(entry):
    """Forward and backward are planned, and fit CUDA's limits; nothing is computed."""
    planned: list[cuda.Plan] = []
    for case in cuda_proof.cases(entry, [torch.float32], "paper"):
        with cuda.executed_by(planned.append), impl("cuda"):
            case.results()
    assert planned
    for plan in planned:
        assert not plan.is_empty
        signature = plan.text.signatures[plan.kernel]
        for parameter, argument in zip(signature.parameters, plan.arguments, strict=True):
            assert argument.name == parameter.name
            assert argument.is_pointer == parameter.pointer
            assert len(argument.pack()) == (8 if parameter.pointer else WIDTHS[argument.ctype])


WIDTHS = {"int": 4, "unsigned": 4, "long long": 8, "bool": 1, "float": 4, "double": 8}


@pytest.mark.skipif(kernels.compiler() is None, reason="neither NVRTC nor nvcc is installed")
@layers
def test_float32_does_not_spill(entry):
    text = cuda_proof.text(entry)
    for build in kernels.builds(("sm_80", "sm_90"), (torch.float32,)):
        if build.text.path != text.path:
            continue
        used = kernels.usage(build, kernels.compiler())
        assert {usage.kernel for usage in used} == set(text.signatures)
        assert not [usage for usage in used if usage.spilled], build.constants


@pytest.mark.gpu
@pytest.mark.skipif(not cuda.available(), reason=f"no kernels here: {cuda.problem()}")
@dtypes
@layers
def test_on_a_device(entry, dtype):
    for case in cuda_proof.cases(entry, [dtype]):
        expected = case.expected()
        for misaligned in (False, True):
            on_device = Case(entry, case.sample, dtype, misaligned, "cuda")
            with impl("cuda"):
                found, again = on_device.results(), on_device.results()
            assert all(
                torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(found, again, strict=True)
            )
            assert not cuda_proof.differences([x.cpu() for x in found], expected, dtype), case.name
