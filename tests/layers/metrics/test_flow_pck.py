"""PCK of a flow against a loop over keypoints."""

import math

import numpy as np
import pytest
import torch
from cortado.layers._engine.checks import BlobError
from cortado.layers.metrics.flow_pck import FlowPCK, Length, Params, flow_pck


def oracle(flow, pairs, threshold, length):
    flow, pairs, shares = flow.numpy(), pairs.numpy(), []
    height, width = flow.shape[2:]
    for limit in threshold:
        right = total = 0
        for n, p in np.ndindex(*pairs.shape[:2]):
            x1, y1, x2, y2, s = pairs[n, p]
            if s != 1:
                continue
            total += 1
            u = min(max(math.floor(x1 + 0.5), 0), width - 1)
            v = min(max(math.floor(y1 + 0.5), 0), height - 1)
            x, y = x1 + flow[n, 0, v, u], y1 + flow[n, 1, v, u]
            right += bool(np.hypot(x - x2, y - y2) <= limit * length)
        shares.append(right / max(total, 1))
    return shares


def keypoints(seed, n=2, p=31, height=12, width=15):
    rng = np.random.default_rng(seed)
    flow = rng.normal(0, 4, (n, 2, height, width))
    flow[:, :, 3:5] = np.nan
    pairs = np.c_[rng.uniform(-1, 15, (n * p, 4)), rng.integers(-1, 2, n * p)]
    return torch.from_numpy(flow), torch.from_numpy(pairs.reshape(n, p, 5))


@pytest.mark.parametrize("length", Length)
@pytest.mark.parametrize("seed", range(2))
def test_oracle(length, seed):
    flow, pairs = keypoints(seed)
    image = torch.zeros(2, 3, 20, 30)
    params = Params((2.0, 6.0, 9.0) if length is Length.PIXEL else (0.1, 0.2, 0.3), length)
    top = FlowPCK(params)(flow, pairs, image)
    wanted = oracle(flow, pairs, params.threshold, length.of(20, 30))
    assert top.tolist() == pytest.approx(wanted)
    assert 0 < top[1] < 1


def test_no_flow_is_wrong_and_an_empty_table_is_zero():
    flow, pairs = keypoints(0)
    assert flow_pck(flow * torch.nan, pairs, (1e9,)).tolist() == [0]
    assert flow_pck(flow, pairs[:, :0]).tolist() == [0, 0, 0]
    assert flow_pck(flow[:0], pairs[:0]).tolist() == [0, 0, 0]
    assert flow_pck(flow[:, :, :0], pairs).tolist() == [0, 0, 0]


def test_a_point_at_the_threshold_is_right():
    flow = torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1).expand(1, 2, 6, 6)
    pairs = torch.tensor([[[1.0, 1, 1, 1, 1]]])
    assert flow_pck(flow, pairs, (4.99, 5.0)).tolist() == [0, 1]


def test_errors_are_exact():
    flow, pairs = keypoints(0)
    for wrong, message in (
        ((flow[0], pairs), "expected flow [2, 12, 15] to be [N, 2, H, W]"),
        ((flow[:, :1], pairs), "expected flow [2, 1, 12, 15] to be [N, 2, H, W]"),
        ((flow, pairs[..., :4]), "expected pairs [2, 31, 4] to be [N, P, 5], rows (x1, y1, x2, y2, s)"),
        ((flow[:1], pairs), "bottoms disagree on N: flow [1, 2, 12, 15], pairs [2, 31, 5]"),
        ((flow, pairs), "length DIAGONAL needs an image as a third bottom"),
        ((flow, pairs, flow[0]), "expected image [2, 12, 15] to be [N, C, h, w]"),
    ):
        with pytest.raises(BlobError) as caught:
            FlowPCK(Params())(*wrong)
        assert str(caught.value) == message
    pairs[1, 4, 2] = torch.inf
    with pytest.raises(BlobError, match="row 4 of image 1 has coordinates that are not finite"):
        flow_pck(flow, pairs)
