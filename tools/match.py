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
    expect_folder,
    layer_ids,
    plugins,
    the_device,
)

if TYPE_CHECKING:
    import numpy as np

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
@click.option(
    "--step",
    type=click.FloatRange(0, min_open=True),
    help="Pixels between candidates. [default: a net's cells; 4]",
)
@click.option(
    "--mutual/--no-mutual",
    default=None,
    help="Only matches that lead back to their points. [default: mutual, unless --points is a file]",
)
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
    mutual: bool | None,
    ratio: float | None,
    number: int | None,
    outs: tuple[str, ...],
    plot: str | None,
    as_json: bool,
    layers: tuple[int, ...] | None,
    **options: Any,
) -> None:
    """Match IMAGE1 to IMAGE2 and write x1,y1,x2,y2,distance in the pixels of the images as given.

    With nothing else the trained net that comes with cortado matches them, and the matches are written
    to matches.csv and drawn in matches.png. Files of these names, or of those that are asked for, are
    written over.

    Without --points the cells of a net's feature map that lie inside IMAGE1 are matched, or by a
    --method every 4th pixel. Coordinates are 0-based with pixel centres at integers; distance is
    Euclidean in feature space.

    Only mutual matches are kept: the match's own best match, back in IMAGE1, is at most a step from the
    point. With --no-mutual all are; so are those of points in a file, unless --mutual is given. (In
    Python all are unless asked for: cortado.match has mutual=False.)

    Of a net whose match_param names a confidence, the last column is confidence, the higher the
    better, and cells that the net's margin leaves out are no points. A point that lies in no cell's
    box has no match: nan,nan,nan. Nor has one whose features are all 0, as descriptors are in a flat
    patch. Such points are no mutual matches.

    Files ending in .db (COLMAP's database), .txt (its list of matches, of the key points in such a
    database), .h5 (hloc's, with the key points in NAME-features.h5), .png, .jpg, .pdf and .svg hold
    the same matches.

    \b
    cortado match left.png right.png
    cortado match left.png right.png --ratio 0.9 --out matches.csv --out matches.db
    cortado match left.png right.png --method sift-oriented --points fast --out matches.csv
    cortado match left.png right.png --net my_net.yaml --weights my_net.safetensors
    cortado match a.jpg b.jpg --net hpf_resnet50 --weights resnet50.npz --out matches.csv
    """
    from cortado.nets import specs
    from cortado.nets.models import BEST

    from .exports import PICTURES, expect_suffix, write
    from .matching import match, open_net
    from .pictures import MOST

    if not outs and not plot:
        outs, plot = (CSV,), PICTURE
    if mutual is None:
        mutual = points in (None, FAST)  # points of one's own are all answered
    _expect_files(outs, plot, (image1, image2, weights, spec, points))
    try:
        for out in outs:
            expect_suffix(out)
    except ValueError as error:
        raise click.BadParameter(f"--out: {error}") from None
    if plot and not plot.lower().endswith(PICTURES):
        raise click.BadParameter(f"--plot: expected a file ending in {', '.join(PICTURES)}, got {plot}")
    first, second = open_image(image1), open_image(image2)
    asked: Any = FAST if points == FAST else None if points is None else read_points(points, first)
    if spec and method:
        raise click.UsageError("give a --net or a --method, not both")
    if not spec and (weights or feature or layers):
        raise click.UsageError("--weights, --feature and --layers go with a --net")
    device, net = the_device(options), None
    if not method:
        named = spec or specs.path(BEST)
        net = open_net(named, weights, layers, device=device, feature=feature, step=step or 0)
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
            "mutual": mutual,
            "lost": lost,
            "seconds": round(seconds, 3),
            "out": outs[0] if len(outs) == 1 else list(outs),
            "plot": plot,
        }
        click.echo(json.dumps(report))
        return
    why = "in no cell's box" if found.measure == "confidence" else "in a patch without features"
    nowhere = f", {lost} of them nan: {why}" if lost else ""
    click.echo(f"{said} in {seconds:.1f} s{nowhere}")
    if outs:
        click.echo(f"written to {', '.join(outs)}")
    if plot:
        click.echo(f"picture written to {plot}")


def _expect_files(outs: Sequence[str], plot: str | None, inputs: Sequence[str | None]) -> None:
    """Raises UsageError unless every file that is written can be, and is no other."""
    from cortado.prototxt_like.files import is_device

    from .exports import files

    written = [("out", name) for out in outs for name in files(out)]
    written += [("plot", plot)] if plot else []
    read = set(map(os.path.realpath, filter(None, inputs)))
    seen: set[str] = set()
    for option, path in written:
        expect_folder(path, f"--{option}")
        place = os.path.realpath(path)
        if is_device(path):
            continue
        if place in read:
            raise click.UsageError(f"{path} is a file that is read: it would be written over")
        if place in seen:
            raise click.UsageError(f"--{option}: {path} is written twice")
        seen.add(place)


def open_image(path: str) -> np.ndarray:
    """An image file as RGB uint8 [H, W, 3]; a click error if it is none."""
    from cortado.layers._data.images import read_image

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
