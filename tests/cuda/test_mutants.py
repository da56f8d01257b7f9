"""The host runs can fail: faults planted in every kernel's text are caught, or explained there."""

from __future__ import annotations

import random
from pathlib import Path

import cuda_host
import cuda_mutants
import cuda_proof
import pytest
import torch
from cortado.layers._engine import cuda, kernel_text
from cuda_mutants import Mutant
from torch import Tensor

pytestmark = cuda_host.needs_compiler
layers = pytest.mark.parametrize("entry", cuda_proof.layers(), ids=lambda entry: entry.type_name)
SAMPLE = 12


def judge(entry, mutants: list[Mutant], record_property) -> None:
    verdict = cuda_mutants.judge_layer(entry, mutants)
    record_property("summary", f"{entry.type_name}: {verdict.report()}")
    assert not verdict.unexplained, verdict.report()


@layers
def test_a_sample(entry, record_property):
    mutants = cuda_mutants.of_layer(entry)
    judge(
        entry,
        random.Random(entry.type_name).sample(mutants, min(SAMPLE, len(mutants))),
        record_property,
    )


@pytest.mark.slow
@layers
def test_all(entry, record_property):
    judge(entry, cuda_mutants.of_layer(entry), record_property)


class PreludeUsers:
    """Each part of the prelude used once."""

    dtype = torch.float64
    kernels = cuda.Kernels(str(Path(__file__).with_name("prelude_users.cu")))

    def results(self) -> list[Tensor]:
        threads, found = cuda.threads(128), []
        for kernel, times in ("block_sums", 1), ("strided_sums", 1), ("turns", 1), ("copy", 3):
            x = 1 + torch.arange(times * threads, dtype=self.dtype)
            if kernel == "copy":
                x[2] = torch.inf
            found.append(torch.empty_like(x))
            self.kernels.launch(kernel, x=x, y=found[-1], n=x.numel(), grid=1, block=threads)
        return found


def test_the_prelude(record_property):
    users = PreludeUsers()
    mutants, verdicts = cuda_mutants.of_prelude(), []
    for order, threads in cuda_mutants.RUNS:  # what is right depends on the threads
        with cuda_host.on_host(order, threads):
            expected = users.results()
        verdict = cuda_mutants.judge(
            users.kernels.text, mutants, [users], [expected], [(order, threads)]
        )
        verdicts.append(verdict)
        mutants = verdict.unexplained
    total = len(verdicts[0].caught) + len(verdicts[0].survived)
    head = f"prelude: {total - len(mutants)} of {total} mutants caught or explained"
    report = "\n".join([head, *(f"  not caught: {mutant}" for mutant in mutants)])
    record_property("summary", report)
    assert not mutants, report


def faults(code: str) -> list[str]:
    return [mutant.fault for mutant in cuda_mutants.mutants(kernel_text.PRELUDE, code)]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("a = b[i];", ["[i] to [i + 1]", "[i] to [i - 1]"]),
        ("acc_t kept[KEEP], sum = 0;", []),
        ("    __shared__ acc_t row[64];", []),
        ("const int c = table[j];", ["[j] to [j + 1]", "[j] to [j - 1]"]),
        ("__syncthreads();", ["__syncthreads() dropped"]),
        ("if (i < n) return;  // a < b", ['"<" to "<="']),
        ("#define A (b < c)", []),
        ("const scalar_t* x = y; ++i;", []),
    ],
)
def test_rules(code, expected):
    assert faults(code) == expected
