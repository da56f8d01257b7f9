"""The nets of Hyperpixel Flow: their trunks against the public net, its weights and plain torch; the
choice of blocks."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from cortado.layers._data.images import read_image
from cortado.layers._data.transform import blob
from cortado.nets.build import Built, build
from cortado.nets.cost import facts, mismatches
from cortado.nets.graph import Graph, graph
from cortado.nets.hyperpixels import blocks, choose
from cortado.nets.matching import transform_params
from cortado.nets.net import Net
from cortado.nets.specs import load, path
from cortado.prototxt_like import Message, SpecError, loads
from cortado.tools.convert import write_spec
from shared import SHARED
from torch import nn

HPF = SHARED / "data" / "hpf" if SHARED else Path("missing")
WEIGHTS = HPF / "resnet50_caffe_upto_res4f.npz"
needs_weights = pytest.mark.skipif(
    not WEIGHTS.is_file(), reason="Hyperpixel Flow's weights are not here"
)
IDS = {
    "hpf_resnet50": (2, 7, 11, 12, 13),
    "hpf_resnet50_fast": (4, 7, 11, 12, 13),
    "hpf_resnet50_torchvision": (2, 7, 11, 12, 13),
    "hpf_resnet101": (2, 17, 21, 22, 25, 26, 28),
    "hpf_resnet101_torchvision": (2, 17, 21, 22, 25, 26, 28),
    "hpf_fcn_resnet101": (2, 4, 5, 18, 19, 20, 24, 32),
}
STAGES = {50: (3, 4, 6), 101: (3, 4, 23)}


def trunk(name: str) -> Message:
    """A net of one image, of the trunk alone."""
    data = "{name: data, type: Input, top: data, input_param: {shape: {dim: [1, 3, 225, 300]}}}"
    return loads(f"layer:\n- {data}\n- include: {name}.yaml\n", str(path(name).with_name("one.yaml")))


@pytest.fixture(scope="module")
def built() -> dict[str, Built]:
    return {name: build(load(name), values=False) for name in IDS}


@pytest.mark.parametrize("name", IDS)
def test_blocks_are_called_by_depth(name: str, built: dict[str, Built]) -> None:
    """0 is pool1; then one after the other: 256, 512, 1024 (and 2048) channels at 1/4, 1/8, 1/16."""
    found = blocks(load(name))
    stages = STAGES[50 if "50" in name else 101] + ((3,) if "fcn" in name else ())
    assert len(found) == 1 + sum(stages)
    assert found[0] == "pool1"
    rows, columns = built[name].shapes["pool1"][2:]
    assert (rows, columns) == (
        (56, 75) if "torchvision" not in name and "fcn" not in name else (57, 75)
    )
    expected = [(128 if "fcn" in name else 64, rows, columns)]
    for stage, count in enumerate(stages):
        if stage and not ("fcn" in name and stage > 1):
            rows, columns = -(-rows // 2), -(-columns // 2)
        expected += [(256 * 2**stage, rows, columns)] * count
    assert [built[name].shapes[block][1:] for block in found] == expected
    assert [built[name].shapes[f"{block}_p"][1:] for block in found] == expected
    kinds = {node.tops[0]: node.type for node in built[name].graph.nodes if not node.in_place(0)}
    assert {kinds[block] for block in found[1:]} == {"Eltwise"}
    assert all(kinds[f"{block}_relu"] == "ReLU" for block in found[1:])


@pytest.mark.parametrize("name", IDS)
def test_hyperpixels_are_the_papers(name: str, built: dict[str, Built]) -> None:
    net, names = built[name], blocks(load(name))
    (correlation,) = (n for n in net.graph.nodes if n.type == "HyperpixelCorrelation")
    chosen = [names[i] for i in IDS[name]]
    twins = [f"{each}_p" for each in chosen]
    assert list(correlation.bottoms) == [*chosen, *twins, "image1", "image2"]
    channels = sum(net.shapes[each][1] for each in chosen)
    wanted = {"hpf_resnet50": 3840, "hpf_resnet50_fast": 4096, "hpf_resnet50_torchvision": 3840}
    assert channels == wanted.get(name, 7424 if "fcn" in name else 6400)
    grid = net.shapes[chosen[0]][2:]
    assert net.shapes["similarity"] == net.shapes["confidence"] == (1, *grid, *grid)
    match = net.graph.match
    assert match
    assert (match.confidence, match.similarity, match.longer_side) == ("confidence", "similarity", 300)
    fast = "fast" in name
    cells = (match.downsampling_factor, match.receptive_field, match.margin)
    assert cells == ((8, 43, 8) if fast else (4, 27, 4))
    for made in net.layers[-2:]:
        params = made.layer.params
        assert (params.jump, params.receptive_field, params.margin) == cells
    assert mismatches(match, facts(net)) == []


def test_another_jump_than_the_base_maps_is_noted(built: dict[str, Built]) -> None:
    text = path("hpf_resnet50").read_text(encoding="utf-8").replace("jump: 4", "jump: 8")
    wrong = build(loads(text, str(path("hpf_resnet50"))), values=False)
    note = 'match_param puts cells 8 pixels apart; those of "res2b" are 4 apart'
    assert mismatches(wrong.graph.match, facts(wrong)) == [note]


def test_the_dilated_net(built: dict[str, Built]) -> None:
    """From res3 on at stride 8; the first 3x3 convolution of a stage is dilated by half."""
    layers = {made.node.name: made.layer for made in built["hpf_fcn_resnet101"].layers}
    found = {
        name.removesuffix("_branch2b"): (layer.params.stride, layer.params.dilation, layer.params.pad)
        for name, layer in layers.items()
        if name.endswith("_branch2b") and name.startswith("res")
    }
    assert list(found.values()) == [
        *[((1,), (1,), (1,))] * 3,
        ((2,), (1,), (1,)),
        *[((1,), (1,), (1,))] * 4,
        *[((1,), (2,), (2,))] * 23,
        *[((1,), (4,), (4,))] * 2,
    ]


@pytest.mark.parametrize("suffix", [".yaml", ".prototxt"])
def test_written_out_it_is_the_same_net(suffix: str, tmp_path: Path) -> None:
    write_spec("hpf_resnet50_fast", tmp_path / f"net{suffix}")
    text = (tmp_path / f"net{suffix}").read_text(encoding="utf-8")
    assert "resnet_block" not in text
    assert wiring(graph(load(tmp_path / f"net{suffix}"))) == wiring(graph(load("hpf_resnet50_fast")))


def wiring(of: Graph) -> list[object]:
    nodes = [(node.name, node.type, node.bottoms, node.tops, node.twin_of) for node in of.nodes]
    return [*nodes, of.match]


# The public net and its weights.


@needs_weights
def test_layers_are_those_of_the_public_net() -> None:
    """Its names, types, parameters and maps; what it computes in place is a blob of its own here."""
    public = Net(HPF / "resnet50_upto_res4f.prototxt")
    ours = Net(trunk("resnet50_to_res4f"))
    theirs = {made.node.name: made for made in public.built.layers if made.node.type != "Input"}
    mine = {made.node.name: made for made in ours.built.layers if made.node.type != "Input"}
    assert mine.keys() == theirs.keys()
    for name, made in theirs.items():
        assert made.node.type == mine[name].node.type
        shapes = [[tuple(b.shape) for b in each.layer.blobs] for each in (made, mine[name])]
        assert shapes[0] == shapes[1], name


@needs_weights
def test_the_public_net_gives_the_same_maps() -> None:
    public = Net(HPF / "resnet50_upto_res4f.prototxt", weights=WEIGHTS)
    ours = Net(trunk("resnet50_to_res4f"), weights=WEIGHTS)
    for net in (public, ours):
        assert net.report
        assert (net.report.missing, net.report.unused) == ((), ())
    image = torch.randn(1, 3, 64, 97, generator=torch.Generator().manual_seed(0)) * 60
    with torch.no_grad():
        wanted = public(image, keep=True)
        found = ours(image, keep=True)
    for name in blocks(load("hpf_resnet50")):
        versions = wanted.versions[name]
        assert torch.equal(found[name], versions[0])
        if name != "pool1":
            assert torch.equal(found[f"{name}_relu"], versions[1])


@needs_weights
@pytest.mark.parametrize("pair", [0, 7])
def test_maps_of_the_authors_images(pair: int) -> None:
    """What the published functions took of these weights and images, in float32."""
    net = Net(trunk("resnet50_to_res4f"), weights=WEIGHTS)
    with np.load(HPF / "reference" / f"pair{pair:02}.npz") as reference:
        wanted = dict(reference)
    image = read_image(HPF.parent / "pf_willow" / str(wanted["group"]) / str(wanted["src"]))
    names = blocks(load("hpf_resnet50"))
    with torch.no_grad():
        found = net(blob(image, transform_params(load("hpf_resnet50"))), keep=names)
    for i in IDS["hpf_resnet50"]:
        values = found[names[i]][0].numpy()
        assert values.shape == tuple(wanted[f"src_feat{i}_shape"])
        parts = {"crop": values[:16, 5:11, 7:13], "chmean": values.mean((1, 2))}
        for part, mine in parts.items():
            theirs = wanted[f"src_feat{i}_{part}"]
            assert np.abs(mine - theirs).max() < 1e-4 * np.abs(theirs).max(), (i, part)


@needs_weights
def test_both_branches_have_the_weights() -> None:
    net = Net("hpf_resnet50", weights=WEIGHTS)
    assert net.report
    assert (net.report.missing, net.report.unused) == ((), ())
    assert len(net.report.filled) == 2 * 129
    one, two = (net.layer_by_name[name].weight for name in ("res2a_branch1", "res2a_branch1_p"))
    assert one is two


# torchvision's nets.


class Bottleneck(nn.Module):
    def __init__(self, into: int, width: int, stride: int, project: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, width, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(n) for n in (width, width, 4 * width))
        self.downsample: nn.Module = nn.Identity()
        if project:
            convolution = nn.Conv2d(into, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(4 * width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The sum before its ReLU."""
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        return self.bn3(self.conv3(y)) + self.downsample(x)


class Plain(nn.Module):
    """torchvision's ResNet, by its names, with a small last stage that nobody reads."""

    def __init__(self, stages: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        into = 64
        for stage, count in enumerate(stages):
            width = 64 * 2**stage
            made = nn.Sequential()
            for i in range(count):
                made.append(Bottleneck(into, width, 2 if stage and i == 0 else 1, project=i == 0))
                into = 4 * width
            self.add_module(f"layer{stage + 1}", made)
        self.layer4 = nn.Sequential(*(Bottleneck(4, 1, 1, project=i == 0) for i in range(3)))
        self.fc = nn.Linear(2, 2)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, 0, 0.1)
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.uniform_(module.weight, 0.5, 1)
                nn.init.normal_(module.bias, 0, 0.1)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """What each block gives."""
        x = self.bn1(self.conv1(image)).relu()
        found = [nn.functional.max_pool2d(x, 3, 2, 1)]
        for block in (*self.layer1, *self.layer2, *self.layer3):
            found.append(block(found[-1] if len(found) == 1 else found[-1].relu()))
        return found


@pytest.mark.parametrize("layers", [50, 101])
def test_torchvisions_weights_give_torchvisions_maps(layers: int, tmp_path: Path) -> None:
    """At odd and even sizes, where Caffe's pooling would count other windows."""
    torch.manual_seed(layers)
    plain = Plain(STAGES[layers]).eval()
    torch.save(plain.state_dict(), tmp_path / "resnet.pth")
    end = "res4f" if layers == 50 else "res4b22"
    net = Net(trunk(f"resnet{layers}_torchvision_to_{end}"), weights=tmp_path / "resnet.pth")
    assert net.report
    assert net.report.missing == ()
    assert set(net.report.unused) >= {"res5a_branch1", "fc1000"}
    names = blocks(load(f"hpf_resnet{layers}_torchvision"))
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-12)):
        plain, net = plain.to(dtype), net.to(dtype)
        for size in ((61, 90), (64, 67)):
            image = torch.randn(1, 3, *size, dtype=dtype)
            with torch.no_grad():
                wanted, found = plain(image), net(image, keep=names)
            for name, values in zip(names, wanted, strict=True):
                assert found[name].shape == values.shape
                assert (found[name] - values).abs().max() < tolerance * values.abs().max(), name


@pytest.mark.parametrize("layers", [50, 101])
def test_caffes_nets_take_torchvisions_weights_too(layers: int, tmp_path: Path) -> None:
    """A bias that torchvision has not is 0; the maps are others, as the strides lie elsewhere."""
    torch.save(Plain(STAGES[layers]).state_dict(), tmp_path / "resnet.pth")
    net = Net(f"hpf_resnet{layers}", weights=tmp_path / "resnet.pth")
    assert net.report
    assert net.report.missing == ()
    if layers == 50:
        assert not net.params["conv1"][1].any()


# Images.


def test_images_become_blobs_as_each_net_wants_them() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    rgb = torch.from_numpy(image.transpose(2, 0, 1)[None].copy())
    caffe = transform_params(load("hpf_resnet50"))
    mean = torch.tensor([103.06262, 115.902885, 123.15163])[:, None, None]
    torch.testing.assert_close(blob(image, caffe), rgb.flip(1) - mean, rtol=0, atol=1e-5)
    plain = transform_params(load("hpf_resnet101_torchvision"))
    mean, std = (torch.tensor(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(blob(image, plain), (rgb / 255 - mean) / std, rtol=0, atol=1e-5)


@needs_weights
def test_the_mean_is_that_of_the_weights_file() -> None:
    with np.load(WEIGHTS) as file:
        mean = transform_params(load("hpf_resnet50")).mean_value
        np.testing.assert_allclose(mean, file["__mean_bgr_channel"], rtol=0, atol=1e-5)


# The choice of blocks.


def test_the_faster_variant_is_a_choice_of_blocks() -> None:
    chosen = graph(choose(load("hpf_resnet50"), (13, 7, 4, 12, 11)))
    fast = graph(load("hpf_resnet50_fast"))
    assert wiring(chosen) == wiring(fast)
    params = [[made.layer.params for made in build(g.message).layers[-2:]] for g in (chosen, fast)]
    assert params[0] == params[1]
    same = graph(choose(load("hpf_resnet50"), IDS["hpf_resnet50"]))
    assert wiring(same) == wiring(graph(load("hpf_resnet50")))


def test_every_base_has_its_cells() -> None:
    spec = load("hpf_resnet101")
    fields = (11, 19, 27, 35, 43, 59, 75, 91, 107, 139)
    for base, field in enumerate(fields):
        made = build(choose(spec, [30, base]), values=False)
        match = made.graph.match
        assert match
        jump = 4 if base < 4 else 8 if base < 8 else 16
        assert (match.downsampling_factor, match.receptive_field, match.margin) == (jump, field, jump)
        assert mismatches(match, facts(made)) == []
        params = made.layers[-1].layer.params
        assert (params.jump, params.receptive_field, params.margin) == (jump, field, jump)
    assert build(choose(spec, [3]), values=False).graph.nodes[-2].bottoms[:2] == ("res2c", "res2c_p")


def test_a_net_that_prunes_nothing_goes_on_so() -> None:
    text = path("hpf_resnet50").read_text(encoding="utf-8")
    text = re.sub(r"res4f_p,\s+image1,\s+image2\]", "res4f_p]", text.replace(", margin: 4", ""))
    made = build(choose(loads(text, str(path("hpf_resnet50"))), [5, 9]), values=False)
    assert made.graph.match
    assert made.graph.match.margin is None
    assert made.graph.nodes[-2].bottoms == ("res3b", "res4b", "res3b_p", "res4b_p")


REFUSED = {
    (): "expected at least one block of 0 pool1, 1 res2a, ",
    (2, 14): "there is no block 14: expected some of 0 pool1, 1 res2a, ",
    (-1, 3): "there is no block -1: expected some of 0 pool1",
    (2, 7, 2): r"block 2 \(res2b\) is given twice",
    (13, 11): r"block 11 \(res4d\) cannot be the first, .*: expected one of 0 pool1, .* 9 res4b$",
}


@pytest.mark.parametrize("ids", REFUSED)
def test_wrong_choices(ids: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=REFUSED[ids]):
        choose(load("hpf_resnet50"), ids)


def test_nets_without_blocks() -> None:
    with pytest.raises(SpecError, match="the net has no blocks to choose from") as caught:
        blocks(load("ucn_hn"))
    assert caught.value.span
    assert caught.value.span.source.name.endswith("ucn_hn.yaml")
    text = path("hpf_resnet50").read_text(encoding="utf-8").replace("[pool1, ", "[image1, ")
    with pytest.raises(SpecError, match='block "image1" is no blob of a siamese trunk'):
        choose(loads(text, str(path("hpf_resnet50"))), [0, 5])
