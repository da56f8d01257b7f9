import numpy as np
import pytest
import torch
from cortado.layers.region_hinge_loss import RegionHingeLoss, region_hinge_loss
from suite import LayerSuite


class TestRegionHingeLoss(LayerSuite):
    layer = RegionHingeLoss
    wrong = (
        ((torch.zeros(3, 4), torch.zeros(3, 5)), "shapes differ: scores [3, 4], label [3, 5]"),
        (
            (torch.zeros(3).int(), torch.zeros(3)),
            "expected scores to be floating point, got torch.int32",
        ),
    )

    def oracle(self, params, scores, label):
        positive = negative = count = 0.0
        for at in np.ndindex(scores.shape):
            if label[at] == 1:
                count += 1
                positive += max(0, params.margin - scores[at])
            elif label[at] == 0:
                negative += max(0, params.margin + scores[at])
        share = 1 / (2 * count) if count else 0
        tops = (positive + negative) * share, positive * share, negative * share
        return tuple(np.array(top) for top in tops)


def test_hand_computed():
    z = torch.tensor([0.25, 2, 0.5, 0, -3, 7], requires_grad=True)
    label = torch.tensor([1, 1, 0, 0, 0, -1])
    loss, positive, negative = RegionHingeLoss()(z, label)
    assert not positive.requires_grad
    assert (float(positive), float(negative)) == (0.75 / 4, 2.5 / 4)
    assert loss.item() == 3.25 / 4
    loss.backward()
    assert z.grad.tolist() == [-0.25, 0, 0.25, 0.25, 0, 0]


def test_without_a_margin():
    z = torch.tensor([0.25, -2, 0.5, -1], requires_grad=True)
    loss = region_hinge_loss(z, torch.tensor([1, 1, 0, 0]), margin=0.0)
    assert loss == 2.5 / 4
    loss.backward()
    assert z.grad.tolist() == [0, -0.25, 0.25, 0]


def test_on_the_edges_the_gradient_is_0():
    z = torch.tensor([1.0, -1.0], requires_grad=True)
    region_hinge_loss(z, torch.tensor([1.0, 0])).backward()
    assert z.grad.tolist() == [0, 0]


@pytest.mark.parametrize("label", [[0.0, -1], [-1, -1]])
def test_without_positives(label):
    z = torch.tensor([0.5, 0.5], requires_grad=True)
    loss = region_hinge_loss(z, torch.tensor(label))
    assert loss == 0
    loss.backward()
    assert z.grad.tolist() == [0, 0]


def test_half_precision_counts_in_single():
    z = torch.zeros(3000, 2, dtype=torch.float16, requires_grad=True)
    loss = region_hinge_loss(z, torch.tensor([[1, 0]]).expand(3000, 2))
    assert loss == 1
    assert loss.dtype == torch.float32
    loss.backward()
    assert z.grad.dtype == torch.float16
