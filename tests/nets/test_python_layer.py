"""Python layers in nets: UCN's classes are native layers; a user's own run if the net may."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cortado.nets.graph import graph
from cortado.nets.net import LayerError, Net
from cortado.prototxt_like import loads
from cortado.prototxt_like.source import SpecError

# UCN's layers as its authors' prototxt has them.
UCN = """
name: "UCN"
force_backward: true
layer { name: "map1" type: "Input" top: "map1" input_param { shape { dim: [2, 4, 6, 7] } } }
layer { name: "map2" type: "Input" top: "map2" input_param { shape { dim: [2, 4, 6, 7] } } }
layer { name: "pairs" type: "Input" top: "pairs" input_param { shape { dim: [2, 5, 5] } } }
layer { name: "num" type: "Input" top: "num" input_param { shape { dim: [2, 1] } } }
layer { name: "theta" type: "Input" top: "theta" input_param { shape { dim: [2, 4, 6, 7] } } }
layer {
  name: "st" type: "ConvolutionalSpatialTransformer" bottom: "map1" bottom: "theta" top: "st"
  convolutional_spatial_transformer_param { type: AFFINE kernel_size: 3 }
}
layer { name: "patches" type: "Silence" bottom: "st" }
layer {
  name: "norm1" type: "Python" bottom: "map1" top: "feature1"
  python_param { module: "layers.l2_norm" layer: "L2NormLayer" }
}
layer {
  name: "norm2" type: "Python" bottom: "map2" top: "feature2"
  python_param { module: "l2" layer: "L2NormLayer" param_str: "{'eps': 1e-10, 'eps_mode': SQRT}" }
}
layer {
  name: "extract" type: "ExtractFeature" bottom: "feature1" bottom: "pairs" top: "query"
  extract_feature_param { num_coord_elements: 5 coord_start_ind: 0 downsampling_factor: 4.0 }
}
layer {
  name: "knn" type: "KNN" bottom: "query" bottom: "feature2" bottom: "num"
  top: "distance" top: "index"
  knn_param { k: 1 use_all_query: false use_all_ref: true index_base: 1 }
  propagate_down: false propagate_down: false propagate_down: false
}
layer { name: "distances" type: "Silence" bottom: "distance" }
layer {
  name: "mine" type: "Python"
  bottom: "pairs" bottom: "index" bottom: "feature2" bottom: "num"
  top: "hard" top: "pck" top: "num_positives" top: "num_hard" top: "positives"
  python_param {
    module: "hard_negative" layer: "HardNegativeProcessingLayer"
    param_str: "{'negative_type': 'HARD_NEG_AND_POS', 'down_sampling_factor': 4.0, 'index_base': 1}"
  }
  propagate_down: false propagate_down: false propagate_down: false propagate_down: false
}
layer {
  name: "loss" type: "Python"
  bottom: "feature1" bottom: "feature2" bottom: "hard" bottom: "positives"
  top: "loss" top: "num_pairs" top: "positive_part" top: "negative_part" top: "positive_only"
  loss_weight: 1 loss_weight: 0 loss_weight: 0 loss_weight: 0 loss_weight: 0
  python_param {
    module: "contrastive" layer: "CorrespondenceContrastiveLosslayer"
    param_str: "{margin: 2.0, down_sampling_factor: 4.0, bilinear_interpolation: False}"
  }
}
"""


def ucn_inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    pairs = 20 * torch.rand(2, 5, 5, generator=generator)
    pairs[..., 4] = 1
    maps = {f"map{i}": torch.randn(2, 4, 6, 7, generator=generator) for i in (1, 2)}
    return maps | {
        "pairs": pairs,
        "num": torch.full((2, 1), 5.0),
        "theta": torch.zeros(2, 4, 6, 7),
    }


def test_ucns_classes_are_native_layers() -> None:
    """Whatever the module is called, nothing is imported, and nothing needs to be allowed."""
    before = set(sys.modules)
    net = Net(loads(UCN, notation="prototxt"), "TRAIN")
    types = {name: layer.type_name for name, layer in net.layer_by_name.items()}
    assert types["norm1"] == types["norm2"] == "ChannelL2Norm"
    assert types["mine"] == "HardNegativeMining"
    assert types["loss"] == "CorrespondenceContrastiveLoss"
    assert (types["st"], types["knn"]) == ("ConvolutionalSpatialTransformer", "KNN")
    assert not {"layers", "l2", "hard_negative", "contrastive"} & (set(sys.modules) - before)


def test_their_param_str_is_their_parameters() -> None:
    net = Net(loads(UCN, notation="prototxt"), "TRAIN")
    norm, mine, loss = (net.layer_by_name[name].params for name in ("norm2", "mine", "loss"))
    assert (norm.eps, norm.eps_mode.name) == (1e-10, "SQRT")
    assert (mine.mode.name, mine.downsampling_factor) == ("HARD_NEG_AND_POS", 4)
    assert mine.index_base == 1
    assert (loss.margin, loss.downsampling_factor, loss.bilinear_interpolation) == (2, 4, False)


def test_they_run() -> None:
    net = Net(loads(UCN, notation="prototxt"), "TRAIN")
    blobs = net(ucn_inputs(), keep=True)
    torch.testing.assert_close(blobs["feature1"].norm(dim=1), torch.ones(2, 6, 7))
    assert blobs["st"].shape == (2, 4, 18, 21)
    assert blobs["index"].min() >= 1
    assert blobs["num_pairs"] > 0
    blobs.loss.backward()
    torch.testing.assert_close(blobs["loss"], blobs["positive_part"] + blobs["negative_part"])


def test_a_mistake_in_a_param_str_is_located() -> None:
    broken = UCN.replace("'eps': 1e-10", "'epsilon': 1e-10")
    wanted = r'ucn\.prototxt:20:\d+: error: ChannelL2Norm has no parameter "epsilon"'
    with pytest.raises(SpecError, match=wanted):
        Net(loads(broken, "ucn.prototxt", notation="prototxt"), "TRAIN")


MODULE = """
import numpy as np

class Loss:
    def setup(self, bottom, top):
        self.weight = float(self.param_str or 1)

    def reshape(self, bottom, top):
        if bottom[0].count != bottom[1].count:
            raise ValueError("bottoms differ in size")
        top[0].reshape(1)

    def forward(self, bottom, top):
        if np.isnan(bottom[0].data).any():
            raise ValueError("NaN in bottom 0")
        self.diff = bottom[0].data - bottom[1].data
        top[0].data[...] = self.weight * (self.diff ** 2).sum() / bottom[0].num / 2

    def backward(self, top, propagate_down, bottom):
        for i, sign in enumerate((1, -1)):
            if propagate_down[i]:
                found = sign * self.weight * self.diff * top[0].diff[0]
                bottom[i].diff[...] = found / bottom[i].num

class Source:
    def setup(self, bottom, top):
        self.calls = 0

    def reshape(self, bottom, top):
        top[0].reshape(2, 3)

    def forward(self, bottom, top):
        self.calls += 1
        top[0].data[...] = self.calls + 10 * self.phase

    def backward(self, top, propagate_down, bottom):
        pass
"""
NET = """
layer { name: "source" type: "Python" top: "x" python_param { module: "my_layers" layer: "Source" } }
layer { name: "t" type: "Input" top: "t" input_param { shape { dim: [2, 3] } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y"
        inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "Python" bottom: "y" bottom: "t" top: "loss" loss_weight: 2
        python_param { module: "my_layers" layer: "Loss" param_str: "3" } }
"""


@pytest.fixture(autouse=True)
def my_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "my_layers.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("my_layers", None)


def net(text: str = NET, phase: str = "TRAIN", **options: Any) -> Net:
    return Net(loads(text, "net.prototxt", notation="prototxt"), phase, seed=1, **options)


def test_it_must_be_allowed() -> None:
    graph(loads(NET, notation="prototxt"))
    with pytest.raises(SpecError) as caught:
        net()
    assert "my_layers" not in sys.modules
    assert 'layer "source" would run the Python module "my_layers"' in str(caught.value)
    assert "net.prototxt:2:" in str(caught.value)
    assert "allow_python_layers=True" in str(caught.value)


def test_a_users_layers_are_as_native_ones() -> None:
    mine = net(allow_python_layers=True)
    head, _, _ = NET.partition('layer { name: "loss"')
    euclidean = (
        'layer { name: "loss" type: "EuclideanLoss" bottom: ["y", "t"] top: "loss" loss_weight: 2 }'
    )
    native = net(head + euclidean, allow_python_layers=True)
    assert mine.blob_shapes == native.blob_shapes | {"loss": (1,)}
    t = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    losses = [each(t=t).loss for each in (mine, native)]
    torch.testing.assert_close(losses[0], 3 * losses[1])
    for loss in losses:
        loss.backward()
    for one, two in zip(mine.params["ip"], native.params["ip"], strict=True):
        torch.testing.assert_close(one.grad, 3 * two.grad)


@pytest.mark.parametrize(("phase", "wanted"), [("TRAIN", 2), ("TEST", 12)])
def test_phase_and_state_between_forwards(phase: str, wanted: int) -> None:
    made = net(phase=phase, allow_python_layers=True)
    t = torch.zeros(2, 3)
    made(t=t)
    assert made(t=t, keep=["x"])["x"].unique().tolist() == [wanted]


def test_what_it_raises_is_located() -> None:
    wrong = NET.replace("num_output: 3", "num_output: 4")
    with pytest.raises(ValueError, match="bottoms differ in size") as caught:
        net(wrong, allow_python_layers=True)
    assert caught.value.__notes__ == ['in layer "loss" (net.prototxt:6)']
    made = net(allow_python_layers=True)
    made.params["ip"][0].data.fill_(float("nan"))
    with pytest.raises(LayerError, match=r'^layer "loss" \(net\.prototxt:6\): NaN in bottom 0$'):
        made(t=torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("module", "layer", "message"),
    [
        ("my_layer", "Source", 'cannot import the Python layer\'s module "my_layer": No module named'),
        ("my_layers", "Sauce", 'module "my_layers" has no class "Sauce" (did you mean "Source"?)'),
    ],
)
def test_a_module_or_class_that_is_not_there(module: str, layer: str, message: str) -> None:
    given = 'module: "my_layers" layer: "Source"'
    with pytest.raises(SpecError) as caught:
        net(NET.replace(given, f'module: "{module}" layer: "{layer}"'), allow_python_layers=True)
    assert message in str(caught.value)
    assert "net.prototxt:2:" in str(caught.value)
