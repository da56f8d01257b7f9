"""Check a spec: wiring, shapes, parameters and cost, and every mistake at its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from .options import plugins, python_layers, state_options

if TYPE_CHECKING:
    from cortado.layers._engine.reach import Length
    from cortado.nets.build import Built
    from cortado.nets.cost import Fields, LayerFacts
    from cortado.nets.graph import Graph, State
    from cortado.prototxt_like.message import Message
    from cortado.prototxt_like.source import SpecError
    from rich.table import Table


@click.command()
@click.argument("spec", type=click.Path())
@state_options
@click.option("--no-shapes", is_flag=True, help="The wiring alone, of any layer types.")
@click.option("--expand", is_flag=True, help="Print the spec with its Siamese twins written out.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, of mistakes too.")
@python_layers
@plugins
def command(
    spec: str,
    phase: str,
    level: int,
    stages: tuple[str, ...],
    no_shapes: bool,
    expand: bool,
    as_json: bool,
    allow_python_layers: bool,
) -> None:
    """Show what SPEC makes of its layers, or all its mistakes at their places (exit code 2).

    For each layer: its blobs with their shapes, the parameters it owns or whose it shares, the MiB
    of its tops in float32, its multiply-adds in one forward pass, and for a map over the image its
    receptive field in pixels and the image point at which its cell u lies.

    \b
    cortado check ucn_hn --stage deploy
    cortado check train_val.prototxt --phase TRAIN --no-shapes
    """
    from cortado.nets.graph import State
    from cortado.nets.specs import load
    from cortado.prototxt_like.source import SpecError

    state = State(phase.upper(), level, stages)
    try:
        message = load(spec)
        if expand:
            from cortado.nets.siamese import expanded_text

            click.echo(expanded_text(message), nl=False)
        elif no_shapes:
            _wiring(message, state, as_json)
        else:
            _whole(message, state, allow_python_layers, as_json)
    except SpecError as error:
        if not as_json:
            raise
        _print_json({"errors": [_mistake(single) for single in error.errors]})
        raise click.exceptions.Exit(2) from None


def _wiring(message: Message, state: State, as_json: bool) -> None:
    from cortado.nets.graph import graph

    wired = graph(message, state)
    if as_json:
        _print_json(wiring_record(wired))
    else:
        show_wiring(wired)


def _whole(message: Message, state: State, allow_python_layers: bool, as_json: bool) -> None:
    from cortado.layers._engine import dispatch
    from cortado.nets.build import build
    from cortado.nets.cost import facts, mismatches

    built = build(message, state, allow_python_layers=allow_python_layers, values=False)
    layers = facts(built)
    notes = mismatches(built.graph.match, layers)
    if note := dispatch.note():
        notes.append(note)
    if as_json:
        _print_json(record(built, layers) | {"notes": notes})
        return
    show(built, layers)
    for note in notes:
        click.echo(note)


def _print_json(value: dict[str, Any]) -> None:
    import json

    click.echo(json.dumps(value))


def _mistake(error: SpecError) -> dict[str, Any]:
    place = error.span
    where = {"file": place.source.name, "line": place.line, "column": place.column} if place else {}
    return {**where, "message": error.message, "hint": error.hint}


def wiring_record(graph: Graph) -> dict[str, Any]:
    """The wiring as plain data."""
    from cortado.nets.graph import owners

    shared = owners(graph)
    layers = [
        {
            "name": node.name,
            "type": node.type,
            "place": node.span.place,
            "bottoms": list(node.bottoms),
            "tops": [{"name": top} for top in node.tops],
            "shared_with": list(shared.get(node.name, ())),
        }
        for node in graph.nodes
    ]
    return {
        "name": graph.name,
        "state": str(graph.state),
        "layers": layers,
        "outputs": list(graph.outputs),
    }


def record(built: Built, layers: Sequence[LayerFacts]) -> dict[str, Any]:
    """A built net as plain data; lengths are pixels along the last axes, bytes those of float32."""
    found = wiring_record(built.graph)
    for row, layer in zip(found["layers"], layers, strict=True):
        row["tops"] = [
            {"name": name, "shape": list(shape), **_field_record(fields)}
            for (name, shape), fields in zip(layer.tops, layer.fields, strict=True)
        ]
        row["shared_with"] = layer.shared_with.split(", ") if layer.shared_with else []
        row |= {"parameters": layer.parameters, "top_bytes": layer.bytes}
        row["multiply_adds"] = layer.multiply_adds
    return found | totals(built, layers)


def _field_record(fields: Fields | None) -> dict[str, Any]:
    if fields is None:
        return {}
    values = {
        "receptive_field": [field.size for field in fields],
        "stride": [field.stride for field in fields],
        "image_point": [field.point for field in fields],
    }
    return {key: [_number(length) for length in lengths] for key, lengths in values.items()}


def _number(length: Length) -> int | float:
    return int(length) if length == int(length) else float(length)


def totals(built: Built, layers: Sequence[LayerFacts]) -> dict[str, int]:
    """Sums over the layers; parameters that several share count once."""
    return {
        "parameters": built.parameters,
        "top_bytes": sum(layer.bytes for layer in layers),
        "multiply_adds": sum(layer.multiply_adds or 0 for layer in layers),
    }


def show_wiring(graph: Graph) -> None:
    """Print the wiring as a table."""
    rows = wiring_record(graph)["layers"]
    table = _table(("layer", "type", "bottoms", "tops", "parameters"))
    for row in rows:
        tops = ", ".join(top["name"] for top in row["tops"])
        shared = f"as {', '.join(row['shared_with'])}" if row["shared_with"] else ""
        table.add_row(row["name"], row["type"], ", ".join(row["bottoms"]), tops, shared)
    _print(graph, table)
    click.echo(f"{len(rows)} layers; outputs: {', '.join(graph.outputs)}")


def show(built: Built, layers: Sequence[LayerFacts]) -> None:
    """Print a net's layers as a table, and its totals."""
    right = ("parameters", "MiB", "M multiply-adds", "sees")
    table = _table(("layer", "type", "bottoms", "tops", *right, "cell u at"), right)
    for layer in layers:
        tops = ", ".join(f"{name} {list(shape)}" for name, shape in layer.tops)
        count = f"{layer.parameters:,}" if layer.parameters else ""
        shared = f"as {layer.shared_with}" if layer.shared_with else count
        work = f"{layer.multiply_adds / 1e6:,.1f}" if layer.multiply_adds is not None else ""
        size = f"{layer.bytes / 2**20:.2f}" if layer.bytes else ""
        bottoms = ", ".join(layer.bottoms)
        table.add_row(layer.name, layer.type, bottoms, tops, shared, size, work, *view(layer.fields))
    _print(built.graph, table)
    sums = totals(built, layers)
    click.echo(
        f"{len(layers)} layers, {sums['parameters']:,} parameters (shared ones counted once), "
        f"{sums['multiply_adds'] / 1e6:,.1f} M multiply-adds, "
        f"{sums['top_bytes'] / 2**20:.1f} MiB of blobs; "
        f"outputs: {', '.join(built.graph.outputs)}"
    )


def view(tops: Sequence[Fields | None]) -> tuple[str, str]:
    """What cells see and where they lie, once if it is the same for all axes and tops."""
    from cortado.nets.cost import cells

    fields = [field for axes in tops for field in axes or ()]
    sizes = dict.fromkeys(f"{float(field.size):.4g}" for field in fields)
    places = dict.fromkeys(cells(field.stride, field.point) for field in fields)
    return " x ".join(sizes), " x ".join(places)


def _table(columns: Sequence[str], right: Sequence[str] = ()) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _print(graph: Graph, table: Table) -> None:
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 220
    console.print(f"{graph.name or 'net'}: {graph.state}")
    console.print(table)
