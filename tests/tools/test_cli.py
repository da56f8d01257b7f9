"""The command line, as a person runs it: a small net trained, checked and used to match."""

import csv
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import skimage.data
import skimage.io
import torch
from cortado.nets.matching import Matcher
from cortado.nets.net import Net
from cortado.nets.specs import path
from cortado.nets.weights import save
from cortado.tools import kernels
from cortado.tools.cli import COMMANDS, main
from hyperpixel_toy import write_net

TINY = """
name: tiny
layer:
- name: data
  type: CorrespondencePairs
  top: [image1, image2, pairs, num_pairs]
  exclude: &deploy {stage: deploy}
  transform_param: {crop_size: 64, mean_value: 115, scale: 0.0157}
  correspondence_pairs_param: {source: "skimage:astronaut", num_points: 100}
- {name: image1, type: Input, top: image1, include: &only {stage: deploy}, input_param: &image {
    shape: {dim: [1, 3, 64, 64]}}}
- {name: image2, type: Input, top: image2, include: *only, input_param: *image}
- siamese:
    input: {data: [image1, image2]}
    output: {feature: [feature1, feature2]}
    layer:
    - {name: conv, type: Convolution, bottom: data, top: conv, convolution_param: {
        num_output: 16, kernel_size: 9, stride: 4, pad: 4, weight_filler: {type: msra}}}
    - {name: norm, type: ChannelL2Norm, bottom: conv, top: feature}
- {name: query, type: ExtractFeature, bottom: [feature1, pairs], top: query, exclude: *deploy}
- {name: knn, type: KNN, bottom: [query, feature2, num_pairs], top: [distance, index], exclude: *deploy}
- {name: mining, type: HardNegativeMining, bottom: [pairs, index, feature2, num_pairs], top: mined,
   exclude: *deploy}
- {name: loss, type: CorrespondenceContrastiveLoss, bottom: [feature1, feature2, mined], top: loss,
   exclude: *deploy}
match_param: {image: [image1, image2], feature: [feature1, feature2], downsampling_factor: 4}
"""
MATCH = ("match", "a.png", "b.png", "--net", "tiny.yaml")
WEIGHTS = ("--weights", "tiny.safetensors")
SOLVER = (
    "net: tiny.yaml\ntype: Adam\nbase_lr: 0.01\nlr_policy: fixed\nmomentum: 0.9\nmax_iter: 3\n"
    "random_seed: 1\n"
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "solver.yaml").write_text(SOLVER)
    image = skimage.data.coffee()[80:200, 100:260]
    skimage.io.imsave("a.png", image)
    skimage.io.imsave("b.png", image[4:, 8:], check_contrast=False)
    return tmp_path


def run(capfd, *args):
    """Exit code, standard output and standard error of ``cortado ARGS``."""
    with pytest.raises(SystemExit) as end:
        main(list(args))
    out, err = capfd.readouterr()
    return end.value.code or 0, out, err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command, capfd):
    code, out, _ = run(capfd, command, "--help")
    assert code == 0
    assert f"cortado {command}" in out
    assert command in run(capfd, "--help")[1]


def test_check_shows_the_net(folder, capfd):
    code, out, _ = run(capfd, "check", "tiny.yaml")
    assert code == 0
    for text in ("feature2 [1, 16, 16, 16]", "as conv", "3,904 parameters", "outputs: "):
        assert text in out


def test_check_prints_the_expansion(folder, capfd):
    code, out, _ = run(capfd, "check", "tiny.yaml", "--expand")
    assert code == 0
    (folder / "expanded.yaml").write_text(out)
    assert "conv_p" in out
    assert run(capfd, "check", "expanded.yaml")[1] == run(capfd, "check", "tiny.yaml")[1]


def test_check_locates_mistakes(folder, capfd):
    (folder / "bad.yaml").write_text(TINY.replace("kernel_size: 9", "kernal_size: 9"))
    code, out, err = run(capfd, "check", "bad.yaml")
    assert (code, out) == (2, "")
    assert err.startswith('bad.yaml:18:25: error: Convolution has no parameter "kernal_size"')
    assert 'did you mean "kernel_size"?' in err
    assert run(capfd, "check", "nowhere.yaml")[0] == 2


def test_check_reads_a_plugin(folder, capfd):
    (folder / "mine.py").write_text(
        "from cortado.layers._engine.layer import Layer\n"
        "from cortado.layers._engine.registry import register\n"
        "@register('CliTwice')\n"
        "class Twice(Layer):\n"
        "    infer = staticmethod(lambda params, x: (x,))\n"
        "    def forward(self, x):\n"
        "        return 2 * x\n"
    )
    (folder / "twice.yaml").write_text(
        "layer:\n"
        "- {name: x, type: Input, top: x, input_param: {shape: {dim: [2, 3]}}}\n"
        "- {name: y, type: CliTwice, bottom: x, top: y}\n"
    )
    assert run(capfd, "check", "twice.yaml")[0] == 2
    code, out, _ = run(capfd, "check", "twice.yaml", "--plugin", "mine.py")
    assert code == 0
    assert "y [2, 3]" in out


def test_train_then_match(folder, capfd):
    code, out, _ = run(capfd, "train", "solver.yaml")
    assert (code, "tiny.safetensors" in out) == (0, True)
    arguments = ["a.png", "b.png", "--net", "tiny.yaml", "--weights", "tiny.safetensors"]
    code, *_ = run(capfd, "match", *arguments, "--no-mutual", "--out", "grid.csv", "--plot", "plot.png")
    assert code == 0
    assert (folder / "plot.png").stat().st_size > 1000
    rows = np.loadtxt("grid.csv", delimiter=",", skiprows=1)
    assert rows.shape == (40 * 30, 5)
    truth = rows[:, :2] - [8, 4]
    inside = (truth >= 8).all(1) & (truth < [144, 108]).all(1)
    assert (np.abs(rows[:, 2:4] - truth).max(1)[inside] <= 4).mean() > 0.8


def test_match_at_given_points(folder, capfd):
    (folder / "points.csv").write_text("name,x1,y1\nfirst,60,60\nsecond,80.5,40\n")
    save(Net("tiny.yaml", stages=("deploy",), seed=1), "tiny.safetensors")
    arguments = [*MATCH, *WEIGHTS, "--points", "points.csv", "--out", "m.csv"]
    assert run(capfd, *arguments)[0] == 0
    with open("m.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["x1"], row["y1"]) for row in rows] == [("60", "60"), ("80.5", "40")]
    assert all(float(row["x2"]) % 4 == 0 for row in rows)


def test_match_by_a_confidence(folder, capfd):
    spec, weights = map(str, write_net(folder, 0, "small"))
    (folder / "points.csv").write_text("x1,y1\n60,60\n0.5,40\n80.5,40\n")
    arguments = ["a.png", "b.png", "--net", spec, "--weights", weights, "--out", "m.csv"]
    code, out, _ = run(capfd, "match", *arguments, "--points", "points.csv", "--plot", "plot.png")
    assert code == 0
    assert re.match(r"3 matches by small in \d\.\d s, 1 of them nan: in no cell's box\nwritten", out)
    matcher, images = Matcher(spec, weights), [skimage.io.imread(f"{name}.png") for name in "ab"]
    with open("m.csv") as file:
        head, *rows = csv.reader(file)
    assert head == ["x1", "y1", "x2", "y2", "confidence"]
    found, confidence = matcher.match(*images, np.array([[60, 60], [0.5, 40], [80.5, 40]]))
    np.testing.assert_allclose(np.array(rows, float)[:, 2:4], found, rtol=1e-5)
    np.testing.assert_allclose(np.array(rows, float)[:, 4], confidence, rtol=1e-5)
    assert rows[1] == ["0.5", "40", "nan", "nan", "nan"]
    code, out, _ = run(capfd, "match", *arguments, "--layers", "1", "--no-mutual", "--json")
    report = json.loads(out)
    assert report.pop("seconds") > 0
    counts = {"matches": 15 * 20, "mutual": False, "lost": 0}
    assert report == {"by": "small", **counts, "out": "m.csv", "plot": None}
    skimage.io.imsave("strip.png", np.zeros((4, 160, 3), np.uint8), check_contrast=False)
    for images in (("a.png", "strip.png"), ("strip.png", "b.png")):
        code, _, err = run(capfd, "match", *images, *arguments[2:-1], "none.csv")
        assert code == 2
        assert "strip.png: given to the net as 160 x 4 pixels, of which its margin leaves no" in err
        assert not (folder / "none.csv").exists()
    code, _, err = run(capfd, *MATCH, "--weights", weights, "--out", "m.csv", "--layers", "1")
    assert (code, "the net has no blocks to choose from" in err) == (2, True)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ("a,b\n1,2\n", "points.csv:1: expected columns x1,y1"),
        ("x1,y1\n1,2\n3,zwei\n", "points.csv:3: not a point: 3,zwei"),
        ("x1,y1\n1,200\n", "points.csv:2: outside the 160 x 120 image"),
    ],
)
def test_match_refuses_bad_points(folder, capfd, points, message):
    (folder / "points.csv").write_text(points)
    save(Net("tiny.yaml", stages=("deploy",), seed=1), "tiny.safetensors")
    arguments = [*MATCH, *WEIGHTS, "--points", "points.csv", "--out", "m.csv"]
    code, _, err = run(capfd, *arguments)
    assert code == 2
    assert message in err
    assert not (folder / "m.csv").exists()


def test_match_refuses_what_is_no_image_and_a_net_that_does_not_match(folder, capfd):
    save(Net("tiny.yaml", stages=("deploy",), seed=1), "tiny.safetensors")
    code, _, err = run(capfd, "match", "tiny.yaml", *MATCH[2:], *WEIGHTS, "--out", "m.csv")
    assert code == 2
    assert "cannot read tiny.yaml: it is no PNG, JPEG" in err
    (folder / "plain.yaml").write_text(TINY.split("match_param")[0])
    code, _, err = run(capfd, *MATCH[:4], "plain.yaml", *WEIGHTS, "--out", "m.csv")
    assert code == 2
    assert "matching needs a match_param" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "solver.yaml", "--weights", "broken.safetensors"), "not a file of weights"),
        (("train", "solver.yaml", "--weights", "a.png"), "a.png: not a Caffe model"),
        (("train", "solver.yaml", "--weights", "nowhere.pth"), "nowhere.pth"),
        (("train", "solver.yaml", "--weights", "."), "Is a directory"),
        (("train", "solver.yaml", "--snapshot", "other.pth"), "not a solver's state"),
        ((*MATCH, "--weights", "other.pth", "--out", "m.csv"), "do not fill the net"),
        ((*MATCH, "--weights", "other.pth", "--out", "no/m.csv"), "no folder no"),
        ((*MATCH, "--weights", "other.pth", "--out", "m.csv", "--plot", "m.foo"), "--plot: expected"),
        (("check", "tiny.yaml", "--plugin", "a.png"), "a.png"),
        (("train",), "name the solver spec, once"),
        (("train", "tiny.yaml"), "this is a net's spec, not a solver's"),
        (("train", "a.png"), "a.png"),
        (("train", "."), "Is a directory"),
        (("train", "fed.yaml"), "the net is fed by its user (image1, image2)"),
        (("train", "gpu.yaml"), "solver_mode: GPU, but cuda:7: torch finds"),
        (("train", "solver.yaml", "--out", "no/w.pth"), "--out: no folder no to write to"),
        (("train", "solver.yaml", "--out", "w.foo"), "--out: expected a file ending in .caffemodel"),
        (("train", "endless.yaml"), "give max_iter in the solver, or --iterations"),
        (("train", "solver.yaml", "--iterations", "0"), "--iterations"),
        (("train", "solver.yaml", "--gpu", "0,1"), "torchrun"),
        (("train", "solver.yaml", "--device", "gpu"), 'no device "gpu"'),
        (("train", "solver.yaml", "--device", "meta"), 'no device "meta"'),
        (("train", "solver.yaml", "--snapshot", "a.png", "--weights", "other.pth"), "--weights"),
        (("train", "solver.yaml", "--log", "no/run.log"), "no/run.log"),
        (("time", "solver.yaml"), "this is a solver's spec, not a net's"),
        (("time", "nowhere.yaml"), "nowhere.yaml"),
        (("time", "a.png"), "a.png"),
        (("time", "tiny.yaml", "--iterations", "-1"), "--iterations"),
        (("time", "tiny.yaml", "-model", "tiny.yaml"), "name the net's spec, once"),
        (("test", "tiny.yaml"), "name the net's --weights"),
        (("test", "tiny.yaml", "--weights", "broken.safetensors"), "not a file of weights"),
        (("test", "solver.yaml", "--weights", "other.pth"), "this is a solver's spec, not a net's"),
        (("gradcheck", "a.png"), "a.png"),
        (("gradcheck", "tiny.yaml", "--weights", "broken.safetensors"), "not a file of weights"),
        (("gradcheck", "tiny.yaml", "--gpu", "9"), "torch finds"),
    ],
)
def test_what_a_user_gets_wrong(folder, capfd, arguments, message):
    (folder / "broken.safetensors").write_bytes(b"\x09\0\0\0\0\0\0\0nonsense")
    torch.save({"layers.other.weight": torch.ones(2)}, "other.pth")
    (folder / "fed.yaml").write_text(SOLVER + "train_state: {stage: deploy}\n")
    (folder / "gpu.yaml").write_text(SOLVER + "solver_mode: GPU\ndevice_id: 7\n")
    (folder / "endless.yaml").write_text("net: tiny.yaml\nlr_policy: fixed\n")
    before = {path.name for path in folder.iterdir()}
    code, _, err = run(capfd, *arguments)
    assert code == 2
    assert message in err
    assert {path.name for path in folder.iterdir()} == before


def test_train_displays_tests_and_snapshots_as_the_solver_says(folder, capfd):
    more = "display: 1\ntest_iter: 1\ntest_interval: 2\nsnapshot_prefix: run\n"
    (folder / "solver.yaml").write_text(SOLVER + more)
    code, out, _ = run(
        *(capfd, "train", "-solver", "solver.yaml", "-iterations=2", "-sigint_effect", "none"),
        *("--log", "run.log", "--json", "run.jsonl", "--tensorboard", "events"),
    )
    assert code == 0
    for text in (
        "Iteration 0, Testing net (#0)\n    Test net output #0: distance = ",
        "Iteration 0, loss = ",
        "Iteration 0, lr = 0.01\n",
        "Snapshotting solver state to binary proto file run_iter_2.solverstate\nIteration 2, loss = ",
        "\nIteration 2, Testing net (#0)\n",
    ):
        assert text in out
    assert (folder / "run_iter_2.solverstate").exists()
    lines = (folder / "run.log").read_text().splitlines()
    assert all(
        re.match(r"I\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ (solver|train).py:\d+\] ", line) for line in lines
    )
    assert [line.partition("] ")[2] for line in lines] == [
        line for line in out.splitlines() if not line.startswith(("solver:", "weights written"))
    ]
    records = [json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines()]
    assert [(record["iteration"], "test" in record) for record in records] == [
        (0, True),
        (1, False),
        (2, False),
        (2, True),
    ]
    assert records[1].keys() == {"iteration", "loss", "lr", "seconds"}
    assert records[1]["lr"] == 0.01
    assert records[0].keys() == {"iteration", "test", "outputs", "seconds"}
    assert "loss" in records[0]["outputs"]
    assert list((folder / "events").iterdir())


def test_test_averages_the_outputs(folder, capfd):
    save(Net("tiny.yaml", "TEST", seed=1), "tiny.caffemodel")
    arguments = ("test", "-model", "tiny.yaml", "-weights", "tiny.caffemodel", "-iterations", "2")
    code, out, _ = run(capfd, *arguments)
    assert code == 0
    shown = [line.partition(" = ")[0] for line in out.splitlines()]
    assert shown[:2] == ["Batch 0, loss", "Batch 1, loss"]
    assert shown[2].startswith("Loss: ")
    assert shown[-1] == "loss"
    code, out, _ = run(capfd, *arguments, "--json")
    assert json.loads(out)["loss"] == pytest.approx(json.loads(out)["outputs"]["loss"])
    code, _, err = run(capfd, "test", "tiny.yaml", "--stage", "deploy")
    assert (code, "it has no data to test on" in err) == (2, True)


def test_train_resumes_and_ends_as_caffe(folder, capfd):
    (folder / "solver.yaml").write_text(SOLVER + "snapshot: 2\nweights: nowhere.caffemodel\n")
    assert run(capfd, "train", "solver.yaml", "--weights", "")[0] == 0
    code, out, _ = run(capfd, "train", "solver.yaml", "-snapshot=solver_iter_2.solverstate")
    assert (code, "1 iterations" in out) == (0, True)
    code, out, _ = run(capfd, "train", "solver.yaml", "--snapshot", "solver_iter_3.solverstate")
    assert (code, "iterations" in out, "Optimization Done." in out) == (0, False, True)
    assert run(capfd, "train", "solver.yaml")[0] == 2


def test_train_stops_at_sigint_with_exit_code_0(folder):
    (folder / "solver.yaml").write_text(SOLVER.replace("max_iter: 3", "max_iter: 100000\ndisplay: 1"))
    command = [sys.executable, "-m", "cortado", "train", "solver.yaml"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        while not process.stdout.readline().startswith("Iteration 3"):
            pass
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Optimization stopped early.\nweights written to tiny.safetensors\n" in rest
    assert list(folder.glob("solver_iter_*.solverstate"))


def test_a_loss_that_is_not_finite_ends_the_run(folder, capfd):
    net = Net("tiny.yaml", "TRAIN", seed=1)
    net.params["conv"][0].data[0] = float("nan")
    save(net, "bad.pth")
    code, _, err = run(capfd, "train", "solver.yaml", "--weights", "bad.pth")
    assert code == 2
    assert re.search(r'^error: iteration 0: the loss is nan; layer "conv" .*: parameter "weight"', err)
    assert not list(folder.glob("*.safetensors"))


def test_a_users_module_that_imports_caffe(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_for_caffe.py").write_text(
        "import caffe\n\n\nclass Twice(caffe.Layer):\n"
        "    def setup(self, bottom, top): pass\n"
        "    def reshape(self, bottom, top): top[0].reshape(*bottom[0].shape)\n"
        "    def forward(self, bottom, top): top[0].data[...] = 2 * bottom[0].data\n"
        "    def backward(self, top, down, bottom): bottom[0].diff[...] = 2 * top[0].diff\n"
    )
    (tmp_path / "net.prototxt").write_text(
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 } } }\n'
        'layer { name: "y" type: "Python" bottom: "x" top: "y"\n'
        '  python_param { module: "mine_for_caffe" layer: "Twice" } }\n'
    )
    code, _, err = run(capfd, "check", "net.prototxt")
    assert (code, "--allow-python-layers" in err) == (2, True)
    code, out, _ = run(capfd, "check", "net.prototxt", "--allow-python-layers")
    assert (code, "outputs: y" in out) == (0, True)


def test_kernels(capfd, monkeypatch):
    if kernels.compiler() is None:
        pytest.skip("neither NVRTC nor nvcc is here")
    few = list(kernels.builds(("sm_80",), (torch.float32,)))[:1]
    monkeypatch.setattr(kernels, "builds", lambda architectures: few)
    code, out, _ = run(capfd, "kernels", "--arch", "sm_80", "--json")
    rows = json.loads(out)
    assert code == 0
    assert rows[0].keys() == {"type", "constants", "arch", *kernels.Usage.__dataclass_fields__}
    code, out, _ = run(capfd, "kernels", "--arch", "sm_80")
    assert (code, len(out.splitlines())) == (0, 1 + len(rows))
    code, _, err = run(capfd, "kernels", "--arch", "sm_80,ampere")
    assert (code, '"ampere" is no architecture: sm_75' in err) == (2, True)


def test_device_query(capfd):
    code, out, _ = run(capfd, "device_query", "--json")
    assert (code, len(json.loads(out))) == (0, torch.cuda.device_count())
    code, out, _ = run(capfd, "device_query")
    assert (code, f"torch {torch.__version__}" in out) == (0, True)


def test_a_shipped_spec_is_found_by_name():
    assert path("ucn_demo_hn").is_file()
