"""Solver: Caffe's arithmetic bit by bit, schedules, snapshots, and runs that repeat themselves."""

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from cortado.nets.signals import Signals
from cortado.nets.solver import Action, Solver
from cortado.nets.solver_params import read_params
from cortado.nets.solver_state import read_state, write_state
from cortado.nets.updates import RULES
from cortado.nets.weights import save
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
NET_AS_DATA = yaml.safe_load(NET)["layer"]
SOLVER = (
    "net: net.yaml\nbase_lr: 0.05\nmomentum: 0.9\nweight_decay: 0.01\nmax_iter: 8\nrandom_seed: 7\n"
)
FIXED = "lr_policy: fixed\n"


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
        fixed = "" if "lr_policy" in extra else FIXED
        (tmp_path / "solver.yaml").write_text(SOLVER + extra + fixed)
        return Solver("solver.yaml", feed=feed, **{"random_seed": 7, **options})

    return make


def parameters(solver):
    return [parameter.detach().clone() for parameter in solver.net.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("folder", [c for c in cases("10_") if "restore" not in c.id])
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
        if "lr" in arrays:
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
    message = loads(FIXED + "net: net.yaml\nbase_lr: 0.001\nrandom_seed: 3\nsnapshot_prefix: run")
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
        "run_iter_4.caffemodel",
        "run_iter_4.solverstate",
        "run_iter_8.caffemodel",
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
    known = [re.sub(r"(=|\*) [\d.e+-]+|\(\d.*iters\)", r"\1", line) for line in lines]
    test = ["Testing net (#0)", "    Test net output #0: loss = (* = loss)"]
    train = ["loss =", "    Train net output #0: loss = (* = loss)", "lr ="]
    assert [line.replace("  ", " ") for line in known] == [
        line.replace("  ", " ")
        for line in (
            "Solving ",
            "Learning Rate Policy: fixed",
            f"Iteration 0, {test[0]}",
            test[1],
            f"Iteration 0, {train[0]}",
            train[1],
            f"Iteration 0, {train[2]}",
            f"Iteration 4 , {train[0]}",
            train[1],
            f"Iteration 4, {train[2]}",
            f"Iteration 5, {test[0]}",
            test[1],
            f"Iteration 8, {train[0]}",
            "Optimization Done.",
        )
    ]
    assert solver.test_nets[0].params["ip1"][0] is solver.net.params["ip1"][0]
    assert solver.test() == solver.test()


def test_a_test_of_no_passes(solve):
    """HED's solver has test_iter: 0; Caffe divides its loss of nothing by 0."""
    for passes in (0, -3):
        lines = []
        text = f"test_iter: {passes}\ntest_interval: 5\ntest_compute_loss: true\n"
        solver = solve(text + "snapshot_after_train: false\n", log=lines.append)
        solver.solve()
        assert solver.iter == 8
        loss = "nan" if passes == 0 else "-0"
        assert [line for line in lines if "est" in line] == [
            "Iteration 0, Testing net (#0)",
            f"Test loss: {loss}",
            "Iteration 5, Testing net (#0)",
            f"Test loss: {loss}",
        ]
        assert solver.test() == [{}]


def test_negative_intervals_are_as_good_as_positive_ones(solve, tmp_path):
    lines = []
    solve("display: -4\nsnapshot: -3\ntest_interval: -1\n", log=lines.append).solve()
    shown = [line.split(" ")[1].rstrip(",") for line in lines if ", lr =" in line]
    assert shown == ["0", "4"]
    states = sorted(path.name for path in tmp_path.glob("*.solverstate"))
    assert states == [f"solver_iter_{n}.solverstate" for n in (3, 6, 8)]


def test_several_test_nets(solve, tmp_path):
    more = "- {name: more, type: Silence, bottom: x, include: {stage: extra}}\n"
    (tmp_path / "net.yaml").write_text(NET)
    (tmp_path / "other.yaml").write_text(NET + more)
    lines = []
    solver = solve(
        "test_net: other.yaml\ntest_iter: [1, 2]\ntest_interval: 1\ntest_compute_loss: true\n"
        "test_state: [{stage: extra}, {phase: TRAIN}]\n",
        log=lines.append,
    )
    assert ["more" in net.layer_by_name for net in solver.nets] == [False, True, False]
    assert [net.training for net in solver.nets] == [True, False, True]
    assert len(solver.test()) == 2
    assert [line[:4] for line in lines if "loss:" in line] == ["Test", "Test"]


def test_the_nets_own_state_holds_where_the_solver_says_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.yaml").write_text("state: {phase: TRAIN, level: 2, stage: own}\n" + NET)
    text = "net: net.yaml\ntest_iter: 1\ntest_interval: 1\ntrain_state: {level: 3, stage: mine}\n"
    solver = Solver(loads(FIXED + text))
    states = [net.graph.state for net in solver.nets]
    assert [state.phase for state in states] == ["TRAIN", "TRAIN"]
    assert [state.level for state in states] == [3, 2]
    assert [state.stages for state in states] == [("own", "mine"), ("own",)]


def test_nets_inside_of_the_solver_spec():
    text = "net_param: {name: inside, " + json.dumps({"layer": NET_AS_DATA})[1:] + "\nbase_lr: 0.1\n"
    solver = Solver(loads(FIXED + text), feed=feed)
    assert solver.net.graph.name == "inside"
    assert np.isfinite(solver.step())


def test_weight_decay_l1(solve):
    solver = solve("regularization_type: L1\n", base_lr=1.0, momentum=0.0, weight_decay=0.5)
    before = parameters(solver)
    solver.step()
    for p, q in zip(before, solver.net.parameters(), strict=True):
        torch.testing.assert_close(q.detach(), p - q.grad - 0.5 * p.sign())


def test_any_rate_momentum_and_decay(solve):
    """Caffe's V = momentum V + rate (g + decay w), w <- w - V, whatever their signs."""
    given = {"base_lr": -0.05, "momentum": -0.5, "weight_decay": -0.2}
    read = read_params(loads(json.dumps({"net": "a", "lr_policy": "fixed", **given})))
    assert given.items() <= dataclasses.asdict(read).items()
    solver = solve(**given)
    p = [parameters(solver)]
    gradients = []
    for _ in range(2):
        solver.step()
        p.append(parameters(solver))
        gradients.append([q.grad.clone() for q in solver.net.parameters()])
    for w0, w1, w2, g1, g2 in zip(*p, *gradients, strict=True):
        v1 = -0.05 * (g1 - 0.2 * w0)
        torch.testing.assert_close(w1, w0 - v1)
        torch.testing.assert_close(w2, w1 - (-0.5 * v1 - 0.05 * (g2 - 0.2 * w1)))


@pytest.mark.parametrize(("limit", "factor"), [("inf", 1), ("-inf", 1), ("0", 0)])
def test_clip_gradients_at_its_ends(solve, limit, factor):
    solver = solve(f"clip_gradients: {limit}\n", momentum=0.0, weight_decay=0.0)
    before = parameters(solver)
    solver.step()
    for p, q in zip(before, solver.net.parameters(), strict=True):
        torch.testing.assert_close(q.detach(), p - 0.05 * factor * q.grad)


@pytest.mark.parametrize(
    ("kind", "options", "wanted"),
    [
        ("AdaGrad", {"delta": -1}, 3 / (3 - 1)),
        ("RMSProp", {"delta": -1, "rms_decay": 0}, 3 / (3 - 1)),
        ("AdaDelta", {"momentum": -1, "delta": 4}, 3 * math.sqrt(4 / (2 * 9 + 4))),
        ("Adam", {"momentum": -0.5, "momentum2": -0.5, "delta": 0}, 1),
        ("Adam", {"momentum": 0.9, "momentum2": 1}, 0),
        ("Nesterov", {"momentum": -0.5}, 3 * (1 - 0.5)),
    ],
)
def test_rules_take_what_caffes_take(kind, options, wanted):
    """One update of a gradient of 3 at rate 1, from an empty history."""
    text = f"net: a\ntype: {kind}\n{FIXED}" + "".join(f"{k}: {v}\n" for k, v in options.items())
    params, rule = read_params(loads(text)), RULES[kind]
    history = [torch.zeros(1) for _ in range(rule.histories)]
    update = rule.update(params, 1.0, 0, torch.tensor([3.0]), history)
    assert float(update) == pytest.approx(wanted)


def test_what_is_not_read_may_be_anything():
    text = "stepsize: -1\nstepvalue: -4\ngamma: -1\nmomentum2: 7\nrms_decay: 3\nmax_iter: -1\n"
    text += "test_interval: -4\ndevice_id: -1\nregularization_type: none\n"
    params = read_params(loads("net: a\n" + FIXED + text))
    assert (params.gamma, params.stepvalue, params.device_id) == (-1, (-4,), -1)


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
                '  did you mean "Adam"? known: AdaDelta, AdaGrad, Adam, Nesterov, RMSProp, SGD',
            ],
        ),
        (
            "net: a\nlr_policy: steps",
            [
                '<string>:2:12: error: unknown lr_policy "steps"',
                '  did you mean "step"? known: exp, fixed, inv, multistep, poly, sigmoid, step',
            ],
        ),
        (
            "net: a\nbase_lr: 1",
            [
                '<string>:1:1: error: a solver needs "lr_policy"',
                "  lr_policy: one of exp, fixed, inv, multistep, poly, sigmoid, step",
            ],
        ),
        ("net: a\nlr_policy: step", ['<string>:2:12: error: lr_policy "step" needs stepsize']),
        ("net: a\nlr_policy: poly", ['<string>:2:12: error: lr_policy "poly" needs max_iter']),
        (
            "net: a\nlr_policy: sigmoid\nstepsize: -3",
            ['<string>:3:11: error: lr_policy "sigmoid" needs stepsize above 0, got -3'],
        ),
        (
            "net: a\nlr_policy: poly\nmax_iter: 0",
            ['<string>:3:11: error: lr_policy "poly" needs max_iter above 0, got 0'],
        ),
        (
            "net: a\ntype: AdaGrad\nmomentum: 0.9",
            ["<string>:3:11: error: AdaGrad has no momentum, got 0.9"],
        ),
        (
            "net: a\ntype: RMSProp\nrms_decay: 1",
            ["<string>:3:12: error: RMSProp's rms_decay must be at least 0 and below 1, got 1"],
        ),
        (
            "net: a\ntype: RMSProp\nrms_decay: -0.1",
            ["<string>:3:12: error: RMSProp's rms_decay must be at least 0 and below 1, got -0.1"],
        ),
        (
            "net: a\ntype: Adam\nmomentum: 1",
            ["<string>:3:11: error: Adam has no bias correction for a momentum of 1"],
        ),
        (
            "net: a\ntype: Adam\nmomentum2: 1.5",
            ["<string>:3:12: error: Adam's momentum2 must be in -1..1, got 1.5"],
        ),
        (
            "net: a\nweight_decay: 1\nregularization_type: L3",
            ['<string>:3:22: error: unknown regularization_type "L3"', "  known: L1, L2"],
        ),
        (
            "net: a\ntest_interval: 9\ntest_net: [b, c]\ntest_iter: 1",
            [
                "<string>:4:12: error: test_iter is given once for each test net: "
                "2 test nets or more, got 1"
            ],
        ),
        (
            "net: a\ntrain_net: b",
            ["<string>:1:6: error: a solver trains one net, given by train_net and net"],
        ),
        ("base_lr: 1", ['<string>:1:1: error: a solver needs "net"']),
        (
            "net_param: [{name: a}, {name: b}]",
            ['<string>:1:24: error: "net_param" takes one value, already given at <string>:1:13'],
        ),
        ("net: a\niter_size: 0", ["<string>:2:12: error: iter_size must be at least 1, got 0"]),
        ("net: a\naverage_loss: 0", ["<string>:2:15: error: average_loss must be at least 1, got 0"]),
        ("net: a\ntest_iter: 5", ["<string>:2:12: error: test_iter needs test_interval"]),
        (
            "net: a\ntest_iter: 0\ntest_interval: -1",
            ["<string>:3:16: error: test_iter needs test_interval above 0, got -1"],
        ),
    ],
)
def test_solver_spec_mistakes(text, wanted):
    if not any("lr_policy" in part for part in (text, *wanted)):
        text += "\n" + FIXED
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
        if entry["aborts"]:
            with pytest.raises(SpecError, match=r"prototxt:\d+:\d+: error: "):
                read_params(load(folder / entry["file"]))
        else:
            read_params(load(folder / entry["file"]))


def test_a_net_that_is_not_there():
    with pytest.raises(SpecError, match='1:6: error: no file "net_.yaml" beside the solver'):
        Solver(loads("net: net_.yaml\n" + FIXED))


def test_a_mistyped_solver_field():
    with pytest.raises(SpecError, match='a solver has no parameter "base_rl"'):
        Solver(loads("net: a\nbase_rl: 1"))


@pytest.mark.parametrize("name", ["10_restore_adam", "10_restore_adadelta_hdf5"])
@pytest.mark.caffe_vector
def test_goes_on_from_a_snapshot_of_caffe(name):
    folder = case(name)
    arrays = np.load(folder / "data.npz")
    rows = {name: torch.from_numpy(arrays[f"input/{name}"]) for name in ("x", "t")}
    solver = Solver(
        folder / "solver.prototxt", feed=lambda n: {name: row[n] for name, row in rows.items()}
    )
    (state,) = folder.glob("snap_iter_5.solverstate*")
    solver.restore(state)
    assert solver.iter == 5
    solver.step(5)
    for layer, blobs in solver.net.params.items():
        for i, blob in enumerate(blobs):
            close(blob, arrays[f"restored/iter10/param/{layer}/{i}"])


@pytest.mark.parametrize("format", ["BINARYPROTO", "HDF5", "SAFETENSORS"])
@pytest.mark.parametrize("kind", ["Nesterov", "AdaDelta"])
def test_every_snapshot_format_keeps_the_bits(solve, format, kind):
    options = f"type: {kind}\nsnapshot_format: {format}\nlr_policy: multistep\ngamma: 0.5\n"
    options += "stepvalue: [1, 2]\n"
    straight = solve(options)
    straight.step(3)
    path = straight.snapshot()
    straight.step(2)
    resumed = solve(options, random_seed=3)
    resumed.restore(path)
    resumed.step(2)
    assert same(parameters(straight), parameters(resumed))
    assert resumed.current_step == straight.current_step == 2


@pytest.mark.parametrize("suffix", [".solverstate", ".solverstate.h5"])
def test_broken_states(solve, tmp_path, suffix):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(b"nonsense" * 9)
    with pytest.raises((ValueError, SpecError), match=f"broken{suffix}"):
        solve().restore(path)
    solver = solve()
    state = read_state(solver.snapshot())
    for changed in ({"extra": b"PK"}, {"history": state.history[1:]}):
        write_state(path, dataclasses.replace(state, **changed))
        before = parameters(solver)
        with pytest.raises(ValueError, match="broken solver state|of a net with other parameters"):
            solver.restore(path)
        assert same(before, parameters(solver))
    write_state(path, dataclasses.replace(state, learned_net="gone.caffemodel"))
    with pytest.raises(FileNotFoundError, match=r"goes with the weights gone\.caffemodel, which are"):
        solver.restore(path)
    write_state(path, dataclasses.replace(state, learned_net=""))
    solver.restore(path)
    assert same(before, parameters(solver))


def test_actions(solve, tmp_path):
    asked = iter([Action.NONE, Action.SNAPSHOT, Action.STOP, Action.NONE])
    lines = []
    solver = solve(action=lambda: next(asked), log=lines.append)
    solver.solve()
    assert solver.iter == 3
    assert lines[-1] == "Optimization stopped early."
    assert {path.name for path in tmp_path.glob("*.solverstate")} == {
        "solver_iter_2.solverstate",
        "solver_iter_3.solverstate",
    }


def test_signals_ask_and_are_given_back(solve):
    before = signal.getsignal(signal.SIGINT)
    signals = Signals()
    with signals:
        solver = solve(
            action=signals,
            on_iteration=lambda solver, _: solver.iter == 2 and os.kill(os.getpid(), signal.SIGINT),
        )
        solver.step(8)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert [signals() for _ in range(3)] == [Action.SNAPSHOT, Action.STOP, Action.NONE]
    assert solver.iter == 2
    assert solver.stopped
    assert signal.getsignal(signal.SIGINT) is before


def test_callbacks(solve):
    seen = []
    solver = solve()
    solver.before_forward.append(lambda: seen.append("start"))
    solver.gradients_ready.append(lambda: seen.append(solver.net.params["ip1"][0].grad is not None))
    solver.step(2)
    assert seen == ["start", True] * 2


KILLED = """
import os, sys, torch
from cortado.nets.solver import Solver
torch.set_num_threads(1)
solver = Solver("solver.yaml", feed=lambda n: {"x": torch.ones(4, 5), "t": torch.ones(4, 2)})
while True:
    solver.step(1)
    solver.snapshot()
    print(solver.iter, flush=True)
"""


def test_a_kill_at_any_moment_leaves_the_last_good_snapshot(solve, tmp_path):
    solver = solve("snapshot_prefix: run\n")
    rng = np.random.default_rng(0)
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE) as process:
        for _ in range(6):
            done = int(process.stdout.readline())
        time.sleep(rng.uniform(0, 0.02))
        process.kill()
        rest = process.stdout.read().split()
    done = int(rest[-1]) if rest else done
    states = sorted(tmp_path.glob("run_iter_*.solverstate"), key=lambda p: int(p.stem.split("_")[-1]))
    assert len(states) in (done, done + 1)
    for path in states:
        solver.restore(path)
        assert f"run_iter_{solver.iter}" == path.stem


def test_a_stop_or_a_snapshot_while_testing(solve, tmp_path):
    asked = iter([Action.NONE, Action.SNAPSHOT, Action.NONE, *[Action.NONE] * 3, Action.STOP])
    lines = []
    solver = solve(
        "test_iter: 2\ntest_interval: 2\n", action=lambda: next(asked), log=lines.append, max_iter=9
    )
    solver.solve()
    assert solver.iter == 2
    assert solver.stopped
    assert lines[-5:-3] == ["Iteration 2, Testing net (#0)", "Test interrupted."]
    assert lines[-1] == "Optimization stopped early."
    assert (tmp_path / "solver_iter_0.solverstate").exists()
    assert (tmp_path / "solver_iter_2.solverstate").exists()


def test_a_test_interval_without_tests_is_nothing(solve):
    solver = solve("test_interval: 1\nsnapshot_after_train: false\n")
    solver.solve()
    assert solver.iter == 8
    with pytest.raises(ValueError, match="nothing to test"):
        solver.test()


def test_tests_do_not_change_what_training_draws(solve, tmp_path):
    (tmp_path / "net.yaml").write_text(NET)
    runs = []
    for more in ("", "test_iter: 3\ntest_interval: 1\ntest_state: {phase: TRAIN}\n"):
        solver = solve(more)
        solver.step(3)
        runs.append(parameters(solver))
    assert same(*runs)


def test_snapshots_that_could_not_be_written_are_refused_at_the_start(solve, tmp_path):
    (tmp_path / "file").write_text("")
    for prefix in ("file/run", "file/sub/run"):
        with pytest.raises(
            SpecError, match=f"snapshots cannot be written to {os.path.dirname(prefix)}"
        ):
            solve(f"snapshot: 5\nsnapshot_prefix: {prefix}\n")
    solver = solve("snapshot_prefix: file/run\n")
    with pytest.raises(
        SpecError, match=r"solver\.yaml:7:18: error: snapshots cannot be written to file"
    ):
        solver.solve()
    assert solver.iter == 0


def test_weights_fill_what_only_a_test_net_has(solve, tmp_path):
    more = (
        "- {name: more, type: InnerProduct, bottom: y, top: z, inner_product_param: {num_output: 1}}\n"
    )
    (tmp_path / "more.yaml").write_text(NET + more)
    trained = Solver(loads(FIXED + "net: more.yaml"))
    trained.net.params["more"][0].data.fill_(3)
    save(trained.net, tmp_path / "w.pth")
    save(solve().net, tmp_path / "other.caffemodel")
    text = "test_net: more.yaml\ntest_iter: 1\ntest_interval: 5\nweights: 'other.caffemodel, w.pth'\n"
    solver = solve(text)
    assert (solver.test_nets[0].params["more"][0] == 3).all()
    assert torch.equal(solver.net.params["ip1"][0], trained.net.params["ip1"][0])
    assert [len(report.filled) for report in solver.reports] == [2, 2]
    assert solve(text, weights="").reports == []


def test_policies_at_their_ends(solve):
    solver = solve("lr_policy: sigmoid\ngamma: 1\nstepsize: 5000\n")
    assert solver.rate == pytest.approx(0, abs=1e-300)
    solver = solve("lr_policy: poly\npower: 0.5\n", max_iter=1)
    solver.step()
    assert solver.rate == 0
    assert solver.last_rate == 0.05
    solver.iter = 2
    with pytest.raises(ValueError, match='"poly" ends at max_iter 1, this is iteration 2'):
        solver.step()


def test_poly_beyond_its_end(solve):
    """Of a whole power Caffe's formula goes on: base_lr (1 - 6 / 4)^power."""
    for power, factor in ((1, -0.5), (2, 0.25), (-1, -2)):
        solver = solve(f"lr_policy: poly\npower: {power}\n", max_iter=4)
        solver.iter = 6
        assert solver.rate == pytest.approx(0.05 * factor)
    solver.iter = 4
    with pytest.raises(ValueError, match='"poly" ends at max_iter 4, this is iteration 4'):
        assert solver.rate


def test_a_step_before_the_beginning(solve):
    solver = solve("lr_policy: multistep\ngamma: 0.5\nstepvalue: [-1, 2]\n")
    rates = []
    for _ in range(4):
        solver.step()
        rates.append(solver.last_rate)
    assert rates == pytest.approx([0.025, 0.025, 0.0125, 0.0125])
