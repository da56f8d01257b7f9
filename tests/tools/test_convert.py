"""cortado convert: the same net in the other notation, the same bytes the second time."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from cortado.nets.graph import State, graph
from cortado.nets.net import Net
from cortado.nets.specs import path as spec_path
from cortado.nets.weights import save
from cortado.prototxt_like import SpecError, load, schema
from cortado.tools.cli import main
from cortado.tools.convert import head, write_spec
from google.protobuf import text_format
from safetensors.torch import load_file
from shared import SHARED, needs_shared

SPECS = sorted(spec_path("ucn_hn").parent.glob("*.yaml"))


def wiring(path):
    """All that a net's graph says, or the complaints about it but for their lines."""
    found = []
    for phase in ("TRAIN", "TEST"):
        try:
            made = graph(load(path), State(phase))
        except SpecError as error:
            found.append([re.sub(r", line \d+\)", ")", each.message) for each in error.errors])
            continue
        nodes = [(n.name, n.type, n.bottoms, n.tops, n.param_specs, n.twin_of) for n in made.nodes]
        found.append((nodes, made.outputs, made.match, made.force_backward))
    return found


def there_and_back(source, folder):
    """Convert to the other notation and back, twice; gives the four files' texts."""
    files = [Path(source)]
    suffixes = [".prototxt", ".yaml"] if files[0].suffix == ".yaml" else [".yaml", ".prototxt"]
    for i, suffix in enumerate(suffixes * 2):
        files.append(folder / f"{i}{suffix}")
        write_spec(files[-2], files[-1])
    assert files[1].read_bytes() == files[3].read_bytes()
    assert files[2].read_bytes() == files[4].read_bytes()
    return files[1:3]


@pytest.mark.parametrize("spec", SPECS, ids=lambda path: path.stem)
def test_our_own_specs(spec, tmp_path):
    files = there_and_back(spec, tmp_path)
    if "solver" not in spec.name:
        assert wiring(spec) == wiring(files[0]) == wiring(files[1])


@needs_shared
def test_caffes_own_specs(tmp_path):
    """Every one says the same, and what is written is prototxt to protobuf itself."""
    sources = sorted((SHARED / "data" / "prototxts" / "bvlc").rglob("*.prototxt"))
    assert len(sources) == 14
    for source in sources:
        files = there_and_back(source, tmp_path)
        kind = "SolverParameter" if "solver" in source.name else "NetParameter"
        text_format.Parse(files[1].read_text(), schema.message(kind)())
        if kind == "NetParameter":
            assert wiring(source) == wiring(files[0]) == wiring(files[1])


def test_the_same_parameters(tmp_path):
    source = spec_path("ucn_demo_hn_st")
    write_spec(source, tmp_path / "net.prototxt")
    theirs = [made.layer.params for made in Net(source, "TRAIN", seed=1).built.layers]
    ours = [made.layer.params for made in Net(tmp_path / "net.prototxt", "TRAIN", seed=1).built.layers]
    assert ours == theirs


OLD = """\
# A net of 2014.
#
input: "x" input_dim: 1 input_dim: 2 input_dim: 1 input_dim: 1  # small
layers { name: "foo" type: FOO bottom: "x" top: "y" }
"""
TODAY = """\
# A net of 2014.
#
layer {
  name: "input"
  type: "Input"
  top: "x"
  input_param { shape { dim: 1 dim: 2 dim: 1 dim: 1 } }
}
layer {
  name: "foo"
  type: "FOO"
  bottom: "x"
  top: "y"
}
"""


def test_old_forms_unknown_types_and_the_head(tmp_path, caplog):
    source, target = tmp_path / "old.prototxt", tmp_path / "new.prototxt"
    source.write_text(OLD)
    with caplog.at_level(logging.WARNING):
        assert CliRunner().invoke(main_command(), [str(source), str(target)]).exit_code == 0
    assert target.read_text() == TODAY
    assert ["note" in record.getMessage() for record in caplog.records] == [True, True]
    with pytest.raises(SpecError, match='unknown type "FOO"'):
        Net(target)


def main_command():
    from cortado.tools.convert import command

    return command


def test_head():
    assert head("# a\n# b\n\n# c\nx: 1") == "# a\n# b\n"
    assert head("x: 1 # a") == ""


NET = """\
layer:
- {name: x, type: Input, top: x, input_param: {shape: {dim: [2, 3]}}}
- {name: a, type: InnerProduct, bottom: x, top: a, inner_product_param: {
    num_output: 2, weight_filler: {type: xavier}, bias_filler: {type: constant, value: 3}}}
"""


@pytest.mark.parametrize("suffix", [".h5", ".safetensors", ".pth", ".caffemodel"])
def test_weights(suffix, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("net.yaml").write_text(NET)
    net = Net("net.yaml", seed=5)
    save(net, "net.caffemodel")
    with pytest.raises(SystemExit) as stop:
        main(["convert", "net.caffemodel", f"new{suffix}", "--net", "net.yaml"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"net.caffemodel: filled 1 layers; saved in new{suffix}\n"
    again = Net("net.yaml", seed=6, weights=f"new{suffix}")
    for ours, theirs in zip(again.params["a"], net.params["a"], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_in_float16(suffix, tmp_path, monkeypatch, capsys):
    """Are half the size, and float32 again in a net."""
    monkeypatch.chdir(tmp_path)
    Path("net.yaml").write_text(NET)
    net = Net("net.yaml", seed=5)
    save(net, "net.caffemodel")
    with pytest.raises(SystemExit) as stop:
        main(["convert", "net.caffemodel", f"new{suffix}", "--net", "net.yaml", "--half"])
    assert stop.value.code == 0
    read = load_file("new.safetensors") if suffix == ".safetensors" else torch.load("new.pth")
    assert {blob.dtype for blob in read.values()} == {torch.float16}
    again = Net("net.yaml", seed=6, weights=f"new{suffix}")
    for ours, theirs in zip(again.params["a"], net.params["a"], strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs.half().float())


def test_weights_of_npz(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("net.yaml").write_text(NET)
    weight, bias = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(2, np.float32)
    np.savez("net.npz", **{"a|0": weight, "a|1": bias, "__mean": np.zeros(3)})
    with pytest.raises(SystemExit) as stop:
        main(["convert", "net.npz", "new.safetensors", "--net", "net.yaml"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == "net.npz: filled 1 layers; saved in new.safetensors\n"
    made = Net("net.yaml", weights="new.safetensors").params["a"]
    assert [blob.tolist() for blob in made] == [weight.tolist(), bias.tolist()]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("net.yaml", "net.json"), "net.json: expected one of .prototxt, .yaml, "),
        (("net.yaml", "net.caffemodel"), "weights are converted with --net"),
        (
            ("none.yaml", "net.prototxt"),
            "none.yaml:1:1: error: cannot read the file: No such file or directory",
        ),
        (
            ("net.caffemodel", "w.h5", "--net", "more.yaml"),
            "net.caffemodel lacks layers of more.yaml: b",
        ),
        (
            ("net.yaml", "new.prototxt", "--half"),
            "--half is for weights: .prototxt is a spec",
        ),
        (
            ("net.caffemodel", "w.h5", "--net", "net.yaml", "--half"),
            "--half: .h5 holds float32",
        ),
        (
            ("large.caffemodel", "w.pth", "--net", "net.yaml", "--half"),
            'large.caffemodel: layer "a" has numbers beyond the range of float16',
        ),
    ],
)
def test_mistakes_write_nothing(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("net.yaml").write_text(NET)
    Path("more.yaml").write_text(NET + NET.split("\n", 2)[2].replace(": a,", ": b,"))
    net = Net("net.yaml", seed=5)
    save(net, "net.caffemodel")
    net.params["a"][1].data[1] = -65520
    save(net, "large.caffemodel")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as stop:
        main(["convert", *args])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_nothing_is_imported():
    import subprocess
    import sys

    code = "import sys, cortado.tools.convert; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
