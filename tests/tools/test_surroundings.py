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
from pathlib import Path

import click
import numpy as np
import pytest
from cortado.__main__ import interrupted
from cortado.layers._engine import registry
from cortado.nets import specs
from cortado.prototxt_like import files
from cortado.tools.cli import main
from cortado.tools.options import expect_folder

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
    registry.scan()
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))  # plugins' types go again
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


SAVE = """
import resource, sys
from cortado.nets.net import Net
from cortado.nets.weights import save
net = Net("small.yaml")
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # that a write fails is all alike
for suffix in ("caffemodel", "h5", "safetensors", "pth"):
    try:
        save(net, f"out.{suffix}")
    except OSError as error:
        print(error, file=sys.stderr)
"""


def test_a_full_disk(folder: Path) -> None:
    """In a process of its own, which goes on: HDF5's library would end it when it closes the file."""
    suffixes = ("caffemodel", "h5", "safetensors", "pth")
    for suffix in suffixes:
        (folder / f"out.{suffix}").write_text("an older run's")
    run = [sys.executable, "-c", SAVE]
    done = subprocess.run(run, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"cannot write out.{s}" for s in suffixes]
    assert all((folder / f"out.{suffix}").read_text() == "an older run's" for suffix in suffixes)
    assert len(os.listdir()) == 6


def test_a_full_disk_at_the_last_save(folder: Path) -> None:
    done = cortado(
        *("train", "solver.yaml", "--out", "out.pth"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)),
    )
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(r"error: cannot write out\.pth: .+\n", done.stderr.splitlines(True)[-1])
    assert "Traceback" not in done.stderr
    assert sorted(os.listdir()) == ["small.yaml", "solver.yaml"]


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
    left = folder / f"{files.ROOM}{files._HOST}-abc"
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
    """Of a layer that takes much more than its top, which a blob's size limits."""
    (folder / "greedy.py").write_text(
        "import torch\nfrom cortado import Layer, register\n\n"
        "@register('Greedy')\nclass Greedy(Layer):\n"
        "    @staticmethod\n    def infer(params, x):\n        return (x,)\n\n"
        "    def forward(self, x):\n        return x + torch.empty(2**45)[0]\n"
    )
    (folder / "small.yaml").write_text(NET + "- {name: g, type: Greedy, bottom: y, top: g}\n")
    text = refused(capfd, "train", "solver.yaml", "--plugin", "greedy.py")
    assert text.startswith('error: in layer "g" (small.yaml:9): out of memory: ')
    assert len(text.splitlines()) == 1


def test_a_blob_is_no_larger_than_caffes(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "big.yaml").write_text(
        "layer:\n- {name: d, type: DummyData, top: d, dummy_data_param: {shape: {dim: [1000, 1000]}}}\n"
        "- {name: t, type: Tile, bottom: d, top: t, tile_param: {tiles: 100000}}\n"
        "- {name: ip, type: InnerProduct, bottom: d, top: y,\n"
        "   inner_product_param: {num_output: 4000000}}\n"
    )
    text = refused(capfd, "check", "big.yaml")
    assert (
        'big.yaml:3:3: error: layer "t": top "t" [1000, 100000000] has more than 2,147,483,647' in text
    )
    assert 'big.yaml:4:3: error: layer "ip": top "y" [1000, 4000000] has more than' in text


def test_two_names_of_one_file(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = refused(capfd, "train", "solver.yaml", "--log", "solver.yaml")
    assert "--log and --solver are one file: solver.yaml" in text
    (folder / "link.yaml").symlink_to("solver.yaml")
    text = refused(capfd, "train", "solver.yaml", "--json", "link.yaml")
    assert "--json and --solver are one file: link.yaml" in text
    assert (folder / "solver.yaml").read_text() == SOLVER


def test_a_prefix_that_ends_in_a_slash_is_a_folder(folder: Path) -> None:
    text = SOLVER.replace("snapshot_after_train: false", 'snapshot_prefix: "there/"')
    (folder / "solver.yaml").write_text(text)
    main_exits(0, "train", "solver.yaml", "--iterations", "1", "--out", "o.pth")
    assert sorted(os.listdir("there")) == ["solver_iter_1.caffemodel", "solver_iter_1.solverstate"]


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
    assert text.startswith(
        "error: in layer \"mine\" (py.yaml:5): AttributeError: 'Mine' object has no attribute "
        "'missing'\n"
        f'  File "{folder}/{name}.py", line {line}, in {method}\n    self.missing()\n'
    )
    assert "cortado/" not in text.replace(str(folder), "")


WRONG = {
    "def setup(self, b)": ("    def setup(self, bottom, top):", "    def setup(self, b):"),
    "a constructor with arguments": (
        "class Mine(caffe.Layer):",
        "class Mine(caffe.Layer):\n    def __init__(self, a, b): pass\n",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_methods_that_cannot_be_called(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], what: str
) -> None:
    name = f"wrong_{list(WRONG).index(what)}"
    module(folder, name)
    path = folder / f"{name}.py"
    path.write_text(path.read_text().replace(*WRONG[what]))
    monkeypatch.syspath_prepend(str(folder))
    text = refused(capfd, "train", "solver.yaml", "--allow-python-layers")
    assert text.startswith('error: in layer "mine" (py.yaml:5): TypeError: Mine.')
    assert "argument" in text
    assert len(text.splitlines()) == 1


def test_a_blob_that_is_added_late(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    module(folder, "adds_late", forward="self.blobs.add_blob(2)")
    monkeypatch.syspath_prepend(str(folder))
    text = refused(capfd, "train", "solver.yaml", "--allow-python-layers")
    assert 'layer "mine" (py.yaml:5): blobs are added in setup, not in reshape or forward' in text


def test_a_module_that_is_no_name(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "py.yaml").write_text(PYTHON.replace("MODULE", '"../evil"'))
    (folder / "solver.yaml").write_text(SOLVER.replace("small", "py").replace("test_", "# "))
    text = refused(capfd, "train", "solver.yaml", "--allow-python-layers")
    assert 'the Python layer\'s module "../evil" is no name to import' in text


PLUGINS = {
    "NameError: name 'missing' is not defined\n  File \"{path}\", line 1": "missing\n",
    'SyntaxError: invalid syntax\n  File "{path}", line 1': "if\n",
    'SystemExit: 3\n  File "{path}", line 1': "raise SystemExit(3)\n",
}


@pytest.mark.parametrize("message", PLUGINS)
def test_a_plugin_that_does_not_import(
    folder: Path, capfd: pytest.CaptureFixture[str], message: str
) -> None:
    (folder / "mine.py").write_text(PLUGINS[message])
    text = refused(capfd, "check", "small.yaml", "--plugin", "mine.py")
    assert text.startswith("error: plugin mine.py cannot be imported: ")
    assert message.format(path=folder / "mine.py") in text.replace('"mine.py"', f'"{folder}/mine.py"')


def plugin(folder: Path, name: str, forward: str) -> None:
    """A file of one layer, and the net with that at its end."""
    (folder / "mine.py").write_text(
        "from cortado import Layer, register\n\n"
        f"@register('{name}')\nclass {name}(Layer):\n"
        "    @staticmethod\n    def infer(params, x):\n        return (x,)\n\n"
        f"    def forward(self, x):\n        {forward}\n"
    )
    (folder / "small.yaml").write_text(NET + f"- {{name: b, type: {name}, bottom: y, top: b}}\n")


FAULTS = {
    "self.missing": "AttributeError: 'MyOwnBrokenLayer' object has no attribute 'missing'",
    "{}['bang']": "KeyError: 'bang'",
    "1 + 'a'": "TypeError: unsupported operand type(s) for +: 'int' and 'str'",
    "x @ x": "RuntimeError: mat1 and mat2 shapes cannot be multiplied (4x20 and 4x20)",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_plugin_s_layer_that_raises(
    folder: Path, capfd: pytest.CaptureFixture[str], fault: str
) -> None:
    plugin(folder, "MyOwnBrokenLayer", forward=f"return {fault}")
    text = refused(capfd, "train", "solver.yaml", "--plugin", "mine.py")
    assert re.match(r'error: (in )?layer "b" \(small.yaml:9\): ' + re.escape(FAULTS[fault]), text)
    assert f'mine.py", line 10, in forward\n    return {fault}\n' in text


def test_a_plugin_that_says_what_is_wrong_shows_no_lines(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plugin(folder, "MyOwnStrictLayer", forward="raise ValueError('expected something else')")
    text = refused(capfd, "train", "solver.yaml", "--plugin", "mine.py")
    assert text == 'error: layer "b" (small.yaml:9): expected something else\n'


def test_the_folder_of_a_device_is_not_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody but root may write to /dev, everybody to /dev/null."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    expect_folder("/dev/null", "--out")
    with pytest.raises(click.UsageError, match="--out: the folder . cannot be written to"):
        expect_folder("out.csv", "--out")


def test_outputs_without_a_place(folder: Path) -> None:
    (folder / "loop").symlink_to("loop")
    for path, why in (
        ("loop", "loop: Too many levels of symbolic links"),
        ("small.yaml/out", "no folder small.yaml to write to"),
        ("none/out", "no folder none to write to"),
        ("x" * 300, "File name too long"),
    ):
        with pytest.raises(click.UsageError, match=f"--out: .*{why}"):
            expect_folder(path, "--out")


def test_points_that_cannot_be_read(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(folder / "pipe.csv")
    (folder / "latin.csv").write_bytes(b"x1,y1\n1,\xe9\n")
    (folder / "long.csv").write_text("x1,y1\n1," + '"' + "9" * 200_000 + '"\n')
    from cortado.tools.match import read_points

    for name, why in (
        ("pipe.csv", "pipe.csv: cannot read the points: not a file, but a pipe or a device"),
        ("latin.csv", "latin.csv: cannot read the points: 'utf-8' codec can't decode byte 0xe9"),
        ("long.csv", "long.csv:1: field larger than field limit"),
    ):
        with pytest.raises(click.BadParameter, match=why):
            read_points(name, np.zeros((4, 4, 3)))


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
    code = textwrap.dedent("""
        import sys
        import cortado.pycaffe as caffe
        for make in (caffe.SGDSolver, caffe.get_solver):
            make("solver.yaml").step(1)
            for name in [name for name in sys.modules if name.split(".")[0] in ("caffe", "says_caffe")]:
                del sys.modules[name]
            print("gone")
    """)
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, cwd=folder, check=False)
    assert done.stdout == "gone\ngone\n", done.stderr


def test_specs_that_come_with_cortado(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    main_exits(0, "specs")
    listed = [line.split()[0] for line in capfd.readouterr().out.splitlines()]
    assert {"ucn_hn_st", "ucn_demo_hn_solver", "scnet_ag_plus"} <= set(listed)
    assert "ucn_data" not in listed  # a fragment
    main_exits(0, "check", "ucn_demo_hn")
    assert "ucn_demo_hn: phase TEST" in capfd.readouterr().out
    text = refused(capfd, "check", "ucn_demo_nh")
    assert 'no file "ucn_demo_nh" here, and no spec of that name' in text
    assert 'did you mean "ucn_demo_hn"? they are: googlenet, hpf_fcn_resnet101, ' in text
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
