"""What a layer is to today's PyTorch: compiled, exported, an operator, copied, and what it refuses.

Part of :class:`suite.LayerSuite`, for the layers that have a definition.
"""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import torch
from cortado.layers._engine.definition import Definition
from cortado.layers._engine.function import refusal
from cortado.layers._engine.layer import Layer
from cortado.layers._engine.samples import Sample
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

Run = Callable[..., Any]


class CompiledSuite:
    """The tests; :class:`suite.LayerSuite` says what else a class of them needs."""

    # Dynamo makes an instance of a Function, for its context
    pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

    layer: ClassVar[type[Layer]]
    # By this backend the bits of eager execution stay: operations are captured, not fused.
    backend: ClassVar[str] = "aot_eager"
    # Of the small samples, how many are compiled
    compiled_samples: ClassVar[int] = 3

    samples: Callable[..., list[Sample]]
    bottoms: Callable[..., list[Tensor]]
    made: Callable[..., Layer]

    @property
    def definition(self) -> Definition:
        found = self.layer.definition
        assert found is not None
        return found

    # ---------------------------------------------------------------- what the tests are made of

    def chosen(self) -> list[Sample]:
        """Samples that differ: the first, the last, and some between."""
        found = self.samples()
        step = max(1, (len(found) - 1) // max(1, self.compiled_samples - 1))
        return found[::step]

    def leaves(self, sample: Sample, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        bottoms = self.bottoms(sample, dtype)
        return [
            x.detach().clone().requires_grad_(i in sample.differentiable) for i, x in enumerate(bottoms)
        ]

    def shared(self, sample: Sample) -> list[int]:
        """The bottoms that every item of a batch reads whole."""
        count = len(sample.bottoms)
        return [i for i in range(count) if self.layer.record(i, count).shared]

    def detached(self, sample: Sample) -> list[Tensor]:
        return [x.detach() for x in self.leaves(sample)]

    def outcome(self, run: Run, sample: Sample, bottoms: Sequence[Tensor]) -> list[Tensor]:
        """Tops, and gradients where there are any, for fixed top gradients."""
        tops = several(run(*bottoms))
        found = [top.detach() for top in tops]
        if sample.differentiable:
            given = [numbered(tops[i]) for i in sample.tops]
            wrt = [bottoms[i] for i in sample.differentiable]
            found += torch.autograd.grad([tops[i] for i in sample.tops], wrt, given)
        return found

    def layer_of(self, sample: Sample) -> Layer:
        return self.made(sample.params, sample.bottoms).float()

    def operator(self, sample: Sample) -> Run:
        """The operator as a function of the layer's bottoms, giving its tops."""

        def run(*bottoms: Tensor) -> tuple[Tensor, ...]:
            found = several(self.definition.operator(*self.arguments(sample, bottoms)))
            return found[: len(self.definition.tops)]

        return run

    def arguments(self, sample: Sample, bottoms: Sequence[Tensor]) -> tuple[Any, ...]:
        """The operator's."""
        scalars = self.definition.schema.scalars(sample.params)
        missing = [None] * (len(self.definition.bottoms) - len(bottoms))
        return (*bottoms, *missing, *scalars)

    def compiled(self, run: Run, dynamic: bool | None = None) -> Run:
        torch._dynamo.reset()
        with quiet():
            made: Run = torch.compile(run, fullgraph=True, dynamic=dynamic, backend=self.backend)
        return made

    # ---------------------------------------------------------------- the tests

    @pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
    def test_compiled(self, dynamic: bool) -> None:
        for sample in self.chosen():
            wanted = self.outcome(self.layer_of(sample), sample, self.leaves(sample))
            run = self.compiled(self.layer_of(sample), dynamic)  # another, for one that has a state
            same(self.outcome(run, sample, self.leaves(sample)), wanted, sample.name)

    def test_one_compilation_for_other_sizes(self) -> None:
        for sample in self.chosen()[:1]:
            layer = self.layer_of(sample)
            run = self.compiled(layer, dynamic=True)
            for bottoms in (self.leaves(sample), self.longer(sample)):
                wanted = self.outcome(layer, sample, bottoms)
                same(self.outcome(run, sample, bottoms), wanted, sample.name)

    def longer(self, sample: Sample) -> list[Tensor]:
        """The sample's bottoms with every item of the batch twice."""
        twice = [
            x if i in self.shared(sample) or not x.dim() else torch.cat((x, x))
            for i, x in enumerate(self.leaves(sample))
        ]
        return [x.detach().requires_grad_(i in sample.differentiable) for i, x in enumerate(twice)]

    def test_operators_are_what_torch_expects(self) -> None:
        for sample in self.samples():
            opcheck(self.definition.operator, self.arguments(sample, self.leaves(sample)))
            for arguments in self.backward_calls(sample):
                opcheck(self.definition.backward_operator, arguments)

    def backward_calls(self, sample: Sample) -> list[tuple[Any, ...]]:
        """The arguments of the backward operator that a backward pass of the operator calls."""
        recorder = Recorder(self.definition.backward_operator)
        with recorder:
            self.outcome(self.operator(sample), sample, self.leaves(sample))
        return recorder.calls

    def test_operator_gives_the_bits_of_the_function(self) -> None:
        for sample in self.samples():
            wanted = self.outcome(self.layer_of(sample), sample, self.leaves(sample))
            found = self.outcome(self.operator(sample), sample, self.leaves(sample))
            same(found, wanted, sample.name)

    def test_function_bears_the_name_of_its_layer(self) -> None:
        for sample in self.samples():
            if sample.differentiable:
                top = several(self.operator(sample)(*self.leaves(sample)))[sample.tops[0]]
                assert self.definition.name in type(top.grad_fn).__name__
                layer = self.layer_of(sample)
                function = self.definition.function.__name__
                top = several(layer(*self.leaves(sample)))[sample.tops[0]]
                assert function.lower() == self.definition.name.replace("_", "")
                assert function in names_of(top.grad_fn)

    def test_exported(self) -> None:
        """Saved, loaded, and run with other sizes."""
        for sample in self.chosen()[:1]:
            layer, bottoms = Holder(self.layer_of(sample)), self.detached(sample)
            sizes = tuple(dict.fromkeys(range(x.dim()), torch.export.Dim.AUTO) for x in bottoms)
            with quiet():
                made = torch.export.export(layer, tuple(bottoms), dynamic_shapes=(sizes,))
                stream = io.BytesIO()
                torch.export.save(made, stream)
                stream.seek(0)
                loaded = torch.export.load(stream).module()
            for given in (bottoms, [x.detach() for x in self.longer(sample)]):
                same(several(loaded(*given)), several(layer(*given)), sample.name)

    def test_autocast_compiled(self) -> None:
        device = torch.device(self.device).type
        for sample in self.chosen()[:1]:
            layer, bottoms = self.layer_of(sample), self.detached(sample)
            halves = [x.bfloat16() if i in sample.differentiable else x for i, x in enumerate(bottoms)]
            run = self.compiled(layer)
            with torch.autocast(device, torch.bfloat16):
                same(several(run(*halves)), several(layer(*halves)), sample.name)

    def test_checkpoint_compiled(self) -> None:
        for sample in self.chosen()[:1]:
            layer = self.layer_of(sample)
            run = self.compiled(lambda *x, layer=layer: checkpoint(layer, *x, use_reentrant=False))
            wanted = self.outcome(layer, sample, self.leaves(sample))
            same(self.outcome(run, sample, self.leaves(sample)), wanted, sample.name)

    def test_copies_and_calls_of_other_kinds(self) -> None:
        for sample in self.samples():
            wanted = self.outcome(self.layer_of(sample), sample, self.leaves(sample))
            for run in (
                copy.deepcopy(self.layer_of(sample)),
                pickle.loads(pickle.dumps(self.layer_of(sample))),
                functional(self.layer_of(sample)),
            ):
                same(self.outcome(run, sample, self.leaves(sample)), wanted, sample.name)
            with torch.inference_mode():
                tops = several(self.layer_of(sample)(*self.leaves(sample)))
            same(tops, wanted[: len(tops)], sample.name)

    def test_tensors_without_values(self) -> None:
        for sample in self.samples():
            layer = self.layer_of(sample)
            wanted = [described(x) for x in several(layer(*self.leaves(sample)))]
            for shape_env in (None, ShapeEnv()):
                mode = FakeTensorMode(shape_env=shape_env)
                bottoms = [mode.from_tensor(x) for x in self.detached(sample)]
                fake = copied(layer, mode.from_tensor)
                with mode:
                    assert [described(x) for x in several(fake(*bottoms))] == wanted
            tops = several(
                copy.deepcopy(layer).to("meta")(*(x.to("meta") for x in self.detached(sample)))
            )
            assert [described(x) for x in tops] == wanted
            assert {x.device.type for x in tops} == {"meta"}

    # ------------------------------------------------------------ what is refused, in the same words

    def learning(self) -> list[Sample]:
        return [sample for sample in self.chosen() if sample.differentiable][:1]

    def test_functional_gradient(self) -> None:
        for sample in self.learning():
            loss, given = self.loss(sample), self.detached(sample)
            learnt = [given[i] for i in sample.differentiable]
            gradient = torch.func.grad(loss, argnums=tuple(range(len(learnt))))
            leaves = [x.clone().requires_grad_() for x in learnt]
            same(gradient(*learnt), torch.autograd.grad(loss(*leaves), leaves), sample.name)

    def loss(self, sample: Sample) -> Run:
        """The sum of the tops as a function of the bottoms that learn."""
        layer, given = self.layer_of(sample), self.detached(sample)

        def loss(*learnt: Tensor) -> Any:
            tops = several(layer(*replaced(given, sample.differentiable, learnt)))
            return sum(tops[i].sum() for i in sample.tops)

        return loss

    def test_no_second_derivative(self) -> None:
        words = refusal(self.definition.name, "second derivative")
        for sample in self.learning():
            layer = self.layer_of(sample)
            self._twice(layer, sample, words)
            self._twice(self.operator(sample), sample, words)
            # torch refuses before we are asked
            self._twice(self.compiled(layer), sample, "double backward|create_graph=False")

    def _twice(self, run: Run, sample: Sample, words: str) -> None:
        def second() -> None:
            learnt = [bottoms[i] for i in sample.differentiable]
            first = torch.autograd.grad(top.square().sum(), learnt, create_graph=True)
            torch.autograd.grad(sum(x.sum() for x in first), learnt)  # type: ignore[arg-type]

        bottoms = self.leaves(sample)
        top = several(run(*bottoms))[sample.tops[0]]
        with pytest.raises(RuntimeError, match=words):
            second()

    def test_a_penalty_on_the_gradient_is_not_dropped(self) -> None:
        """Of tops whose own gradient is a constant."""
        for sample in self.learning():
            bottoms = self.leaves(sample)
            learnt = [bottoms[i] for i in sample.differentiable]
            loss = several(self.layer_of(sample)(*bottoms))[sample.tops[0]].sum()
            first = torch.autograd.grad(loss, learnt, create_graph=True)
            with pytest.raises(RuntimeError, match=refusal(self.definition.name, "second derivative")):
                sum(x.square().sum() for x in first).backward()  # type: ignore[union-attr]

    def test_no_vmap(self) -> None:
        for sample in self.learning():
            layer, operator = self.layer_of(sample), self.operator(sample)
            for run in (
                torch.func.vmap(layer),
                torch.func.vmap(operator),
                self.compiled(torch.func.vmap(layer)),
            ):
                with pytest.raises(Exception, match=refusal(self.definition.name, "vmap")):
                    run(*(x[None] for x in self.detached(sample)))

    # torch.func.jvp itself
    @pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated")
    def test_no_forward_mode(self) -> None:
        for sample in self.learning():
            bottoms = self.detached(sample)
            tangent = self.tangent(self.layer_of(sample), sample)
            runs = (tangent, self.tangent(self.operator(sample), sample), self.compiled(tangent))
            for run in (*runs, dual(self.layer_of(sample))):
                with pytest.raises(Exception, match=refusal(self.definition.name, "forward mode")):
                    run(*bottoms)

    def tangent(self, run: Run, sample: Sample) -> Run:
        """Of the tops, in forward mode, by the first bottom that learns."""
        i = sample.differentiable[0]

        def tangent(*bottoms: Tensor) -> Any:
            def tops(x: Tensor) -> tuple[Tensor, ...]:
                return several(run(*replaced(bottoms, [i], [x])))

            return torch.func.jvp(tops, (bottoms[i],), (torch.ones_like(bottoms[i]),))

        return tangent

    def test_compiled_bottoms_that_do_not_fit(self, case: tuple[Any, ...]) -> None:
        bottoms, message, *params = case
        run = self.compiled(self.layer(params[0] if params else self.samples()[0].params))
        with pytest.raises(Exception) as caught:
            run(*(x.to(self.device) for x in bottoms))
        assert message in str(caught.value)


class Holder(torch.nn.Module):
    """A net of one layer."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *bottoms: Tensor) -> Any:
        return self.layer(*bottoms)


class Recorder(TorchDispatchMode):
    """Notes what an operator is called with."""

    def __init__(self, operator: Any) -> None:
        super().__init__()
        self.operator, self.calls = operator, list[tuple[Any, ...]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is self.operator:
            self.calls.append(torch.utils._pytree.tree_map(detached, args))
        return func(*args, **(kwargs or {}))


def functional(layer: Layer) -> Run:
    """The layer called with its parameters as arguments."""
    parameters = dict(layer.named_parameters())
    return lambda *bottoms: torch.func.functional_call(layer, parameters, bottoms)


def dual(run: Run) -> Run:
    """A function of floating bottoms that all carry a tangent."""

    def dual(*bottoms: Tensor) -> Any:
        with forward_ad.dual_level():
            return run(
                *(
                    forward_ad.make_dual(x, torch.ones_like(x)) if x.is_floating_point() else x
                    for x in bottoms
                )
            )

    return dual


def detached(x: Any) -> Any:
    return x.detach() if isinstance(x, Tensor) else x


def several(tops: Any) -> tuple[Tensor, ...]:
    return tuple(tops) if isinstance(tops, (tuple, list)) else (tops,)


def numbered(top: Tensor) -> Tensor:
    """A gradient whose elements differ."""
    count = torch.arange(1, top.numel() + 1, device=top.device)
    return (count.to(top.dtype) / max(1, top.numel())).view(top.shape)


def described(x: Tensor) -> tuple[tuple[int, ...], torch.dtype]:
    return tuple(x.shape), x.dtype


def replaced(bottoms: Sequence[Tensor], chosen: Sequence[int], by: Sequence[Tensor]) -> list[Tensor]:
    found = list(bottoms)
    for i, x in zip(chosen, by, strict=True):
        found[i] = x
    return found


def copied(layer: Layer, by: Callable[[Tensor], Tensor]) -> Layer:
    """The layer with other blobs."""
    twin = copy.copy(layer)
    twin._parameters = {
        name: torch.nn.Parameter(by(x.detach()))
        for name, x in layer._parameters.items()
        if x is not None
    }
    return twin


def names_of(node: Any) -> Iterator[str]:
    """Of a node of the graph, and of those before it that views and casts have put there."""
    while node is not None:
        yield from (type(node).__name__.removesuffix("Backward"), type(node).__name__)
        node = node.next_functions[0][0] if node.next_functions else None


def same(found: Sequence[Tensor], wanted: Sequence[Tensor], what: str) -> None:
    assert [described(x) for x in found] == [described(x) for x in wanted], what
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert torch.equal(a.isnan(), b.isnan()), f"{what}: result {i}"
        assert torch.equal(a.nan_to_num(), b.nan_to_num()), f"{what}: result {i}"


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
