"""Net: blobs and parameters by name, losses, what is freed, what gets a gradient."""

import copy
import json
import re
import weakref

import caffe_vectors
import numpy as np
import pytest
import torch
from cortado.nets.net import LayerError, Net
from cortado.prototxt_like import SpecError, loads
from shared import case as vector_case
from shared import cases

MLP = """
name: mlp
layer:
- {name: x, type: Input, top: x, input_param: {shape: {dim: [4, 5]}}}
- {name: t, type: Input, top: t, input_param: {shape: {dim: [4, 2]}}}
- name: ip.1/a
  type: InnerProduct
  bottom: x
  top: h
  inner_product_param: {num_output: 6, weight_filler: &xavier {type: xavier}}
- {name: tanh, type: TanH, bottom: h, top: h}
- name: type
  type: InnerProduct
  bottom: h
  top: y
  param: [{lr_mult: 1}, {lr_mult: 0}]
  inner_product_param: {num_output: 2, weight_filler: *xavier}
- {name: loss, type: EuclideanLoss, bottom: [y, t], top: loss}
"""


def mlp(extra="", **options):
    return Net(loads(MLP + extra, name="mlp.yaml"), **{"seed": 0, **options})


def data(seed=0, n=4):
    generator = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(n, 5, generator=generator),
        "t": torch.randn(n, 2, generator=generator),
    }


def test_names_shapes_and_parameters():
    net = mlp(phase="TRAIN")
    assert net.training
    assert net.inputs == ("x", "t")
    assert net.outputs == ("loss",)
    assert net.blob_shapes == {"x": (4, 5), "t": (4, 2), "h": (4, 6), "y": (4, 2), "loss": ()}
    assert [list(p.shape) for p in net.params["ip.1/a"]] == [[6, 5], [6]]
    assert net.num_parameters == sum(p.numel() for p in net.parameters()) == 36 + 14
    assert net.layer_by_name["tanh"] in list(net.modules())
    assert not mlp().training


def test_facts():
    facts = {fact.name: fact for fact in mlp().facts()}
    assert facts["ip.1/a"].tops == (("h", (4, 6)),)
    assert facts["ip.1/a"].parameters == 36
    assert facts["loss"].place == "mlp.yaml:18"


def test_any_batch_and_size_will_do():
    text = """
layer:
- {name: x, type: Input, top: x, input_param: {shape: {dim: [1, 3, 8, 8]}}}
- {name: c, type: Convolution, bottom: x, top: y, convolution_param: {num_output: 2, kernel_size: 3}}
"""
    net = Net(loads(text))
    assert net(x=torch.zeros(2, 3, 11, 7))["y"].shape == (2, 2, 9, 5)
    assert net({"x": torch.zeros(1, 3, 3, 3)})["y"].shape == (1, 2, 1, 1)


def test_outputs_by_default_and_more_on_request():
    net = mlp()
    assert list(net(**data())) == ["loss"]
    assert list(net(**data(), keep=["y"])) == ["y", "loss"]
    assert set(net(**data(), keep=True)) == {"x", "t", "h", "y", "loss"}
    with pytest.raises(KeyError, match='no blob "hh" to keep: did you mean "h"'):
        net(**data(), keep=["hh"])


def test_missing_and_unknown_inputs():
    net, blobs = mlp(), data()
    with pytest.raises(TypeError, match='the net needs the input "t"'):
        net(x=blobs["x"])
    with pytest.raises(TypeError, match='the net has no input "tt": did you mean "t"'):
        net(**blobs, tt=blobs["t"])


ONE = "layer: {name: x, type: Input, top: x, input_param: {shape: {dim: [2, 3]}}}"


@pytest.mark.parametrize("x", [torch.ones(2, 3), torch.zeros(1), torch.tensor(5.0)])
def test_one_input_may_be_given_as_it_is(x):
    """As any module's; a tensor of one element or none is no false value here."""
    assert net_of(ONE)(x)["x"] is x
    assert net_of(ONE)(x=x)["x"] is x


def net_of(text):
    return Net(loads(text))


@pytest.mark.parametrize(
    ("arguments", "named", "message"),
    [
        ((np.ones(3),), {}, "expected inputs by name, or one torch.Tensor, got numpy.ndarray"),
        (([1, 2],), {}, "expected inputs by name, or one torch.Tensor, got list"),
        (
            (),
            {"x": np.ones(3)},
            'input "x": expected a torch.Tensor, got numpy.ndarray (torch.from_numpy makes one of it)',
        ),
        ((), {"x": None}, 'input "x": expected a torch.Tensor, got None'),
        (
            ({"x": [1.0]},),
            {},
            'input "x": expected a torch.Tensor, got list (torch.tensor makes one of it)',
        ),
    ],
)
def test_inputs_that_are_no_tensors(arguments, named, message):
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        net_of(ONE)(*arguments, **named)


def test_several_inputs_are_given_by_name():
    with pytest.raises(
        TypeError, match=re.escape("the net has 2 inputs: they are given by name, net(x=..., t=...)")
    ):
        mlp()(torch.ones(2, 3))
    none = "layer: {name: x, type: DummyData, top: x, dummy_data_param: {shape: {dim: 2}}}"
    with pytest.raises(TypeError, match=re.escape("the net has 0 inputs: call net()")):
        net_of(none)(torch.ones(2))


def test_a_net_made_on_meta_has_shapes():
    with torch.device("meta"):
        net = Net("ucn_demo_hn", stages=("deploy",))
    assert {blob.parameter.device.type for blob in net.learnable} == {"meta"}
    blobs = net(**{name: torch.zeros(1, 3, 64, 80, device="meta") for name in net.inputs})
    assert blobs["feature1"].shape == (1, 64, 16, 20)
    assert blobs["feature1"].is_meta


def test_versions_of_an_in_place_blob():
    blobs = mlp()(**data(), keep=True)
    first, last = blobs.versions["h"]
    assert last is blobs["h"]
    torch.testing.assert_close(last, first.tanh())
    assert not mlp()(**data()).versions


def test_gradient_of_an_in_place_chains_input():
    net = mlp()
    blobs = net(**data(), keep=True)
    before, after = blobs.versions["h"]
    gradient_before, gradient_after = torch.autograd.grad(blobs.loss, (before, after))
    torch.testing.assert_close(gradient_before, gradient_after * (1 - after**2))


def test_blobs_are_freed_when_nothing_needs_them(monkeypatch):
    net, alive, seen = mlp(), {}, {}
    for name, layer in net.layer_by_name.items():
        forward = layer.forward

        def watched(*bottoms, forward=forward, name=name):
            seen[name] = {other for other, ref in alive.items() if ref() is not None}
            top = forward(*bottoms)
            alive[name] = weakref.ref(top)
            return top

        monkeypatch.setattr(layer, "forward", watched)
    with torch.no_grad():
        net(**data())
        assert seen["loss"] == {"type"}
        assert seen["type"] == {"tanh"}
        kept = net(**data(), keep=["h"])
        assert seen["loss"] == {"tanh", "type"}
        assert kept["h"] is alive["tanh"]()
        assert alive["ip.1/a"]() is None


def test_lr_mult_zero_gets_no_gradient():
    net = mlp()
    weight, bias = net.params["type"]
    assert weight.requires_grad
    assert not bias.requires_grad
    forced = mlp("force_backward: true")
    assert forced.params["type"][1].requires_grad
    blobs = forced(**data(), keep=True)
    blobs.loss.backward()
    assert blobs["x"].grad.abs().sum() > 0
    assert forced.params["type"][1].grad is not None


def test_force_backward_leaves_the_callers_tensors_alone():
    given = data()
    mlp("force_backward: true")(**given).loss.backward()
    assert not given["x"].requires_grad


def test_several_losses_with_weights():
    extra = """
- {name: half, type: EuclideanLoss, bottom: [y, t], top: half, loss_weight: 0.5}
- {name: sum, type: Eltwise, bottom: [y, t], top: sum, loss_weight: 2}
- {name: off, type: EuclideanLoss, bottom: [h, h], top: off, loss_weight: 0}
- {name: nameless, type: EuclideanLoss, bottom: [y, t]}
"""
    net = mlp(extra)
    blobs = net(**data())
    assert net.outputs == ("half", "loss", "off", "sum")
    wanted = 2.5 * blobs["loss"] + 2 * blobs["sum"].sum()
    torch.testing.assert_close(blobs.loss, wanted)


def test_propagate_down_false_stops_the_gradient():
    text = MLP.replace("bottom: [y, t]", "bottom: [y, t], propagate_down: [false, false]")
    assert not Net(loads(text))(**data()).loss.requires_grad


def test_no_loss_is_zero():
    net = Net(loads("layer:\n- {name: x, type: Input, top: x}"))
    assert net(x=torch.ones(2)).loss == 0


def test_state_dict_round_trip():
    one, two = mlp(seed=1), mlp(seed=2)
    assert "layers.ip%2E1/a.weight" in one.state_dict()
    assert not torch.equal(one(**data())["loss"], two(**data())["loss"])
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(**data())["loss"], two(**data())["loss"])


def test_a_copy_is_a_net_of_its_own():
    net = mlp("- {name: twin, type: TanH, bottom: y, top: z, twin_of: tanh}")
    other = copy.deepcopy(net)
    assert torch.equal(net(**data()).loss, other(**data()).loss)
    with torch.no_grad():
        other.params["type"][0].zero_()
    assert not torch.equal(net(**data()).loss, other(**data()).loss)


def test_a_data_layers_tops_come_to_the_net():
    text = """
layer:
- name: data
  type: CorrespondencePairs
  top: [image1, image2, pairs, num_pairs]
  transform_param: {crop_size: 16}
  correspondence_pairs_param: {source: "skimage:camera", num_points: 4}
"""
    blobs = Net(loads(text)).to("meta")()
    assert {blob.device.type for blob in blobs.values()} == {"meta"}


@pytest.mark.caffe_vector
def test_refuses_what_caffe_refuses():
    folder = vector_case("11_errors")
    tried = json.loads((folder / "errors.json").read_text(encoding="utf-8"))
    chosen = [entry for entry in tried if entry["name"].startswith(("shared_", "loss_w", "unknown_"))]
    assert len(chosen) == 5
    for entry in chosen:
        if entry["aborts"]:
            with pytest.raises(SpecError, match=r"prototxt:\d+:\d+: error: "):
                Net(folder / entry["file"], "TRAIN")
        else:
            Net(folder / entry["file"], "TRAIN")


def test_seeds():
    weights = [mlp(seed=seed).params["type"][0] for seed in (3, 3, 4)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    torch.manual_seed(5)
    one = mlp(seed=None)
    torch.manual_seed(5)
    assert torch.equal(one.params["type"][0], mlp(seed=None).params["type"][0])


def test_two_layers_of_one_name():
    net = mlp("- {name: tanh, type: TanH, bottom: y, top: z}")
    assert len([key for key, _ in net.named_modules() if key.startswith("layers.tanh")]) == 2


def test_run_time_errors_name_layer_line_and_blobs():
    blobs = data()
    with pytest.raises(LayerError) as caught:
        mlp()(x=torch.zeros(4, 6), t=blobs["t"])
    assert str(caught.value) == (
        'layer "ip.1/a" (mlp.yaml:6): x [4, 6] gives 6 inputs, the weight takes 5'
    )


def test_shared_parameters_are_one():
    text = MLP.replace(
        "- {name: tanh",
        """
- name: again
  type: InnerProduct
  bottom: x
  top: g
  param: [{name: w, lr_mult: 2}, {name: b}]
  inner_product_param: {num_output: 6}
- {name: tanh""",
    ).replace("  top: h\n", "  top: h\n  param: [{name: w, decay_mult: 3}, {name: b}]\n", 1)
    net = Net(loads(text))
    assert net.params["again"][0] is net.params["ip.1/a"][0]
    assert net.num_parameters == 36 + 14
    assert [fact.shared_with for fact in net.facts() if fact.name == "again"] == ["ip.1/a"]
    (weight,) = (blob for blob in net.learnable if blob.name == "w")
    assert (weight.layer, weight.lr_mult, weight.decay_mult) == ("ip.1/a", 2, 3)


PYTHON = """
layer {{
  name: "f" type: "Input" top: "f" top: "g" input_param {{ shape {{ dim: 1 dim: 4 dim: 2 dim: 2 }} }}
}}
layer {{ name: "pairs" type: "Input" top: "pairs" input_param {{ shape {{ dim: 1 dim: 3 dim: 5 }} }} }}
layer {{
  name: "loss" type: "Python" bottom: "f" bottom: "g" bottom: "pairs" top: "loss" loss_weight: 2
  python_param {{
    module: "anything.at_all" layer: "CorrespondenceContrastiveLosslayer" param_str: "{}"
  }}
}}
"""


def test_the_authors_python_layers_run_natively():
    text = PYTHON.format("{down_sampling_factor: 8, margin: 2}")
    net = Net(loads(text, notation="prototxt"), "TRAIN")
    params = net.layer_by_name["loss"].params
    assert (params.downsampling_factor, params.margin) == (8, 2)
    f, g = torch.ones(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)
    pairs = torch.tensor([[[0.0, 0, 0, 0, 1]]])
    assert net(f=f, g=g, pairs=pairs).loss == 2 * 4 / 2


def test_mistakes_in_a_param_str_are_located():
    text = PYTHON.format("{marge: 2}")
    with pytest.raises(SpecError, match='has no parameter "marge"') as caught:
        Net(loads(text, notation="prototxt"))
    assert caught.value.span.line == 9


@pytest.mark.parametrize(
    "case", cases("11_auto_top", "11_lr_mult_zero", "11_backward_default", "11_propagate_down")
)
def test_net_level_vectors(case):
    caffe_vectors.check(case)


@pytest.mark.parametrize("case", cases("11_loss_weight"))
def test_loss_weights_as_caffe(case):
    arrays = np.load(case / "data.npz")
    net = Net(case / "net.prototxt", "TRAIN", weights=case / "weights.caffemodel")
    loss = net({name: torch.from_numpy(arrays[f"input/{name}"]) for name in net.inputs}).loss
    close(loss, arrays["loss"])
    if loss.requires_grad:
        loss.backward()
    for layer, params in net.params.items():
        for i, param in enumerate(params):
            close(gradient(param), arrays[f"param_diff/{layer}/{i}"])


def gradient(tensor):
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


def close(found, wanted):
    found = found.detach().numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * max(abs(wanted).max(), 1e-30))
