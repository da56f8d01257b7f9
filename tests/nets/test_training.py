"""Training around a net: several processes, mixed precision, losses that are not finite."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cortado.layers._runtime import parallel
from cortado.nets.solver import Solver
from cortado.nets.training import Autocast
from cortado.prototxt_like import loads

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
SOLVER = "net: net.yaml\nbase_lr: 0.1\nmomentum: 0.9\nrandom_seed: 5\naverage_loss: 9\niter_size: 2\n"
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
    dist.destroy_process_group()
"""


def start(folder: Path, batch: int, **environment: str) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    (folder / "net.yaml").write_text(NET.replace("BATCH", str(batch)))
    (folder / "solver.yaml").write_text(SOLVER)
    store = (folder / "store").as_uri()
    return subprocess.Popen(
        [sys.executable, "-c", RUN, store],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def result(process: subprocess.Popen[str]) -> dict[str, list[float]]:
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


def test_alone_nothing_is_shared():
    loss = torch.tensor(3.0)
    assert parallel.place() == (0, 1)
    assert parallel.balanced(loss, torch.tensor(2)) is loss
    assert parallel.samples(6, 3) == (range(6, 9), 9)


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
