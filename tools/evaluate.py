"""Score a net, or hand-made descriptors, on data sets of corresponding points."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
    from cortado.layers._data.keypoint_pairs import ImagePair
    from cortado.layers._data.measured_pairs import MeasuredPairs
    from cortado.nets.evaluation import Array, Descriptions, Found, Method

    from .evaluation_report import Scores
    from .progress import Items

MOST_PICTURES = 12
ALPHAS, PIXELS, POINTS, STEP = (0.05, 0.1, 0.15), (3.0, 5.0, 10.0), 4000, 4
CURVES = (".svg", ".png", ".pdf")


def _thresholds(
    _: click.Context, option: click.Parameter, given: str | None
) -> tuple[float, ...] | None:
    if given is None:
        return None
    try:
        limits = [float(text) for text in given.split(",")]
    except ValueError:
        limits = [0.0]
    if not all(0 < limit < math.inf for limit in limits):
        example = "0.05,0.1,0.15" if option.name == "alphas" else "3,5,10"
        raise click.BadParameter(f"expected numbers above 0 such as {example}, got {given}")
    return tuple(sorted(set(limits)))


def _points(_: click.Context, __: click.Parameter, given: str | None) -> int | str | None:
    if given in (None, "all", "fast"):
        return given
    if not (given.isascii() and given.isdecimal() and len(given) < 10 and int(given)):
        raise click.BadParameter(f"expected a number, all or fast, got {given}")
    return int(given)


def _options(_: click.Context, __: click.Parameter, given: Sequence[str]) -> dict[str, str]:
    from cortado.layers._data.keypoint_pairs import as_options

    try:
        return as_options(given)
    except ValueError as error:
        raise click.BadParameter(str(error).removeprefix("option: ")) from None


@click.command()
@click.argument("spec", type=click.Path(), required=False, metavar="[NET]")
@click.option(
    "--weights",
    type=click.Path(exists=True, dir_okay=False),
    help="Its weights. [default: those that come with cortado]",
)
@click.option(
    "--data", "sources", required=True, multiple=True, help="A data set, such as pf-willow:DIR."
)
@click.option("--split", default="", help="test, trn ... [default: test, where there are several]")
@click.option(
    "--option", "options", multiple=True, callback=_options, help="Of the data set: NAME=VALUE."
)
@click.option("--layout", type=click.Choice(["large", "small"]), help="Of SPair-71k.")
@click.option(
    "--length",
    type=click.Choice(["img", "diagonal", "bbox"]),
    help="PCK's unit T: max(w, h) of image 2, its diagonal, the object's box [default: as published].",
)
@click.option("--alpha", "alphas", callback=_thresholds, help="PCK's thresholds in T: 0.05,0.1,0.15.")
@click.option("--pixels", callback=_thresholds, help="PCK's thresholds in pixels: 3,5,10.")
@click.option(
    "--points",
    callback=_points,
    help="So many of the known matches, at random; all; fast: FAST corners of image 1 "
    "[default: 4000 where truth is dense].",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the points.")
@layer_ids
@click.option(
    "--feature", "features", multiple=True, metavar="BLOB", help="Match by this blob of the NET."
)
@click.option("--limit", type=click.IntRange(1), help="So many pairs, evenly over all of them.")
@click.option(
    "--baseline",
    "baselines",
    multiple=True,
    type=click.Choice(["identity", "nearest", *DESCRIPTORS]),
    help="Measured beside the net. May be repeated.",
)
@click.option("--camera", is_flag=True, help="The camera's motion from matches, where it is known.")
@click.option("--curve", type=click.Path(dir_okay=False), help="A picture: PCK over thresholds.")
@click.option(
    "--pictures", type=click.Path(file_okay=False), help=f"A folder: of {MOST_PICTURES} pairs at most."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, pair by pair.")
@device_options
@plugins
def command(
    spec: str | None,
    weights: str | None,
    sources: tuple[str, ...],
    split: str,
    options: dict[str, str],
    layout: str | None,
    length: str | None,
    alphas: tuple[float, ...] | None,
    pixels: tuple[float, ...] | None,
    points: int | str | None,
    seed: int,
    layers: tuple[int, ...] | None,
    features: tuple[str, ...],
    limit: int | None,
    baselines: tuple[str, ...],
    camera: bool,
    curve: str | None,
    pictures: str | None,
    as_json: bool,
    **of_device: Any,
) -> None:
    """Match the pairs of data sets by a NET with a match_param, by baselines, or both, and score what
    they find by the data set's own protocol.

    Key points (PF-WILLOW, PF-PASCAL, SPair-71k, PASCAL-Berkeley, CUB): PCK, the share of a pair's key
    points found at most alpha T from the truth, T as published; a point that is not found is wrong.
    Stereo, flow, homographies, laser scans: PCK at so many pixels, of 4,000 points of image 1 whose
    match is known; every 4th pixel of image 2 is a candidate. Caltech-101: LT-ACC and IoU of outlines.
    All are means over pairs, in percent; pairs of identical images are counted, and the means given
    without them, too. Methods are compared with the first one pair by pair: a difference that exceeds
    twice its standard error is marked *.

    Baselines: dense DAISY, SIFT and BEBLID (a learned descriptor of OpenCV), upright or turned to each
    patch's orientation, among every 4th pixel, whose seconds are with those of describing both images;
    identity, points scaled to image 2; nearest, nearest neighbours in what the net's confidence is made
    of. They need no NET, but for nearest.

    --camera: essential matrix by RANSAC from matches of 4,000 points all over image 1, or of its FAST
    corners (up to 2 pixels off, as candidates are), and the angles between its motion and the true one;
    "truth" is what the known matches of --points reach.

    \b
    cortado evaluate hpf_resnet50 --weights resnet50.npz --data pf-willow:PF-dataset
    cortado evaluate hpf_resnet50 --weights resnet50.npz --data pf-willow:PF-dataset \\
        --layers 4,7,11,12,13 --limit 100 --baseline nearest --pictures pictures
    cortado evaluate ucn_hn --data kitti-2015-flow:KITTI \\
        --baseline daisy --baseline sift --curve pck.svg
    cortado evaluate --baseline daisy --baseline sift --data middlebury:MiddEval3 \\
        --data skimage:motorcycle --camera
    """
    from cortado.layers._data.keypoint_pairs import OutlinePair
    from cortado.layers._data.measured_pairs import open_measured
    from cortado.nets.evaluation import spread

    from .evaluation_report import draw_pck, show, summary
    from .opencv import opencv

    _expect_method(spec, baselines, weights=weights, layers=layers, feature=features or None)
    if camera:
        opencv("the camera's motion")
    if curve:
        expect_folder(curve, "--curve")
        if Path(curve).suffix.lower() not in CURVES:
            raise click.BadParameter(
                f"--curve: expected a file ending in {', '.join(CURVES)}, got {curve}"
            )
    asked: dict[str, Any] = {**options, **({"layout": layout} if layout else {})}
    listed = open_measured(sources, split, points, length or "", seed, **asked)
    if listed.dense and points is None:
        listed.points = POINTS
    limits = _limits(listed, alphas, pixels)
    step, device = STEP if listed.dense else 0, the_device(of_device)
    nets = _nets(spec, features, weights, layers, step=step, device=device)
    methods, describe = _methods(nets, baselines), next(iter(nets.values()), None)
    some = listed.some(spread(len(listed), limit))
    pairs = some if some.dense else [*some]  # annotations are small: damaged ones are found at once
    if curve and not some.dense and isinstance(pairs[0], OutlinePair):
        raise click.UsageError("--curve is of PCK, which outlines do not have")
    if pictures:
        _make_folder(pictures)
    scored = run(pairs, methods, limits, describe, pictures, camera, listed.points == "fast")
    report = {
        "net": spec,
        "weights": describe and describe.matcher.net.report and describe.matcher.net.report.path,
        "layers": layers,
        "data": sources,
        "split": split or None,
        "length": length,
        "points": None if points == "all" else listed.points,
        "seed": seed,
        "limit": limit,
        "features": features,
        **asked,
        "listed": len(listed),
        "left_out": sum(each.left_out for each in listed.of) + scored.left_out,
        **summary(scored, describe),
    }
    if curve:
        draw_pck(curve, report["curve"])
    if as_json:
        click.echo(json.dumps(report))
        return
    show(report)
    for path in filter(None, (pictures, curve)):
        click.echo(f"{'pictures' if path == pictures else 'curves'} written to {path}")


@dataclass(frozen=True)
class Limits:
    """PCK's thresholds, in units of T and in pixels."""

    alphas: tuple[float, ...]
    pixels: tuple[float, ...]


def _limits(
    listed: MeasuredPairs, alphas: tuple[float, ...] | None, pixels: tuple[float, ...] | None
) -> Limits:
    if listed.in_pixels and alphas:
        raise click.UsageError("--alpha is a share of --length, and here it is 1 pixel: name one")
    if alphas is None and pixels is None:
        return Limits((), PIXELS) if listed.in_pixels else Limits(ALPHAS, ())
    return Limits(alphas or (), pixels or ())


def _expect_method(spec: str | None, baselines: Sequence[str], **of_net: Any) -> None:
    if spec:
        return
    if not baselines or "nearest" in baselines:
        raise click.UsageError("name a NET, or --baseline of those that need none: all but nearest")
    for option, value in of_net.items():
        if value is not None:
            raise click.UsageError(f"--{option} goes with a NET")


def _nets(
    spec: str | None,
    features: Sequence[str],
    weights: str | None,
    layers: Sequence[int] | None,
    **options: Any,
) -> dict[str, Descriptions]:
    """The net, or each blob of it that is asked for, by the method's name."""
    from cortado.nets.evaluation import Descriptions

    from .matching import open_net

    if spec is None:
        return {}
    matchers = {
        name: open_net(spec, weights, layers, feature=name, **options)
        for name in dict.fromkeys(features)
    }
    if not features:
        matchers["net"] = open_net(spec, weights, layers, **options)
    return {name: Descriptions(matcher) for name, matcher in matchers.items()}


def _methods(nets: Mapping[str, Descriptions], baselines: Sequence[str]) -> dict[str, Method]:
    """The nets, then the baselines."""
    from cortado.nets.evaluation import ByNet, identity

    methods: dict[str, Method] = {name: ByNet(describe) for name, describe in nets.items()}
    for name in dict.fromkeys(baselines):
        if name == "identity":
            methods[name] = identity
        elif name == "nearest":
            methods[name] = _nearest(next(iter(nets.values())))
        else:
            methods[name] = _by_descriptor(name)
    return methods


def _nearest(describe: Descriptions) -> Method:
    from cortado.nets.evaluation import ByNet

    if not describe.matcher.params.confidence:
        text = "it is for nets that have a confidence; this one matches nearest neighbours itself"
        raise click.UsageError(f"--baseline nearest: {text}")
    return ByNet(describe, nearest=True)


def _by_descriptor(name: str) -> Method:
    """Nearest neighbours of descriptors among every 4th pixel; its seconds are with those of describing
    both images."""
    from cortado.layers._data.images import read_image
    from cortado.nets.evaluation import Answer

    from .matching import METHODS, Descriptors
    from .opencv import opencv

    descriptors = Descriptors(METHODS[name])
    if name.startswith("beblid"):
        opencv("BEBLID", extra_modules=True)

    def method(pair: ImagePair) -> Answer:
        one, other = (read_image(path, what=f'image "{path}"') for path in (pair.image1, pair.image2))
        begin = time.perf_counter()
        points = descriptors.nearest(one, other, pair.points1)
        return Answer(points, time.perf_counter() - begin)

    return method


def _make_folder(path: str) -> None:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.UsageError(f"--pictures: {path}: {error.strerror}") from None
    expect_folder(str(Path(path, "any.png")), "--pictures")


def run(
    pairs: Items[ImagePair],
    methods: Mapping[str, Method],
    limits: Limits,
    describe: Descriptions | None = None,
    pictures: str | None = None,
    camera: bool = False,
    corners: bool = False,
) -> Scores:
    """What each method reaches in the pairs, behind a progress bar; pictures of some by the first.

    corners: the camera's motion is estimated from FAST corners, not from points of an even grid.
    """
    from cortado.nets.evaluation import evaluate, spread

    from .evaluation_report import Scores
    from .progress import through

    longer_side = describe.matcher.params.longer_side if describe else 0
    drawn = spread(len(pairs), MOST_PICTURES if pictures else 0)
    scores = Scores(limits.alphas, limits.pixels, camera)
    bar = scores.with_points(through(pairs, lambda pair: pair.name))
    besides = partial(_all_over, corners=corners) if camera else None
    for i, found in enumerate(
        evaluate(bar, methods, limits.alphas, longer_side, limits.pixels, besides)
    ):
        scores.add(found)
        if i in drawn:
            draw(Path(pictures or "", f"{i:05}"), found[next(iter(methods))], limits, describe)
    return scores


def _all_over(pair: ImagePair, corners: bool) -> Array:
    """The points that the camera's motion is estimated from, whether or not their matches are known;
    raises ValueError for a pair whose motion is not."""
    from cortado.layers._data.images import read_image
    from cortado.layers._data.keypoint_pairs import KeypointPair
    from cortado.layers._data.measured_pairs import fast
    from cortado.nets.evaluation import even_points

    if not isinstance(pair, KeypointPair) or pair.motion is None:
        raise ValueError(f"{pair.name}: the camera's motion is not known")
    image = read_image(pair.image1, what=f'image "{pair.image1}"')
    return fast(image) if corners else even_points(image.shape[0], image.shape[1], POINTS)


def draw(begin: Path, found: Found, limits: Limits, describe: Descriptions | None = None) -> None:
    """Save the points that were found, green where they are right at the middle one of the thresholds,
    and by a net with a confidence image 1 warped to image 2, in files whose names begin so."""
    import numpy as np
    from cortado.layers._data.images import read_image
    from cortado.layers._data.keypoint_pairs import KeypointPair
    from cortado.nets.evaluation import figure_names

    from .pictures import draw_matches, draw_warped

    pair = found.pair
    stem = f"{begin}_" + re.sub(r"[^\w().-]+", "_", pair.name)
    first, second = (read_image(path, what=f'image "{path}"') for path in (pair.image1, pair.image2))
    names = figure_names(pair, limits.alphas, limits.pixels)
    middle = len(names) // 2
    title = f"{pair.name}: {names[middle]} {found.figures[middle]:.2f}"
    rows, error, limit = np.c_[pair.points1, found.points], None, 0.0
    if isinstance(pair, KeypointPair):
        error = np.linalg.norm(found.points - pair.points2, axis=1)
        limit = [*limits.pixels, *(alpha * pair.length for alpha in limits.alphas)][middle]
    draw_matches(f"{stem}_points.png", first, second, rows, error, limit=limit, title=title)
    if describe and describe.matcher.params.confidence:
        flow = describe.matcher.flow(describe(pair.image2), describe(pair.image1))
        most = describe.matcher.params.longer_side
        title = f"{pair.name}: A, B, A warped to B"
        draw_warped(f"{stem}_warped.png", _given(first, most), _given(second, most), flow, title)


def _given(image: np.ndarray, longer_side: int) -> np.ndarray:
    """An image in the size that the net is given it in."""
    from cortado.layers._data.transform import limited_size, resized

    height, width = limited_size(image.shape[0], image.shape[1], longer_side)
    return resized(image.transpose(2, 0, 1), height, width).transpose(1, 2, 0)
