"""Match two images with a net: a CSV of corresponding points."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import (
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

PICTURES = (".png", ".jpg", ".pdf", ".svg")
COLUMNS = ("x1", "y1", "x2", "y2")


@click.command()
@click.argument("image1", type=click.Path(exists=True, dir_okay=False))
@click.argument("image2", type=click.Path(exists=True, dir_okay=False))
@click.option("--net", "spec", required=True, type=click.Path(), help="Spec with a match_param.")
@click.option("--weights", required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--points", type=click.Path(exists=True, dir_okay=False), help="CSV with columns x1,y1.")
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="Where the matches go.")
@click.option("--plot", type=click.Path(dir_okay=False), help="A picture of the matches.")
@click.option("--json", "as_json", is_flag=True, help="Say what was written as a JSON object.")
@layer_ids
@device_options
@plugins
def command(
    image1: str,
    image2: str,
    spec: str,
    weights: str,
    points: str | None,
    out: str,
    plot: str | None,
    as_json: bool,
    layers: tuple[int, ...] | None,
    **options: Any,
) -> None:
    """Match IMAGE1 to IMAGE2 and write x1,y1,x2,y2,distance in the pixels of the images as given.

    Without --points the cells of the feature map that lie inside IMAGE1 are matched. Coordinates
    are 0-based with pixel centres at integers; distance is Euclidean in feature space.

    Of a net whose match_param names a confidence, the last column is confidence, the higher the
    better, and cells that the net's margin leaves out are no points. A point that lies in no cell's
    box has no match: nan,nan,nan.

    \b
    cortado match left.png right.png --net ucn_demo_hn.yaml \\
        --weights demo_out/ucn_hn.safetensors --out matches.csv --plot matches.png
    cortado match a.jpg b.jpg --net hpf_resnet50 --weights resnet50.npz --out matches.csv
    """
    import numpy as np
    from cortado.nets.matching import Matcher

    expect_folder(out, "--out")
    expect_distinct(weights=weights, net=spec, points=points, out=out, plot=plot)
    for image in (image1, image2):
        expect_distinct(image=image, out=out, plot=plot)
    if plot:
        expect_folder(plot, "--plot")
    if plot and Path(plot).suffix.lower() not in PICTURES:
        raise click.BadParameter(f"--plot: expected a file ending in {', '.join(PICTURES)}, got {plot}")
    first, second = open_image(image1), open_image(image2)
    matcher = Matcher(with_layers(spec, layers), weights, device=the_device(options))
    _expect_cells(matcher, image1, first)
    _expect_cells(matcher, image2, second)
    queries = matcher.grid(first) if points is None else read_points(points, first)
    matched, measure = matcher.match(first, second, queries)
    rows = np.column_stack([queries, matched, measure])
    lost = int(np.isnan(matched).any(1).sum())
    write_matches(out, rows, matcher.measure)
    if plot:
        from .pictures import draw_matches

        draw_matches(plot, first, second, rows)
    if as_json:
        click.echo(json.dumps({"matches": len(rows), "lost": lost, "out": out, "plot": plot}))
        return
    nowhere = f", {lost} of them nan: in no cell's box" if lost else ""
    click.echo(f"{len(rows)} matches written to {out}{nowhere}")
    if plot:
        click.echo(f"picture written to {plot}")


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


def write_matches(path: str, rows: np.ndarray, measure: str) -> None:
    """Write the matches as a CSV, in whose last column the measure stands; the file is replaced whole
    or not at all."""
    from cortado.prototxt_like.files import replace_file

    def write(beside: Path) -> None:
        with open(beside, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow((*COLUMNS, measure))
            writer.writerows([f"{value:.6g}" for value in row] for row in rows)

    replace_file(path, write)
