"""What a layer is: its bottoms, its tops, and the functions of its mathematics.

A layer's file declares both and writes ``infer``, ``meta``, ``forward`` and ``backward`` as plain
functions, and ``forward_cuda`` and ``backward_cuda`` where it has kernels. :class:`Definition` takes
them and derives what every layer needs around its mathematics: the ``torch.autograd.Function``, the
operators ``cortado::<layer>`` and ``cortado::<layer>_backward`` (:mod:`.operators`), which path runs,
what is saved for backward, autocast, and the checks that come before.

::

    BOTTOMS = (Bottom("bottom", "[N, C, ...]"),)
    TOPS = (Top("top"),)
    definition = Definition(
        "scaled", Params, BOTTOMS, TOPS, infer=infer, meta=meta, forward=forward, backward=backward
    )
    top = definition(Params(factor=2.0), bottom)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import operators
from .checks import Shape, deferred, expect_floating, expect_same_device, shapes, valueless
from .dispatch import forced, kernels_for, runs_kernels, use_cuda
from .parallel import balanced, place
from .sizes import shape_of, size_of, size_tensor


class Role(Enum):
    """What a bottom holds."""

    MAP = "map"
    """Features or scores: floating, all maps of one type on one device. A map has a gradient."""
    TABLE = "table"
    """Coordinates, which half precision would spoil: any type, on the maps' device."""
    LABEL = "label"
    """Classes or the like: any type, on the maps' device."""
    COUNT = "count"
    """How many rows of each image are valid: any type, on any device."""
    SIZE = "size"
    """An image, of which only the shape is read, or two values (height, width), on any device."""
    SEED = "seed"
    """What random numbers are drawn by, int64 ``[1]`` on the CPU: the layer gives it, no net does."""


@dataclass(frozen=True)
class Bottom:
    """A bottom, declared once. ``shape`` is for people to read."""

    name: str
    shape: str = ""
    role: Role = Role.MAP
    optional: bool = False
    shared: bool = False
    """Every item of a batch reads it whole: its first axis is not the batch's."""
    partly: bool = False
    """It is read at some of its cells alone."""
    many: bool = False
    """Any number of tensors, given as a list."""
    why_no_gradient: str = ""
    """Why a map gets none; what is no map gets none anyway."""

    @property
    def differentiable(self) -> bool:
        return self.role is Role.MAP and not self.why_no_gradient


@dataclass(frozen=True)
class Top:
    """A top. One without a gradient says why; ``mean_of`` names the top or kept tensor that counts
    what it is a mean over, by which several processes that share a batch balance it."""

    name: str
    why_no_gradient: str = ""
    mean_of: str = ""


Spec = tuple[Sequence[int], torch.dtype]
"""Shape and dtype of a tensor that a function will give."""
SIMPLE = {int, float, bool, str, type(None)}
Outputs = tuple[Any, ...]
"""Tops and kept tensors, of these some None."""


class Asked(NamedTuple):
    """An argument of a backward function, as its signature names it: what it is, and of which bottom,
    top or output."""

    kind: str
    index: int = 0


class Definition:
    """A layer's mathematics, to be called: ``definition(params, *bottoms)``.

    - ``infer(params, *bottom_shapes) -> top_shapes`` raises :class:`~.checks.BlobError`;
    - ``meta(params, *bottoms)`` gives a :data:`Spec` for each top and for each tensor in ``kept``, from
      the shapes and types of the bottoms alone; a size that depends on values is
      :func:`~.operators.unbacked`;
    - ``forward(params, *bottoms)`` gives the tops and then what is ``kept``, in one tuple. Sizes come to
      it as (height, width), optional bottoms that are not given as None. A forward with a parameter
      ``keep`` is told whether a gradient will be asked for, and gives None for what is kept if not;
    - ``backward(params, ...)`` names what it needs: ``<top>_gradient``, ``wanted`` (which gradients are),
      bottoms, tops and kept tensors by their names, ``<bottom>_shape``, ``<bottom>_dtype``. What it names
      is what is saved. It gives the gradients of the bottoms that have one, None where unwanted.

    No output is an input, or shares memory with another output. In place of a kept tensor that would be
    the first top itself ``meta`` and ``forward`` give None, and backward gets the top.

    ``forward_cuda`` and ``backward_cuda`` have the same signatures. ``expect(params, *bottoms)`` looks at
    values, unless kernels do it. ``traced``: compilers may look into ``forward`` and ``backward``; else
    the operator stands for them. ``result`` makes a named tuple of the tops.
    """

    def __init__(
        self,
        name: str,
        Params: type,
        bottoms: Sequence[Bottom],
        tops: Sequence[Top],
        *,
        infer: Callable[..., Sequence[Shape]],
        meta: Callable[..., Sequence[Spec | None]],
        forward: Callable[..., tuple[Tensor | None, ...]],
        backward: Callable[..., Any] | None = None,
        forward_cuda: Callable[..., tuple[Tensor | None, ...]] | None = None,
        backward_cuda: Callable[..., Any] | None = None,
        kept: Sequence[str] = (),
        expect: Callable[..., None] | None = None,
        traced: bool = False,
        result: Callable[..., Any] | None = None,
    ) -> None:
        self.name, self.Params = name, Params
        self.bottoms, self.tops, self.kept = tuple(bottoms), tuple(tops), tuple(kept)
        self.infer, self.meta, self.expect, self.traced, self.result = infer, meta, expect, traced, result
        self.fields, self.known = operators.Fields(Params), dict[Any, Any]()
        self.forwards, self.backwards = (forward, forward_cuda), (backward, backward_cuda)
        self.keeps = "keep" in inspect.signature(forward).parameters
        self.maps, self.beside, self.sizes = (
            [i for i, bottom in enumerate(self.bottoms) if bottom.role in roles]
            for roles in ((Role.MAP,), (Role.TABLE, Role.LABEL), (Role.SIZE,))
        )
        self.many = self.bottoms[0].many
        self.learning = [i for i, x in enumerate(self.bottoms) if backward and x.differentiable]
        self.outputs = (*(top.name for top in self.tops), *self.kept)
        self.still = [i for i in range(len(self.bottoms)) if i not in self.learning]
        self.alive = [i for i, top in enumerate(self.tops) if backward and not top.why_no_gradient]
        self.dead = [i for i in range(len(self.outputs)) if i not in self.alive]
        self.asked = self._asked(backward) if backward else []
        self.unseen = [i for i in self.learning if Asked("bottom", i) not in self.asked]
        title = "".join(part.capitalize() for part in name.split("_"))
        self.function = type(title, (LayerFunction,), {"__module__": __name__})
        self.apply = super(torch.autograd.Function, self.function).apply  # see _eager
        self.operator, self.backward_operator = operators.register(self)

    def _asked(self, backward: Callable[..., Any]) -> list[Asked]:
        """Of each of backward's parameters after ``params``."""
        names = [bottom.name for bottom in self.bottoms]
        known = {"wanted": Asked("wanted")}
        known |= {f"{top}_gradient": Asked("gradient", i) for i, top in enumerate(self.outputs)}
        for kind in ("shape", "dtype"):
            known |= {f"{name}_{kind}": Asked(kind, i) for i, name in enumerate(names)}
        known |= {name: Asked("output", i) for i, name in enumerate(self.outputs)}
        known |= {name: Asked("bottom", i) for i, name in enumerate(names)}
        _, *asked = inspect.signature(backward).parameters
        if unknown := [name for name in asked if name not in known]:
            raise TypeError(f"{self.name}: backward names {unknown}, expected some of {sorted(known)}")
        return [known[name] for name in asked]

    def count(self, blobs: str) -> tuple[int, int | None]:
        """How many "bottoms" or "tops" a layer has, inclusive; None for any number."""
        if blobs == "tops":
            return min(len(self.tops), 1), len(self.tops)
        given = [bottom for bottom in self.bottoms if bottom.role is not Role.SEED]
        return sum(not bottom.optional for bottom in given), None if self.many else len(given)

    # ------------------------------------------------------------------------------------ a call

    def params(self, *args: Any, **kwargs: Any) -> Any:
        """The ``Params`` that a functional form is given; enums may come by their names.

        Raises TypeError for a value of another type, ValueError for one out of range.
        """
        kinds = (*map(type, args), *map(type, kwargs.values()))
        if torch.compiler.is_compiling() or not SIMPLE.issuperset(kinds):
            return self.fields.given(args, kwargs)
        key = (args, *kwargs.items(), kinds)
        if key not in self.known:
            self.known[key] = self.fields.given(args, kwargs)
        return self.known[key]

    def __call__(self, params: Any, *bottoms: Any) -> Any:
        """The tops: one tensor, or a tuple of them.

        Raises TypeError for what is no tensor, dtypes and devices, :class:`~.checks.BlobError` for
        shapes that do not fit, and what ``expect`` raises for values.
        """
        if not torch.compiler.is_dynamo_compiling():  # there the operator says what does not fit
            self.check(params, bottoms)
        bottoms = self._prepared(bottoms)
        first = bottoms[0][0] if self.many else bottoms[0]
        if torch.compiler.is_compiling():
            outputs = self._compiled(params, bottoms, first)
        elif valueless(first):
            outputs = self._operated(params, bottoms)
        else:
            outputs = self._outside_of_autocast(params, bottoms, first)
        if place()[1] > 1:
            outputs = self._balanced(outputs)
        if len(self.tops) == 1:
            return outputs[0]
        tops = outputs[: len(self.tops)]
        return self.result(*tops) if self.result else tuple(tops)

    def check(self, params: Any, bottoms: Sequence[Any]) -> None:
        """Raise for shapes, dtypes and devices that do not fit."""
        try:
            found = [x.shape for x in self.flat(bottoms)]
        except AttributeError:  # a size in numbers, an optional bottom that is not given, or no tensor
            found = [self._shape(bottom, x) for bottom, x in zip(self.bottoms, bottoms, strict=False)]
        self.infer(params, *found)
        maps = [bottoms[i] for i in self.maps if i < len(bottoms)]
        if self.many:
            maps = [*maps[0], *maps[1:]]
        first = maps[0]
        dtype, device = first.dtype, first.device
        alike = dtype.is_floating_point
        for x in maps[1:]:
            alike = alike and (x is None or (x.dtype == dtype and x.device == device))
        if not alike:
            expect_floating(**self._named(bottoms, self.maps))
        for i in self.beside:
            if i < len(bottoms) and bottoms[i] is not None and bottoms[i].device != device:
                expect_same_device(**self._named(bottoms, [*self.maps[:1], *self.beside]))

    def _shape(self, bottom: Bottom, x: Any) -> Shape | None:
        if x is None and bottom.optional:
            return None
        if bottom.role is Role.SIZE:
            return shape_of(self.name, bottom.name, x)
        return shapes(self.name, **{bottom.name: x})[bottom.name]

    def _named(self, bottoms: Sequence[Any], chosen: Sequence[int]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for i in chosen:
            if i < len(bottoms) and bottoms[i] is not None:
                name, x = self.bottoms[i].name, bottoms[i]
                found |= {f"{name}[{j}]": y for j, y in enumerate(x)} if self.many else {name: x}
        return found

    def flat(self, bottoms: Sequence[Any]) -> Sequence[Any]:
        """The bottoms in one row, those of a list too."""
        return (*bottoms[0], *bottoms[1:]) if self.many else bottoms

    def nested(self, flat: Sequence[Any]) -> Sequence[Any]:
        """The bottoms again: the first is a list where it is ``many``."""
        if not self.many:
            return flat
        rest = len(self.bottoms) - 1
        return (list(flat[: len(flat) - rest]), *flat[len(flat) - rest :])

    def _prepared(self, bottoms: Sequence[Any]) -> Sequence[Any]:
        """All of them, None for one that is not given; those without a gradient detached."""
        bottoms = [*bottoms, *[None] * (len(self.bottoms) - len(bottoms))]
        for i in self.still:
            if isinstance(bottoms[i], Tensor) and bottoms[i].requires_grad:
                bottoms[i] = bottoms[i].detach()
        return bottoms

    def _outside_of_autocast(self, params: Any, bottoms: Sequence[Any], first: Tensor) -> Outputs:
        """Where autocast is on, half inputs are read as float32, as torch's own norms and losses do."""
        device = first.device.type
        if not torch.is_autocast_enabled(device):
            return self._eager(params, bottoms)
        with torch.autocast(device, enabled=False):
            return self._eager(params, self.nested([_full(x) for x in self.flat(bottoms)]))

    def _eager(self, params: Any, bottoms: Sequence[Any]) -> Outputs:
        kernels = self.forwards[1] is not None and use_cuda(*self.placed(bottoms))
        keep = self._learns(bottoms)
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            self.expect_backward_mode(bottoms)
            return self.function.apply(self, kernels, keep, params, *self.flat(bottoms))
        if not keep:
            return self.compute(kernels, keep, params, bottoms)
        # not Function.apply, which asks inspect for forward's signature, some 10 us a call
        return self.apply(self, kernels, keep, params, *self.flat(bottoms))

    def _learns(self, bottoms: Sequence[Any]) -> bool:
        if not torch.is_grad_enabled():
            return False
        for i in self.learning:
            x = bottoms[i]
            if any(y.requires_grad for y in x) if self.many else x is not None and x.requires_grad:
                return True
        return False

    def placed(self, bottoms: Sequence[Any]) -> list[Tensor]:
        """The bottoms that say on which device a call runs."""
        found = [bottoms[i] for i in (*self.maps, *self.beside) if bottoms[i] is not None]
        return list(self.flat(found))

    def _compiled(self, params: Any, bottoms: Sequence[Any], first: Tensor) -> Outputs:
        """Torch operations that a compiler can trace are traced, which fuses them; else the operator."""
        kernels = self.forwards[1] is not None and kernels_for(first)
        if not self.traced or kernels or _refused_transform():
            return self._operated(params, bottoms)
        if torch.compiler.is_dynamo_compiling():  # whose own exceptions lose their text
            self._operated(params, [_without_values(x) for x in bottoms])
        device, keep = first.device.type, self._learns(bottoms)
        if torch.is_autocast_enabled(device):
            bottoms = self.nested([_full(x) for x in self.flat(bottoms)])
            with torch.autocast(device, enabled=False):
                return self.function.apply(self, False, keep, params, *self.flat(bottoms))
        return self.function.apply(self, False, keep, params, *self.flat(bottoms))

    def _operated(self, params: Any, bottoms: Sequence[Any]) -> Outputs:
        bottoms = [
            size_tensor(x) if bottom.role is Role.SIZE and x is not None else x
            for bottom, x in zip(self.bottoms, bottoms, strict=True)
        ]
        keep = (self._learns(bottoms),) if self.keeps else ()
        found = self.operator(*bottoms, *self.fields.scalars(params), *keep, forced())
        return (found,) if isinstance(found, Tensor) else found

    def _balanced(self, outputs: Outputs) -> Outputs:
        counts = dict(zip(self.outputs, outputs, strict=True))
        return tuple(
            balanced(x, counts[top.mean_of]) if top.mean_of else x
            for top, x in zip(self.tops, outputs, strict=False)
        )

    # ------------------------------------------------- what the Function and the operators both call

    def compute(self, kernels: bool, keep: bool, params: Any, bottoms: Sequence[Any]) -> Outputs:
        """Tops and kept tensors, by the kernels or in torch operations."""
        if self.sizes:
            bottoms = list(bottoms)
            for i in self.sizes:
                if bottoms[i] is not None:
                    bottoms[i] = size_of(self.bottoms[i].name, bottoms[i])
        if self.expect and not (kernels and deferred(self.placed(bottoms)[0])):
            self.expect(params, *bottoms)
        forward = self.forwards[kernels]
        assert forward is not None
        return forward(params, *bottoms, keep=keep) if self.keeps else forward(params, *bottoms)

    def save(self, ctx: Any, bottoms: Sequence[Any], outputs: Sequence[Tensor | None]) -> None:
        """Keep what backward names, and nothing else."""
        saved: list[Tensor | None] = []
        described: list[Any] = []
        for kind, i in self.asked:
            if kind == "bottom":
                saved += bottoms[i] if self.many and i == 0 else [bottoms[i]]
            elif kind == "output":
                saved.append(outputs[0] if outputs[i] is None else outputs[i])
            elif kind == "shape":
                described.append(bottoms[i].shape)
            elif kind == "dtype":
                described.append(bottoms[i].dtype)
        ctx.described = described
        ctx.unseen = [(bottoms[i].shape, bottoms[i].dtype) for i in self.unseen]
        if len(self.alive) > 1:
            ctx.tops = [(x.shape, x.dtype, x.device) for x in outputs[: len(self.tops)]]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*[outputs[i] for i in self.dead if outputs[i] is not None])
        ctx.save_for_backward(*saved)

    def given(self, ctx: Any, gradients: Sequence[Tensor | None]) -> Sequence[Tensor | None] | None:
        """The tops' gradients, zeros for one that nobody has where others are; None without any."""
        missing = [i for i in self.alive if gradients[i] is None]
        if len(missing) == len(self.alive):
            return None
        gradients = list(gradients)
        for i in missing:
            shape, dtype, device = ctx.tops[i]
            gradients[i] = torch.zeros(shape, dtype=dtype, device=device)
        return gradients

    def gradients(
        self,
        kernels: bool,
        params: Any,
        gradients: Sequence[Tensor | None],
        saved: Sequence[Tensor | None],
        described: Sequence[Any],
        wanted: Sequence[bool],
    ) -> list[Tensor | None]:
        """The gradients of the bottoms that learn, in one row; None for those that are not wanted."""
        tensors, facts, arguments = iter(saved), iter(described), []
        for kind, i in self.asked:
            if kind == "gradient":
                arguments.append(gradients[i])
            elif kind == "wanted":
                arguments.append(tuple(wanted))
            elif kind in ("shape", "dtype"):
                arguments.append(next(facts))
            elif kind == "bottom" and self.many and i == 0:
                arguments.append([next(tensors) for _ in wanted])
            else:
                arguments.append(next(tensors))
        backward = self.backwards[kernels]
        assert backward is not None
        found = backward(params, *arguments)
        return [found] if isinstance(found, Tensor) else list(found)

    def gradients_by_operator(
        self, ctx: Any, gradients: Sequence[Tensor | None], wanted: Sequence[bool]
    ) -> list[Tensor | None]:
        """The same by the operator, from what :meth:`save` kept."""
        saved, facts, arguments = list(ctx.saved_tensors), iter(ctx.described), list[Any]()
        for kind, i in self.asked:
            if kind == "gradient":
                arguments.append(gradients[i])
            elif kind in ("shape", "dtype"):
                arguments.append(next(facts))
            elif kind == "bottom" and self.bottoms[i].many:
                arguments.append([saved.pop(0) for _ in wanted])
            elif kind != "wanted":
                arguments.append(saved.pop(0))
        for spec in ctx.unseen:
            arguments += spec
        scalars = self.fields.scalars(ctx.params)
        found = iter(self.backward_operator(*arguments, list(wanted), *scalars, ctx.path))
        return [next(found) if want else None for want in wanted]

    def wanted(self, needs: Sequence[bool]) -> Sequence[bool]:
        """Which gradients are, by which of the bottoms in one row need one."""
        if self.many:
            return needs[: len(needs) - len(self.bottoms) + 1]
        return [needs[i] for i in self.learning]


    def expect_backward_mode(self, bottoms: Sequence[Any]) -> None:
        """Raise for tensors that carry a tangent."""
        if forward_ad._current_level < 0:
            return
        for x in self.flat(bottoms):
            if isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None:
                raise RuntimeError(self.refusal("forward mode"))

    def runs_kernels(self, tensors: Sequence[Tensor], path: str) -> bool:
        """Whether an operator that was given these runs the kernels."""
        return self.forwards[1] is not None and runs_kernels(path, *tensors)

    def refusal(self, what: str) -> str:
        """Of a second derivative, of vmap and forward mode: in the same words everywhere."""
        return f"{self.name} has no {what}: {REFUSED[what]}"


REFUSED = {
    "second derivative": "its gradient cannot be differentiated again",
    "vmap": "give it a batch",
    "forward mode": "ask for its gradient by backward",
}


@torch.compiler.assume_constant_result
def _refused_transform() -> bool:
    """Whether a compiler traces vmap or forward mode, which the operator refuses."""
    stack = torch._C._functorch.get_interpreter_stack() or []
    grad = torch._C._functorch.TransformType.Grad
    return any(interpreter.key() != grad for interpreter in stack)


class LayerFunction(torch.autograd.Function):
    """What every layer's Function does; each layer has one of its own, named after it."""

    @staticmethod
    def forward(d: Definition, kernels: bool, keep: bool, params: Any, *bottoms: Any) -> Outputs:
        return d.compute(kernels, keep, params, d.nested(bottoms))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
        ctx.definition, ctx.kernels, _, ctx.params, *flat = inputs
        ctx.definition.save(ctx, ctx.definition.nested(flat), output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        d, needs = ctx.definition, ctx.needs_input_grad[4:]
        found: list[Tensor | None] = [None] * (4 + len(needs))
        given = d.given(ctx, gradients)
        if given is None:
            return tuple(found)
        wanted, saved = d.wanted(needs), ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            own = LayerGradient.apply(d, (ctx.kernels, ctx.params, ctx.described, wanted), *given, *saved)  # whose graph is asked for
        else:
            own = d.gradients(ctx.kernels, ctx.params, given, saved, ctx.described, wanted)
        for i, gradient in zip(range(len(own)) if d.many else d.learning, own, strict=True):
            found[4 + i] = gradient
        return tuple(found)

    @staticmethod
    def vmap(info: Any, in_dims: Any, d: Definition, *inputs: Any) -> Any:
        raise RuntimeError(d.refusal("vmap"))


class LayerGradient(torch.autograd.Function):
    """A layer's gradients as a node of the graph, which cannot be differentiated again."""

    @staticmethod
    def forward(d: Definition, call: Any, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        kernels, params, described, wanted = call
        given, saved = tensors[: len(d.outputs)], tensors[len(d.outputs) :]
        return tuple(d.gradients(kernels, params, given, saved, described, wanted))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.definition = inputs[0]

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> Any:
        raise RuntimeError(ctx.definition.refusal("second derivative"))

    @staticmethod
    def vmap(info: Any, in_dims: Any, d: Definition, *inputs: Any) -> Any:
        raise RuntimeError(d.refusal("vmap"))


def _without_values(x: Any) -> Any:
    return x.detach().to("meta") if isinstance(x, Tensor) else x


def _full(x: Any) -> Any:
    half = isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16)
    return x.float() if half else x

