"""``Net``: a spec as a module with named blobs and named parameters, as in Caffe."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from cortado.layers._engine.checks import BlobError, Shape, kind_of, remedy
from cortado.layers._engine.declared import Trait
from cortado.layers._engine.layer import Layer
from cortado.prototxt_like.message import Message
from cortado.prototxt_like.source import Span, did_you_mean
from torch import nn

from .backward import Backward
from .build import Built, LearnableBlob, blob_names, build
from .cost import LayerFacts, facts
from .graph import MatchParams, State
from .in_place import Memories, Places, places
from .specs import load

if TYPE_CHECKING:
    from .weights import Report

Keep: TypeAlias = bool | Collection[str]


class LayerError(ValueError):
    """A layer that cannot run on what it was given: names the layer, its line and its blobs."""


class Blobs(dict[str, torch.Tensor]):
    """The blobs of one forward pass by name, in order of production.

    ``loss`` is the sum of all tops times their loss weights (zero, without a gradient, if none has
    one). ``versions[name]``, with ``keep=True``, are the successive values of a blob: more than one
    where layers wrote it in place.
    """

    loss: torch.Tensor

    def __init__(self, blobs: Mapping[str, torch.Tensor]) -> None:
        super().__init__(blobs)
        self.versions: dict[str, list[torch.Tensor]] = {}


@dataclass(frozen=True)
class Step:
    """A layer in the order of running, with what its run needs to know."""

    layer: Layer
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    losses: tuple[tuple[int, float], ...]
    stopped: tuple[int, ...]
    """Bottoms that get no gradient (``propagate_down: false``)."""
    backward: Backward
    refused: str
    """Why the layer refuses the backward pass, which an error says when it gets there; "" if not."""
    is_input: bool
    name: str
    span: Span
    places: Places

    def bottom_tensors(self, blobs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        tensors = [blobs[name] for name in self.bottoms]
        for i in self.stopped:
            tensors[i] = tensors[i].detach()
        return tensors

    def run(self, bottoms: Sequence[torch.Tensor], over: bool = False) -> tuple[torch.Tensor, ...]:
        """The layer's tops, which may be written ``over`` the first bottom; an error of it says which
        layer it was."""
        try:
            out = self.layer.forward_over(*bottoms) if over else self.layer(*bottoms)
        except BlobError as error:
            raise self.error(error.named(blob_names(type(self.layer), self.bottoms))) from error
        except (ValueError, TypeError) as error:
            raise self.error(str(error)) from error
        except Exception as error:
            error.add_note(f'in layer "{self.name}" ({self.span.place})')
            raise
        return (out,) if isinstance(out, torch.Tensor) else out

    def error(self, text: str) -> LayerError:
        return LayerError(f'layer "{self.name}" ({self.span.place}): {text}')


class _Refusal(torch.autograd.Function):
    """Tops of a layer that has no backward: an error when the gradient gets here."""

    @staticmethod
    def forward(ctx: Any, error: LayerError, count: int, *blobs: torch.Tensor) -> Any:
        ctx.error = error
        return tuple(top.view_as(top) for top in blobs[:count])

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise ctx.error


class Net(nn.Module):
    """A net built from a spec for one phase, "TRAIN" or "TEST".

    ``spec`` is a path (to YAML or prototxt, by its suffix), the name of one that comes with cortado
    ("ucn_hn"), or a message. The state's ``level`` and ``stages`` choose layers by their include and
    exclude rules. Fillers draw from a generator seeded by ``seed``, or from torch's own if it is None.
    ``weights`` is a file to load (:func:`cortado.nets.weights.load`); ``net.report`` says what was
    filled.

    The module is in training mode for phase "TRAIN"; its layers are ``net.layers`` (a layer's name
    with "." written "%2E" and "%" written "%25"). Shared parameters are one ``nn.Parameter``;
    a parameter with lr_mult 0 requires no gradient unless the spec says ``force_backward``.

    ``splits`` gives a blob with several readers the Split layer that Caffe inserts. A ``Python``
    layer runs code of the user's own: its module is imported here, if ``allow_python_layers``.

    Raises :class:`~cortado.prototxt_like.source.SpecError` for mistakes in the spec, all at once.
    """

    def __init__(
        self,
        spec: str | Path | Message,
        phase: str = "TEST",
        *,
        level: int = 0,
        stages: Iterable[str] = (),
        seed: int | None = None,
        weights: str | Path | None = None,
        splits: bool = False,
        allow_python_layers: bool = False,
    ) -> None:
        super().__init__()
        message = spec if isinstance(spec, Message) else load(spec)
        if seed is None:
            seed = int(torch.randint(2**62, (), device="cpu"))
        generator = torch.Generator().manual_seed(seed)
        built = build(
            message,
            State(phase, level, tuple(stages)),
            generator,
            splits=splits,
            allow_python_layers=allow_python_layers,
            values=torch.get_default_device().type != "meta",
        )
        self.built: Built = built
        self.graph = built.graph
        self.inputs = tuple(
            top for made in built.layers if Trait.INPUT in made.layer.TRAITS for top in made.tops
        )
        self.outputs: tuple[str, ...] = self.graph.outputs
        self.blob_shapes: dict[str, Shape] = built.shapes
        self.learnable: list[LearnableBlob] = built.learnable
        self.layers = _Layers()
        self.layer_by_name: dict[str, Layer] = {}
        for made in built.layers:
            self.layers.add(made.node.name, made.layer)
            self.layer_by_name.setdefault(made.node.name, made.layer)
        self.steps = _steps(built)
        self._names = {name for step in self.steps for name in step.tops}
        self._wanted = _inputs_with_gradient(self.steps)
        self._frees: dict[bool | frozenset[str], list[tuple[str, ...]]] = {}
        self.register_buffer("_home", torch.empty(0), persistent=False)
        self.train(self.graph.state.phase == "TRAIN")
        self.report: Report | None = None
        if weights is not None:
            from .weights import load as load_weights

            self.report = load_weights(self, weights)

    @property
    def device(self) -> torch.device:
        """Where the net lives; tops of data layers are moved there."""
        home: torch.Tensor = self._home  # type: ignore[assignment]
        return home.device

    def train(self, mode: bool = True) -> Net:
        """Training mode for all layers, or none, but those that the spec gives a phase of their own."""
        super().train(mode)
        for made in self.built.layers:
            if phase := made.node.message.text("phase"):
                made.layer.train(phase == "TRAIN")
        return self

    @property
    def params(self) -> dict[str, list[nn.Parameter]]:
        """Each layer's parameter blobs (weight, bias, ...), for layers that have any."""
        return {name: layer.blobs for name, layer in self.layer_by_name.items() if layer.blob_names}

    @property
    def match(self) -> MatchParams | None:
        """The spec's ``match_param``: which blobs are images and features."""
        return self.graph.match

    def forward(
        self,
        inputs: Mapping[str, torch.Tensor] | torch.Tensor | None = None,
        /,
        *,
        keep: Keep = (),
        **named: Any,
    ) -> Blobs:
        """Run every layer and give the net's outputs with their ``loss``.

        The tensors of the ``Input`` layers are given by blob name, in a mapping or as keywords, or as
        the one argument of a net with one input; any shape that the layers accept will do, whatever
        the spec's own. Blobs are released when no layer needs them any more, except those named in
        ``keep`` (True: all of them).

        Raises :class:`LayerError` where a layer refuses what it gets, TypeError for an input that is
        missing, unknown or no tensor.
        """
        given = self._given(inputs, named)
        given.update({name: _with_gradient(given[name]) for name in self._wanted})
        kept = keep if isinstance(keep, bool) else frozenset(keep)
        plan = self._plan(kept)
        blobs = Blobs(given)
        if kept is True:
            blobs.versions = {name: [] for name in self._names}
        losses: list[torch.Tensor] = []
        memories = Memories()
        for step, frees in zip(self.steps, plan, strict=True):
            if not step.is_input:
                self._run(step, blobs, memories)
            if blobs.versions:
                for name in step.tops:
                    blobs.versions[name].append(blobs[name])
            for i, weight in step.losses:
                losses.append(_weighted(blobs[step.tops[i]], weight))
            for name in frees:
                del blobs[name]
        blobs.loss = sum(losses[1:], losses[0]) if losses else torch.zeros((), device=self.device)
        return blobs

    def _run(self, step: Step, blobs: Blobs, memories: Memories) -> None:
        """Run one layer."""
        bottoms = step.bottom_tensors(blobs)
        if step.places.shared and torch.is_grad_enabled():
            tops = memories.run(step.run, bottoms, step.places, Trait.REREADS in step.layer.TRAITS)
        else:
            tops = step.run(bottoms)
        if step.refused:
            tops = _Refusal.apply(step.error(step.refused), len(tops), *tops, *bottoms)
        if not bottoms:
            tops = tuple(top.to(self.device) for top in tops)
        blobs.update(zip(step.tops, tops, strict=False))

    def _given(self, inputs: Any, named: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The inputs by name; raises TypeError unless they are the net's, and tensors."""
        if isinstance(inputs, torch.Tensor):
            if len(self.inputs) != 1:
                names = ", ".join(f"{name}=..." for name in self.inputs)
                how = f"they are given by name, net({names})" if names else "call net()"
                raise TypeError(f"the net has {len(self.inputs)} inputs: {how}")
            inputs = {self.inputs[0]: inputs}
        elif not isinstance(inputs, Mapping | None):
            raise TypeError(f"expected inputs by name, or one torch.Tensor, got {kind_of(inputs)}")
        given = {**(inputs or {}), **named}
        for name in self.inputs:
            if name not in given:
                listing = ", ".join(self.inputs)
                raise TypeError(f'the net needs the input "{name}" (its inputs: {listing})')
            if not isinstance(given[name], torch.Tensor):
                got = f"{kind_of(given[name])}{remedy(given[name])}"
                raise TypeError(f'input "{name}": expected a torch.Tensor, got {got}')
        if len(given) > len(self.inputs):
            name = next(name for name in given if name not in self.inputs)
            raise TypeError(
                f'the net has no input "{name}": {did_you_mean(name, self.inputs, "inputs")}'
            )
        return given

    def _plan(self, keep: bool | frozenset[str]) -> list[tuple[str, ...]]:
        """For each step, the blobs that nothing needs after it."""
        if keep not in self._frees:
            self._frees[keep] = self._make_plan(keep)
        return self._frees[keep]

    def _make_plan(self, keep: bool | frozenset[str]) -> list[tuple[str, ...]]:
        wanted = {*self._names} if keep is True else {*self.outputs, *(keep or ())}
        if unknown := min(wanted - self._names, default=""):
            hint = did_you_mean(unknown, self._names, "blobs")
            raise KeyError(f'no blob "{unknown}" to keep: {hint}')
        plan: list[tuple[str, ...]] = []
        for step in reversed(self.steps):
            last = {*step.bottoms, *step.tops} - wanted
            plan.append(tuple(sorted(last)))
            wanted |= last
        return plan[::-1]

    def facts(self) -> list[LayerFacts]:
        """Each layer's place, blobs, shapes, parameters, receptive fields and cost."""
        return facts(self.built)

    @property
    def num_parameters(self) -> int:
        """Elements of all parameter blobs, shared ones counted once."""
        return self.built.parameters


class _Layers(nn.Module):
    """The layers by name. A spec may call a layer as it likes ("type", "conv1/3x3", "a.b")."""

    def add(self, name: str, layer: Layer) -> None:
        key = escape(name)
        while key in self._modules:
            key += "%"
        self._modules[key] = layer


def escape(name: str) -> str:
    """A layer's name as a module's: "." separates modules, so it is written "%2E"."""
    return name.replace("%", "%25").replace(".", "%2E")


def _steps(built: Built) -> list[Step]:
    steps = []
    wired = zip(built.layers, built.backward, places(built.layers), strict=True)
    for made, backward, where in wired:
        node, weights = made.node, made.loss_weights
        losses = tuple((j, weight) for j, weight in enumerate(weights) if weight)
        down = () if built.graph.force_backward else node.propagate_down
        stopped = tuple(j for j, wanted in enumerate(down) if not wanted)
        steps.append(
            Step(
                made.layer,
                node.bottoms,
                made.tops,
                losses,
                stopped,
                backward,
                backward.refused(made.layer),
                Trait.INPUT in made.layer.TRAITS,
                node.name,
                node.span,
                where,
            )
        )
    return steps


def _inputs_with_gradient(steps: list[Step]) -> tuple[str, ...]:
    """The inputs that a layer is to give a gradient although nothing below it learns."""
    inputs = {top for step in steps if step.is_input for top in step.tops}
    wanted = {
        name
        for step in steps
        if step.backward.needed
        for name, down in zip(step.bottoms, step.backward.bottoms, strict=True)
        if down
    }
    return tuple(sorted(inputs & wanted))


def _weighted(top: torch.Tensor, weight: float) -> torch.Tensor:
    total = top.sum() if top.dim() else top
    return total if weight == 1 else weight * total


def _with_gradient(tensor: torch.Tensor) -> torch.Tensor:
    """The same values as a leaf that gets a gradient; the caller's tensor is left as it is."""
    if tensor.requires_grad or not tensor.is_floating_point():
        return tensor
    return tensor.detach().requires_grad_()
