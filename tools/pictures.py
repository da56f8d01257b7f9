"""Pictures a person can judge: matches between two images, and loss curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from cortado.prototxt_like.files import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 60  # matches that are drawn unless more are asked for
NARROWEST, WIDEST = 800, 2560  # pixels of a picture: titles, numbers and lines stay readable


def draw_matches(
    path: str | Path,
    image1: np.ndarray,
    image2: np.ndarray,
    rows: np.ndarray,
    error: np.ndarray | None = None,
    *,
    limit: float = 10.0,
    most: int = MOST,
    title: str = "",
) -> None:
    """Save two images side by side with lines between matches.

    rows: [P, 4 or more], x1, y1, x2, y2 in pixels; at most ``most`` are drawn, evenly chosen of those
    that are not NaN.
    error: pixels [P]; a match is green where it is at most ``limit`` and red beyond, with the error
    written at its end. Without it lines are coloured by place.
    """
    figure, axes, (_, right) = _side_by_side([image1, image2], title)
    known = np.flatnonzero(np.isfinite(rows[:, :4]).all(1))
    for i in known[np.unique(np.linspace(0, len(known) - 1, min(most, len(known))).astype(int))]:
        x1, y1, x2, y2 = rows[i, :4]
        color = _color(None if error is None else float(error[i]), y1 / max(1, image1.shape[0]), limit)
        axes.plot([x1, x2 + right], [y1, y2], "-o", color=color, lw=0.8, ms=2.5)
        if error is not None and error[i] > limit:
            axes.text(x2 + right + 3, y2, f"{error[i]:.0f}", color=color, fontsize=7)
    replace_file(path, figure.savefig)


def draw_regions(
    path: str | Path,
    image1: np.ndarray,
    image2: np.ndarray,
    boxes1: np.ndarray,
    boxes2: np.ndarray,
    overlap: np.ndarray,
    *,
    limit: float = 0.5,
    most: int = 12,
    title: str = "",
) -> None:
    """Save two images side by side with matched regions [K, 4], (x1, y1, x2, y2) in pixels.

    At most ``most`` are drawn, evenly chosen; a match is green where its ``overlap`` [K] with the
    true match is above ``limit``, else red, with the overlap written at its end.
    """
    from matplotlib.patches import Rectangle

    figure, axes, (_, right) = _side_by_side([image1, image2], title)
    for i in np.unique(np.linspace(0, len(boxes1) - 1, min(most, len(boxes1))).astype(int)):
        color = "#22cc44" if overlap[i] > limit else "#ee2233"
        for (x1, y1, x2, y2), shift in ((boxes1[i], 0), (boxes2[i], right)):
            corner, size = (x1 + shift - 0.5, y1 - 0.5), (x2 - x1 + 1, y2 - y1 + 1)
            axes.add_patch(Rectangle(corner, *size, fill=False, color=color, lw=1))
        (x1, y1), (x2, y2) = ((box[:2] + box[2:]) / 2 for box in (boxes1[i], boxes2[i]))
        axes.plot([x1, x2 + right], [y1, y2], "-", color=color, lw=0.5)
        axes.text(x2 + right, y2, f"{overlap[i]:.2f}", color=color, fontsize=7)
    replace_file(path, figure.savefig)


def draw_warped(
    path: str | Path, image1: np.ndarray, image2: np.ndarray, flow: np.ndarray, title: str = ""
) -> None:
    """Save image 1, image 2, and image 1 :func:`warped` to image 2 by the flow of image 2."""
    figure, _, _ = _side_by_side([image1, image2, warped(image1, flow)], title)
    replace_file(path, figure.savefig)


def warped(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """An image [h, w, 3] as a flow shows it, uint8 [H, W, 3].

    flow: pixels [2, H, W] in x and y, from each pixel of the result to the point of the image that is
    shown there, interpolated between pixels; white where it is NaN or leads out of the image.
    """
    from scipy.ndimage import map_coordinates

    y, x = np.indices(flow.shape[1:])
    places = np.nan_to_num(np.stack([y + flow[1], x + flow[0]]), nan=-2)
    channels = image.astype(float).transpose(2, 0, 1)
    shown = [map_coordinates(each, places, order=1, cval=255) for each in channels]
    return np.stack(shown, 2).round().astype(np.uint8)


def _side_by_side(
    images: Sequence[np.ndarray], title: str, gap: int = 8
) -> tuple[Figure, Axes, tuple[int, ...]]:
    """A figure of images, its axes, and where each image begins."""
    from matplotlib.figure import Figure

    begins = tuple(sum(each.shape[1] + gap for each in images[:i]) for i in range(len(images)))
    width, height = begins[-1] + images[-1].shape[1], max(each.shape[0] for each in images)
    canvas = np.full((height, width, 3), 255, np.uint8)
    for left, each in zip(begins, images, strict=True):
        canvas[: each.shape[0], left : left + each.shape[1]] = each
    zoom = min(max(1.0, NARROWEST / width), WIDEST / width)
    size = (width * zoom / 100, height * zoom / 100 + 0.4)
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.imshow(canvas)
    axes.set_axis_off()
    axes.set_title(title)
    return figure, axes, begins


def draw_curves(
    path: str | Path, curves: Mapping[str, Sequence[float]], x: str, y: str, end: float = 1.0
) -> None:
    """Save curves over 0..end, one value a step, each with its mean in the legend: over 0..1 the area
    under it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        place = np.linspace(0, end, len(curve))
        area = (np.sum(curve) - (curve[0] + curve[-1]) / 2) / (len(curve) - 1)
        axes.plot(place, curve, label=f"{name} [{area:.3f}]")
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.legend()
    replace_file(path, figure.savefig)


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
    replace_file(path, figure.savefig)
