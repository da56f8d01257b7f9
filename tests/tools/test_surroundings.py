"""The command line in its surroundings: full disks, signals, odd terminals, scripts that read its log,
code of the user's own; each mistake exits with 2 and one sentence."""

from __future__ import annotations

import os
import re
import resource
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from cortado.__main__ import interrupted
from cortado.nets import specs
from cortado.tools.cli import main

NET = """
name: small
layer:
- {name: d, type: DummyData, top: [x, t], dummy_data_param: {
    shape: [{dim: [4, 50]}, {dim: [4, 20]}], data_filler: [{type: gaussian}, {type: gaussian}]}}
- {name: ip, type: InnerProduct, bottom: x, top: y, inner_product_param: {
    num_output: 20, weight_filler: {type: xavier}}}
- {name: loss, type: EuclideanLoss, bottom: [y, t], top: loss}
"""
SOLVER = """
net: small.yaml
base_lr: 0.01
lr_policy: fixed
max_iter: 10
display: 5
test_iter: 2
test_interval: 5
snapshot_after_train: false
"""
PYTHON = """
layer:
- {name: d, type: DummyData, top: x, dummy_data_param: {shape: {dim: [2, 3]}}}
- {name: ip, type: InnerProduct, bottom: x, top: y, inner_product_param: {num_output: 3}}
- {name: mine, type: Python, bottom: y, top: z, python_param: {module: MODULE, layer: Mine}}
- {name: s, type: Reduction, bottom: z, top: s, loss_weight: 1}
"""
MODULE = """
import caffe

class Mine(caffe.Layer):
    def setup(self, bottom, top):
        {setup}

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].data.shape)

    def forward(self, bottom, top):
        {forward}

    def backward(self, top, propagate_down, bottom):
        {backward}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(NET)
    (tmp_path / "solver.yaml").write_text(SOLVER)
    return tmp_path


def cortado(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cortado", *arguments]
    options["env"] = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
    return subprocess.run(command, capture_output=True, text=True, timeout=100, **options)


def refused(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert caught.value.code == 2
    return capfd.readouterr().err


@pytest.mark.parametrize("suffix", ["caffemodel", "h5", "safetensors", "pth"])
def test_a_full_disk_at_the_last_save(folder: Path, suffix: str) -> None:
    (folder / f"out.{suffix}").write_text("an older run's")
    limit = (2000, 2000)  # bytes of a file: that it fails is all alike
    done = cortado(
        *("train", "solver.yaml", "--out", f"out.{suffix}"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(rf"error: cannot write out\.{suffix}: .+\n", done.stderr.splitlines(True)[-1])
    assert "Traceback" not in done.stderr
    assert (folder / f"out.{suffix}").read_text() == "an older run's"
    assert sorted(os.listdir()) == [f"out.{suffix}", "small.yaml", "solver.yaml"]


def test_nothing_but_the_output_is_written(folder: Path) -> None:
    for name in ("out.pth.part", ".out.pth", "out.pth.tmp"):
        (folder / name).write_text("mine")
    (folder / "elsewhere.pth").write_text("old")
    (folder / "out.pth").symlink_to("elsewhere.pth")
    main_exits(0, "train", "solver.yaml", "--out", "out.pth")
    assert all((folder / name).read_text() == "mine" for name in ("out.pth.part", ".out.pth"))
    assert (folder / "out.pth").is_symlink()
    assert (folder / "elsewhere.pth").read_bytes().startswith(b"PK")
    mask = os.umask(0)
    os.umask(mask)
    main_exits(0, "train", "solver.yaml", "--out", "new.safetensors")
    assert stat.S_IMODE((folder / "new.safetensors").stat().st_mode) == 0o666 & ~mask


def main_exits(code: int, *arguments: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert (caught.value.code or 0) == code


def test_what_a_killed_run_left_is_removed_at_the_next_start(folder: Path) -> None:
    left = folder / ".cortado-writing-abc"
    left.mkdir()
    (left / "small.safetensors").write_text("half")
    main_exits(0, "train", "solver.yaml", "--iterations", "1", "--out", "out.pth")
    assert not left.exists()


PREFIX = re.compile(r"I\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ \w+\.py:\d+\] ")


@pytest.mark.parametrize(("flag", "env"), [(["--glog"], {}), ([], {"GLOG_logtostderr": "1"})])
def test_the_log_as_glog_writes_it(folder: Path, flag: list[str], env: dict[str, str]) -> None:
    done = cortado("train", "solver.yaml", *flag, env=env)
    assert done.returncode == 0
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert all(PREFIX.match(line) for line in lines)
    texts = [PREFIX.sub("", line) for line in lines]
    assert texts[:2] == ["Solving small", "Learning Rate Policy: fixed"]
    assert texts[-2:] == ["Optimization Done.", "weights written to small.safetensors"]
    # what parse_log.py and parse_log.sh look for, at the words where they look
    assert [line.split()[5].rstrip(",") for line in lines if "Testing net" in line] == ["0", "5", "10"]
    assert all(float(line.split()[10]) >= 0 for line in lines if "Test net output #0" in line)
    assert [line.split()[8] for line in lines if ", lr = " in line] == ["0.01", "0.01"]
    assert len([line for line in lines if ", loss = " in line]) == 3


def test_test_logs_so_too(folder: Path) -> None:
    main_exits(0, "train", "solver.yaml", "--iterations", "1", "--out", "w.pth")
    done = cortado("test", "small.yaml", "--weights", "w.pth", "--iterations", "2", "--glog")
    assert [PREFIX.sub("", line).split(" = ")[0] for line in done.stderr.splitlines()] == [
        "Batch 0, loss",
        "Batch 1, loss",
        f"Loss: {done.stderr.split('Loss: ')[1].split()[0]}",
        "loss",
    ]


def running(*arguments: str) -> subprocess.Popen[str]:
    """A training that shows its first iteration."""
    run = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "cortado",
            "train",
            "solver.yaml",
            "--iterations",
            "100000000",
            *arguments,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.stdout
    for line in run.stdout:
        if "Iteration 0, lr" in line:
            break
    return run


@pytest.mark.parametrize("glog", [False, True])
def test_sigterm_ends_the_process_at_once(folder: Path, glog: bool) -> None:
    run = running("--glog") if glog else running()
    run.send_signal(signal.SIGTERM)
    rest = run.communicate(timeout=60)[0]
    assert run.returncode == -signal.SIGTERM
    assert ("most recent call first" in rest) is glog  # glog's handler shows the stack, too
    assert sorted(os.listdir()) == ["small.yaml", "solver.yaml"]


def test_ctrl_c_within_an_import_shows_no_traceback(folder: Path) -> None:
    for delay in (0.25, 0.6):
        run = subprocess.Popen(
            [sys.executable, "-m", "cortado", "train", "solver.yaml", "--iterations", "1000000"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        time.sleep(delay)
        run.send_signal(signal.SIGINT)
        out = run.communicate(timeout=60)[0]
        assert "Traceback" not in out
        assert run.returncode in (-signal.SIGINT, 0, 1)


def test_ctrl_c_outside_of_imports_is_an_exception() -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(signal.SIGINT, sys._getframe())


def test_ctrl_c_in_an_import_ends_the_process(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "except BaseException:\n    pass\nprint('went on')\n"
    )
    code = (
        "import signal; from cortado.__main__ import interrupted\n"
        "signal.signal(signal.SIGINT, interrupted)\nimport slow"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_a_terminal_without_the_characters(folder: Path) -> None:
    text = NET.replace("name: ip", "name: 卷积").replace("name: small", "name: 小")
    (folder / "small.yaml").write_text(text, encoding="utf-8")
    for command in (("check", "small.yaml"), ("train", "solver.yaml", "--out", "o.pth")):
        done = cortado(*command, env={"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"})
        assert done.returncode == 0, done.stderr
        assert "\\u5c0f" in done.stdout


def test_out_of_memory(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "big.yaml").write_text(
        "layer:\n- {name: d, type: DummyData, top: d, dummy_data_param: {shape: {dim: [1000, 1000]}}}\n"
        "- {name: t, type: Tile, bottom: d, top: t, tile_param: {tiles: 100000000}}\n"
        "- {name: s, type: Reduction, bottom: t, top: s}\n"
    )
    text = refused(capfd, "test", "big.yaml", "--iterations", "1")
    assert text.startswith('error: in layer "t" (big.yaml:3): out of memory: ')
    assert len(text.splitlines()) == 1


def module(folder: Path, name: str, **methods: str) -> None:
    made = {"setup": "pass", "forward": "top[0].data[...] = 1", "backward": "pass", **methods}
    (folder / f"{name}.py").write_text(MODULE.format(**made))
    (folder / "py.yaml").write_text(PYTHON.replace("MODULE", name))
    (folder / "solver.yaml").write_text(SOLVER.replace("small", "py").replace("test_", "# "))


@pytest.mark.parametrize("method", ["setup", "forward", "backward"])
def test_code_of_the_users_own_that_raises(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], method: str
) -> None:
    name = f"raises_in_{method}"
    module(folder, name, **{method: "self.missing()"})
    monkeypatch.syspath_prepend(str(folder))
    text = refused(capfd, "train", "solver.yaml", "--allow-python-layers")
    lines = (folder / f"{name}.py").read_text().splitlines()
    line = next(i for i, text in enumerate(lines, 1) if "missing" in text)
    place = " (py.yaml:5)" if method != "backward" else ""
    assert text.startswith(
        f"error: in layer \"mine\"{place}: AttributeError: 'Mine' object has no attribute 'missing'\n"
        f'  File "{folder}/{name}.py", line {line}, in {method}\n    self.missing()\n'
    )
    assert "cortado/" not in text.replace(str(folder), "")


def test_a_users_module_that_does_not_import(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(folder))
    module(folder, "no_syntax", setup="if")
    text = refused(capfd, "train", "solver.yaml", "--allow-python-layers")
    assert text.startswith('error: in layer "mine" (py.yaml:5): SyntaxError: ')
    assert f'  File "{folder}/no_syntax.py", line ' in text
    module(folder, "imports_none", setup="pass")
    (folder / "imports_none.py").write_text("import no_such_module_here\n")
    text = refused(capfd, "train", "solver.yaml", "--allow-python-layers")
    assert "ModuleNotFoundError: No module named 'no_such_module_here'" in text
    assert f'File "{folder}/imports_none.py", line 1' in text


def test_a_solver_comes_first_and_the_module_says_import_caffe(folder: Path) -> None:
    """In a process of its own: here something has given modules that name already."""
    module(folder, "says_caffe")
    code = """
        import cortado.pycaffe as caffe
        {make}
        import sys
        print(sys.modules["caffe"].__name__)
    """
    for make in ("caffe.SGDSolver('solver.yaml').step(1)", "caffe.get_solver('solver.yaml').step(1)"):
        script = textwrap.dedent(code.format(make=make))
        (folder / "solver.prototxt").write_text("")
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=folder
        )
        assert done.stdout == "cortado.pycaffe\n", done.stderr


def test_specs_that_come_with_cortado(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    main_exits(0, "specs")
    listed = [line.split()[0] for line in capfd.readouterr().out.splitlines()]
    assert {"ucn_hn_st", "ucn_demo_hn_solver", "scnet_ag_plus"} <= set(listed)
    assert "ucn_data" not in listed  # a fragment
    main_exits(0, "check", "ucn_demo_hn")
    assert "ucn_demo_hn: phase TEST" in capfd.readouterr().out
    text = refused(capfd, "check", "ucn_demo_nh")
    assert 'no file "ucn_demo_nh" here, and no spec of that name' in text
    assert 'did you mean "ucn_demo_hn"? they are: scnet_a, ' in text
    (folder / "ucn_demo_hn").write_text("name: mine\n" + NET.split("\n", 2)[2])  # the user's own wins
    assert specs.find("ucn_demo_hn") == Path("ucn_demo_hn")


def test_a_plugin_for_every_command(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "mine.py").write_text(
        "from cortado import Layer, register\n\n"
        "@register('MyOwnIdentity')\nclass MyOwnIdentity(Layer):\n"
        "    @staticmethod\n    def infer(params, x):\n        return (x,)\n\n"
        "    def forward(self, x):\n        return x\n"
    )
    (folder / "small.yaml").write_text(
        NET.replace("bottom: [y, t]", "bottom: [z, t]") + "\n"
        "- {name: mine, type: MyOwnIdentity, bottom: y, top: z}\n"
    )
    text = (folder / "small.yaml").read_text().splitlines()
    text[-1], text[-3] = text[-3], text[-1]
    (folder / "small.yaml").write_text("\n".join(text))
    plugin = ("--plugin", "mine.py")
    for command in (
        ("train", "solver.yaml", "--out", "w.pth"),
        ("test", "small.yaml", "--weights", "w.pth", "--iterations", "1"),
        ("time", "small.yaml", "--iterations", "1"),
        ("check", "small.yaml"),
        ("draw", "small.yaml", "net.svg"),
        ("convert", "--net", "small.yaml", "w.pth", "w.h5"),
        ("gradcheck", "small.yaml"),
    ):
        main_exits(0, *command, *plugin)
    capfd.readouterr()
