"""The ladder of tests that every layer climbs: a layer's test gives an oracle and inherits it.

class TestMyLayer(LayerSuite):
    layer = MyLayer
    wrong = [((torch.zeros(2, 3),), "expected bottom [2, 3] to be [N, C, H, W]")]

    def oracle(self, params, *bottoms):  # float64 arrays in, float64 arrays out, loops welcome
        ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from compiled import CompiledSuite
from cortado.layers._engine.declared import Trait
from cortado.layers._engine.dispatch import impl
from cortado.layers._engine.layer import Layer
from cortado.layers._engine.samples import Sample
from cortado.tools.gradcheck import GradientError, caffe_check, directional
from torch import Tensor

SEED = 20160617
MUTANTS: dict[str, Callable[[Tensor], Tensor]] = {
    "zero": torch.zeros_like,
    "x0.9": lambda gradient: gradient * 0.9,
    "flipped": torch.neg,
}


class LayerSuite(CompiledSuite):
    """Inherit, set ``layer`` and ``oracle``; override an attribute where the layer differs."""

    layer: ClassVar[type[Layer]]
    device: ClassVar[str] = "cpu"
    path: ClassVar[str | None] = None  # "torch" or "cuda" forces that path
    dtypes: ClassVar[Sequence[torch.dtype]] = (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
    )
    # Largest error over the oracle's largest magnitude: a few roundings of the dtype.
    tolerance: ClassVar[dict[torch.dtype, float]] = {
        torch.float64: 1e-13,
        torch.float32: 2e-6,
        torch.float16: 2e-3,
        torch.bfloat16: 1.6e-2,
    }
    gradient_threshold: ClassVar[float] = 1e-6
    caffe_options: ClassVar[dict[str, float]] = {"step": 1e-4, "threshold": 1e-4}
    # (bottoms, message) or (bottoms, message, params)
    wrong: ClassVar[Sequence[tuple[Any, ...]]] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "layer" in vars(cls) and cls.layer.definition is None:
            for name in vars(CompiledSuite):
                if name.startswith("test_"):  # of torch operations alone, which are torch's to prove
                    setattr(cls, name, None)

    def oracle(self, params: Any, *bottoms: np.ndarray) -> tuple[np.ndarray, ...]:
        """The tops by plain loops; float64 in and out."""
        raise NotImplementedError

    def growth(self, times: int) -> float:
        """What a batch repeated so many times multiplies results and gradients by."""
        return 1 / times if Trait.LOSS in self.layer.TRAITS else 1  # a loss is a mean over the batch

    # ---------------------------------------------------------------- what subclasses may use

    def samples(self, size: str = "small") -> list[Sample]:
        return _samples(self.layer, size)

    def differentiable(self, size: str = "small") -> list[Sample]:
        """The samples whose gradients are checked: some, where any sample has a gradient."""
        found = [sample for sample in self.samples(size) if sample.differentiable]
        checked = [sample for sample in found if sample.check_gradient]
        assert checked or not found, "no gradient would be checked"
        return checked

    def bottoms(self, sample: Sample, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """The sample's bottoms on the device, floating ones in ``dtype``; tables never in half."""
        half = dtype in (torch.float16, torch.bfloat16)

        def kind(i: int, x: Tensor) -> torch.dtype:
            if not x.is_floating_point():
                return x.dtype
            table = self.layer.record(i, len(sample.bottoms)).coordinates
            return torch.float32 if half and table else dtype

        return [x.to(self.device, kind(i, x)) for i, x in enumerate(sample.bottoms)]

    def run(self, params: Any, bottoms: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The layer's tops, always as a tuple."""
        tops = self.made(params, bottoms)(*bottoms)
        return tops if isinstance(tops, tuple) else (tops,)

    def made(self, params: Any, bottoms: Sequence[Tensor]) -> Layer:
        """The layer of such bottoms, on the device."""
        return self.layer(params, tuple(tuple(x.shape) for x in bottoms)).to(self.device)

    def gradients(
        self, sample: Sample, bottoms: Sequence[Tensor], scatter: bool = False
    ) -> tuple[Tensor, ...]:
        """The tops' and bottoms' gradients for fixed top gradients (non-contiguous if asked)."""
        leaves = [x.detach().requires_grad_(i in sample.differentiable) for i, x in enumerate(bottoms)]
        tops = self.run(sample.params, leaves)
        chosen = [tops[i] for i in sample.tops]
        generator = torch.Generator().manual_seed(SEED)
        given = [torch.randn(t.shape, generator=generator).bfloat16().to(t) for t in chosen]
        given = [spread(g) for g in given] if scatter else given
        found = torch.autograd.grad(chosen, [leaves[i] for i in sample.differentiable], given)
        return (*(top.detach() for top in tops), *found)

    def checked(self, check: Callable[..., Any], sample: Sample, **options: Any) -> Any:
        """A checker of tools/gradcheck.py on a sample; ``mutate`` spoils bottoms' gradients."""
        mutate: dict[int, Callable[[Tensor], Tensor]] = options.pop("mutate", {})

        def function(*bottoms: Tensor) -> tuple[Tensor, ...]:
            spoiled = [Mutant.apply(x, mutate[i]) if i in mutate else x for i, x in enumerate(bottoms)]
            return self.run(sample.params, spoiled)

        inputs = self.bottoms(sample)
        return check(function, inputs, sample.differentiable, sample.tops, **options)

    @pytest.fixture(autouse=True)
    def _forced_path(self) -> Iterator[None]:
        with impl(self.path) if self.path else nullcontext():
            yield

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "dtype" in metafunc.fixturenames:
            metafunc.parametrize("dtype", self.dtypes, ids=lambda dtype: str(dtype).split(".")[1])
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", self.wrong, ids=lambda case: case[1][:40])

    # ---------------------------------------------------------------- the ladder

    def test_forward_against_the_oracle(self, dtype: torch.dtype) -> None:
        for sample in self.samples():
            bottoms = self.bottoms(sample, dtype)
            tops = self.run(sample.params, bottoms)
            arrays = [
                x.double().cpu().numpy() if x.is_floating_point() else x.cpu().numpy() for x in bottoms
            ]
            for i, (top, wanted) in enumerate(
                zip(tops, self.oracle(sample.params, *arrays), strict=True)
            ):
                close(top, wanted, self.tolerance[dtype], f"{sample.name} top {i}")

    def test_backward_against_float64(self, dtype: torch.dtype) -> None:
        for sample in self.differentiable():
            bottoms = self.bottoms(sample, dtype)
            exact = [x.double() if x.is_floating_point() else x for x in bottoms]
            pairs = zip(self.gradients(sample, bottoms), self.gradients(sample, exact), strict=True)
            for i, (found, wanted) in enumerate(pairs):
                close(found, wanted, 2 * self.tolerance[dtype], f"{sample.name} result {i}")

    def test_gradcheck(self) -> None:
        for sample in self.differentiable():
            assert self.checked(torch_gradcheck, sample)

    def test_caffe_check(self) -> None:
        for sample in self.differentiable():
            self.checked(caffe_check, sample, **self.caffe_options)

    def test_directional_at_paper_size(self) -> None:
        for sample in self.differentiable("paper"):
            self.checked(directional, sample, threshold=self.gradient_threshold, directions=1)

    @pytest.mark.parametrize("name", MUTANTS)
    def test_mutants_are_caught(self, name: str) -> None:
        for sample in self.differentiable():
            self._caught(directional, sample, dict.fromkeys(sample.differentiable, MUTANTS[name]))
        for sample in self.differentiable()[:1]:
            self._caught(torch_gradcheck, sample, dict.fromkeys(sample.differentiable, MUTANTS[name]))

    def test_a_dropped_gradient_is_caught(self) -> None:
        for sample in self.differentiable():
            for i in sample.differentiable:
                self._caught(directional, sample, {i: torch.zeros_like})

    def _caught(self, check: Callable[..., Any], sample: Sample, mutate: dict[int, Any]) -> None:
        with pytest.raises((GradientError, RuntimeError), match=r": wrong, error|Jacobian mismatch"):
            self.checked(check, sample, mutate=mutate)

    def test_non_contiguous(self) -> None:
        for sample in self.samples():
            plain = self.bottoms(sample)
            if sample.differentiable:
                wanted = self.gradients(sample, plain)
                found = self.gradients(sample, [spread(x) for x in plain], scatter=True)
            else:
                wanted = self.run(sample.params, plain)
                found = self.run(sample.params, [spread(x) for x in plain])
            for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
                close(a, b, 1e-13, f"{sample.name} result {i}")

    def test_empty_batch(self) -> None:
        for sample in self.samples():
            bottoms = [
                x if i in self.shared(sample) else x[:0] for i, x in enumerate(self.bottoms(sample))
            ]
            shapes = [tuple(x.shape) for x in bottoms]
            tops = self.run(sample.params, bottoms)
            assert [tuple(t.shape) for t in tops] == list(self.layer.infer(sample.params, *shapes))
            if sample.differentiable:
                found = self.gradients(sample, bottoms)[len(tops) :]
                assert [tuple(g.shape) for g in found] == [shapes[i] for i in sample.differentiable]

    def test_twice_the_same_bits(self) -> None:
        for sample in (*self.samples(), *self.samples("paper")):
            bottoms = self.bottoms(sample, torch.float32)
            act = self.gradients if sample.differentiable else lambda s, b: self.run(s.params, b)
            for a, b in zip(act(sample, bottoms), act(sample, bottoms), strict=True):
                assert torch.equal(a.nan_to_num(), b.nan_to_num()), f"{sample.name} differs"

    def test_infer(self) -> None:
        for sample in (*self.samples(), *self.samples("paper")):
            bottoms = self.bottoms(sample, torch.float32)
            with torch.no_grad():
                tops = self.run(sample.params, bottoms)
            shapes = [tuple(x.shape) for x in bottoms]
            assert list(self.layer.infer(sample.params, *shapes)) == [tuple(t.shape) for t in tops]

    def test_wrong_bottoms(self, case: tuple[Any, ...]) -> None:
        bottoms, message, *params = case
        layer = self.layer(params[0] if params else self.samples()[0].params)
        with pytest.raises((ValueError, TypeError)) as caught:
            layer(*(x.to(self.device) for x in bottoms))
        assert str(caught.value) == message

    def test_params_round_trip(self) -> None:
        from cortado.prototxt_like.bind import bind, unbind

        for params in [sample.params for sample in self.samples()]:
            assert bind(type(params), unbind(params), what=self.layer.type_name) == params


@lru_cache(maxsize=2)
def _samples(layer: type[Layer], size: str) -> list[Sample]:
    with impl("torch"):  # inputs are made on the CPU, whatever path a test forces
        return layer.samples(size, np.random.default_rng(SEED))


class Mutant(torch.autograd.Function):
    """The identity with a spoiled gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, spoil: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.spoil = spoil
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.spoil(gradient), None


def torch_gradcheck(
    function: Callable[..., Any], inputs: Sequence[Tensor], wrt: Sequence[int], tops: Sequence[int]
) -> bool:
    leaves = [x.detach().clone().requires_grad_(i in wrt) for i, x in enumerate(inputs)]
    noise = 1e-12 if leaves[0].is_cuda else 0.0  # of torch's own backward of grid_sampler_2d there
    return torch.autograd.gradcheck(
        lambda *x: tuple(function(*x)[i] for i in tops), leaves, atol=1e-7, rtol=1e-5, nondet_tol=noise
    )


def spread(x: Tensor) -> Tensor:
    """The same values in every other element of twice the memory, first axis innermost."""
    if not x.dim():
        return x
    holes = torch.zeros(*x.shape[1:], x.shape[0], 2, dtype=x.dtype, device=x.device)
    holes[..., 0] = x.movedim(0, -1)
    return holes[..., 0].movedim(-1, 0)


def close(found: Tensor, wanted: Any, tolerance: float, what: str) -> None:
    """Within ``tolerance`` of the largest finite magnitude; NaN and infinity where wanted."""
    wanted = torch.as_tensor(wanted).double().cpu()
    assert tuple(found.shape) == tuple(wanted.shape), f"{what}: {found.shape} for {wanted.shape}"
    found = found.detach().double().cpu()
    finite = wanted.isfinite()
    same = (found == wanted) | (found.isnan() & wanted.isnan()) | (finite & found.isfinite())
    assert same.all(), f"{what}: NaN or infinite elsewhere than wanted"
    if not finite.any():
        return
    scale = float(wanted[finite].abs().max())
    error = float((found - wanted)[finite].abs().max())
    assert error <= tolerance * scale, f"{what}: error {error:.3g} at scale {scale:.3g}"
