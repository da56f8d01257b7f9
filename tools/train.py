"""Train a net by its solver spec."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("solver", type=click.Path())
@click.option("--weights", type=click.Path(exists=True, dir_okay=False), help="Start from these.")
@click.option("--snapshot", type=click.Path(exists=True, dir_okay=False), help="Resume from this.")
@click.option("--iterations", type=click.IntRange(1), help="Instead of the solver's max_iter.")
@click.option("--out", type=click.Path(dir_okay=False), help="Weights [default: <net>.safetensors].")
def command(
    solver: str, weights: str | None, snapshot: str | None, iterations: int | None, out: str | None
) -> None:
    """Train the net of SOLVER, a spec with Caffe's solver fields, and save its weights.

    Displays, tests and snapshots are those the spec asks for.

    \b
    cortado train my_solver.yaml --weights pretrained.safetensors --out my_net.safetensors
    """
    from cortado.nets.solver import Solver
    from cortado.nets.weights import save

    from .progress import training

    run = Solver(solver, weights=weights, log=click.echo)
    if run.report:
        click.echo(str(run.report))
    if snapshot:
        run.restore(snapshot)
    count = iterations or run.params.max_iter - run.iter
    if count <= 0:
        raise click.UsageError(f"nothing to do: iteration {run.iter} of {run.params.max_iter}")
    training(run, count, label=Path(solver).stem)
    run.finish()
    target = out or f"{run.net.graph.name or Path(solver).stem}.safetensors"
    save(run.net, target)
    click.echo(f"weights written to {target}")
