"""The engine, on layers small enough to see through."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

import pytest
import torch
from cortado.layers import knn  # noqa: F401
from cortado.layers._engine import parallel
from cortado.layers._engine.checks import BlobError
from cortado.layers._engine.declared import Bottom, Role, Top
from cortado.layers._engine.definition import Definition
from cortado.layers._engine.dispatch import impl
from cortado.layers._engine.fillers import FillerParams
from cortado.layers._engine.operators import unbacked
from cortado.layers._engine.params import param
from cortado.layers._engine.schema import REMEMBERED, Schema
from torch.library import opcheck


class Kind(enum.Enum):
    ONE = 0
    OTHER = 1


@dataclass(frozen=True)
class Inner:
    count: int | None = param(None)
    kind: Kind | None = param(None)


@dataclass(frozen=True)
class Params:
    factor: float = param(2.0, above=0)
    kind: Kind = param(Kind.ONE)
    radii: tuple[float, ...] = param((1.0, 2.0))
    inner: Inner = param(Inner())
    filler: FillerParams = param(FillerParams())


def toy(name="toy", **changed):
    """Two tops, product and sum, of two maps, the second optional."""
    seen = {"computed": []}

    def infer(params, a, b=None):
        if b is not None and a != b:
            raise BlobError("shapes differ: {a}, {b}", a=a, b=b)
        return a, a

    def meta(params, a, b=None):
        return (a.shape, a.dtype), (a.shape, a.dtype)

    def forward(params, a, b=None):
        b = torch.ones_like(a) if b is None else b
        return params.factor * a * b, a + b

    def backward(params, product_gradient, sum_gradient, wanted, a, b):
        other = torch.ones_like(a) if b is None else b
        seen["computed"].append((wanted, product_gradient.clone(), sum_gradient.clone()))
        first = params.factor * other * product_gradient + sum_gradient if wanted[0] else None
        second = params.factor * a * product_gradient + sum_gradient if wanted[1] else None
        return first, second

    given = {"infer": infer, "meta": meta, "forward": forward, "backward": backward, **changed}
    bottoms = Bottom("a", "[...]"), Bottom("b", "[...]", optional=True)
    return Definition(name, Params, bottoms, (Top("product"), Top("sum")), **given), seen


def test_a_gradient_that_nobody_wants_is_neither_computed_nor_filled():
    definition, seen = toy()
    a, b = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)
    product, _ = definition(Params(), a, b)
    product.sum().backward()
    ((wanted, product_gradient, sum_gradient),) = seen["computed"]
    assert wanted == (True, False)
    assert torch.equal(product_gradient, torch.ones(2, 3))
    assert torch.equal(sum_gradient, torch.zeros(2, 3))  # of a top beside one with a gradient
    assert torch.equal(a.grad, 2 * b)
    a.grad = None
    (definition(Params(), a.detach().requires_grad_(), b)[0] * 0).detach()
    assert len(seen["computed"]) == 1


def test_an_optional_bottom_has_no_gradient_where_it_is_not_given():
    definition, _ = toy()
    a = torch.randn(2, 3, requires_grad=True)
    definition(Params(), a)[0].sum().backward()
    assert torch.equal(a.grad, torch.full((2, 3), 2.0))
    for bottoms in ((a, None), (a, torch.randn(2, 3, requires_grad=True))):
        opcheck(definition.operator, (*bottoms, *definition.schema.scalars(Params())))


def test_what_backward_names_is_what_is_saved():
    definition, _ = toy(
        backward=lambda params, product_gradient, sum_gradient, a_shape, b_dtype: (
            product_gradient.new_full(a_shape, 5.0),
            product_gradient.new_full(a_shape, 7.0, dtype=b_dtype),
        )
    )
    a, b = (torch.randn(2, 3, requires_grad=True) for _ in range(2))
    product, _ = definition(Params(), a, b)
    assert product.grad_fn.saved_tensors == ()
    product.sum().backward()
    assert (a.grad.unique().item(), b.grad.unique().item()) == (5, 7)
    opcheck(definition.operator, (a, b, *definition.schema.scalars(Params())))


def test_backward_names_something_that_is_not_there():
    with pytest.raises(TypeError, match=r"toy: backward names \['top_gradient'\], expected some of"):
        toy(backward=lambda params, top_gradient: None)


def test_parameters_are_scalars_with_their_defaults():
    definition, _ = toy()
    assert definition.schema.arguments == [
        "float factor=2.0",
        'str kind="ONE"',
        "float[] radii=[1.0, 2.0]",
        "SymInt? inner_count=None",
        "str? inner_kind=None",
    ]
    params = Params(3.0, Kind.OTHER, (0.5,), Inner(7, Kind.OTHER))
    scalars = definition.schema.scalars(params)
    assert scalars == (3.0, "OTHER", (0.5,), 7, "OTHER")
    assert definition.schema.params(scalars) == params
    product, _ = torch.ops.cortado.toy(torch.ones(2), None, 3.0)
    assert product.tolist() == [3, 3]


def test_parameters_before_one_without_a_default_have_none():
    @dataclass(frozen=True)
    class Late:
        first: int = param(1)
        most: float = param(math.inf, infinite=True)
        last: bool = param(False)

    Late.__annotations__ = {"first": int, "most": float, "last": bool}
    assert Schema(Late).arguments == ["SymInt first", "float most", "bool last=False"]


def test_functional_parameters_are_checked_every_time_they_differ():
    definition, _ = toy()
    assert definition.params(3.0, "OTHER") is definition.params(3.0, "OTHER")
    assert definition.params(3.0, Kind.OTHER) == Params(3.0, Kind.OTHER)
    for wrong, error in ((0.0, ValueError), (True, TypeError), ("1", TypeError)):
        with pytest.raises(error, match="factor: expected"):
            definition.params(wrong)
    definition.params(1.0)
    with pytest.raises(TypeError, match="factor: expected a number, got bool"):
        definition.params(True)  # equal to 1.0, which is known
    with pytest.raises(ValueError, match='kind: expected one of ONE, OTHER, got "THIRD"'):
        definition.params(1.0, "THIRD")


def test_a_parameter_of_another_value_at_each_call_does_not_fill_the_memory():
    definition, _ = toy()
    for number in range(1, 2 * REMEMBERED):
        assert definition.params(float(number)).factor == number
        assert len(definition._known) <= REMEMBERED


def test_a_definition_made_anew_takes_over_the_operators():
    first, _ = toy("toy_again")
    compiled = torch.compile(first, fullgraph=True, backend="aot_eager")
    assert compiled(Params(), torch.ones(1))[0].item() == 2
    second, _ = toy("toy_again", forward=lambda params, a, b=None: (a + 2, a + 3))
    assert first.operator is second.operator
    for run in (second, compiled, lambda params, a: torch.ops.cortado.toy_again(a, None)):
        assert run(Params(), torch.ones(1))[0].item() == 3


def test_a_definition_with_another_schema_gets_a_number():
    first, _ = toy("toy_other")
    second, _ = toy("toy_other", kept=("rest",))
    assert str(first.operator) == "cortado.toy_other.default"
    assert str(second.operator) == "cortado.toy_other_2.default"
    assert torch.ops.cortado.toy_other(torch.ones(1), None)[0].item() == 2


def test_a_name_that_another_file_has():
    with pytest.raises(
        TypeError, match=r'"cortado::knn" is defined twice: .*knn\.py and .*test_definition\.py'
    ):
        toy("knn")


def kept_length():
    """The elements above 0, whose number is kept beside the sum."""

    def meta(params, x):
        return ((), x.dtype), ((unbacked(),), x.dtype)

    def forward(params, x, keep=True):
        found = x[x > 0]
        return found.sum(), found if keep else None

    def backward(params, top_gradient, x, found):
        assert (x > 0).sum() == len(found)
        return top_gradient * (x > 0)

    return Definition(
        "kept_length",
        Params,
        (Bottom("x"),),
        (Top("top"),),
        kept=("found",),
        infer=lambda params, x: ((),),
        meta=meta,
        forward=forward,
        backward=backward,
    )


def test_what_is_kept_is_kept_for_a_gradient_alone():
    definition = kept_length()
    x = torch.tensor([1.0, -2, 3, 4])
    assert definition(Params(), x).item() == 8
    scalars = definition.schema.scalars(Params())
    assert [y.shape for y in definition.operator(x, *scalars, False)] == [(), (0,)]
    assert [y.shape for y in definition.operator(x, *scalars)] == [(), (3,)]
    x.requires_grad_()
    definition(Params(), x).backward()
    assert x.grad.tolist() == [1, 0, 1, 1]
    with pytest.raises(RuntimeError, match="keep=False, but a gradient is asked for"):
        definition.operator(x, *scalars, False)
    run = torch.compile(definition, fullgraph=True, backend="aot_eager")
    x.grad = None
    run(Params(), x).backward()
    assert x.grad.tolist() == [1, 0, 1, 1]
    opcheck(definition.operator, (x, *scalars))


def test_an_empty_list_of_bottoms_and_other_devices_and_types():
    definition = Definition(
        "toy_tables",
        Params,
        (
            Bottom("map"),
            Bottom("table", role=Role.TABLE),
            Bottom("count", role=Role.COUNT, optional=True),
        ),
        (Top("top", why_no_gradient="it counts"),),
        infer=lambda params, *shapes: ((),),
        meta=lambda params, map, *rest: (((), map.dtype),),
        forward=lambda params, map, table, count=None: (map.new_zeros(()),),
    )
    definition(Params(), torch.zeros(2), torch.zeros(3).int(), torch.zeros(1, device="meta"))
    for bottoms, words in (
        ((torch.zeros(2).int(), torch.zeros(2)), "expected map to be floating point, got torch.int32"),
        (
            (torch.zeros(2), torch.zeros(2, device="meta")),
            "expected one device, got map on cpu, table on meta",
        ),
        ((torch.zeros(2), [1.0]), "toy_tables: expected table to be a torch.Tensor, got list"),
    ):
        with pytest.raises(TypeError) as caught:
            definition(Params(), *bottoms)
        assert str(caught.value).startswith(words)
    top = definition(Params(), torch.zeros(2, requires_grad=True), torch.zeros(2))
    assert not top.requires_grad


def test_a_mean_is_balanced_by_what_it_counts(monkeypatch):
    definition = Definition(
        "toy_mean",
        Params,
        (Bottom("x"),),
        (Top("mean", mean_of="count"),),
        kept=("count",),
        infer=lambda params, x: ((),),
        meta=lambda params, x: (((), x.dtype), ((), torch.int64)),
        forward=lambda params, x: (x.mean(), torch.tensor(len(x))),
    )
    monkeypatch.setattr(parallel.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(parallel.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(parallel.dist, "all_reduce", lambda total: total.mul_(4))
    x = torch.tensor([3.0, 5.0])
    assert definition(Params(), x).item() == 4
    with parallel.together():
        assert definition(Params(), x).item() == pytest.approx(4 * 2 * 2 / 8)


def test_a_forced_path_that_is_not_there():
    definition, _ = toy(
        "toy_kernels", forward_cuda=lambda *bottoms: None, backward_cuda=lambda *bottoms: None
    )
    assert definition(Params(), torch.zeros(1))[0].item() == 0
    for run in (definition, torch.compile(definition, fullgraph=True, backend="aot_eager")):
        with impl("cuda"), pytest.raises(RuntimeError, match="needs CUDA tensors, got cpu"):
            run(Params(), torch.zeros(1))
        with impl("torch"):
            run(Params(), torch.zeros(1))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(("traced", "operators"), [(True, []), (False, ["toy_graph"])])
def test_a_traced_layer_leaves_no_operator_in_the_graph(traced, operators):
    """The one that looked at its shapes is gone; one that stands for its layer stays."""
    from torch._dynamo.backends.common import aot_autograd

    seen = []

    def compiler(graph, inputs):
        names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        seen.extend(name.split(".")[1] for name in names if name.startswith("cortado."))
        return graph.forward

    def backward(params, product_gradient, sum_gradient, b):
        return params.factor * b * product_gradient + sum_gradient, None

    definition, _ = toy("toy_graph", traced=traced, backward=backward)
    torch._dynamo.reset()
    run = torch.compile(definition, fullgraph=True, backend=aot_autograd(fw_compiler=compiler))
    product, _ = run(Params(), torch.ones(2, requires_grad=True), torch.ones(2))
    assert product.tolist() == [2, 2]
    assert seen == operators
