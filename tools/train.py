"""Train a net by its solver spec."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import EFFECTS, device_options, processes, python_layers, the_device

if TYPE_CHECKING:
    from cortado.nets.solver import Solver

PRECISIONS = ("bfloat16", "float16")


@click.command()
@click.argument("spec", metavar="SOLVER", type=click.Path(), required=False)
@click.option("--solver", type=click.Path(), help="The same as SOLVER.")
@click.option("--weights", type=click.Path(exists=True, dir_okay=False), help="Start from these.")
@click.option("--snapshot", type=click.Path(exists=True, dir_okay=False), help="Resume from this.")
@click.option("--iterations", type=click.IntRange(1), help="Instead of the solver's max_iter.")
@click.option("--out", type=click.Path(dir_okay=False), help="Weights [default: <net>.safetensors].")
@device_options
@click.option("--precision", type=click.Choice(PRECISIONS), help="Mixed precision.")
@click.option("--log", type=click.Path(dir_okay=False), help="Append Caffe's log lines to this file.")
@click.option("--json", "lines", type=click.Path(dir_okay=False), help="Append a JSON line a step.")
@click.option("--tensorboard", type=click.Path(file_okay=False), help="Write its events here.")
@click.option("--sigint-effect", type=click.Choice(EFFECTS), default="stop", show_default=True)
@click.option("--sighup-effect", type=click.Choice(EFFECTS), default="snapshot", show_default=True)
@python_layers
def command(
    spec: str | None,
    solver: str | None,
    weights: str | None,
    snapshot: str | None,
    iterations: int | None,
    out: str | None,
    **options: Any,
) -> None:
    """Train the net of SOLVER, a spec with Caffe's solver fields, and save its weights.

    Displays, tests and snapshots are those the spec asks for. SIGINT snapshots and stops, SIGHUP
    snapshots and goes on. On several GPUs or machines: torchrun -m cortado train ...

    \b
    cortado train my_solver.yaml --weights pretrained.caffemodel --device cuda:0
    torchrun --nproc-per-node 4 -m cortado train my_solver.yaml
    """
    from cortado.nets.signals import Signals
    from cortado.nets.solver import Action
    from cortado.nets.weights import save

    from .progress import training

    path = spec or solver
    if not path or (spec and solver):
        raise click.UsageError("name the solver spec, once")
    effects = (Action[options[f"{name}_effect"].upper()] for name in ("sigint", "sighup"))
    with ExitStack() as stack:
        signals = stack.enter_context(Signals(*effects))
        run = _solver(stack, path, weights, signals, options)
        if run.report:
            run.log(str(run.report))
        if snapshot:
            run.restore(snapshot)
        count = iterations or run.params.max_iter - run.iter
        if count <= 0:
            raise click.UsageError(f"nothing to do: iteration {run.iter} of {run.params.max_iter}")
        run.log(f"Solving {run.net.graph.name}")
        training(run, count, label=Path(path).stem)
        run.finish()
        if run.is_root:
            target = out or f"{run.net.graph.name or Path(path).stem}.safetensors"
            save(run.net, target)
            click.echo(f"weights written to {target}")


def _solver(
    stack: ExitStack, path: str, weights: str | None, signals: Any, options: dict[str, Any]
) -> Solver:
    import torch
    from cortado.nets.solver import Solver

    from .records import Records

    device = the_device(options)
    together, device = stack.enter_context(processes(device))
    precision = getattr(torch, options["precision"]) if options["precision"] else None
    records = stack.enter_context(Records(options["log"], options["lines"], options["tensorboard"]))
    return Solver(
        path,
        weights=weights,
        device=device,
        action=signals,
        log=records.log,
        on_iteration=records.iteration,
        on_test=records.test,
        precision=precision,
        together=together,
        allow_python_layers=options["allow_python_layers"],
    )
