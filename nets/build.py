"""Graph + registry -> layers: parameters bound, shapes inferred before any data, blobs shared.

Whatever is wrong with a spec is raised from here as one :class:`SpecError` that shows every
independent mistake at its place.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from cortado.layers._runtime import registry
from cortado.layers._runtime.checks import BlobError, Shape
from cortado.layers._runtime.layer import Layer
from cortado.prototxt_like.bind import bind
from cortado.prototxt_like.message import Field, Message, Scalar
from cortado.prototxt_like.source import Errors, Source, Span, SpecError, did_you_mean, together
from cortado.prototxt_like.yaml_spec import parse
from torch import nn

from .graph import Graph, Node, ParamSpec, ShareMode, State, graph
from .siamese import param_name

AUTOMATIC = "(automatic)"


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


@dataclass
class Built:
    """The layers of a net in order, the shapes of its blobs, and its parameters, each once."""

    graph: Graph
    layers: list[BuiltLayer] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)
    learnable: list[LearnableBlob] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        """Elements of all parameter blobs, shared ones counted once."""
        return sum(built.parameters for built in self.layers)


def build(
    message: Message, state: State | None = None, generator: torch.Generator | None = None
) -> Built:
    """Build a net's layers for a state; fillers draw from ``generator``.

    Raises :class:`SpecError` with all independent mistakes of the spec, in order of place.
    """
    errors = Errors()
    builder = _Builder(graph(message, state, errors), errors, generator)
    builder.run()
    if errors.found:
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

    def __post_init__(self) -> None:
        self.built = Built(self.graph)
        self.failed: set[str] = set()
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
                self.errors.found.append(error)
                self.failed.add(node.name)
            except _ShapesUnknown:
                self.failed.add(node.name)
        for blob in self.blobs:
            blob.parameter.requires_grad_(blob.learns or self.graph.force_backward)
        self.built.learnable = [blob.learnable() for blob in self.blobs]

    def add(self, node: Node) -> BuiltLayer:
        type, fields = _python_layer(node)
        entry = registry.find(type)
        if entry is None:
            hint = did_you_mean(type, registry.types(), "known")
            raise SpecError(f'{node} has the unknown type "{type}"', node.where("type"), hint)
        tops = (AUTOMATIC,) if entry.layer.is_loss and not node.tops else node.tops
        wrong = Errors()
        params = wrong.attempt(_bind_params, node, entry.layer, fields)
        wrong.attempt(_check_count, node, "bottom", node.bottoms, entry.bottoms)
        wrong.attempt(_check_count, node, "top", tops, entry.tops)
        weights = wrong.attempt(_loss_weights, node, entry.layer, tops)
        wrong.check()
        missing = [blob for blob in node.bottoms if blob not in self.built.shapes]
        if missing:
            raise _ShapesUnknown
        bottoms = tuple(self.built.shapes[blob] for blob in node.bottoms)
        layer, shapes = _make(node, entry.layer, params, bottoms, tops, self.generator)
        parameters = self.share(node, layer)
        self.built.shapes.update(zip(tops, shapes, strict=True))
        return BuiltLayer(node, layer, tops, shapes, weights or (), parameters)

    def share(self, node: Node, layer: Layer) -> int:
        """Tie the layer's blobs to those of the same name; give the elements that it owns."""
        specs = node.param_specs
        if len(specs) > len(layer.blob_names):
            found = f"{len(specs)} param blocks for {len(layer.blob_names)} parameter blobs"
            raise SpecError(f"{node} has {found}", node.where("param", len(layer.blob_names)))
        owned = 0
        for i, (attribute, parameter) in enumerate(zip(layer.blob_names, layer.blobs, strict=True)):
            spec = specs[i] if i < len(specs) else ParamSpec()
            trunk = node.twin_of or (node.name if node.name in self.twinned else "")
            name = spec.name or (param_name(trunk, i) if trunk else "")
            mine = _Owner(node, i, name, parameter, spec.lr_mult, spec.decay_mult)
            owner = self.owners.setdefault(name, mine) if name else mine
            if owner is mine:
                self.blobs.append(mine)
                owned += parameter.numel()
            else:
                owner.take(mine, spec)
                setattr(layer, attribute, owner.parameter)
        return owned


class _ShapesUnknown(Exception):
    """A layer above failed, so that this one's shapes can't be inferred."""


@dataclass
class _Owner:
    node: Node
    index: int
    name: str
    parameter: nn.Parameter
    lr_mult: float | None
    decay_mult: float | None

    @property
    def learns(self) -> bool:
        return self.lr_mult != 0

    def learnable(self) -> LearnableBlob:
        lr_mult, decay_mult = (1.0 if x is None else x for x in (self.lr_mult, self.decay_mult))
        return LearnableBlob(self.parameter, self.node.name, self.index, self.name, lr_mult, decay_mult)

    def take(self, other: _Owner, spec: ParamSpec) -> None:
        """Let another layer's blob be this one; a multiplier may be given on one side only."""
        where = other.node.where("param", other.index)
        owner = f'layer "{self.node.name}" ({self.node.span.place})'
        mine, theirs = list(self.parameter.shape), list(other.parameter.shape)
        if mine != theirs:
            hint = "PERMISSIVE sharing of other shapes is not offered"
            raise SpecError(
                f'{other.node} shares parameter "{self.name}" {mine} with {owner}, '
                f"but its own shape is {theirs}",
                where,
                hint if spec.share_mode is ShareMode.PERMISSIVE else "",
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


def _python_layer(node: Node) -> tuple[str, list[Field] | None]:
    """The native type that a ``type: "Python"`` layer stands for, and the fields of its param_str.

    No Python is run: the class name is looked up among the layers' types and aliases.
    """
    block = node.message.get("python_param")
    if node.type != "Python" or block is None or not isinstance(block.value, Message):
        return node.type, None
    text = block.value.get("param_str")
    if text is None or not isinstance(text.value, Scalar) or not text.value.text.strip():
        return block.value.text("layer"), []
    place = text.value.span
    inner = parse(Source(place.source.name, text.value.text))
    return block.value.text("layer"), [Field(f.name, _moved(f.value, place), place) for f in inner]


def _moved(value: Scalar | Message, place: Span) -> Scalar | Message:
    """The same value at the place of the string that it was read from."""
    if isinstance(value, Scalar):
        return Scalar(value.text, place, value.quoted)
    return Message(place, [Field(f.name, _moved(f.value, place), place) for f in value])


def _bind_params(node: Node, layer: type[Layer], fields: list[Field] | None) -> Any:
    """Bind the layer's own block, and the blocks beside it that its ``Params`` has as fields."""
    siblings = {f.name for f in dataclasses.fields(layer.Params) if f.name.endswith("_param")}
    gathered = Message(node.span, list(fields or ()))
    known = {layer.block, *siblings} if fields is None else {"python_param", *siblings}
    for block in node.message:
        if not block.name.endswith("_param"):
            continue
        if block.name not in known:
            hint = did_you_mean(block.name, known)
            raise SpecError(f'{node.type} does not read "{block.name}"', block.span, hint)
        if not isinstance(block.value, Message):
            raise SpecError(f'"{block.name}" is a block of fields', block.span)
        if block.name in siblings:
            gathered.fields.append(block)
        elif fields is None:
            gathered.span = block.span
            gathered.fields.extend(block.value.fields)
    try:
        return bind(layer.Params, gathered, what=layer.type_name)
    except ValueError as error:
        raise SpecError(f"{node}: {error}", gathered.span) from None


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


def _loss_weights(node: Node, layer: type[Layer], tops: tuple[str, ...]) -> tuple[float, ...]:
    """One weight for each top: those given, else 1 for a loss layer's first top."""
    given = node.loss_weights
    if given and len(given) != len(tops):
        found = f"{len(given)} for {len(tops)} tops"
        raise SpecError(
            f"{node} gives loss_weight once for each top or not at all, got {found}",
            node.where("loss_weight"),
        )
    return given or tuple(float(layer.is_loss and i == 0) for i in range(len(tops)))


def _make(
    node: Node,
    kind: type[Layer],
    params: Any,
    bottoms: tuple[Shape, ...],
    tops: tuple[str, ...],
    generator: torch.Generator | None,
) -> tuple[Layer, tuple[Shape, ...]]:
    """The layer and its tops' shapes."""
    try:
        shapes = tuple(tuple(shape) for shape in kind.infer(params, *bottoms))
        layer = kind(params, bottoms, generator)
    except BlobError as error:
        raise SpecError(f"{node}: {error.named(blob_names(kind, node.bottoms))}", node.span) from None
    except (ValueError, RuntimeError) as error:  # RuntimeError: torch cannot allocate the blobs
        raise SpecError(f"{node}: {error}", node.span) from None
    if kind.type_name == "Input" and len(shapes) == 1:
        shapes *= len(tops)
    if len(shapes) < len(tops):
        raise SpecError(
            f"{node} ({node.type}) gives {len(shapes)} tops here, the spec names {len(tops)}",
            node.where("top", len(shapes)),
        )
    return layer, shapes[: len(tops)]


def blob_names(kind: type[Layer], bottoms: tuple[str, ...]) -> dict[str, str]:
    """The spec's blob name for each of the layer's argument names (``bottom0``... without names)."""
    numbered = {f"bottom{i}": blob for i, blob in enumerate(bottoms)}
    return numbered | dict(zip(kind.bottom_names, bottoms, strict=False))
