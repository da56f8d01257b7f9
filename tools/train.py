"""Train a net by its solver spec."""

from __future__ import annotations

import faulthandler
import signal
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import (
    EFFECTS,
    device_options,
    expect_distinct,
    expect_folder,
    glog,
    level_and_stages,
    named_once,
    plugins,
    processes,
    python_layers,
    the_device,
)

if TYPE_CHECKING:
    import torch
    from cortado.nets.solver import Solver
    from cortado.nets.solver_params import SolverParams

PRECISIONS = ("bfloat16", "float16")


@click.command()
@click.argument("spec", metavar="SOLVER", type=click.Path(), required=False)
@click.option("--solver", type=click.Path(), help="The same as SOLVER.")
@click.option("--weights", help="Start from these: a file, or several separated by commas.")
@click.option("--snapshot", type=click.Path(exists=True, dir_okay=False), help="Resume from this.")
@click.option("--iterations", type=click.IntRange(1), help="Instead of the solver's max_iter.")
@click.option("--out", type=click.Path(dir_okay=False), help="Weights [default: <net>.safetensors].")
@level_and_stages
@device_options
@click.option("--precision", type=click.Choice(PRECISIONS), help="Mixed precision.")
@click.option("--log", type=click.Path(dir_okay=False), help="Append Caffe's log lines to this file.")
@click.option("--json", "lines", type=click.Path(dir_okay=False), help="Append a JSON line a step.")
@click.option("--tensorboard", type=click.Path(file_okay=False), help="Write its events here.")
@click.option("--sigint-effect", type=click.Choice(EFFECTS), default="stop", show_default=True)
@click.option("--sighup-effect", type=click.Choice(EFFECTS), default="snapshot", show_default=True)
@glog
@python_layers
@plugins
def command(
    spec: str | None,
    solver: str | None,
    weights: str | None,
    snapshot: str | None,
    out: str | None,
    **options: Any,
) -> None:
    """Train the net of SOLVER, a spec with Caffe's solver fields, and save its weights.

    Displays, tests and snapshots are those the spec asks for. SIGINT snapshots and stops, SIGHUP
    snapshots and goes on, SIGTERM ends the process at once. On several GPUs or machines:
    torchrun -m cortado train ...

    \b
    cortado train my_solver.yaml --weights pretrained.caffemodel --device cuda:0
    torchrun --nproc-per-node 4 -m cortado train my_solver.yaml
    """
    from cortado.nets.signals import Signals
    from cortado.nets.solver import Action
    from cortado.nets.weights import save

    from .progress import training

    path = named_once(spec, solver, "solver spec")
    if options["glog"]:
        _show_sigterm()
    if weights and snapshot:
        raise click.UsageError("a snapshot has weights of its own: give --snapshot or --weights")
    expect_distinct(solver=path, out=out, log=options["log"], json=options["lines"])
    effects = (Action[options[f"{name}_effect"].upper()] for name in ("sigint", "sighup"))
    with ExitStack() as stack:
        signals = stack.enter_context(Signals(*effects))
        run = _solver(stack, path, "" if snapshot else weights, signals, options)
        name = run.net.graph.name.replace("/", "_") or Path(path).stem
        target = out or f"{name}.safetensors"
        _expect_weights_file(target)
        for report in run.reports:
            run.log(str(report))
        if snapshot:
            run.restore(snapshot)
        run.start()
        left = max(0, run.params.max_iter - run.iter)
        training(run, left, label=Path(path).stem, quiet=options["glog"])
        run.finish()
        if run.is_root:
            save(run.net, target)
            said = run.log if options["glog"] else click.echo
            said(f"weights written to {target}")


def _solver(
    stack: ExitStack, path: str, weights: str | None, signals: Any, options: dict[str, Any]
) -> Solver:
    import torch
    from cortado.nets.solver import Solver
    from cortado.nets.solver_params import read_params
    from cortado.nets.specs import load

    from .records import Records

    message = load(path)
    params = read_params(message)
    together, device = stack.enter_context(processes(_device(params, options)))
    precision = getattr(torch, options["precision"]) if options["precision"] else None
    places = (options["log"], options["lines"], options["tensorboard"])
    records = stack.enter_context(Records(*places, glog=options["glog"]))
    state = params.train_state
    stages = (*state.stage, *options["stages"])
    run = Solver(
        message,
        weights=weights,
        device=device,
        action=signals,
        log=records.log,
        on_iteration=records.iteration,
        on_test=records.test,
        precision=precision,
        together=together,
        allow_python_layers=options["allow_python_layers"],
        max_iter=options["iterations"] or params.max_iter,
        train_state=replace(state, level=options["level"] or state.level, stage=stages),
    )
    if not run.params.max_iter:
        raise click.UsageError("for how long? give max_iter in the solver, or --iterations")
    for net in run.nets:
        if net.inputs:
            listing = ", ".join(net.inputs)
            raise click.UsageError(f"the net is fed by its user ({listing}): it has no data of its own")
    return run


def _show_sigterm() -> None:
    """As glog has it under Caffe: SIGTERM shows where the process is, and ends it."""
    if sys.__stderr__ is not None and hasattr(faulthandler, "register"):  # not on Windows
        faulthandler.register(signal.SIGTERM, sys.__stderr__, chain=True)


def _device(params: SolverParams, options: dict[str, Any]) -> torch.device:
    """What the command line asks for, or the solver's ``solver_mode`` and ``device_id``."""
    from cortado.nets.solver_params import Mode

    if options["device"] or options["gpu"] or params.solver_mode is not Mode.GPU:
        return the_device(options)
    try:
        return the_device(options | {"gpu": str(params.device_id)})
    except click.UsageError as error:
        text = f"solver_mode: GPU, but {error.message}; --device cpu trains on the CPU"
        raise click.UsageError(text) from None


def _expect_weights_file(path: str) -> None:
    from .convert import WEIGHTS

    expect_folder(path, "--out")
    if Path(path).suffix not in WEIGHTS:
        raise click.UsageError(f"--out: expected a file ending in {', '.join(WEIGHTS)}, got {path}")
