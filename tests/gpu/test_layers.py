"""Every layer of the papers, and every other with kernels, on a CUDA device: its whole LayerSuite.

The suites are those of ``tests/layers``, on either path; besides, what only a device can show. A
layer takes part by having a suite: there is nothing to add here.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import device
import pytest
import torch
from cortado.layers._engine import checks, cuda, registry
from cortado.layers._engine.dispatch import impl
from cortado.layers._engine.layer import Layer
from cortado.layers._engine.samples import Sample
from suite import LayerSuite, close
from torch import Tensor

pytestmark = [pytest.mark.gpu, device.needed]
LAYERS = Path(__file__).resolve().parent.parent / "layers"


class OnDevice(LayerSuite):
    """What a layer's suite has otherwise, and besides, on a CUDA device."""

    device = device.DEVICE
    plain: ClassVar[type[LayerSuite]]

    @pytest.fixture(autouse=True)
    def _forced_path(self) -> Iterator[None]:
        with device.path(self.path):
            yield

    def results(self, sample: Sample, bottoms: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The tops, and the gradients where there are any."""
        if sample.differentiable:
            return self.gradients(sample, bottoms)
        return self.run(sample.params, bottoms)

    def test_wrong_bottoms(self, case: tuple[Any, ...]) -> None:
        bottoms, message, *params = case
        home = torch.empty(0, device=self.device).device
        with checks.checks(True):
            super().test_wrong_bottoms((bottoms, message.replace("on cpu", f"on {home}"), *params))

    def test_wrong_bottoms_raise_in_the_end(self, case: tuple[Any, ...]) -> None:
        """Without a wait for the device: at once, or when the checks are settled."""
        bottoms, _, *params = case
        layer = self.layer(params[0] if params else self.samples()[0].params)

        def run() -> None:
            layer(*(x.to(self.device) for x in bottoms))
            checks.settle()

        with pytest.raises((ValueError, TypeError)):
            run()

    def test_twice_the_same_bits(self) -> None:
        """With torch's deterministic algorithms too, unless torch itself says that it has none."""
        try:
            with device.deterministic():
                super().test_twice_the_same_bits()
        except RuntimeError as error:
            if self.path == "cuda" or device.ALERT not in str(error):
                raise
        else:
            super().test_twice_the_same_bits()

    def test_as_on_the_cpu(self, dtype: torch.dtype) -> None:
        for sample in self.samples():
            self._as_on_the_cpu(sample, dtype, 4 * self.tolerance[dtype])

    def test_as_on_the_cpu_at_paper_size(self) -> None:
        for sample in self.samples("paper"):
            self._as_on_the_cpu(sample, torch.float64, 1e-11)

    def _as_on_the_cpu(self, sample: Sample, dtype: torch.dtype, tolerance: float) -> None:
        found = self.results(sample, self.bottoms(sample, dtype))
        there = type("There", (OnDevice, self.plain), {"device": "cpu"})()
        with impl("torch"):
            wanted = there.results(sample, there.bottoms(sample, dtype))
        for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
            close(a, b.double(), tolerance, f"{sample.name} result {i}")

    def test_another_stream(self) -> None:
        for sample in self.samples():
            bottoms = self.bottoms(sample, torch.float32)
            wanted = self.results(sample, bottoms)
            with device.busy_stream() as late:
                found = self.results(sample, late(bottoms))
            for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
                close(a, b, 2 * self.tolerance[torch.float32], f"{sample.name} result {i}")

    def test_the_last_device(self) -> None:
        last = device.last_device()
        for sample in self.samples():
            wanted = self.results(sample, self.bottoms(sample, torch.float32))
            self.device = last
            found = self.results(sample, self.bottoms(sample, torch.float32))
            self.device = device.DEVICE
            for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
                assert a.device == torch.device(last)
                close(a, b, 2 * self.tolerance[torch.float32], f"{sample.name} result {i}")


class WithKernels(OnDevice):
    """What holds of the kernels besides."""

    def test_no_wait_for_the_device(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for sample in self.samples():
            bottoms = self.bottoms(sample, torch.float32)
            layer = type(self).made(self, sample.params, bottoms)
            monkeypatch.setattr(self, "made", lambda *_, layer=layer: layer)  # parameters' copies wait
            given = [torch.ones_like(top) for top in self.run(sample.params, bottoms)]
            self._given(sample, bottoms, given)  # compiles
            device.synchronize()
            with device.no_synchronisation():
                self._given(sample, bottoms, given)
        checks.settle()

    @pytest.mark.parametrize("unit", ["bytes", "elements"])
    def test_beyond_2_31(self, unit: str) -> None:
        """The images of a batch that large give what they give alone."""
        samples = self.differentiable("small" if device.REHEARSAL else "paper")
        if not samples:
            pytest.skip("no features to be large")
        self._batch(samples[0], torch.float32 if unit == "bytes" else torch.bfloat16, unit)

    def _batch(self, sample: Sample, dtype: torch.dtype, unit: str) -> None:
        bottoms = self.bottoms(sample, dtype)
        tops = self.run(sample.params, bottoms)
        given = [torch.randn_like(tops[i]) if tops[i].dim() else tops[i] * 0 + 1 for i in sample.tops]
        alone = self._given(sample, bottoms, given)
        batched = [x for i, x in enumerate(bottoms) if i not in self.shared(sample)]
        held = [x for x in (*batched, *tops) if x.dim()]
        count = max(x.nbytes if unit == "bytes" else x.numel() for x in held)
        times = device.MANY // count + 1
        with device.alone(6 * times * sum(x.nbytes for x in held)):
            try:
                repeated = _repeated(bottoms, times, self.shared(sample))
                whole = self._given(sample, repeated, _repeated(given, times))
            except (ValueError, cuda.PlanError) as error:
                pytest.skip(f"refused: {error}")
            self._compare(sample, whole, alone, times, 8 * self.tolerance[dtype])

    def _compare(
        self,
        sample: Sample,
        whole: Sequence[Tensor],
        alone: Sequence[Tensor],
        times: int,
        tolerance: float,
    ) -> None:
        bottoms = [None] * len(sample.tops) + list(sample.differentiable)
        growth = self.growth(times)
        for i, (a, b) in enumerate(zip(whole, alone, strict=True)):
            if not b.dim():
                close(a, b, tolerance, f"top {i}")
            elif bottoms[i] in self.shared(sample):
                close(a, times * growth * b.double(), tolerance, f"result {i}")
            else:
                for image in (0, times // 2, times - 1):
                    part = a[image * len(b) : (image + 1) * len(b)]
                    close(part, growth * b.double(), tolerance, f"result {i}, part {image}")

    def _given(
        self, sample: Sample, bottoms: Sequence[Tensor], given: Sequence[Tensor]
    ) -> list[Tensor]:
        """The chosen tops, and the gradients for theirs."""
        leaves = [x.detach().requires_grad_(i in sample.differentiable) for i, x in enumerate(bottoms)]
        tops = self.run(sample.params, leaves)
        chosen = [tops[i] for i in sample.tops]
        if not sample.differentiable:
            return chosen
        wanted = [leaves[i] for i in sample.differentiable]
        return [
            *(x.detach() for x in chosen),
            *torch.autograd.grad(chosen, wanted, given[: len(chosen)]),
        ]


def _repeated(tensors: Sequence[Tensor], times: int, shared: Sequence[int] = ()) -> list[Tensor]:
    return [
        x.repeat(times, *[1] * (x.dim() - 1)) if x.dim() and i not in shared else x
        for i, x in enumerate(tensors)
    ]


# ------------------------------------------------------------------------------- the suites


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"on_device_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _has_kernels(layer: type[Layer]) -> bool:
    return hasattr(sys.modules[layer.__module__], "kernels")


def _is_in_a_paper(layer: type[Layer]) -> bool:
    entry = registry.find(layer.type_name)
    return entry is not None and entry.family == "correspondence"


def plain_suites() -> Iterator[type[LayerSuite]]:
    for path in (*sorted(LAYERS.glob("test_*.py")), *sorted(LAYERS.glob("standard/test_*.py"))):
        for found in vars(_load(path)).values():
            if isinstance(found, type) and issubclass(found, LayerSuite) and hasattr(found, "layer"):
                yield found


def suites() -> Iterator[type[OnDevice]]:
    """Each suite on the kernels' path and on torch's; a layer without kernels has one path."""
    for plain in plain_suites():
        layer = plain.layer
        if not (_has_kernels(layer) or _is_in_a_paper(layer)):
            continue
        paths = ("cuda", "torch") if _has_kernels(layer) else (None,)
        for path in paths:
            base = WithKernels if path == "cuda" else OnDevice
            marks = [device.kernels_needed] if path == "cuda" else []
            name = f"{plain.__name__}{(path or '').title()}"
            yield type(name, (base, plain), {"plain": plain, "path": path, "pytestmark": marks})


if device.PRESENT:
    globals().update({suite.__name__: suite for suite in suites()})


@device.on_cuda
def test_torchs_own_alert() -> None:
    """The transformer's backward in torch operations has no fixed order, and torch says so."""
    from cortado.layers.convolutional_spatial_transformer import convolutional_spatial_transformer

    u = torch.randn(1, 2, 4, 5, device=device.DEVICE, requires_grad=True)
    theta = torch.randn(1, 4, 4, 5, device=device.DEVICE, requires_grad=True)
    with impl("torch"), device.deterministic():
        top = convolutional_spatial_transformer(u, theta)
        with pytest.raises(RuntimeError, match=device.ALERT):
            top.sum().backward()


def test_all_take_part() -> None:
    tested = {plain.layer.type_name for plain in plain_suites()}
    for entry in registry.entries():
        if _has_kernels(entry.layer) or _is_in_a_paper(entry.layer):
            assert entry.type_name in tested
