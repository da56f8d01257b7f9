"""Check a spec: layers, shapes, parameters, and every mistake at its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cortado.nets.net import Net


@click.command()
@click.argument("spec", type=click.Path())
@click.option("--phase", type=click.Choice(["TRAIN", "TEST"]), default="TRAIN", show_default=True)
@click.option("--level", type=int, default=0, show_default=True)
@click.option("--stage", "stages", multiple=True, help="May be given more than once.")
@click.option("--expand", is_flag=True, help="Print the spec with its Siamese twins written out.")
@click.option(
    "--plugin", multiple=True, type=click.Path(exists=True), help="A file of your own layers."
)
def command(
    spec: str, phase: str, level: int, stages: tuple[str, ...], expand: bool, plugin: tuple[str, ...]
) -> None:
    """Show the layers, shapes and parameters of SPEC, or its mistakes (exit code 2).

    \b
    cortado check nets/specs/ucn_hn.yaml --phase TEST --stage deploy
    """
    from cortado.layers._runtime import dispatch, registry

    for path in plugin:
        registry.load_plugin(path)
    if expand:
        from cortado.nets.siamese import expand as expanded
        from cortado.prototxt_like import load
        from cortado.prototxt_like.yaml_spec import dump

        click.echo(dump(expanded(load(spec))), nl=False)
        return
    from cortado.nets.net import Net

    show(Net(spec, phase, level=level, stages=stages, seed=0))
    if note := dispatch.note():
        click.echo(note)


def show(net: Net) -> None:
    """Print a net's layers as a table, and its totals."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("layer", "type", "bottoms", "tops", "parameters"):
        table.add_column(column, justify="right" if column == "parameters" else "left", overflow="fold")
    for facts in net.facts():
        tops = ", ".join(f"{name} {list(shape)}" for name, shape in facts.tops)
        count = f"{facts.parameters:,}" if facts.parameters else ""
        shared = f"as {facts.shared_with}" if facts.shared_with else count
        table.add_row(facts.name, facts.type, ", ".join(facts.bottoms), tops, shared)
    console = Console()
    if not console.is_terminal:
        console.width = 200
    console.print(f"{net.graph.name or 'net'}: {net.graph.state}")
    console.print(table)
    count = f"{net.num_parameters:,} parameters (shared ones counted once)"
    console.print(f"{len(net.facts())} layers, {count}; outputs: {', '.join(net.outputs)}")
