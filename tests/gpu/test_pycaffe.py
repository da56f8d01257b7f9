"""Caffe's Python interface in mode GPU: the same numbers, and arrays that write through."""

import cortado.pycaffe as caffe
import numpy as np
import pytest
from device import on_cuda

pytestmark = [pytest.mark.gpu, on_cuda]

NET = """
layer { name: "x" type: "Input" top: "x" top: "t"
  input_param { shape { dim: 4 dim: 2 dim: 6 dim: 7 } shape { dim: 4 } } }
layer { name: "conv" type: "Convolution" bottom: "x" top: "conv"
  convolution_param { num_output: 3 kernel_size: 3 weight_filler { type: "gaussian" std: 0.3 } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "t" top: "loss" }
"""
SOLVER = 'net: "net.prototxt" base_lr: 0.1 momentum: 0.9 lr_policy: "fixed" random_seed: 1'


@pytest.fixture
def run(tmp_path, monkeypatch):
    (tmp_path / "net.prototxt").write_text(NET, encoding="utf-8")
    (tmp_path / "solver.prototxt").write_text(SOLVER, encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    def steps():
        """Three steps, each on a batch written into the blobs; all that can be seen behind them."""
        solver = caffe.get_solver("solver.prototxt")
        rng = np.random.default_rng(0)
        for _ in range(3):
            solver.net.blobs["x"].data[...] = rng.standard_normal((4, 2, 6, 7))
            solver.net.blobs["t"].data[...] = rng.integers(3, size=4)
            solver.step(1)
            solver.net.params["ip"][1].data[...] += 0.5
        seen = {name: blob.data.copy() for name, blob in solver.net.blobs.items()}
        for name, blobs in solver.net.params.items():
            seen |= {f"{name}/{i}": blob.data.copy() for i, blob in enumerate(blobs)}
            seen |= {f"{name}/{i}/diff": blob.diff.copy() for i, blob in enumerate(blobs)}
        assert solver.net._device == caffe.mode.device()
        return seen

    yield steps
    caffe.set_mode_cpu()


def test_as_on_the_cpu(run):
    on_cpu = run()
    caffe.set_device(0)
    caffe.set_mode_gpu()
    on_gpu = run()
    assert set(on_cpu) == set(on_gpu)
    for name, wanted in on_cpu.items():
        np.testing.assert_allclose(on_gpu[name], wanted, rtol=1e-3, atol=1e-4, err_msg=name)


def test_a_net_follows_the_mode(run):
    net = caffe.Net("net.prototxt", caffe.TRAIN)
    net.blobs["x"].data[...] = 1
    loss = float(net.forward()["loss"])
    caffe.set_mode_gpu()
    net.blobs["x"].data[0] = 2
    net.params["conv"][1].data[...] = 0
    assert float(net.forward()["loss"]) != loss
    net.blobs["x"].data[0] = 1
    assert float(net.forward()["loss"]) == pytest.approx(loss, rel=1e-3)
    caffe.set_mode_cpu()
    assert float(net.forward()["loss"]) == pytest.approx(loss, rel=1e-5)
