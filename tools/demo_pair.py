"""What the demos of UCN share: a pair they match, as it is and turned, and how well it was matched."""

from __future__ import annotations

import time
from collections.abc import Container, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .matching import METHODS, Descriptors, told

if TYPE_CHECKING:
    import torch
    from cortado.layers.data.stereo import StereoPair
    from rich.console import Console

    from .matching import Finder

    Test: TypeAlias = tuple[StereoPair, np.ndarray, np.ndarray]

BASELINES: tuple[str, ...] = ("daisy", "sift", "sift-oriented")
THRESHOLDS = (3, 5, 10)
QUERIES = 4000
SEED = 1


def make_tests() -> dict[str, Test]:
    """The pairs with their query points [Q, 2] and true matches [Q, 2], by the tests' names.

    The Motorcycle pair's right image as it is, and warped by fixed homographies of 15 and 40 degrees.
    The queries are one random set of left pixels whose matches are known, visible and inside all three.
    """
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


def descriptors(names: tuple[str, ...] = BASELINES) -> dict[str, Finder]:
    """Descriptors among every 4th pixel, by their names."""
    return {name: Descriptors(METHODS[name]) for name in names}


def measure(
    methods: Mapping[str, Finder], tests: Mapping[str, Test], folder: Path, drawn: Container[str]
) -> dict[str, Any]:
    """The row of each method in each test: PCK, the queries, seconds a pair. The matches of the methods
    that are ``drawn`` are, in ``<test>_<method>.png``.

    The left image, which all tests share, is described once; its seconds are counted in each."""
    from .progress import through

    report: dict[str, Any] = {test: {} for test in tests}
    for name, finder in through([*methods.items()], lambda item: item[0]):
        pair, points, _ = next(iter(tests.values()))
        begin = time.perf_counter()
        query = told(finder.at(finder.describe(pair.left), points))
        described = time.perf_counter() - begin
        for test, (pair, _, truth) in tests.items():
            begin = time.perf_counter()
            matched = nearest(query, finder, pair.right)
            seconds = time.perf_counter() - begin + described
            error = np.hypot(*(matched - truth).T)
            report[test][name] = score(error) | {"seconds": round(seconds, 3)}
            if name in drawn:
                rows = np.column_stack([points, matched])
                picture(folder / f"{test}_{name}.png", pair, rows, error, f"{name}, {test}")
    return report


def nearest(query: torch.Tensor, finder: Finder, image: np.ndarray) -> np.ndarray:
    """The points [Q, 2] of an image whose features are the nearest to ``query`` [Q, C]; NaN for NaN."""
    from cortado.nets import neighbours

    candidates = finder.candidates(finder.describe(image))
    index, distance = neighbours.nearest(query, told(candidates.features))
    matched = candidates.points[index]
    matched[distance.isnan()] = np.nan
    return matched.cpu().numpy()


def score(error: np.ndarray) -> dict[str, Any]:
    """PCK at each threshold and the number of queries."""
    pck = {str(limit): round(float((error <= limit).mean()), 4) for limit in THRESHOLDS}
    return {"pck": pck, "queries": len(error)}


def picture(path: Path, pair: StereoPair, rows: np.ndarray, error: np.ndarray, title: str) -> None:
    from .pictures import draw_matches

    title = f"{title}: PCK@10 {(error <= 10).mean():.2f} (red: wrong, with the error in pixels)"
    draw_matches(path, pair.left, pair.right, rows, error, title=title)


def show(tests: Mapping[str, Any], console: Console) -> None:
    """The table a person reads."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True)
    for test in tests:
        table.add_column(test, justify="right", no_wrap=True)
    for method in next(iter(tests.values())):
        cells = []
        for rows in tests.values():
            pck = " ".join(f"{value:.2f}"[1:] for value in rows[method]["pck"].values())
            cells.append(f"{pck} {rows[method]['seconds']:4.1f}")
        table.add_row(method, *cells)
    console.print("\nPCK@3 @5 @10 pixels, and seconds a pair")
    console.print(table)
