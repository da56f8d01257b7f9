"""Train two small UCNs on photographs and match a stereo pair they have never seen."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from .matching import Finder

NETS = ("ucn_demo_hn", "ucn_demo_hn_st")


@click.command()
@click.option("--out", default="demo_out", show_default=True, type=click.Path(file_okay=False))
@click.option("--iterations", type=click.IntRange(1), help="Instead of the solvers' own.")
def command(out: str, iterations: int | None) -> None:
    """Train ucn_demo_hn and ucn_demo_hn_st, then match the Middlebury Motorcycle pair.

    Writes train_report.json, pictures and the trained weights to --out. Three minutes on two cores.

    \b
    cortado demo_train --out demo_out
    """
    from cortado.prototxt_like.files import replace_text
    from rich.console import Console

    from . import demo_pair
    from .measuring import peak_rss_mib

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    training = {net: train(net, folder, iterations) for net in NETS}
    tests = demo_pair.measure(methods(folder), demo_pair.make_tests(), folder, NETS)
    report = {"tests": tests, "training": training, "peak_rss_mib": peak_rss_mib()}
    draw_training(folder, training)
    replace_text(folder / "train_report.json", json.dumps(report, indent=1) + "\n")
    console = Console()
    demo_pair.show(tests, console)
    for net, run in training.items():
        console.print(f"{net}: {run['iterations']} iterations in {run['seconds']:.0f} s")
    if report["peak_rss_mib"]:
        console.print(f"peak memory {report['peak_rss_mib']} MiB")
    click.echo(f"report, pictures and weights: {folder}/")


def train(net: str, folder: Path, iterations: int | None) -> dict[str, Any]:
    """Train a net by its solver spec, saving its weights before and after.

    Returns seconds, iterations and losses for the report.
    """
    from cortado.nets.solver import Solver
    from cortado.nets.specs import path
    from cortado.nets.weights import save

    from .progress import training

    solver = Solver(path(f"{net}_solver"))
    save(solver.net, folder / f"{net}_untrained.safetensors")
    begin = time.perf_counter()
    losses = training(solver, iterations or solver.params.max_iter, label=net)
    seconds = time.perf_counter() - begin
    save(solver.net, folder / f"{net}.safetensors")
    return {"seconds": round(seconds, 1), "iterations": len(losses), "loss": losses}


def methods(folder: Path) -> dict[str, Finder]:
    """Every method by its name in the report: the nets, as they were before, and descriptors."""
    from cortado.nets.matching import Matcher
    from cortado.nets.specs import path

    from .demo_pair import descriptors

    names = [f"{net}{state}" for state in ("", "_untrained") for net in NETS]
    nets = {
        name: Matcher(path(name.removesuffix("_untrained")), folder / f"{name}.safetensors")
        for name in names
    }
    return nets | descriptors()


def draw_training(folder: Path, training: dict[str, Any]) -> None:
    from .pictures import draw_losses

    draw_losses(folder / "loss.png", {net: run["loss"] for net, run in training.items()})
