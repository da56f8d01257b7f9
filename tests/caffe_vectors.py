"""Runs our net on a case that real Caffe computed, and compares everything that was recorded.

A case is a folder: net.prototxt, meta.json, data.npz (what went in, every blob and every gradient)
and the parameters. A blob written in place shows its last value, and the gradient of its first. A
case of several steps has a set of these arrays for each, and the parameters that each one leaves.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from cortado.nets.net import Blobs, Net
from torch import Tensor

TOLERANCE = 1e-5  # of an array's largest magnitude
HUGE = 1e37  # Caffe's -FLT_MAX stands for "nothing": compared, but no scale


def check(folder: Path, tolerance: float = TOLERANCE) -> None:
    """Forward, and backward where the case has one, agree with Caffe in every array."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    with np.load(folder / "data.npz") as file:
        data = dict(file)
    net = _net(folder, meta, data)
    splits = {top for layer in meta["layers"] if layer["type"] == "Split" for top in layer["tops"]}
    for step in range(meta.get("steps", 0)):
        arrays = _arrays(f"step{step}", data)
        after = {f"param_after/{name}": array for name, array in _arrays("param", arrays).items()}
        _check_pass(net, arrays | after, splits, tolerance)
    if "steps" not in meta:
        _check_pass(net, data, splits, tolerance)


def _check_pass(net: Net, data: dict[str, np.ndarray], splits: set[str], tolerance: float) -> None:
    given = _arrays("input", data)
    blobs = net({name: torch.from_numpy(array) for name, array in given.items()}, keep=True)
    _check_forward(blobs, data, splits, tolerance)
    for name, wanted in _arrays("param_after", data).items():
        layer, i = name.rsplit("/", 1)
        agree(f"param_after/{name}", net.params[layer][int(i)], wanted, tolerance)
    if _arrays("topdiff", data):
        net.zero_grad()
        _check_backward(net, blobs, data, splits, tolerance)


def _net(folder: Path, meta: dict, data: dict[str, np.ndarray]) -> Net:
    given = any(key.startswith("param/") for key in data)
    net = Net(
        folder / "net.prototxt",
        meta["phase"],
        level=meta.get("level", 0),
        stages=meta.get("stages", ()),
        weights=None if given else folder / "weights.caffemodel",
    )
    if given:
        for layer, parameters in net.params.items():
            for i, parameter in enumerate(parameters):
                parameter.data.copy_(torch.from_numpy(data[f"param/{layer}/{i}"]))
    return net


def _arrays(kind: str, data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key.split("/", 1)[1]: array for key, array in data.items() if key.startswith(kind + "/")}


def _check_forward(
    blobs: Blobs, data: dict[str, np.ndarray], splits: set[str], tolerance: float
) -> None:
    compared = 0
    for name, wanted in _arrays("data", data).items():
        if name not in splits:
            agree(f"data/{name}", blobs[name], wanted, tolerance)
            compared += 1
    for name, wanted in _arrays("stat", data).items():
        if name not in splits:
            agree(f"stat/{name}", statistics(blobs[name]), wanted, tolerance)
            agree(f"sample/{name}", sampled(blobs[name]), data[f"sample/{name}"], tolerance)
            compared += 1
    assert compared, "the case has no blobs"
    if "loss" in data:
        agree("loss", blobs.loss, data["loss"], tolerance)


def statistics(blob: Tensor) -> Tensor:
    """Mean, standard deviation, minimum, maximum and L2 norm."""
    x = blob.detach().double()
    return torch.stack([x.mean(), x.std(correction=0), x.min(), x.max(), x.norm()])


def sampled(blob: Tensor) -> Tensor:
    """64 values at equal strides."""
    flat = blob.detach().flatten()
    return flat[:: max(1, flat.numel() // 64)][:64]


def _check_backward(
    net: Net, blobs: Blobs, data: dict[str, np.ndarray], splits: set[str], tolerance: float
) -> None:
    first = {name: versions[0] for name, versions in blobs.versions.items()}
    for blob in first.values():
        if blob.requires_grad:
            blob.retain_grad()
    given = _arrays("topdiff", data)
    tops = [name for name in given if name in blobs and blobs[name].requires_grad]
    torch.autograd.backward([blobs[n] for n in tops], [torch.from_numpy(given[n]) for n in tops])
    for name, wanted in _arrays("diff", data).items():
        if name not in splits and name not in given:
            agree(f"diff/{name}", _gradient(first[name]), wanted, tolerance)
    for name, wanted in _arrays("param_diff", data).items():
        layer, i = name.rsplit("/", 1)
        agree(f"param_diff/{name}", _gradient(net.params[layer][int(i)]), wanted, tolerance)


def _gradient(tensor: Tensor) -> Tensor:
    """Caffe leaves 0 where it computes no gradient."""
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


def agree(what: str, found: Tensor, wanted: np.ndarray, tolerance: float = TOLERANCE) -> None:
    """Within ``tolerance`` of the largest magnitude; NaN where Caffe has NaN; all 0 where all 0."""
    ours = found.detach().double().numpy()
    theirs = wanted.astype(np.float64)
    assert ours.shape == theirs.shape, f"{what}: {ours.shape}, Caffe has {theirs.shape}"
    assert np.array_equal(np.isnan(ours), np.isnan(theirs)), f"{what}: NaN elsewhere than in Caffe"
    huge = ~(np.abs(theirs) < HUGE)
    assert np.array_equal(ours[huge], theirs[huge], equal_nan=True), f"{what}: differs at -FLT_MAX"
    error = np.abs(ours - theirs)[~huge].max(initial=0)
    scale = np.abs(theirs)[~huge].max(initial=0)
    assert error <= tolerance * scale, f"{what}: off by {error:.3g} at a scale of {scale:.3g}"
