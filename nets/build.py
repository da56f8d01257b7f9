"""Graph + registry -> layers: parameters bound, shapes inferred before any data, blobs shared.

Whatever is wrong with a spec is raised from here as one :class:`SpecError` that shows every
independent mistake at its place.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from cortado.layers._engine import registry
from cortado.layers._engine.checks import BlobError, Shape
from cortado.layers._engine.declared import Trait
from cortado.layers._engine.fillers import without_values
from cortado.layers._engine.layer import Layer
from cortado.layers._engine.users import called_lines
from cortado.prototxt_like import schema
from cortado.prototxt_like.bind import bind
from cortado.prototxt_like.message import Field, Message, Scalar
from cortado.prototxt_like.source import (
    Errors,
    Source,
    Span,
    SpecError,
    closest,
    did_you_mean,
    together,
)
from cortado.prototxt_like.yaml_spec import parse
from torch import nn
from torch.nn.utils import parametrize

from .backward import Backward, plan
from .forks import FORKS
from .graph import Graph, Node, ParamSpec, ShareMode, State, graph, with_splits
from .siamese import param_name

LOGGER = logging.getLogger("cortado.nets")

AUTOMATIC = "(automatic)"
SPELLING = 0.75  # how alike a type's name must be to be meant
MAX_AXES, MAX_VALUES = 32, 2**31 - 1  # of a blob, Caffe's own limits


@dataclass(frozen=True)
class LearnableBlob:
    """One parameter of the net, however many layers share it.

    ``layer`` and ``index`` are its owner's (the first layer that has it), ``name`` is the name it
    is shared by ("" for none); its learning rate and weight decay are multiplied by ``lr_mult``
    and ``decay_mult``.
    """

    parameter: nn.Parameter
    layer: str
    index: int
    name: str = ""
    lr_mult: float = 1.0
    decay_mult: float = 1.0


@dataclass(frozen=True)
class BuiltLayer:
    """A node with its layer, its tops' shapes, and the weight of each top in the loss."""

    node: Node
    layer: Layer
    tops: tuple[str, ...]
    shapes: tuple[Shape, ...]
    loss_weights: tuple[float, ...]
    parameters: int
    """Elements of the parameter blobs that this layer owns (shared ones count at their owner)."""
    blobs: tuple[int, ...] = ()
    """For each parameter blob, its index in :attr:`Built.learnable`."""
    learns: tuple[bool, ...] = ()
    """For each parameter blob, whether this layer's own lr_mult is not 0."""


@dataclass
class Built:
    """The layers of a net in order, the shapes of its blobs, and its parameters, each once."""

    graph: Graph
    layers: list[BuiltLayer] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)
    learnable: list[LearnableBlob] = field(default_factory=list)
    backward: list[Backward] = field(default_factory=list)
    """What Caffe's backward pass does at each layer."""

    @property
    def parameters(self) -> int:
        """Elements of all parameter blobs, shared ones counted once."""
        return sum(built.parameters for built in self.layers)


def build(
    message: Message,
    state: State | None = None,
    generator: torch.Generator | None = None,
    *,
    splits: bool = False,
    allow_python_layers: bool = False,
    values: bool = True,
    found: Errors | None = None,
) -> Built:
    """Build a net's layers for a state; fillers draw from ``generator``.

    Without ``values`` the parameter blobs have shapes alone: enough to check a net, quickly.

    ``splits`` inserts Caffe's Split layers where a blob has several readers. A ``Python`` layer of
    the user's own imports its module, which ``allow_python_layers`` must permit.

    Raises :class:`SpecError` with all independent mistakes of the spec, in order of place; or adds
    them to ``found`` and gives the layers that could be built.
    """
    errors = Errors() if found is None else found
    wiring = graph(message, state, errors)
    if splits and not errors.found:
        wiring = with_splits(wiring)
    builder = _Builder(wiring, errors, generator, allow_python_layers)
    with nullcontext() if values else without_values():
        builder.run()
    if errors.found and found is None:
        raise _sorted(errors.found)
    return builder.built


def _sorted(found: list[SpecError]) -> SpecError:
    """One exception, in order of place, without a twin's repetition of its trunk's mistake."""
    unique = {(str(single.span), single.message): single for error in found for single in error.errors}
    return together(sorted(unique.values(), key=_place))


def _place(error: SpecError) -> tuple[str, int, int]:
    return (error.span.source.name, error.span.line, error.span.column) if error.span else ("", 0, 0)


@dataclass
class _Builder:
    graph: Graph
    errors: Errors
    generator: torch.Generator | None
    allow_python_layers: bool

    def __post_init__(self) -> None:
        self.built = Built(self.graph)
        self.failed: set[str] = set()
        self.unknown: dict[str, list[Node]] = {}
        self.ignored: dict[tuple[str, str], list[str]] = {}
        self.twinned = {node.twin_of for node in self.graph.nodes if node.twin_of}
        self.owners: dict[str, _Owner] = {}
        self.blobs: list[_Owner] = []

    def run(self) -> None:
        for node in self.graph.nodes:
            if node.twin_of in self.failed:
                self.failed.add(node.name)
                continue
            try:
                self.built.layers.append(self.add(node))
            except SpecError as error:
                self.failed.add(node.name)
                self.errors.keep(error)
            except (_ShapesUnknown, _UnknownType):
                self.failed.add(node.name)
        for type, nodes in self.unknown.items():
            _complain(type, nodes, self.errors)
        for places in self.ignored.values():
            more = f" (and {len(places) - 1} more)" if places[1:] else ""
            LOGGER.warning("%s%s", places[0], more)
        self.built.learnable = [blob.learnable() for blob in self.blobs]
        if not self.errors.found:  # a node whose parts do not fit each other cannot be planned
            self.built.backward = plan(self.built.layers, self.graph.force_backward)
            _require_gradients(self.built)

    def add(self, node: Node) -> BuiltLayer:
        entry, fields = self.find(node)
        tops = (AUTOMATIC,) if Trait.LOSS in entry.layer.TRAITS and not node.tops else node.tops
        wrong = Errors()
        params = wrong.attempt(_bind_params, node, entry.layer, fields, self.ignored)
        wrong.attempt(_check_count, node, "bottom", node.bottoms, entry.bottoms)
        wrong.attempt(_check_count, node, "top", tops, entry.tops)
        weights = wrong.attempt(_loss_weights, node, entry.layer, tops)
        wrong.attempt(_check_in_place, node, entry.layer)
        wrong.check()
        missing = [blob for blob in node.bottoms if blob not in self.built.shapes]
        if missing:
            raise _ShapesUnknown
        bottoms = tuple(self.built.shapes[blob] for blob in node.bottoms)
        layer, shapes = self.make(node, entry.layer, params, bottoms, tops)
        optional = entry.tops[1] is not None
        if len(shapes) < len(tops) or (len(shapes) > len(tops) and not optional):
            raise SpecError(
                f"{node} ({node.type}) gives {len(shapes)} tops here, the spec names {len(tops)}",
                node.where("top", len(shapes)),
            )
        shapes = shapes[: len(tops)]
        owners, learns = self.share(node, layer)
        owned = sum(o.parameter.numel() for o in owners if o.node is node)
        self.built.shapes.update(zip(tops, shapes, strict=True))
        blobs = tuple(self.blobs.index(owner) for owner in owners)
        return BuiltLayer(node, layer, tops, shapes, weights or (), owned, blobs, learns)

    def find(self, node: Node) -> tuple[registry.Entry, list[Field] | None]:
        """The node's registered type, and the fields of its param_str if it is a Python class that a
        native layer stands for."""
        if native := _python_layer(node):
            return native
        entry = registry.find(node.type)
        if entry is None:
            self.unknown.setdefault(node.type, []).append(node)
            raise _UnknownType
        if Trait.FOREIGN in entry.layer.TRAITS and not self.allow_python_layers:
            module = _python_field(node, "module")
            raise SpecError(
                f'{node} would run the Python module "{module}"',
                node.where("type"),
                "only with allow_python_layers=True (command line: --allow-python-layers)",
            )
        return entry, None

    def make(
        self,
        node: Node,
        kind: type[Layer],
        params: Any,
        bottoms: tuple[Shape, ...],
        tops: tuple[str, ...],
    ) -> tuple[Layer, tuple[Shape, ...]]:
        """The layer and its tops' shapes."""
        static = isinstance(inspect.getattr_static(kind, "infer"), staticmethod)
        try:
            shapes = kind.infer(params, *bottoms) if static else ()
            layer = kind(params, bottoms, self.generator)
            layer.name, layer.bottoms, layer.tops = node.name, node.bottoms, tops
            layer.place = node.span.place
            layer.train((node.message.text("phase") or self.graph.state.phase) == "TRAIN")
            if not static:  # a file, or the user's code, says its tops' shapes
                shapes = layer.infer(params, *bottoms)
        except BlobError as error:
            text = error.named(blob_names(kind, node.bottoms))
            raise SpecError(f"{node}: {text}", node.span) from None
        except Exception as error:
            if isinstance(error, (ValueError, RuntimeError)) and not called_lines(error):
                cause = error if isinstance(error, RuntimeError) else None  # a fault, or no memory
                raise SpecError(f"{node}: {error}", node.span) from cause
            error.add_note(f"in {node} ({node.span.place})")
            raise
        shapes = tuple(tuple(shape) for shape in shapes)
        for top, shape in zip(tops, shapes, strict=False):
            _expect_size(node, f'top "{top}"', shape)
        for name, blob in zip(layer.blob_names, layer.blobs, strict=True):
            _expect_size(node, name, tuple(blob.shape))
        if Trait.INPUT in kind.TRAITS and len(shapes) == 1:
            shapes *= len(tops)
        if Trait.INPUT in kind.TRAITS and len(shapes) > len(tops):
            count = f"{len(shapes)} shapes for {len(tops)} tops"
            raise SpecError(f"{node} takes one shape, or one for each top, got {count}", node.span)
        return layer, shapes

    def share(self, node: Node, layer: Layer) -> tuple[list[_Owner], tuple[bool, ...]]:
        """Tie the layer's blobs to those of the same name; give each one's owner, and whether this
        layer asks for its gradient."""
        specs = _param_specs(node, layer)
        owners = []
        for i, (attribute, parameter) in enumerate(zip(layer.blob_names, layer.blobs, strict=True)):
            spec = specs[i]
            trunk = node.twin_of or (node.name if node.name in self.twinned else "")
            name = spec.name or (param_name(trunk, i) if trunk else "")
            mine = _Owner(node, i, name, parameter, spec.lr_mult, spec.decay_mult)
            owner = self.owners.setdefault(name, mine) if name else mine
            if owner is mine:
                self.blobs.append(mine)
            else:
                owner.take(mine, spec)
                tie(layer, attribute, owner.parameter)
            owners.append(owner)
        return owners, tuple(spec.lr_mult != 0 for spec in specs)


def _param_specs(node: Node, layer: Layer) -> tuple[ParamSpec, ...]:
    """One for each of the layer's parameter blobs; statistics don't learn."""
    given, count = node.param_specs, len(layer.blob_names)
    if len(given) > count:
        found = f"{len(given)} param blocks for {count} parameter blobs"
        raise SpecError(f"{node} has {found}", node.where("param", count))
    for i, spec in enumerate(given):
        if Trait.STATISTICS in layer.TRAITS and spec.lr_mult != 0:
            text = f"{node} ({node.type}) has statistics for parameter blobs: expected lr_mult: 0"
            raise SpecError(text, node.where("param", i))
    rest = ParamSpec(lr_mult=0.0) if Trait.STATISTICS in layer.TRAITS else ParamSpec()
    return given + (rest,) * (count - len(given))


class _ShapesUnknown(Exception):
    """A layer above failed, so that this one's shapes can't be inferred."""


class _UnknownType(Exception):
    """A layer's type is not registered, which is said once for all layers of the type."""


def _complain(type: str, nodes: list[Node], errors: Errors) -> None:
    """Of a type that no layer has: what it is in a public fork of Caffe, or whether it is misspelt."""
    near = closest(type, registry.types(), SPELLING)
    hint = "layers of your own come with --plugin FILE (cortado.register), or as Python layers"
    if type in FORKS:
        fork, does = FORKS[type]
        hint = f"known from {fork}: {does}; {hint}"
    elif near:
        hint = f'did you mean "{near}"? {hint}'
    others = {0: "", 1: ", and so has 1 more layer"}
    more = others.get(len(nodes) - 1, f", and so have {len(nodes) - 1} more layers")
    text = f'{nodes[0]} has the unknown type "{type}"{more}'
    errors.add(text, nodes[0].where("type"), hint)


@dataclass(eq=False)
class _Owner:
    node: Node
    index: int
    name: str
    parameter: nn.Parameter
    lr_mult: float | None
    decay_mult: float | None

    def learnable(self) -> LearnableBlob:
        lr_mult, decay_mult = (1.0 if x is None else x for x in (self.lr_mult, self.decay_mult))
        return LearnableBlob(self.parameter, self.node.name, self.index, self.name, lr_mult, decay_mult)

    def take(self, other: _Owner, spec: ParamSpec) -> None:
        """Let another layer's blob be this one; a multiplier may be given on one side only."""
        where = other.node.where("param", other.index)
        owner = f'layer "{self.node.name}" ({self.node.span.place})'
        mine, theirs = list(self.parameter.shape), list(other.parameter.shape)
        permissive, fits = spec.share_mode is ShareMode.PERMISSIVE, math.prod(mine) == math.prod(theirs)
        if mine != theirs and not (permissive and fits):
            hint = "share_mode: PERMISSIVE allows shapes of the same number of elements"
            raise SpecError(
                f'{other.node} shares parameter "{self.name}" {mine} with {owner}, '
                f"but its own shape is {theirs}",
                where,
                hint if fits else "",
            )
        for key in ("lr_mult", "decay_mult"):
            given, known = getattr(other, key), getattr(self, key)
            if None not in (given, known) and given != known:
                raise SpecError(
                    f'{other.node} gives parameter "{self.name}" {key} {given:g}, '
                    f"but {owner} gives it {known:g}",
                    where,
                )
            if known is None:
                setattr(self, key, given)


def _expect_size(node: Node, what: str, shape: Shape) -> None:
    """Raises SpecError for a blob larger than Caffe's."""
    if len(shape) > MAX_AXES:
        raise SpecError(f"{node}: {what} has {len(shape)} axes, more than {MAX_AXES}", node.span)
    if math.prod(shape) > MAX_VALUES:
        text = f"{node}: {what} {list(shape)} has more than {MAX_VALUES:,} values"
        raise SpecError(text, node.span)


def tie(layer: Layer, attribute: str, owner: nn.Parameter) -> None:
    """Make a layer's blob the owner's, which may have another shape (PERMISSIVE)."""
    if parametrize.is_parametrized(layer, attribute):
        getattr(layer.parametrizations, attribute).original = owner
        return
    shape = getattr(layer, attribute).shape
    setattr(layer, attribute, owner)
    if shape != owner.shape:
        parametrize.register_parametrization(layer, attribute, _Shaped(shape), unsafe=True)


class _Shaped(nn.Module):
    """A shared parameter as one of its layers sees it."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, owner: torch.Tensor) -> torch.Tensor:
        return owner.view(self.shape)


class _Still(nn.Module):
    """A shared parameter of a layer whose own lr_mult is 0."""

    def forward(self, owner: torch.Tensor) -> torch.Tensor:
        return owner.detach()


def _require_gradients(built: Built) -> None:
    """Gradients for the parameters that some layer asks for, and only from those layers."""
    asked = [
        (made.layer, attribute, index, learns)
        for made, backward in zip(built.layers, built.backward, strict=True)
        for attribute, index, learns in zip(
            made.layer.blob_names, made.blobs, backward.params, strict=True
        )
    ]
    wanted = {index for _, _, index, learns in asked if learns}
    for index, blob in enumerate(built.learnable):
        blob.parameter.requires_grad_(index in wanted)
    for layer, attribute, index, learns in asked:
        if index in wanted and not learns:
            parametrize.register_parametrization(layer, attribute, _Still())


def _python_field(node: Node, name: str) -> str:
    block = node.message.get("python_param")
    return block.value.text(name) if block and isinstance(block.value, Message) else ""


def _python_layer(node: Node) -> tuple[registry.Entry, list[Field]] | None:
    """The native layer that a ``type: "Python"`` layer stands for, and the fields of its param_str.

    No Python is run: the class name is looked up among the aliases of the layers' types.
    """
    given = registry.find(node.type)
    foreign = given is not None and Trait.FOREIGN in given.layer.TRAITS
    name = _python_field(node, "layer") if foreign else ""
    entry = registry.find(name) if name else None
    if entry is None or entry.type_name == name:
        return None
    block = node.message.all("python_param")[-1].value
    text = block.get("param_str") if isinstance(block, Message) else None
    if text is None or not isinstance(text.value, Scalar) or not text.value.text.strip():
        return entry, []
    place = text.value.span
    inner = parse(Source(place.source.name, text.value.text))
    return entry, [Field(f.name, _moved(f.value, place), place) for f in inner]


def _moved(value: Scalar | Message, place: Span) -> Scalar | Message:
    """The same value at the place of the string that it was read from."""
    if isinstance(value, Scalar):
        return Scalar(value.text, place, value.quoted)
    return Message(place, [Field(f.name, _moved(f.value, place), place) for f in value])


def _bind_params(
    node: Node,
    layer: type[Layer],
    fields: list[Field] | None,
    ignored: dict[tuple[str, str], list[str]],
) -> Any:
    """Bind the layer's own block, and the blocks beside it that its ``Params`` has as fields; adds a
    warning to ``ignored`` for each block that another type reads."""
    siblings = {f.name for f in dataclasses.fields(layer.Params) if f.name.endswith("_param")}
    gathered = Message(node.span, list(fields or ()))
    known = {layer.block, *siblings} if fields is None else {"python_param", *siblings}
    for block in node.message:
        if not block.name.endswith("_param"):
            continue
        if block.name not in known:
            if block.name in _blocks_of_caffe():  # another type's: Caffe passes over it, too
                if not node.twin_of:  # a twin's is its trunk's
                    ignored.setdefault((node.type, block.name), []).append(_unread(node, block, layer))
                continue
            hint = did_you_mean(block.name, known)
            raise SpecError(f'{node.type} does not read "{block.name}"', block.span, hint)
        if not isinstance(block.value, Message):
            raise SpecError(f'"{block.name}" is a block of fields', block.span)
        if block is not node.message.all(block.name)[0]:
            raise SpecError(f'{node} has two blocks "{block.name}"', block.span)
        if block.name in siblings:
            gathered.fields.append(block)
        elif fields is None:
            gathered.span = block.span
            gathered.fields.extend(block.value.fields)
    try:
        return bind(layer.Params, gathered, what=layer.type_name)
    except ValueError as error:
        raise SpecError(f"{node}: {error}", gathered.span) from None


def _unread(node: Node, block: Field, layer: type[Layer]) -> str:
    """The warning about a block that has no effect."""
    mine = f"its own is {layer.block}" if dataclasses.fields(layer.Params) else "it has no parameters"
    return f"{block.span}: warning: {node.type} does not read {block.name}; {mine}"


@cache
def _blocks_of_caffe() -> frozenset[str]:
    """The parameter blocks that any layer may carry in Caffe."""
    fields = schema.message("LayerParameter").DESCRIPTOR.fields_by_name
    return frozenset(name for name in fields if name.endswith("_param"))


def _check_count(
    node: Node, what: str, names: tuple[str, ...], allowed: tuple[int, int | None]
) -> None:
    low, high = allowed
    if low <= len(names) and (high is None or len(names) <= high):
        return
    count = f"{low or 'no'}" if high == low else f"{low} to {high}" if high else f"{low} or more"
    plural = what if count == "1" else f"{what}s"
    found = f"{len(names)}: {', '.join(names)}" if names else "none"
    place = node.where(what) if names else node.span
    raise SpecError(f"{node} ({node.type}) takes {count} {plural}, got {found}", place)


def _check_in_place(node: Node, layer: type[Layer]) -> None:
    for i in range(len(node.tops)):
        if Trait.NOT_IN_PLACE in layer.TRAITS and node.in_place(i):
            text = f'{node} ({node.type}) cannot work in place: its top "{node.tops[i]}" is its bottom'
            raise SpecError(text, node.where("top", i))


def _loss_weights(node: Node, layer: type[Layer], tops: tuple[str, ...]) -> tuple[float, ...]:
    """One weight for each top: those given, else 1 for a loss layer's first top."""
    given = node.loss_weights
    needed = Trait.WEIGHTS_GIVEN in layer.TRAITS and len(tops) > 1
    if len(given) != len(tops) and (given or needed):
        wanted = "once for each top" if needed else "once for each top or not at all"
        text = f"{node} gives loss_weight {wanted}, got {len(given)} for {len(tops)} tops"
        raise SpecError(text, node.where("loss_weight"))
    return given or tuple(float(Trait.LOSS in layer.TRAITS and i == 0) for i in range(len(tops)))


def blob_names(kind: type[Layer], bottoms: tuple[str, ...]) -> dict[str, str]:
    """The spec's blob name for each of the layer's argument names (``bottom0``... without names)."""
    numbered = {f"bottom{i}": blob for i, blob in enumerate(bottoms)}
    records = (kind.record(i, len(bottoms)) for i in range(len(bottoms)))
    named = {x.name: blob for x, blob in zip(records, bottoms, strict=True) if not x.many}
    return numbered | named
