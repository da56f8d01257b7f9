"""Pictures a person can judge: matches between two images, and loss curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np


def draw_matches(
    path: str | Path,
    image1: np.ndarray,
    image2: np.ndarray,
    rows: np.ndarray,
    error: np.ndarray | None = None,
    *,
    limit: float = 10.0,
    most: int = 60,
    title: str = "",
) -> None:
    """Save two images side by side with lines between matches.

    rows: [P, 4 or more], x1, y1, x2, y2 in pixels; at most ``most`` are drawn, evenly chosen.
    error: pixels [P]; a match is green where it is at most ``limit`` and red beyond, with the error
    written at its end. Without it lines are coloured by place.
    """
    from matplotlib.figure import Figure

    gap = 8
    width = image1.shape[1] + gap + image2.shape[1]
    height = max(image1.shape[0], image2.shape[0])
    canvas = np.full((height, width, 3), 255, np.uint8)
    canvas[: image1.shape[0], : image1.shape[1]] = image1
    canvas[: image2.shape[0], image1.shape[1] + gap :] = image2
    figure = Figure(figsize=(width / 100, height / 100 + 0.4), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.imshow(canvas)
    axes.set_axis_off()
    axes.set_title(title)
    for i in np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)):
        x1, y1, x2, y2 = rows[i, :4]
        color = _color(None if error is None else float(error[i]), y1 / max(1, image1.shape[0]), limit)
        axes.plot([x1, x2 + image1.shape[1] + gap], [y1, y2], "-o", color=color, lw=0.8, ms=2.5)
        if error is not None and error[i] > limit:
            axes.text(x2 + image1.shape[1] + gap + 3, y2, f"{error[i]:.0f}", color=color, fontsize=7)
    figure.savefig(path)


def _color(error: float | None, place: float, limit: float) -> object:
    if error is None:
        from matplotlib import colormaps

        return colormaps["turbo"](place)
    return "#22cc44" if error <= limit else "#ee2233"


def draw_losses(path: str | Path, losses: Mapping[str, Sequence[float]], smooth: int = 20) -> None:
    """Save the loss curve of each net, one value an iteration, with a running mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    for i, (name, loss) in enumerate(losses.items()):
        axes.plot(loss, color=f"C{i}", alpha=0.25, lw=0.8)
        window = min(smooth, max(1, len(loss)))
        mean = np.convolve(loss, np.ones(window) / window, mode="valid")
        axes.plot(np.arange(len(mean)) + window - 1, mean, color=f"C{i}", label=name)
    axes.set(xlabel="iteration", ylabel="loss")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)
