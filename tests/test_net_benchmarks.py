"""The nets that benchmarks.nets and benchmarks.matching measure: the spec's and the plain module's are
one net."""

import pytest
import torch
from cortado.nets.graph import graph
from cortado.nets.net import Net
from cortado.prototxt_like import load
from shared import SHARED, needs_shared

from benchmarks import matching, nets

DEPLOYED = {"GoogLeNet": "bvlc_googlenet", "SqueezeNet": "squeezenet_v1.1"}


@pytest.mark.parametrize("name", DEPLOYED)
def test_same_outputs_and_gradients(name):
    ours, plain, image = nets.pair(name, 1)  # which compares the outputs
    found = []
    for net in (ours, plain):
        data = image.clone().requires_grad_()
        found.append(torch.autograd.grad(net(data).square().sum(), data)[0])
    mine, theirs = found
    assert float((mine - theirs).norm()) < 1e-4 * float(theirs.norm())


@needs_shared
@pytest.mark.parametrize("name", DEPLOYED)
def test_the_specs_are_the_published_ones(name):
    path = SHARED / "data" / "weights" / f"{DEPLOYED[name]}_deploy.prototxt"
    if not path.exists():
        pytest.skip(f"{path.name} is not in the shared folder")
    published, written = graph(load(path)), graph(load(nets.written(name, 1)))
    assert [node.type for node in written.nodes] == [node.type for node in published.nodes]
    net = Net(nets.written(name, 1))
    theirs = Net(path)
    assert [p.shape for p in net.parameters()] == [p.shape for p in theirs.parameters()]


@pytest.mark.parametrize("name", matching.PLAIN)
@pytest.mark.parametrize("size", [(96, 64), (75, 90)])
def test_matching_measures_one_net(name, size, monkeypatch):
    monkeypatch.setattr(matching, "SIZE", size)
    monkeypatch.setattr(matching, "POINTS", 20)
    for ours, theirs in matching.calls(name).values():  # which compares the features
        ours()
        theirs()


def test_rounds_in_turn():
    seen = []
    times = nets.interleaved([lambda: seen.append("a"), lambda: seen.append("b")], rounds=3)
    assert [len(column) for column in times] == [3, 3]
    assert "".join(seen) == "baabbaabba"
