import math

import numpy as np
import pytest
import torch
from cortado.layers import _roi_bins
from cortado.layers import roi_pooling as module
from cortado.layers._engine import definition
from cortado.layers.roi_pooling import Edges, Params, ROIPooling, roi_pooling
from cuda_host import needs_compiler, on_host
from suite import LayerSuite, close

from benchmarks.onnx import max_roi_pool

DATA, ROIS = torch.zeros(2, 3, 6, 7), torch.zeros(4, 5)


def bad(row, column, value):
    rois = ROIS.clone()
    rois[row, column] = value
    return rois


def rounded(x):
    return int(math.copysign(math.floor(abs(x)) + (abs(x) % 1 >= 0.5), x))


def interval(start, end, i, count, size, edges):
    length = max(end - start + 1, 1)
    if edges is Edges.exact:
        lower, upper = i * length // count, -(-(i + 1) * length // count)
    else:
        step = np.float32(length) / np.float32(count)
        lower, upper = math.floor(np.float32(i) * step), math.ceil(np.float32(i + 1) * step)
    return range(min(max(start + lower, 0), size), min(max(start + upper, 0), size))


class TestROIPooling(LayerSuite):
    layer = ROIPooling
    wrong = (
        ((DATA[0], ROIS), "expected data [3, 6, 7] to be [N, C, H, W]"),
        ((DATA, ROIS[:, :4]), "expected rois [4, 4] to be [R, 5]: batch, x1, y1, x2, y2"),
        ((DATA[:0], ROIS), "no image in data [0, 3, 6, 7] for rois [4, 5]"),
        ((DATA.int(), ROIS), "expected data to be floating point, got torch.int32"),
        (
            (DATA, bad(2, 3, math.inf)),
            "rois [4, 5]: row 2 is not finite: 0, 0, 0, inf, 0 (expected batch, x1, y1, x2, y2)",
        ),
        (
            (DATA, bad(1, 0, 2)),
            "rois [4, 5]: row 1 has a batch index that is not in 0..1: 2, 0, 0, 0, 0 "
            "(expected batch, x1, y1, x2, y2)",
        ),
        (
            (DATA, bad(0, 0, 0.5)),
            "rois [4, 5]: row 0 has a batch index that is not in 0..1: 0.5, 0, 0, 0, 0 "
            "(expected batch, x1, y1, x2, y2)",
        ),
        (
            (DATA, bad(3, 0, -1)),
            "rois [4, 5]: row 3 has a batch index that is not in 0..1: -1, 0, 0, 0, 0 "
            "(expected batch, x1, y1, x2, y2)",
        ),
    )

    def oracle(self, params, data, rois):
        _, channels, height, width = data.shape
        top = np.zeros((len(rois), channels, params.pooled_h, params.pooled_w))
        for r, (image, *corners) in enumerate(rois):
            x1, y1, x2, y2 = (rounded(x * params.spatial_scale) for x in corners)
            for i, j in np.ndindex(params.pooled_h, params.pooled_w):
                rows = interval(y1, y2, i, params.pooled_h, height, params.edges)
                columns = interval(x1, x2, j, params.pooled_w, width, params.edges)
                for c in range(channels):
                    cells = [data[int(image), c, y, x] for y in rows for x in columns]
                    top[r, c, i, j] = max(cells, default=0)
        return (top,)


def box(*rows):
    return torch.tensor([[0, *row] for row in rows], dtype=torch.float64)


RAMP = torch.arange(20, dtype=torch.float64).view(1, 1, 4, 5)  # cell (x, y) holds 5 y + x


def test_corners_are_rounded_halves_away_from_zero():
    values = [-2.5, -1.5, -0.5, -0.49999999999999994, 0.49999999999999994, 0.5, 1.5, 2.5, -7, 3.4]
    found = _roi_bins.rounded(torch.tensor(values, dtype=torch.float64))
    assert found.tolist() == [-3, -2, -1, 0, 0, 1, 2, 3, -7, 3]
    # at 1/2 cell a pixel: x2 = 1 -> 0.5 -> 1, x2 = 3 -> 1.5 -> 2; -1 -> -0.5 -> -1 lies outside
    found = roi_pooling(RAMP, box((0, 0, 1, 1), (0, 0, 3, 0), (-1, 0, -1, 0)), 1, 1, 0.5)
    assert found.flatten().tolist() == [6, 2, 0]


def test_bins_overlap_and_share_the_gradient():
    data = RAMP.clone().requires_grad_()
    top = roi_pooling(data, box((0, 0, 4, 3)), 2, 2)  # columns 0..2 and 2..4, rows 0..1 and 2..3
    assert top.flatten().tolist() == [7, 9, 17, 19]
    top = roi_pooling(data, box((0, 0, 2, 0)), 1, 2)  # columns 0..1 and 1..2
    assert top.flatten().tolist() == [1, 2]
    roi_pooling(data, box((0, 0, 2, 0), (1, 0, 1, 0)), 1, 2).sum().backward()
    assert data.grad[0, 0, 0].tolist() == [0, 3, 1, 0, 0]


def test_a_roi_is_at_least_a_cell():
    assert roi_pooling(RAMP, box((3, 2, 1, 0)), 1, 1).item() == 13
    assert roi_pooling(RAMP, box((3, 2, 1, 0)), 2, 2).flatten().tolist() == [13] * 4


def test_any_scale_as_in_the_released_layer():
    assert roi_pooling(RAMP + 1, box((1, 1, 3, 2)), 2, 2, 0.0).flatten().tolist() == [1] * 4
    # mirrored, the last column comes first: one cell, x = 2 and y = 1
    assert roi_pooling(RAMP + 1, box((-2, -1, -1, 0)), 1, 1, -1.0).item() == 8


def test_empty_bins():
    rois = box((-9, 0, -2, 3), (4, 3, 12, 9), (1e30, 0, 1e30, 0))
    data = RAMP.clone().requires_grad_()
    top = roi_pooling(data, rois, 2, 2)
    assert top.flatten(1).tolist() == [[0] * 4, [19, 0, 0, 0], [0] * 4]
    top.sum().backward()
    assert data.grad.sum() == 1


def test_ties_go_to_the_first_cell():
    data = torch.zeros(1, 1, 4, 5, requires_grad=True)
    roi_pooling(data, box((1, 1, 4, 3)), 1, 1).backward()
    assert data.grad.nonzero().tolist() == [[0, 0, 1, 1]]
    # the later column's tie lies in the earlier row
    values = torch.zeros(4, 5)
    values[1, 4] = values[2, 1] = values[3, 1] = 1
    data = values.view(1, 1, 4, 5).clone().requires_grad_()
    roi_pooling(data, box((0, 0, 4, 3)), 1, 1).backward()
    assert data.grad.nonzero().tolist() == [[0, 0, 1, 4]]


@pytest.mark.parametrize("keep", [True, False])
def test_values_at_the_ends(keep):
    data = torch.full((1, 1, 2, 3), -math.inf)
    data[0, 0, 1] = torch.tensor([math.nan, -1, math.inf])
    data.requires_grad_(keep)
    rois = box((0, 0, 2, 0), (0, 0, 1, 1), (1, 0, 2, 1))
    found = roi_pooling(data, rois, 1, 1).flatten()
    assert torch.equal(
        found.detach().nan_to_num(7), torch.tensor([-math.inf, math.nan, math.inf]).nan_to_num(7)
    )


def test_with_and_without_argmax_agree():
    for sample in ROIPooling.samples("small", np.random.default_rng(3)):
        data, rois = sample.bottoms
        data = (4 * data).round()  # many ties
        kept, argmax = module.forward(sample.params, data, rois, True)
        plain, nothing = module.forward(sample.params, data, rois, False)
        assert nothing is None
        assert argmax.dtype == torch.int32
        assert torch.equal(kept, plain)
        image = rois[:, 0].long()
        read = data.flatten(2)[image].gather(2, argmax.flatten(2).clamp(min=0).long())
        assert torch.equal(read.view_as(kept).where(argmax >= 0, 0), kept)


def test_many_channels_are_pooled_in_slabs(monkeypatch):
    data, rois = ROIPooling.samples("small", np.random.default_rng(4))[0].bottoms
    wanted = roi_pooling(data, rois, 2, 3, 0.25)
    monkeypatch.setattr(_roi_bins, "TABLE", 1)
    for file in (_roi_bins, module):
        monkeypatch.setattr(file, "CHUNK", 1)
    data.requires_grad_()
    found = roi_pooling(data, rois, 2, 3, 0.25)
    assert torch.equal(found, wanted)
    found.sum().backward()
    assert data.grad.sum() == (wanted != 0).sum()


WILD = (math.nan, math.inf, -math.inf, 1e38, -1e38, -1, 99)


@pytest.mark.parametrize("edges", Edges)
def test_bins_lie_in_the_map_whatever_the_rois_hold(edges):
    rng = np.random.default_rng(0)
    rois = torch.from_numpy(rng.choice((*WILD, 0, 1, 5), (500, 5)))
    at = _roi_bins.bins(rois, (2, 3, 6, 7), (3, 4), 1.0, edges is Edges.exact)
    assert at.image.min() >= 0
    assert at.image.max() <= 1
    for lower, upper, size in ((at.top, at.bottom, 6), (at.left, at.right, 7)):
        assert lower.min() >= 0
        assert upper.max() <= size
        assert (lower <= upper).all()


@needs_compiler
class TestKernels:
    """What the samples do not reach."""

    @pytest.mark.parametrize("keep", [True, False])
    def test_values_at_the_ends(self, keep):
        with on_host("random"):
            test_values_at_the_ends(keep)

    @pytest.mark.parametrize("edges", Edges)
    def test_wild_rois_stay_in_the_map(self, edges):
        """Nothing is read out of bounds; what is finite gives what it gives on the CPU."""
        rng = np.random.default_rng(0)
        rois = torch.from_numpy(rng.choice((*WILD, 0, 1, 5), (60, 5)))
        params, data = Params(3, 4, 1.0, edges), torch.rand(2, 3, 6, 7)
        with on_host("random"), pytest.raises(ValueError, match=r"rois: a row .* not in 0\.\.1$"):
            module.forward_cuda(params, data, rois, True)
        finite = rois.isfinite().all(1) & (rois[:, 0] >= 0) & (rois[:, 0] < 2)
        rois = rois[finite]
        assert len(rois) > 3
        with on_host("random"):
            found = module.forward_cuda(params, data, rois, True)
        for a, b in zip(found, module.forward(params, data, rois, True), strict=True):
            assert torch.equal(a, b)

    @pytest.mark.parametrize("row", [bad(2, 3, math.inf), bad(1, 1, math.nan), bad(0, 0, 0.5)])
    @pytest.mark.parametrize("edges", Edges)
    def test_wrong_rois_set_the_flag(self, row, edges, monkeypatch):
        monkeypatch.setattr(definition, "deferred", lambda rois: True)
        with (
            on_host(),
            pytest.raises(ValueError, match="rois: a row that is not finite, or a b"),
        ):
            roi_pooling(DATA, row, 2, 2, edges=edges)

    def test_no_cells_no_channels_and_no_rois(self):
        with on_host():
            test_no_cells_and_no_channels()
            data = torch.zeros(1, 2, 3, 3, requires_grad=True)
            roi_pooling(data, ROIS[:0], 2, 2).sum().backward()
            assert data.grad.tolist() == torch.zeros(1, 2, 3, 3).tolist()


def test_no_cells_and_no_channels():
    assert roi_pooling(torch.zeros(1, 2, 0, 3), ROIS, 2, 2).tolist() == torch.zeros(4, 2, 2, 2).tolist()
    data = torch.zeros(1, 2, 0, 3, requires_grad=True)
    roi_pooling(data, ROIS, 2, 2).sum().backward()
    assert roi_pooling(torch.zeros(1, 0, 3, 3), ROIS, 2, 2).shape == (4, 0, 2, 2)


def test_backward_needs_no_matrix_of_outputs_by_cells():
    data = torch.rand(1, 1, 400, 400, requires_grad=True)
    rois = torch.zeros(20_000, 5)  # one-hot rows would take 12 GiB
    rois[:, 3:] = 9
    roi_pooling(data, rois, 1, 1).sum().backward()
    assert data.grad.sum() == 20_000


def test_rois_get_no_gradient():
    assert not roi_pooling(RAMP, box((0, 0, 1, 1)).requires_grad_(), 1, 1).requires_grad


# ---------------------------------------------------------------- against onnxruntime


def onnxruntime_pool(size, scale):
    pytest.importorskip("onnxruntime", reason="an independent oracle, not needed to run")
    pool = max_roi_pool(size, scale)
    return lambda *arrays: pool(*map(torch.from_numpy, arrays)).numpy()


@pytest.mark.parametrize("scale", [1 / 16, 0.3, 1.0])
def test_equals_onnxruntime(scale):
    theirs = onnxruntime_pool((7, 5), scale)
    rng = np.random.default_rng(0)
    data = rng.random((2, 3, 30, 40), dtype=np.float32)
    corners = rng.uniform(-0.3, 1.3, (300, 4)) * [40, 30, 40, 30] / scale
    corners[::3] = np.round(corners[::3])  # halves
    rois = np.concatenate((rng.integers(0, 2, (300, 1)), corners), axis=1).astype(np.float32)
    ours = roi_pooling(torch.from_numpy(data), torch.from_numpy(rois), 7, 5, scale, "released")
    close(ours, theirs(data, rois), 0, "top")


def test_released_edges_differ_at_these_sizes():
    """Of 7 bins: a falling map shows where each begins, a rising one where it ends."""
    theirs = onnxruntime_pool((1, 7), 1.0)
    rising = np.arange(1, 65, dtype=np.float32).reshape(1, 1, 1, 64)
    rois = np.zeros((64, 5), np.float32)
    rois[:, 3] = np.arange(64)
    differ = set()
    for data in (rising, 65 - rising):
        wanted = theirs(data, rois)
        given = torch.from_numpy(data), torch.from_numpy(rois)
        close(roi_pooling(*given, 1, 7, edges="released"), wanted, 0, "released")
        rows = (roi_pooling(*given, 1, 7).numpy() != wanted).any((1, 2, 3))
        differ |= set((np.flatnonzero(rows) + 1).tolist())
    assert differ == {57}
