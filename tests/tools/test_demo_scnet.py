"""The regions' demo: its measures on pairs whose answer is known, and a run that learns nothing."""

import json

import numpy as np
import pytest
import skimage.data
import torch
from click.testing import CliRunner
from cortado.tools import demo_scnet
from cortado.tools.demo_scnet import NETS, RegionPair, by_hog, by_hog_and_votes, by_truth, hog, measure

BOXES = np.array([[0, 10, 10, 49, 59], [0, 60, 20, 119, 79], [0, 20, 60, 99, 89], [0, 5, 5, 100, 95]])


@pytest.fixture
def pair():
    """A photograph and the same 7 pixels further right: the second's regions in another order."""
    photograph = skimage.data.astronaut()[60:160, 120:260]
    moved = np.roll(photograph, 7, axis=1)
    shift = np.array([0, 7, 0, 7, 0])
    order = [2, 0, 3, 1]
    rois1, rois2 = (torch.from_numpy(x).float() for x in (BOXES, (BOXES + shift)[order]))
    truth = torch.cat([rois1[:, 1:] + torch.tensor([7.0, 0, 7, 0]), torch.ones(4, 1)], 1)
    points = torch.tensor([[[30.0, 30, 37, 30, 1], [90, 70, 97, 70, 1]]])
    return RegionPair(photograph, moved, rois1, rois2, truth, points)


@pytest.mark.parametrize("method", [by_truth, by_hog, by_hog_and_votes])
def test_the_same_regions_are_found(pair, method):
    row = measure(method, [pair, pair])
    assert row["pairs"] == 2
    assert row["pcr_area"] == pytest.approx(0.995)  # right from tau = 0.01 on
    assert row["pcr@0.5"] == row["pck@0.05"] == row["miou"][0] == row["miou"][99] == 1
    assert (len(row["pcr"]), len(row["miou"])) == (101, 100)


def test_wrong_matches_are_counted_wrong(pair):
    row = measure(lambda pair: -by_truth(pair), [pair])
    assert row["pcr@0.5"] == 0
    assert row["miou"][0] < 0.5
    assert row["pck@0.05"] < 1


def test_hog_describes_what_lies_in_a_region(pair):
    first, second = hog(pair.image1, pair.rois1), hog(pair.image2, pair.rois2)
    assert torch.equal(first[2], second[0])
    assert not torch.equal(first[1], second[0])


def test_a_run_writes_its_report_weights_and_pictures(tmp_path, monkeypatch, pair):
    monkeypatch.setattr(demo_scnet, "PAIRS", 1)
    monkeypatch.setattr(demo_scnet, "PROPOSALS", 20)
    monkeypatch.setattr(demo_scnet, "stereo", lambda: pair)
    done = CliRunner().invoke(demo_scnet.command, ["--out", str(tmp_path), "--iterations", "1"])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "scnet_report.json").read_text())
    assert report["tests"].keys() == {"held_out", "motorcycle"}
    for rows in report["tests"].values():
        assert rows.keys() == {
            *NETS,
            *(f"{name}_untrained" for name in NETS),
            *("hog", "hog_voted", "best_possible"),
        }
        assert max(row["pcr_area"] for row in rows.values()) == rows["best_possible"]["pcr_area"]
        for name in rows:
            assert name in done.output
    assert {name: report["training"][name]["iterations"] for name in NETS} == dict.fromkeys(NETS, 1)
    pictures = {f"{test}_{name}.png" for test in report["tests"] for name in NETS}
    pictures |= {"scnet_loss.png", *(f"scnet_{test}_pcr.png" for test in report["tests"])}
    weights = {f"{name}.safetensors" for name in NETS}
    assert {path.name for path in tmp_path.iterdir()} == pictures | weights | {"scnet_report.json"}


def test_the_stereo_pair_has_regions_with_true_matches(monkeypatch):
    monkeypatch.setattr(demo_scnet, "STEREO_PROPOSALS", 30)
    pair = demo_scnet.stereo()
    counts = pair.truth[:, 4] == 1
    assert 15 < counts.sum() <= 30
    moved = (pair.truth[:, :4] - pair.rois1[:, 1:])[counts]
    assert (moved[:, 2] < 0).all()
    assert (moved[:, [1, 3]] == 0).all()
    assert pair.points.shape == (1, 2000, 5)
