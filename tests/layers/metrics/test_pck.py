"""PCK against a loop over the table."""

import numpy as np
import pytest
import torch
from cortado.layers._engine.checks import BlobError
from cortado.layers.metrics.pck import PCK, Length, Params


def oracle(params, pairs, index, reference, image=None):
    length = params.length.of(*image.shape[-2:]) if image is not None else 1
    pairs, index, shares = pairs.numpy(), index.numpy(), []
    for threshold in params.threshold:
        right = total = 0
        for n, p in np.ndindex(*pairs.shape[:2]):
            if pairs[n, p, 4] != 1:
                continue
            total += 1
            cell = int(index[n, 0, p]) - params.index_base
            if cell < 0:
                continue
            v, u = divmod(cell, reference.shape[3])
            x = u * params.downsampling_factor + params.coordinate_offset
            y = v * params.downsampling_factor + params.coordinate_offset
            right += np.hypot(x - pairs[n, p, 2], y - pairs[n, p, 3]) <= threshold * length
        shares.append(right / max(total, 1))
    return shares


def table(rng, n=3, p=17, h=7, w=9):
    pairs = torch.from_numpy(np.c_[rng.uniform(0, 30, (n * p, 4)), rng.integers(-1, 2, n * p)])
    index = torch.from_numpy(rng.integers(0, h * w, (n, 2, p)))
    return pairs.reshape(n, p, 5).float(), index, torch.zeros(n, 4, h, w)


@pytest.mark.parametrize("offset", [0.0, 4.0])
@pytest.mark.parametrize("base", [0, 1])
def test_oracle(offset, base):
    pairs, index, reference = table(np.random.default_rng(1))
    params = Params(threshold=(4.0, 9.0, 20.0), coordinate_offset=offset, index_base=base)
    top = PCK(params)(pairs, index + base, reference)
    assert top.tolist() == pytest.approx(oracle(params, pairs, index + base, reference))
    assert 0 < top[2] < 1


@pytest.mark.parametrize("length", [Length.LONGER_SIDE, Length.DIAGONAL])
def test_fraction_of_the_image(length):
    pairs, index, reference = table(np.random.default_rng(2))
    image = torch.zeros(3, 3, 28, 36)
    params = Params(threshold=(0.1, 0.3), length=length)
    top = PCK(params)(pairs, index, reference, image)
    assert top.tolist() == pytest.approx(oracle(params, pairs, index, reference, image))


def test_no_match_is_wrong_and_an_empty_table_is_zero():
    pairs = torch.tensor([[[0.0, 0, 4, 8, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, -1]]])
    index = torch.tensor([[[2 * 3 + 1, -1, 0]]])
    reference = torch.zeros(1, 1, 4, 3)
    assert PCK(Params(threshold=(0.0,)))(pairs, index, reference).tolist() == [0.5]
    nothing = PCK(Params())(pairs[:, :0], index[:, :, :0], reference)
    assert nothing.tolist() == [0, 0, 0]


def test_errors_name_the_blobs():
    pairs, index, reference = table(np.random.default_rng(3))
    with pytest.raises(BlobError, match=r"disagree on N or P: pairs \[3, 17, 5\], index \[3, 2, 5\]"):
        PCK(Params())(pairs, index[:, :, :5], reference)
    with pytest.raises(BlobError, match="LONGER_SIDE needs the second image"):
        PCK(Params(length=Length.LONGER_SIDE))(pairs, index, reference)
