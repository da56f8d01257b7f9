"""Solvers as scripts for Caffe use them."""

import os

import cortado.pycaffe as caffe
import numpy as np
import pytest
import torch

NET = """
layer { name: "data" type: "DummyData" top: "x" top: "t"
  dummy_data_param { shape { dim: 8 dim: 3 } shape { dim: 8 dim: 2 }
    data_filler { type: "constant" value: 0.5 } data_filler { type: "constant" value: 1 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y"
  inner_product_param { num_output: 2 weight_filler { type: "gaussian" std: 0.1 } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "y" bottom: "t" top: "loss" }
"""
SOLVER = """net: "net.prototxt" base_lr: 0.1 lr_policy: "step" stepsize: 2 gamma: 0.5 momentum: 0.5
max_iter: 6 snapshot_prefix: "small" random_seed: 4 """


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.prototxt").write_text(NET, encoding="utf-8")

    def write(text=SOLVER):
        (tmp_path / "solver.prototxt").write_text(text, encoding="utf-8")
        return "solver.prototxt"

    return write


def test_a_loop_of_steps(file):
    solver = caffe.SGDSolver(file())
    losses = []
    for iteration in range(5):
        assert solver.iter == iteration
        before = solver.net.params["ip"][0].data.copy()
        solver.step(1)
        losses.append(float(solver.net.blobs["loss"].data))
        moved = before - solver.net.params["ip"][0].data
        np.testing.assert_allclose(solver.net.params["ip"][0].diff, moved, atol=1e-7)
    assert losses == sorted(losses, reverse=True)
    assert solver.lr == pytest.approx(0.1 * 0.5**2)
    assert (solver.param.max_iter, solver.param.display) == (6, 0)
    solver.param.base_lr = 0.2
    assert solver.lr == pytest.approx(0.2 * 0.5**2)


def test_an_update_from_diffs_of_ones_own(file):
    """As Caffe's apply_update: diffs that a script computed itself."""
    solver = caffe.get_solver(file())
    weight = solver.net.params["ip"][0]
    weight.data[...] = 0
    weight.diff[...] = 1
    solver.apply_update()
    np.testing.assert_allclose(weight.data, -0.1, rtol=1e-6)
    assert solver.iter == 0


def test_solve_snapshot_and_restore(file):
    solver = caffe.get_solver(file())
    solver.step(3)
    solver.snapshot()
    solver.solve()
    assert solver.iter == 6
    assert {"small_iter_3.caffemodel", "small_iter_3.solverstate"} <= set(os.listdir())
    again = caffe.get_solver(file())
    again.solve("small_iter_3.solverstate")
    assert again.iter == 6
    np.testing.assert_array_equal(again.net.params["ip"][0].data, solver.net.params["ip"][0].data)
    net = caffe.Net("net.prototxt", caffe.TEST, weights="small_iter_6.caffemodel")
    np.testing.assert_array_equal(net.params["ip"][0].data, solver.net.params["ip"][0].data)


def test_test_nets(file):
    solver = caffe.SGDSolver(file(SOLVER + "test_iter: 2 test_interval: 2"))
    (test_net,) = solver.test_nets
    solver.step(3)
    assert test_net.params["ip"][0].data is not solver.net.params["ip"][0].data
    np.testing.assert_array_equal(test_net.params["ip"][0].data, solver.net.params["ip"][0].data)
    during = float(test_net.blobs["loss"].data)
    assert 0 < float(test_net.forward()["loss"]) < during


def test_callbacks_and_shared_weights(file):
    solver = caffe.SGDSolver(file())
    seen = []

    def gradients_ready():
        seen.append(float(np.abs(solver.net.params["ip"][0].diff).sum()))

    solver.add_callback(lambda: seen.append("start"), gradients_ready)
    solver.step(2)
    assert seen[::2] == ["start", "start"]
    assert all(value > 0 for value in seen[1::2])
    other = caffe.Net("net.prototxt", caffe.TEST)
    solver.share_weights(other)
    solver.step(1)
    np.testing.assert_array_equal(other.params["ip"][0].data, solver.net.params["ip"][0].data)


@pytest.mark.parametrize("name", ["SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam"])
def test_types(file, name):
    momentum = "momentum: 0" if name in ("AdaGrad", "RMSProp") else "momentum: 0.9"
    text = SOLVER.replace("momentum: 0.5", momentum) + "delta: 1e-3"
    cls = getattr(caffe, f"{name}Solver")
    by_class, by_file = cls(file(text)), caffe.get_solver(file(text + f' type: "{name}"'))
    assert type(by_file) is cls
    for solver in (by_class, by_file):
        solver.step(2)
    np.testing.assert_array_equal(by_class.net.params["ip"][0].data, by_file.net.params["ip"][0].data)
    if name in ("AdaGrad", "RMSProp"):
        with pytest.raises(ValueError, match=f"{name} has no momentum, got 0.5"):
            cls(file(SOLVER))


def test_the_seed_of_the_process(file):
    text = SOLVER.replace("random_seed: 4", "")
    weights = []
    for _ in range(2):
        caffe.set_random_seed(11)
        weights.append(caffe.SGDSolver(file(text)).net.params["ip"][0].data.copy())
    np.testing.assert_array_equal(*weights)


def test_a_loss_that_is_not_finite_goes_on_as_in_caffe(file, caplog):
    solver = caffe.SGDSolver(file())
    solver.net.params["ip"][0].data[...] = np.nan
    solver.step(1)
    assert np.isnan(solver.net.blobs["loss"].data)
    assert "not finite" in caplog.text


def test_modes():
    assert caffe.solver_count() == 1
    caffe.set_solver_count(1)
    caffe.set_multiprocess(True)
    assert caffe.solver_rank() == 0
    assert not caffe.has_nccl()
    with pytest.raises(RuntimeError, match="has_nccl"):
        caffe.NCCL(None, "")
    caffe.set_mode_cpu()
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="no GPU 0: torch finds 0"):
            caffe.set_mode_gpu()
        with pytest.raises(RuntimeError, match="no GPU 1"):
            caffe.set_device(1)
    timer = caffe.Timer()
    timer.start()
    timer.stop()
    assert timer.ms >= 0
    assert {"Convolution", "Python", "SoftmaxWithLoss"} <= set(caffe.layer_type_list())


def test_log(capsys):
    caffe.init_log(0)
    try:
        caffe.log("a line")
        assert "a line" in capsys.readouterr().err
    finally:
        caffe.mode.LOGGER.handlers.clear()
        caffe.mode.LOGGER.setLevel(0)
