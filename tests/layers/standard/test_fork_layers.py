"""Normalize and Interp of Caffe's forks, against loops, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cortado.layers._engine.checks import BlobError
from cortado.layers._engine.fillers import FillerParams, FillerType
from cortado.layers.standard.interp import Interp
from cortado.layers.standard.interp import Params as InterpParams
from cortado.layers.standard.normalize import Normalize
from cortado.layers.standard.normalize import Params as NormalizeParams

UNIFORM = FillerParams(FillerType.uniform, min=0.5, max=2)


@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3), (2, 3, 2, 2, 2)])
def test_normalize(across: bool, shared: bool, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    layer = Normalize(NormalizeParams(across, UNIFORM, shared, 0.1), (shape,)).double()
    scale = layer.scale.detach().numpy()
    assert scale.shape == (() if shared else (3,))
    wanted = np.empty(shape)
    for n, c, *at in np.ndindex(*shape):
        vector = x[n].numpy() if across else x[(n, slice(None), *at)].numpy()
        wanted[(n, c, *at)] = x[(n, c, *at)] / np.sqrt((vector**2).sum() + 0.1)
        wanted[(n, c, *at)] *= scale if shared else scale[c]
    np.testing.assert_allclose(layer(x).detach(), wanted, rtol=1e-13, atol=1e-13)


def test_normalize_of_zeros_and_half_precision() -> None:
    layer = Normalize(NormalizeParams(), ((2, 3),))
    x = torch.zeros(2, 3, requires_grad=True)
    top = layer(x)
    top.sum().backward()
    assert not top.any()
    torch.testing.assert_close(x.grad, torch.full((2, 3), 1e5))
    half = layer.half()(torch.full((2, 3), 300.0).half())  # whose squares are infinite in half
    torch.testing.assert_close(half.float(), torch.full((2, 3), 3**-0.5), atol=1e-3, rtol=0)


def test_normalize_refuses() -> None:
    with pytest.raises(BlobError, match=r"^expected bottom \[3\] to be \[N, C, \.\.\.\]$"):
        Normalize(NormalizeParams(), ((3,),))
    layer = Normalize(NormalizeParams(channel_shared=False), ((2, 3),))
    with pytest.raises(BlobError, match=r"^bottom \[2, 4\] has 4 channels, the scale is for 3$"):
        layer(torch.zeros(2, 4))


@pytest.mark.parametrize(
    ("params", "size"),
    [
        (InterpParams(9, 4), (9, 4)),
        (InterpParams(1, 1), (1, 1)),
        (InterpParams(zoom_factor=3), (13, 16)),
        (InterpParams(shrink_factor=2), (3, 3)),
        (InterpParams(shrink_factor=2, zoom_factor=3), (7, 7)),
        (InterpParams(7, 8, zoom_factor=2, shrink_factor=2), (7, 8)),
        (InterpParams(7, 8, zoom_factor=2), (9, 11)),
        (InterpParams(0, 0, zoom_factor=2), (9, 11)),
        (InterpParams(7, zoom_factor=2, shrink_factor=2), (5, 5)),
        (InterpParams(7, 8, zoom_factor=0, shrink_factor=0), (7, 8)),
        (InterpParams(7, 8, pad_beg=-1, pad_end=-2), (7, 8)),
        (InterpParams(zoom_factor=2, pad_beg=-1), (7, 9)),
    ],
)
def test_interp(params: InterpParams, size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    top = Interp(params)(x)
    assert Interp.infer(params, (2, 3, 5, 6)) == (tuple(top.shape),) == ((2, 3, *size),)
    kept = x[:, :, -params.pad_beg : 5 + params.pad_end, -params.pad_beg : 6 + params.pad_end].numpy()
    for i, j in np.ndindex(*size):
        y, down = place(i, size[0], kept.shape[2])
        z, right = place(j, size[1], kept.shape[3])
        y1, z1 = min(y + 1, kept.shape[2] - 1), min(z + 1, kept.shape[3] - 1)
        upper = (1 - right) * kept[:, :, y, z] + right * kept[:, :, y, z1]
        lower = (1 - right) * kept[:, :, y1, z] + right * kept[:, :, y1, z1]
        np.testing.assert_allclose(top[:, :, i, j], (1 - down) * upper + down * lower, atol=1e-12)


def place(i: int, out: int, length: int) -> tuple[int, float]:
    """The corners' centres lie on each other; a single output lies on the first input."""
    at = i * (length - 1) / (out - 1) if out > 1 else 0.0
    return int(at), at - int(at)


def test_interp_refuses() -> None:
    for given in ({}, {"height": 3}):
        with pytest.raises(ValueError, match=r"^give height and width, zoom_factor or shrink_factor$"):
            InterpParams(**given)
    for given, message in (
        ({"height": 3, "width": 0}, "width must be at least 1, got 0"),
        ({"height": 3, "width": 3, "zoom_factor": 0}, "zoom_factor must be at least 1, got 0"),
        ({"zoom_factor": 2, "shrink_factor": -1}, "shrink_factor must be at least 1, got -1"),
    ):
        with pytest.raises(ValueError) as caught:
            InterpParams(**given)
        assert str(caught.value) == message
    for shape, message in (
        ((2, 3, 4), "expected bottom [2, 3, 4] to be [N, C, H, W]"),
        ((1, 1, 3, 9), "pad_beg -1 and pad_end -2 leave nothing of bottom [1, 1, 3, 9]"),
    ):
        with pytest.raises(BlobError) as caught:
            Interp(InterpParams(3, 3, pad_beg=-1, pad_end=-2))(torch.zeros(shape))
        assert str(caught.value) == message
