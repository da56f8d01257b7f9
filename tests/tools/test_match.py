"""``cortado match`` by descriptors and by the nets that come with cortado, its tests of matches and its
files; by a net of one's own see test_cli.py."""

from __future__ import annotations

import csv
import json
import re
import sqlite3
from pathlib import Path

import cortado
import h5py
import numpy as np
import pytest
import skimage.data
from cortado.nets import models
from cortado.nets.net import Net
from cortado.nets.weights import save
from cortado.tools.cli import main
from skimage.io import imread, imsave

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    image = skimage.data.coffee()[80:200, 100:260]
    imsave("a.png", image)
    imsave("b.png", image[4:, 8:], check_contrast=False)
    return tmp_path


def run(capfd: Capture, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of ``cortado match ARGUMENTS``."""
    with pytest.raises(SystemExit) as end:
        main(["match", *arguments])
    out, err = capfd.readouterr()
    return int(end.value.code or 0), out, err


def without_seconds(out: str) -> str:
    return re.sub(r" in \d+\.\d s", "", out)


def read(path: str) -> tuple[list[str], np.ndarray]:
    with open(path, newline="") as file:
        head, *rows = csv.reader(file)
    return head, np.array(rows, float).reshape(-1, 5)


def test_two_images_are_enough(folder: Path, capfd: Capture) -> None:
    """The best net's mutual matches, in a table and a picture."""
    code, out, _ = run(capfd, "a.png", "b.png")
    head, rows = read("matches.csv")
    assert code == 0
    assert without_seconds(out) == (
        f"{len(rows)} mutual matches by {models.BEST}\n"
        "written to matches.csv\npicture written to matches.png\n"
    )
    assert head == ["x1", "y1", "x2", "y2", "distance"]
    wanted = cortado.match("a.png", "b.png", net=cortado.pretrained(), mutual=True)
    np.testing.assert_allclose(rows[:, :4], wanted.rows[:, :4], rtol=1e-5)
    np.testing.assert_allclose(rows[:, 4], wanted.measured, atol=1e-4)
    moved = rows[:, :2] - rows[:, 2:4]
    assert len(rows) > 500
    assert (np.abs(moved - [8, 4]).max(1) <= 4).mean() > 0.8
    assert imread("matches.png").shape[1] >= 800


def test_what_is_asked_for_is_all_that_is_written(folder: Path, capfd: Capture) -> None:
    before = {path.name for path in folder.iterdir()}
    code, out, _ = run(capfd, "a.png", "b.png", "--plot", "p.png", "--no-mutual")
    every = len(cortado.match("a.png", "b.png"))
    said = f"{every} matches by {models.BEST}\npicture written to p.png\n"
    assert (code, without_seconds(out)) == (0, said)
    assert {path.name for path in folder.iterdir()} == before | {"p.png"}


@pytest.mark.parametrize("by", [(), ("--net", "ucn_hn"), ("--method", "daisy")])
@pytest.mark.parametrize("where", [(), ("--out", "matches.csv"), ("--json",)])
def test_what_is_kept_is_the_same_wherever_it_is_written(
    folder: Path, capfd: Capture, by: tuple[str, ...], where: tuple[str, ...]
) -> None:
    """Mutual matches, unless the points are one's own."""
    arguments = ("a.png", "b.png", *by, *where)
    given = {"method" if "daisy" in by else "net": by[1]} if by else {}
    wanted = cortado.match("a.png", "b.png", **given, mutual=True)
    assert run(capfd, *arguments)[0] == 0
    np.testing.assert_allclose(read("matches.csv")[1][:, :4], wanted.rows[:, :4], rtol=1e-5)
    Path("p.csv").write_text("x1,y1\n0,0\n60.5,50\n80,40\n")
    code, *_ = run(capfd, *arguments, "--points", "p.csv")
    own = read("matches.csv")[1][:, :2].tolist()
    assert (code, own) == (0, [[0, 0], [60.5, 50], [80, 40]])
    kept = cortado.match("a.png", "b.png", **given, points=own, mutual=True).points1.tolist()
    code, *_ = run(capfd, *arguments, "--points", "p.csv", "--mutual")
    assert (code, read("matches.csv")[1][:, :2].tolist()) == (0, kept)


def test_a_large_image_is_made_smaller(folder: Path, capfd: Capture) -> None:
    """As the net's match_param says; what is written is in the pixels of the images as they are."""
    text = models.specs.path("ucn_hn").read_text().replace("longer_side: 1280", "longer_side: 80")
    Path("small.yaml").write_text(text)
    weights = str(models.weights("ucn_hn"))
    arguments = ("--net", "small.yaml", "--weights", weights, "--out", "m.csv", "--plot", "p.png")
    code, *_ = run(capfd, "a.png", "b.png", *arguments)
    wanted = cortado.match("a.png", "b.png", net="small.yaml", weights=weights, mutual=True)
    assert code == 0
    np.testing.assert_allclose(read("m.csv")[1][:, :4], wanted.rows[:, :4], rtol=1e-5)
    assert 100 < len(wanted) < 600
    assert wanted.points1.max(0).tolist() > [140, 100]
    assert imread("p.png").shape[1] >= 800


def test_what_is_too_small(folder: Path, capfd: Capture) -> None:
    """Is named, with what to do about it."""
    imsave("s.png", np.full((3, 5, 3), 99, np.uint8), check_contrast=False)
    imsave("n.png", np.full((40, 40, 3), 99, np.uint8), check_contrast=False)
    code, _, err = run(capfd, "a.png", "n.png", "--step", "60", "--out", "m.csv")
    assert (code, "n.png: no candidate lies in it: enlarge it, or make the" in err) == (2, True)
    said = "s.png: the net takes no image of 5 x 3 pixels (no window of 3 x 3 fits bottom"
    for images in (("s.png", "b.png"), ("a.png", "s.png")):
        code, _, err = run(capfd, *images, "--out", "m.csv")
        assert (code, said in err, "enlarge it" in err) == (2, True, True), err


def test_files_that_are_read_are_not_written_over(folder: Path, capfd: Capture) -> None:
    """Nor by default; others of those names are."""
    Path("b.png").rename("matches.png")
    code, _, err = run(capfd, "a.png", "matches.png")
    assert (code, "matches.png is a file that is read: it would be written over" in err) == (2, True)
    Path("matches.csv").write_text("x1,y1\n1,2\n")
    code, _, err = run(capfd, "a.png", "a.png", "--points", "matches.csv")
    assert (code, "matches.csv is a file that is read: it would be written over" in err) == (2, True)
    assert run(capfd, "a.png", "matches.png", "--number", "5", "--plot", "p.png")[0] == 0
    assert run(capfd, "a.png", "a.png", "--number", "5", "--out", "matches.csv")[0] == 0
    assert len(read("matches.csv")[1]) == 5


@pytest.mark.parametrize("name", models.names())
def test_a_net_that_comes_with_cortado_has_its_weights(folder: Path, capfd: Capture, name: str) -> None:
    code, out, _ = run(capfd, "a.png", "b.png", "--net", name, "--step", "5", "--out", "m.csv")
    wanted = cortado.match("a.png", "b.png", net=name, step=5, mutual=True)
    assert (code, without_seconds(out)) == (
        0,
        f"{len(wanted)} mutual matches by {name}\nwritten to m.csv\n",
    )
    np.testing.assert_allclose(read("m.csv")[1][:, :4], wanted.rows[:, :4], rtol=1e-5)
    own = Path(f"{name}.yaml")  # of the same name, and with weights of its own
    own.write_text(models.specs.path("ucn_demo_hn").read_text())
    code, _, err = run(capfd, "a.png", "b.png", "--net", own.name, "--out", "m.csv")
    assert (code, "name the net's weights: a new net's are random" in err) == (2, True)


def test_by_descriptors(folder: Path, capfd: Capture) -> None:
    code, out, _ = run(capfd, "a.png", "b.png", "--method", "daisy", "--no-mutual", "--out", "m.csv")
    said = "1200 matches by daisy\nwritten to m.csv\n"
    assert (code, without_seconds(out)) == (0, said)
    head, rows = read("m.csv")
    assert head == ["x1", "y1", "x2", "y2", "distance"]
    wanted = cortado.match("a.png", "b.png", method="daisy")
    np.testing.assert_allclose(rows, np.column_stack([wanted.rows[:, :4], wanted.measured]), rtol=1e-5)
    moved = rows[:, :2] - rows[:, 2:4]
    assert (np.abs(moved - [8, 4]).max(1) == 0).mean() > 0.8


def test_the_options_of_a_match(folder: Path, capfd: Capture) -> None:
    options = ["--method", "sift", "--ratio", "0.9", "--number", "50", "--step", "2"]
    code, out, _ = run(capfd, "a.png", "b.png", *options, "--points", "fast", "--out", "m.csv")
    said = "50 mutual matches by sift\nwritten to m.csv\n"
    assert (code, without_seconds(out)) == (0, said)
    given = {"mutual": True, "ratio": 0.9, "number": 50, "points": "fast", "step": 2}
    wanted = cortado.match("a.png", "b.png", method="sift", **given)
    np.testing.assert_allclose(read("m.csv")[1][:, :4], wanted.rows[:, :4], rtol=1e-5)
    Path("p.csv").write_text("x1,y1\n60.5,50\n80,40\n")
    code, out, _ = run(capfd, "a.png", "b.png", "--points", "p.csv", "--out", "m.csv", "--json")
    report = json.loads(out)
    assert 0 < report.pop("seconds") < 60
    counts = {"matches": 2, "mutual": False, "lost": 0}
    assert report == {"by": models.BEST, **counts, "out": "m.csv", "plot": None}
    assert read("m.csv")[1][:, :2].tolist() == [[60.5, 50], [80, 40]]


def test_a_net_by_another_of_its_maps(folder: Path, capfd: Capture) -> None:
    save(Net("ucn_demo_hn", stages=("deploy",), seed=1), "w.npz.safetensors")
    net = ("--net", "ucn_demo_hn", "--weights", "w.npz.safetensors")
    by = (*net, "--feature", "conv1", "--step", "5", "--no-mutual")
    assert run(capfd, "a.png", "b.png", *by, "--out", "m.csv")[0] == 0
    given = {"weights": "w.npz.safetensors", "feature": "conv1", "step": 5}
    wanted = cortado.match("a.png", "b.png", net="ucn_demo_hn", **given)
    np.testing.assert_allclose(read("m.csv")[1][:, :4], wanted.rows[:, :4], rtol=1e-5)
    assert (wanted.rows[:, :4] % 5 == 0).all()


def test_a_file_of_each_kind(folder: Path, capfd: Capture) -> None:
    names = ["m.csv", "m.db", "m.txt", "m.h5", "m.png", "M.JPG"]
    outs = [word for name in names for word in ("--out", name)]
    asked = ("--method", "daisy", "--number", "30")
    code, out, _ = run(capfd, "a.png", "b.png", *asked, *outs, "--plot", "p.png")
    assert code == 0
    written = f"written to {', '.join(names)}\npicture written to p.png\n"
    assert without_seconds(out) == f"30 mutual matches by daisy\n{written}"
    assert len(read("m.csv")[1]) == 30
    database = sqlite3.connect("m.db")
    assert database.execute("SELECT name FROM images").fetchall() == [("a.png",), ("b.png",)]
    assert database.execute("SELECT rows FROM matches").fetchall() == [(30,)]
    database.close()
    head, *lines = Path("m.txt").read_text().splitlines()
    assert (head, len(lines)) == ("a.png b.png", 31)
    with h5py.File("m.h5") as file, h5py.File("m-features.h5") as features:
        found = file["a.png/b.png/matches0"]
        assert (len(found), (found[()] >= 0).sum()) == (30, 30)
        assert len(features["a.png/keypoints"]) == 30
    assert imread("m.png").shape == imread("p.png").shape
    code, out, _ = run(capfd, "a.png", "b.png", *asked, *outs[:4], "--json")
    assert json.loads(out)["out"] == ["m.csv", "m.db"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "m.csv", "--out", "m.csv"), "--out: m.csv is written twice"),
        (("--out", "m.png", "--plot", "m.png"), "--plot: m.png is written twice"),
        (("--out", "m.h5", "--out", "m-features.h5"), "--out: m-features.h5 is written twice"),
        (("--out", "m.json"), "--out: m.json: expected a file ending in .csv, .db, .txt, .h5, .png"),
        (("--out", "b.png"), "b.png is a file that is read: it would be written over"),
        (("--out", "no/m.db"), "--out: no folder no to write to"),
        (
            ("--out", "m.csv", "--points", "m.csv"),
            "m.csv is a file that is read: it would be written over",
        ),
        (("--out", "m.csv", "--points", "none.csv"), "none.csv: cannot read the points: No such file"),
        (("--out", "m.csv", "--weights", "a.png"), "--weights, --feature and --layers go with a --net"),
        (("--out", "m.csv", "--feature", "conv"), "--weights, --feature and --layers go with a --net"),
        (
            ("--out", "m.csv", "--net", "ucn_demo_hn"),
            "name the net's weights: a new net's are random",
        ),
        (("--weights", "a.png"), "--weights, --feature and --layers go with a --net"),
        (
            ("--plot", "matches.csv"),
            "--plot: expected a file ending in .png, .jpg, .pdf, .svg, got mat",
        ),
        (
            ("--out", "m.csv", "--method", "surf"),
            "'surf' is not one of 'daisy', 'sift', 'sift-oriented'",
        ),
        (
            ("--out", "m.csv", "--ratio", "2"),
            "error: ratio: expected a number above 0 and at most 1, go",
        ),
        (("--out", "m.csv", "--number", "0"), "error: number: expected at least 1, got 0"),
        (("--out", "m.csv", "--step", "-1"), "-1.0 is not in the range x>0"),
        (
            ("--out", "m.csv", "--net", "nowhere.yaml"),
            "nowhere.yaml:1:1: error: cannot read the file: No such file",
        ),
    ],
)
def test_what_a_user_gets_wrong(
    folder: Path, capfd: Capture, arguments: tuple[str, ...], message: str
) -> None:
    before = sorted(path.name for path in folder.iterdir())
    code, _, err = run(capfd, "a.png", "b.png", *arguments)
    assert (code, message in err) == (2, True), err
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_net_and_a_method(folder: Path, capfd: Capture) -> None:
    save(Net("ucn_demo_hn", stages=("deploy",), seed=1), "w.safetensors")
    net = ("--net", "ucn_demo_hn", "--weights", "w.safetensors", "--out", "m.csv")
    code, _, err = run(capfd, "a.png", "b.png", *net, "--method", "daisy")
    assert (code, "give a --net or a --method, not both" in err) == (2, True)
    code, _, err = run(capfd, "a.png", "b.png", *net, "--step", "0")
    assert (code, "0.0 is not in the range x>0" in err) == (2, True)
    code, _, err = run(capfd, "a.png", "b.png", *net, "--feature", "conv")
    assert (code, '"conv" is no blob of the net in the stage deploy' in err) == (2, True)


def test_flat_patches_have_no_matches(folder: Path, capfd: Capture) -> None:
    image = imread("a.png")
    image[:, :80] = 99
    imsave("a.png", image)
    Path("p.csv").write_text("x1,y1\n20,60\n120,60\n")
    arguments = ("a.png", "b.png", "--method", "daisy", "--points", "p.csv", "--out", "m.csv")
    code, out, _ = run(capfd, *arguments)
    said = "2 matches by daisy, 1 of them nan: in a patch without features\nwritten to m.csv\n"
    assert (code, without_seconds(out)) == (0, said)
    assert Path("m.csv").read_text().splitlines()[1] == "20,60,nan,nan,nan"
    code, out, _ = run(capfd, *arguments, "--number", "2")
    assert (code, without_seconds(out)) == (0, "1 matches by daisy\nwritten to m.csv\n")
    code, out, _ = run(capfd, *arguments, "--mutual")
    assert (code, without_seconds(out)) == (0, "1 mutual matches by daisy\nwritten to m.csv\n")


def test_images_of_one_name(folder: Path, capfd: Capture) -> None:
    """Are called by their paths from the folder that holds both."""
    for name in "ab":
        (folder / name).mkdir()
        (folder / f"{name}.png").rename(folder / name / "1.png")
    code, *_ = run(capfd, "a/1.png", "b/1.png", "--number", "5", "--out", "m.txt")
    assert code == 0
    assert Path("m.txt").read_text().startswith("a/1.png b/1.png\n")
