"""A layer as two operators of PyTorch's dispatcher: ``cortado::<layer>`` and its backward.

They stand for a layer where nothing may look into it: where kernels run, where values decide the
course, and for tensors without values. :func:`register` makes them of a
:class:`~.definition.Definition`; kernels, shapes and gradients are the definition's own functions.

Parameters enter as scalars (:mod:`.schema`); ``path`` is "torch" or "cuda" where one is forced, ""
where the device says it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .function import refusal

if TYPE_CHECKING:
    from .declared import Bottom
    from .definition import Definition

NAMESPACE = "cortado"
_counts = True


def unbacked(least: int = 0) -> Any:
    """A size that only values can tell, at least ``least``: for ``meta``.

    Where nobody reasons about sizes, of meta tensors and in FakeTensorMode, it is ``least``. A compiler
    that takes no such sizes (torch.compile without ``fullgraph``) leaves its graph for the operator.
    """
    try:
        context = torch.library.get_ctx()
    except RuntimeError:  # not in an operator's fake
        return least
    if not _counts or getattr(context, "_shape_env", None) is None:
        return least
    return context.new_dynamic_size(min=least)


@contextmanager
def _without_unbacked(yes: bool) -> Iterator[None]:
    """A size that no output has is none that a compiler may hear of."""
    global _counts
    before, _counts = _counts, not yes
    try:
        yield
    finally:
        _counts = before


@dataclass
class Pair:
    """The operators of a layer, and the library that holds them: while they live, nothing may end it,
    for graphs that were compiled keep pointers to them."""

    schemas: tuple[str, str, bool]
    library: torch.library.Library
    forward: _Forward
    backward: _Backward | None

    def taken_over(self, d: Definition) -> tuple[Any, Any]:
        """The operators, from now on those of this definition."""
        self.forward.d = d
        if self.backward is None:
            return self.forward.operator, None
        self.backward.d = d
        return self.forward.operator, self.backward.operator


_pairs: dict[str, list[Pair]] = {}


def register(d: Definition) -> tuple[Any, Any]:
    """The layer's operators, the second None without a backward.

    A definition made anew, of a plugin read again or a notebook's cell, takes over the operators; with
    another schema it gets operators with a number. Raises TypeError for a name that another file has.
    """
    learns = bool(d.learning)
    schemas = _forward_schema(d), _backward_schema(d) if learns else "", d.keeps_half
    known = _pairs.setdefault(d.name, [])
    for pair in known:
        _expect_the_same_file(pair.forward.d, d)
        if pair.schemas == schemas:
            return pair.taken_over(d)
    name = d.name if not known else f"{d.name}_{len(known) + 1}"
    library = torch.library.Library(NAMESPACE, "FRAGMENT")
    backward = _Backward(d, library, f"{name}_backward", schemas[1]) if learns else None
    known.append(Pair(schemas, library, _Forward(d, library, name, schemas[0]), backward))
    return known[-1].taken_over(d)


def _expect_the_same_file(known: Definition, d: Definition) -> None:
    files = [x.forwards[0].__code__.co_filename for x in (known, d)]
    modules = {x.forwards[0].__module__ for x in (known, d)}
    if files[0] != files[1] and modules != {"__main__"}:
        text = f'the operator "{NAMESPACE}::{d.name}" is defined twice: {files[0]} and {files[1]}'
        raise TypeError(text)


class _Operator:
    """What both have in common: a name, a schema, and how arguments are read."""

    def __init__(self, d: Definition, library: torch.library.Library, name: str, schema: str) -> None:
        self.d, self.qualified = d, f"{NAMESPACE}::{name}"
        library.define(f"{name}{schema}")
        self.operator = getattr(getattr(torch.ops, NAMESPACE), name).default
        self.defaults = [argument.default_value for argument in self.operator._schema.arguments]
        library.impl(name, self.run, "CompositeExplicitAutograd")
        torch.library.register_fake(self.qualified, self.fake, lib=library)
        torch.library.register_vmap(self.qualified, self.no_vmap, lib=library)

    def full(self, arguments: Sequence[Any]) -> Sequence[Any]:
        """With the defaults that the dispatcher left out."""
        return (*arguments, *self.defaults[len(arguments) :])

    def run(self, *arguments: Any) -> Any:
        raise NotImplementedError

    def fake(self, *arguments: Any) -> Any:
        raise NotImplementedError

    def no_vmap(self, info: Any, in_dims: Any, *arguments: Any) -> Any:
        raise RuntimeError(refusal(self.d.name, "vmap"))


class _Forward(_Operator):
    """``cortado::<layer>(bottoms, parameters, keep where it is asked, path) -> tops, kept tensors``."""

    def __init__(self, d: Definition, library: torch.library.Library, name: str, schema: str) -> None:
        super().__init__(d, library, name, schema)
        if d.learning and not d.keeps_half:
            for device in ("cpu", "cuda"):
                torch.library.register_autocast(self.qualified, device, torch.float32, lib=library)
        if d.learning:
            options: Any = {"setup_context": self.setup_context, "lib": library}
            torch.library.register_autograd(self.qualified, self.gradients, **options)

    def read(self, arguments: Sequence[Any]) -> tuple[Sequence[Any], Any, bool, str]:
        """Bottoms, parameters, whether to keep, the path; raises in forward mode, whose tangents an
        operator does not see."""
        if forward_ad._current_level >= 0:
            raise RuntimeError(refusal(self.d.name, "forward mode"))
        every, first = self.full(arguments), len(self.d.bottoms)
        last = first + len(self.d.schema.fields)
        *keep, path = every[last:]
        return every[:first], self.d.schema.params(every[first:last]), all(keep), path

    def run(self, *arguments: Any) -> Any:
        bottoms, params, keep, path = self.read(arguments)
        self.d.check(params, bottoms)
        kernels = self.d.runs_kernels(path, self.d.deciding(bottoms))
        found = self.d.compute(kernels, keep, params, bottoms)
        return _one(_apart([found[0].new_empty(0) if x is None else x for x in found]))

    def fake(self, *arguments: Any) -> Any:
        bottoms, params, keep, _ = self.read(arguments)
        self.d.check(params, bottoms)
        like, tops = self.d.flat(bottoms)[0], len(self.d.tops)
        with _without_unbacked(not keep):
            specs = self.d.meta(params, *bottoms)
        first = specs[0]
        assert first is not None
        nothing = (0,), first[1]
        chosen = [spec if spec and (keep or i < tops) else nothing for i, spec in enumerate(specs)]
        return _one([like.new_empty(shape, dtype=dtype) for shape, dtype in chosen])

    def setup_context(self, ctx: Any, inputs: Sequence[Any], output: Any) -> None:
        bottoms, ctx.params, keep, ctx.path = self.read(inputs)
        if not keep:
            raise RuntimeError(f"{self.qualified}: keep=False, but a gradient is asked for")
        outputs = [output] if isinstance(output, Tensor) else output
        specs = self.d.meta(ctx.params, *bottoms)
        present = [None if spec is None else x for spec, x in zip(specs, outputs, strict=True)]
        ctx.unseen = [x for i in self.d.unseen for x in _described(bottoms[i])]
        ctx.empty = [i for i, x in enumerate(inputs) if isinstance(x, (list, tuple)) and not x]
        self.d.save(ctx, bottoms, present)

    def gradients(self, ctx: Any, *gradients: Tensor | None) -> Any:
        d, needs = self.d, ctx.needs_input_grad
        wanted = list(needs[0]) if d.many else [needs[i] for i in d.learning]
        every: list[Tensor | None] = [None] * len(wanted)
        if arguments := d.arguments(ctx, gradients, wanted):
            named = [x for x, (kind, _) in zip(arguments, d.named, strict=True) if kind != "wanted"]
            given = iter(
                d.backward_operator(
                    *named, *ctx.unseen, wanted, *d.schema.scalars(ctx.params), ctx.path
                )
            )
            every = [next(given) if want else None for want in wanted]
        found: list[Any] = [None] * len(needs)
        for i, gradient in zip(d.learning, [every] if d.many else every, strict=True):
            found[i] = gradient
        for i in ctx.empty:  # torch takes these for lists of tensors
            if i < len(found):  # without defaults
                found[i] = []
        return tuple(found)


FACTS = {"shape": "SymInt[]", "dtype": "ScalarType"}


class _Backward(_Operator):
    """``cortado::<layer>_backward``: the gradients that are wanted, in one list.

    Its arguments are what the layer's backward names, in that order; sizes, numbers of axes and type of
    a bottom that learns where the bottom itself is not among them; which gradients are wanted; the
    parameters and the path.
    """

    def __init__(self, d: Definition, library: torch.library.Library, name: str, schema: str) -> None:
        super().__init__(d, library, name, schema)
        torch.library.register_autograd(self.qualified, self.no_second, lib=library)

    def read(self, arguments: Sequence[Any]) -> tuple[list[Any], list[Any], Sequence[bool], Any, str]:
        """What backward names; shape and dtype of each bottom that learns; wanted, parameters, path."""
        d, given = self.d, iter(self.full(arguments))
        named = [None if kind == "wanted" else next(given) for kind, _ in d.named]
        specs = {i: _undescribed(next(given), next(given), next(given)) for i in d.unseen}
        wanted, *scalars, path = given
        named = [
            tuple(wanted) if kind == "wanted" else x
            for (kind, _), x in zip(d.named, named, strict=True)
        ]
        described: list[Any] = []
        for i in d.learning:
            if i in specs:
                described += specs[i]
            else:
                x = next(x for x, key in zip(named, d.named, strict=True) if key == ("bottom", i))
                row = x if isinstance(x, list) else [x]
                described += [None if y is None else (y.shape, y.dtype) for y in row]
        return named, described, wanted, d.schema.params(scalars), path

    def tops(self, named: Sequence[Any]) -> list[Tensor]:
        """The gradients of tops among what backward names."""
        return [x for x, (kind, _) in zip(named, self.d.named, strict=True) if kind == "gradient"]

    def run(self, *arguments: Any) -> list[Tensor]:
        named, _, wanted, params, path = self.read(arguments)
        kernels = self.d.runs_kernels(path, self.tops(named))
        found = self.d.differentiate(kernels, params, named)
        return _apart([x for x, want in zip(found, wanted, strict=True) if want and x is not None])

    def fake(self, *arguments: Any) -> list[Tensor]:
        named, described, wanted, _, _ = self.read(arguments)
        like = self.tops(named)[0]
        chosen = [spec for spec, want in zip(described, wanted, strict=True) if want]
        return [like.new_empty(shape, dtype=dtype) for shape, dtype in chosen]

    def no_second(self, ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(refusal(self.d.name, "second derivative"))


def _forward_schema(d: Definition) -> str:
    bottoms = [f"{_tensor(bottom)} {bottom.name}" for bottom in d.bottoms]
    last = [*(["bool keep=True"] if d.keeps else []), 'str path=""']
    given = ", ".join([*bottoms, *d.schema.arguments, *last])
    return f"({given}) -> ({', '.join(['Tensor'] * len(d.outputs))})"


def _backward_schema(d: Definition) -> str:
    arguments = []
    for kind, i in d.named:
        if kind == "gradient":
            arguments.append(f"Tensor {d.outputs[i]}_gradient")
        elif kind == "output":
            arguments.append(f"Tensor {d.outputs[i]}")
        elif kind == "bottom":
            arguments.append(f"{_tensor(d.bottoms[i])} {d.bottoms[i].name}")
        elif kind in FACTS:
            arguments.append(f"{FACTS[kind]} {d.bottoms[i].name}_{kind}")
    for i in d.unseen:
        name = d.bottoms[i].name
        arguments += [f"SymInt[] {name}_sizes", f"int[] {name}_axes", f"ScalarType {name}_type"]
    given = ", ".join([*arguments, "bool[] wanted", *d.schema.arguments, 'str path=""'])
    return f"({given}) -> Tensor[]"


def _tensor(bottom: Bottom) -> str:
    return "Tensor[]" if bottom.many else "Tensor?" if bottom.optional else "Tensor"


def _described(bottom: Tensor | Sequence[Tensor]) -> tuple[list[Any], list[int], torch.dtype]:
    """The sizes of a bottom, or of all its tensors in one row, how many axes each has, and the type."""
    tensors = [bottom] if isinstance(bottom, Tensor) else list(bottom)
    return [n for x in tensors for n in x.shape], [x.dim() for x in tensors], tensors[0].dtype


def _undescribed(sizes: Sequence[Any], axes: Sequence[int], dtype: torch.dtype) -> list[Any]:
    """Shape and dtype of each tensor."""
    rest = iter(sizes)
    return [(tuple(next(rest) for _ in range(count)), dtype) for count in axes]


def _apart(found: list[Tensor]) -> list[Tensor]:
    """Contiguous tensors, none in the memory of another: what an operator may give."""
    taken: set[int] = set()
    for i, x in enumerate(found):
        memory = x.untyped_storage().data_ptr()
        found[i] = x.clone(memory_format=torch.contiguous_format) if memory in taken else x.contiguous()
        if x.numel():
            taken.add(memory)
    return found


def _one(found: list[Tensor]) -> Any:
    return found[0] if len(found) == 1 else tuple(found)
