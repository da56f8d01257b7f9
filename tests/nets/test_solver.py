"""Solver: Caffe's arithmetic bit by bit, schedules, snapshots, and runs that repeat themselves."""

import json

import numpy as np
import pytest
import torch
from cortado.nets.solver import Solver, read_params
from cortado.prototxt_like import SpecError, load, loads
from shared import case, cases

NET = """
layer:
- {name: x, type: Input, top: x, input_param: {shape: {dim: [4, 5]}}}
- {name: t, type: Input, top: t, input_param: {shape: {dim: [4, 2]}}}
- {name: ip1, type: InnerProduct, bottom: x, top: h, inner_product_param: {
    num_output: 6, weight_filler: {type: xavier}}}
- {name: drop, type: Dropout, bottom: h, top: h, dropout_param: {dropout_ratio: 0.3}}
- {name: ip2, type: InnerProduct, bottom: h, top: y, inner_product_param: {
    num_output: 2, weight_filler: {type: xavier}}}
- {name: loss, type: EuclideanLoss, bottom: [y, t], top: loss}
"""
SOLVER = (
    "net: net.yaml\nbase_lr: 0.05\nmomentum: 0.9\nweight_decay: 0.01\nmax_iter: 8\nrandom_seed: 7\n"
)


def feed(n):
    rng = np.random.default_rng(n)
    return {
        "x": torch.from_numpy(rng.standard_normal((4, 5), dtype=np.float32)),
        "t": torch.from_numpy(rng.standard_normal((4, 2), dtype=np.float32)),
    }


@pytest.fixture
def solve(tmp_path, monkeypatch):
    """Make a solver of the small net in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.yaml").write_text(NET)

    def make(extra="", **options):
        (tmp_path / "solver.yaml").write_text(SOLVER + extra)
        return Solver("solver.yaml", feed=feed, **{"random_seed": 7, **options})

    return make


def parameters(solver):
    return [parameter.detach().clone() for parameter in solver.net.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("folder", cases("10_sgd", "10_adam", "10_lr_step"))
def test_as_caffe(folder):
    arrays = np.load(folder / "data.npz")
    rows = {name: torch.from_numpy(arrays[f"input/{name}"]) for name in ("x", "t")}
    solver = Solver(
        folder / "solver.prototxt",
        feed=lambda n: {name: row[n] for name, row in rows.items()},
        weights=folder / "weights.caffemodel",
    )
    for k in range(11):
        for layer, blobs in solver.net.params.items():
            for i, blob in enumerate(blobs):
                close(blob, arrays[f"iter{k}/param/{layer}/{i}"])
        if k == 10:
            break
        np.testing.assert_allclose(solver.rate, arrays["lr"][k], rtol=1e-6)
        solver.step()
        for layer, blobs in solver.net.params.items():
            for i, blob in enumerate(blobs):
                gradient = torch.zeros_like(blob) if blob.grad is None else blob.grad
                close(gradient, arrays[f"iter{k}/grad/{layer}/{i}"])
    for k, history in enumerate(history for of in zip(*solver.history, strict=True) for history in of):
        close(history, arrays[f"history/{k}"])


def close(found, wanted):
    found = found.detach().numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * max(abs(wanted).max(), 1e-30))


def test_seeds_give_the_same_run_twice(solve):
    runs = []
    for seed in (7, 7, 8):
        torch.manual_seed(len(runs))  # the caller's own random numbers do not matter
        solver = solve(random_seed=seed)
        solver.step(5)
        runs.append(parameters(solver))
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_the_callers_random_numbers_are_left_alone(solve):
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    solve().step(2)
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_a_resumed_run_has_the_same_bits(solve, kind):
    straight = solve(f"type: {kind}\n", snapshot=3)
    straight.step(8)
    resumed = solve(f"type: {kind}\n", random_seed=1)
    resumed.restore("solver_iter_3.solverstate")
    assert resumed.iter == 3
    assert resumed.step(5) == straight.losses[-1]
    assert same(parameters(straight), parameters(resumed))


def test_data_layers_go_on_where_they_were(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.yaml").write_text(
        """
layer:
- name: data
  type: CorrespondencePairs
  top: [a, b, pairs, n]
  transform_param: {crop_size: 16, scale: 0.01}
  correspondence_pairs_param: {source: "skimage:camera", num_points: 4}
- {name: quiet, type: Silence, bottom: [b, pairs, n]}
- {name: ip, type: InnerProduct, bottom: a, top: y, inner_product_param: {num_output: 1}}
- {name: zero, type: InnerProduct, bottom: a, top: z, param: [{lr_mult: 0}, {lr_mult: 0}],
   inner_product_param: {num_output: 1, bias_filler: {value: 1}}}
- {name: loss, type: EuclideanLoss, bottom: [y, z], top: loss}
"""
    )
    message = loads("net: net.yaml\nbase_lr: 0.001\nrandom_seed: 3\nsnapshot_prefix: run")
    straight = Solver(message)
    straight.step(2)
    path = straight.snapshot()
    straight.step(2)
    resumed = Solver(message, random_seed=4)
    resumed.restore(path)
    resumed.step(2)
    assert same(parameters(straight), parameters(resumed))


def test_snapshots_are_named_by_iteration_and_leave_nothing_beside(solve, tmp_path):
    solver = solve("snapshot: 4\nsnapshot_prefix: out/run\n")
    solver.solve()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "run_iter_4.safetensors",
        "run_iter_4.solverstate",
        "run_iter_8.safetensors",
        "run_iter_8.solverstate",
    ]


def test_restore_refuses_another_solvers_state(solve):
    solver = solve()
    path = solver.snapshot()
    with pytest.raises(ValueError, match="is of a SGD solver, this one is Adam"):
        solve("type: Adam\n").restore(path)


def test_display_and_tests(solve):
    lines = []
    solver = solve(
        "display: 4\ntest_iter: 2\ntest_interval: 5\naverage_loss: 2\nsnapshot_after_train: false\n",
        log=lines.append,
    )
    solver.solve()
    assert [line.rpartition(" = ")[0] or line.partition(", loss")[0] for line in lines] == [
        "iteration 0, test loss",
        "iteration 0",
        "iteration 4",
        "iteration 5, test loss",
    ]
    assert solver.test_net.params["ip1"][0] is solver.net.params["ip1"][0]
    assert solver.test()["loss"] == solver.test()["loss"]


def test_weight_decay_l1(solve):
    solver = solve("regularization_type: L1\n", base_lr=1.0, momentum=0.0, weight_decay=0.5)
    before = parameters(solver)
    solver.step()
    for p, q in zip(before, solver.net.parameters(), strict=True):
        torch.testing.assert_close(q.detach(), p - q.grad - 0.5 * p.sign())


def test_on_iteration(solve):
    seen = []
    solve(on_iteration=lambda solver, loss: seen.append((solver.iter, loss))).step(2)
    assert [iteration for iteration, _ in seen] == [1, 2]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "net: a\ntype: Adm",
            [
                '<string>:2:7: error: unknown type "Adm"',
                '  did you mean "Adam"? known: Adam, SGD',
            ],
        ),
        (
            "net: a\nlr_policy: steps",
            [
                '<string>:2:12: error: unknown lr_policy "steps"',
                '  did you mean "step"? known: fixed, step',
            ],
        ),
        ("net: a\nlr_policy: step", ['<string>:2:12: error: lr_policy "step" needs stepsize']),
        ("base_lr: 1", ['<string>:1:1: error: a solver needs "net"']),
        ("net: a\nbase_lr: -1", ["<string>:2:10: error: base_lr must be at least 0, got -1"]),
        ("net: a\ntest_interval: 5", ["<string>:2:16: error: test_interval needs test_iter"]),
    ],
)
def test_solver_spec_mistakes(text, wanted):
    with pytest.raises(SpecError) as caught:
        Solver(loads(text))
    lines = str(caught.value).splitlines()
    assert [lines[0], *lines[3:]] == wanted


@pytest.mark.caffe_vector
def test_refuses_what_caffe_refuses():
    folder = case("11_errors")
    tried = json.loads((folder / "errors.json").read_text(encoding="utf-8"))
    chosen = [entry for entry in tried if entry["action"] == "solver"]
    assert len(chosen) == 8
    for entry in chosen:
        message = load(folder / entry["file"])
        if entry["aborts"]:
            with pytest.raises(SpecError, match=r"prototxt:\d+:\d+: error: "):
                read_params(message)
        else:
            read_params(message)


def test_a_net_that_is_not_there():
    with pytest.raises(SpecError, match='1:6: error: no file "net_.yaml" beside the solver'):
        Solver(loads("net: net_.yaml"))


def test_a_mistyped_solver_field():
    with pytest.raises(SpecError, match='a solver has no parameter "base_rl"'):
        Solver(loads("net: a\nbase_rl: 1"))
