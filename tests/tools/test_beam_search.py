"""cortado beam_search on a small data set: what it finds, its log, how it goes on, its messages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cortado.layers._data.images import read_image
from cortado.layers._data.keypoint_pairs import open_pairs
from cortado.layers._geometry.keypoints import pair_pck
from cortado.nets.hyperpixels import choose
from cortado.nets.kept_maps import KeptMaps
from cortado.nets.layer_scores import PCK
from cortado.nets.layer_search import Depth, Layers, Search
from cortado.nets.matching import Matcher
from cortado.nets.specs import load
from cortado.tools.cli import main
from hyperpixel_toy import write_images, write_net


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_net(tmp_path)
    write_images(tmp_path / "images")
    return tmp_path


BASE = ("toy.yaml", "--weights", "toy.safetensors", "--data", "pf-willow:images")
SEARCH = (*BASE, "--alpha", "0.4", "--beam", "2", "--depth", "3", "--choose-on", "car")


def run(capfd: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    try:
        main(["beam_search", *args])
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    return code, *capfd.readouterr()


def timeless(content: Any) -> Any:
    """The same without seconds."""
    if isinstance(content, dict):
        return {name: timeless(value) for name, value in content.items() if name != "seconds"}
    return [timeless(each) for each in content] if isinstance(content, list) else content


def measured(layers: Sequence[int], objects: str, *alphas: float) -> np.ndarray:
    """The mean PCK of the matcher of the net with these layers."""
    matcher = Matcher(choose(load("toy.yaml"), layers), "toy.safetensors")
    found = []
    for pair in open_pairs("pf-willow:images"):
        if pair.category.startswith(objects):
            points, _ = matcher.match(read_image(pair.image1), read_image(pair.image2), pair.points1)
            found.append(pair_pck(points, pair.points2, pair.length, alphas))
    return np.mean(found, 0)


def test_scores_are_the_matchers(there: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capfd, *SEARCH, "--json")
    assert (code, err) == (0, "")
    content = json.loads(out)
    assert [len(depth["sets"]) for depth in content["depths"]] == [2, 5, 3]
    for depth in content["depths"]:
        for each in depth["sets"]:
            assert each["pck"] == pytest.approx(measured(each["layers"], "car", 0.4)[0], abs=1e-11)
            assert each["seconds"] > 0
        ranked = sorted(depth["sets"], key=lambda each: -each["pck"])
        assert depth["beam"] == ranked[:2]
    best = max((each for depth in content["depths"] for each in depth["sets"]), key=lambda e: e["pck"])
    assert content["chosen"] == best
    report = content["report"]
    assert (report["pairs"], report["alphas"]) == (4, [0.05, 0.1, 0.15])
    assert report["own"]["layers"] == [1, 2]
    for each in (report["chosen"], report["own"]):
        np.testing.assert_allclose(each["pck"], measured(each["layers"], "duck", 0.05, 0.1, 0.15))
    assert report["chosen"]["layers"] == best["layers"]
    assert {path.name for path in there.iterdir()} == {"images", "toy.yaml", "toy.safetensors"}


def test_what_it_shows(there: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capfd, *SEARCH, "--log", "log.json", "--cache", "maps")
    assert code == 0
    content = json.loads((there / "log.json").read_text())
    lines = out.splitlines()
    assert lines[0].startswith("1 of 3 layers: 2 sets, ")
    first = content["depths"][0]["beam"][0]
    (layer,) = first["layers"]
    assert lines[1] == f"  {100 * first['pck']:6.2f}  {layer} ({'abcd'[layer]})"
    assert lines[9:11] == ["PCK on the 4 pairs of other objects", "   @0.05   @0.1  @0.15"]
    assert lines[11].endswith(
        f"  chosen: {','.join(map(str, content['chosen']['layers']))} "
        f"({', '.join('abcd'[i] for i in content['chosen']['layers'])})"
    )
    assert lines[12].endswith("  the net's own: 1,2 (b, c)")
    assert lines[13] == "written to log.json"
    assert len([*(there / "maps").iterdir()]) == 7


def test_published_and_bases(there: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ("--bases", "2,0", "--split", "test", "--limit", "1", "--beam", "3")
    for published in ((), ("--published",)):
        code, out, _ = run(capfd, *BASE, *options, *published, "--json")
        assert code == 0
        content = json.loads(out)
        assert (content["settings"]["pairs"], content["settings"]["bases"]) == (1, [2, 0])
        assert "report" not in content
        search = Search(4, (2, 0), beam=3, published=bool(published))
        sets = [[tuple(each["layers"]) for each in depth["sets"]] for depth in content["depths"]]
        beams = [[tuple(each["layers"]) for each in depth["beam"]] for depth in content["depths"]]
        assert sets == [[(2,), (0,)], *map(search.extended, beams[:-1])]


def test_as_many_bases_as_may_come_first(there: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of four blocks the last has no cells."""
    code, out, _ = run(capfd, *BASE, "--split", "test", "--limit", "1", "--depth", "1", "--json")
    assert code == 0
    assert json.loads(out)["settings"]["bases"] == [0, 1, 2]


def test_it_goes_on_after_an_interruption(
    there: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(capfd, *SEARCH, "--log", "whole.json")[0] == 0
    whole = json.loads((there / "whole.json").read_text())
    scored = PCK.scored

    def interrupted(self: PCK, sets: Sequence[Layers], pairs: Any) -> Depth:
        if len(sets[0]) == 3:
            raise KeyboardInterrupt
        return scored(self, sets, pairs)

    monkeypatch.setattr(PCK, "scored", interrupted)
    assert run(capfd, *SEARCH, "--log", "log.json")[0] == 1
    monkeypatch.undo()
    monkeypatch.chdir(there)
    half = json.loads((there / "log.json").read_text())
    assert timeless(half["depths"]) == timeless(whole["depths"][:2])
    evaluated = []

    def noted(self: PCK, sets: Sequence[Layers], pairs: Any) -> Depth:
        evaluated.extend(sets)
        return scored(self, sets, pairs)

    monkeypatch.setattr(PCK, "scored", noted)
    assert run(capfd, *SEARCH, "--log", "log.json")[0] == 0
    assert [len(layers) for layers in evaluated] == [3, 3, 3]
    resumed = json.loads((there / "log.json").read_text())
    assert timeless(resumed) == timeless(whole)
    assert resumed["depths"][:2] == half["depths"]


def test_it_goes_deeper(there: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(capfd, *SEARCH, "--log", "whole.json")[0] == 0
    assert run(capfd, *SEARCH, "--depth", "1", "--log", "log.json")[0] == 0
    assert run(capfd, *SEARCH, "--log", "log.json")[0] == 0
    whole, deeper = (json.loads((there / f"{name}.json").read_text()) for name in ("whole", "log"))
    assert timeless(deeper) == timeless(whole)
    code, _, err = run(capfd, *SEARCH, "--depth", "1", "--log", "log.json")
    assert code == 2
    assert "log.json: the search of this log has depth 3, not 1; name another --log" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--alpha", "0.3"), "alpha 0.4, not 0.3"),
        (("--beam", "3"), "bases [0, 1], not [0, 1, 2]"),
        (("--published",), "published False, not True"),
        (("--limit", "2"), "pairs 6, not 2"),
        (("--choose-on", "duck"), "pairs 6, not 4"),
    ],
)
def test_a_log_of_other_settings(
    there: Path, capfd: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert run(capfd, *SEARCH, "--depth", "1", "--log", "log.json")[0] == 0
    before = (there / "log.json").read_text()
    code, out, err = run(capfd, *SEARCH, "--depth", "1", "--log", "log.json", *options)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: log.json: the search of this log has {message}; name another --log")
    assert (there / "log.json").read_text() == before


def test_a_log_of_another_net(there: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(capfd, *SEARCH, "--depth", "1", "--log", "log.json")[0] == 0
    write_net(there, seed=4)
    code, _, err = run(capfd, *SEARCH, "--depth", "1", "--log", "log.json")
    assert code == 2
    assert "this log has net and weights " in err


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("pck", float("nan"), "not a search's log: a PCK of nan"),
        ("pck", 70.9, "not a search's log: a PCK of 70.9"),
        ("layers", [1, 2, 3], "depth 2 evaluated other sets than this search does"),
    ],
)
def test_an_edited_log(
    there: Path, capfd: pytest.CaptureFixture[str], field: str, value: Any, message: str
) -> None:
    """It is refused before anything is done, and kept."""
    assert run(capfd, *SEARCH, "--depth", "2", "--log", "log.json")[0] == 0
    log = json.loads((there / "log.json").read_text())
    log["depths"][1]["sets"][0][field] = value
    (there / "log.json").write_text(json.dumps(log))
    assert run(capfd, *SEARCH, "--log", "log.json") == (2, "", f"error: log.json: {message}\n")
    assert json.dumps(json.loads((there / "log.json").read_text())) == json.dumps(log)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"settings": {}}', '{"settings": {}, "depths": [1]}', "[" * 100_000],
    ids=["empty", "a list", "cut", "no depths", "a number", "deep"],
)
def test_no_log(there: Path, capfd: pytest.CaptureFixture[str], text: str) -> None:
    (there / "log.json").write_text(text)
    code, _, err = run(capfd, *SEARCH, "--log", "log.json")
    assert code == 2
    assert err.startswith("error: log.json: not a search's log: ")
    assert (there / "log.json").read_text() == text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--choose-on", "cars"),
            '--choose-on: no pairs of "cars": there are car, duck',
        ),
        (("--choose-on", "car", "--report-on", "car"), "car: layers chosen on these are reported"),
        (("--report-on", "car,duck"), "--report-on: no objects are left to choose on"),
        (("--choose-on", "car", "--bases", "0,x"), '--bases: expected numbers, as 0,1,2,3, got "x"'),
        (("--choose-on", "car", "--alpha", "nan"), "'--alpha': expected a number above 0, got nan"),
        (("--choose-on", "car", "--alpha", "inf"), "'--alpha': expected a number above 0, got inf"),
        (("--choose-on", "car", "--alpha", "0"), "'--alpha': expected a number above 0, got 0.0"),
        (("--choose-on", "car", "--bases", "3"), "block 3 (d) cannot be the first"),
        (("--choose-on", "car", "--bases", "7"), "there is no block 7"),
        (("--choose-on", "car", "--bases", "1,1"), "expected bases, each once, got [1, 1]"),
        ((), 'no split "val"'),
        (("--choose-on", "car", "--length", "bbox"), "pf-willow has no length"),
        (("--choose-on", "car", "--log", "no/log.json"), "--log: no folder no to write to"),
        (("--choose-on", "car", "--log", "toy.yaml"), "--log and --net are one file: toy.yaml"),
        (("--choose-on", "car", "--cache", "toy.yaml/maps"), "toy.yaml"),
    ],
)
def test_messages(
    there: Path, capfd: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    code, out, err = run(capfd, *BASE, *options)
    assert (code, out) == (2, "")
    assert message in err


def test_a_net_without_blocks(there: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capfd, "ucn_demo_hn", *BASE[1:], "--choose-on", "car")
    assert code == 2
    assert "the net has no blocks to choose from: its match_param lists none" in err


def test_pairs_without_key_points(
    there: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = open_pairs("pf-willow:images")[0]
    monkeypatch.setattr(
        "cortado.layers._data.keypoint_pairs.open_pairs", lambda *_, **__: [pair, object()]
    )
    code, _, err = run(capfd, *BASE, "--split", "test")
    assert code == 2
    assert "--data: layers are chosen by PCK; pf-willow:images has no key points to measure" in err


def test_maps_are_made_once(
    there: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(capfd, *SEARCH, "--cache", "maps", "--json")[0] == 0

    def never(*_: object) -> None:
        raise AssertionError("the net ran again")

    monkeypatch.setattr(KeptMaps, "_make", never)
    assert run(capfd, *SEARCH, "--cache", "maps", "--json")[0] == 0
