"""Score a net on a benchmark of semantic correspondence, beside baselines."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import device_options, expect_folder, layer_ids, plugins, the_device, with_layers

if TYPE_CHECKING:
    import numpy as np
    from cortado.layers._runtime.keypoint_pairs import ImagePair
    from cortado.nets.evaluation import Descriptions, Found, Method
    from cortado.nets.matching import Matcher

MOST_PICTURES = 12
Results = dict[str, list["Found"]]


def _alphas(_: click.Context, __: click.Parameter, given: str) -> tuple[float, ...]:
    try:
        alphas = [float(text) for text in given.split(",")]
    except ValueError:
        alphas = [0.0]
    if not all(0 < alpha < math.inf for alpha in alphas):
        raise click.BadParameter(f"expected numbers above 0 such as 0.05,0.1,0.15, got {given}")
    return tuple(sorted(set(alphas)))


@click.command()
@click.argument("spec", type=click.Path(), required=False, metavar="[NET]")
@click.option("--weights", type=click.Path(exists=True, dir_okay=False), help="Its weights.")
@click.option("--data", required=True, help="The benchmark and its folder, such as pf-willow:DIR.")
@click.option("--split", default="test", show_default=True, help="test, or trn, val where there are.")
@click.option("--length", type=click.Choice(["img", "bbox"]), help="Of PF-PASCAL: PCK's unit.")
@click.option("--layout", type=click.Choice(["large", "small"]), help="Of SPair-71k.")
@layer_ids
@click.option(
    "--alpha",
    "alphas",
    default="0.05,0.1,0.15",
    show_default=True,
    callback=_alphas,
    help="PCK's thresholds.",
)
@click.option("--limit", type=click.IntRange(1), help="So many pairs, evenly over all of them.")
@click.option(
    "--baseline",
    "baselines",
    multiple=True,
    type=click.Choice(["identity", "nearest"]),
    help="Measured beside the net: points scaled to image 2, nearest neighbours. May be repeated.",
)
@click.option(
    "--pictures", type=click.Path(file_okay=False), help=f"A folder: of {MOST_PICTURES} pairs at most."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, pair by pair.")
@device_options
@plugins
def command(
    spec: str | None,
    weights: str | None,
    data: str,
    split: str,
    length: str | None,
    layout: str | None,
    layers: tuple[int, ...] | None,
    alphas: tuple[float, ...],
    limit: int | None,
    baselines: tuple[str, ...],
    pictures: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Match the pairs of a benchmark by a NET with a match_param, and score what it finds by the
    benchmark's own protocol.

    PF-WILLOW, PF-PASCAL, SPair-71k: PCK, the share of a pair's key points found at most alpha T from
    the truth, T as published; a point that the net does not find is wrong. Caltech-101: LT-ACC and
    IoU of outlines. All are means over pairs, in percent; pairs of identical images are counted, and
    the means given without them, too. Seconds a pair are those of its match, once its images are
    described. --baseline identity alone needs no NET.

    \b
    cortado evaluate hpf_resnet50 --weights resnet50.npz --data pf-willow:PF-dataset
    cortado evaluate hpf_resnet50 --weights resnet50.npz --data pf-willow:PF-dataset \\
        --layers 4,7,11,12,13 --limit 100 --baseline nearest --pictures pictures
    cortado evaluate --baseline identity --data pf-pascal:PF-dataset-PASCAL --length bbox
    """
    from cortado.layers._runtime.keypoint_pairs import open_pairs
    from cortado.nets.evaluation import Descriptions, spread

    _expect_method(spec, baselines, weights=weights, layers=layers)
    chosen = {key: value for key, value in (("length", length), ("layout", layout)) if value}
    listed = open_pairs(data, split, **chosen)
    pairs = [listed[i] for i in spread(len(listed), limit)]
    describe = None
    if spec:
        describe = Descriptions(_matcher(spec, weights, layers, the_device(options)))
    methods = _methods(describe, baselines)
    if pictures:
        _make_folder(pictures)
    found = run(pairs, methods, alphas, describe, pictures)
    report = {
        "net": spec,
        "weights": weights,
        "layers": layers,
        "data": data,
        "split": split,
        **chosen,
        "listed": len(listed),
        **summary(pairs, found, alphas, describe),
    }
    if as_json:
        click.echo(json.dumps(report))
        return
    show(report)
    if pictures:
        click.echo(f"pictures written to {pictures}")


def _expect_method(spec: str | None, baselines: Sequence[str], **of_net: Any) -> None:
    if spec:
        return
    if set(baselines) != {"identity"}:
        raise click.UsageError("name a NET; none is needed by --baseline identity alone")
    for option, value in of_net.items():
        if value is not None:
            raise click.UsageError(f"--{option} goes with a NET")


def _matcher(spec: str, weights: str | None, layers: Sequence[int] | None, device: Any) -> Matcher:
    from cortado.nets.matching import Matcher

    matcher = Matcher(with_layers(spec, layers), weights, device=device)
    if matcher.net.params and not weights:
        raise click.UsageError("name the net's --weights: a new net's are random")
    return matcher


def _methods(describe: Descriptions | None, baselines: Sequence[str]) -> dict[str, Method]:
    """The net, if there is one, then the baselines."""
    from cortado.nets.evaluation import ByNet, identity

    methods: dict[str, Method] = {"net": ByNet(describe)} if describe else {}
    if describe and "nearest" in baselines:
        if not describe.matcher.params.confidence:
            text = "it is for nets that have a confidence; this one matches nearest neighbours itself"
            raise click.UsageError(f"--baseline nearest: {text}")
        methods["nearest"] = ByNet(describe, nearest=True)
    if "identity" in baselines:
        methods["identity"] = identity
    return methods


def _make_folder(path: str) -> None:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.UsageError(f"--pictures: {path}: {error.strerror}") from None
    expect_folder(str(Path(path, "any.png")), "--pictures")


def run(
    pairs: Sequence[ImagePair],
    methods: Mapping[str, Method],
    alphas: Sequence[float],
    describe: Descriptions | None = None,
    pictures: str | None = None,
) -> Results:
    """What each method finds in the pairs, behind a progress bar; pictures of some by the first."""
    from cortado.nets.evaluation import evaluate, spread

    from .progress import through

    longer_side = describe.matcher.params.longer_side if describe else 0
    results: Results = {name: [] for name in methods}
    drawn = spread(len(pairs), MOST_PICTURES if pictures else 0)
    bar = through(pairs, lambda pair: pair.name)
    for i, found in enumerate(evaluate(bar, methods, alphas, longer_side)):
        for name, each in found.items():
            results[name].append(each)
        if i in drawn:
            draw(Path(pictures or "", f"{i:05}"), found[next(iter(methods))], alphas, describe)
    return results


def draw(
    begin: Path, found: Found, alphas: Sequence[float], describe: Descriptions | None = None
) -> None:
    """Save the points that were found, green where they are right at the middle one of the alphas, and
    by a net with a confidence image 1 warped to image 2, in files whose names begin so."""
    import numpy as np
    from cortado.layers._runtime.images import read_image
    from cortado.layers._runtime.keypoint_pairs import KeypointPair
    from cortado.nets.evaluation import figure_names

    from .pictures import draw_matches, draw_warped

    pair = found.pair
    stem = f"{begin}_" + re.sub(r"[^\w().-]+", "_", pair.name)
    first, second = (read_image(path, what=f'image "{path}"') for path in (pair.image1, pair.image2))
    names = figure_names(pair, alphas)
    middle = len(names) // 2
    title = f"{pair.name}: {names[middle]} {found.figures[middle]:.2f}"
    rows, error, limit = np.c_[pair.points1, found.points], None, 0.0
    if isinstance(pair, KeypointPair):
        error, limit = np.linalg.norm(found.points - pair.points2, axis=1), alphas[middle] * pair.length
    draw_matches(f"{stem}_points.png", first, second, rows, error, limit=limit, title=title)
    if describe and describe.matcher.params.confidence:
        flow = describe.matcher.flow(describe(pair.image2), describe(pair.image1))
        most = describe.matcher.params.longer_side
        title = f"{pair.name}: A, B, A warped to B"
        draw_warped(f"{stem}_warped.png", _given(first, most), _given(second, most), flow, title)


def _given(image: np.ndarray, longer_side: int) -> np.ndarray:
    """An image in the size that the net is given it in."""
    from cortado.layers._runtime.transform import limited_size, resized

    height, width = limited_size(image.shape[0], image.shape[1], longer_side)
    return resized(image.transpose(2, 0, 1), height, width).transpose(1, 2, 0)


def summary(
    pairs: Sequence[ImagePair],
    results: Results,
    alphas: Sequence[float],
    describe: Descriptions | None = None,
) -> dict[str, Any]:
    """The benchmark's figures, and each pair's; shares of 1, seconds, MiB."""
    from cortado.nets.evaluation import figure_names

    from .demo import peak_rss_mib
    from .results import versions

    identical = [pair.identical for pair in pairs]
    described = describe.seconds / describe.count if describe else None
    return {
        "pairs": len(pairs),
        "identical": sum(identical),
        "figures": figure_names(pairs[0], alphas),
        "methods": {name: _means(found, identical) for name, found in results.items()},
        "images_described": describe.count if describe else 0,
        "seconds_per_image": described,
        "peak_rss_mib": peak_rss_mib(),
        "versions": versions(),
        "records": [
            {
                "pair": pair.name,
                "class": pair.category,
                "identical": same,
                **{name: found[i].figures.tolist() for name, found in results.items()},
            }
            for i, (pair, same) in enumerate(zip(pairs, identical, strict=True))
        ],
    }


def _means(found: Sequence[Found], identical: Sequence[bool]) -> dict[str, Any]:
    import numpy as np
    from cortado.layers._runtime.keypoints import means

    def of(some: Sequence[Found]) -> dict[str, Any]:
        got = means(np.array([each.figures for each in some]), [each.pair.category for each in some])
        classes = {name: values.tolist() for name, values in got.classes.items()}
        error = None if len(some) == 1 else got.error.tolist()
        return {"mean": got.mean.tolist(), "standard_error": error, "classes": classes}

    distinct = [each for each, same in zip(found, identical, strict=True) if not same]
    made = of(found)
    if 0 < len(distinct) < len(found):
        made["without_identical"] = of(distinct)
    made["points"] = sum(len(each.points) for each in found)
    made["lost"] = int(sum(np.isnan(each.points).any(1).sum() for each in found))
    made["seconds_per_pair"] = float(np.mean([each.seconds for each in found]))
    return made


def show(report: Mapping[str, Any]) -> None:
    """The table a person reads."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    methods = report["methods"]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("percent", no_wrap=True)
    for method in methods:
        for name in report["figures"]:
            head = f"{method}\n{name}" if len(methods) > 1 else name
            table.add_column(head, justify="right", no_wrap=True)

    def row(name: str, *values: Sequence[float] | None, end: bool = False) -> None:
        cells = [
            f"{100 * x:.2f}" for each in values for x in each or [math.nan] * len(report["figures"])
        ]
        table.add_row(name, *cells, end_section=end)

    classes = next(iter(methods.values()))["classes"]
    for name in classes:
        row(name, *(each["classes"][name] for each in methods.values()), end=name == [*classes][-1])
    row("mean", *(each["mean"] for each in methods.values()))
    row("standard error", *(each["standard_error"] for each in methods.values()))
    if 0 < report["identical"] < report["pairs"]:
        rest = [each["without_identical"]["mean"] for each in methods.values()]
        row("without identical", *rest)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200
    console.print(table)
    for line in _lines(report):
        click.echo(line)


def _lines(report: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{report['pairs']} pairs of {report['listed']}, {report['identical']} of identical images"
    ]
    for name, each in report["methods"].items():
        lost = f", {each['lost']} of {each['points']} points not found" if each["lost"] else ""
        lines.append(f"{name}: {each['seconds_per_pair']:.3f} s a pair{lost}")
    if report["seconds_per_image"] is not None:
        lines.append(f"{report['seconds_per_image']:.3f} s to read and describe an image")
    if report["peak_rss_mib"]:
        lines.append(f"peak memory {report['peak_rss_mib']} MiB")
    return lines
