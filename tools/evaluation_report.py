"""What ``cortado evaluate`` found, summed up: means, differences, curves, the camera's motion."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from cortado.layers._data.keypoint_pairs import ImagePair, KeypointPair
from cortado.layers._geometry.keypoints import means, pair_pck
from cortado.layers._geometry.motion import direction_deviation, rotation_deviation
from cortado.nets.evaluation import Array, Found, figure_names

if TYPE_CHECKING:
    from cortado.nets.evaluation import Descriptions

STEPS = 60
MOST_PIXELS, MOST_ALPHA = 30.0, 0.3  # where curves end
FEW = 2  # methods whose figures stand side by side in one table
INLIER = 2.0  # pixels: how far a match among every 4th pixel is from the true one, along each axis
Deviation = tuple[float, float]
"""Of the camera's rotation and of its translation's direction, in degrees."""


@dataclass
class Score:
    """What a method reaches, an element a pair. ``camera`` has None where no motion was found."""

    figures: list[Array] = field(default_factory=list)
    curve: list[Array] = field(default_factory=list)
    camera: list[Deviation | None] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    points: int = 0
    lost: int = 0


class Scores:
    """What methods reach, pair by pair. Little is kept of a pair, however many points it has."""

    def __init__(self, alphas: Sequence[float], pixels: Sequence[float], camera: bool = False) -> None:
        self.alphas, self.pixels, self.camera = alphas, pixels, camera
        self.figures: tuple[str, ...] = ()
        self.names: list[str] = []
        self.categories: list[str] = []
        self.identical: list[bool] = []
        self.methods: dict[str, Score] = {}
        self.truth: list[Deviation | None] = []
        self.left_out = 0

    @property
    def places(self) -> list[float]:
        """The thresholds of curves, in pixels if any threshold is."""
        end = MOST_PIXELS if self.pixels else MOST_ALPHA
        return np.linspace(0, end, STEPS + 1).tolist()

    def with_points(self, pairs: Iterable[ImagePair]) -> Iterator[ImagePair]:
        """The pairs but for those without any point, which are counted; raises ValueError where none
        is left."""
        for pair in pairs:
            if len(pair.points1):
                yield pair
            else:
                self.left_out += 1
        if not self.names:
            raise ValueError("expected pairs with points whose match is known, found none")

    def add(self, found: Mapping[str, Found]) -> None:
        """Take what each method found in one more pair; raises ValueError for one that is measured in
        another way than those before."""
        pair = next(iter(found.values())).pair
        figures = figure_names(pair, self.alphas, self.pixels)
        if self.names and figures != self.figures:
            raise ValueError(f"{pair.name}: outlines and key points are evaluated apart")
        self.figures = figures
        self.names.append(pair.name)
        self.categories.append(pair.category)
        self.identical.append(pair.identical)
        if self.camera and isinstance(pair, KeypointPair):
            self.truth.append(deviation(pair, np.c_[pair.points1, pair.points2]))
        for name, each in found.items():
            self._add(self.methods.setdefault(name, Score()), each)

    def _add(self, score: Score, each: Found) -> None:
        pair = each.pair
        score.figures.append(each.figures)
        score.seconds.append(each.seconds)
        score.points += len(each.points)
        score.lost += int(np.isnan(each.points).any(1).sum())
        if isinstance(pair, KeypointPair):
            unit = 1.0 if self.pixels else pair.length
            score.curve.append(pair_pck(each.points, pair.points2, unit, self.places))
            if self.camera:
                score.camera.append(deviation(pair, each.others))


def deviation(pair: KeypointPair, matches: Array) -> Deviation | None:
    """How far the camera's motion by matches [P, 4] is from the pair's own, as UCN's Table 6 has it;
    None where they give none."""
    from .camera_motion import estimate

    motion = pair.motion
    assert motion is not None
    matches = matches[np.isfinite(matches).all(1)]
    found = estimate(matches[:, :2], matches[:, 2:], motion.camera1, motion.camera2, INLIER)
    if found is None:
        return None
    return (
        rotation_deviation(found.rotation, motion.rotation),
        direction_deviation(found.translation, motion.translation),
    )


def summary(scores: Scores, describe: Descriptions | None = None) -> dict[str, Any]:
    """The data set's figures, and each pair's; shares of 1, seconds, MiB, degrees."""
    from .measuring import peak_rss_mib
    from .results import versions

    first = next(iter(scores.methods))
    return {
        "pairs": len(scores.names),
        "identical": sum(scores.identical),
        "figures": scores.figures,
        "methods": {name: _means(score, scores) for name, score in scores.methods.items()},
        "differences": {
            name: _difference(score, scores.methods[first], scores)
            for name, score in scores.methods.items()
            if name != first
        },
        "curve": _curve(scores),
        "camera": _camera(scores) if scores.camera else None,
        "images_described": describe.count if describe else 0,
        "seconds_per_image": describe.seconds / describe.count if describe and describe.count else None,
        "peak_rss_mib": peak_rss_mib(),
        "versions": versions(),
        "records": [
            {
                "pair": name,
                "class": category,
                "identical": same,
                **{method: score.figures[i].tolist() for method, score in scores.methods.items()},
                **({"camera": _of_pair(scores, i)} if scores.camera else {}),
            }
            for i, (name, category, same) in enumerate(
                zip(scores.names, scores.categories, scores.identical, strict=True)
            )
        ],
    }


def _means(score: Score, scores: Scores) -> dict[str, Any]:
    def of(rows: Sequence[int]) -> dict[str, Any]:
        some = np.array([score.figures[i] for i in rows])
        got = means(some, [scores.categories[i] for i in rows])
        classes = {name: values.tolist() for name, values in got.classes.items()}
        error = None if len(rows) == 1 else got.error.tolist()
        return {"mean": got.mean.tolist(), "standard_error": error, "classes": classes}

    distinct = [i for i, same in enumerate(scores.identical) if not same]
    made = of(range(len(scores.names)))
    if 0 < len(distinct) < len(scores.names):
        made["without_identical"] = of(distinct)
    return made | {
        "points": score.points,
        "lost": score.lost,
        "seconds_per_pair": float(np.mean(score.seconds)),
    }


def _difference(score: Score, first: Score, scores: Scores) -> dict[str, Any]:
    """Of a method's figures less the first one's, pair by pair: counts beyond two standard errors."""
    got = means(np.array(score.figures) - np.array(first.figures), scores.categories)
    counts = (np.abs(got.mean) > 2 * got.error).tolist()  # of one pair none
    error = None if got.pairs == 1 else got.error.tolist()
    return {"mean": got.mean.tolist(), "standard_error": error, "counts": counts}


def _curve(scores: Scores) -> dict[str, Any] | None:
    """PCK's mean over pairs, by the threshold."""
    if not all(score.curve for score in scores.methods.values()):
        return None
    curves = {name: np.mean(score.curve, 0).tolist() for name, score in scores.methods.items()}
    unit = "pixels" if scores.pixels else "T"
    return {"unit": unit, "thresholds": scores.places, "methods": curves}


def _camera(scores: Scores) -> dict[str, Any]:
    """Of each method, and of the true matches, over the pairs whose matches gave a motion."""
    of = {name: score.camera for name, score in scores.methods.items()} | {"truth": scores.truth}
    return {name: _deviations(found) for name, found in of.items()}


def _of_pair(scores: Scores, i: int) -> dict[str, Deviation | None]:
    of = {name: score.camera[i] for name, score in scores.methods.items()}
    return of | {"truth": scores.truth[i]}


def _deviations(found: Sequence[Deviation | None]) -> dict[str, Any]:
    known = np.array([each for each in found if each is not None]).reshape(-1, 2)
    made: dict[str, Any] = {}
    for what, angles in zip(("rotation", "translation"), known.T, strict=True):
        made[f"{what}_mean"] = float(np.mean(angles)) if len(known) else None
        made[f"{what}_median"] = float(np.median(angles)) if len(known) else None
    return made | {"failed": len(found) - len(known)}


def draw_pck(path: str | Path, curve: Mapping[str, Any]) -> None:
    """Save PCK over thresholds, a line a method, with its mean over them in the legend."""
    from .pictures import draw_curves

    x = "threshold, pixels" if curve["unit"] == "pixels" else "threshold, T"
    draw_curves(path, curve["methods"], x, "PCK", end=curve["thresholds"][-1])


def show(report: Mapping[str, Any]) -> None:
    """The tables a person reads."""

    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200
    for table in _tables(report):
        console.print(table)
    if report["camera"]:
        console.print(_camera_table(report["camera"]))
    for line in _lines(report):
        click.echo(line)


def _tables(report: Mapping[str, Any]) -> Iterator[Any]:
    """Of few methods one table, else one a figure."""
    methods, figures = report["methods"], report["figures"]
    if len(methods) <= FEW:
        heads = [
            f"{name}\n{each}" if len(methods) > 1 else each for name in methods for each in figures
        ]
        yield _table(report, "percent", heads, range(len(figures)))
    else:
        for i, figure in enumerate(figures):
            yield _table(report, f"{figure}, percent", list(methods), [i])


def _table(report: Mapping[str, Any], title: str, heads: Sequence[str], figures: Sequence[int]) -> Any:
    """Classes in rows; of each method the figures asked for."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    methods = report["methods"]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(title, no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)

    def row(name: str, values: Sequence[Sequence[float] | None], end: bool = False) -> None:
        cells = [f"{100 * (each[i] if each else math.nan):.2f}" for each in values for i in figures]
        table.add_row(name, *cells, end_section=end)

    classes = [*next(iter(methods.values()))["classes"]]
    for name in classes:
        row(name, [each["classes"][name] for each in methods.values()], end=name == classes[-1])
    row("mean", [each["mean"] for each in methods.values()])
    row("standard error", [each["standard_error"] for each in methods.values()])
    if 0 < report["identical"] < report["pairs"]:
        row("without identical", [each["without_identical"]["mean"] for each in methods.values()])
    if report["differences"]:
        table.add_row(f"less {next(iter(methods))}", *_less(report, figures))
    return table


def _less(report: Mapping[str, Any], figures: Sequence[int]) -> list[str]:
    """The differences from the first method, those that count marked."""
    cells = [""] * len(figures)
    for each in report["differences"].values():
        cells += [f"{100 * each['mean'][i]:+.2f}{' *' * each['counts'][i]}" for i in figures]
    return cells


def _camera_table(camera: Mapping[str, Any]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("camera, degrees", no_wrap=True)
    for head in ("rotation\nmean", "\nmedian", "translation\nmean", "\nmedian", "\nfailed"):
        table.add_column(head, justify="right", no_wrap=True)
    for name, found in camera.items():
        *angles, failed = found.values()
        table.add_row(name, *("-" if x is None else f"{x:.3f}" for x in angles), str(failed))
    return table


def _lines(report: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{report['pairs']} pairs of {report['listed']}, {report['identical']} of identical images"
    ]
    if report["left_out"]:
        lines.append(f"{report['left_out']} pairs left out, in which no known match is")
    for name, each in report["methods"].items():
        lost = f", {each['lost']} of {each['points']} points not found" if each["lost"] else ""
        lines.append(f"{name}: {each['seconds_per_pair']:.3f} s a pair{lost}")
    if report["differences"] and report["pairs"] > 1:
        lines.append("* more than twice the standard error of the difference, pair by pair")
    if report["seconds_per_image"] is not None:
        lines.append(f"{report['seconds_per_image']:.3f} s to read and describe an image")
    if report["peak_rss_mib"]:
        lines.append(f"peak memory {report['peak_rss_mib']} MiB")
    return lines
