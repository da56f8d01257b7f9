"""The search of layers: Algorithm 1 and the released code on made-up scores, the scores against the
matcher of the net that has the layers chosen, the files that keep the maps."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from cortado.layers._data.images import read_image
from cortado.layers._data.keypoint_pairs import KeypointPair, open_pairs
from cortado.layers._geometry.keypoints import pair_pck
from cortado.nets import layer_scores
from cortado.nets.hyperpixels import choose
from cortado.nets.kept_maps import KeptMaps
from cortado.nets.layer_scores import PCK, Pair, Rules
from cortado.nets.layer_search import Depth, Layers, Scored, Search, chosen
from cortado.nets.matching import Matcher
from cortado.nets.specs import load
from cortado.prototxt_like import SpecError, loads
from hyperpixel_toy import SPEC, write_images, write_net
from shared import SHARED

HPF = SHARED / "data" / "hpf" / "resnet50_caffe_upto_res4f.npz" if SHARED else Path("missing")
WILLOW = SHARED / "data" / "pf_willow" if SHARED else Path("missing")

# The algorithm


def made_up(seed: int, digits: int = 6) -> Callable[[Layers], float]:
    """A score for any set: drawn by its layers alone; few digits make ties."""

    def score(layers: Layers) -> float:
        return round(float(np.random.default_rng([seed, *sorted(layers)]).random()), digits)

    return score


def run(
    search: Search, score: Callable[[Layers], float], done: Sequence[Depth] = ()
) -> tuple[list[Depth], list[Layers]]:
    """The depths, and what was evaluated, in that order."""
    evaluated: list[Layers] = []

    def scored(sets: Sequence[Layers]) -> Depth:
        evaluated.extend(sets)
        return tuple(Scored(layers, score(layers), 0.0) for layers in sets)

    return [*search.run(scored, done)], evaluated


def best_first(memory: dict[frozenset[int], float], count: int) -> list[tuple[frozenset[int], float]]:
    left, found = dict(memory), []
    while left and len(found) < count:
        best = next(key for key in left if all(left[key] >= other for other in left.values()))
        found.append((best, left.pop(best)))
    return found


def algorithm_1(
    candidates: int,
    bases: Layers,
    beam: int,
    depth: int,
    score: Callable[[Layers], float],
) -> tuple[set[int], float, list[list[set[int]]]]:
    """As the paper writes it; a memory holds a set once."""
    memory = {frozenset({base}): score((base,)) for base in bases}
    kept = best_first(memory, beam)
    selected, best = kept[0]
    beams = [[{*layers} for layers, _ in kept]]
    for _ in range(1, depth):
        memory = {}
        for layers, _ in kept:
            for layer in range(candidates):
                if layer not in layers and layer > min(layers):
                    made = layers | {layer}
                    memory[made] = score(tuple(sorted(made)))
        kept = best_first(memory, beam)
        if not kept:
            break
        beams.append([{*layers} for layers, _ in kept])
        if kept[0][1] > best:
            selected, best = kept[0]
    return {*selected}, best, beams


@pytest.mark.parametrize("seed", range(12))
def test_algorithm_1(seed: int) -> None:
    rng = np.random.default_rng(seed)
    candidates, beam, depth = (int(x) for x in rng.integers((4, 1, 1), (9, 6, 7)))
    bases = tuple(rng.permutation(min(candidates, 4))[: rng.integers(1, 5)].tolist())
    score = made_up(seed, digits=6 if seed % 2 else 1)
    search = Search(candidates, bases, beam, depth)
    depths, evaluated = run(search, score)
    selected, best, beams = algorithm_1(candidates, bases, beam, depth, score)
    assert [[{*each.layers} for each in search.best(depth)] for depth in depths] == beams
    assert {*chosen(depths).layers} == selected
    assert chosen(depths).score == best
    assert len({*evaluated}) == len(evaluated)
    assert all(layers == tuple(sorted(layers)) for layers in evaluated)


def as_released(
    candidates: int, beam: int, depth: int, score: Callable[[Layers], float]
) -> tuple[list[list[int]], list[int]]:
    """The released loops, as described: a set that was met in this depth breaks the innermost."""
    memory = [(score((base,)), [base]) for base in range(beam)]
    evaluated = [layers for _, layers in memory]
    top = sorted(memory, key=lambda entry: entry[0], reverse=True)[:beam]
    best = top[0]
    for _ in range(1, depth):
        memory = []
        for _, layers in top:
            for layer in range(candidates):
                if layer not in layers and layer > min(layers):
                    made = sorted([*layers, layer])
                    if made in [seen for _, seen in memory]:
                        break
                    memory.append((score(tuple(made)), made))
        evaluated += [layers for _, layers in memory]
        top = sorted(memory, key=lambda entry: entry[0], reverse=True)[:beam]
        if top and top[0][0] > best[0]:
            best = top[0]
    return evaluated, best[1]


def test_published_leaves_out_what_follows_a_set_that_it_has_met() -> None:
    beam = [(0, 1), (0, 2), (1, 3)]
    both = [(0, 1, 2), (0, 1, 3), (0, 1, 4)]
    rest = [(0, 2, 3), (0, 2, 4), (1, 2, 3), (1, 3, 4)]
    assert Search(5, (0,)).extended(beam) == both + rest
    assert Search(5, (0,), published=True).extended(beam) == both + rest[2:]


def test_published_is_the_released_loop() -> None:
    differ = 0
    for seed in range(30):
        score = made_up(seed, digits=6 if seed % 2 else 1)
        search = Search(8, (0, 1, 2), beam=3, depth=5)
        depths, evaluated = run(replace(search, published=True), score)
        expected, best = as_released(8, 3, 5, score)
        assert list(map(list, evaluated)) == expected
        assert list(chosen(depths).layers) == best
        differ += list(chosen(run(search, score)[0]).layers) != best
    assert differ  # the break decides what is chosen


def test_of_equal_scores_the_first_found_counts() -> None:
    search = Search(4, (2, 0, 1), beam=2, depth=3)
    depths, _ = run(search, lambda layers: 0.5)
    assert [each.layers for each in search.best(depths[0])] == [(2,), (0,)]
    assert [each.layers for each in search.best(depths[1])] == [(2, 3), (0, 1)]
    assert chosen(depths).layers == (2,)


def test_it_ends_where_nothing_is_left_to_add() -> None:
    depths, evaluated = run(Search(3, (0, 2), beam=4, depth=8), made_up(0))
    assert [len(depth) for depth in depths] == [2, 2, 1]
    assert evaluated == [(0,), (2,), (0, 1), (0, 2), (0, 1, 2)]


@pytest.mark.parametrize("after", range(5))
def test_resumed_is_as_uninterrupted(after: int) -> None:
    search, score = Search(7, (0, 1, 2), beam=3, depth=5), made_up(4)
    whole, evaluated = run(search, score)
    resumed, again = run(search, score, whole[:after])
    assert resumed == whole
    assert again == evaluated[sum(map(len, whole[:after])) :]


def test_what_was_done_must_be_this_search_s() -> None:
    whole, _ = run(Search(7, (0, 1), depth=3), made_up(1))
    with pytest.raises(ValueError, match="depth 2 evaluated other sets than this search does"):
        run(Search(6, (0, 1), depth=3), made_up(1), whole)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"beam": 0}, "expected a beam and a depth of at least 1, got 0, 8"),
        ({"depth": 0}, "expected a beam and a depth of at least 1, got 4, 0"),
        ({"bases": ()}, r"expected bases, each once, got \[\]"),
        ({"bases": (1, 1)}, r"expected bases, each once, got \[1, 1\]"),
        ({"bases": (5,)}, "base 5: expected one of 0 to 4"),
        ({"bases": (-1,)}, "base -1: expected one of 0 to 4"),
    ],
)
def test_no_search(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(Search(5, (0,)), **changed)


# Scores


class Toy:
    """The small net, its maps kept in a folder, and its pairs."""

    def __init__(self, folder: Path, changes: Sequence[tuple[str, str]] = ()) -> None:
        self.path, self.weights = write_net(folder)
        self.spec = loads(replaced(changes), "toy.yaml")
        self.matcher = Matcher(self.spec, self.weights)
        self.maps = KeptMaps(self.matcher, self.weights, folder / "maps")
        self.pairs = [*open_pairs(f"pf-willow:{write_images(folder / 'images')}")]
        self.rules = Rules.of(self.matcher)

    def pck(self, *alphas: float) -> PCK:
        return PCK(self.rules, self.maps, alphas or (0.1,))


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path)


ALL = [
    layers
    for count in range(1, 5)
    for layers in combinations(range(4), count)
    if layers[0] < 3  # block 3 has no cells of its own
]
NO_SIZES = ("c_p, image1, image2", "c_p")
VARIANTS: dict[str, list[tuple[str, str]]] = {
    "as it is": [],
    "every cell": [(", margin: 4", ""), NO_SIZES],
    "not squared": [("exponent: 2", "exponent: 1")],
    "images as they are": [("longer_side: 48", "longer_side: 0")],
    "a base that has no cells within the margin": [("[5, 11, 19]", "[5, 11, 99]")],
}


def replaced(changes: Sequence[tuple[str, str]]) -> str:
    """The small net's spec with parts of it replaced."""
    text = SPEC
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


def assert_as_matched(
    matcher_of: Callable[[Layers], Matcher],
    pck: PCK,
    pairs: Sequence[KeypointPair],
    sets: Sequence[Layers],
) -> int:
    """Key points within 1e-3 px of those of the net with these layers, the same PCK; how many."""
    found, _ = pck.figures(sets, pairs)
    count = 0
    for i, layers in enumerate(sets):
        matcher = matcher_of(layers)
        for n, pair in enumerate(pairs):
            images = read_image(pair.image1), read_image(pair.image2)
            expected, _ = matcher.match(*images, pair.points1)
            maps = pck.maps(pair.image1), pck.maps(pair.image2)
            points = Pair(pck.rules, *maps, sets).match(layers, pair.points1)
            np.testing.assert_allclose(points, expected, rtol=0, atol=1e-3)
            truth = pair_pck(expected, pair.points2, pair.length, pck.alphas)
            np.testing.assert_array_equal(found[i, n], truth)
            count += np.isfinite(expected).all(1).sum()
    return count


@pytest.mark.parametrize("name", VARIANTS)
def test_points_are_the_matchers(tmp_path: Path, name: str) -> None:
    toy = Toy(tmp_path, VARIANTS[name])

    def matcher_of(layers: Layers) -> Matcher:
        return Matcher(choose(toy.spec, layers), toy.weights)

    pairs = [toy.pairs[i] for i in (0, 1, 5, 8)]
    count = assert_as_matched(matcher_of, toy.pck(0.05, 0.1, 0.5), pairs, ALL)
    assert count > 5 * len(ALL) * len(pairs) / 2


@pytest.mark.skipif(not HPF.is_file() or not WILLOW.is_dir(), reason="no weights or no PF-WILLOW here")
def test_points_are_the_matchers_on_the_real_net(tmp_path: Path) -> None:
    spec = load("hpf_resnet50")
    matcher = Matcher(spec, HPF)
    rules = Rules.of(matcher)
    assert rules.own == (2, 7, 11, 12, 13)
    maps = KeptMaps(matcher, HPF, tmp_path)
    every = open_pairs(f"pf-willow:{WILLOW}")
    pairs = [every[i] for i in (3, 517)]
    sets = [(0, 3, 9), rules.own]

    def matcher_of(layers: Layers) -> Matcher:
        return Matcher(choose(spec, layers), HPF)

    assert assert_as_matched(matcher_of, PCK(rules, maps, (0.05, 0.1)), pairs, sets) == 40
    everything = Pair(rules, maps(pairs[0].image1), maps(pairs[0].image2), [(0, *range(1, 14))])
    assert 2e8 < everything.bytes < 1e9
    assert maps.made == len({path for pair in pairs for path in (pair.image1, pair.image2)})


def test_a_score_is_the_mean_of_pairs(toy: Toy) -> None:
    pck = toy.pck(0.3, 0.05)
    found, _ = pck.figures(ALL, toy.pairs)
    scored = pck.scored(ALL, toy.pairs)
    assert [each.layers for each in scored] == ALL
    for each, figures in zip(scored, found, strict=True):
        assert each.score == pytest.approx(sum(figures[:, 0]) / len(toy.pairs), abs=1e-11)
        assert each.seconds > 0
    assert len({each.score for each in scored}) > len(ALL) / 2
    again = pck.scored(ALL, toy.pairs[::-1])
    assert [each.score for each in again] == [each.score for each in scored]


def test_a_search_runs_the_net_once_an_image(toy: Toy) -> None:
    search, pck = Search(4, (0, 1, 2), beam=3, depth=4), toy.pck(0.3)
    depths = [*search.run(lambda sets: pck.scored(sets, toy.pairs))]
    images = {image for pair in toy.pairs for image in (pair.image1, pair.image2)}
    assert [len(depth) for depth in depths] == [3, 6, 4, 1]
    assert toy.maps.made == len(images) == 7


def test_one_pair_is_held_at_a_time(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    held: weakref.WeakSet[Pair] = weakref.WeakSet()
    most = []

    class Watched(Pair):
        def __init__(self, *given: object) -> None:
            until = time.monotonic() + 5
            while held and time.monotonic() < until:  # a thread may be about to let go
                time.sleep(0.001)
            most.append(len(held))
            super().__init__(*given)
            held.add(self)

    monkeypatch.setattr(layer_scores, "Pair", Watched)
    toy.pck().figures([(0,), (0, 1)], toy.pairs)
    assert most == [0] * len(toy.pairs)


def test_what_a_pair_holds(toy: Toy) -> None:
    """Maps of 8 x 10 and 12 x 8 cells, and of half of that: each product once."""
    a, b = (toy.maps(image) for image in (toy.pairs[0].image1, toy.pairs[0].image2))
    assert [tuple(x.shape[2:]) for x in a.maps] == [(8, 10), (8, 10), (4, 5), (4, 5)]
    assert [tuple(x.shape[2:]) for x in b.maps] == [(12, 8), (12, 8), (6, 4), (6, 4)]
    pair = Pair(toy.rules, a, b, [(0, 1), (1, 3), (0, 3), (1,)])
    lengths = 3 * (80 + 96)
    assert pair.bytes == 4 * (2 * 80 * 96 + 20 * 24 + lengths)


BY = "expected a confidence made by a HyperpixelCorrelation and a RegularizedHoughMatching of blocks"
WRONG: dict[str, list[tuple[str, str]]] = {
    f"{BY}, found HyperpixelCorrelation": [("confidence: confidence", "confidence: similarity")],
    '"b" is none of the blocks a, c, d': [("[a, b, c, d]", "[a, c, d]")],
    "a search knows no channel weights": [("exponent: 2", "exponent: 2, channel_weights: true")],
    "expected a margin in all of the layers and match_param, or in none": [
        NO_SIZES,
        ("11, margin: 4}", "11}"),
        ("longer_side: 48", "longer_side: 48, margin: 4"),
    ],
}


@pytest.mark.parametrize("message", WRONG)
def test_no_rules(message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Rules.of(Matcher(loads(replaced(WRONG[message]), "toy.yaml"), seed=1))


def test_a_base_without_cells(toy: Toy) -> None:
    maps = toy.maps(toy.pairs[0].image1)
    with pytest.raises(ValueError, match="block 3 cannot be the first: the cells of 3 are known"):
        Pair(toy.rules, maps, maps, [(3,)]).match((3,), np.ones((1, 2)))


# Files


def assert_same(one: layer_scores.Maps, other: layer_scores.Maps) -> None:
    assert one[:2] == other[:2]
    assert all((x == y).all() for x, y in zip(one.maps, other.maps, strict=True))


def test_maps_are_kept(toy: Toy) -> None:
    image = toy.pairs[-1].image1
    made = toy.maps(image)
    other = KeptMaps(toy.matcher, toy.weights, toy.maps.folder)
    assert_same(made, other(image))
    assert (toy.maps.made, other.made) == (1, 0)


def test_a_file_is_of_one_image_net_and_weights(toy: Toy, tmp_path: Path) -> None:
    """Other pixels, other weights, another net: none of them reads what is there."""
    image = toy.pairs[0].image1
    first = toy.maps(image)
    (tmp_path / "other").mkdir()
    _, weights = write_net(tmp_path / "other", seed=4)
    moved = loads(SPEC.replace("mean_value: 128", "mean_value: 127"), "toy.yaml")
    for spec, file in ((toy.spec, weights), (moved, toy.weights)):
        kept = KeptMaps(Matcher(spec, file), file, toy.maps.folder)
        assert not (kept(image).maps[0] == first.maps[0]).any()
        assert kept.made == 1
    image.write_bytes(toy.pairs[0].image2.read_bytes())
    assert toy.maps(image).size != first.size
    assert len([*toy.maps.folder.iterdir()]) == toy.maps.made + 2 == 4


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "text": lambda data: b"not a file of tensors" * 40,
    "a bit": lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
    "another size": lambda data: data.replace(b"[30, 40]", b"[30, 41]"),
    "metadata": lambda data: data.replace(b"ratio", b"ratip"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_again(toy: Toy, damage: str) -> None:
    image = toy.pairs[0].image1
    made, file = toy.maps(image), toy.maps.file(image)
    data = file.read_bytes()
    file.write_bytes(DAMAGES[damage](data))
    assert file.read_bytes() != data
    assert_same(made, toy.maps(image))
    assert toy.maps.made == 2
    assert_same(made, toy.maps(image))
    assert toy.maps.made == 2


def test_a_file_that_cannot_be_written_is_named(toy: Toy) -> None:
    toy.maps.folder.write_text("no folder")
    with pytest.raises(OSError, match=rf"cannot write .*{toy.maps.folder.name}"):
        toy.maps(toy.pairs[0].image1)
