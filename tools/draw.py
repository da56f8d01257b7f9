"""Draw a net as SVG, PNG, or a page to explore."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .layout import Box, Edge, layout
from .options import plugins, python_layers, state_options

if TYPE_CHECKING:
    from cortado.nets.cost import LayerFacts
    from cortado.nets.graph import Graph, Node, State
    from cortado.prototxt_like.message import Message
    from cortado.prototxt_like.source import SpecError

SUFFIXES = (".svg", ".png", ".html")
CHARACTER, LINE, MARGIN, FONT = 6.65, 15.0, 10.0, 11  # pixels; the font is monospaced
LONGEST = 34  # characters of a line


@click.command()
@click.argument("spec", type=click.Path())
@click.argument("out", type=click.Path(dir_okay=False))
@state_options
@click.option("--no-shapes", is_flag=True, help="The wiring alone, of any layer types.")
@python_layers
@plugins
def command(
    spec: str,
    out: str,
    phase: str,
    level: int,
    stages: tuple[str, ...],
    no_shapes: bool,
    allow_python_layers: bool,
) -> None:
    """Draw the net of SPEC into OUT, an .svg or .png picture or an .html page.

    The page stands by itself: drag to pan, turn the wheel to zoom, click a layer for its
    parameters, shapes and cost, find layers by name. Siamese twins stand side by side.

    \b
    cortado draw ucn_hn_st ucn.html
    cortado draw train_val.prototxt net.svg --phase TRAIN --no-shapes
    """
    from cortado.nets.graph import State
    from cortado.nets.specs import load

    if Path(out).suffix.lower() not in SUFFIXES:
        raise click.UsageError(f"OUT: expected a name that ends in {', '.join(SUFFIXES)}, got {out}")
    state = State(phase.upper(), level, stages)
    unknown = draw(
        load(spec), out, state=state, shapes=not no_shapes, allow_python_layers=allow_python_layers
    )
    for error in unknown:
        click.echo(f"without shapes: {error}", err=True)


def draw(
    net: Message | Graph,
    path: str | Path,
    *,
    state: State | None = None,
    shapes: bool = True,
    allow_python_layers: bool = False,
) -> Sequence[SpecError]:
    """Draw a net's message for a state (default: phase TEST), or a graph, as ``path``'s suffix says.

    With ``shapes`` the layers are built as far as they can be; the mistakes of the others, which are
    drawn without shapes and cost (their types may be unknown), are given back. Without it nothing
    but the wiring is looked at, and torch is not imported.

    Raises ValueError for another suffix, SpecError if the wiring is wrong.
    """
    from cortado.nets.graph import Graph, graph
    from cortado.prototxt_like.files import replace_file, replace_text

    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"expected a name that ends in {', '.join(SUFFIXES)}, got {path}")
    wired = net if isinstance(net, Graph) else graph(net, state)
    facts, errors = _facts(wired, allow_python_layers) if shapes else ({}, ())
    picture = Picture.of(wired, facts)
    if suffix == ".png":
        from .paint import png

        replace_file(path, partial(png, picture))
    else:
        from .paint import page, svg

        text = page(picture) if suffix == ".html" else svg(picture)
        replace_text(path, text)
    return errors


def _facts(
    graph: Graph, allow_python_layers: bool
) -> tuple[dict[int, LayerFacts], Sequence[SpecError]]:
    """What is known of the layers that can be built, by their place in the graph."""
    from cortado.nets.build import build
    from cortado.nets.cost import facts
    from cortado.prototxt_like.source import Errors, together

    found = Errors()
    built = build(
        graph.message,
        graph.state,
        allow_python_layers=allow_python_layers,
        values=False,
        found=found,
    )
    places = {id(node): i for i, node in enumerate(built.graph.nodes)}
    known = {
        places[id(made.node)]: layer for made, layer in zip(built.layers, facts(built), strict=True)
    }
    return known, together(found.found).errors if found.found else ()


@dataclass
class Row:
    """A layer in a box: the one on top, or one below that works in place."""

    node: int
    name: str
    kind: str
    """data, learned, plain, loss or metric."""
    lines: list[str]
    shares: str = ""
    """With which layers it shares parameters."""

    @property
    def height(self) -> float:
        return LINE * (len(self.lines) + 1) + 8 if self.lines else LINE + 5

    @property
    def width(self) -> float:
        badge = 4 if self.shares else 0
        longest = max(len(self.name) + badge, *map(len, self.lines), 12)
        return CHARACTER * longest + 2 * MARGIN


@dataclass
class Picture:
    """The rows of each box and all that is known of each layer, placed."""

    title: str
    boxes: list[Box] = field(default_factory=list)
    rows: list[list[Row]] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    details: list[dict[str, Any]] = field(default_factory=list)
    width: float = 0.0
    height: float = 0.0

    @classmethod
    def of(cls, graph: Graph, facts: dict[int, LayerFacts]) -> Picture:
        """The picture of a graph; facts by the layer's place in it, where they are known."""
        shared = _shared(graph, facts)
        picture = cls(f"{graph.name or 'net'} ({graph.state})")
        picture.details = [
            _details(node, facts.get(i), shared.get(i, "")) for i, node in enumerate(graph.nodes)
        ]
        boxes = _boxes(graph)
        of_node = {i: k for k, nodes in enumerate(boxes) for i in nodes}
        given = _given(graph, shared)
        for nodes in boxes:
            rows = [_row(graph, i, facts.get(i), shared.get(i) or given.get(i, "")) for i in nodes]
            for row in rows[1:]:
                row.lines.clear()
                row.name = f"{graph.nodes[row.node].type}  {row.name}"
            picture.rows.append(rows)
        _stretch_twins(picture, _twins(graph), of_node)
        picture.edges = list(_edges(graph, of_node))
        picture.width, picture.height = layout(picture.boxes, picture.edges)
        return picture

    def place(self, box: int) -> Iterator[tuple[Row, float, float]]:
        """The rows of a box, each with its upper and lower end."""
        y = self.boxes[box].y
        for row in self.rows[box]:
            yield row, y, y + row.height
            y += row.height

    def twins(self) -> Iterator[tuple[float, float, float, float]]:
        """Left, top, right and bottom of the two branches, if there are any."""
        second = [box for box in self.boxes if box.twin_of is not None]
        for branch in (
            [self.boxes[i] for i in {box.twin_of for box in second} if i is not None],
            second,
        ):
            if branch:
                yield (
                    min(box.x - box.width / 2 for box in branch) - MARGIN,
                    min(box.y for box in branch) - MARGIN - LINE,
                    max(box.x + box.width / 2 for box in branch) + MARGIN,
                    max(box.y + box.height for box in branch) + MARGIN,
                )


def _boxes(graph: Graph) -> list[list[int]]:
    """Layers that work in place stand with the layer whose top they change."""
    boxes: list[list[int]] = []
    writer: dict[str, list[int]] = {}
    for i, node in enumerate(graph.nodes):
        if len(node.bottoms) == len(node.tops) == 1 and node.in_place(0):
            writer[node.tops[0]].append(i)
        else:
            boxes.append([i])
            writer |= dict.fromkeys(node.tops, boxes[-1])
    return boxes


def _edges(graph: Graph, of_node: dict[int, int]) -> Iterator[Edge]:
    writer: dict[str, int] = {}
    for i, node in enumerate(graph.nodes):
        for blob in dict.fromkeys(node.bottoms):
            if writer[blob] != of_node[i]:
                yield Edge(writer[blob], of_node[i], blob)
        writer |= dict.fromkeys(node.tops, of_node[i])


def _twins(graph: Graph) -> dict[str, str]:
    """For each layer of a second branch the one of the first: as the spec says, or where layers that
    share parameters differ by one suffix, by that."""
    said = {node.name: node.twin_of for node in graph.nodes if node.twin_of}
    pairs = said or _suffixed(graph)
    once = {first: twin for twin, first in reversed(pairs.items()) if first not in pairs}
    return {twin: first for first, twin in once.items()}


def _suffixed(graph: Graph) -> dict[str, str]:
    from cortado.nets.graph import owners

    sharing = [(name, first) for name, others in owners(graph).items() for first in others]
    suffixes = {name.removeprefix(first) if name.startswith(first) else "" for name, first in sharing}
    if len(suffixes) != 1 or "" in suffixes:
        return {}
    (suffix,) = suffixes
    types = {node.name: node.type for node in graph.nodes}
    return {name + suffix: name for name, kind in types.items() if types.get(name + suffix) == kind}


def _stretch_twins(picture: Picture, twins: dict[str, str], of_node: dict[int, int]) -> None:
    """Make the boxes; those of a pair of twins are of one size."""
    names = {detail["name"]: of_node[i] for i, detail in enumerate(picture.details)}
    for k, rows in enumerate(picture.rows):
        width, height = max(row.width for row in rows), sum(row.height for row in rows)
        first = names.get(twins.get(picture.details[rows[0].node]["name"], ""))
        picture.boxes.append(Box(width, height, first if first != k else None))
    for box in picture.boxes:
        if box.twin_of is not None:
            other = picture.boxes[box.twin_of]
            box.width = other.width = max(box.width, other.width)
            box.height = other.height = max(box.height, other.height)


def _shared(graph: Graph, facts: dict[int, LayerFacts]) -> dict[int, str]:
    """Whose parameters each layer has, beside its own."""
    from cortado.nets.graph import owners

    named = {name: ", ".join(others) for name, others in owners(graph).items()}
    found = {
        i: facts[i].shared_with if i in facts else named.get(node.name, "")
        for i, node in enumerate(graph.nodes)
    }
    return {i: others for i, others in found.items() if others}


def _given(graph: Graph, shared: dict[int, str]) -> dict[int, str]:
    """Who else has the parameters of each layer that owns some."""
    users: dict[str, list[str]] = defaultdict(list)
    for i, names in shared.items():
        for owner in names.split(", "):
            users[owner].append(graph.nodes[i].name)
    return {i: ", ".join(users[node.name]) for i, node in enumerate(graph.nodes) if node.name in users}


def _kind(node: Node, facts: LayerFacts | None, shares: str) -> str:
    if not node.bottoms:
        return "data"
    if facts.loss if facts else "Loss" in node.type or any(node.loss_weights):
        return "loss"
    if facts.metric if facts else "Accuracy" in node.type:
        return "metric"
    has_parameters = facts.parameters if facts else node.param_specs or node.filled
    return "learned" if has_parameters or shares else "plain"


def _row(graph: Graph, i: int, facts: LayerFacts | None, shares: str) -> Row:
    node = graph.nodes[i]
    lines = [_cut(f"{node.type} {_summary(node)}")]
    for name, size in _sizes(node, facts):
        known = [text for text in (name if name != node.name else "", size) if text]
        lines += [_cut(": ".join(known))] if known else []
    return Row(i, node.name, _kind(node, facts, shares), lines, shares)


def _sizes(node: Node, facts: LayerFacts | None) -> list[tuple[str, str]]:
    """Each top with its shape, "" where that is unknown."""
    if facts is None:
        return [(name, "") for name in node.tops]
    return [(name, " x ".join(map(str, shape)) or "scalar") for name, shape in facts.tops]


def _cut(text: str) -> str:
    text = text.strip()
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _summary(node: Node) -> str:
    """The scalars of the layer's own blocks, as short as they can be."""
    from cortado.prototxt_like.message import Message, Scalar

    values: dict[str, list[str]] = defaultdict(list)
    for block in node.message:
        if block.name.endswith("_param") and isinstance(block.value, Message):
            for entry in block.value:
                if isinstance(entry.value, Scalar):
                    values[entry.name].append(entry.value.text)
    short = {name: "x".join(texts) for name, texts in values.items()}
    names = {"num_output": "", "kernel_size": "k", "stride": "s", "pad": "p", "pool": ""}
    return " ".join(f"{names.get(name, name + '=')}{text}" for name, text in short.items())


def _details(node: Node, facts: LayerFacts | None, shares: str) -> dict[str, Any]:
    """What a page shows of a layer that is clicked."""
    from cortado.prototxt_like.message import Message
    from cortado.prototxt_like.yaml_spec import dump

    own = [f for f in node.message if f.name not in ("name", "type", "bottom", "top", "twin_of")]
    found: dict[str, Any] = {
        "name": node.name,
        "type": node.type,
        "place": node.span.place,
        "bottoms": list(node.bottoms),
        "tops": _sizes(node, facts),
        "shares": shares,
        "spec": dump(Message(node.message.span, own)) if own else "",
    }
    if facts is not None:
        from .check import view

        sees, place = view(facts.fields)
        found |= {
            "parameters": facts.parameters,
            "multiply-adds": facts.multiply_adds,
            "bytes of its tops": facts.bytes,
            "receptive field": f"{sees} pixels" if sees else "",
            "cell u lies at": place,
        }
    return found
