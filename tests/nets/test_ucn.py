"""The published UCN nets: shapes, parameters, a training step on a pair of KITTI's proportions; and the
recipe of the weights that come with cortado."""

from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from cortado.nets import specs
from cortado.nets.cost import mismatches
from cortado.nets.matching import Matcher
from cortado.nets.net import Net
from cortado.nets.solver import Solver
from cortado.nets.weights import load as load_weights
from cortado.prototxt_like import Field, Scalar, load, loads
from shared import SHARED, cases, needs_shared

# Choy et al. 2016, on GoogLeNet (Szegedy et al. 2015, Table 1): inputs, outputs, kernel.
TRUNK = {
    "conv1/7x7_s2": (3, 64, 7),
    "conv2/3x3_reduce": (64, 64, 1),
    "conv2/3x3": (64, 192, 3),
    "inception_3a/1x1": (192, 64, 1),
    "inception_3a/3x3_reduce": (192, 96, 1),
    "inception_3a/3x3": (96, 128, 3),
    "inception_3a/5x5_reduce": (192, 16, 1),
    "inception_3a/5x5": (16, 32, 5),
    "inception_3a/pool_proj": (192, 32, 1),
    "inception_3b/1x1": (256, 128, 1),
    "inception_3b/3x3_reduce": (256, 128, 1),
    "inception_3b/3x3": (128, 192, 3),
    "inception_3b/5x5_reduce": (256, 32, 1),
    "inception_3b/5x5": (32, 96, 5),
    "inception_3b/pool_proj": (256, 64, 1),
    "inception_4a/1x1": (480, 192, 1),
    "inception_4a/3x3_reduce": (480, 96, 1),
    "inception_4a/3x3": (96, 208, 3),
    "inception_4a/5x5_reduce": (480, 16, 1),
    "inception_4a/5x5": (16, 48, 5),
    "inception_4a/pool_proj": (480, 64, 1),
    "feature_conv": (512, 128, 1),
}
THETA = {
    "inception_4a/3x3_theta1": (96, 32, 1),
    "inception_4a/3x3_theta2": (32, 32, 1),
    "inception_4a/3x3_theta": (32, 4, 1),
    "inception_4a/5x5_theta1": (16, 32, 1),
    "inception_4a/5x5_theta2": (32, 32, 1),
    "inception_4a/5x5_theta": (32, 4, 1),
}
GOOGLENET = (
    *("pool1/3x3_s2", "pool1/norm1", "conv2/3x3_reduce", "conv2/3x3", "conv2/norm2", "pool2/3x3_s2"),
    *("inception_3a/output", "inception_3b/output", "pool3/3x3_s2", "inception_4a/output"),
)
SPECS = {"ucn_rn": TRUNK, "ucn_hn": TRUNK, "ucn_hn_st": TRUNK | THETA}


def deploy(name, height, width, edit=lambda text: text):
    """The deploy net of a spec for images of a size."""
    text = edit(specs.path(name).read_text(encoding="utf-8"))
    message = loads(text, name=str(specs.path(name)))
    for field in message.all("layer"):
        if field.value.text("name") in ("image1", "image2"):
            shape = field.value.get("input_param").value.get("shape").value
            for dim, size in zip(shape.fields[2:], (height, width), strict=True):
                shape.fields.remove(dim)
                shape.fields.append(Field("dim", Scalar(str(size), dim.span), dim.span))
    return Net(message, stages=["deploy"], seed=0)


@pytest.mark.parametrize("name", SPECS)
def test_blob_shapes_at_224(name):
    shapes = deploy(name, 224, 224).blob_shapes
    assert shapes["conv1/7x7_s2"] == (1, 64, 112, 112)
    assert shapes["pool1/3x3_s2"] == (1, 64, 57, 57)
    assert shapes["pool2/3x3_s2"] == (1, 192, 57, 57)
    assert shapes["inception_3b/output"] == (1, 480, 57, 57)
    assert shapes["pool3/3x3_s2"] == (1, 480, 55, 55)
    assert shapes["inception_4a/output_p"] == (1, 512, 55, 55)
    assert shapes["feature1"] == shapes["feature2"] == (1, 128, 55, 55)


def test_patches_of_the_transformer():
    shapes = deploy("ucn_hn_st", 224, 224).blob_shapes
    assert shapes["inception_4a/3x3_patches"] == (1, 96, 165, 165)
    assert shapes["inception_4a/5x5_patches"] == (1, 16, 275, 275)
    assert shapes["inception_4a/3x3"] == (1, 208, 55, 55)


def test_a_padded_pool3_needs_no_offset():
    net = deploy(
        "ucn_rn", 224, 224, lambda text: text.replace("stride: 1, pad: 0", "stride: 1, pad: 1")
    )
    assert net.blob_shapes["feature1"] == (1, 128, 57, 57)


@pytest.mark.parametrize("name", SPECS)
def test_parameters(name):
    net, table = Net(specs.path(name), stages=["deploy"]), SPECS[name]
    counts = {fact.name: fact.parameters for fact in net.facts() if fact.parameters}
    assert counts == {layer: n * k * k * m + m for layer, (n, m, k) in table.items()}
    assert net.num_parameters == sum(counts.values())
    assert {fact.shared_with for fact in net.facts() if fact.name.endswith("_p")} == {"", *table}
    assert net.learnable[0].name == "conv1/7x7_s2_w"
    tenfold = {blob.layer for blob in net.learnable if blob.lr_mult == 10}
    assert tenfold == (THETA.keys() if "st" in name else set())


def test_files_are_short():
    for path in specs.FOLDER.glob("*.yaml"):
        assert len(path.read_text(encoding="utf-8").splitlines()) < 250, path.name


@pytest.mark.parametrize("name", SPECS)
def test_forward_and_backward_on_a_pair(name):
    net = Net(specs.path(name), "TRAIN", seed=0)
    generator = torch.Generator().manual_seed(1)
    xy = torch.rand(1, 1000, 2, generator=generator) * torch.tensor([415.0, 127.0])
    pairs = torch.cat([xy, (xy + 3).clamp(max=127), torch.ones(1, 1000, 1)], 2)
    pairs[:, 500:, 4] = -1
    image1, image2 = 50 * torch.randn(2, 1, 3, 128, 416, generator=generator)
    inputs = {"image1": image1, "image2": image2, "pairs": pairs, "num_pairs": torch.tensor([[500.0]])}
    blobs = net({name: inputs[name] for name in net.inputs}, keep=["feature1", "mined", "index"])
    assert blobs["feature1"].shape == (1, 128, 31, 103)
    negatives = blobs["mined"][0, 1000:1500]
    apart = (negatives - pairs[0, :500])[:, 2:4].norm(dim=1)
    assert (apart[negatives[:, 4] == 0] >= 16).all()
    cell = blobs["index"][0, 0, :500]
    nearest = 4 + 4 * torch.stack([cell % 103, cell // 103], 1)
    hard = (negatives[:, 2:4] == nearest).all(1)
    assert hard.any() == (name != "ucn_rn")
    assert torch.isfinite(blobs.loss)
    blobs.loss.backward()
    for blob in net.learnable:
        assert blob.parameter.grad is not None, blob.name
        assert torch.isfinite(blob.parameter.grad).all(), blob.name
    assert net.params["conv1/7x7_s2"][0].grad.abs().max() > 0


@pytest.mark.parametrize("name", SPECS)
def test_solvers_build(name):
    solver = Solver(specs.path(f"{name}_solver"))
    assert solver.net.blob_shapes["image1"] == (1, 3, 224, 224)
    assert solver.net.inputs == ()
    assert solver.params.type == "Adam"
    assert solver.rate == 9e-5


@pytest.mark.parametrize("folder", cases("12_googlenet_cut"))
def test_a_googlenet_caffemodel_loads_by_name(folder):
    net = Net(specs.path("ucn_hn"), stages=["deploy"])
    report = load_weights(net, folder / "weights.caffemodel")
    assert report.missing == ("feature_conv", "feature_conv_p")
    assert not report.unused


@needs_shared
def test_names_and_numbers_are_bvlcs():
    path = SHARED / "data" / "prototxts" / "bvlc" / "bvlc_googlenet" / "train_val.prototxt"
    theirs = {field.value.text("name"): field.value for field in load(path).all("layer")}
    net = Net(specs.path("ucn_hn"), stages=["deploy"])
    for made in net.built.layers:
        node = made.node
        if node.name in theirs:
            bvlc = theirs[node.name]
            assert node.type == bvlc.text("type")
            if node.type == "Convolution":
                block = bvlc.get("convolution_param").value
                assert made.shapes[0][1] == int(block.text("num_output"))
    shared = {made.node.name for made in net.built.layers} & theirs.keys()
    assert len(shared) == 53


def bvlc_weights():
    path = SHARED / "data" / "weights" / "bvlc_googlenet.caffemodel"
    if not path.exists():
        pytest.skip("BVLC's weights of GoogLeNet are not in the shared folder")
    return path


def test_the_cells_of_googlenet_lie_at_every_4th_pixel():
    net = deploy("googlenet", 224, 224)
    fields = {
        top: field
        for fact in net.facts()
        for (top, _), field in zip(fact.tops, fact.fields, strict=True)
    }
    for blob in (*GOOGLENET, "feature1"):
        assert net.blob_shapes[blob][2:] == (57, 57), blob
        for twin in (blob, "feature2" if blob == "feature1" else f"{blob}_p"):
            assert [(axis.stride, axis.point) for axis in fields[twin][-2:]] == [(4, 0)] * 2, twin
    assert net.blob_shapes["feature2"] == (1, 192, 57, 57)
    assert not mismatches(net.match, net.facts())


def test_a_cell_of_googlenet_sees_27_pixels_around_its_point():
    net = deploy("googlenet", 96, 112)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, 96, 112, generator=generator).requires_grad_()
    features = net({"image1": image, "image2": torch.zeros(1, 3, 96, 112)}, keep=["feature1"])
    (features["feature1"][0, :, 12, 15] ** 3).sum().backward()
    rows, columns = image.grad[0].abs().sum(0).nonzero().unbind(1)
    assert (int(rows.min()), int(rows.max())) == (4 * 12 - 13, 4 * 12 + 13)
    assert (int(columns.min()), int(columns.max())) == (4 * 15 - 13, 4 * 15 + 13)


@needs_shared
def test_bvlcs_weights_fill_googlenet():
    net = Net(specs.path("googlenet"), stages=["deploy"], weights=bvlc_weights())
    assert net.report.missing == ()
    assert {name.split("/")[0] for name in net.report.unused} >= {"inception_4b", "loss3"}
    assert not any(
        name.startswith(("conv", "inception_3", "inception_4a")) for name in net.report.unused
    )


@needs_shared
def test_googlenet_is_bvlcs_where_their_strides_agree():
    """BVLC's cells lie at 4u + 2 after pool1, at 8u + 6 after pool2: of an image without its first two
    rows and columns ours are the same, every second one after pool2. At the borders paddings differ."""
    path = bvlc_weights()
    text = (path.parent / "bvlc_googlenet_deploy.prototxt").read_text(encoding="utf-8")
    theirs = Net(
        loads(text.replace("dim: 10", "dim: 1"), "deploy.prototxt", "prototxt"), "TEST", weights=path
    )
    ours = Net(specs.path("googlenet"), "TEST", stages=["deploy"], weights=path)
    image = 40 * torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(3))
    moved = image[:, :, 2:, 2:]
    with torch.no_grad():
        want = theirs({"data": image}, keep=GOOGLENET[:6])
        have = ours({"image1": moved, "image2": moved}, keep=[*GOOGLENET[:6], "feature1"])
    for blob in GOOGLENET[:5]:
        torch.testing.assert_close(have[blob][..., 3:53, 3:53], want[blob][..., 3:53, 3:53])
    pooled = want["pool2/3x3_s2"][..., 2:26, 2:26]
    torch.testing.assert_close(have["pool2/3x3_s2"][..., 5:53:2, 5:53:2], pooled)
    unit = torch.nn.functional.normalize(pooled, dim=1)
    torch.testing.assert_close(have["feature1"][..., 5:53:2, 5:53:2], unit)


@needs_shared
def test_googlenet_finds_a_shift():
    matcher = Matcher("googlenet", bvlc_weights())
    image = skimage.data.coffee()[60:260, 120:360]
    points = np.stack(np.meshgrid(np.arange(80, 200, 20), np.arange(60, 160, 20)), 2).reshape(-1, 2)
    found, distance = matcher.match(image, image[12:, 20:], points)
    assert (found == points - [20, 12]).all(1).mean() > 0.9
    assert distance.max() < 0.5


@needs_shared
@pytest.mark.parametrize("name", SPECS)
def test_the_recipe_of_the_shipped_weights_trains(name, tmp_path, monkeypatch):
    """In crops of 64 pixels; the scenes are where Middlebury's archives put them. Hard negatives are
    nearer than published; the transformer starts near the identity, of hidden units that differ."""
    (tmp_path / "MiddEval3").mkdir()
    (tmp_path / "MiddEval3" / "trainingQ").symlink_to(SHARED / "data" / "stereo")
    monkeypatch.chdir(tmp_path)
    for path in specs.FOLDER.glob("*.yaml"):
        text = path.read_text(encoding="utf-8").replace("crop_size: 320", "crop_size: 64")
        Path(path.name).write_text(text, encoding="utf-8")
    weights = SHARED / "data" / "weights" / "bvlc_googlenet.caffemodel"
    solver = Solver(f"{name}_scenes_solver.yaml", weights=weights)
    assert solver.params.weights == ("bvlc_googlenet.caffemodel",)
    assert solver.net.blob_shapes["image1"] == (2, 3, 64, 64)
    missing = {layer.removesuffix("_p") for report in solver.reports for layer in report.missing}
    assert missing == {"feature_conv"} | (THETA.keys() if name == "ucn_hn_st" else set())
    published = Net(name, "TRAIN", stages=("photographs",))
    for net, pixels in ((solver.net, 4), (published, 16)):
        (mining,) = (made.layer for made in net.built.layers if made.node.name == "mining")
        assert mining.params.pixel_threshold == (np.inf if name == "ucn_rn" else pixels)
    for size in ("3x3", "5x5") if name == "ucn_hn_st" else ():
        kept = [f"inception_4a/{size}_theta", f"inception_4a/{size}_theta1"]
        blobs = solver.net(keep=kept)
        theta, hidden = (blobs[blob].detach() for blob in kept)
        assert 0 < theta.abs().mean() < 0.4
        assert hidden.std(1).mean() > hidden.mean() / 2 > 1
    before = {blob.name: blob.parameter.detach().clone() for blob in solver.net.learnable}
    losses = [solver.step() for _ in range(3)]
    assert all(0 < loss < 1 for loss in losses)
    for blob in solver.net.learnable:
        assert not torch.equal(blob.parameter, before[blob.name]), blob.name
