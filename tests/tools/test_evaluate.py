"""``cortado evaluate``: a small benchmark against loops over its pairs; the real one, where it is."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import skimage.data
import torch
from cortado.layers._data.images import read_image
from cortado.layers._data.keypoint_pairs import KeypointPair, open_pairs
from cortado.layers._data.measured_pairs import open_measured
from cortado.layers.metrics.label_transfer import filled
from cortado.nets import models
from cortado.nets.evaluation import ByNet, Descriptions, evaluate, give_back, identity, spread
from cortado.nets.matching import Matcher
from cortado.nets.net import Net
from cortado.nets.weights import save
from cortado.tools.cli import main
from cortado.tools.matching import METHODS
from cortado.tools.pictures import warped
from hyperpixel_toy import SMALL, write_net
from PIL import Image
from shared import SHARED

GROUPS = {"cup(S)": 3, "spoon": 2, "twins": 2}
ALPHAS = (0.05, 0.1, 0.15)
REAL = SHARED / "data" / "pf_willow" if SHARED else Path("missing")
HPF = SHARED / "data" / "hpf" if SHARED else Path("missing")
WEIGHTS = HPF / "resnet50_caffe_upto_res4f.npz"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="PF-WILLOW is not in the shared folder")
needs_reference = pytest.mark.skipif(
    not (REAL.is_dir() and WEIGHTS.is_file() and (HPF / "reference").is_dir()),
    reason="Hyperpixel Flow's weights and reference pairs, or PF-WILLOW, are not in the shared folder",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A benchmark laid out as PF-WILLOW is, with parts of a photograph, the twins of equal bytes; a
    net and its weights."""
    monkeypatch.chdir(tmp_path)
    coffee, rng = skimage.data.coffee()[::2, ::2], np.random.default_rng(0)
    for group, count in GROUPS.items():
        (tmp_path / "data" / group).mkdir(parents=True)
        for i in range(count):
            step = 0 if group == "twins" else 4 * i
            image = coffee[60 + step : 120 + 2 * step, 60 + step : 140 + step]
            Image.fromarray(image).save(tmp_path / "data" / group / f"{i}.png")
            points = {"pts_coord": rng.uniform(8, 50, (2, 10))}
            scipy.io.savemat(tmp_path / "data" / group / f"{i}.mat", points)
    write_net(tmp_path, 0, "small")
    return tmp_path


DATA = ("--data", "pf-willow:data")
NET = ("small.yaml", "--weights", "small.safetensors", *DATA)


def run(capfd: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of ``cortado evaluate ARGS``."""
    with pytest.raises(SystemExit) as end:
        main(["evaluate", *args])
    out, err = capfd.readouterr()
    return int(end.value.code or 0), out, err


def reported(capfd: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    code, out, err = run(capfd, *args, "--json")
    assert (code, err) == (0, "")
    report: dict[str, Any] = json.loads(out)
    return report


def pck(points: np.ndarray, pair: KeypointPair) -> list[float]:
    """Loops, from the protocol."""
    far = [np.hypot(*(a - b)) for a, b in zip(points, pair.points2, strict=True)]
    return [sum(d <= alpha * pair.length for d in far) / len(far) for alpha in ALPHAS]


def mean_of(records: Sequence[dict[str, Any]], method: str) -> list[float]:
    return np.mean([record[method] for record in records], 0).tolist()


def test_the_figures_are_the_protocols(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report = reported(capfd, *NET, "--baseline", "identity", "--baseline", "nearest")
    matcher = Matcher("small.yaml", "small.safetensors")
    pairs = list(open_pairs("pf-willow:data"))
    assert [record["pair"] for record in report["records"]] == [pair.name for pair in pairs]
    for pair, record in zip(pairs, report["records"], strict=True):
        assert isinstance(pair, KeypointPair)
        images = [read_image(path) for path in (pair.image1, pair.image2)]
        assert record["net"] == pck(matcher.match(*images, pair.points1)[0], pair)
        nearest, _ = matcher.match(*images, pair.points1, nearest=True)
        assert record["nearest"] == pck(nearest, pair)
        size1, size2 = (np.array(image.shape[1::-1]) for image in images)
        assert record["identity"] == pck(pair.points1 * size2 / size1, pair)
        assert record["class"] == pair.image1.parent.name
        assert record["identical"] == (record["class"] == "twins")
    for method, found in report["methods"].items():
        assert found["mean"] == pytest.approx(mean_of(report["records"], method))
        spread = np.std([record[method] for record in report["records"]], 0, ddof=1)
        assert found["standard_error"] == pytest.approx((spread / 10**0.5).tolist())
        assert list(found["classes"]) == sorted(GROUPS)
        for name, mean in found["classes"].items():
            some = [record for record in report["records"] if record["class"] == name]
            assert mean == pytest.approx(mean_of(some, method))
        distinct = [record for record in report["records"] if not record["identical"]]
        assert found["without_identical"]["mean"] == pytest.approx(mean_of(distinct, method))
        assert found["points"] == 100
        assert found["seconds_per_pair"] > 0
    assert report["methods"].keys() == {"net", "nearest", "identity"}
    told = {"net": "small.yaml", "weights": "small.safetensors", "layers": None, "split": None}
    told |= {
        "data": ["pf-willow:data"],
        "length": None,
        "points": None,
        "camera": None,
        "pairs": 10,
        "listed": 10,
        "identical": 2,
    }
    assert {key: report[key] for key in told} == told
    assert report["figures"] == ["PCK@0.05", "PCK@0.1", "PCK@0.15"]
    assert report["images_described"] == 3  # different ones
    assert report["seconds_per_image"] > 0
    assert "torch" in report["versions"]


def test_the_table(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capfd, *NET, "--baseline", "identity", "--alpha", "0.2")
    report = reported(capfd, *NET, "--baseline", "identity", "--alpha", "0.2")
    assert code == 0
    lines = [re.split(" {2,}", line.strip()) for line in out.splitlines()]
    assert lines[1:3] == [["net", "identity"], ["percent", "PCK@0.2", "PCK@0.2"]]
    rows = {name: cells for name, *cells in lines}
    methods = report["methods"].values()
    for name, values in {
        "mean": [each["mean"] for each in methods],
        "standard error": [each["standard_error"] for each in methods],
        "without identical": [each["without_identical"]["mean"] for each in methods],
        "cup(S)": [each["classes"]["cup(S)"] for each in methods],
    }.items():
        assert rows[name] == [f"{100 * value:.2f}" for (value,) in values]
    assert "10 pairs of 10, 2 of identical images\nnet: " in out


def test_identity_needs_no_net(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report = reported(capfd, *DATA, "--baseline", "identity")
    assert report["methods"].keys() == {"identity"}
    assert (report["net"], report["seconds_per_image"]) == (None, None)
    assert report["records"][0]["identity"] == pck(
        identity(pair := open_pairs("pf-willow:data")[0]).points, pair
    )


def test_a_net_of_features(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save(Net("ucn_demo_hn", stages=("deploy",), seed=0), "ucn.safetensors")
    net = ("ucn_demo_hn", "--weights", "ucn.safetensors", *DATA, "--limit", "2")
    report = reported(capfd, *net, "--pictures", "drawn")
    matcher, pair = Matcher("ucn_demo_hn", "ucn.safetensors"), open_pairs("pf-willow:data")[0]
    images = [read_image(path) for path in (pair.image1, pair.image2)]
    assert report["records"][0]["net"] == pck(matcher.match(*images, pair.points1)[0], pair)
    assert sorted(path.name for path in Path("drawn").iterdir()) == [
        "00000_cup(S)_0-1_points.png",
        "00001_cup(S)_2-1_points.png",
    ]
    code, _, err = run(capfd, *net, "--baseline", "nearest")
    assert (code, "this one matches nearest neighbours itself" in err) == (2, True)


def test_other_layers(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base = reported(capfd, *NET)
    assert reported(capfd, *NET, "--layers", "1,0")["records"] == base["records"]
    other = reported(capfd, *NET, "--layers", "1")
    assert other["layers"] == [1]
    assert other["records"] != base["records"]


def test_a_limit_takes_pairs_of_all_classes(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report = reported(capfd, *DATA, "--baseline", "identity", "--limit", "4")
    names = [pair.name for pair in open_pairs("pf-willow:data")]
    assert [record["pair"] for record in report["records"]] == [names[i] for i in (0, 2, 5, 7)]
    assert (report["pairs"], report["listed"]) == (4, 10)
    one = reported(capfd, *DATA, "--baseline", "identity", "--limit", "1")
    assert one["methods"]["identity"]["standard_error"] is None
    assert "nan" in run(capfd, *DATA, "--baseline", "identity", "--limit", "1")[1]
    assert spread(10, 20) == spread(10, None) == list(range(10))


def test_pictures(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capfd, *NET, "--pictures", "some/where", "--limit", "2")
    assert (code, out.endswith("pictures written to some/where\n")) == (0, True)
    names = ["00000_cup(S)_0-1", "00001_cup(S)_2-1"]
    assert sorted(path.name for path in Path("some/where").iterdir()) == [
        f"{name}_{kind}.png" for name in names for kind in ("points", "warped")
    ]
    assert all(np.ptp(read_image(path)) > 100 for path in Path("some/where").iterdir())


def test_an_image_is_warped_by_the_others_flow() -> None:
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    flow = np.zeros((2, 4, 7))
    flow[0], flow[1] = -1, 2
    flow[:, 0, 3] = np.nan
    flow[0, 1, 2] = 0.5
    shown = warped(image, flow)
    assert (shown.shape, shown.dtype) == ((4, 7, 3), np.uint8)
    wanted = np.full((4, 7, 3), 255, np.uint8)
    wanted[:, 1:6] = image[2:]
    wanted[0, 3] = 255
    wanted[1, 2] = np.rint((image[3, 2].astype(float) + image[3, 3]) / 2)
    np.testing.assert_array_equal(shown, wanted)


def test_points_that_no_cell_holds_are_counted(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for path in Path("data/spoon").glob("*.mat"):
        points = np.tile([[20.0], [30.0]], 10) + np.arange(10)
        points[0, :3] = 0  # left of every box
        scipy.io.savemat(path, {"pts_coord": points})
    report = reported(capfd, *NET)
    assert report["methods"]["net"]["lost"] == 6
    spoons = [record for record in report["records"] if record["class"] == "spoon"]
    assert max(max(record["net"]) for record in spoons) <= 0.7
    assert ", 6 of 100 points not found\n" in run(capfd, *NET)[1]


def test_outlines_are_measured_as_outlines(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    images = folder / "caltech" / "101_ObjectCategories" / "cup"
    images.mkdir(parents=True)
    for i, (height, width) in enumerate(((60, 80), (90, 120))):
        Image.fromarray(skimage.data.coffee()[:height, :width]).save(images / f"image_000{i}.jpg")
    square, wide = "10;30;30;10,10;10;30;30", "15;45;45;15,15;15;45;60"
    line = f"cup/image_0000.jpg,cup/image_0001.jpg,1,{square},{wide}"
    (folder / "caltech" / "test_pairs.csv").write_text(f"{line}\n")
    data = ("--data", "caltech-101:caltech")
    report = reported(capfd, *data, "--baseline", "identity")
    found = filled(1.5 * np.array([[10, 10], [30, 10], [30, 30], [10, 30]]), (90, 120))
    truth = filled(np.array([[15.0, 15], [45, 15], [45, 45], [15, 60]]), (90, 120))
    wanted = [(found == truth).mean(), (found & truth).sum() / (found | truth).sum()]
    assert report["figures"] == ["LT-ACC", "IoU"]
    assert report["methods"]["identity"]["mean"] == pytest.approx(wanted)
    Path("half.yaml").write_text(SMALL.replace("similarity: s", "longer_side: 60, similarity: s"))
    refused = run(capfd, *data, "--baseline", "identity", "--curve", "pck.svg")
    assert "--curve is of PCK, which outlines do not have" in refused[2]
    mixed = run(capfd, *data, *DATA, "--baseline", "identity")
    assert "outlines and key points are evaluated apart" in mixed[2]
    half = ("half.yaml", *NET[1:3], *data, "--baseline", "identity", "--pictures", "drawn")
    found = filled(np.array([[7.5, 7.5], [22.5, 7.5], [22.5, 22.5], [7.5, 22.5]]), (45, 60))
    truth = filled(np.array([[7.5, 7.5], [22.5, 7.5], [22.5, 22.5], [7.5, 30]]), (45, 60))
    wanted = [(found == truth).mean(), (found & truth).sum() / (found | truth).sum()]
    assert reported(capfd, *half)["methods"]["identity"]["mean"] == pytest.approx(wanted)


MISTAKES = {
    (*DATA,): "name a NET, or --baseline of those that need none: all but nearest",
    (
        *DATA,
        "--baseline",
        "nearest",
    ): "name a NET, or --baseline of those that need none: all but nearest",
    (*DATA, "--baseline", "identity", "--feature", "conv1"): "--feature goes with a NET",
    (*DATA, "--baseline", "identity", "--layers", "1"): "--layers goes with a NET",
    (*DATA, "--baseline", "identity", "--weights", "small.safetensors"): "--weights goes with a NET",
    ("small.yaml", *DATA): "name the net's weights: a new net's are random",
    (*NET[:-1], "willow:data"): 'unknown data set "willow:data": expected one of caltech-101:DIR, ',
    (*NET[:-1], "pf-willow:no"): 'no folder "no": expected groups such as "car(G)", with images',
    (*NET, "--split", "val"): 'no split "val": expected test',
    (*NET, "--length", "bbox"): "pf-willow has no length",
    (*NET, "--option", "step=2"): "pf-willow has no step",
    (*NET, "--option", "step"): 'expected NAME=VALUE, each name once, got "step"',
    (*NET, "--option", "split=trn"): 'expected NAME=VALUE, each name once, got "split=trn"',
    (*NET, "--layout", "small"): "pf-willow has no layout",
    (*NET, "--alpha", "0.1,x"): "expected numbers above 0 such as 0.05,0.1,0.15, got 0.1,x",
    (*NET, "--alpha", "0"): "expected numbers above 0 such as 0.05,0.1,0.15, got 0",
    (*NET, "--alpha", "inf"): "expected numbers above 0 such as 0.05,0.1,0.15, got inf",
    (*NET, "--pixels", "3,x"): "expected numbers above 0 such as 3,5,10, got 3,x",
    (*NET, "--points", "0"): "expected a number, all or fast, got 0",
    (*NET, "--points", "some"): "expected a number, all or fast, got some",
    (*NET, "--curve", "no/where.svg"): "--curve: no folder no to write to",
    (*NET, "--curve", "pck.txt"): "--curve: expected a file ending in .svg, .png, .pdf, got pck.txt",
    (*NET, "--camera"): "cup(S)/0-1: the camera's motion is not known",
    (*NET, "--feature", "conv3"): '"conv3" is no blob of the net in the stage deploy',
    (*NET, "--limit", "0"): "--limit",
    (*NET, "--layers", "1,one"): "expected numbers such as 2,7,11,12,13, got 1,one",
    (*NET, "--layers", "2"): "there is no block 2: expected some of 0 conv1, 1 conv2",
    (*NET, "--device", "gpu"): 'no device "gpu"',
    (*NET, "--pictures", "small.yaml/x"): "--pictures: small.yaml/x: Not a directory",
    ("plain.yaml", *NET[1:]): "matching needs a match_param",
    ("unlike.yaml", *NET[1:], "--baseline", "nearest"): 'nearest neighbours need the name of a "simi',
    ("small.yaml", "--weights", "other.pth", *DATA): "the weights do not fill the net",
    ("small.yaml", "--weights", "data/spoon/0.png", *DATA): "0.png: not a Caffe model",
    ("nowhere", *NET[1:]): 'no file "nowhere" here, and no spec of that name',
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_mistakes(folder: Path, capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    Path("plain.yaml").write_text(SMALL.split("match_param")[0])
    Path("unlike.yaml").write_text(SMALL.replace("similarity: similarity, ", ""))
    torch.save({"layers.other.weight": torch.ones(2)}, "other.pth")
    before = set(folder.rglob("*"))
    code, out, err = run(capfd, *arguments)
    assert (code, out) == (2, "")
    assert MISTAKES[arguments] in err
    assert set(folder.rglob("*")) == before


def test_damaged_data(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("data/twins/1.png").write_bytes(b"none")
    code, out, err = run(capfd, *NET, "--pictures", "drawn")
    assert (code, out) == (2, "")
    assert 'image "data/twins/1.png"' in err
    Path("data/twins/1.mat").write_bytes(b"none")
    code, _, err = run(capfd, *NET, "--pictures", "others")
    assert (code, "data/twins/1.mat" in err) == (2, True)
    assert not Path("others").exists()


def test_images_are_described_once_while_there_is_room(folder: Path) -> None:
    matcher = Matcher("small.yaml", "small.safetensors")
    pairs = list(open_pairs("pf-willow:data"))
    counts = []
    for room in (1 << 30, 200_000, 0):
        describe = Descriptions(matcher, room)
        found = [each["net"] for each in evaluate(pairs, {"net": ByNet(describe)}, ALPHAS)]
        counts.append(describe.count)
        figures = [each.figures.tolist() for each in found]
        assert figures == [pck(each.points, each.pair) for each in found]
        assert [each.pair for each in found] == pairs
    different = {path.read_bytes() for path in folder.glob("data/*/*.png")}
    assert counts[0] == len(different) == 3
    assert 3 < counts[1] < counts[2] == 2 * len(pairs)


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_memory_is_given_back_where_the_system_can(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    asked = []

    def refuse(name: None) -> None:
        asked.append(name)
        raise error

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    give_back()
    assert asked == [None]


# The real benchmark.


@needs_real
def test_the_identity_is_the_papers_row(capfd: pytest.CaptureFixture[str]) -> None:
    report = reported(capfd, "--data", f"pf-willow:{REAL}", "--baseline", "identity")
    means = [round(100 * mean, 2) for mean in report["methods"]["identity"]["mean"]]
    assert means == [12.20, 27.04, 41.69]
    assert (report["pairs"], report["identical"]) == (900, 0)


@needs_reference
def test_the_published_key_points() -> None:
    """The 12 reference pairs, of which the published functions made key points in float32."""
    pairs = {(p.image1.stem, p.image2.stem): p for p in open_pairs(f"pf-willow:{REAL}")}
    describe = Descriptions(Matcher("hpf_resnet50", WEIGHTS))
    method = ByNet(describe)
    for path in sorted((HPF / "reference").glob("pair*.npz")):
        with np.load(path) as file:
            names = tuple(Path(str(file[name])).stem for name in ("src", "trg"))
            given, predicted, figures = file["kps_src"], file["kps_pred"], file["pck"]
        pair = pairs[names]
        (found,) = evaluate([pair], {"net": method}, ALPHAS)
        np.testing.assert_allclose(pair.points1, given.T, atol=1e-4)
        np.testing.assert_allclose(found["net"].points, predicted.T, rtol=0, atol=1e-3)
        np.testing.assert_allclose(found["net"].figures, figures, atol=1e-6)


# Dense truth: pixels, descriptors, a net's blobs, the camera's motion.


CALIBRATION = """\
cam0=[120 0 60; 0 120 40; 0 0 1]
cam1=[120 0 60; 0 120 40; 0 0 1]
doffs=0
baseline=100
width={width}
height={height}
"""


def write_scene(folder: Path, seed: int, calibrated: bool = True) -> None:
    """A stereo pair of a photograph: a square that moves by 16 pixels before what moves by 8."""
    height, width = 80, 120
    photograph = skimage.data.astronaut()[seed : seed + height, 40 * seed : 40 * seed + width + 8]
    left, right = photograph[:, :width].copy(), photograph[:, 8:].copy()
    disparity = np.full((height, width), 8, np.float32)
    disparity[20:60, 50:90] = 16
    right[20:60, 34:74] = left[20:60, 50:90]
    disparity[:, 118:] = np.inf
    folder.mkdir(parents=True)
    Image.fromarray(left).save(folder / "im0.png")
    Image.fromarray(right).save(folder / "im1.png")
    head = f"Pf\n{width} {height}\n-1.0\n".encode()
    (folder / "disp0.pfm").write_bytes(head + disparity[::-1].astype("<f4").tobytes())
    if calibrated:
        (folder / "calib.txt").write_text(CALIBRATION.format(width=width, height=height))


@pytest.fixture
def scenes(folder: Path) -> Path:
    for seed, name in enumerate(("attic", "barn", "cellar")):
        write_scene(folder / "stereo" / name, seed)
    save(Net("ucn_demo_hn", stages=("deploy",), seed=0), "ucn.safetensors")
    return folder


STEREO = ("--data", "middlebury:stereo")
UCN = ("ucn_demo_hn", "--weights", "ucn.safetensors", *STEREO)


def best_of(query: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """The nearest candidate of each query, by every distance."""
    every = ((query[:, None].astype(float) - candidates[None].astype(float)) ** 2).sum(2)
    return every.argmin(1)


def every_4th(image: np.ndarray) -> np.ndarray:
    return np.array([(x, y) for y in range(0, len(image), 4) for x in range(0, image.shape[1], 4)])


def share(points: np.ndarray, pair: KeypointPair, limits: Sequence[float]) -> list[float]:
    far = [np.hypot(*(a - b)) for a, b in zip(points, pair.points2, strict=True)]
    return [sum(d <= limit for d in far) / len(far) for limit in limits]


def test_descriptors_are_scored_in_pixels(scenes: Path, capfd: pytest.CaptureFixture[str]) -> None:
    args = (*STEREO, "--points", "150", "--baseline", "daisy", "--baseline", "sift", "--seed", "3")
    report = reported(capfd, *args)
    assert report["figures"] == ["PCK@3px", "PCK@5px", "PCK@10px"]
    assert [record["pair"] for record in report["records"]] == ["attic", "barn", "cellar"]
    pairs = open_measured(["middlebury:stereo"], points=150, seed=3)
    for pair, record in zip(pairs, report["records"], strict=True):
        assert isinstance(pair, KeypointPair)
        assert len(pair.points1) == 150
        first, second = (read_image(path) for path in (pair.image1, pair.image2))
        candidates = every_4th(second)
        for name in ("daisy", "sift"):
            describe = METHODS[name]
            best = best_of(describe(first, pair.points1), describe(second, candidates.astype(float)))
            assert record[name] == share(candidates[best], pair, (3, 5, 10))
            assert record[name][0] > 0.5
    assert reported(capfd, *args)["records"] == report["records"]
    again = reported(capfd, *args[:-1], "4")["records"]
    assert again != report["records"]


def test_differences_are_paired(scenes: Path, capfd: pytest.CaptureFixture[str]) -> None:
    args = (*STEREO, "--points", "100", "--baseline", "daisy", "--baseline", "identity")
    report = reported(capfd, *args, "--pixels", "2,6.5")
    assert report["figures"] == ["PCK@2px", "PCK@6.5px"]
    each = np.array([np.subtract(r["identity"], r["daisy"]) for r in report["records"]])
    (found,) = report["differences"].values()
    error = each.std(0, ddof=1) / 3**0.5
    assert found["mean"] == pytest.approx(each.mean(0).tolist())
    assert found["standard_error"] == pytest.approx(error.tolist())
    assert found["counts"] == (np.abs(each.mean(0)) > 2 * error).tolist() == [True, True]
    code, out, _ = run(capfd, *args, "--pixels", "2,6.5", "--baseline", "sift")
    assert code == 0
    tables = re.findall(r"PCK@(\S+)px, percent +daisy +identity +sift", out)
    assert tables == ["2", "6.5"]
    less = re.findall(r"less daisy +(\S+)( \*)?", out)
    assert less == [(f"{100 * mean:+.2f}", " *") for mean in found["mean"]]
    alone = reported(capfd, *args, "--limit", "1")["differences"]["identity"]
    assert (alone["standard_error"], alone["counts"]) == (None, [False] * 3)


def test_a_net_that_comes_with_cortado(scenes: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Has its weights, unless others are given."""
    options = (*STEREO, "--points", "60")
    report = reported(capfd, "ucn_hn", *options)
    weights = str(models.weights("ucn_hn"))
    assert (report["net"], report["weights"]) == ("ucn_hn", weights)
    given = reported(capfd, "ucn_hn", "--weights", weights, *options)
    assert given["records"] == report["records"]
    save(Net("ucn_hn", stages=("deploy",), seed=0), "new.safetensors")
    other = reported(capfd, "ucn_hn", "--weights", "new.safetensors", *options)
    assert other["weights"] == "new.safetensors"
    assert other["records"] != report["records"]
    code, _, err = run(capfd, "ucn_demo_hn", *options)
    assert (code, "name the net's weights: a new net's are random" in err) == (2, True)


def test_blobs_of_a_net(scenes: Path, capfd: pytest.CaptureFixture[str]) -> None:
    args = (*UCN, "--points", "60", "--feature", "conv2", "--feature", "feature1")
    report = reported(capfd, *args)
    assert list(report["methods"]) == ["conv2", "feature1"]
    pairs = open_measured(["middlebury:stereo"], points=60)
    for name in ("conv2", "feature1"):
        matcher = Matcher("ucn_demo_hn", "ucn.safetensors", feature=name, step=4)
        for pair, record in zip(pairs, report["records"], strict=True):
            images = (read_image(path) for path in (pair.image1, pair.image2))
            points, _ = matcher.match(*images, pair.points1)
            assert (points % 4 == 0).all()
            assert record[name] == share(points, pair, (3, 5, 10))
    own = reported(capfd, *UCN, "--points", "60")
    assert [r["net"] for r in own["records"]] == [r["feature1"] for r in report["records"]]


def test_corners_alone(scenes: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report = reported(capfd, *STEREO, "--points", "fast", "--baseline", "identity")
    pairs = [*open_measured(["middlebury:stereo"], points="fast")]
    assert report["methods"]["identity"]["points"] == sum(len(pair.points1) for pair in pairs) > 30
    every = reported(capfd, *STEREO, "--points", "all", "--baseline", "identity")
    pairs = [*open_pairs("middlebury:stereo")]
    assert every["methods"]["identity"]["points"] == sum(len(pair.points1) for pair in pairs) > 15000
    assert every["points"] is None


def test_a_share_of_the_image(scenes: Path, capfd: pytest.CaptureFixture[str]) -> None:
    args = (*STEREO, "--points", "50", "--baseline", "identity", "--alpha", "0.07,0.2")
    assert "--alpha is a share of --length, and here it is 1 pixel" in run(capfd, *args)[2]
    for length, unit in (("img", 120), ("diagonal", (80**2 + 120**2) ** 0.5)):
        report = reported(capfd, *args, "--length", length)
        assert report["figures"] == ["PCK@0.07", "PCK@0.2"]
        for pair, record in zip(
            open_measured(["middlebury:stereo"], points=50), report["records"], strict=True
        ):
            assert record["identity"] == share(pair.points1, pair, (0.07 * unit, 0.2 * unit))
    both = reported(capfd, *args, "--length", "img", "--pixels", "9")
    assert both["figures"] == ["PCK@9px", "PCK@0.07", "PCK@0.2"]
    assert "middlebury has no length" in run(capfd, *args, "--length", "bbox")[2]


def test_curves(scenes: Path, capfd: pytest.CaptureFixture[str]) -> None:
    args = (*STEREO, "--points", "80", "--baseline", "identity", "--baseline", "daisy")
    report = reported(capfd, *args, "--curve", "pck.svg", "--pixels", "8,16")
    curve = report["curve"]
    assert (curve["unit"], len(curve["thresholds"])) == ("pixels", 61)
    assert curve["thresholds"][16] == 8
    for name, values in curve["methods"].items():
        assert values == sorted(values)
        mean = report["methods"][name]["mean"]
        assert [values[16], values[32]] == pytest.approx(mean)
    assert "identity" in Path("pck.svg").read_text()
    code, out, _ = run(capfd, *NET, "--curve", "pck.png")
    assert (code, "curves written to pck.png" in out) == (0, True)
    assert read_image("pck.png").shape[2] == 3


def test_the_cameras_motion(scenes: Path, capfd: pytest.CaptureFixture[str]) -> None:
    args = (*STEREO, "--points", "500", "--baseline", "daisy", "--baseline", "identity", "--camera")
    report = reported(capfd, *args)
    camera = report["camera"]
    assert list(camera) == ["daisy", "identity", "truth"]
    assert max(camera["truth"][f"{what}_mean"] for what in ("rotation", "translation")) < 0.1
    assert camera["truth"]["failed"] == 0
    assert camera["daisy"]["rotation_median"] < 5  # of 120 x 80 pixels
    assert camera["identity"]["rotation_mean"] is None  # by which nothing moves
    assert camera["identity"]["failed"] == 3
    assert reported(capfd, *args)["camera"] == camera
    angles = [record["camera"]["daisy"][0] for record in report["records"]]
    assert camera["daisy"]["rotation_mean"] == pytest.approx(np.mean(angles))
    without = reported(capfd, *args[:-1])
    assert [record["daisy"] for record in without["records"]] == [r["daisy"] for r in report["records"]]
    assert without["camera"] is None
    corners = reported(capfd, *STEREO, "--points", "fast", *args[4:])["camera"]
    assert corners["daisy"] != camera["daisy"]
    out = run(capfd, *args)[1]
    assert re.search(r"truth +0\.0\d\d +0\.0\d\d +0\.0\d\d +0\.0\d\d +0 *\n", out)
    (scenes / "stereo" / "barn" / "calib.txt").unlink()
    code, out, err = run(capfd, *args)
    assert (code, out) == (2, "")
    assert "barn: the camera's motion is not known" in err


def test_data_sets_that_are_measured_apart(scenes: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capfd, *DATA, *STEREO, "--baseline", "identity")
    assert (code, "data sets measured in pixels, and others, are evaluated apart" in err) == (2, True)
    both = reported(capfd, *STEREO, "--data", "skimage:motorcycle", "--baseline", "identity")
    assert both["pairs"] == 4
    code, _, err = run(capfd, *STEREO, *STEREO, "--baseline", "identity")
    assert (code, "a data set is named twice: middlebury:stereo" in err) == (2, True)


def test_pairs_without_points_are_left_out(scenes: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("im0", "im1"):
        Image.new("RGB", (120, 80)).save(scenes / "stereo" / "barn" / f"{name}.png")
    args = (*STEREO, "--points", "fast", "--baseline", "identity")
    report = reported(capfd, *args)
    assert (report["pairs"], report["left_out"]) == (2, 1)
    assert "1 pairs left out, in which no known match is" in run(capfd, *args)[1]
    for scene in ("attic", "cellar"):
        shutil.copy(scenes / "stereo" / "barn" / "im0.png", scenes / "stereo" / scene)
    code, out, err = run(capfd, *args)
    assert (code, out) == (2, "")
    assert "expected pairs with points whose match is known, found none" in err


def test_without_opencv(
    scenes: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    for options in (("daisy", "--camera"), ("beblid",)):
        code, out, err = run(capfd, *STEREO, "--baseline", *options)
        assert (code, out) == (2, "")
        assert re.search(r"^error: .* needs OpenCV.*: pip install cortado\[opencv\]$", err, re.M)
