"""Search the layers of a net that its hyperpixels are made of."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from .options import device_options, expect_distinct, expect_folder, plugins, the_device
from .progress import through

if TYPE_CHECKING:
    from cortado.layers._data.keypoint_pairs import KeypointPair
    from cortado.nets.kept_maps import KeptMaps
    from cortado.nets.layer_scores import PCK
    from cortado.nets.layer_search import Depth, Layers, Scored, Search
    from cortado.prototxt_like.message import Message

REPORTED = (0.05, 0.1, 0.15)


def _finite(_: click.Context, __: click.Parameter, given: float) -> float:
    if not 0 < given < math.inf:
        raise click.BadParameter(f"expected a number above 0, got {given}")
    return given


def _split(_: click.Context, __: click.Parameter, given: str | None) -> tuple[str, ...]:
    return tuple(filter(None, (name.strip() for name in (given or "").split(","))))


@click.command()
@click.argument("net", type=click.Path())
@click.option("--weights", required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--data", required=True, help="A data set and its folder: pf-pascal:DIR.")
@click.option("--split", help="Its split.  [default: val; test with objects to choose or report on]")
@click.option(
    "--length",
    help="PCK's unit, where a data set has several; of PF-PASCAL the released search takes bbox.",
)
@click.option(
    "--choose-on", callback=_split, help="Objects on whose pairs layers are chosen: car,duck."
)
@click.option("--report-on", callback=_split, help="Those to report on.  [default: the other objects]")
@click.option("--limit", type=click.IntRange(1), help="Choose on so many pairs, spread evenly.")
@click.option("--alpha", type=float, callback=_finite, default=0.1, show_default=True)
@click.option(
    "--bases", callback=_split, help="Layers that may come first.  [default: the first, a beam of them]"
)
@click.option("--beam", type=click.IntRange(1), default=4, show_default=True, help="Sets kept.")
@click.option("--depth", type=click.IntRange(1), default=8, show_default=True, help="Layers at most.")
@click.option("--published", is_flag=True, help="As released: a set met twice ends its candidates.")
@click.option("--cache", type=click.Path(file_okay=False), help="Keep the layers' maps here.")
@click.option(
    "--log", type=click.Path(dir_okay=False), help="A JSON file, which a search goes on from."
)
@click.option("--json", "as_json", is_flag=True, help="Print what the log holds.")
@device_options
@plugins
def command(
    net: str,
    weights: str,
    data: str,
    split: str | None,
    length: str | None,
    choose_on: tuple[str, ...],
    report_on: tuple[str, ...],
    limit: int | None,
    alpha: float,
    bases: tuple[str, ...],
    beam: int,
    depth: int,
    published: bool,
    cache: str | None,
    log: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Choose the layers of NET, which ends in a confidence of hyperpixels, by a beam search: the set of
    the highest PCK at --alpha on the pairs of a data set, as in Hyperpixel Flow's Algorithm 1.

    Layers are called by their places in the "block" of NET's match_param. The maps of each image are
    made once and kept in files, some 30 MB each for a ResNet-50. After each depth the --log is written;
    the same command goes on from there.

    \b
    cortado beam_search hpf_resnet50 --weights resnet50.npz --data pf-willow:PF-dataset \\
        --choose-on car,duck --log search.json
    """
    from cortado.nets.kept_maps import KeptMaps
    from cortado.nets.layer_scores import PCK, Rules
    from cortado.nets.matching import Matcher
    from cortado.nets.specs import load

    expect_distinct(net=net, weights=weights, log=log)
    if log:
        expect_folder(log, "--log")
    pairs = _pairs(data, split or ("test" if choose_on or report_on else "val"), length)
    chosen_on, reported_on = _parts(pairs, choose_on, report_on, limit)
    spec = load(net)
    search = _search(spec, bases, beam, depth, published)
    matcher = Matcher(spec, weights, device=the_device(options))
    rules = Rules.of(matcher)
    with ExitStack() as stack:
        folder = cache or stack.enter_context(TemporaryDirectory(prefix="cortado-maps-"))
        maps = KeptMaps(matcher, weights, folder)
        settings = _settings(search, maps, alpha, chosen_on)
        record = Record(log, search, settings, matcher.params.block, quiet=as_json)
        _first_pass(maps, [*chosen_on, *reported_on])
        record.searched(PCK(rules, maps, (alpha,)), chosen_on)
        if reported_on:
            record.reported(PCK(rules, maps, REPORTED), rules.own, reported_on)
    if as_json:
        click.echo(json.dumps(record.content))
    elif log:
        click.echo(f"written to {log}")


def _pairs(data: str, split: str, length: str | None) -> list[KeypointPair]:
    """The pairs of a split; raises UsageError for those without key points."""
    from cortado.layers._data.keypoint_pairs import KeypointPair, open_pairs

    pairs = [*open_pairs(data, split, **({"length": length} if length else {}))]
    found = [pair for pair in pairs if isinstance(pair, KeypointPair)]
    if len(found) < len(pairs):
        raise click.UsageError(f"--data: layers are chosen by PCK; {data} has no key points to measure")
    return found


def _parts(
    pairs: Sequence[KeypointPair], choose_on: Sequence[str], report_on: Sequence[str], limit: int | None
) -> tuple[list[KeypointPair], list[KeypointPair]]:
    """The pairs to choose on and those to report on, by the names of objects: ``car(G)`` is a car."""
    from cortado.nets.evaluation import spread

    of = [pair.category.partition("(")[0] for pair in pairs]
    for option, names in (("--choose-on", choose_on), ("--report-on", report_on)):
        if unknown := [name for name in names if name not in of]:
            listed = ", ".join(sorted({*of}))
            raise click.UsageError(f'{option}: no pairs of "{unknown[0]}": there are {listed}')
    if both := {*choose_on} & {*report_on}:
        raise click.UsageError(
            f"{', '.join(sorted(both))}: layers chosen on these are reported on others"
        )
    choosing = {*choose_on} or {*of} - {*report_on}
    if not choosing:
        raise click.UsageError("--report-on: no objects are left to choose on")
    reporting = {*report_on} or {*of} - choosing
    chosen = [pair for pair, name in zip(pairs, of, strict=True) if name in choosing]
    reported = [pair for pair, name in zip(pairs, of, strict=True) if name in reporting]
    return [chosen[i] for i in spread(len(chosen), limit)], reported


def _search(spec: Message, bases: Sequence[str], beam: int, depth: int, published: bool) -> Search:
    """Raises UsageError for bases that are no numbers, ValueError for those without known cells."""
    from cortado.nets import hyperpixels
    from cortado.nets.layer_search import Search

    count = len(hyperpixels.blocks(spec))
    if wrong := [base for base in bases if not base.isdecimal()]:
        raise click.UsageError(f'--bases: expected numbers, as 0,1,2,3, got "{wrong[0]}"')
    ids = tuple(map(int, bases)) or tuple(hyperpixels.bases(spec)[:beam])
    for base in ids:
        hyperpixels.choose(spec, [base])
    return Search(count, ids, beam, depth, published)


def _settings(
    search: Search, maps: KeptMaps, alpha: float, pairs: Sequence[KeypointPair]
) -> dict[str, Any]:
    """All that decides what a search finds."""
    from cortado.layers._data.keypoint_pairs import digest
    from cortado.nets.kept_maps import sha256

    images = (digest(image) for pair in pairs for image in (pair.image1, pair.image2))
    points = (str((p.points1.tolist(), p.points2.tolist(), p.length)) for p in pairs)
    return {
        "net and weights": maps.net[:16],
        "pairs": len(pairs),
        "images and points": sha256(*images, *points)[:16],
        "alpha": alpha,
        "bases": list(search.bases),
        "beam": search.beam,
        "depth": search.depth,
        "published": search.published,
    }


def _first_pass(maps: KeptMaps, pairs: Sequence[KeypointPair]) -> None:
    """The net's only one."""
    images = sorted({image for pair in pairs for image in (pair.image1, pair.image2)})
    for image in through(images, lambda image: f"maps: {image.name}"):
        maps(image)


class Record:
    """What a search has found, written to a log after each depth, and shown unless it is to be quiet.

    Raises ValueError for a log that is none, or another search's.
    """

    def __init__(
        self,
        path: str | None,
        search: Search,
        settings: dict[str, Any],
        blocks: Sequence[str],
        quiet: bool,
    ) -> None:
        self.path, self.search, self.blocks, self.quiet = path, search, blocks, quiet
        self.content: dict[str, Any] = {"settings": settings, "depths": []}
        self.done = _done(path, search, settings) if path and os.path.exists(path) else []

    def searched(self, pck: PCK, pairs: Sequence[KeypointPair]) -> None:
        """Search, from where the log ends."""

        def score(sets: Sequence[Layers]) -> Depth:
            label = f"{len(sets[0])} of {self.search.depth} layers, {len(sets)} sets"
            return pck.scored(sets, through(pairs, lambda pair: f"{label}: {pair.name}"))

        depths = []
        for depth in self.search.run(score, self.done):
            depths.append(depth)
            self._depth(depths)

    def _depth(self, depths: Sequence[Depth]) -> None:
        from cortado.nets.layer_search import chosen

        beam, best = self.search.best(depths[-1]), chosen(depths)
        self.content["depths"].append(
            {
                "sets": [_written(each) for each in depths[-1]],
                "beam": [_written(each) for each in beam],
            }
        )
        self.content["chosen"] = _written(best)
        if len(depths) > len(self.done):
            self._write()
        taken = sum(each.seconds for each in depths[-1])
        count = f"{len(depths)} of {self.search.depth} layers"
        self._show(f"{count}: {len(depths[-1])} sets, {taken:.1f} s")
        for each in beam:
            self._show(f"  {100 * each.score:6.2f}  {self._named(each.layers)}")

    def reported(self, pck: PCK, own: Layers, pairs: Sequence[KeypointPair]) -> None:
        """The PCK of the chosen layers, and of the net's own, on pairs that had no part in choosing."""
        sets = {"chosen": tuple(self.content["chosen"]["layers"]), "own": own}
        found, _ = pck.figures([*sets.values()], through(pairs, lambda pair: f"reported: {pair.name}"))
        head = " ".join(f"@{alpha:g}".rjust(6) for alpha in pck.alphas)
        self._show(f"PCK on the {len(pairs)} pairs of other objects\n  {head}")
        self.content["report"] = {"pairs": len(pairs), "alphas": list(pck.alphas)}
        for (name, layers), figures in zip(sets.items(), found, strict=True):
            mean = figures.mean(0).tolist()
            self.content["report"][name] = {"layers": list(layers), "pck": mean}
            shown = " ".join(f"{100 * each:6.2f}" for each in mean)
            label = name if name == "chosen" else "the net's own"
            self._show(f"  {shown}  {label}: {self._named(layers)}")
        self._write()

    def _named(self, layers: Layers) -> str:
        return f"{','.join(map(str, layers))} ({', '.join(self.blocks[i] for i in layers)})"

    def _show(self, line: str) -> None:
        if not self.quiet:
            click.echo(line)

    def _write(self) -> None:
        from cortado.prototxt_like.files import replace_text

        if self.path:
            replace_text(self.path, json.dumps(self.content, indent=1) + "\n")


def _written(scored: Scored) -> dict[str, Any]:
    return {"layers": list(scored.layers), "pck": scored.score, "seconds": round(scored.seconds, 3)}


def _done(path: str, search: Search, settings: dict[str, Any]) -> list[Depth]:
    """The depths of a log."""
    from cortado.layers._data.files import read_text
    from cortado.nets.layer_search import Scored

    try:
        content = json.loads(read_text(path, "the log"))
        old = dict(content["settings"])
        depths = [
            tuple(
                Scored(tuple(map(int, each["layers"])), float(each["pck"]), float(each["seconds"]))
                for each in depth["sets"]
            )
            for depth in content["depths"]
        ]
        if wrong := [each for depth in depths for each in depth if not 0 <= each.score <= 1]:
            raise ValueError(f"a PCK of {wrong[0].score}")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a search's log: {error}") from None
    for name in {**settings, **old}:
        deeper = name == "depth" and len(depths) <= settings["depth"]
        if old.get(name) != settings.get(name) and not deeper:
            text = (
                f"{path}: the search of this log has {name} {old.get(name)}, not {settings.get(name)}"
            )
            raise ValueError(f"{text}; name another --log to begin anew")
    try:
        for _ in zip(depths, search.run(lambda sets: (), depths), strict=False):
            pass
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return depths
