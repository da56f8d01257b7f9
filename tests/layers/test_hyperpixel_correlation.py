import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cells import takes_part
from cortado.layers._engine.checks import BlobError
from cortado.layers._engine.fillers import FillerParams, FillerType
from cortado.layers.hyperpixel_correlation import (
    HyperpixelCorrelation,
    Params,
    definition,
    hyperpixel_correlation,
)
from cortado.layers.rectified_cosine import rectified_cosine
from suite import LayerSuite

A, SMALL, B = torch.zeros(2, 3, 4, 5), torch.zeros(2, 6, 2, 3), torch.zeros(2, 3, 3, 3)
ONE_EACH = " (maps of A: 1, of B: 1, images: 0)"


def upsampled(x, height, width):
    """[C, h, w] -> [C, H, W], bilinear, corners on corners, a point at a time."""

    def along(i, count, length):
        at = i * (count - 1) / (length - 1) if length > 1 else 0
        low = min(int(at), count - 1)
        return low, min(low + 1, count - 1), at - low

    found = np.zeros((len(x), height, width))
    for i, j in np.ndindex(height, width):
        top, bottom, v = along(i, x.shape[1], height)
        left, right, u = along(j, x.shape[2], width)
        upper = (1 - u) * x[:, top, left] + u * x[:, top, right]
        found[:, i, j] = (1 - v) * upper + v * ((1 - u) * x[:, bottom, left] + u * x[:, bottom, right])
    return found


def hyperimage(maps):
    return np.concatenate([upsampled(x, *maps[0].shape[1:]) for x in maps])


class TestHyperpixelCorrelation(LayerSuite):
    layer = HyperpixelCorrelation
    wrong = (
        ((A,), "expected as many maps of B as of A, got 1 bottoms"),
        ((A, SMALL, B), "expected as many maps of B as of A, got 3 bottoms"),
        ((A[0], B), "expected bottom0 [3, 4, 5] to be [N, C, H, W]"),
        ((A, SMALL), "channels differ: bottom0 [2, 3, 4, 5], bottom1 [2, 6, 2, 3]" + ONE_EACH),
        ((A, B[:1]), "batch sizes differ: bottom0 [2, 3, 4, 5], bottom1 [1, 3, 3, 3]" + ONE_EACH),
        (
            (A, SMALL[:, :, :0], B, SMALL),
            "bottom1 [2, 6, 0, 3] has no cells for those of bottom0 [2, 3, 4, 5]",
        ),
        ((A.int(), B.int()), "expected maps_a[0] to be floating point, got torch.int32"),
        (
            (A, B),
            "expected as many maps of B as of A and two images, got 2 bottoms",
            Params(margin=1.0),
        ),
        (
            (A, B, torch.zeros(3, 3, 16, 20), torch.zeros(2)),
            "expected bottom2 [3, 3, 16, 20] to be an image for each of bottom0 [2, 3, 4, 5]",
            Params(margin=1.0),
        ),
        (
            (A, B, torch.zeros(3), torch.zeros(2)),
            "expected bottom2 [3] to be [N, C, H, W] or [2]",
            Params(margin=1.0),
        ),
    )

    def arguments(self, sample, bottoms):
        count = len(bottoms) - 2 * (sample.params.margin is not None)
        return super().arguments(sample, (list(bottoms[:count]), *bottoms[count:]))

    def oracle(self, params, *bottoms):
        count = len(bottoms) - 2 * (params.margin is not None)
        maps_a, maps_b = bottoms[: count // 2], bottoms[count // 2 : count]
        sizes = [x.shape[2:] for x in bottoms[count:]] or [(0, 0)] * 2
        top = np.zeros((len(maps_a[0]), *maps_a[0].shape[2:], *maps_b[0].shape[2:]))
        for n, matches in enumerate(top):
            a, b = hyperimage([x[n] for x in maps_a]), hyperimage([x[n] for x in maps_b])
            for r, c, i, j in np.ndindex(matches.shape):
                if takes_part(r, c, sizes[0], params) and takes_part(i, j, sizes[1], params):
                    p, q = a[:, r, c], b[:, i, j]
                    lengths = [max(math.sqrt(sum(x**2)), params.eps) for x in (p, q)]
                    matches[r, c, i, j] = max(0, sum(p * q) / math.prod(lengths)) ** params.exponent
        return (top,)


def photographs(seed=0, dtype=torch.float64):
    """Maps of two images of odd sizes, three sizes of maps of A and of B, one of them twice."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (
        [(5, 13, 19), (7, 7, 10), (4, 7, 10), (9, 4, 5)],
        [(5, 17, 12), (7, 9, 6), (4, 9, 6), (9, 5, 3)],
    )
    return [[torch.randn(2, *x, dtype=dtype, generator=generator) for x in maps] for maps in shapes]


def concatenated(maps):
    """What the released code makes: hyperpixels ``[N, H W, C]``."""
    size = maps[0].shape[2:]
    maps = [F.interpolate(x, size, mode="bilinear", align_corners=True) for x in maps]
    return torch.cat(maps, 1).flatten(2).mT


def test_equals_upsampling_and_concatenating():
    maps = photographs()
    leaves = [x.requires_grad_() for side in maps for x in side]
    ours = hyperpixel_correlation(*maps)
    theirs = rectified_cosine(*map(concatenated, maps), exponent=3.0).view_as(ours)
    assert (ours - theirs).abs().max() < 1e-14
    given = torch.randn(ours.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found, wanted = (torch.autograd.grad(top, leaves, given) for top in (ours, theirs))
    for x, y in zip(found, wanted, strict=True):
        assert (x - y).abs().max() < 1e-13 * y.abs().max()


def test_a_margin_prunes_and_changes_nothing_else():
    maps = photographs()
    leaves = [x.requires_grad_() for side in maps for x in side]
    cells = {"jump": 4.0, "receptive_field": 15, "margin": 2.0}
    sizes = (52, 76), (68, 48)
    every, pruned = hyperpixel_correlation(*maps), hyperpixel_correlation(*maps, *sizes, **cells)
    params = Params(**cells)
    kept = torch.zeros_like(every, dtype=torch.bool)
    kept[:, *params.grid((13, 19), sizes[0]), *params.grid((17, 12), sizes[1])] = True
    assert 0.1 < kept.float().mean() < 0.9
    assert torch.equal(pruned != 0, kept & (every != 0))
    assert (pruned - every * kept).abs().max() < 1e-15
    given = torch.randn(every.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(pruned, leaves, given)
    wanted = torch.autograd.grad(every, leaves, given * kept)
    for x, y in zip(found, wanted, strict=True):
        assert (x - y).abs().max() < 1e-13 * y.abs().max()


def test_channel_weights_multiply_the_channels_and_learn():
    maps = photographs()
    shapes = [tuple(x.shape) for side in maps for x in side]
    filler = FillerParams(FillerType.uniform, min=0.5, max=2.0)
    params = Params(channel_weights=True, filler=filler)
    layer = HyperpixelCorrelation(params, tuple(shapes), torch.Generator().manual_seed(0)).double()
    assert [tuple(x.shape) for x in layer.blobs] == [(5,), (7,), (4,), (9,)]
    scaled = [[x * w.view(-1, 1, 1) for x, w in zip(side, layer.blobs, strict=True)] for side in maps]
    wanted = rectified_cosine(*map(concatenated, scaled), exponent=3.0)
    top = layer(*maps[0], *maps[1])
    assert (top.flatten(3).flatten(1, 2) - wanted).abs().max() < 1e-14
    found = torch.autograd.grad(top.square().sum(), layer.blobs)
    expected = torch.autograd.grad(wanted.square().sum(), layer.blobs)
    for x, y in zip(found, expected, strict=True):
        assert (x - y).abs().max() < 1e-12 * y.abs().max()


def test_a_filler_is_one_unless_it_is_given():
    layer = HyperpixelCorrelation(Params(channel_weights=True), (A.shape, B.shape))
    assert layer.weight0.tolist() == [1, 1, 1]
    assert HyperpixelCorrelation(Params(), (A.shape, B.shape)).blobs == []


def test_a_map_of_zeros_gives_zeros_and_no_gradient():
    a = torch.zeros(1, 2, 3, 3, requires_grad=True)
    b = torch.ones(1, 2, 2, 2)
    top = hyperpixel_correlation([a], [b], exponent=1.0)
    assert not top.any()
    top.sum().backward()
    assert not a.grad.any()


@pytest.mark.parametrize("seed", range(4))
def test_a_hyperpixel_that_cancels_is_still_a_cosine(seed):
    """A sixth of the way from f to -5 f lies 0: in single precision any small number, of any sign."""
    generator = torch.Generator().manual_seed(seed)
    f, b = (torch.randn(1, 8, 1, count, generator=generator) for count in (1, 5))
    a = (f * torch.tensor([1.0, -5])).requires_grad_()
    bases = torch.zeros(1, 1, 1, 7), torch.zeros(1, 1, 1, 5)
    top = hyperpixel_correlation([bases[0], a], [bases[1], b])
    assert top.min() == 0
    assert 0 < top.max() <= 1
    assert torch.autograd.grad(top.sum(), a)[0].isfinite().all()


def test_hand_computed():
    """A map of two cells upsampled to three: its middle one is the mean, of length sqrt(1/2)."""
    base = torch.zeros(1, 1, 1, 3), torch.zeros(1, 1, 1, 1)
    maps = torch.tensor([[1.0, 0], [0, 1]]).view(1, 2, 1, 2), torch.tensor([1.0, 0]).view(1, 2, 1, 1)
    top = hyperpixel_correlation([base[0], maps[0]], [base[1], maps[1]], exponent=1.0)
    assert top.flatten().tolist() == pytest.approx([1, math.sqrt(0.5), 0])


def test_what_does_not_learn_keeps_no_cosines():
    maps = photographs(dtype=torch.float32)
    layer = hyperpixel_correlation(*maps)
    assert layer.grad_fn is None
    maps[1][2].requires_grad_()
    assert hyperpixel_correlation(*maps).grad_fn is not None
    with torch.no_grad():
        assert hyperpixel_correlation(*maps).grad_fn is None


def test_backward_is_given_no_zeros_for_what_has_no_gradient(monkeypatch):
    """They would be as many as the matches."""
    seen, function = [], definition.function
    backward = function.backward
    monkeypatch.setattr(
        function, "backward", lambda ctx, *given: seen.append(given) or backward(ctx, *given)
    )
    a, b = torch.ones(1, 1, 4, 4, requires_grad=True), torch.ones(1, 1, 4, 4)
    hyperpixel_correlation([a], [b]).sum().backward()
    assert [x is None for x in seen[0]] == [False, True, True, True]


def test_only_what_learns_gets_a_gradient():
    maps = photographs()
    maps[0][1].requires_grad_()
    hyperpixel_correlation(*maps).sum().backward()
    assert maps[0][1].grad.any()
    assert maps[0][0].grad is None
    assert maps[1][1].grad is None


def test_misuse_of_the_function():
    with pytest.raises(BlobError) as caught:
        hyperpixel_correlation([A, SMALL], [B])
    assert str(caught.value) == "expected as many maps of B as of A, got 2 and 1"
    with pytest.raises(TypeError) as wrong:
        hyperpixel_correlation([A], [B], margin=4.0)
    text = "hyperpixel_correlation: expected size_a to be an image, or its height and width, got None"
    assert str(wrong.value) == text
    with pytest.raises(TypeError) as wrong:
        hyperpixel_correlation(A, [B])
    text = "hyperpixel_correlation: expected maps_a to be a list of tensors, got torch.Tensor"
    assert str(wrong.value) == text
    with pytest.raises(BlobError) as weights:
        hyperpixel_correlation([A], [B], weights=[torch.ones(3)] * 2)
    assert str(weights.value) == "expected weights for each of 1 maps, got 2"
    with pytest.raises(BlobError) as weights:
        hyperpixel_correlation([A], [B], weights=[torch.ones(1)])
    text = "expected weights[0] [1] to be a value for each channel of maps_a[0] [2, 3, 4, 5]"
    assert str(weights.value) == text
    with pytest.raises(
        TypeError, match=r"^hyperpixel_correlation: expected weights\[0\] to be a torch"
    ):
        hyperpixel_correlation([A], [B], weights=[[1.0, 2, 3]])


def test_errors_of_the_function_name_its_arguments():
    with pytest.raises(BlobError, match=r"^channels differ: maps_a\[1\] \[2, 6, 2, 3\], maps_b\[1\]"):
        hyperpixel_correlation([A, SMALL], [B, B])
    with pytest.raises(BlobError, match=r"^expected size_b \[3\] to be"):
        hyperpixel_correlation([A], [B], (16, 20), torch.zeros(3), margin=1.0)
    with pytest.raises(TypeError, match=r"expected maps_b\[0\] to be a torch.Tensor, got None"):
        hyperpixel_correlation([A], [None])


def test_autocast_computes_in_single_precision():
    maps = [[x.bfloat16() for x in side] for side in photographs()]
    with torch.autocast("cpu", torch.bfloat16):
        assert hyperpixel_correlation(*maps).dtype == torch.float32
