"""What every layer with kernels is put through, driven by the registry and the layers' own samples.

A layer takes part once its file has ``kernels = cuda.Kernels(__file__)``: its samples are run through
the torch path and through the kernels (on the host, or on a device), forward and backward.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from cortado.layers._engine import cuda, registry
from cortado.layers._engine.dispatch import impl
from cortado.layers._engine.samples import Sample
from torch import Tensor

SEED = 20160617
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Largest difference over the largest magnitude: two paths' roundings of one dtype.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.float16: 3e-3, torch.bfloat16: 2.4e-2}


def layers() -> list[registry.Entry]:
    """The registered layers whose file has kernels."""
    return [entry for entry in registry.entries() if hasattr(module(entry), "kernels")]


def module(entry: registry.Entry) -> ModuleType:
    return sys.modules[entry.layer.__module__]


def text(entry: registry.Entry) -> cuda.Text:
    return module(entry).kernels.text


@dataclass
class Case:
    """A sample in one dtype; ``misaligned`` bottoms begin one element after a 16-byte boundary."""

    entry: registry.Entry
    sample: Sample
    dtype: torch.dtype
    misaligned: bool = False
    device: str = "cpu"

    @property
    def name(self) -> str:
        return f"{self.entry.type_name} ({self.sample.name}) {self.dtype}"

    def bottoms(self) -> list[Tensor]:
        """Floating bottoms in the dtype; tables (those that get no gradient) never in half."""
        half = self.dtype in (torch.float16, torch.bfloat16)
        given, count = [], len(self.sample.bottoms)
        for i, bottom in enumerate(self.sample.bottoms):
            table = self.entry.layer.record(i, count).coordinates
            if bottom.is_floating_point():
                bottom = bottom.to(torch.float32 if half and table else self.dtype)
            bottom = bottom.to(self.device)
            given.append(_misaligned(bottom) if self.misaligned else bottom.clone())
        return given

    def results(self, compiled: bool = False) -> list[Tensor]:
        """Tops, then the gradients of the differentiable bottoms and of the layer's own blobs."""
        leaves = [
            b.requires_grad_(i in self.sample.differentiable) for i, b in enumerate(self.bottoms())
        ]
        shapes = tuple(tuple(leaf.shape) for leaf in leaves)
        layer = self.entry.layer(self.sample.params, shapes, torch.Generator().manual_seed(SEED))
        layer.to(self.device, self.dtype)
        run: Any = layer
        if compiled:
            torch._dynamo.reset()
            run = torch.compile(layer, fullgraph=True, backend="aot_eager")
        tops = run(*leaves)
        tops = tops if isinstance(tops, tuple) else (tops,)
        wanted = [leaf for leaf in leaves if leaf.requires_grad] + layer.blobs
        chosen = [tops[i] for i in self.sample.tops]
        if not wanted or not any(top.requires_grad for top in chosen):
            return [top.detach() for top in tops]
        generator = torch.Generator().manual_seed(SEED)
        given = [torch.randn(top.shape, generator=generator).to(top) for top in chosen]
        found = torch.autograd.grad(chosen, wanted, given, allow_unused=True)
        return [top.detach() for top in tops] + [x for x in found if x is not None]

    def expected(self) -> list[Tensor]:
        with impl("torch"):
            return self.results()


def _misaligned(x: Tensor) -> Tensor:
    storage = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)
    return storage[1:].view(x.shape).copy_(x)


def cases(
    entry: registry.Entry, dtypes: Sequence[torch.dtype] = DTYPES, size: str = "small"
) -> Iterator[Case]:
    for sample in entry.layer.samples(size, np.random.default_rng(SEED)):
        for dtype in dtypes:
            yield Case(entry, sample, dtype)


def empty(case: Case) -> Case:
    """The case with an empty batch."""
    layer, whole = case.entry.layer, case.sample.bottoms
    shared = [layer.record(i, len(whole)).shared for i in range(len(whole))]
    bottoms = tuple(x if kept else x[:0] for x, kept in zip(whole, shared, strict=True))
    sample = Sample(case.sample.params, bottoms, case.sample.differentiable, case.sample.tops, "empty")
    return Case(case.entry, sample, case.dtype)


def differences(found: Sequence[Tensor], expected: Sequence[Tensor], dtype: torch.dtype) -> list[str]:
    """In words where the results differ by more than the dtype's roundings; NaN only where expected."""
    if len(found) != len(expected):
        return [f"{len(found)} results, expected {len(expected)}"]
    problems = []
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            problems.append(
                f"result {i}: {a.dtype} {list(a.shape)}, expected {b.dtype} {list(b.shape)}"
            )
        elif not b.is_floating_point():
            if not torch.equal(a, b):
                problems.append(f"result {i}: {int((a != b).sum())} of {b.numel()} integers differ")
        else:
            problems += _difference(f"result {i}", a.double(), b.double(), TOLERANCE[dtype])
    return problems


def _difference(name: str, a: Tensor, b: Tensor, tolerance: float) -> list[str]:
    same = (a == b) | (a.isnan() & b.isnan())  # equal infinities too
    finite = b[b.isfinite()]
    scale = finite.abs().max() if finite.numel() else b.new_tensor(0.0)
    wrong = ~same & ~((a - b).abs() <= tolerance * scale)
    if not wrong.any():
        return []
    at = tuple(wrong.nonzero()[0].tolist())
    return [
        f"{name}: {int(wrong.sum())} of {b.numel()} differ, at {at}: {a[at]:.9g}, expected {b[at]:.9g}"
    ]


def compare(case: Case, run: Callable[[Case], list[Tensor]]) -> list[str]:
    """What is wrong with ``run``'s results of a case."""
    return differences(run(case), case.expected(), case.dtype)
