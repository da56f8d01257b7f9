"""torchvision's VGG16, GoogLeNet, ResNet-50 and ResNet-101 by the layer names of Caffe's models.

A ``state_dict`` is known by its keys. The names are VGG16's, BVLC GoogLeNet's and those of He's
ResNets (``res2a_branch2a``, ``bn2a_branch2a``, ``scale2a_branch2a``).

- A batch normalization of a ResNet becomes the blobs of Caffe's BatchNorm and Scale.
- GoogLeNet's are folded into its convolutions, as Caffe's GoogLeNet has none; its "5x5" branches, which
  are 3x3 in torchvision, are framed with zeros, which computes the same.

What they compute follows the spec, which may differ: torchvision's nets take RGB images scaled to
[0, 1] and normalized by ImageNet's mean and deviation; its ResNets have the stride of a stage in
``branch2b``, He's in ``branch2a``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from cortado.layers._engine.checks import Shape
from torch.nn import functional

from .stored import Shapes, Stored

State: TypeAlias = Mapping[str, torch.Tensor]

GOOGLENET_EPS = 1e-3  # of its batch normalizations in torchvision


class _Unit(NamedTuple):
    """A convolution or fully connected layer of torchvision's, the batch normalization after it if
    there is one, and the Caffe layer's name. A state may lack the ``optional`` ones."""

    module: str
    layer: str
    norm: str = ""
    optional: bool = False


def convert(state: State, shapes: Shapes) -> list[Stored] | None:
    """The layers of a known net, suited to the ``shapes`` of the net to fill; None for another."""
    modules = {key.rpartition(".")[0] for key in state}
    for units, stored in _FAMILIES:
        known = {name: unit for unit in units for name in (unit.module, unit.norm) if name}
        required = {name for name, unit in known.items() if not unit.optional}
        if required <= modules <= known.keys():
            found = [unit for unit in units if unit.module in modules]
            return [
                layer for unit in found for layer in stored(state, unit, shapes.get(unit.layer, ()))
            ]
    return None


def _vgg16() -> list[_Unit]:
    units, place = [], 0
    for block, convolutions in enumerate((2, 2, 3, 3, 3), start=1):
        for i in range(1, convolutions + 1):
            units.append(_Unit(f"features.{place}", f"conv{block}_{i}"))
            place += 2  # a ReLU stands between
        place += 1  # the pooling
    heads = zip((0, 3, 6), ("fc6", "fc7", "fc8"), strict=True)
    return units + [_Unit(f"classifier.{i}", layer, optional=True) for i, layer in heads]


def _googlenet() -> list[_Unit]:
    names = {"conv1": "conv1/7x7_s2", "conv2": "conv2/3x3_reduce", "conv3": "conv2/3x3"}
    branches = {
        "branch1": "1x1",
        "branch2.0": "3x3_reduce",
        "branch2.1": "3x3",
        "branch3.0": "5x5_reduce",
        "branch3.1": "5x5",
        "branch4.1": "pool_proj",
    }
    for block in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        names |= {f"inception{block}.{x}": f"inception_{block}/{y}" for x, y in branches.items()}
    units = [_Unit(f"{module}.conv", layer, f"{module}.bn") for module, layer in names.items()]
    units.append(_Unit("fc", "loss3/classifier", optional=True))
    for i in (1, 2):
        units += [
            _Unit(f"aux{i}.conv.conv", f"loss{i}/conv", f"aux{i}.conv.bn", optional=True),
            _Unit(f"aux{i}.fc1", f"loss{i}/fc", optional=True),
            _Unit(f"aux{i}.fc2", f"loss{i}/classifier", optional=True),
        ]
    return units


def _resnet(blocks: tuple[int, ...], numbered: bool) -> list[_Unit]:
    """``numbered``: the blocks of the middle stages are a, b1, b2, ... instead of a, b, c, ..."""
    units = [_Unit("conv1", "conv1", "bn1")]
    for stage, count in enumerate(blocks, start=1):
        for j in range(count):
            letter = f"b{j}" if numbered and stage in (2, 3) and j else "abcdef"[j]
            module, layer = f"layer{stage}.{j}", f"res{stage + 1}{letter}"
            if j == 0:
                norm = f"{module}.downsample.1"
                units.append(_Unit(f"{module}.downsample.0", f"{layer}_branch1", norm))
            for k, branch in enumerate("abc", start=1):
                units.append(_Unit(f"{module}.conv{k}", f"{layer}_branch2{branch}", f"{module}.bn{k}"))
    return [*units, _Unit("fc", "fc1000", optional=True)]


def _plain(state: State, unit: _Unit, wanted: Sequence[Shape]) -> Iterator[Stored]:
    yield Stored(unit.layer, {0: state[f"{unit.module}.weight"], 1: state[f"{unit.module}.bias"]})


def _folded(state: State, unit: _Unit, wanted: Sequence[Shape]) -> Iterator[Stored]:
    """A convolution that does the batch normalization after it, with a kernel of the size wanted."""
    if not unit.norm:
        yield from _plain(state, unit, wanted)
        return
    mean, variance, gamma, beta = _norm(state, unit)
    weight = state[f"{unit.module}.weight"]
    scale = gamma / torch.sqrt(variance + GOOGLENET_EPS)
    margin = (wanted[0][-1] - weight.shape[-1]) // 2 if wanted and len(wanted[0]) == 4 else 0
    weight = functional.pad(weight * scale.reshape(-1, 1, 1, 1), [max(margin, 0)] * 4)
    yield Stored(unit.layer, {0: weight, 1: beta - mean * scale})


def _normalized(state: State, unit: _Unit, wanted: Sequence[Shape]) -> Iterator[Stored]:
    """A convolution, a BatchNorm and a Scale; some of He's have a bias, which is 0 then."""
    if not unit.norm:
        yield from _plain(state, unit, wanted)
        return
    mean, variance, gamma, beta = _norm(state, unit)
    convolution = Stored(unit.layer, {0: state[f"{unit.module}.weight"]})
    if len(wanted) == 2:
        convolution.blobs[1] = torch.zeros_like(mean)
    yield convolution
    suffix = unit.layer.removeprefix("res") if unit.layer.startswith("res") else f"_{unit.layer}"
    yield Stored(f"bn{suffix}", {0: mean, 1: variance, 2: torch.ones(1)})
    yield Stored(f"scale{suffix}", {0: gamma, 1: beta})


def _norm(state: State, unit: _Unit) -> list[torch.Tensor]:
    fields = ("running_mean", "running_var", "weight", "bias")
    return [state[f"{unit.norm}.{field}"] for field in fields]


_FAMILIES = (
    (_vgg16(), _plain),
    (_googlenet(), _folded),
    (_resnet((3, 4, 6, 3), numbered=False), _normalized),
    (_resnet((3, 4, 23, 3), numbered=True), _normalized),
)
