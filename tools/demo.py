"""Train two small UCNs on photographs and match a stereo pair they have never seen."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import numpy as np
    from cortado.layers.data.stereo import StereoPair

    Match = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

NETS = {"ucn_hn": "ucn_demo_hn", "ucn_hn_st": "ucn_demo_hn_st"}
THRESHOLDS = (3, 5, 10)
QUERIES = 4000
SEED = 1


@click.command()
@click.option("--out", default="demo_out", show_default=True, type=click.Path(file_okay=False))
@click.option("--iterations", type=click.IntRange(1), help="Instead of the solvers' own.")
def command(out: str, iterations: int | None) -> None:
    """Train ucn_demo_hn and ucn_demo_hn_st, then match the Middlebury Motorcycle pair.

    Writes report.json, pictures and the trained weights to --out. Five minutes on two cores.

    \b
    cortado demo --out demo_out
    """
    from cortado.prototxt_like.files import replace_text

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"tests": {}, "training": {}, "peak_rss_mib": 0}
    for name, net in NETS.items():
        report["training"][name] = train(net, folder, name, iterations)
    tests = make_tests()
    for test, (pair, points, truth) in tests.items():
        report["tests"][test] = rows = {}
        for method, match in methods(folder).items():
            begin = time.perf_counter()
            matched = match(pair.left, pair.right, points)
            seconds = time.perf_counter() - begin
            error = distance(matched, truth)
            rows[method] = score(error) | {"seconds": round(seconds, 3)}
            if method in NETS:
                picture(
                    folder / f"{test}_{method}.png", pair, points, matched, error, f"{method}, {test}"
                )
    report["peak_rss_mib"] = peak_rss_mib()
    draw_training(folder, report)
    replace_text(folder / "report.json", json.dumps(report, indent=1) + "\n")
    show(report)
    click.echo(f"report, pictures and weights: {folder}/")


def train(net: str, folder: Path, name: str, iterations: int | None) -> dict[str, Any]:
    """Train a net by its solver spec, saving its weights before and after.

    Returns seconds, iterations and losses for the report.
    """
    from cortado.nets.solver import Solver
    from cortado.nets.specs import path
    from cortado.nets.weights import save

    from .progress import training

    solver = Solver(path(f"{net}_solver"))
    save(solver.net, folder / f"{name}_untrained.safetensors")
    begin = time.perf_counter()
    losses = training(solver, iterations or solver.params.max_iter, label=net)
    seconds = time.perf_counter() - begin
    save(solver.net, folder / f"{name}.safetensors")
    return {"seconds": round(seconds, 1), "iterations": len(losses), "loss": losses}


def make_tests() -> dict[str, tuple[StereoPair, np.ndarray, np.ndarray]]:
    """The pairs with their query points [Q, 2] and true matches [Q, 2], by the tests' names.

    The right image as it is, and warped by fixed homographies of 15 and 40 degrees. The queries are
    one random set of left pixels whose matches are known, visible and inside all three.
    """
    import numpy as np
    from cortado.layers.data.stereo import motorcycle, rotation_about_centre

    stereo = motorcycle()
    size = stereo.right.shape[:2]
    pairs = {
        "stereo": stereo,
        "rot15": stereo.warped(rotation_about_centre(15, size, perspective=0.05)),
        "rot40": stereo.warped(rotation_about_centre(-40, size, perspective=0.05)),
    }
    places = {name: {(x, y): i for i, (x, y) in enumerate(p.pairs[:, :2])} for name, p in pairs.items()}
    common = sorted(set.intersection(*(set(place) for place in places.values())))
    chosen = np.random.default_rng(SEED).choice(len(common), QUERIES, replace=False)
    points = np.array(common, dtype=int)[np.sort(chosen)]
    return {
        name: (pair, points, pair.pairs[[places[name][x, y] for x, y in points], 2:])
        for name, pair in pairs.items()
    }


def methods(folder: Path) -> dict[str, Match]:
    """Every method by its name in the report: (image1, image2, points) -> matched points."""
    from cortado.nets.matching import Matcher
    from cortado.nets.specs import path

    from .matching import METHODS, Descriptors

    def by_net(name: str, state: str = "") -> Match:
        matcher = Matcher(path(NETS[name]), folder / f"{name}{state}.safetensors")
        return lambda *args: matcher.match(*args)[0]

    trained = {name: by_net(name) for name in NETS}
    untrained = {f"{name}_untrained": by_net(name, "_untrained") for name in NETS}
    described = {
        f"dense_{name.replace('-', '_')}": Descriptors(METHODS[name]).nearest
        for name in ("sift", "sift-oriented", "daisy")
    }
    return trained | untrained | described


def distance(matched: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Pixels between matches and truth, [Q]."""
    import numpy as np

    return np.hypot(*(matched - truth).T)


def score(error: np.ndarray) -> dict[str, Any]:
    """PCK at each threshold and the number of queries."""
    pck = {str(limit): round(float((error <= limit).mean()), 4) for limit in THRESHOLDS}
    return {"pck": pck, "queries": len(error)}


def picture(
    path: Path,
    pair: StereoPair,
    points: np.ndarray,
    matched: np.ndarray,
    error: np.ndarray,
    title: str,
) -> None:
    import numpy as np

    from .pictures import draw_matches

    title = f"{title}: PCK@10 {(error <= 10).mean():.2f} (red: wrong, with the error in pixels)"
    draw_matches(path, pair.left, pair.right, np.c_[points, matched], error, title=title)


def draw_training(folder: Path, report: dict[str, Any]) -> None:
    from .pictures import draw_losses

    draw_losses(folder / "loss.png", {name: t["loss"] for name, t in report["training"].items()})


def peak_rss_mib() -> int:
    """The process's largest resident memory so far; 0 where the system does not tell."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20)


def show(report: dict[str, Any]) -> None:
    """The table a person reads."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", no_wrap=True)
    for test in report["tests"]:
        table.add_column(test, justify="right", no_wrap=True)
    for method in next(iter(report["tests"].values())):
        cells = []
        for rows in report["tests"].values():
            pck = " ".join(f"{value:.2f}"[1:] for value in rows[method]["pck"].values())
            cells.append(f"{pck} {rows[method]['seconds']:4.1f}")
        table.add_row(method, *cells)
    console = Console()
    console.print("\nPCK@3 @5 @10 pixels, and seconds a pair")
    console.print(table)
    for name, training in report["training"].items():
        console.print(f"{name}: {training['iterations']} iterations in {training['seconds']:.0f} s")
    if report["peak_rss_mib"]:
        console.print(f"peak memory {report['peak_rss_mib']} MiB")
