"""Nets as Caffe builds and trains them: whole cases, and what a backward pass computes where."""

import json

import caffe_vectors
import numpy as np
import pytest
import torch
from caffe_vectors import agree
from cortado.nets.build import build
from cortado.nets.graph import State
from cortado.nets.net import LayerError, Net
from cortado.nets.solver import Solver
from cortado.prototxt_like import SpecError, load, loads
from shared import case as vector_case
from shared import cases


@pytest.mark.parametrize(
    "case", cases("11_legacy", "11_mechanics", "11_outputs_sorted", "11_two_losses", "12_lenet")
)
def test_whole_nets(case):
    if case.name == "12_lenet_train":
        lenet_train(case)
    else:
        caffe_vectors.check(case)


def lenet_train(case):
    """Eight iterations of LeNet: the losses, and the parameters behind each."""
    arrays = dict(np.load(case / "data.npz"))
    wanted = json.loads((case / "meta.json").read_text(encoding="utf-8"))["losses"]
    inputs = {name: torch.from_numpy(arrays[f"input/{name}"]) for name in ("data", "label")}

    def feed(n):
        return {name: batches[n] for name, batches in inputs.items()}

    solver = Solver(case / "solver.prototxt", feed=feed, weights=case / "weights.caffemodel")
    for iteration, loss in enumerate(wanted, start=1):
        agree("loss", torch.tensor(solver.step()), np.float32(loss))
        for layer, params in solver.net.params.items():
            for i, param in enumerate(params):
                key = f"{layer}/{i}"
                found = caffe_vectors.statistics(param)
                agree(key, found, arrays[f"iter{iteration}/param_stat/{key}"], 1e-4)
                if f"iter{iteration}/param/{key}" in arrays:
                    agree(key, param, arrays[f"iter{iteration}/param/{key}"])


@pytest.mark.caffe_vector
def test_alexnet():
    """Its weights are drawn again by the recipe that the case gives."""
    case = vector_case("12_alexnet")
    meta = json.loads((case / "meta.json").read_text(encoding="utf-8"))
    net = Net(case / "net.prototxt", meta["phase"])
    random = np.random.RandomState(meta["weight_seed"])
    *_, last = net.params
    with torch.no_grad():
        for name, params in net.params.items():
            scale = meta["last_scale"] if name == last else 1
            for i, param in enumerate(params):
                fan = np.sqrt(2 / np.prod(param.shape[1:])) if i == 0 else 0.1
                drawn = random.standard_normal(tuple(param.shape)) * (fan * scale)
                param.copy_(torch.from_numpy(drawn.astype(np.float32)))
        arrays = dict(np.load(case / "data.npz"))
        blobs = net(data=torch.from_numpy(arrays["input/data"]), keep=True)
    compared = 0
    for name, blob in blobs.items():
        agree(name, caffe_vectors.statistics(blob), arrays[f"stat/{name}"])
        agree(name, caffe_vectors.sampled(blob), arrays[f"sample/{name}"])
        compared += 1
    assert compared == len(net.blob_shapes)


@pytest.mark.caffe_vector
@pytest.mark.filterwarnings("ignore")
def test_shapes_of_the_repositorys_nets():
    folder = vector_case("11_repo_net_shapes")
    for path, wanted in json.loads((folder / "shapes.json").read_text(encoding="utf-8")).items():
        with torch.device("meta"):
            built = build(load(folder / "nets" / path.replace("/", "__")), State("TEST"), splits=True)
        shapes = [
            (top, list(shape))
            for made in built.layers
            for i, (top, shape) in enumerate(zip(made.tops, made.shapes, strict=True))
            if not made.node.in_place(i)
        ]
        assert shapes == [tuple(blob) for blob in wanted["blobs"]], path
        layers = [
            (made.node.name, made.node.type, list(made.node.bottoms), list(made.tops))
            for made in built.layers
        ]
        keys = ("name", "type", "bottoms", "tops")
        theirs = [tuple(layer[key] for key in keys) for layer in wanted["layers"]]
        assert layers == theirs, path
        params = [[list(blob.shape) for blob in made.layer.blobs] for made in built.layers]
        assert params == [layer["param_shapes"] for layer in wanted["layers"]], path
        assert list(built.graph.outputs) == wanted["outputs"], path


HEAD = """
layer:
- {name: x, type: Input, top: x, input_param: {shape: {dim: [2, 3]}}}
- {name: t, type: Input, top: t, input_param: {shape: {dim: [2, 4]}}}
- name: a
  type: InnerProduct
  bottom: x
  top: a
  inner_product_param: {num_output: 4, weight_filler: &gaussian {type: gaussian, std: 1}}
"""


def backward(text):
    """(needed, bottoms) of each layer, by name."""
    built = build(loads(HEAD + text), State("TRAIN"), splits=True)
    pairs = zip(built.layers, built.backward, strict=True)
    return {made.node.name: (each.needed, each.bottoms) for made, each in pairs}


def test_backward_only_below_losses():
    found = backward("""
- {name: side, type: TanH, bottom: a, top: side}
- {name: loss, type: EuclideanLoss, bottom: [a, t], top: loss}
""")
    assert found["a"] == (True, (False,))
    assert found["side"] == (False, (False,))
    assert found["loss"] == (True, (True, False))
    assert found["a_a_0_split"] == (True, (True,))


def test_propagate_down_false_switches_off_all_upstream():
    found = backward("""
- {name: h, type: TanH, bottom: a, top: h}
- {name: loss, type: EuclideanLoss, bottom: [h, t], top: loss, propagate_down: [false, false]}
""")
    assert found["loss"] == (True, (False, False))
    assert found["h"] == (False, (False,))
    assert found["a"] == (False, (False,))


def test_another_reader_keeps_it_on():
    found = backward("""
- {name: off, type: EuclideanLoss, bottom: [a, t], top: off, propagate_down: [false, false]}
- {name: on, type: EuclideanLoss, bottom: [a, t], top: on}
""")
    assert found["a"] == (True, (False,))
    assert found["a_a_0_split"] == (True, (True,))


def test_a_loss_weight_keeps_it_on():
    text = (
        "- {name: off, type: EuclideanLoss, bottom: [a, t], top: off, propagate_down: [false, false]}"
    )
    assert backward(text)["a"] == (False, (False,))
    built = build(loads(HEAD.replace("top: a\n", "top: a\n  loss_weight: 1\n") + text), State("TRAIN"))
    assert built.backward[2].needed


def test_propagate_down_true_gives_an_inputs_gradient():
    text = HEAD.replace("bottom: x", "bottom: x\n  propagate_down: true")
    net = Net(loads(text + "- {name: loss, type: EuclideanLoss, bottom: [a, t], top: loss}"), "TRAIN")
    blobs = net(x=torch.ones(2, 3), t=torch.ones(2, 4), keep=["x"])
    blobs.loss.backward()
    assert blobs["x"].grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("layer", "error"),
    [
        ("{name: m, type: ArgMax, bottom: a, top: m}", "ArgMax has no backward"),
        ("{name: m, type: Threshold, bottom: a, top: m}", "Threshold has no backward"),
        (
            "{name: m, type: BatchReindex, bottom: [a, t], top: m}",
            "BatchReindex gives its bottom 1 no gradient",
        ),
    ],
)
def test_force_backward_through_what_has_none(layer, error):
    text = HEAD.replace("dim: [2, 4]", "dim: [2]")
    net = Net(loads(text + f"- {layer}\nforce_backward: true"), "TRAIN")
    out = net(x=torch.ones(2, 3), t=torch.zeros(2))["m"]
    with pytest.raises(LayerError, match=f'layer "m".*{error}'):
        out.sum().backward()


def test_a_label_that_would_learn():
    text = HEAD + "- {name: loss, type: SigmoidCrossEntropyLoss, bottom: [a, a], top: loss}"
    loss = Net(loads(text), "TRAIN")(x=torch.ones(2, 3), t=torch.ones(2, 4)).loss
    with pytest.raises(LayerError, match="SigmoidCrossEntropyLoss gives its bottom 1 no gradient"):
        loss.backward()


def shared(second, mode="", extra=""):
    mode = f", share_mode: {mode}" if mode else ""
    return (
        HEAD.replace("top: a", "top: a\n  param: [{name: w}]")
        + f"""
- name: b
  type: InnerProduct
  bottom: a
  top: b
  param: [{{name: w{mode}{extra}}}]
  inner_product_param: {{num_output: {second}, bias_term: false}}
- {{name: loss, type: EuclideanLoss, bottom: [b, b], top: loss}}
"""
    )


def test_permissive_sharing_of_another_shape():
    net = Net(loads(shared(3, "PERMISSIVE")), "TRAIN")
    (weight, _), (other,) = net.params["a"], net.params["b"]
    assert (tuple(weight.shape), tuple(other.shape)) == ((4, 3), (3, 4))
    assert other.data_ptr() == weight.data_ptr()
    assert len(net.learnable) == 2
    assert net.num_parameters == 12 + 4
    x = torch.randn(2, 3)
    out = net(x=x, t=torch.zeros(2, 4), keep=["b"])["b"]
    torch.testing.assert_close(out, x @ weight.t() @ weight.view(3, 4).t())
    out.sum().backward()
    a = (x @ weight.t()).detach()
    through_a = weight.view(3, 4).sum(0)[:, None] * x.sum(0)
    wanted = through_a.detach() + a.sum(0).expand(3, 4).reshape(4, 3)
    torch.testing.assert_close(weight.grad, wanted)


def test_strict_sharing_says_how_to_share_other_shapes():
    with pytest.raises(SpecError, match=r"\[4, 3\].*its own shape is \[3, 4\](.|\n)*PERMISSIVE"):
        Net(loads(shared(3)))
    with pytest.raises(SpecError, match=r"its own shape is \[2, 4\]"):
        Net(loads(shared(2, "PERMISSIVE")))


def test_a_shared_parameter_learns_in_the_layers_that_ask():
    """lr_mult 0 of one sharer: no gradient from there, and the parameter stands still."""
    text = shared(3, "PERMISSIVE", ", lr_mult: 0").replace("bottom: [b, b]", "bottom: [b, x]")
    net = Net(loads(text), "TRAIN")
    weight = net.params["a"][0]
    x = torch.randn(2, 3)
    out = net(x=x, t=torch.zeros(2, 4), keep=["b"])["b"]
    out.sum().backward()
    torch.testing.assert_close(weight.grad, (weight.view(3, 4).sum(0)[:, None] * x.sum(0)).detach())
    assert next(blob.lr_mult for blob in net.learnable if blob.name == "w") == 0


def test_a_layers_own_phase():
    text = HEAD + "- {name: d, type: Dropout, bottom: a, top: d, phase: TEST}"
    net = Net(loads(text), "TRAIN")
    assert net.training
    assert not net.layer_by_name["d"].training
    assert not net.train().layer_by_name["d"].training


PYTHON = """
- name: p
  type: Python
  bottom: a
  top: p
  python_param: {module: a_module_that_must_not_be_imported, layer: Mine}
"""


def test_python_layers_must_be_allowed():
    with pytest.raises(
        SpecError, match='layer "p" would run the Python module "a_module_that'
    ) as caught:
        Net(loads(HEAD + PYTHON))
    assert "allow_python_layers" in caught.value.hint
    with pytest.raises(SpecError, match="cannot import"):
        Net(loads(HEAD + PYTHON), allow_python_layers=True)
