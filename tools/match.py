"""Match two photographs by a trained net or by descriptors: a CSV, a picture, a database ..."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import (
    DESCRIPTORS,
    device_options,
    expect_distinct,
    expect_folder,
    layer_ids,
    plugins,
    the_device,
    with_layers,
)

if TYPE_CHECKING:
    import numpy as np
    from cortado.nets.matching import Matcher

FAST = "fast"
CSV, PICTURE = "matches.csv", "matches.png"


@click.command()
@click.argument("image1", type=click.Path(exists=True, dir_okay=False))
@click.argument("image2", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--net", "spec", type=click.Path(), help="Spec with a match_param. [default: the best of cortado's]"
)
@click.option(
    "--weights",
    type=click.Path(exists=True, dir_okay=False),
    help="Of the net. [default: those that come with cortado]",
)
@click.option("--feature", metavar="BLOB", help="Of a net: another map to match by.")
@click.option("--method", type=click.Choice(DESCRIPTORS), help="In place of a net.")
@click.option("--points", metavar="FILE", help="CSV with columns x1,y1; fast: FAST corners.")
@click.option("--step", type=float, help="Pixels between candidates. [default: a net's cells; 4]")
@click.option(
    "--longer-side",
    type=click.IntRange(0),
    help="Pixels: larger images are made so small first. [default: 1024 without --net and --method]",
)
@click.option("--mutual", is_flag=True, help="Only matches that lead back to their points.")
@click.option("--ratio", type=float, help="Only those nearer than so many runners-up: 0.9.")
@click.option("--number", type=int, help="At most so many, of the highest score.")
@click.option(
    "--out",
    "outs",
    multiple=True,
    type=click.Path(dir_okay=False),
    help="Where the matches go: .csv, .db, .txt, .h5, .png ... May be repeated. "
    f"[default: {CSV} if no --plot]",
)
@click.option(
    "--plot", type=click.Path(dir_okay=False), help=f"A picture. [default: {PICTURE} if no --out]"
)
@click.option("--json", "as_json", is_flag=True, help="Say what was written as a JSON object.")
@layer_ids
@device_options
@plugins
def command(
    image1: str,
    image2: str,
    spec: str | None,
    weights: str | None,
    feature: str | None,
    method: str | None,
    points: str | None,
    step: float | None,
    longer_side: int | None,
    mutual: bool,
    ratio: float | None,
    number: int | None,
    outs: tuple[str, ...],
    plot: str | None,
    as_json: bool,
    layers: tuple[int, ...] | None,
    **options: Any,
) -> None:
    """Match IMAGE1 to IMAGE2 and write x1,y1,x2,y2,distance in the pixels of the images as given.

    With nothing else the trained net that comes with cortado matches them, and the mutual matches are
    written to matches.csv and drawn in matches.png.

    Without --points the cells of a net's feature map that lie inside IMAGE1 are matched, or by a
    --method every 4th pixel. Coordinates are 0-based with pixel centres at integers; distance is
    Euclidean in feature space.

    Of a net whose match_param names a confidence, the last column is confidence, the higher the
    better, and cells that the net's margin leaves out are no points. A point that lies in no cell's
    box has no match: nan,nan,nan. Nor has one whose features are all 0, as a flat patch's are.

    Files ending in .db (COLMAP's database), .txt (its list of matches, of the key points in such a
    database), .h5 (hloc's, with the key points in NAME-features.h5), .png, .jpg, .pdf and .svg hold
    the same matches.

    \b
    cortado match left.png right.png
    cortado match left.png right.png --mutual --ratio 0.9 --out matches.csv --out matches.db
    cortado match left.png right.png --method sift-oriented --points fast --out matches.csv
    cortado match left.png right.png --net my_net.yaml --weights my_net.safetensors
    cortado match a.jpg b.jpg --net hpf_resnet50 --weights resnet50.npz --out matches.csv
    """
    from cortado.nets.models import BEST

    from .exports import PICTURES, expect_suffix, write
    from .matching import LONGER_SIDE, match
    from .pictures import MOST

    alone = not outs and not plot
    if alone:
        outs, plot = (CSV,), PICTURE
        mutual = mutual or points in (None, FAST)  # points of one's own are all answered
    _expect_files(outs, plot, weights=weights, net=spec, points=points, images=(image1, image2))
    try:
        for out in outs:
            expect_suffix(out)
    except ValueError as error:
        raise click.BadParameter(f"--out: {error}") from None
    if plot and not plot.lower().endswith(PICTURES):
        raise click.BadParameter(f"--plot: expected a file ending in {', '.join(PICTURES)}, got {plot}")
    first, second = open_image(image1), open_image(image2)
    asked: Any = FAST if points == FAST else None if points is None else read_points(points, first)
    net: Matcher | None = None
    if spec and method:
        raise click.UsageError("give a --net or a --method, not both")
    if spec is not None:
        net = _matcher(spec, weights, feature, step, layers, options)
        _expect_cells(net, image1, first)
        _expect_cells(net, image2, second)
    elif weights or feature or layers:
        raise click.UsageError("--weights, --feature and --layers go with a --net")
    if longer_side is None:
        longer_side = 0 if spec or method else LONGER_SIDE
    begin = time.perf_counter()
    found = match(
        first,
        second,
        net=net,
        method=method,
        points=asked,
        number=number,
        mutual=mutual,
        ratio=ratio,
        step=None if net else step,
        longer_side=longer_side,
        device=the_device(options),
        names=(image1, image2),
        keep_lost=True,
    )
    seconds = time.perf_counter() - begin
    by = method or (Path(spec).stem if spec else BEST)
    said = f"{len(found)} {'mutual ' if mutual else ''}matches by {by}"
    lost = len(found) - len(found.known)
    title = said if len(found) - lost <= MOST else f"{said}, {MOST} of them drawn"
    for out in (*outs, *filter(None, [plot])):
        write(out, found, **({"title": title} if out.lower().endswith(PICTURES) else {}))
    if as_json:
        report = {
            "by": by,
            "matches": len(found),
            "lost": lost,
            "seconds": round(seconds, 3),
            "out": outs[0] if len(outs) == 1 else list(outs),
            "plot": plot,
        }
        click.echo(json.dumps(report))
        return
    why = "in no cell's box" if found.measure == "confidence" else "in a patch without features"
    nowhere = f", {lost} of them nan: {why}" if lost else ""
    large = 0 < longer_side < max(map(max, found.sizes))
    at = f", of images made {longer_side} pixels large" if large else ""
    click.echo(f"{said} in {seconds:.1f} s{at}{nowhere}")
    if outs:
        click.echo(f"written to {', '.join(outs)}")
    if plot:
        click.echo(f"picture written to {plot}")


def _expect_files(
    outs: Sequence[str], plot: str | None, images: Sequence[str], **given: str | None
) -> None:
    """Raises UsageError unless every file that is written can be, and is no other."""
    from cortado.prototxt_like.files import is_device

    from .exports import files

    written = [("out", name) for out in outs for name in files(out)]
    written += [("plot", plot)] if plot else []
    seen: set[str] = set()
    for option, path in written:
        expect_folder(path, f"--{option}")
        expect_distinct(**given, **{option: path})
        for image in images:
            expect_distinct(image=image, **{option: path})
        place = os.path.realpath(path)
        if place in seen and not is_device(path):
            raise click.UsageError(f"--{option}: {path} is written twice")
        seen.add(place)


def _matcher(
    spec: str,
    weights: str | None,
    feature: str | None,
    step: float | None,
    layers: Sequence[int] | None,
    options: dict[str, Any],
) -> Matcher:
    from cortado.nets import models
    from cortado.nets.matching import Matcher

    found = weights or models.weights_of(spec)
    if found is None:
        raise click.UsageError("name the net's --weights: a new net's are random")
    if step is not None and step <= 0:
        raise click.BadParameter(f"--step: expected pixels above 0, got {step:g}")
    message, device = with_layers(spec, layers), the_device(options)
    return Matcher(message, found, device=device, feature=feature, step=step or 0)


def _expect_cells(matcher: Matcher, path: str, image: np.ndarray) -> None:
    """Raises UsageError for an image so small or narrow that a margin leaves no cell to match."""
    from cortado.layers._runtime.transform import limited_size

    if matcher.params.confidence and not len(matcher.grid(image)):
        height, width = limited_size(image.shape[0], image.shape[1], matcher.params.longer_side)
        raise click.UsageError(
            f"{path}: given to the net as {width} x {height} pixels, of which its margin leaves no cell"
        )


def open_image(path: str) -> np.ndarray:
    """An image file as RGB uint8 [H, W, 3]; a click error if it is none."""
    from cortado.layers._runtime.images import read_image

    try:
        return read_image(path)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def read_points(path: str, image: np.ndarray) -> np.ndarray:
    """The columns x1, y1 of a CSV as points [P, 2]; a click error names a bad line."""
    import numpy as np

    reader = csv.DictReader(_lines(path))
    try:
        if not {"x1", "y1"} <= set(reader.fieldnames or ()):
            raise click.BadParameter(f"{path}:1: expected columns x1,y1, got {reader.fieldnames}")
        points = [_point(row, f"{path}:{reader.line_num}", image) for row in reader]
    except csv.Error as error:
        raise click.BadParameter(f"{path}:{reader.line_num}: {error}") from None
    if not points:
        raise click.BadParameter(f"{path} has no points")
    return np.array(points, dtype=float)


def _lines(path: str) -> io.StringIO:
    from cortado.prototxt_like.files import open_file

    try:
        with open_file(path) as file:
            return io.StringIO(file.read().decode("utf-8-sig"), newline="")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise click.BadParameter(f"{path}: cannot read the points: {why}") from None


def _point(row: dict[str, str], where: str, image: np.ndarray) -> tuple[float, float]:
    try:
        x, y = float(row["x1"]), float(row["y1"])
    except (TypeError, ValueError):
        raise click.BadParameter(f"{where}: not a point: {row['x1']},{row['y1']}") from None
    if not (0 <= x <= image.shape[1] - 1 and 0 <= y <= image.shape[0] - 1):
        size = f"{image.shape[1]} x {image.shape[0]}"
        raise click.BadParameter(f"{where}: outside the {size} image")
    return x, y
