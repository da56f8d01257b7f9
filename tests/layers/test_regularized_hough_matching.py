import math

import numpy as np
import pytest
import torch
from cells import takes_part
from cortado.layers.regularized_hough_matching import (
    Params,
    RegularizedHoughMatching,
    Space,
    regularized_hough_matching,
)
from suite import LayerSuite

S, A, B = torch.zeros(2, 3, 4, 5, 6), torch.zeros(1, 3, 12, 16), torch.zeros(2, 3, 20, 24)


def bins_of(grid, size_a, size_b, params):
    """The bins (bx, by) of the matches that take part, one by one, and how many there are."""
    (height, width), (height_b, width_b) = size_a, size_b
    cell = math.sqrt((width + width_b) * (height + height_b) / params.cells)
    count = int((width + width_b) / cell) + 1, int((height + height_b) / cell) + 1
    found = {}
    for r, c, r_b, c_b in np.ndindex(grid):
        if takes_part(r, c, size_a, params) and takes_part(r_b, c_b, size_b, params):
            offset = (
                width - c * params.jump + c_b * params.jump,
                height - r * params.jump + r_b * params.jump,
            )
            bins = (int(np.float32(v) / np.float32(cell)) for v in offset)
            found[r, c, r_b, c_b] = tuple(
                min(max(b, 0), n - 1) for b, n in zip(bins, count, strict=True)
            )
    return found, count


def smoothed(votes, params):
    """Correlated with the Gaussian, of all its bins, zeros beyond."""
    reach = params.kernel_size // 2
    steps = range(-reach, reach + 1)
    weight = {(x, y): math.exp(-(x * x + y * y) / (2 * params.sigma**2)) for x in steps for y in steps}
    total = sum(weight.values())
    found = np.zeros_like(votes)
    for x, y in np.ndindex(votes.shape):
        for (dx, dy), w in weight.items():
            if 0 <= x + dx < votes.shape[0] and 0 <= y + dy < votes.shape[1]:
                found[x, y] += w / total * votes[x + dx, y + dy]
    return found


class TestRegularizedHoughMatching(LayerSuite):
    layer = RegularizedHoughMatching
    wrong = (
        ((S[0], A, B), "expected similarity [3, 4, 5, 6] to be [N, H, W, H', W']"),
        ((S, A[0], B), "expected size_a [3, 12, 16] to be [N, C, H, W] or [2]"),
        (
            (S, B[:1].expand(3, 3, 20, 24), B),
            "expected size_a [3, 3, 20, 24] to be an image for each of similarity [2, 3, 4, 5, 6]",
        ),
        ((S.int(), A, B), "expected similarity to be floating point, got torch.int32"),
        ((S, torch.tensor([0, 5]), B), "size_a: expected a height and a width of at least 1, got 0, 5"),
    )

    def oracle(self, params, similarity, image_a, image_b):
        grid, sizes = similarity.shape[1:], (image_a.shape[2:], image_b.shape[2:])
        bins, count = bins_of(grid, *sizes, params)
        top = np.zeros_like(similarity)
        for one, confidence in zip(similarity, top, strict=True):
            votes = np.zeros(count)
            for match, at in bins.items():
                votes[at] += one[match]
            votes = smoothed(votes, params)
            for match, at in bins.items():
                confidence[match] = one[match] * votes[at]
        return (top,)


def test_the_votes_of_two_matches_by_hand():
    """One row of two cells: the offsets -4, 0, 0, 4 from W = 8 fall into bins of 4 pixels."""
    s = torch.tensor([[0.5, 2.0], [3.0, 1.0]]).view(1, 1, 2, 1, 2)
    options = {"cells": 16 * 2 / 16.0, "kernel_size": 1}
    assert regularized_hough_matching(s, (1, 8), (1, 8), **options).flatten().tolist() == [
        0.5 * 1.5,
        2 * 2,
        3 * 3,
        1 * 1.5,
    ]
    beside = math.exp(-1 / 2)  # a bin away, of one deviation
    top = regularized_hough_matching(s, (1, 8), (1, 8), **options | {"kernel_size": 3, "sigma": 1.0})
    scale = (1 + 2 * beside) ** 2
    wanted = [
        0.5 * (1.5 + 5 * beside),
        2 * (2 + 1.5 * beside),
        3 * (3 + 1.5 * beside),
        1.5 + 5 * beside,
    ]
    assert top.flatten().tolist() == pytest.approx([x / scale for x in wanted])


def test_the_number_of_bins_of_the_released_code():
    space = Space.of(Params(margin=4.0), (50, 75, 56, 75), (200, 300), (225, 300))
    assert space.kept == (slice(3, 48), slice(3, 73), slice(3, 54), slice(3, 73))
    assert (len(space.down), len(space.across)) == (45 + 51 - 1, 70 + 70 - 1)


def test_smoothing_is_symmetric_and_sums_to_one_far_from_the_border():
    space = Space.of(Params(cells=1e6), (9, 9, 9, 9), (400, 400), (400, 400))
    for operator in space[1:]:
        assert torch.equal(operator, operator.mT)
    fine = Space.of(Params(jump=1.0, cells=800 * 800), (21, 21, 21, 21), (400, 400), (400, 400))
    assert fine.across[20].sum().item() == pytest.approx(1)


def test_sizes_by_image_by_values_and_by_numbers():
    s = torch.rand(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    wanted = regularized_hough_matching(s, A, B, cells=40)
    assert torch.equal(regularized_hough_matching(s, (12, 16), (20, 24), cells=40), wanted)
    values = torch.tensor([12, 16]), torch.tensor([[20.0, 24]])
    assert torch.equal(regularized_hough_matching(s, *values, cells=40), wanted)


def test_an_even_kernel_is_refused():
    with pytest.raises(ValueError) as caught:
        Params(kernel_size=4)
    assert str(caught.value) == "kernel_size must be odd, got 4"


def test_a_large_margin_changes_nothing():
    s = torch.rand(1, 4, 5, 5, 4, generator=torch.Generator().manual_seed(0))
    sizes = (16, 20), (20, 16)
    every = regularized_hough_matching(s, *sizes)
    assert torch.equal(regularized_hough_matching(s, *sizes, margin=100.0), every)
    assert not torch.equal(regularized_hough_matching(s, *sizes, margin=9.0), every)


def test_nothing_as_large_as_the_matches_squared():
    space = Space.of(Params(), (50, 75, 50, 75), (200, 300), (200, 300))
    assert space.down.numel() + space.across.numel() < 40_000


def test_over_its_bottom_it_gives_the_same():
    """Where the margin prunes too: there is 0, whatever the similarity was."""
    for sample in RegularizedHoughMatching.samples("small", np.random.default_rng(0)):
        layer = RegularizedHoughMatching(sample.params)
        similarity, *sizes = sample.bottoms
        wanted = layer(similarity, *sizes)
        given = similarity.clone()
        assert layer.forward_over(given, *sizes) is given
        assert torch.equal(given, wanted)


def test_bins_without_end():
    """Finer than a match's offset each has a bin of its own, however many there are."""
    s = torch.rand(1, 3, 4, 4, 3, generator=torch.Generator().manual_seed(0))
    found = [regularized_hough_matching(s, (12, 16), (16, 12), cells=cells) for cells in (1e6, 1e12)]
    assert torch.allclose(*found)
    with pytest.raises(ValueError, match=r"^cells: expected at most 1e\+12, got 1"):
        regularized_hough_matching(s, (12, 16), (16, 12), cells=1e13)


def test_under_autocast_a_half_similarity_is_not_written_over():
    similarity = torch.rand(1, 3, 4, 4, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    kept, layer = similarity.clone(), RegularizedHoughMatching(Params(cells=40.0))
    sizes = torch.tensor([12, 16]), torch.tensor([16, 12])
    with torch.autocast("cpu", torch.bfloat16):
        found = layer.forward_over(similarity, *sizes)
        assert torch.equal(found, layer(similarity, *sizes))
    assert found.dtype == torch.float32
    assert torch.equal(similarity, kept)
