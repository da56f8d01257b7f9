import math

import numpy as np
import pytest
import torch
from cortado.layers._engine.checks import BlobError
from cortado.layers.correspondence_contrastive_loss import (
    CorrespondenceContrastiveLoss,
    Form,
    Gradient,
    Params,
    correspondence_contrastive_loss,
    forward,
    forward_cuda,
)
from cuda_host import needs_compiler, on_host
from suite import LayerSuite, close
from torch.nn.functional import grid_sample

MAPS, PAIRS = (torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 6, 7)), torch.zeros(2, 6, 5)


def bad(column, value):
    pairs = PAIRS.clone()
    pairs[1, 4, column] = value
    return pairs


def read(feature, x, y, params):
    """The features at an image point, by a tent around every cell."""
    channels, height, width = feature.shape
    u = min(max((x - params.coordinate_offset) / params.downsampling_factor, 0), width - 1)
    v = min(max((y - params.coordinate_offset) / params.downsampling_factor, 0), height - 1)
    if not params.bilinear_interpolation:
        return feature[:, math.floor(v + 0.5), math.floor(u + 0.5)]
    value = np.zeros(channels)
    for row in range(height):
        for column in range(width):
            share = max(0, 1 - abs(u - column)) * max(0, 1 - abs(v - row))
            value += share * feature[:, row, column]
    return value


class TestCorrespondenceContrastiveLoss(LayerSuite):
    layer = CorrespondenceContrastiveLoss
    wrong = (
        ((MAPS[0][0], MAPS[1], PAIRS), "expected feature1 [3, 4, 5] to be [N, C, H, W]"),
        ((*MAPS, PAIRS[0]), "expected pairs [6, 5] to be [N, P, 5]"),
        (
            (*MAPS, torch.zeros(2, 6, 7)),
            "expected pairs [2, 6, 7] to have 5 columns: x1, y1, x2, y2, s",
        ),
        (
            (MAPS[0], MAPS[1][:, :2], PAIRS),
            "channels differ: feature1 [2, 3, 4, 5], feature2 [2, 2, 6, 7]",
        ),
        (
            (*MAPS, PAIRS[:1]),
            "batch sizes differ: feature1 [2, 3, 4, 5], feature2 [2, 3, 6, 7], pairs [1, 6, 5]",
        ),
        ((MAPS[0], MAPS[1][..., :0], PAIRS), "no cell to read in feature2 [2, 3, 6, 0]"),
        ((MAPS[0].int(), MAPS[1], PAIRS), "expected feature1 to be floating point, got torch.int32"),
        (
            (MAPS[0], MAPS[1].double(), PAIRS),
            "expected one dtype and one device, got feature1 torch.float32 on cpu, "
            "feature2 torch.float64 on cpu",
        ),
        (
            (*MAPS, bad(3, math.inf)),
            "pairs [2, 6, 5]: row 4 of image 1 has coordinates that are not finite: 0, 0, 0, inf",
        ),
        ((*MAPS, bad(4, 0.5)), "pairs [2, 6, 5]: row 4 of image 1 has s = 0.5, not 1, 0 or -1"),
        ((*MAPS, bad(4, math.nan)), "pairs [2, 6, 5]: row 4 of image 1 has s = nan, not 1, 0 or -1"),
    )

    def oracle(self, params, feature1, feature2, pairs):
        positive = negative = num_pairs = num_positives = 0
        for n, p in np.ndindex(pairs.shape[:2]):
            x1, y1, x2, y2, s = pairs[n, p]
            difference = read(feature1[n], x1, y1, params) - read(feature2[n], x2, y2, params)
            distance = math.sqrt(sum(difference**2))
            num_pairs += s >= 0
            if s == 1:
                num_positives += 1
                positive += distance**2
            elif s == 0 and params.form is Form.SQUARED_HINGE:
                negative += max(0, params.margin - distance) ** 2
            elif s == 0:
                negative += max(0, params.margin - distance**2)
        n = max(1, num_pairs)
        tops = (
            (positive + negative) / (2 * n),
            num_pairs,
            positive / (2 * n),
            negative / (2 * n),
            positive / (2 * max(1, num_positives)),
        )
        return tuple(np.array(float(top)) for top in tops)


def of_distances(distances, labels, **options):
    """Loss and gradient by feature2 of one-channel pairs at these distances (feature1 is 0)."""
    feature2 = torch.tensor(distances, dtype=torch.float64).reshape(1, 1, 1, -1).requires_grad_()
    feature1 = torch.zeros_like(feature2).requires_grad_()
    x = torch.arange(len(distances), dtype=torch.float64)
    rows = torch.stack((x, 0 * x, x, 0 * x, torch.tensor(labels, dtype=torch.float64)), dim=1)
    loss = correspondence_contrastive_loss(
        feature1, feature2, rows[None], downsampling_factor=1.0, **options
    )
    loss.backward()
    assert torch.equal(feature1.grad, -feature2.grad)
    return loss.item(), feature2.grad.flatten().tolist()


def test_hand_computed():
    loss, grad = of_distances([3, 0.5, 2, 9], [1, 0, 0, -1], margin=1.5)
    assert loss == pytest.approx((9 + 1) / 6)
    assert grad == pytest.approx([3 / 3, -(1.5 - 0.5) / 3, 0, 0])


def test_without_a_margin_false_matches_cost_nothing():
    for form in ("SQUARED_HINGE", "PLAIN_HINGE"):
        loss, grad = of_distances([2, 0.5, 0], [1, 0, 0], margin=0.0, form=form)
        assert loss == pytest.approx(4 / 6)
        assert grad == pytest.approx([2 / 3, 0, 0])


def test_plain_hinge_hand_computed():
    # d = 0.8 and 1.2 lie on either side of d < margin, and within and beyond d^2 < margin
    options = {"margin": 1.1, "form": "PLAIN_HINGE"}
    loss, grad = of_distances([1, 0.8, 1.2], [1, 0, 0], **options)
    assert loss == pytest.approx((1 + 1.1 - 0.64) / 6)
    assert grad == pytest.approx([1 / 3, -0.8 / 3, 0])
    loss, grad = of_distances([0.6, 0.4], [0, 0], margin=0.5, form="PLAIN_HINGE")
    assert loss == pytest.approx((0.5 - 0.36 + 0.5 - 0.16) / 4)
    assert grad == pytest.approx([-0.3, -0.2])


def test_published_plain_hinge_masks_by_the_distance():
    options = {"margin": 0.5, "form": "PLAIN_HINGE", "grad": "published"}
    loss, grad = of_distances([0.6, 0.4], [0, 0], **options)
    assert loss == pytest.approx((0.5 - 0.36 + 0.5 - 0.16) / 4)
    assert grad == pytest.approx([0, -0.2])
    # with a margin above 1 the published mask keeps rows that cost nothing
    loss, grad = of_distances([1.3, 1.2], [0, 0], **{**options, "margin": 1.5})
    assert loss == pytest.approx((1.5 - 1.44) / 4)
    assert grad == pytest.approx([-0.65, -0.6])


def test_published_gradient_adds_to_the_distance():
    tiny = 1e-8
    assert of_distances([tiny], [0])[1] == pytest.approx([-(1 - tiny)])
    assert of_distances([tiny], [0], grad="published")[1] == pytest.approx([-(1 - tiny) / 2])


@pytest.mark.parametrize("grad", Gradient)
@pytest.mark.parametrize("form", Form)
def test_distance_zero(form, grad):
    loss, gradient = of_distances([0, 0], [1, 0], form=form, grad=grad)
    assert loss == 0.25
    assert gradient == [0, 0]


@pytest.mark.parametrize("pairs", [-torch.ones(2, 6, 5), torch.zeros(2, 0, 5)], ids=["ignored", "none"])
def test_no_pair_that_counts(pairs):
    maps = [torch.randn(2, 3, 4, 5, requires_grad=True) for _ in range(2)]
    tops = CorrespondenceContrastiveLoss()(*maps, pairs)
    assert [top.item() for top in tops] == [0, 0, 0, 0, 0]
    tops.loss.backward()
    assert not any(x.grad.any() for x in maps)


def test_duplicated_rows_add_up():
    x = torch.tensor([[[[0.5, 0.0]]]], requires_grad=True)
    pairs = torch.tensor([[[0.0, 0, 4, 0, 1]]]).expand(1, 3, 5)
    correspondence_contrastive_loss(x, x.detach(), pairs).backward()
    assert x.grad.flatten().tolist() == pytest.approx([0.5, 0])


def test_one_map_for_both_images():
    x = torch.tensor([[[[0.5, 0.0]]]], requires_grad=True)
    correspondence_contrastive_loss(x, x, torch.tensor([[[0.0, 0, 4, 0, 1]]])).backward()
    assert x.grad.flatten().tolist() == [0.5, -0.5]


def test_the_positive_only_loss_may_be_of_another_table():
    feature1, feature2 = torch.zeros(2, 1, 1, 1), torch.ones(2, 1, 1, 1)
    feature2[1] = 3
    pairs = torch.tensor([[[0.0, 0, 0, 0, s] for s in (1, 0, -1)]] * 2)
    layer = CorrespondenceContrastiveLoss(Params(margin=2.0))
    assert [float(t) for t in layer(feature1, feature2, pairs)] == [1.375, 4, 1.25, 0.125, 2.5]
    positives = pairs.clone()
    positives[0, :, 4] = -1  # as hard negatives took the place of the first image's matches
    given = layer(feature1, feature2, pairs, positives)
    assert [float(t) for t in given] == [1.375, 4, 1.25, 0.125, 4.5]
    with pytest.raises(BlobError, match=r"positives \[2, 3, 4\] to be a table as pairs \[2, 3, 5\]"):
        layer(feature1, feature2, pairs, positives[..., :4])


def test_only_one_twin_learns():
    sample = CorrespondenceContrastiveLoss.samples("small", np.random.default_rng(0))[0]
    feature1, feature2, pairs = sample.bottoms
    correspondence_contrastive_loss(feature1, feature2.requires_grad_(), pairs).backward()
    assert feature1.grad is None
    assert feature2.grad.any()


def test_maps_of_two_sizes_against_autograd():
    generator = torch.Generator().manual_seed(0)
    maps = [
        torch.randn(2, 5, *size, dtype=torch.float64, generator=generator).requires_grad_()
        for size in ((7, 9), (5, 12))
    ]
    pairs = 30 * torch.rand(2, 40, 5, dtype=torch.float64, generator=generator)
    pairs[..., 4] = torch.randint(-1, 2, (2, 40), generator=generator)
    read = []
    for x, i, size in zip(maps, (0, 2), ((8, 6), (11, 4)), strict=True):
        grid = 2 * pairs[:, None, :, i : i + 2] / 4 / torch.tensor(size) - 1
        read.append(grid_sample(x, grid, padding_mode="border", align_corners=True))
    distance = (read[0] - read[1])[:, :, 0].norm(dim=1)
    s = pairs[..., 4]
    cost = (s == 1) * distance**2 + (s == 0) * (3 - distance).clamp(min=0) ** 2
    theirs = cost.sum() / (s >= 0).sum() / 2
    ours = correspondence_contrastive_loss(*maps, pairs, margin=3.0)
    close(ours, theirs.detach(), 1e-13, "loss")
    found, wanted = torch.autograd.grad(ours, maps), torch.autograd.grad(theirs, maps)
    for a, b in zip(found, wanted, strict=True):
        close(a, b, 1e-12, "gradient")


def test_autocast_computes_in_single_precision():
    sample = CorrespondenceContrastiveLoss.samples("small", np.random.default_rng(0))[0]
    maps = [x.bfloat16().requires_grad_() for x in sample.bottoms[:2]]
    with torch.autocast("cpu", torch.bfloat16):
        loss = correspondence_contrastive_loss(*maps, sample.bottoms[2])
    assert loss.dtype == torch.float32
    loss.backward()
    assert maps[0].grad.dtype == torch.bfloat16


def test_memory_grows_with_the_pairs_not_their_square():
    feature = torch.randn(1, 2, 4, 4, requires_grad=True)
    pairs = torch.zeros(1, 100_000, 5)  # a P x P matrix would take 37 GiB
    correspondence_contrastive_loss(feature, feature.detach() + 0.1, pairs).backward()
    assert feature.grad.any()


@needs_compiler
@pytest.mark.parametrize(
    ("column", "value"),
    [*((i, math.nan) for i in range(5)), (2, math.inf), (4, 0.5), (4, math.inf), (4, 2)],
)
def test_kernels_note_wrong_values(column, value):
    with on_host(), pytest.raises(ValueError, match="not finite, or s not 1, 0 or -1"):
        forward_cuda(Params(), *MAPS, bad(column, value))


@needs_compiler
@pytest.mark.parametrize("label", [-1.0, -0.5, -math.inf])
def test_kernels_ignore_pairs_of_negative_labels(label):
    pairs = bad(4, label)
    expected = CorrespondenceContrastiveLoss(Params())(*MAPS, pairs)
    with on_host():
        found = CorrespondenceContrastiveLoss(Params())(*MAPS, pairs)
    assert [x.item() for x in found] == [x.item() for x in expected]


@needs_compiler
@pytest.mark.parametrize("form", Form)
def test_kernels_on_the_kinks(form):
    options = {"margin": 1.0, "form": form}
    expected = of_distances([0, 1, 0.5], [0, 0, 0], **options)
    with on_host():
        assert of_distances([0, 1, 0.5], [0, 0, 0], **options) == expected


@needs_compiler
def test_kernels_maps_of_two_sizes_with_positives_and_one_gradient():
    generator = torch.Generator().manual_seed(0)
    feature1, feature2 = (
        torch.randn(2, 5, *size, dtype=torch.float64, generator=generator) for size in ((7, 9), (5, 12))
    )
    pairs = 30 * torch.rand(2, 40, 5, dtype=torch.float64, generator=generator)
    pairs[..., 4] = torch.randint(-1, 2, (2, 40), generator=generator)
    positives = pairs[:, 7:30].contiguous()
    layer = CorrespondenceContrastiveLoss(Params(margin=3.0))

    def results():
        leaf = feature2.clone().requires_grad_()
        tops = layer(feature1, leaf, pairs, positives)
        return (*(top.detach() for top in tops), *torch.autograd.grad(tops.loss, leaf))

    expected = results()
    with on_host():
        found = results()
    for a, b in zip(found, expected, strict=True):
        close(a, b, 1e-13, "result")


@needs_compiler
@pytest.mark.parametrize("ignored", [0, 7])
def test_both_paths_count_the_true_matches_of_the_last_top(ignored):
    sample = CorrespondenceContrastiveLoss.samples("small", np.random.default_rng(0))[0]
    positives = sample.bottoms[2].clone()
    positives[0, :ignored, 4] = -1
    bottoms = (*sample.bottoms, positives)
    expected, *wanted = forward(sample.params, *bottoms)[5:]
    with on_host():
        found, *kept = forward_cuda(sample.params, *bottoms)[5:]
    assert found.dtype == expected.dtype == torch.int64
    assert found == expected == (positives[..., 4] == 1).sum()
    for a, b in zip(kept, wanted, strict=True):
        close(a, b, 1e-13, "kept")
