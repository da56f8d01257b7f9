"""What a layer is: its bottoms, its tops, and the functions of its mathematics.

A layer's file declares both and writes ``infer``, ``meta``, ``forward`` and ``backward`` as plain
functions, and ``forward_cuda`` and ``backward_cuda`` where it has kernels. :class:`Definition` takes
them and derives what every layer needs around its mathematics: the ``torch.autograd.Function``, the
operators ``cortado::<layer>`` and ``cortado::<layer>_backward`` (:mod:`.operators`), which path runs,
what is saved for backward, autocast, and the checks that come before.

::

    BOTTOMS = (Bottom("bottom", "[N, C, ...]"),)
    TOPS = (Top("top"),)

    def infer(params, bottom): ...
    def meta(params, bottom): ...
    def forward(params, bottom): ...
    def backward(params, top_gradient, bottom): ...

    definition = define(__name__)
    top = definition(Params(factor=2.0), bottom)
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree

from . import function, operators
from .checks import (
    Shape,
    deferred,
    expect_floating,
    expect_integer,
    expect_same_device,
    shapes,
    valueless,
)
from .declared import OWN, Bottom, Role, Top
from .dispatch import forced, kernels_for, runs_kernels, use_cuda
from .parallel import balanced, rank_and_size
from .schema import REMEMBERED, Schema
from .sizes import shape_of, size_of, size_tensor

Spec = tuple[Sequence[int], torch.dtype]
"""Shape and dtype of a tensor that a function will give."""
Outputs = tuple[Any, ...]
"""Tops and kept tensors, of these some None."""
EXPECTED = {"floating": expect_floating, "integer": expect_integer}


class Named(NamedTuple):
    """What a parameter of backward stands for: "wanted", or of a bottom, top or kept tensor, by its
    number, the "gradient", the tensor itself ("bottom", "output"), its "shape" or its "dtype"."""

    kind: str
    number: int = 0


class Definition:
    """A layer's mathematics, to be called: ``definition(params, *bottoms)``.

    - ``infer(params, *bottom_shapes) -> top_shapes`` raises :class:`~.checks.BlobError`.
    - ``meta(params, *bottoms)`` gives a :data:`Spec` for each top and for each tensor in ``kept``, from
      the shapes and types of the bottoms alone. A size that depends on values is
      :func:`~.operators.unbacked`.
    - ``forward(params, *bottoms)`` gives the tops and then what is ``kept``, in one tuple. Sizes come
      to it as (height, width), optional bottoms that are not given as None. A forward with a parameter
      ``keep`` is told whether a gradient will be asked for, and gives None for what is kept if not.
    - ``backward(params, ...)`` names what it needs: ``<top>_gradient``, ``wanted`` (which gradients
      are), bottoms, tops and kept tensors by their names, ``<bottom>_shape``, ``<bottom>_dtype``. What
      it names is what is saved. It gives the gradients of the bottoms that have one, None where
      unwanted.

    No output is an input, or shares memory with another output. In place of a kept tensor that would be
    the first top itself ``meta`` and ``forward`` give None, and backward gets the top.

    ``forward_cuda`` and ``backward_cuda`` have the same signatures. ``expect(params, *bottoms)`` looks
    at values, unless kernels do it. ``traced``: compilers may look into ``forward`` and ``backward``;
    else the operator stands for them. ``keeps_half``: under autocast half bottoms are taken as they
    are, not as float32. ``result`` makes a named tuple of the tops. Of bottoms that are ``many``, only
    the first can be, and then it alone has a gradient.
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
        keeps_half: bool = False,
        result: type[Any] | None = None,
    ) -> None:
        self.name, self.Params, self.schema = name, Params, Schema(Params)
        self.bottoms, self.tops, self.kept = tuple(bottoms), tuple(tops), tuple(kept)
        self.infer, self.meta, self.expect = infer, meta, expect
        self.forwards, self.backwards = (forward, forward_cuda), (backward, backward_cuda)
        self.traced, self.keeps_half, self.result = traced, keeps_half, result
        self.keeps = "keep" in inspect.signature(forward).parameters
        self.many = self.bottoms[0].many
        only = self.bottoms[0]
        plain = only.role is Role.MAP and not (only.many or only.optional or only.numbers)
        self.single = plain and len(self.bottoms) == 1
        self.maps = [i for i in self._of(Role.MAP) if not self.bottoms[i].numbers]
        self.particular = [i for i, x in enumerate(self.bottoms) if x.numbers in EXPECTED]
        self.placed = self._of(Role.MAP, Role.BLOB, Role.TABLE, Role.LABEL)
        self.sizes = self._of(Role.SIZE)
        self.learning = [i for i, x in enumerate(self.bottoms) if backward and x.differentiable]
        self.still = [i for i in range(len(self.bottoms)) if i not in self.learning]
        self.outputs = (*(top.name for top in self.tops), *self.kept)
        self.alive = [i for i, top in enumerate(self.tops) if backward and not top.why_no_gradient]
        self.dead = [i for i in range(len(self.outputs)) if i not in self.alive]
        self.named = self._named_by(backward) if backward else []
        self.keepsakes = [x for x in self.named if x.kind in ("bottom", "output")]
        self.facts = [x for x in self.named if x.kind in ("shape", "dtype")]
        self.recipe = [self._source(x) for x in self.named]
        many = [j for j, x in enumerate(self.keepsakes) if x == ("bottom", 0) and self.many]
        self.many_at = many[0] if many else None
        self.unseen = [i for i in self.learning if Named("bottom", i) not in self.named]
        self.function = function.of_layer(name)
        self.operator, self.backward_operator = operators.register(self)
        self._known: dict[Any, Any] = {}
        if result:  # so that an exported program can be saved
            serialized = f"{result.__module__}.{result.__qualname__}"
            _pytree._register_namedtuple(result, serialized_type_name=serialized)

    def _of(self, *roles: Role) -> list[int]:
        return [i for i, bottom in enumerate(self.bottoms) if bottom.role in roles]

    def _named_by(self, backward: Callable[..., Any]) -> list[Named]:
        """Each parameter of backward after ``params``."""
        bottoms = [bottom.name for bottom in self.bottoms]
        known = {"wanted": Named("wanted")}
        known |= {f"{top}_gradient": Named("gradient", i) for i, top in enumerate(self.outputs)}
        for kind in ("shape", "dtype"):
            known |= {f"{bottom}_{kind}": Named(kind, i) for i, bottom in enumerate(bottoms)}
        known |= {output: Named("output", i) for i, output in enumerate(self.outputs)}
        known |= {bottom: Named("bottom", i) for i, bottom in enumerate(bottoms)}
        _, *names = inspect.signature(backward).parameters
        if unknown := [name for name in names if name not in known]:
            raise TypeError(f"{self.name}: backward names {unknown}, expected some of {sorted(known)}")
        return [known[name] for name in names]

    def _source(self, x: Named) -> tuple[int, int]:
        """Where :meth:`arguments` finds what backward names: in which of its rows, and where there."""
        if x.kind == "gradient":
            return 2, x.number
        if x.kind == "wanted":
            return 3, 0
        return (0, self.keepsakes.index(x)) if x in self.keepsakes else (1, self.facts.index(x))

    def count(self, blobs: str) -> tuple[int, int | None]:
        """How many "bottoms" or "tops" a layer has, inclusive; None for any number."""
        if blobs == "tops":
            return min(len(self.tops), 1), len(self.tops)
        given = [bottom for bottom in self.bottoms if bottom.role not in OWN]
        return sum(not bottom.optional for bottom in given), None if self.many else len(given)

    # ------------------------------------------------------------------------------------ a call

    def params(self, *args: Any, **kwargs: Any) -> Any:
        """The ``Params`` that a functional form is given; enums may come by their names.

        Raises TypeError for a value of another type, ValueError for one out of range.
        """
        if torch.compiler.is_compiling():
            return self.schema.given(args, kwargs)
        # with the types, for 1 == 1.0 == True; a tuple's elements would be others' equals
        key = args, *kwargs.items(), *map(type, args), *map(type, kwargs.values())
        try:
            return self._known[key]
        except (KeyError, TypeError):
            params = self.schema.given(args, kwargs)
        if tuple not in key:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[key] = params
        return params

    def __call__(self, params: Any, *bottoms: Any) -> Any:
        """The tops: one tensor, or a tuple of them.

        Raises TypeError for what is no tensor, dtypes and devices, :class:`~.checks.BlobError` for
        shapes that do not fit, and what ``expect`` raises for values.
        """
        if not torch.compiler.is_dynamo_compiling():  # there the operator says what does not fit
            self.check(params, bottoms)
        every = self._every(bottoms)
        first = every[0][0] if self.many else every[0]
        if torch.compiler.is_compiling():
            outputs = self._compiled(params, every, first)
        elif valueless(first):
            outputs = self._operated(params, every)
        else:
            outputs = self._eager(params, every, first)
        if rank_and_size()[1] > 1:
            outputs = self._balanced(outputs)
        if len(self.tops) == 1:
            return outputs[0]
        tops = outputs[: len(self.tops)]
        return self.result(*tops) if self.result else tuple(tops)

    def _every(self, bottoms: Sequence[Any]) -> Sequence[Any]:
        """All bottoms, None for one that is not given; those without a gradient detached."""
        every = [*bottoms, *[None] * (len(self.bottoms) - len(bottoms))]
        for i in self.still:
            if isinstance(every[i], Tensor) and every[i].requires_grad:
                every[i] = every[i].detach()
        return every

    def _eager(self, params: Any, bottoms: Sequence[Any], first: Tensor) -> Outputs:
        device = first.device.type
        if self.learning and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self._eager(params, self._full(bottoms), first)
        kernels = self.forwards[1] is not None and use_cuda(*self.deciding(bottoms))
        keep = self._learns(bottoms)
        if function.transformed():
            function.expect_backward_mode(self.name, self.flat(bottoms))
            return self.function.apply(self, kernels, keep, params, *self.flat(bottoms))
        if not keep:
            return self.compute(kernels, keep, params, bottoms)
        return function.apply(self.function, self, kernels, keep, params, *self.flat(bottoms))

    def _compiled(self, params: Any, bottoms: Sequence[Any], first: Tensor) -> Outputs:
        """What a compiler can trace is traced, which fuses it; the operator stands for the rest."""
        kernels = self.forwards[1] is not None and kernels_for(first)
        if not self.traced or kernels or function.refused_transform():
            return self._operated(params, bottoms)
        if torch.compiler.is_dynamo_compiling():
            self._say_what_does_not_fit(params, bottoms)
        device, keep = first.device.type, self._learns(bottoms)
        if self.learning and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self._traced(keep, params, self._full(bottoms))
        return self._traced(keep, params, bottoms)

    def _traced(self, keep: bool, params: Any, bottoms: Sequence[Any]) -> Outputs:
        if not keep:
            return self.compute(False, keep, params, bottoms)
        found: Outputs = self.function.apply(self, False, keep, params, *self.flat(bottoms))
        return found

    def _say_what_does_not_fit(self, params: Any, bottoms: Sequence[Any]) -> None:
        """By the operator: of an exception in what it traces, Dynamo loses the text. Nobody reads what
        it gives, so that nothing of it is left; not even the memory where a compiler keeps it."""
        kinds = {(x.dtype, x.device) for x in self._maps(bottoms)}
        devices = {x.device for x in self.deciding(bottoms)}
        if len(kinds) == len(devices) == 1:
            bottoms = [_without_values(x) for x in bottoms]
        self._operated(params, bottoms)

    def _operated(self, params: Any, bottoms: Sequence[Any]) -> Outputs:
        given = list(bottoms)
        for i in self.sizes:
            given[i] = None if given[i] is None else size_tensor(given[i])
        keep = (self._learns(bottoms),) if self.keeps else ()
        found = self.operator(*given, *self.schema.scalars(params), *keep, forced())
        return (found,) if isinstance(found, Tensor) else found

    def _learns(self, bottoms: Sequence[Any]) -> bool:
        if not torch.is_grad_enabled():
            return False
        for x in bottoms[0] if self.many else [bottoms[i] for i in self.learning]:
            if x is not None and x.requires_grad:
                return True
        return False

    def _full(self, bottoms: Sequence[Any]) -> Sequence[Any]:
        """Where autocast is on, half inputs are read as float32, as by torch's own norms and losses."""
        if self.keeps_half:
            return bottoms
        every = [x if i in self.sizes else _full(x) for i, x in enumerate(bottoms)]
        if self.many:
            every[0] = [_full(x) for x in bottoms[0]]
        return every

    def _balanced(self, outputs: Outputs) -> Outputs:
        counts = dict(zip(self.outputs, outputs, strict=True))
        return tuple(
            balanced(x, counts[top.mean_of]) if top.mean_of else x
            for top, x in zip(self.tops, outputs, strict=False)
        )

    # ------------------------------------------------------------------------------------ the bottoms

    def check(self, params: Any, bottoms: Sequence[Any]) -> None:
        """Raise for shapes, dtypes and devices that do not fit."""
        if self.single and isinstance(bottoms[0], Tensor) and bottoms[0].is_floating_point():
            self.infer(params, bottoms[0].shape)
            return
        flat = self.flat(bottoms)
        if all(isinstance(x, Tensor) for x in flat):
            self.infer(params, *[x.shape for x in flat])
        else:  # a size in numbers, an optional bottom that is not given, or no tensor
            self.infer(params, *self._shapes(bottoms))
        maps = self._maps(bottoms)
        first = maps[0] if maps else bottoms[0]
        dtype, device = first.dtype, first.device
        for x in maps:
            if not (x.is_floating_point() and x.dtype == dtype and x.device == device):
                expect_floating(**self._by_name(bottoms, self.maps))
        for i in self.particular:
            EXPECTED[self.bottoms[i].numbers](**self._by_name(bottoms, [i]))
        beside = [i for i in self.placed if i < len(bottoms) and not self.bottoms[i].many]
        if any(bottoms[i] is not None and bottoms[i].device != device for i in beside):
            chosen = [i for i in self.placed if i not in self.maps[1:]]
            expect_same_device(**self._by_name(bottoms, chosen))

    def _maps(self, bottoms: Sequence[Any]) -> Sequence[Tensor]:
        if self.many:
            return bottoms[0]
        return [bottoms[i] for i in self.maps if i < len(bottoms) and bottoms[i] is not None]

    def _shapes(self, bottoms: Sequence[Any]) -> list[Shape | None]:
        found: list[Shape | None] = []
        for bottom, given in zip(self.bottoms, bottoms, strict=False):
            for x in given if bottom.many else (given,):
                if x is None and bottom.optional:
                    found.append(None)
                elif bottom.role is Role.SIZE:
                    found.append(shape_of(self.name, bottom.name, x))
                else:
                    found.append(shapes(self.name, **{bottom.name: x})[bottom.name])
        while found and found[-1] is None:
            found.pop()
        return found

    def _by_name(self, bottoms: Sequence[Any], chosen: Sequence[int]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for i in chosen:
            bottom, x = self.bottoms[i], bottoms[i] if i < len(bottoms) else None
            if bottom.many:
                found |= {f"{bottom.name}[{j}]": y for j, y in enumerate(x or ())}
            elif x is not None:
                found[bottom.name] = x
        return found

    def flat(self, bottoms: Sequence[Any]) -> Sequence[Any]:
        """The bottoms in one row, those of a list too."""
        return (*bottoms[0], *bottoms[1:]) if self.many else bottoms

    def nested(self, flat: Sequence[Any]) -> Sequence[Any]:
        """The bottoms again: the first is a list where it is ``many``."""
        if not self.many:
            return flat
        first = len(flat) - len(self.bottoms) + 1
        return (list(flat[:first]), *flat[first:])

    def deciding(self, bottoms: Sequence[Any]) -> list[Tensor]:
        """The bottoms that decide on which device a call runs."""
        if self.many:
            return list(bottoms[0])
        return [bottoms[i] for i in self.placed if bottoms[i] is not None]

    # ------------------------------------------------- what the Function and the operators both call

    def compute(self, kernels: bool, keep: bool, params: Any, bottoms: Sequence[Any]) -> Outputs:
        """Tops and kept tensors, by the kernels or in torch operations."""
        if self.sizes:
            bottoms = list(bottoms)
            for i in self.sizes:
                if bottoms[i] is not None:
                    bottoms[i] = size_of(self.bottoms[i].name, bottoms[i])
        if self.expect and not (kernels and deferred(self.deciding(bottoms)[0])):
            self.expect(params, *bottoms)
        forward = self.forwards[kernels]
        assert forward is not None
        return forward(params, *bottoms, keep=keep) if self.keeps else forward(params, *bottoms)

    def save(self, ctx: Any, bottoms: Sequence[Any], outputs: Sequence[Tensor | None]) -> None:
        """Keep what backward names, and nothing else."""
        saved = [bottoms[i] if kind == "bottom" else outputs[i] for kind, i in self.keepsakes]
        for j, (kind, _) in enumerate(self.keepsakes):
            if saved[j] is None and kind == "output":  # the top is it
                saved[j] = outputs[0]
        if self.many_at is not None:
            saved[self.many_at : self.many_at + 1] = bottoms[0]
        ctx.facts = [getattr(bottoms[i], kind) for kind, i in self.facts]
        if len(self.alive) > 1:
            tops = [outputs[i] for i in self.alive]
            ctx.alive = [(x.shape, x.dtype, x.device) for x in tops if x is not None]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*[outputs[i] for i in self.dead if outputs[i] is not None])
        ctx.save_for_backward(*saved)

    def arguments(
        self, ctx: Any, gradients: Sequence[Tensor | None], wanted: Sequence[bool]
    ) -> list[Any]:
        """What backward names, from what :meth:`save` kept; nothing where no top has a gradient."""
        if len(self.alive) == 1:
            if gradients[self.alive[0]] is None:
                return []
        elif not (gradients := self._filled(ctx, gradients)):
            return []
        saved, at = ctx.saved_tensors, self.many_at
        if at is not None:
            last = at + len(wanted)
            saved = [*saved[:at], list(saved[at:last]), *saved[last:]]
        sources = saved, ctx.facts, gradients, (tuple(wanted),)
        return [sources[source][i] for source, i in self.recipe]

    def _filled(self, ctx: Any, gradients: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """Zeros for a top that has no gradient where another has one; nothing where none has."""
        found = list(gradients)
        if all(found[i] is None for i in self.alive):
            return []
        for i, (shape, dtype, device) in zip(self.alive, ctx.alive, strict=True):
            if found[i] is None:
                found[i] = torch.zeros(shape, dtype=dtype, device=device)
        return found

    def differentiate(
        self, kernels: bool, params: Any, arguments: Sequence[Any]
    ) -> list[Tensor | None]:
        """The gradients of the bottoms that learn, in one row; None of those that are not wanted."""
        backward = self.backwards[kernels]
        assert backward is not None
        found = backward(params, *arguments)
        return [found] if isinstance(found, Tensor) else list(found)

    def wanted(self, needs: Sequence[bool]) -> Sequence[bool]:
        """Which gradients are, by which of the bottoms in one row need one."""
        if self.many:
            return needs[: len(needs) - len(self.bottoms) + 1]
        return [needs[i] for i in self.learning]

    def runs_kernels(self, path: str, tensors: Sequence[Tensor]) -> bool:
        """Whether an operator that is given these, and a forced path or "", runs the kernels."""
        return self.forwards[1] is not None and runs_kernels(path, *tensors)


FUNCTIONS = ("infer", "meta", "expect", "forward", "backward", "forward_cuda", "backward_cuda")


def define(module: str, name: str = "", **rest: Any) -> Definition:
    """The definition of the layer that a file is about: ``define(__name__, kept=("norm",))``.

    The file's own ``Params``, ``BOTTOMS``, ``TOPS``, ``infer``, ``meta``, ``expect``, ``forward``,
    ``backward``, ``forward_cuda``, ``backward_cuda`` and ``Tops`` are what :class:`Definition` takes,
    those of them that are there; ``name`` is the file's if it is not given.
    """
    own = vars(sys.modules[module])
    functions: Any = {key: own[key] for key in FUNCTIONS if key in own}
    title = name or module.rpartition(".")[2]
    return Definition(
        title, own["Params"], own["BOTTOMS"], own["TOPS"], result=own.get("Tops"), **functions, **rest
    )


def _without_values(x: Any) -> Any:
    if isinstance(x, (list, tuple)) and x and isinstance(x[0], Tensor):
        return [_without_values(y) for y in x]
    return x.detach().to("meta") if isinstance(x, Tensor) else x


def _full(x: Any) -> Any:
    half = isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16)
    return x.float() if half else x
