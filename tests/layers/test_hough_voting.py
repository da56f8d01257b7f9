import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from cortado.layers._engine import cuda
from cortado.layers._engine.dispatch import impl
from cortado.layers._offset_bins import bins, frames
from cortado.layers.hough_voting import (
    Gradient,
    HoughVoting,
    Output,
    Params,
    Rule,
    backward,
    backward_cuda,
    forward,
    forward_cuda,
    hough_voting,
)
from cuda_host import needs_compiler, on_host
from suite import LayerSuite, close

SCORES, A, B = torch.zeros(3, 4), torch.zeros(3, 5), torch.zeros(4, 4)
SIZES = torch.zeros(1, 3, 40, 60), torch.tensor([52.0, 48.0])


def bad(rois, row, column, value):
    rois = rois.clone()
    rois[row, column] = value
    return rois


def bin_of(r, s, size_a, size_b, params):
    """The released code's rule, in its own pixels, which count from 1; None for no bin."""

    def frame(box):
        x1, y1, x2, y2 = (value + 1 for value in box)
        xc, yc = (x1 + x2) / 2, (y1 + y2) / 2
        return xc, yc, x2 - xc, y2 - yc

    (xr, yr, axr, ayr), (xs, ys, axs, ays) = frame(r), frame(s)
    if min(axr, ayr, axs, ays) <= 0:
        return None
    (height_a, width_a), (height_b, width_b) = size_a, size_b
    x = xs + axs * (width_a - xr) / axr
    y = ys + ays * (height_a - yr) / ayr
    scale = math.log2((axs * ays) / (axr * ayr))
    cell = max(math.sqrt(2 * width_b * 2 * height_b / params.cells), params.least_cell)
    found = []
    for value, low, high, count in (
        (scale, -params.scale_range, params.scale_range, params.scale_bins),
        (x, 1, 2 * width_b, max(1, math.floor(2 * width_b / cell * params.bins_per_cell + 0.5))),
        (y, 1, 2 * height_b, max(1, math.floor(2 * height_b / cell * params.bins_per_cell + 0.5))),
    ):
        edges = np.linspace(low, high, count + 1)
        if not edges[0] <= value < edges[-1]:
            return None
        found.append(int(np.searchsorted(edges, value, side="right")) - 1)
    ratio = (axs / ays) / (axr / ayr)
    if params.released and not 1 / params.max_aspect_ratio < ratio < params.max_aspect_ratio:
        return None
    return tuple(found)


def all_bins(sample):
    """The bin of every match of a sample."""
    params, (_, rois_a, rois_b, size_a, size_b, *_) = sample.params, sample.bottoms
    sizes = tuple(size_a.shape[2:]), tuple(size_b.shape[2:])
    tables = rois_a[:, -4:].tolist(), rois_b[:, -4:].tolist()
    return [bin_of(r, s, *sizes, params) for r in tables[0] for s in tables[1]]


def size_of(blob):
    return blob.shape[2:] if blob.ndim == 4 else tuple(blob.reshape(-1))


class TestHoughVoting(LayerSuite):
    layer = HoughVoting
    wrong = (
        ((SCORES[0], A, B, *SIZES), "expected scores [4] to be [P, S]"),
        ((SCORES, A[:, :3], B, *SIZES), "expected rois_a [3, 3] to be [P, 4] boxes or [P, 5] rois"),
        (
            (SCORES, B, A, *SIZES),
            "expected scores [3, 4] to be a row for each of rois_a [4, 4] by rois_b [3, 5]",
        ),
        (
            (SCORES, A, B, SIZES[0][0], SIZES[1]),
            "expected size_a [3, 40, 60] to be [N, C, H, W] or [2]",
        ),
        ((SCORES, A, B, *SIZES, SCORES.T), "shapes differ: scores [3, 4], votes [4, 3]"),
        (
            (SCORES, A, B, *SIZES, SCORES),
            "output: VOTES takes one blob of scores, not votes [3, 4] too",
            Params(output=Output.VOTES),
        ),
        ((SCORES.int(), A, B, *SIZES), "expected scores to be floating point, got torch.int32"),
        (
            (SCORES, A, B, *SIZES, SCORES.double()),
            "expected one dtype and one device, got scores torch.float32 on cpu, "
            "votes torch.float64 on cpu",
        ),
        (
            (SCORES, bad(A, 1, 3, math.nan), B, *SIZES),
            "rois_a [3, 5]: row 1 is not finite: 0, 0, 0, nan, 0 (expected batch, x1, y1, x2, y2)",
        ),
        (
            (SCORES, A, bad(B, 2, 0, math.inf), *SIZES),
            "rois_b [4, 4]: row 2 is not finite: inf, 0, 0, 0 (expected x1, y1, x2, y2)",
        ),
        (
            (SCORES, A, B, SIZES[0], 0 * SIZES[1]),
            "size_b: expected a height and a width of at least 1, got 0.0, 0.0",
        ),
    )

    def oracle(self, params, scores, rois_a, rois_b, size_a, size_b, votes=None):
        voters = scores if votes is None else votes
        bin_by_match, table = {}, defaultdict(float)
        for m in np.ndindex(scores.shape):
            boxes = rois_a[m[0], -4:], rois_b[m[1], -4:]
            found = bin_by_match[m] = bin_of(*boxes, size_of(size_a), size_of(size_b), params)
            if found is not None:
                table[found] += max(voters[m] - params.threshold, 0) if params.released else voters[m]
        top = np.zeros_like(scores)
        for m, found in bin_by_match.items():
            top[m] = table[found] if found is not None else 0
            top[m] += params.added if params.released else 0
            top[m] *= scores[m] if params.output is Output.SCORES else 1
        return (top,)

    def growth(self, times):
        return times  # each copy of a row votes

    def test_empty_batch(self):
        for sample in self.samples():
            scores, rois_a, rois_b, *rest = self.bottoms(sample)
            rest, votes = rest[:2], rest[2:]
            for p, s in ((0, None), (None, 0), (0, 0)):
                tables = [x[:p, :s].requires_grad_() for x in (scores, *votes)]
                bottoms = tables[0], rois_a[:p], rois_b[:s], *rest, *tables[1:]
                (top,) = self.run(sample.params, bottoms)
                assert top.shape == tables[0].shape
                for gradient in torch.autograd.grad(top.sum(), tables):
                    assert gradient.shape == top.shape

    def test_every_sample_has_shared_bins_and_matches_without_a_bin(self):
        for sample in self.samples():
            found = all_bins(sample)
            kept = [b for b in found if b is not None]
            assert len(set(kept)) < len(kept) < len(found), sample.name


def sample_of(name, seed=0):
    samples = HoughVoting.samples("small", np.random.default_rng(seed))
    return next(sample for sample in samples if sample.name == name)


def test_equals_the_kernel_matrix():
    """Eqs. 4 and 8 as they stand: z = f * (K f), K of every match with every match."""
    sample = sample_of("Eq. 12")
    f, rois_a, rois_b, size_a, size_b, f_g = sample.bottoms
    h = all_bins(sample)
    kernel = torch.tensor([[float(a == b is not None) for b in h] for a in h], dtype=torch.float64)
    f, f_g = f.requires_grad_(), f_g.requires_grad_()
    wanted = (f.flatten() * (kernel @ f_g.flatten())).view_as(f)
    found = hough_voting(f, rois_a, rois_b, size_a, size_b, f_g, cells=200.0, scale_bins=6)
    close(found, wanted.detach(), 1e-13, "top")
    given = torch.randn(f.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pairs = zip(*(torch.autograd.grad(x, (f, f_g), given) for x in (found, wanted)), strict=True)
    for a, b in pairs:
        close(a, b, 1e-13, "gradient")


# Two boxes of one size in each of two images of 100 x 100 pixels: the offset of a match is (99, 99)
# moved by the difference of the centres, (49, 49) to (149, 149); bins are 49.75 pixels wide.
BOXES = torch.tensor([[10.0, 10, 30, 30], [60, 60, 80, 80]])
PLAIN = {"cells": 1.0, "least_cell": 50.0, "bins_per_cell": 4.0, "scale_bins": 8}


def two_by_two(f, given=None, boxes_b=BOXES, f_g=None, **options):
    """The top, and the gradients, of matches [[0, 1], [2, 3]]: 0 and 3 have one offset."""
    f = torch.tensor(f, dtype=torch.float64).reshape(2, 2).requires_grad_()
    leaves = [f]
    if f_g is not None:
        leaves.append(torch.tensor(f_g, dtype=torch.float64).reshape(2, 2).requires_grad_())
    sizes = (100, 100), (100, 100)
    top = hough_voting(f, BOXES, boxes_b, *sizes, *leaves[1:], **{**PLAIN, **options})
    given = torch.ones(2, 2) if given is None else torch.tensor(given).reshape(2, 2)
    found = torch.autograd.grad(top, leaves, given.double())
    return top.flatten().tolist(), *(x.flatten().tolist() for x in found)


def test_hand_computed():
    top, gradient = two_by_two([0.1, 0.2, 0.3, 0.5], [1.0, 2, 3, 4])
    assert top == pytest.approx([0.06, 0.04, 0.09, 0.3])
    # own votes g V + the bin's sum of g f
    assert gradient == pytest.approx([0.6 + 2.1, 2 * 0.2 + 0.4, 3 * 0.3 + 0.9, 4 * 0.6 + 2.1])


def test_votes_of_another_score_hand_computed():
    top, by_f, by_votes = two_by_two([0.1, 0.2, 0.3, 0.5], [1.0, 2, 3, 4], f_g=[0.7, 0.5, 0.4, 0.1])
    assert top == pytest.approx([0.08, 0.1, 0.12, 0.4])
    assert by_f == pytest.approx([0.8, 1.0, 1.2, 3.2])
    assert by_votes == pytest.approx([2.1, 0.4, 0.9, 2.1])


def test_released_hand_computed():
    top, gradient = two_by_two([0.6, 0.2, 0.9, 0.3], rule="RELEASED")
    assert top == pytest.approx([0.6 * 0.21, 0.2 * 0.01, 0.9 * 0.51, 0.3 * 0.21])
    # match 3 does not vote, but receives votes: its top counts in 0's gradient
    assert gradient == pytest.approx([0.21 + 0.6 + 0.3, 0.01, 0.51 + 0.9, 0.21])
    top, gradient = two_by_two([0.6, 0.2, 0.9, 0.3], [1.0, 2, 3, 4], rule="RELEASED", output="VOTES")
    assert top == pytest.approx([0.21, 0.01, 0.51, 0.21])
    assert gradient == pytest.approx([5, 0, 3, 0])


PUBLISHED = {"rule": "RELEASED", "output": "VOTES", "grad": "published"}


def test_published_gradient_hand_computed():
    # The first bin is match 2's, whose offset (49, 49) is the least: it gets nothing. Match 3 does
    # not vote: its top is not in 0's gradient.
    assert two_by_two([0.6, 0.7, 0.9, 0.3], [1.0, 2, 3, 4], **PUBLISHED)[1] == [1, 2, 0, 0]
    assert two_by_two([0.6, 0.7, 0.9, 0.8], [1.0, 2, 3, 4], **PUBLISHED)[1] == [5, 2, 0, 5]
    # Where match 2's top has no gradient, the bin of 0 and 3 is the first in use.
    assert two_by_two([0.6, 0.7, 0.9, 0.8], [1.0, 2, 0, 4], **PUBLISHED)[1] == [0, 2, 0, 0]
    # A single bin is the first.
    assert two_by_two([0.6, 0.7, 0.9, 0.8], [1.0, 0, 0, 4], **PUBLISHED)[1] == [0, 0, 0, 0]


def test_published_gradient_with_a_match_without_a_bin():
    flat = torch.tensor([[10.0, 10, 30, 30], [60, 60, 80, 60]])  # matches 1 and 3 have no bin
    top, gradient = two_by_two([0.6, 0.7, 0.9, 0.8], [1.0, 2, 3, 4], flat, **PUBLISHED)
    assert top == pytest.approx([0.21, 0.01, 0.51, 0.01])
    assert gradient == [1, 0, 3, 0]
    # they do not count where their tops have no gradient
    assert two_by_two([0.6, 0.7, 0.9, 0.8], [1.0, 0, 3, 0], flat, **PUBLISHED)[1] == [1, 0, 0, 0]


def test_published_gradient_of_scores_weighs_by_them():
    options = {**PUBLISHED, "output": "SCORES"}
    top, gradient = two_by_two([0.6, 0.7, 0.9, 0.3], **options)
    assert top == pytest.approx([0.6 * 0.21, 0.7 * 0.31, 0.9 * 0.51, 0.3 * 0.21])
    assert gradient == pytest.approx([0.21 + 0.6, 0.31 + 0.7, 0.51, 0.21])


def bin_index(r, s, size=(100, 100), **options):
    """(scale, x, y), each from -1, the bins of one match."""
    params = Params(**{**PLAIN, **options})
    grid = params.grid(*size)
    tables = [torch.tensor([box], dtype=torch.float64) for box in (r, s)]
    left, right = frames(*tables, size, size, grid, params.scale_range)
    found = int(bins(left, right, grid, params.aspect_limit))
    return tuple(int(i) - 1 for i in np.unravel_index(found, grid.shape))


def test_the_number_of_bins():
    assert Params().grid(375, 500) == (40, 21, 15)  # cells of 9.68 pixels
    assert Params().grid(60, 80) == (40, 6, 5)  # of 5, the least; 4.8 is rounded up
    assert Params().grid(1, 1) == (40, 1, 1)
    with pytest.raises(ValueError) as caught:
        Params(cells=1e12, least_cell=1e-4).grid(4000, 4000)
    assert str(caught.value) == "40 x 200000 x 200000 bins are more than 31 bits can count"


def test_a_bin_holds_its_lower_edge_only():
    box = (0, 0, 20, 20)
    assert bin_index(box, box)[0] == 4  # scale 0 is the middle edge of 8 bins
    # twice, four times ... the area: each exactly on an edge, whatever the size
    for side in (3, 5, 7, 10, 20, 33, 97):
        r = (0, 0, side, side)
        for octave, wanted in ((1, 5), (2, 6), (3, 7)):
            assert bin_index(r, (0, 0, side * 2**octave, side))[0] == wanted
        assert bin_index((0, 0, 16 * side, side), r)[0] == 0
        assert bin_index((0, 0, 17 * side, side), r)[0] == -1
        assert bin_index(r, (0, 0, 16 * side, side))[0] == 8  # the last edge is outside
    # A's corner (99, 99) carried along: x in bins of (2 * 100 - 1) / 16 from 0
    step = 199 / 4
    assert bin_index(box, (-99, 0, -79, 20))[1] == 0  # x = 0
    assert bin_index(box, (-99.5, 0, -79.5, 20))[1] == -1
    assert bin_index(box, (step - 99 + 1e-9, 0, step - 79 + 1e-9, 20))[1] == 1
    assert bin_index(box, (step - 99 - 1e-9, 0, step - 79 - 1e-9, 20))[1] == 0
    assert bin_index(box, (100, 0, 120, 20))[1] == 4  # x = 199
    assert bin_index(box, (99.5, 3, 119.5, 23))[1] == 3


def test_aspects_that_differ_by_a_factor_of_two():
    square, tall = (0, 0, 20, 20), (0, 0, 20, 40)
    assert bin_index(square, tall) != (-1, -1, -1)
    for r, s in ((square, tall), (tall, square)):
        assert bin_index(r, s, rule=Rule.RELEASED) == (-1, -1, -1)
    assert bin_index(square, (0, 0, 20, 39.9), rule=Rule.RELEASED) != (-1, -1, -1)
    assert bin_index(tall, (0, 0, 19.9, 20), rule=Rule.RELEASED) != (-1, -1, -1)
    boxes = torch.tensor([square]), torch.tensor([(0, 0, 20, 60)])
    for limit, votes in ((2.0, 0.01), (math.inf, 0.61)):
        options = {"rule": "RELEASED", "output": "VOTES", "max_aspect_ratio": limit}
        top = hough_voting(torch.ones(1, 1), *boxes, (30, 30), (99, 99), **options)
        assert float(top) == pytest.approx(votes)


@pytest.mark.parametrize("rule", Rule)
def test_boxes_without_area_have_no_bin(rule):
    boxes = torch.tensor([[5.0, 5, 25, 25], [5, 5, 5, 25], [5, 5, 25, 5], [25, 25, 5, 5], [9, 9, 9, 9]])
    top = hough_voting(torch.ones(5, 5), boxes, boxes, (50, 50), (50, 50), rule=rule, output="VOTES")
    wanted = torch.zeros(5, 5) if rule is Rule.PAPER else torch.full((5, 5), 0.01)
    wanted[0, 0] += 1 if rule is Rule.PAPER else 0.6
    assert torch.allclose(top, wanted)


def test_bins_lie_in_the_table_whatever_the_rois_hold():
    rng = np.random.default_rng(0)
    values = (math.nan, math.inf, -math.inf, 1e300, -1e300, 1e-300, -1e-300, 1e30, 0, 1, 50)
    params = Params()
    grid = params.grid(50, 60)
    rois = [torch.from_numpy(rng.choice(values, (400, 5))) for _ in range(2)]
    tables = frames(*rois, (50, 60), (50, 60), grid, params.scale_range)
    for limit in (2.0, math.inf):
        found = bins(*tables, grid, limit)
        assert found.min() >= 0
        assert found.max() < grid.total


def test_sizes_by_image_by_values_and_by_numbers():
    f, rois_a, rois_b, size_a, size_b = sample_of("the bins of the paper").bottoms
    wanted = hough_voting(f, rois_a, rois_b, size_a, size_b)
    values = [torch.tensor([[*x.shape[2:]]]) for x in (size_a, size_b)]
    assert torch.equal(hough_voting(f, rois_a, rois_b, *values), wanted)
    numbers = [tuple(x.shape[2:]) for x in (size_a, size_b)]
    assert torch.equal(hough_voting(f, rois_a, rois_b, *numbers), wanted)
    assert torch.equal(hough_voting(f, rois_a[:, 1:], rois_b[:, 1:], *numbers), wanted)
    assert wanted.any()


def test_sums_of_many_small_votes_are_exact_in_single_precision():
    boxes = torch.tensor([[0.0, 0, 20, 20]]).expand(1500, 4)
    votes = hough_voting(
        torch.full((1500, 1500), 0.1), boxes, boxes, (50, 50), (50, 50), output="VOTES"
    )
    assert votes.max() == votes.min() == torch.tensor(1500**2 * float(torch.tensor(0.1)))


def test_memory_grows_with_the_matches_not_their_square():
    rois = HoughVoting.samples("paper", np.random.default_rng(0))[0].bottoms[1].float()
    f = torch.rand(1000, 1000, requires_grad=True)
    top = hough_voting(f, rois, rois, (375, 500), (375, 500))
    _, _, at, table, *_ = top.grad_fn.saved_tensors
    assert at.element_size() == 4
    assert table.numel() < 20_000
    top.sum().backward()
    assert f.grad.any()


def test_published_gradient_is_of_the_released_rule():
    with pytest.raises(ValueError) as caught:
        Params(grad=Gradient.published)
    assert str(caught.value) == "grad: published goes with rule: RELEASED"


def test_the_threshold_is_the_same_number_in_both_directions():
    """0.4 in single precision is more than 0.4, in half precision less."""
    sizes = (50, 50), (50, 50)
    for dtype, votes in ((torch.float32, True), (torch.float16, False)):
        f = torch.full((1, 1), 0.4, dtype=dtype, requires_grad=True)
        top = hough_voting(f, BOXES[:1], BOXES[:1], *sizes, rule="RELEASED", output="VOTES", added=0.0)
        assert (float(top.detach()) > 0) == votes
        assert float(torch.autograd.grad(top, f)[0]) == votes


def test_a_threshold_of_zero_keeps_votes_from_being_negative():
    top, gradient = two_by_two([0.6, -0.2, -0.9, 0.3], rule="RELEASED", output="VOTES", threshold=0.0)
    assert top == pytest.approx([0.91, 0.01, 0.01, 0.91])
    assert gradient == [2, 0, 0, 2]


ODD = (1e300, -1e300, 1e-300, -1e-300, 1e30, 1e-30, -7.25, 0, 0.1, 1, 3, 20, 33.3, 50, 59)


@needs_compiler
@pytest.mark.parametrize("rule", Rule)
@pytest.mark.parametrize("odd", [False, True])
def test_kernels_find_the_bins_of_the_cpu(rule, odd):
    """To the last bit: of whole pixels, where offsets lie on edges, and of what else boxes may hold."""
    rng, params = np.random.default_rng(0), Params(rule=rule)
    a, b = (rng.choice(ODD, (n, 4)) if odd else rng.integers(0, 60, (n, 4)) for n in (70, 81))
    rois = torch.from_numpy(a), torch.from_numpy(b)
    bottoms = torch.zeros(70, 81), *rois, (50, 60), (60, 52)
    _, wanted, *wanted_frames = forward(params, *bottoms)
    with on_host():
        _, found, *found_frames = forward_cuda(params, *bottoms)
    assert torch.equal(found, wanted)
    assert len(wanted.unique()) > 20
    for x, y in zip(found_frames[1:], wanted_frames[1:], strict=True):
        assert torch.equal(x, y)


@needs_compiler
@pytest.mark.parametrize("column", [0, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_kernels_note_rois_that_are_not_finite(value, column):
    for tables in ((bad(A, 1, column, value), B), (A, bad(B, 3, column, value))):
        with on_host(), pytest.raises(ValueError) as caught:
            forward_cuda(Params(), SCORES, *tables, (40, 60), (52, 48))
        assert str(caught.value) == "rois_a, rois_b: coordinates that are not finite"


@needs_compiler
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("rule", Rule)
def test_kernels_keep_what_is_not_finite_in_its_bin(rule, value):
    scores = torch.rand(2, 2)
    scores[0, 0] = value
    given = Params(rule=rule, **PLAIN), scores, BOXES, BOXES, (100, 100), (100, 100)
    top, *_ = forward(*given)
    with on_host():
        found, *_ = forward_cuda(*given)
    assert torch.equal(found.isfinite(), top.isfinite())
    assert top.isfinite().tolist() == [[False, True], [True, False]]


@needs_compiler
def test_either_path_goes_backward_from_what_the_other_saved():
    sample = sample_of("released, two")
    f, rois_a, rois_b, size_a, size_b, f_g = sample.bottoms
    sizes = tuple(size_a.shape[2:]), tuple(size_b.shape[2:])
    params, bottoms = sample.params, (f, rois_a, rois_b, *sizes, f_g)
    saved = forward(params, *bottoms)[1:]
    with on_host():
        saved_cuda = forward_cuda(params, *bottoms)[1:]
    wanted = backward(params, f, f, f_g, *saved)
    crossed = backward(params, f, f, f_g, *saved_cuda)
    with on_host():
        found = backward_cuda(params, f, f, f_g, *saved)
    for x, y, z in zip(wanted, crossed, found, strict=True):
        close(y, x, 1e-13, "torch after kernels")
        close(z, x, 1e-13, "kernels after torch")


@pytest.mark.parametrize("size", ["paper", "large"])
def test_kernels_take_less_than_8_bytes_a_match(size):
    (sample,), params = HoughVoting.samples(size, np.random.default_rng(0)), Params()
    scores, *rois = (x.float() for x in sample.bottoms[:3])
    forward_plans, backward_plans = [], []
    with impl("cuda"):
        with cuda.executed_by(forward_plans.append):
            top, *saved = forward_cuda(params, scores, *rois, (375, 500), (333, 500))
        with cuda.executed_by(backward_plans.append):
            gradient, _ = backward_cuda(params, top, scores, None, *saved)
    given = {x.data_ptr() for x in (scores, *rois, top, gradient)}
    for plans in (forward_plans, backward_plans):
        tensors = [
            x.value for plan in plans for x in plan.arguments if isinstance(x.value, torch.Tensor)
        ]
        extra = {x.data_ptr(): x.nbytes for x in tensors if x.data_ptr() not in given}
        assert 4 * scores.numel() < sum(extra.values()) < 8 * scores.numel()


@pytest.mark.filterwarnings("ignore")  # of Dynamo's own
def test_inductor_takes_the_number_of_bins_for_unknown():
    """With whole graphs and without, where the operator is called between two graphs."""
    f, rois_a, rois_b = (x.float() for x in sample_of("the bins of the paper").bottoms[:3])
    for fullgraph in (True, False):
        torch._dynamo.reset()
        run = torch.compile(hough_voting, fullgraph=fullgraph)
        found = []
        for call in (hough_voting, run):
            leaf = f.clone().requires_grad_()
            top = call(leaf, rois_a, rois_b, (64, 80), (80, 64))
            found.append((top, *torch.autograd.grad(top.square().sum(), leaf)))
        for a, b in zip(*found, strict=True):
            close(b, a.detach(), 1e-6, f"fullgraph {fullgraph}")
