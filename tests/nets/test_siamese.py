"""The Siamese construct: its expansion, and what the twins share."""

from pathlib import Path

import pytest
import torch
from cortado.nets.net import Net
from cortado.nets.siamese import expand, expanded_text
from cortado.prototxt_like import load, loads

HERE = Path(__file__).parent
SPEC = HERE / "valid" / "siamese.yaml"


def test_expansion_is_as_printed_before():
    assert expanded_text(load(SPEC)) == (HERE / "siamese_expanded.txt").read_text(encoding="utf-8")


def test_the_printed_expansion_is_the_same_net():
    one, two = Net(SPEC, "TRAIN", seed=1), Net(loads(expanded_text(load(SPEC))), "TRAIN", seed=1)
    assert one.blob_shapes == two.blob_shapes
    assert one.num_parameters == two.num_parameters
    inputs = {name: torch.randn(shape) for name, shape in one.blob_shapes.items() if name in one.inputs}
    assert torch.equal(one(inputs).loss, two(inputs).loss)


def test_twins_share_by_name():
    net = Net(SPEC)
    for first, second in zip(net.params["conv/3x3"], net.params["conv/3x3_right"], strict=True):
        assert first is second
    names = [blob.name for blob in net.learnable]
    assert names == ["conv/3x3_w", "bias", "ip_w", "ip_b"]
    assert net.blob_shapes["conv_right"] == (1, 4, 6, 6)


def test_both_branches_give_gradients_to_the_shared_parameters():
    net = Net(SPEC, "TRAIN")
    weight = net.params["ip"][0]
    with torch.no_grad():
        weight.normal_(generator=torch.Generator().manual_seed(0))
    image1, image2 = torch.randn(2, 1, 3, 8, 8)
    net(image1=image1, image2=image2).loss.backward()
    both = weight.grad.clone()
    branches = []
    for kept in (0, 1):
        net.zero_grad()
        down = ", ".join("true" if i == kept else "false" for i in (0, 1))
        text = SPEC.read_text().replace("loss, type", f"loss, propagate_down: [{down}], type")
        one = Net(loads(text), "TRAIN")
        one.load_state_dict(net.state_dict())
        one(image1=image1, image2=image2).loss.backward()
        branches.append(one.params["ip"][0].grad)
    torch.testing.assert_close(both, sum(branches))


def test_a_net_without_twins_is_left_alone():
    message = loads("layer: {name: x, type: Input, top: x}")
    assert expand(message).fields == message.fields


def test_spans_stay_those_of_the_trunk():
    layers = [field.value for field in expand(load(SPEC)).all("layer")]
    twins = [layer.span.line for layer in layers if layer.text("name").startswith("conv/3x3")]
    assert twins == [8, 8]


@pytest.mark.parametrize("name", ["siamese.yaml", "siamese.prototxt"])
def test_both_notations(name):
    assert "ip_b" in {blob.name for blob in Net(HERE / "valid" / name).learnable}
