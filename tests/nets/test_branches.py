"""A net cut where its branches meet gives the blobs of the whole net, whatever lies in the branches."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from cortado.nets.branches import Branches
from cortado.nets.net import Net
from cortado.prototxt_like import loads

IMAGES = """
- {name: image1, type: Input, top: image1, input_param: &image {shape: {dim: [1, 3, 12, 16]}}}
- {name: image2, type: Input, top: image2, input_param: *image}
"""
CONV = "{num_output: 4, kernel_size: 3, stride: 2, pad: 1, weight_filler: {type: xavier}}"
SHARED = "[{name: w}, {name: b}]"


def conv(bottom: str, top: str, param: str = "[]", name: str | None = None) -> str:
    name = top if name is None else name
    own = f"{{name: {name}, " if name else "{"
    fields = f"type: Convolution, bottom: {bottom}, top: {top}, param: {param}"
    return f"- {own}{fields}, convolution_param: {CONV}}}\n"


def plain(type: str, bottoms: str, top: str) -> str:
    return f"- {{name: {type}-{top}, type: {type}, bottom: [{bottoms}], top: {top}}}\n"


def two(*layers: str) -> str:
    """Layers for the first branch and, with other names, for the second; one after the other."""
    return (
        "".join(layer.replace("@", side) for layer in layers for side in "ab")
        .replace("imagea", "image1")
        .replace("imageb", "image2")
    )


CORRELATION = plain("HyperpixelCorrelation", "ha, hb", "similarity")
SIAMESE = f"""
- siamese:
    input: {{data: [image1, image2]}}
    output: {{feature: [ha, hb]}}
    layer:
    {conv("data", "x").strip()}
    - {{name: relu, type: ReLU, bottom: x, top: x}}
    {conv("x", "feature").strip()}
"""
IN_PLACE = two(conv("image@", "h@", SHARED), plain("ReLU", "h@", "h@"))
IN_PLACE += plain("Eltwise", "ha, hb", "ha") + CORRELATION
NETS = {
    "a trunk": (SIAMESE + CORRELATION, True),
    "shared by name": (two(conv("image@", "h@", SHARED)) + CORRELATION, True),
    "two trunks": (two(conv("image@", "h@")) + CORRELATION, False),
    "two unnamed trunks": (two(conv("image@", "h@", name="")) + CORRELATION, False),
    "of two depths": (
        conv("image1", "ha") + conv("image2", "x") + plain("ReLU", "x", "hb") + CORRELATION,
        False,
    ),
    "the same layers wired otherwise": (
        two(conv("image@", "x@", SHARED), plain("ReLU", "x@", "y@"))
        + plain("Eltwise", "xa, ya", "ha")
        + plain("Eltwise", "xb, xb", "hb")
        + CORRELATION,
        False,
    ),
    "in place, where they meet too": (IN_PLACE, True),
    "one reads the other": (
        two(conv("image@", "x@", SHARED))
        + plain("Eltwise", "xa, xb", "hb")
        + plain("ReLU", "xa", "ha")
        + CORRELATION,
        False,
    ),
    "a constant in both": (
        "- {name: one, type: DummyData, top: one, dummy_data_param: {shape: {dim: [1, 4, 6, 8]}, "
        "data_filler: {value: 0.5}}}\n"
        + two(conv("image@", "x@", SHARED), plain("Eltwise", "x@, one", "h@"))
        + CORRELATION,
        True,
    ),
    "the images themselves": (plain("HyperpixelCorrelation", "image1, image2", "similarity"), True),
}


def made(text: str) -> Net:
    return Net(loads(f"layer:{IMAGES}{text}"), seed=0)


def images(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = (12, 16), (14, 10)
    return [torch.randn(1, 3, *size, generator=generator) for size in sizes]


@pytest.mark.parametrize("name", NETS)
def test_the_parts_give_what_the_net_gives(name: str) -> None:
    text, twins = NETS[name]
    net = made(text)
    branches = Branches(net, ("image1", "image2"), ("similarity",))
    assert branches.twins == twins
    alike = "Eltwise" in text  # which adds maps of one size
    first, second = images()[0], images(1)[0] if alike else images()[1]
    described = [branches.describe(image) for image in (first, second)]
    for a, b in ((0, 1), (1, 0), (0, 0)):
        given = [(first, second)[i] for i in (a, b)]
        whole = net(image1=given[0], image2=given[1])["similarity"].detach()
        found = branches.compare(described[a], described[b], "similarity")
        assert whole.any()
        assert torch.equal(found, whole)


def test_twins_run_once_and_what_is_not_wanted_never() -> None:
    net = made(SIAMESE + conv("ha", "beside") + CORRELATION)
    ran: list[str] = []
    for step in net.steps:
        step.layer.register_forward_hook(lambda layer, *_: ran.append(layer.name))
    branches = Branches(net, ("image1", "image2"), ("similarity",))
    first = branches.describe(images()[0])
    assert ran == ["x", "relu", "feature"]
    branches.compare(first, first, "similarity")
    assert ran[3:] == ["HyperpixelCorrelation-similarity"]


def test_what_is_described_is_what_is_read_where_the_branches_meet() -> None:
    branches = Branches(
        made(NETS["in place, where they meet too"][0]), ("image1", "image2"), ("similarity",)
    )
    values = branches.describe(images()[0])
    assert set(values) == {("ha", 2), ("hb", 2)}  # of ha's three values
    assert values["ha", 2] is values["hb", 2]
    assert (values["ha", 2] >= 0).all()
    assert not any(value.requires_grad for value in values.values())


def test_a_blob_that_is_wanted_may_lie_in_a_branch() -> None:
    net = made(SIAMESE + CORRELATION)
    branches = Branches(net, ("image1", "image2"), ("ha", "hb", "image1"))
    (first, second), keep = images(), ["ha", "hb"]
    blobs = net(image1=first, image2=second, keep=keep)
    described = [branches.describe(image) for image in (first, second)]
    for name in keep:
        assert torch.equal(branches.compare(*described, name), blobs[name])
    assert branches.compare(*described, "image1") is first


def test_blobs_are_released_after_their_last_use() -> None:
    net = made(SIAMESE + CORRELATION)
    tops: dict[str, weakref.ref[torch.Tensor]] = {}
    alive: dict[str, list[str]] = {}

    def note(layer: Any, _: Any, tops_: Any) -> None:
        top = tops_[0] if isinstance(tops_, tuple) else tops_
        alive[layer.name] = [name for name, ref in tops.items() if ref() is not None]
        tops[layer.name] = weakref.ref(top)

    for step in net.steps:
        step.layer.register_forward_hook(note)
    Branches(net, ("image1", "image2"), ("similarity",)).describe(images()[0])
    assert alive == {"x": [], "relu": ["x"], "feature": ["relu"]}


MATCHING = plain("RegularizedHoughMatching", "similarity, image1, image2", "confidence")
SPLIT = "- {name: split, type: Split, bottom: similarity, top: [one, other]}\n"


@pytest.mark.parametrize(
    ("layers", "wanted", "over"),
    [
        (CORRELATION + MATCHING, "confidence", True),
        (CORRELATION + MATCHING + plain("Eltwise", "similarity, confidence", "sum"), "sum", False),
        (
            CORRELATION
            + SPLIT
            + MATCHING.replace("[similarity", "[one")
            + plain("Eltwise", "other, confidence", "sum"),
            "sum",
            False,
        ),
    ],
    ids=["read once", "read again", "read again by another name"],
)
def test_what_nobody_reads_again_is_written_over(layers: str, wanted: str, over: bool) -> None:
    net = made(SIAMESE + layers)
    branches = Branches(net, ("image1", "image2"), (wanted,))
    (matching,) = (step for step in net.steps if step.layer.type_name == "RegularizedHoughMatching")
    calls: list[bool] = []
    forward_over, forward = matching.layer.forward_over, matching.layer.forward
    matching.layer.forward_over = lambda *x: calls.append(True) or forward_over(*x)  # type: ignore
    matching.layer.forward = lambda *x: calls.append(False) or forward(*x)  # type: ignore
    first, second = images()
    described = [branches.describe(image) for image in (first, second)]
    for _ in range(2):  # what was described is whole
        found = branches.compare(*described, wanted)
        assert torch.equal(found, net(image1=first, image2=second)[wanted])
    assert calls == [over, False] * 2


def test_what_was_described_is_not_written_over() -> None:
    """A similarity that another layer hands on as it is, the caller's own memory."""
    net = made(SIAMESE + CORRELATION + SPLIT + MATCHING.replace("[similarity", "[one"))
    branches = Branches(net, ("image1", "image2"), ("confidence",))
    first, second = (branches.describe(image) for image in images())
    wanted = branches.compare(first, second, "confidence")
    (value,) = (wired.reads[0] for wired in branches.meeting if wired.step.name == "split")
    given = torch.rand(wanted.shape, generator=torch.Generator().manual_seed(0))
    kept = given.clone()
    branches._run(
        branches.meeting[1:], {**first, **second, value: given}, {branches.wanted["confidence"]}
    )
    assert torch.equal(given, kept)
