"""The demos of UCN: their measures where the answer is known, and short runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from cortado.layers.data.stereo import StereoPair
from cortado.nets import models
from cortado.nets.neighbours import Described
from cortado.tools import demo, demo_pair, demo_train
from cortado.tools.demo_pair import make_tests, measure, nearest, score
from cortado.tools.opencv import NoOpenCV
from skimage.io import imread


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """One test, an image and itself 8 pixels further left, in place of the demos' own."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (20, 30, 3)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
    pair = StereoPair(image[:, :-8], image[:, 8:], np.zeros((0, 4)))
    x, y = np.meshgrid(np.arange(24, 96, 6), np.arange(24, 60, 6))
    points = np.stack([x.ravel(), y.ravel()], 1)
    tests = {"moved": (pair, points, points - [8, 0])}
    monkeypatch.setattr(demo_pair, "make_tests", lambda: tests)
    return tests


class Pixels:
    """Describes a point by where it is in an image whose red and green say so."""

    measure = "distance"

    def describe(self, image: np.ndarray) -> np.ndarray:
        return image

    def at(self, image: np.ndarray, points: np.ndarray, side: int = 0) -> torch.Tensor:
        x, y = np.rint(points).astype(int).T
        return torch.from_numpy(image[y, x, :2].astype(np.float32))

    def candidates(self, image: np.ndarray, side: int = 1) -> Described:
        y, x = np.indices(image.shape[:2])
        points = np.stack([x.ravel(), y.ravel()], 1).astype(float)
        return Described(torch.from_numpy(points), self.at(image, points))

    def spacing(self, image: np.ndarray) -> float:
        return 1


def test_the_tests_are_the_same_points() -> None:
    tests = make_tests()
    assert [*tests] == ["stereo", "rot15", "rot40"]
    for pair, points, truth in tests.values():
        assert points.shape == truth.shape == (4000, 2)
        np.testing.assert_array_equal(points, tests["stereo"][1])
        assert ((truth >= 0) & (truth <= [pair.right.shape[1] - 1, pair.right.shape[0] - 1])).all()
    moved = points - tests["stereo"][2]
    assert (moved[:, 1] == 0).all()
    assert (moved[:, 0] > 0).all()
    turned = tests["rot40"][2]
    spread = np.linalg.lstsq(np.c_[tests["stereo"][2], np.ones(4000)], turned)[0][:2]
    angle = np.degrees(np.arctan2(spread[0, 1] - spread[1, 0], np.trace(spread)))
    assert abs(abs(angle) - 40) < 3


def test_measures(tmp_path: Path) -> None:
    """Of points known to go 2, 4 and 20 pixels wrong, and of one that has no feature."""
    y, x = np.indices((40, 50))
    image = np.stack([x + 1, y + 1, 0 * x], 2).astype(np.uint8)
    image[0, 0] = 0
    points = np.array([[10, 20], [20, 20], [30, 20], [40, 20], [0, 0]])
    truth = points + np.array([[0, 0], [2, 0], [0, 4], [-12, 16], [0, 0]])
    pair = StereoPair(image, image, np.zeros((0, 4)))
    tests = {"one": (pair, points, truth), "two": (pair, points, points)}
    found = measure({"pixels": Pixels()}, tests, tmp_path, ["pixels"])
    assert found["one"]["pixels"].pop("seconds") >= 0
    assert found["one"] == {"pixels": {"pck": {"3": 0.4, "5": 0.6, "10": 0.6}, "queries": 5}}
    assert found["two"]["pixels"]["pck"] == {"3": 0.8, "5": 0.8, "10": 0.8}
    assert {path.name for path in tmp_path.iterdir()} == {"one_pixels.png", "two_pixels.png"}
    query = Pixels().at(image, points)
    query[1] = torch.nan
    np.testing.assert_array_equal(nearest(query, Pixels(), image)[:2], [[10, 20], [np.nan, np.nan]])
    assert score(np.array([3, 3.1, np.nan, 10]))["pck"] == {"3": 0.25, "5": 0.5, "10": 0.75}


def test_the_demo(small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = CliRunner().invoke(demo.command, ["--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "out/report.json").read_text())["tests"]["moved"]
    names, described = [*rows][:-4], [*rows][-4:]
    assert names[0] == models.BEST
    assert sorted(names) == models.names()
    assert described == ["daisy", "sift", "sift-oriented", "beblid-oriented"]
    assert rows["daisy"]["pck"]["3"] > 0.9
    for name, row in rows.items():
        assert name in done.output
        assert row["queries"] == 72
    picture = f"moved_{models.BEST}.png"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", picture}
    assert imread(tmp_path / "out" / picture).shape[1] >= 800
    assert picture in done.output

    def none(*_: object, **__: object) -> None:
        raise NoOpenCV("BEBLID needs OpenCV")

    monkeypatch.setattr("cortado.tools.opencv.opencv", none)
    done = CliRunner().invoke(demo.command, ["--out", str(tmp_path / "out")])
    assert (done.exit_code, "left out: BEBLID needs OpenCV" in done.output) == (0, True)
    assert "beblid-oriented" not in done.output


def test_the_training_demo(small: dict[str, Any], tmp_path: Path) -> None:
    done = CliRunner().invoke(demo_train.command, ["--out", str(tmp_path), "--iterations", "1"])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "train_report.json").read_text())
    trained = ["ucn_demo_hn", "ucn_demo_hn_st"]
    untrained = [f"{name}_untrained" for name in trained]
    assert [*report["tests"]["moved"]] == [*trained, *untrained, "daisy", "sift", "sift-oriented"]
    assert [report["training"][name]["iterations"] for name in trained] == [1, 1]
    assert {path.name for path in tmp_path.iterdir()} == {
        *("train_report.json", "loss.png"),
        *(f"{name}.safetensors" for name in (*trained, *untrained)),
        *(f"moved_{name}.png" for name in trained),
    }
    assert "ucn_demo_hn: 1 iterations in" in done.output
