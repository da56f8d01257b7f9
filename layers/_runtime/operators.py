"""A layer as two operators of PyTorch's dispatcher: ``cortado::<layer>`` and its backward.

They stand for a layer where nothing may look into it: where kernels run, where values decide the
course, and for tensors without values. :func:`register` makes them of a
:class:`~.definition.Definition`; kernels, shapes and gradients are the definition's own functions.

Parameters enter the schema as scalars, enums by their names, with the defaults of ``Params``; a nested
block (a filler) describes blobs, not the mathematics, and stays outside. ``path`` is "torch" or "cuda"
where one is forced, "" where the device says it.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import types
import typing
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .params import choice, valid

if TYPE_CHECKING:
    from .definition import Definition

NAMESPACE = "cortado"
_TYPES: dict[Any, str] = {float: "float", int: "SymInt", bool: "bool", str: "str"}
_libraries: dict[str, torch.library.Library] = {}


class Fields:
    """A ``Params`` class as scalars of a schema."""

    def __init__(self, Params: type) -> None:
        self.Params = Params
        hints = typing.get_type_hints(Params)
        every = [field for field in dataclasses.fields(Params) if field.init]
        chosen = [(field, _schema(hints[field.name])) for field in every]
        self.fields = [field for field, kind in chosen if kind]
        self.names = [field.name for field in self.fields]
        self.kinds = [kind for _, kind in chosen if kind]
        self.enums = [_enum(hints[name]) for name in self.names]
        self.made: dict[tuple[Any, ...], Any] = {}

    def given(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The checked parameters of a functional form's arguments, enums by their names too."""
        values = {**dict(zip(self.names, args, strict=False)), **kwargs}
        for name, kind in zip(self.names, self.enums, strict=True):
            if kind and name in values:
                values[name] = choice(kind, values[name], name)
        return valid(self.Params(**values))

    def declared(self) -> list[str]:
        """The schema's arguments; the last of them have defaults, as a schema wants it."""
        defaults = [_default(field) for field in self.fields]
        last = max((i + 1 for i, default in enumerate(defaults) if not default), default=0)
        return [
            f"{kind} {name}{default if i >= last else ''}"
            for i, (kind, name, default) in enumerate(zip(self.kinds, self.names, defaults, strict=True))
        ]

    def scalars(self, params: Any) -> tuple[Any, ...]:
        """The values that enter."""
        found = [getattr(params, name) for name in self.names]
        return tuple([x.name if isinstance(x, enum.Enum) else x for x in found])

    def params(self, scalars: Sequence[Any]) -> Any:
        """The parameters again."""
        values = tuple([tuple(x) if isinstance(x, list) else x for x in scalars])
        plain = not any(isinstance(x, SYMBOLIC) for x in values)
        if plain and values in self.made:
            return self.made[values]
        named = zip(self.names, self.enums, values, strict=True)
        params = self.Params(**{name: kind[x] if kind else x for name, kind, x in named})
        if plain:
            self.made[values] = params
        return params


SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)


def _schema(hint: Any) -> str:
    """A field's type in a schema; "" for a nested block."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (inner,) = [x for x in typing.get_args(hint) if x is not type(None)]
        return f"{_schema(inner)}?" if _schema(inner) else ""
    if typing.get_origin(hint) is tuple:
        return f"{_schema(typing.get_args(hint)[0])}[]"
    if dataclasses.is_dataclass(hint):
        return ""
    return "str" if _enum(hint) else _TYPES[hint]


def _enum(hint: Any) -> type[enum.Enum] | None:
    return hint if isinstance(hint, type) and issubclass(hint, enum.Enum) else None


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if value is dataclasses.MISSING or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, enum.Enum):
        value = value.name
    if isinstance(value, str):
        return f'="{value}"'
    return f"={list(value) if isinstance(value, tuple) else value}"


def unbacked(least: int = 0) -> Any:
    """A size that only values can tell, at least ``least``: for ``meta``."""
    try:
        return torch.library.get_ctx().new_dynamic_size(min=least)
    except (RuntimeError, NotImplementedError, AttributeError):
        return least


def register(d: Definition) -> tuple[Any, Any]:
    """The layer's operators, the second None without a backward. They replace those of a definition of
    the same name that was there before: a plugin read again, a notebook's cell."""
    if d.name in _libraries:
        _libraries.pop(d.name)._destroy()
    library = _libraries[d.name] = torch.library.Library(NAMESPACE, "FRAGMENT")
    backward = _Backward(d, library).operator if d.backwards[0] else None
    return _Forward(d, library).operator, backward


class _Operator:
    """What both have in common: a name, a schema, and how arguments are read."""

    def __init__(
        self, d: Definition, library: torch.library.Library, name: str, arguments: list[str], gives: str
    ) -> None:
        self.d, self.qualified = d, f"{NAMESPACE}::{name}"
        library.define(f"{name}({', '.join(arguments)}) -> {gives}")
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
        raise RuntimeError(self.d.refusal("vmap"))


class _Forward(_Operator):
    """``cortado::<layer>(bottoms, parameters, keep where it is asked, path) -> tops, kept tensors``."""

    def __init__(self, d: Definition, library: torch.library.Library) -> None:
        bottoms = [f"{_tensor(x.many, x.optional)} {x.name}" for x in d.bottoms]
        last = [*(["bool keep=True"] if d.keeps else []), 'str path=""']
        gives = f"({', '.join(['Tensor'] * len(d.outputs))})"
        super().__init__(d, library, d.name, [*bottoms, *d.fields.declared(), *last], gives)
        for device in ("cpu", "cuda"):
            torch.library.register_autocast(self.qualified, device, torch.float32, lib=library)
        if d.backwards[0]:
            options: Any = {"setup_context": self.setup_context, "lib": library}
            torch.library.register_autograd(self.qualified, self.gradients, **options)

    def read(self, arguments: Sequence[Any]) -> tuple[Sequence[Any], Any, bool, str]:
        """Bottoms, parameters, whether to keep, the path; raises in forward mode, whose tangents an
        operator does not see."""
        if forward_ad._current_level >= 0:
            raise RuntimeError(self.d.refusal("forward mode"))
        arguments, first = self.full(arguments), len(self.d.bottoms)
        last = first + len(self.d.fields.names)
        *keep, path = arguments[last:]
        return arguments[:first], self.d.fields.params(arguments[first:last]), all(keep), path

    def run(self, *arguments: Any) -> Any:
        bottoms, params, keep, path = self.read(arguments)
        self.d.check(params, bottoms)
        kernels = self.d.runs_kernels(self.d.placed(bottoms), path)
        found = self.d.compute(kernels, keep, params, bottoms)
        return _one([found[0].new_empty(0) if x is None else x.contiguous() for x in found])

    def fake(self, *arguments: Any) -> Any:
        bottoms, params, keep, _ = self.read(arguments)
        self.d.check(params, bottoms)
        like = self.d.flat(bottoms)[0]
        specs = self.d.meta(params, *bottoms)
        nothing = (0,), specs[0][1]
        chosen = [
            nothing if x is None or not (keep or i < len(self.d.tops)) else x for i, x in enumerate(specs)
        ]
        return _one([like.new_empty(shape, dtype=dtype) for shape, dtype in chosen])

    def setup_context(self, ctx: Any, inputs: Sequence[Any], output: Any) -> None:
        bottoms, ctx.params, keep, ctx.path = self.read(inputs)
        if not keep:
            raise RuntimeError(f"{self.qualified}: keep=False, but a gradient is asked for")
        outputs = [output] if isinstance(output, Tensor) else output
        specs = self.d.meta(ctx.params, *bottoms)
        outputs = [None if spec is None else x for spec, x in zip(specs, outputs, strict=True)]
        self.d.save(ctx, bottoms, outputs)

    def gradients(self, ctx: Any, *gradients: Tensor | None) -> Any:
        d, needs = self.d, ctx.needs_input_grad
        wanted = list(needs[0]) if d.many else [needs[i] for i in d.learning]
        given = d.given(ctx, gradients)
        found: list[Any] = [None] * len(needs)
        if given is None:
            return tuple([[None] * len(wanted), *found[1:]] if d.many else found)
        every = d.gradients_by_operator(ctx, given, wanted)
        if d.many:
            found[0] = every
        else:
            for i, gradient in zip(d.learning, every, strict=True):
                found[i] = gradient
        return tuple(found)


class _Given(NamedTuple):
    """What :meth:`~.definition.Definition.gradients` takes of a call."""

    gradients: list[Tensor | None]
    saved: list[Tensor | None]
    described: list[Any]


FACTS = {"shape": "SymInt[]", "dtype": "ScalarType"}


class _Backward(_Operator):
    """``cortado::<layer>_backward``: the gradients that are wanted, in one list.

    Its arguments are what the layer's backward names, in that order, then shape and dtype of a
    bottom that learns where the bottom itself is not among them, which gradients are wanted, the
    parameters and the path.
    """

    def __init__(self, d: Definition, library: torch.library.Library) -> None:
        arguments = []
        for kind, i in d.asked:
            if kind == "gradient":
                arguments.append(f"Tensor {d.outputs[i]}_gradient")
            elif kind == "output":
                arguments.append(f"Tensor {d.outputs[i]}")
            elif kind == "bottom":
                bottom = d.bottoms[i]
                arguments.append(f"{_tensor(bottom.many, bottom.optional)} {bottom.name}")
            elif kind in FACTS:
                arguments.append(f"{FACTS[kind]} {d.bottoms[i].name}_{kind}")
        for i in d.unseen:
            arguments += [f"SymInt[] {d.bottoms[i].name}_size", f"ScalarType {d.bottoms[i].name}_type"]
        arguments += ["bool[] wanted", *d.fields.declared(), 'str path=""']
        super().__init__(d, library, f"{d.name}_backward", arguments, "Tensor[]")
        torch.library.register_autograd(self.qualified, self.no_second, lib=library)

    def read(self, arguments: Sequence[Any]) -> tuple[_Given, list[tuple[Any, Any]], Sequence[bool], Any, str]:
        """What backward names; shape and dtype of each bottom that learns; wanted, parameters, path."""
        arguments, given = list(self.full(arguments)), _Given([None] * len(self.d.outputs), [], [])
        bottoms: dict[int, Any] = {}
        for kind, i in self.d.asked:
            if kind == "wanted":
                continue
            x = arguments.pop(0)
            if kind == "gradient":
                given.gradients[i] = x
            elif kind in FACTS:
                given.described.append(x)
            else:
                given.saved.extend(x if isinstance(x, list) else [x])
            if kind == "bottom":
                bottoms[i] = x
        unseen = {i: (arguments.pop(0), arguments.pop(0)) for i in self.d.unseen}
        wanted, *scalars, path = arguments
        specs: list[tuple[Any, Any]] = []
        for i in self.d.learning:
            found = [None] if i in unseen else bottoms[i] if self.d.many else [bottoms[i]]
            specs += [(x.shape, x.dtype) if x is not None else unseen.get(i, (0, None)) for x in found]
        return given, specs, wanted, self.d.fields.params(scalars), path

    def run(self, *arguments: Any) -> list[Tensor]:
        given, _, wanted, params, path = self.read(arguments)
        kernels = self.d.runs_kernels([x for x in given.gradients if x is not None], path)
        found = self.d.gradients(kernels, params, *given, wanted)
        return [x.contiguous() for x, want in zip(found, wanted, strict=True) if want and x is not None]

    def fake(self, *arguments: Any) -> list[Tensor]:
        given, specs, wanted, _, _ = self.read(arguments)
        like = next(x for x in given.gradients if x is not None)
        chosen = [spec for spec, want in zip(specs, wanted, strict=True) if want]
        return [like.new_empty(shape, dtype=dtype) for shape, dtype in chosen]

    def no_second(self, ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(self.d.refusal("second derivative"))


def _tensor(many: bool, optional: bool) -> str:
    return "Tensor[]" if many else "Tensor?" if optional else "Tensor"


def _one(found: list[Tensor]) -> Any:
    return found[0] if len(found) == 1 else tuple(found)
