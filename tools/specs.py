"""List the specs that come with cortado."""

from __future__ import annotations

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def command(as_json: bool) -> None:
    """Show the name of each net and solver that comes with cortado, and what its file says of it.

    Where a command takes a spec, its name will do; what is here only to be included is left out.

    \b
    cortado specs
    cortado check ucn_hn_st
    cortado train ucn_demo_hn_solver
    """
    import json

    from cortado.nets import specs

    known = specs.summaries()
    if as_json:
        click.echo(json.dumps([{"name": name, "about": about} for name, about in known.items()]))
        return
    width = max(map(len, known))
    for name, about in known.items():
        click.echo(f"{name:{width}}  {about}")
