import math

import numpy as np
import pytest
import torch
from cortado.layers._engine.checks import BlobError
from cortado.layers._geometry import boxes


def test_the_last_pixel_is_inside():
    one = torch.tensor([[3.0, 5, 3, 5], [0, 0, 9, 4], [2, 2, 1, 8], [2, 2, 0, 8], [0, 0, 0.5, 0]])
    assert boxes.area(one).tolist() == [1, 50, 0, 0, 1.5]
    # pixels 0..3 and 3..6 share pixel 3
    found = boxes.iou(torch.tensor([0.0, 0, 3, 0]), torch.tensor([3.0, 0, 6, 0]))
    assert float(found) == pytest.approx(1 / 7)


def test_against_counted_pixels():
    rng = np.random.default_rng(0)
    corner = rng.integers(0, 9, (2, 6, 2))
    a, b = (np.concatenate((c, c + rng.integers(0, 7, (6, 2))), axis=1) for c in corner)

    def pixels(box):
        return {(x, y) for x in range(box[0], box[2] + 1) for y in range(box[1], box[3] + 1)}

    wanted = [[len(pixels(r) & pixels(s)) / len(pixels(r) | pixels(s)) for s in b] for r in a]
    found = boxes.iou_matrix(torch.from_numpy(a).double(), torch.from_numpy(b).double())
    assert np.allclose(found, wanted, rtol=1e-15)
    rows = boxes.iou(torch.from_numpy(a), torch.from_numpy(b))
    assert rows.dtype == torch.float32
    assert np.allclose(rows, np.diag(wanted), rtol=1e-6)


def test_against_pycocotools():
    mask = pytest.importorskip("pycocotools.mask", reason="an independent oracle, not needed to run")
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, 50, (30, 2))
    table = np.concatenate((corner, corner + rng.uniform(0, 60, (30, 2))), axis=1)
    theirs = np.concatenate((table[:, :2], table[:, 2:] - table[:, :2] + 1), axis=1)
    wanted = mask.iou(theirs[:10], theirs[10:], [0] * 20)
    found = boxes.iou_matrix(torch.from_numpy(table[:10]), torch.from_numpy(table[10:]))
    assert np.allclose(found, wanted, rtol=1e-12)


def test_boxes_that_cover_nothing():
    nothing = torch.tensor([[5.0, 5, 4, 9]])
    assert boxes.iou_matrix(nothing, nothing).tolist() == [[0]]
    assert boxes.iou_matrix(nothing[:0], nothing).shape == (0, 1)


def test_half_precision_is_widened():
    box = torch.tensor([[0.0, 0, 1023, 1023]], dtype=torch.float16)
    assert boxes.area(box).tolist() == [1024 * 1024]


def test_errors():
    rois = torch.zeros(3, 5)
    rois[1, 2] = math.nan
    with pytest.raises(BlobError) as caught:
        boxes.expect_finite(rois=rois)
    assert str(caught.value) == (
        "rois [3, 5]: row 1 is not finite: 0, 0, nan, 0, 0 (expected batch, x1, y1, x2, y2)"
    )
    with pytest.raises(BlobError) as caught:
        boxes.expect_boxes(a=(3, 5), b=(3, 6))
    assert str(caught.value) == "expected b [3, 6] to be [P, 4] boxes or [P, 5] rois"
