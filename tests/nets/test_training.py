"""Training around a net: several processes, mixed precision, losses that are not finite."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cortado.layers._engine import parallel, registry
from cortado.layers.standard._losses import LossParams, Normalization
from cortado.nets.solver import Solver
from cortado.nets.training import Autocast
from cortado.prototxt_like import loads
from cortado.prototxt_like.bind import bind

NET = """
layer:
- name: data
  type: CorrespondencePairs
  top: [image1, image2, pairs, num_pairs]
  transform_param: {crop_size: 32, mean_value: 115, scale: 0.0157}
  correspondence_pairs_param: {source: "skimage:camera", num_points: 40, batch_size: BATCH, shift: 0.6}
- siamese:
    input: {data: [image1, image2]}
    output: {feature: [feature1, feature2]}
    layer:
    - {name: conv, type: Convolution, bottom: data, top: conv, convolution_param: {
        num_output: 8, kernel_size: 5, stride: 4, pad: 2, weight_filler: {type: msra}}}
    - {name: drop, type: Dropout, bottom: conv, top: conv, dropout_param: {dropout_ratio: 0.2}}
    - {name: norm, type: ChannelL2Norm, bottom: conv, top: feature}
- {name: query, type: ExtractFeature, bottom: [feature1, pairs], top: query}
- {name: knn, type: KNN, bottom: [query, feature2, num_pairs], top: [distance, index]}
- {name: quiet, type: Silence, bottom: distance}
- {name: mining, type: HardNegativeMining, bottom: [pairs, index, feature2, num_pairs], top: mined}
- {name: loss, type: CorrespondenceContrastiveLoss, bottom: [feature1, feature2, mined],
   top: [loss, counted]}
"""
SOLVER = (
    "net: net.yaml\nbase_lr: 0.1\nlr_policy: fixed\nmomentum: 0.9\nrandom_seed: 5\naverage_loss: 9\n"
    "iter_size: 2\n"
)
RUN = """
import json, os, sys, torch
from torch import distributed as dist
from cortado.nets.solver import Solver
torch.set_num_threads(1)
together = "WORLD_SIZE" in os.environ
if together:
    rank, world = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    dist.init_process_group("gloo", init_method=sys.argv[1], rank=rank, world_size=world)
counts = []
solver = Solver("solver.yaml", together=together)
solver.net.layer_by_name["loss"].register_forward_hook(
    lambda layer, bottoms, tops: counts.append(float(tops[1])))
solver.step(3)
weights = [p.detach().flatten().tolist() for p in solver.net.parameters()]
print(json.dumps({"losses": list(solver.losses), "counts": counts, "weights": sum(weights, [])}))
if together:
    dist.barrier()
    dist.destroy_process_group()
"""


TOGETHER = """
import json, os, sys, torch
from torch import distributed as dist
from cortado.nets.solver import Action, Solver
torch.set_num_threads(1)
rank = int(os.environ["RANK"])
dist.init_process_group("gloo", init_method=sys.argv[1], rank=rank, world_size=2)

def run(asked=(), nan=(), **options):
    asked = iter(asked)
    def feed(n):
        return {"x": torch.full((2, 3), torch.nan if n in nan else 1.0), "t": torch.arange(2.0)}
    solver = Solver("solver.yaml", feed=feed, together=True, max_iter=5, iter_size=2,
        action=lambda: next(asked, Action.NONE), **options)
    try:
        solver.solve()
    except FloatingPointError as error:
        return str(error)
    return solver.iter, solver.stopped

none, stop, snapshot = Action.NONE, Action.STOP, Action.SNAPSHOT
tests = {"test_interval": 1, "test_initialization": False}
print(json.dumps([
    run(((), (none, snapshot, stop))[rank]),
    run(((none, stop), ())[rank], **tests),
    run(nan=((), (3,))[rank]),
    run(display=5, snapshot_after_train=False),
]))
dist.barrier()
dist.destroy_process_group()
"""
LABELLED = """
net_param:
  layer:
  - {name: x, type: Input, top: x, input_param: {shape: {dim: [2, 3]}}}
  - {name: t, type: Input, top: t, input_param: {shape: {dim: [2]}}}
  - {name: ip, type: InnerProduct, bottom: x, top: y, inner_product_param: {num_output: 2}}
  - {name: loss, type: SoftmaxWithLoss, bottom: [y, t], top: loss}
base_lr: 0.1
lr_policy: fixed
test_iter: 1
test_interval: 9
test_initialization: false
"""


def start(
    folder: Path, batch: int, script: str = RUN, solver: str = SOLVER, **environment: str
) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    (folder / "net.yaml").write_text(NET.replace("BATCH", str(batch)))
    (folder / "solver.yaml").write_text(solver)
    store = (folder / "store").as_uri()
    return subprocess.Popen(
        [sys.executable, "-c", script, store],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def result(process: subprocess.Popen[str]) -> Any:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return json.loads(out.splitlines()[-1])


def test_two_processes_train_as_one_with_twice_the_batch(tmp_path):
    several = [
        start(tmp_path / "two", 2, RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
        for rank in range(2)
    ]
    one = start(tmp_path / "one", 4)
    first, second = (result(process) for process in several)
    alone = result(one)
    assert first["losses"] == second["losses"]
    assert first["weights"] == second["weights"]
    counts = np.array([first["counts"], second["counts"]])
    assert (counts[0] != counts[1]).all()
    np.testing.assert_array_equal(counts.sum(0), alone["counts"])
    np.testing.assert_allclose(first["losses"], alone["losses"], rtol=1e-5)
    np.testing.assert_allclose(first["weights"], alone["weights"], rtol=0, atol=1e-5)


def test_what_one_process_meets_all_do(tmp_path):
    both = [
        start(tmp_path, 1, TOGETHER, LABELLED, RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
        for rank in range(2)
    ]
    asked, tested, nan, whole = result(both[0])
    assert result(both[1]) == [asked, tested, nan, whole]
    assert asked == [3, True]
    assert tested == [1, True]
    assert nan.startswith(
        'iteration 1: the loss is nan; layer "x" (solver.yaml:4): top "x" [2, 3] has 6'
    )
    assert whole == [5, False]
    assert {path.name for path in tmp_path.glob("*.solverstate")} == {
        f"solver_iter_{n}.solverstate" for n in (1, 2, 3)
    }


@pytest.fixture
def shares(monkeypatch):
    """Do some work as each of two processes would: once to hear of all counts, once with their sums."""

    def run(work: Callable[[int], Any]) -> list[Any]:
        given: list[list[torch.Tensor]] = [[], []]
        found = []
        monkeypatch.setattr(parallel.dist, "get_world_size", lambda: 2)
        for summed in (False, True):
            for rank in range(2):
                sums = [a + b for a, b in zip(*given, strict=True)] if summed else []

                def all_reduce(count, rank=rank, sums=sums, summed=summed):
                    count.copy_(sums.pop(0)) if summed else given[rank].append(count.clone())

                monkeypatch.setattr(parallel.dist, "get_rank", lambda rank=rank: rank)
                monkeypatch.setattr(parallel.dist, "all_reduce", all_reduce)
                with parallel.together():
                    found.append(work(rank))
        return found[2:]

    return run


@pytest.mark.parametrize("mode", ["VALID", "FULL", "BATCH_SIZE", "NONE"])
@pytest.mark.parametrize("kind", ["SoftmaxWithLoss", "SigmoidCrossEntropyLoss", "InfogainLoss"])
@pytest.mark.parametrize("ignored", [4, 3])
def test_shares_of_a_loss_make_the_whole(shares, kind, mode, ignored):
    layer = registry.find(kind).layer
    loss_param = LossParams(ignore_label=1, normalization=Normalization[mode])
    params = loss_param if layer.Params is LossParams else layer.Params(loss_param=loss_param)
    scores = torch.randn(6, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    label = torch.zeros_like(scores) if kind.startswith("Sigmoid") else torch.zeros(6, 4)
    label[:ignored] = 1  # all of the first share, and as much as that of the second
    more = [torch.eye(3).double() + 0.2] if kind == "InfogainLoss" else []

    def work(rows):
        x = scores[rows].clone().requires_grad_()
        bottoms = (x, label[rows], *more)
        made = layer(params, tuple(tuple(b.shape) for b in bottoms))
        made.tops = ("loss",)
        loss = made(*bottoms)
        loss = loss[0] if isinstance(loss, tuple) else loss
        loss.backward()
        return loss.detach(), x.grad

    loss, grad = work(slice(0, 6))
    parts = shares(lambda rank: work(slice(3 * rank, 3 * rank + 3)))
    torch.testing.assert_close(sum(part[0] for part in parts) / 2, loss)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]) / 2, grad)


def data(kind: str, batch: int) -> Any:
    layer = registry.find(kind).layer
    filler = "data_filler: [{type: gaussian}, {value: 2}]"
    text = {
        "DummyData": f"shape: [{{dim: [{batch}, 3]}}, {{dim: [{batch}]}}]\n{filler}",
        "MemoryData": f"batch_size: {batch}\nchannels: 1\nheight: 1\nwidth: 2",
    }[kind]
    made = layer(bind(layer.Params, loads(text)), (), torch.Generator().manual_seed(0))
    made.tops = ("data", "label")
    if kind == "MemoryData":
        made.set_arrays(np.arange(24.0).reshape(12, 1, 1, 2), np.arange(12.0))
    return made


@pytest.mark.parametrize("kind", ["DummyData", "MemoryData"])
def test_shares_of_a_batch_make_the_whole(shares, kind):
    def work(layer):
        return [layer() for _ in range(4)]

    whole = work(data(kind, 4))
    parts = shares(lambda rank: work(data(kind, 2)))
    for wanted, *found in zip(whole, *parts, strict=True):
        for top, *rows in zip(wanted, *found, strict=True):
            assert torch.equal(torch.cat(rows), top)


def test_shares_of_random_numbers_make_the_whole(shares):
    def work(shape):
        generator = torch.Generator().manual_seed(3)
        return [parallel.own_rows(s, lambda s: torch.rand(s, generator=generator)) for s in (shape, ())]

    first, second = shares(lambda rank: work((2, 3)))
    assert torch.equal(torch.cat([first[0], second[0]]), work((4, 3))[0])
    assert first[1] == second[1]


def test_alone_nothing_is_shared():
    loss = torch.tensor(3.0)
    assert parallel.rank_and_size() == (0, 1)
    assert parallel.balanced(loss, torch.tensor(2)) is loss
    assert parallel.share(6, 3) == (range(6, 9), 9)


SMALL = """
net_param:
  name: small
  layer:
  - {name: x, type: Input, top: x, input_param: {shape: {dim: [4, 6]}}}
  - {name: ip, type: InnerProduct, bottom: x, top: y, inner_product_param: {
      num_output: 3, weight_filler: {type: xavier}}}
  - {name: root, type: ROOT, bottom: y, top: z}
  - {name: loss, type: EuclideanLoss, bottom: [z, y], top: loss}
base_lr: 0.1
lr_policy: fixed
random_seed: 1
"""


def small(**options):
    x = torch.arange(24.0).reshape(4, 6) - 12
    return Solver(loads(SMALL.replace("ROOT", "ReLU")), feed=lambda n: {"x": x}, **options)


def test_mixed_precision_follows_the_full():
    full = small()
    for precision in (torch.bfloat16, torch.float16):
        mixed = small(precision=precision)
        assert mixed.step(1) == pytest.approx(full.step(1), rel=0.02)
        assert mixed.net.params["ip"][0].dtype == torch.float32
        full = small()


def test_an_overflow_leaves_the_iteration_out_and_halves_the_scale():
    lines = []
    solver = small(precision=torch.float16, log=lines.append)
    before = solver.net.params["ip"][0].detach().clone()
    solver._autocast.scale = 2.0**100
    solver.gradients_ready.append(lambda: solver.net.params["ip"][0].grad.fill_(torch.inf))
    solver.step(1)
    assert lines == ["Iteration 0, gradients overflow: no update"]
    assert torch.equal(solver.net.params["ip"][0], before)
    assert solver._autocast.scale == 2.0**99


def test_a_resumed_run_has_the_scale(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    solver = small(precision=torch.float16)
    solver.step(1)
    solver._autocast.scale, solver._autocast.good = 2.0**9, 7
    path = solver.snapshot()
    resumed = small(precision=torch.float16)
    resumed.restore(path)
    assert resumed._autocast.state() == (2.0**9, 7)
    full = small()
    full.restore(path)
    assert full._autocast.state() == (1.0, 0)


def test_precision_is_one_of_two():
    with pytest.raises(ValueError, match="expected torch.bfloat16 or torch.float16"):
        Autocast(torch.float64, torch.device("cpu"))


def test_a_loss_that_is_not_finite_names_the_layer():
    solver = small()
    weight = solver.net.params["ip"][0]
    weight.data[1, 2] = torch.nan
    with pytest.raises(FloatingPointError) as caught:
        solver.step(1)
    assert str(caught.value) == (
        'iteration 0: the loss is nan; layer "ip" (<string>:6): '
        'parameter "weight" [3, 6] has 1 values that are not finite'
    )
    weight.data.fill_(1e38)
    with pytest.raises(FloatingPointError, match=r'layer "ip".*: top "y" \[4, 3\] has \d+ values'):
        solver.step(1)
