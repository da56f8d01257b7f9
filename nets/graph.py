"""Pure wiring: which layers a state includes, and who reads what from whom. No torch.

Phases, levels and stages, in-place tops, splits and the net's outputs follow Caffe's ``Net::Init``.
A layer's type may be unknown here: such a net can be drawn and converted, if not built.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

from cortado.prototxt_like import kinds
from cortado.prototxt_like.bind import bind
from cortado.prototxt_like.message import Field, Message, Scalar
from cortado.prototxt_like.source import Errors, Span, SpecError, closest, did_you_mean

from .siamese import expand, texts


class Phase(Enum):
    TRAIN = 0
    TEST = 1


class ShareMode(Enum):
    STRICT = 0
    PERMISSIVE = 1


@dataclass(frozen=True)
class State:
    """What include and exclude rules look at: the phase ("TRAIN" or "TEST"), a level, stages."""

    phase: str = "TEST"
    level: int = 0
    stages: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.phase not in Phase.__members__:
            raise ValueError(f'phase: expected "TRAIN" or "TEST", got "{self.phase}"')

    def __str__(self) -> str:
        level = f", level {self.level}" if self.level else ""
        stages = f", stages {', '.join(self.stages)}" if self.stages else ""
        return f"phase {self.phase}{level}{stages}"


@dataclass(frozen=True)
class Rule:
    """An ``include`` or ``exclude`` rule: it is met where all its conditions hold."""

    phase: Phase | None = None
    min_level: int | None = None
    max_level: int | None = None
    stage: tuple[str, ...] = ()
    not_stage: tuple[str, ...] = ()

    def met(self, state: State) -> bool:
        return (
            (self.phase is None or self.phase.name == state.phase)
            and (self.min_level is None or state.level >= self.min_level)
            and (self.max_level is None or state.level <= self.max_level)
            and set(self.stage) <= set(state.stages)
            and not set(self.not_stage) & set(state.stages)
        )


@dataclass(frozen=True)
class ParamSpec:
    """A ``param`` block: name to share by, learning rate and decay multipliers (1 unless given)."""

    name: str = ""
    share_mode: ShareMode = ShareMode.STRICT
    lr_mult: float | None = None
    decay_mult: float | None = None


@dataclass(frozen=True)
class LayerFields:
    """The fields every layer has; those ending in ``_param`` belong to its type."""

    type: str
    name: str = ""
    bottom: tuple[str, ...] = ()
    top: tuple[str, ...] = ()
    param: tuple[ParamSpec, ...] = ()
    loss_weight: tuple[float, ...] = ()
    propagate_down: tuple[bool, ...] = ()
    include: tuple[Rule, ...] = ()
    exclude: tuple[Rule, ...] = ()
    phase: Phase | None = None
    twin_of: str = ""

    def included(self, state: State) -> bool:
        if self.include:
            return any(rule.met(state) for rule in self.include)
        return not any(rule.met(state) for rule in self.exclude)


@dataclass(frozen=True)
class StateFields:
    """A ``state`` block: the net's own (whose stages are added to those asked for) or a solver's."""

    phase: Phase | None = None
    level: int | None = None
    stage: tuple[str, ...] = ()


@dataclass(frozen=True)
class MatchParams:
    """What the net gives to matching: its image inputs, and their feature maps or the confidence of all
    pairs of cells; the cells' geometry; the size of the images.

    A cell (u, v) stands for the image point
    (u * downsampling_factor + coordinate_offset, v * downsampling_factor + coordinate_offset).
    ``feature`` is () where there is a ``confidence``, whose cells have no ``coordinate_offset``.
    """

    image: tuple[str, ...] = ("image1", "image2")
    feature: tuple[str, ...] = ("feature1", "feature2")
    confidence: str = ""  # a blob [N, H, W, H', W']
    similarity: str = ""  # what it was made of, in which nearest neighbours are looked for
    downsampling_factor: float = dataclasses.field(
        default=4.0, metadata={"above": 0, "aliases": ("down_sampling_factor", "jump")}
    )
    coordinate_offset: float = 0.0
    receptive_field: int = dataclasses.field(default=27, metadata={"low": 1})
    margin: float | None = None
    longer_side: int = dataclasses.field(default=0, metadata={"low": 0})
    block: tuple[str, ...] = ()
    block_jump: tuple[float, ...] = dataclasses.field(default=(), metadata={"above": 0})
    block_receptive_field: tuple[int, ...] = dataclasses.field(default=(), metadata={"low": 1})


@dataclass(frozen=True)
class NetFields:
    """A net's fields beside its layers."""

    name: str = ""
    force_backward: bool = False
    debug_info: bool = False
    state: StateFields = StateFields()
    match_param: MatchParams | None = None


@dataclass(frozen=True)
class Node:
    """A layer of the graph, its names bound and its place known."""

    name: str
    type: str
    message: Message
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    span: Span
    param_specs: tuple[ParamSpec, ...] = ()
    loss_weights: tuple[float, ...] = ()
    propagate_down: tuple[bool, ...] = ()
    twin_of: str = ""

    def in_place(self, top: int) -> bool:
        """Whether this top has the name of the bottom at its index."""
        return self.tops[top : top + 1] == self.bottoms[top : top + 1] != ()

    @property
    def filled(self) -> bool:
        """Whether the spec says what fills a parameter blob of it."""
        blocks = [field.value for field in self.message if isinstance(field.value, Message)]
        return any(field.name.endswith("_filler") for block in blocks for field in block)

    def where(self, field: str, index: int = 0) -> Span:
        """The place of the layer's ``index``-th ``bottom``, ``top``, ``param``, ..."""
        found = self.message.all(field)
        return found[index].value.span if index < len(found) else self.span

    def __str__(self) -> str:
        return f'layer "{self.name}"' if self.name else f"the unnamed {self.type} layer"


@dataclass(frozen=True)
class Graph:
    """A net's layers in order, as one state includes them. ``outputs`` are sorted by name."""

    name: str
    state: State
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    force_backward: bool
    match: MatchParams | None
    message: Message
    """The spec with its Siamese trunks expanded."""


def merged(phase: str, *states: StateFields) -> State:
    """The state of a solver's net: a later one's phase and level override, stages are added.

    Caffe's order is the default phase, the net's own ``state``, the solver's ``train_state`` or
    ``test_state``; so a net whose own state says TRAIN is a TRAIN net in tests, too.
    """
    level, stages = 0, list[str]()
    for state in states:
        phase = state.phase.name if state.phase else phase
        level = level if state.level is None else state.level
        stages += state.stage
    return State(phase, level, tuple(dict.fromkeys(stages)))


def graph(message: Message, state: State | None = None, errors: Errors | None = None) -> Graph:
    """Wire a net's message for a state (default: phase TEST).

    Raises :class:`SpecError` with every independent mistake (fields, rules, bottoms that nothing
    produces, tops produced twice), or adds them to ``errors`` and gives what could be read.
    """
    found = errors or Errors()
    _expect_net(message)
    before = len(found.found)
    expanded = expand(message, found)
    trunks_broken = len(found.found) > before
    net = _net_fields(expanded, found)
    state = _joined(state or State(), net.state)
    included, excluded, broken = _nodes(expanded, state, found)
    outputs = _wire(included, excluded, broken, state, Errors() if trunks_broken else found)
    if not (trunks_broken or broken):
        _check_matched(net.match_param, expanded, found)
    if errors is None:
        found.check()
    return Graph(
        net.name, state, tuple(included), outputs, net.force_backward, net.match_param, expanded
    )


def _expect_net(message: Message) -> None:
    """Raises SpecError for a solver's spec, which a net's fields would not explain."""
    if not ({"layer", "siamese"} & {field.name for field in message}) and kinds.is_solver(message):
        net = message.get("net") or message.get("train_net")
        named = f'; its net is "{net.value.text}"' if net and isinstance(net.value, Scalar) else ""
        if net or "base_lr" in message:
            hint = f"cortado train is for it{named}"
            raise SpecError("this is a solver's spec, not a net's", message.span, hint)


def _net_fields(message: Message, errors: Errors) -> NetFields:
    known = {"layer", *(field.name for field in dataclasses.fields(NetFields))}
    for field in message:
        if field.name not in known:
            errors.add(
                f'a net has no field "{field.name}"', field.span, did_you_mean(field.name, known)
            )
    if "layer" not in message and not errors.found:
        errors.add('a net needs at least one "layer"', message.span)
    readable = Message(message.span, [f for f in message if f.name in known - {"layer"}])
    net = errors.attempt(bind, NetFields, readable, what="a net") or NetFields()
    if net.match_param:
        found = message.all("match_param")[-1]
        assert isinstance(found.value, Message), "bound as a block"
        match = _match_params(net.match_param, found.value, found.span, errors)
        return dataclasses.replace(net, match_param=match)
    return net


_OF_CONFIDENCE = ("similarity", "receptive_field", "margin", "block")


def _match_params(match: MatchParams, block: Message, span: Span, errors: Errors) -> MatchParams:
    """The parameters as they are meant; errors at what does not go together."""
    if match.confidence:
        if "feature" in block:
            text = "match_param names a confidence or two features, not both"
            errors.add(text, block.all("feature")[0].span)
        if "coordinate_offset" in block:
            text = "a confidence's cell (0, 0) lies at 0: coordinate_offset goes with features"
            errors.add(f"match_param: {text}", block.all("coordinate_offset")[0].span)
        match = dataclasses.replace(match, feature=())
    else:
        for name in _OF_CONFIDENCE:
            if name in block:
                text = f'"{name}" of match_param goes with a confidence'
                errors.add(text, block.all(name)[0].span)
    if len(match.image) != 2 or len(match.feature) != (0 if match.confidence else 2):
        features = "" if match.confidence else " and two feature blobs"
        errors.add(f"match_param names two image blobs{features}", span)
    jumps, fields = block.all("block_jump"), block.all("block_receptive_field")
    if len(jumps) != len(fields) or len(jumps) > len(match.block):
        counts = f"{len(match.block)}, {len(jumps)} and {len(fields)}"
        text = f"block_jump and block_receptive_field are as many, and no more than block: got {counts}"
        errors.add(text, (jumps or fields)[0].span)
    return match


def _check_matched(match: MatchParams | None, message: Message, errors: Errors) -> None:
    """The blobs that a confidence is matched by, in whichever state, are the net's."""
    if match is None or not match.confidence:
        return
    layers = [field.value for field in message.all("layer") if isinstance(field.value, Message)]
    known = {top.text for layer in layers for top in texts(layer, "top")}
    given = message.all("match_param")[-1].value
    assert isinstance(given, Message), "bound as a block"
    for name in ("confidence", "similarity", "block"):
        for blob in texts(given, name):
            if blob.text not in known:
                near = closest(blob.text, known)
                hint = f'did you mean "{near}"?' if near else ""
                errors.add(f'match_param: {name} "{blob.text}" is no blob of the net', blob.span, hint)


def _joined(state: State, spec: StateFields) -> State:
    stages = dict.fromkeys((*spec.stage, *state.stages))
    return dataclasses.replace(state, stages=tuple(stages))


def _nodes(message: Message, state: State, errors: Errors) -> tuple[list[Node], list[Node], set[str]]:
    """The layers included, those excluded, and the tops of layers that could not be read."""
    included: list[Node] = []
    excluded: list[Node] = []
    broken: set[str] = set()
    for field in message.all("layer"):
        if not isinstance(field.value, Message):
            errors.add("a layer is a block of fields", field.span)
            continue
        layer = field.value
        fields = _layer_fields(layer, errors)
        if fields is None:
            broken.update(top.text for top in texts(layer, "top"))
            continue
        if fields.include and fields.exclude:
            errors.add(f'layer "{fields.name}" has both include and exclude rules', layer.span)
        (included if fields.included(state) else excluded).append(_node(fields, layer))
    return included, excluded, broken


def _layer_fields(layer: Message, errors: Errors) -> LayerFields | None:
    """Bind a layer's own fields; unknown ones beside them are reported, and passed over."""
    try:
        return bind(LayerFields, layer, what="a layer", ignore=_of_its_type)
    except SpecError as error:
        errors.keep(error)
    with suppress(SpecError):
        return bind(LayerFields, layer, ignore=lambda name: True)
    return None


def _of_its_type(field: str) -> bool:
    return field.endswith("_param")


def _node(fields: LayerFields, message: Message) -> Node:
    return Node(
        fields.name,
        fields.type,
        message,
        fields.bottom,
        fields.top,
        message.span,
        fields.param,
        fields.loss_weight,
        fields.propagate_down,
        fields.twin_of,
    )


def _wire(
    nodes: list[Node], excluded: list[Node], broken: set[str], state: State, errors: Errors
) -> tuple[str, ...]:
    """Check that every bottom is produced above it, and once; give the outputs."""
    producers: dict[str, Node] = {}
    for position, node in enumerate(nodes):
        for i, blob in enumerate(node.bottoms):
            if blob not in producers and blob not in broken:
                why = _why_missing(blob, node, producers, nodes[position + 1 :], excluded, state)
                text = f'{node} reads "{blob}", which no layer above produces{why}'
                errors.add(text, node.where("bottom", i))
        for i, blob in enumerate(node.tops):
            if blob in producers and not node.in_place(i):
                other = producers[blob]
                again = "more than once" if other is node else f"again, after {_at(other, node.span)}"
                errors.add(f'{node} produces "{blob}" {again}', node.where("top", i))
            producers[blob] = node
    _check_counts(nodes, errors)
    _check_in_place(nodes, errors)
    return _outputs(nodes)


def _outputs(nodes: Iterable[Node]) -> tuple[str, ...]:
    """The blobs that no layer reads after they were last written, by name."""
    unread: set[str] = set()
    for node in nodes:
        unread.difference_update(node.bottoms)
        unread.update(node.tops)
    return tuple(sorted(unread))


Top = tuple[int, int]  # the indices of a node and of its top: one state of a blob's values


def _sources(nodes: Sequence[Node]) -> list[list[Top | None]]:
    """For each node's bottoms, the top that wrote them last (None where no layer above did)."""
    last: dict[str, Top] = {}
    found = []
    for n, node in enumerate(nodes):
        found.append([last.get(blob) for blob in node.bottoms])
        last.update({blob: (n, i) for i, blob in enumerate(node.tops)})
    return found


def _uses(nodes: Sequence[Node], sources: list[list[Top | None]]) -> Counter[Top]:
    """How often each top is read; a loss weight that the spec gives it counts as a reader."""
    uses = Counter(top for tops in sources for top in tops if top)
    for n, node in enumerate(nodes):
        uses.update((n, i) for i, weight in enumerate(node.loss_weights[: len(node.tops)]) if weight)
    return uses


def _check_in_place(nodes: list[Node], errors: Errors) -> None:
    """Values that others read cannot be written over: Caffe's split gives each reader its own."""
    sources = _sources(nodes)
    uses = _uses(nodes, sources)
    for n, node in enumerate(nodes):
        for i, blob in enumerate(node.tops):
            source = sources[n][i] if node.in_place(i) else None
            if source and uses[source] > 1:
                others = [m for m, tops in enumerate(sources) if source in tops and m != n]
                if others:
                    why = f"{_at(nodes[others[0]], node.span)}, reads it, too"
                else:
                    twice = sources[n].count(source) > 1
                    why = "it is read twice" if twice else "it has a loss weight"
                errors.add(f'{node} cannot write "{blob}" in place: {why}', node.where("top", i))


def owners(graph: Graph) -> dict[str, tuple[str, ...]]:
    """For each layer that shares parameters the layers whose they are, as far as the spec tells: by
    ``param`` names, and for a twin by its fillers."""
    first: dict[str, str] = {}
    found = {}
    for node in graph.nodes:
        named = [first.setdefault(spec.name, node.name) for spec in node.param_specs if spec.name]
        others = dict.fromkeys([*named, *([node.twin_of] if node.twin_of and node.filled else [])])
        others.pop(node.name, None)
        if others:
            found[node.name] = tuple(others)
    return found


def with_splits(graph: Graph) -> Graph:
    """The graph with Caffe's Split layers: one for every top that several layers read.

    The split of blob ``h``, top 0 of layer ``ip``, is ``h_ip_0_split``, its tops ``h_ip_0_split_0``
    and so on, one for each reader in their order. A loss weight of the top counts as its first
    reader, and moves to the split's first top.
    """
    sources = _sources(graph.nodes)
    uses = _uses(graph.nodes, sources)
    taken: Counter[Top] = Counter()
    nodes: list[Node] = []
    for n, node in enumerate(graph.nodes):
        bottoms = list(node.bottoms)
        for i, top in enumerate(sources[n]):
            if top and uses[top] > 1:
                bottoms[i] = f"{_split_name(graph.nodes, top)}_{taken[top]}"
                taken[top] += 1
        weights = list(node.loss_weights)
        splits = []
        for i in range(len(node.tops)):
            if uses[n, i] > 1:
                weight = weights[i] if i < len(weights) else 0.0
                splits.append(_split(graph.nodes, (n, i), uses[n, i], weight))
                if weight:
                    weights[i] = 0.0
                    taken[n, i] += 1
        nodes += [_rewired(node, bottoms, weights), *splits]
    return dataclasses.replace(graph, nodes=tuple(nodes), outputs=_outputs(nodes))


def _split_name(nodes: Sequence[Node], top: Top) -> str:
    node = nodes[top[0]]
    return f"{node.tops[top[1]]}_{node.name}_{top[1]}_split"


def _split(nodes: Sequence[Node], top: Top, count: int, weight: float) -> Node:
    node, name = nodes[top[0]], _split_name(nodes, top)
    message = Message(node.span)
    tops = [f"{name}_{i}" for i in range(count)]
    for key, values in (
        ("name", [name]),
        ("type", ["Split"]),
        ("bottom", [node.tops[top[1]]]),
        ("top", tops),
    ):
        for value in values:
            message.add(key, value)
    weights = (weight, *[0.0] * (count - 1)) if weight else ()
    message.fields += _weights(weights, node.span)
    return Node(
        name, "Split", message, (node.tops[top[1]],), tuple(tops), node.span, loss_weights=weights
    )


def _rewired(node: Node, bottoms: list[str], weights: list[float]) -> Node:
    """The node with other bottoms and loss weights, in its message, too."""
    if tuple(bottoms) == node.bottoms and tuple(weights) == node.loss_weights:
        return node
    names = iter(bottoms)
    fields = []
    for field in node.message:
        if field.name == "bottom":
            name, old = next(names), field.value
            value = (
                old
                if isinstance(old, Scalar) and old.text == name
                else Scalar(name, old.span, quoted=True)
            )
            fields.append(Field("bottom", value, field.span))
        elif field.name != "loss_weight":
            fields.append(field)
    message = Message(node.message.span, [*fields, *_weights(weights, node.span)])
    return dataclasses.replace(
        node, message=message, bottoms=tuple(bottoms), loss_weights=tuple(weights)
    )


def _weights(weights: Iterable[float], span: Span) -> Iterator[Field]:
    return (Field("loss_weight", Scalar(f"{weight:g}", span), span) for weight in weights)


def _check_counts(nodes: list[Node], errors: Errors) -> None:
    names = {node.name for node in nodes}
    for node in nodes:
        if node.propagate_down and len(node.propagate_down) != len(node.bottoms):
            found = f"{len(node.propagate_down)} values for {len(node.bottoms)} bottoms"
            errors.add(f"{node} has propagate_down of {found}", node.where("propagate_down"))
        if node.twin_of and node.twin_of not in names:
            hint = did_you_mean(node.twin_of, names - {node.name}, "layers")
            errors.add(
                f'{node} is the twin of "{node.twin_of}", which is not in the net',
                node.where("twin_of"),
                hint,
            )


def _why_missing(
    blob: str,
    node: Node,
    producers: dict[str, Node],
    below: Iterable[Node],
    excluded: Iterable[Node],
    state: State,
) -> str:
    for other in below:
        if blob in other.tops:
            return f" ({_at(other, node.span)}, does so below)"
    for other in excluded:
        if blob in other.tops:
            return f" ({_at(other, node.span)}, does, but is not included in {state})"
    near = closest(blob, producers)
    if not near:
        return ""
    return f' (closest: "{near}", {_line(producers[near].span, node.span)})'


def _at(node: Node, seen_from: Span) -> str:
    return f'layer "{node.name}", {_line(node.span, seen_from)}'


def _line(span: Span, seen_from: Span) -> str:
    """``line 38``, with its file where that is another one."""
    return f"line {span.line}" if span.source.name == seen_from.source.name else span.place
