"""Gradients of layers whose blob later in-place layers overwrote: what Caffe reads there."""

from __future__ import annotations

import pytest
import torch
from cortado.nets.in_place import places
from cortado.nets.net import Net
from cortado.prototxt_like import loads

INPUT = """force_backward: true
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }"""


def net(*layers: str) -> Net:
    """Of an input x and layers l0, l1, ..."""
    body = [f'layer {{ name: "l{i}" {layer} }}' for i, layer in enumerate(layers)]
    return Net(loads("\n".join([INPUT, *body]), notation="prototxt"), "TRAIN")


def gradient(made: Net, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    blobs = made(x=x)
    torch.autograd.backward(list(blobs.values()), [torch.ones_like(blob) for blob in blobs.values()])
    return x.grad


X = torch.tensor([[-0.7, 0.2, 0.9], [0.4, -0.1, -1.3]])


def test_what_a_later_layer_left() -> None:
    """tanh, then doubled in place: the gradient of tanh is 1 - (2 tanh x)^2."""
    made = net(
        'type: "TanH" bottom: "x" top: "h"',
        'type: "Power" bottom: "h" top: "h" power_param { scale: 2 }',
    )
    torch.testing.assert_close(gradient(made, X), 2 * (1 - (2 * X.tanh()) ** 2))


def test_its_own_top() -> None:
    """BNLL in place finds its top where its bottom was."""
    made = net(
        'type: "Power" bottom: "x" top: "h" power_param { scale: 2 }',
        'type: "BNLL" bottom: "h" top: "h"',
    )
    top = torch.nn.functional.softplus(2 * X)
    torch.testing.assert_close(gradient(made, X), 2 * torch.sigmoid(top))


@pytest.mark.parametrize("kind", ["Scale", "PReLU"])
def test_layers_that_keep_their_bottom(kind: str) -> None:
    """Their parameters' gradients are exact in place too."""
    layers = [
        'type: "Power" bottom: "x" top: "h"',
        f'type: "{kind}" bottom: "h" top: "{{}}"',
        'type: "Power" bottom: "{}" top: "{}" power_param {{ scale: -2 }}',
    ]
    found = []
    for name in ("h", "other"):
        made = net(*(layer.format(name, name) for layer in layers))
        gradient(made, X)
        found.append(made.params["l1"][0].grad)
    torch.testing.assert_close(found[0], found[1])
    assert found[0].any()


def test_usual_chains_are_exact() -> None:
    chain = [
        'type: "Power" bottom: "x" top: "h" power_param { scale: 3 shift: 0.1 }',
        'type: "ReLU" bottom: "h" top: "h"',
        'type: "Dropout" bottom: "h" top: "h" dropout_param { dropout_ratio: 0 }',
    ]
    torch.testing.assert_close(gradient(net(*chain), X), 3.0 * (3 * X + 0.1 > 0))


def test_places() -> None:
    """Only chains are tracked, and a new producer begins a new memory."""
    made = net(
        'type: "TanH" bottom: "x" top: "h"',
        'type: "ReLU" bottom: "h" top: "h"',
        'type: "TanH" bottom: "h" top: "y"',
    )
    found = places(made.built.layers)
    assert [place.shared for place in found] == [False, True, True, True]
    assert found[1].tops == found[2].bottoms == found[2].tops == found[3].bottoms != (None,)
    assert found[3].tops == (None,)
    assert torch.equal(made(x=X)["y"], X.tanh().relu().tanh())
