"""cortado time: a row a layer, and what it says of memory."""

from __future__ import annotations

import json

import pytest
from cortado.nets.net import Net
from cortado.prototxt_like import loads
from cortado.tools.cli import main
from cortado.tools.time import random_inputs, time_net

NET = """
name: tiny
layer:
- {name: x, type: Input, top: x, input_param: {shape: {dim: [2, 3, 8, 8]}}}
- {name: t, type: Input, top: t, input_param: {shape: {dim: [2, 5]}}}
- {name: conv, type: Convolution, bottom: x, top: c, convolution_param: {
    num_output: 4, kernel_size: 3, weight_filler: {type: xavier}}}
- {name: relu, type: ReLU, bottom: c, top: c}
- {name: norm, type: ChannelL2Norm, bottom: c, top: n}
- {name: ip, type: InnerProduct, bottom: n, top: y, inner_product_param: {
    num_output: 5, weight_filler: {type: xavier}}}
- {name: loss, type: EuclideanLoss, bottom: [y, t], top: loss}
"""


def test_a_row_for_each_layer():
    times = time_net(Net(loads(NET), seed=0), 2)
    rows = {row.name: row for row in times.layers}
    assert list(rows) == ["x", "t", "conv", "relu", "norm", "ip", "loss"]
    assert rows["x"].forward_ms == rows["x"].backward_ms == 0
    assert all(rows[name].backward_ms > 0 for name in ("conv", "relu", "norm", "ip", "loss"))
    assert rows["conv"].top_bytes == 4 * 2 * 4 * 6 * 6
    assert rows["conv"].kept_bytes == 0
    assert rows["norm"].kept_bytes == 4 * 2 * 6 * 6
    assert min(times.forward_ms, times.backward_ms) > 0


def test_a_layer_that_nothing_learns_through_has_no_backward():
    frozen = NET.replace(
        "bottom: x, top: c,", "bottom: x, top: c, param: [{lr_mult: 0}, {lr_mult: 0}],"
    )
    rows = {row.name: row for row in time_net(Net(loads(frozen), seed=0), 1).layers}
    assert rows["norm"].backward_ms == rows["conv"].backward_ms == 0 < rows["ip"].backward_ms


def test_tables_are_zero():
    net = Net("nets/specs/ucn_demo_hn.yaml", stages=("deploy",), seed=0)
    assert {name: tuple(blob.shape) for name, blob in random_inputs(net).items()} == {
        "image1": (1, 3, 192, 192),
        "image2": (1, 3, 192, 192),
    }
    spec = NET + "- {name: e, type: ExtractFeature, bottom: [c, p], top: e}\n"
    spec += "- {name: p, type: Input, top: p, input_param: {shape: {dim: [2, 7, 5]}}}\n"
    lines = spec.splitlines()
    net = Net(loads("\n".join([*lines[:3], lines[-1], *lines[3:-1]])), seed=0)
    inputs = random_inputs(net)
    assert not inputs["p"].any()
    assert inputs["x"].any()


def test_the_command(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.yaml").write_text(NET)
    for arguments in (["time", "net.yaml"], ["time", "-model", "net.yaml", "-iterations=1", "--json"]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 0
    out, _ = capfd.readouterr()
    table, _, last = out.rstrip().rpartition("\n")
    assert "layer by layer: forward" in table
    assert "as one net: forward" in table
    assert json.loads(last).keys() == {"layers", "forward_ms", "backward_ms", "peak_bytes"}
