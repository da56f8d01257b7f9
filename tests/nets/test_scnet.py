"""The published SCNet nets: shapes, parameters, twins, a training step of small copies."""

import pytest
import torch
from cortado.nets import specs
from cortado.nets.net import Net
from cortado.nets.solver import Solver
from cortado.prototxt_like import Field, Message, Scalar, load

# VGG16 (Simonyan and Zisserman 2015, Table 1, column D) to conv4_3: inputs, outputs, kernel.
TRUNK = {
    "conv1_1": (3, 64, 3),
    "conv1_2": (64, 64, 3),
    "conv2_1": (64, 128, 3),
    "conv2_2": (128, 128, 3),
    "conv3_1": (128, 256, 3),
    "conv3_2": (256, 256, 3),
    "conv3_3": (256, 256, 3),
    "conv4_1": (256, 512, 3),
    "conv4_2": (512, 512, 3),
    "conv4_3": (512, 512, 3),
}
ONE = TRUNK | {"fc": (512, 2048, 7)}
TWO = ONE | {"fc_g": (512, 2048, 7)}
SPECS = {"scnet_a": ONE, "scnet_ag": ONE, "scnet_ag_plus": TWO}
P, S = 12, 9


@pytest.fixture(scope="module", params=SPECS)
def published(request):
    """A spec's name and its deploy net."""
    return request.param, Net(specs.path(request.param), stages=["deploy"], seed=0)


def test_blob_shapes(published):
    name, net = published
    shapes = net.blob_shapes
    assert net.inputs == ("image1", "image2", "rois1", "rois2")
    assert shapes["pool1"] == (1, 64, 188, 250)
    assert shapes["pool4"] == shapes["pool4_p"] == (1, 512, 24, 32)
    assert shapes["roi_pool"] == shapes["roi_pool_p"] == (1000, 512, 7, 7)
    assert shapes["c1"] == shapes["c2"] == (1000, 2048, 1, 1)
    assert shapes.get("cg2") == ((1000, 2048, 1, 1) if name == "scnet_ag_plus" else None)
    assert shapes["z"] == (1000, 1000)
    assert net.outputs == ("z",)


def test_parameters(published):
    name, net = published
    counts = {fact.name: fact.parameters for fact in net.facts() if fact.parameters}
    assert counts == {layer: n * k * k * m + m for layer, (n, m, k) in SPECS[name].items()}
    assert net.num_parameters == {"scnet_ag_plus": 110_399_808}.get(name, 59_017_536)
    assert net.layer_by_name["fc"].blobs[0].std().item() == pytest.approx(0.01, rel=0.01)


def test_twins_share_everything(published):
    name, net = published
    for layer in SPECS[name]:
        for one, other in zip(net.params[layer], net.params[f"{layer}_p"], strict=True):
            assert one is other


def test_the_trunk_is_frozen_in_the_first_stage_alone(published):
    name, net = published
    rates = {blob.name: blob.lr_mult for blob in net.learnable}
    learnt = {f"{layer}{end}" for layer in SPECS[name].keys() - TRUNK for end in ("_w", "_b")}
    assert {name for name, rate in rates.items() if rate} == learnt
    assert all(blob.parameter.requires_grad == (blob.lr_mult != 0) for blob in net.learnable)
    small = Net(slim(name), "TRAIN", stages=["finetune"], seed=0)
    assert all(blob.lr_mult for blob in small.learnable)
    assert len(small.learnable) == len(net.learnable)


@pytest.mark.parametrize("name", SPECS)
def test_files_are_short_with_what_they_include(name):
    def lines(path):
        text = path.read_text(encoding="utf-8").splitlines()
        names = [line.split()[-1] for line in text if line.strip().startswith("- include: ")]
        return len(text) + sum(lines(path.parent / name) for name in names)

    assert lines(specs.path(name)) < 200


def slim(name):
    """The spec with an eighth of the trunk's channels, 32 numbers a region and small images."""

    def smaller(block):
        return Message(block.span, [Field(f.name, changed(f), f.span) for f in block.fields])

    def changed(field):
        if isinstance(field.value, Message):
            return smaller(field.value)
        if field.name != "num_output":
            return field.value
        count = int(field.value.text)
        return Scalar(str(32 if count == 2048 else count // 8), field.value.span)

    return smaller(load(specs.path(name)))


def given(net, seed=0):
    """Inputs of a net: boxes of 64 pixels and more, the second image's like the first's."""
    generator = torch.Generator().manual_seed(seed)
    image1 = 50 * torch.randn(1, 3, 96, 112, generator=generator)
    corner = torch.randint(0, 30, (P, 2), generator=generator).float()
    boxes = torch.cat([corner, corner + 64], 1)
    rois1 = torch.cat([torch.zeros(P, 1), boxes], 1)
    truth = torch.cat([boxes, torch.ones(P, 1)], 1)
    truth[-1, 4] = -1
    points = torch.cat([boxes[None, :, :2], boxes[None, :, :2], torch.ones(1, P, 1)], 2)
    image2 = image1 + 5 * torch.randn(image1.shape, generator=generator)
    inputs = {"image1": image1, "image2": image2, "rois1": rois1, "rois2": rois1[:S]}
    inputs |= {"truth": truth, "pairs": points}
    return {name: inputs[name] for name in net.inputs}


@pytest.mark.parametrize("name", SPECS)
def test_scores_are_the_papers(name):
    """z from the descriptors by loops over matches: Eqs. 6, 9 and 12."""
    from cortado.layers.hough_voting import hough_voting

    net = Net(slim(name), stages=["deploy"], seed=0)
    inputs = given(net)
    embeddings = {"c1", "c2", "cg1", "cg2"} & net.blob_shapes.keys()
    with torch.no_grad():
        blobs = net(inputs, keep=embeddings)
    c = {name: blobs[name].flatten(1).double() for name in blobs if name != "z"}
    assert torch.allclose(c["c1"].norm(dim=1), torch.ones(P).double(), atol=1e-5)
    f = wanted = (c["c1"] @ c["c2"].T).clamp(min=0)
    assert (f > 0).any()
    if name != "scnet_a":
        fg = (c["cg1"] @ c["cg2"].T).clamp(min=0) if "cg1" in c else f
        assert (f != fg).any() == (name == "scnet_ag_plus")
        geometry = inputs["rois1"], inputs["rois2"], (96, 112), (96, 112)
        one = torch.eye(P * S).double().view(-1, P, S)
        kernel = torch.stack([hough_voting(x, *geometry, output="VOTES").flatten() for x in one])
        wanted = f * (kernel @ fg.flatten()).view(P, S)
    assert torch.allclose(blobs["z"].double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SPECS)
def test_a_training_step_learns_the_embedding_and_leaves_the_trunk(name, tmp_path):
    net = Net(slim(name), "TRAIN", seed=0)
    assert net.inputs == ("image1", "image2", "rois1", "rois2", "truth")
    blobs = net(given(net), keep=["label"])
    label = blobs["label"]
    assert (label == 1).any()
    assert (label[-1] == -1).all()
    assert 0 < (label == 0).sum() <= (label == 1).sum()
    assert int(blobs["num_positives"]) == int((label == 1).sum())
    assert torch.isfinite(blobs.loss)
    blobs.loss.backward()
    for blob in net.learnable:
        gradient = blob.parameter.grad
        if blob.layer in TRUNK:
            assert gradient is None, blob.name
        elif blob.index == 0:
            assert gradient.isfinite().all(), blob.name
            assert gradient.abs().max() > 0, blob.name


@pytest.mark.parametrize("name", SPECS)
def test_a_test_measures_what_the_paper_does(name):
    net = Net(slim(name), "TEST", seed=0)
    with torch.no_grad():
        blobs = net(given(net))
    assert {name: tuple(blobs[name].shape) for name in ("pcr", "pcr_area", "miou", "pck")} == {
        "pcr": (101,),
        "pcr_area": (1,),
        "miou": (100,),
        "pck": (3,),
    }
    assert 0 < float(blobs["pcr_area"]) <= 1


@pytest.mark.parametrize("name", SPECS)
def test_solvers_are_as_published(name):
    from cortado.nets.solver_params import read_params

    params = read_params(load(specs.path(f"{name}_solver")))
    assert (params.type, params.base_lr, params.weight_decay) == ("SGD", 0.001, 0.0005)
    assert params.train_state.stage == ("photographs",)
    assert specs.path(params.net) == specs.path(name)
    net = Net(slim(name), "TRAIN", stages=params.train_state.stage, seed=0)
    assert net.inputs == ()
    assert net.blob_shapes["rois1"] == (500, 5)


@pytest.mark.parametrize("name", SPECS)
def test_the_demos_nets_have_the_same_layers(name):
    """But for the trunk: what is small is said in the trunk and in numbers."""
    demo = Net(specs.path(name.replace("scnet", "scnet_demo")), stages=["deploy"], seed=0)
    full = Net(slim(name), stages=["deploy"], seed=0)
    past = [node.type for node in demo.graph.nodes[5:] if node.type not in ("ReLU", "Pooling", "Input")]
    want = [node.type for node in full.graph.nodes if node.type not in ("ReLU", "Pooling", "Input")]
    tail = [kind for kind in want if kind != "Convolution"]
    assert [kind for kind in past if kind != "Convolution"] == tail
    assert demo.num_parameters < 700_000


def test_a_solver_of_the_demo_trains():
    solver = Solver(specs.path("scnet_demo_ag_plus_solver"))
    data = solver.net.layer_by_name["data"]
    data.params = type(data.params)(**{**vars(data.params), "num_proposals": 40, "num_pairs": 1})
    before = [blob.parameter.clone() for blob in solver.net.learnable]
    losses = [solver.step(1) for _ in range(4)]
    assert losses[-1] < losses[0]
    moved = [
        blob.name
        for blob, old in zip(solver.net.learnable, before, strict=True)
        if not torch.equal(blob.parameter, old)
    ]
    assert len(moved) == len(before)
