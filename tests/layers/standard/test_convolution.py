"""Convolution and Deconvolution against Caffe, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import caffe_vectors
import numpy as np
import pytest
import torch
from cortado.layers._runtime.checks import BlobError
from cortado.layers._runtime.fillers import FillerParams, FillerType
from cortado.layers.standard.convolution import Convolution, Deconvolution, Params, infer
from shared import cases


@pytest.mark.parametrize("case", cases("01_conv_", "01_deconv_"))
def test_caffe(case: Path) -> None:
    caffe_vectors.check(case)


@pytest.mark.parametrize("kind", [Convolution, Deconvolution])
@pytest.mark.parametrize("size", ["small", "paper"])
def test_infer_and_empty_batch(kind: type[Convolution], size: str) -> None:
    for sample in kind.samples(size, np.random.default_rng(0)):
        for bottom in (sample.bottoms[0].float(), sample.bottoms[0][:0].float()):
            layer = kind(sample.params, (tuple(bottom.shape),))
            (top,) = layer(bottom)
            assert kind.infer(sample.params, tuple(bottom.shape)) == (tuple(top.shape),)


def test_deconvolution_transposes_convolution() -> None:
    """<conv x, y> = <x, deconv y> with one weight."""
    params = Params(4, False, (1,), (3,), (2,), weight_filler=FillerParams(type=FillerType.msra))
    back = Params(6, False, (1,), (3,), (2,), weight_filler=params.weight_filler)
    x, y = torch.randn(2, 6, 7, 9).double(), torch.randn(2, 4, 4, 5).double()
    conv, deconv = Convolution(params, (x.shape,)).double(), Deconvolution(back, (y.shape,)).double()
    deconv.weight.data = conv.weight.data
    torch.testing.assert_close((conv(x)[0] * y).sum(), (x * deconv(y)[0]).sum())


def test_several_bottoms_share_the_blobs() -> None:
    a, b = torch.randn(2, 3, 5, 5), torch.randn(2, 3, 5, 5)
    params = Params(4, kernel_size=(3,), weight_filler=FillerParams(type=FillerType.xavier))
    layer = Convolution(params, (a.shape, b.shape))
    tops = layer(a, b)
    assert infer(params, a.shape, b.shape) == (tops[0].shape, tops[1].shape)
    torch.testing.assert_close(tops[1], layer(b)[0])


def test_channels_at_another_axis() -> None:
    x = torch.randn(2, 3, 4, 5, 6)
    params = Params(7, kernel_size=(3,), axis=2, weight_filler=FillerParams(type=FillerType.xavier))
    layer = Convolution(params, (x.shape,))
    (top,) = layer(x)
    assert top.shape == (2, 3, 7, 3, 4)
    torch.testing.assert_close(top[:, 1], torch.conv2d(x[:, 1], layer.weight, layer.bias))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give kernel_size, or kernel_h and kernel_w"),
        ({"kernel_h": 3}, "kernel_h and kernel_w go together"),
        ({"kernel_size": (3,), "kernel_h": 3}, "give kernel_size, or kernel_h and kernel_w, not both"),
        ({"kernel_size": (3,), "stride_w": 2}, "stride_h and stride_w go together"),
        ({"kernel_size": (3,), "pad": (1,), "pad_h": 1}, "give pad, or pad_h and pad_w, not both"),
        ({"kernel_size": (3,), "group": 3}, "num_output 4 is not a multiple of group 3"),
    ],
)
def test_refused_parameters(given: dict, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Params(4, **given)
    assert str(caught.value) == message


def test_pad_h_alone_is_allowed() -> None:
    params = Params(4, kernel_size=(3,), pad_h=1)
    assert infer(params, (1, 2, 5, 5)) == ((1, 4, 5, 3),)


@pytest.mark.parametrize(
    ("given", "bottoms", "message"),
    [
        ({"kernel_size": (9,)}, [(2, 4, 6, 6)], "bottom0 [2, 4, 6, 6] has no room for the kernel"),
        (
            {"kernel_size": (3, 3)},
            [(2, 4, 6, 6, 6)],
            "kernel_size is given 2 times for 3 spatial axes",
        ),
        (
            {"kernel_h": 3, "kernel_w": 3},
            [(2, 4, 6)],
            "the _h and _w of kernel_size are for 2 spatial axes, not 1",
        ),
        (
            {"kernel_size": (3,), "group": 2},
            [(2, 3, 6, 6)],
            "the 3 channels of bottom0 [2, 3, 6, 6] are not a multiple of group 2",
        ),
        (
            {"kernel_size": (3,)},
            [(2, 3)],
            "expected 1 to 3 spatial axes after axis 1 of bottom0 [2, 3]",
        ),
        ({"kernel_size": (3,), "axis": 4}, [(2, 3, 6, 6)], "bottom0 [2, 3, 6, 6] has no axis 4"),
        (
            {"kernel_size": (3,)},
            [(2, 3, 6, 6), (1, 3, 6, 6)],
            "bottoms of one convolution differ in shape: bottom0 [2, 3, 6, 6], bottom1 [1, 3, 6, 6]",
        ),
    ],
)
def test_refused_shapes(given: dict, bottoms: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(BlobError) as caught:
        infer(Params(4, **given), *bottoms)
    assert str(caught.value) == message


def test_other_channels_at_run_time() -> None:
    layer = Convolution(Params(4, kernel_size=(1,)), ((1, 3, 5, 5),))
    with pytest.raises(BlobError, match=r"^bottom0 \[1, 2, 5, 5\] has 2 channels, the weight takes 3$"):
        layer(torch.zeros(1, 2, 5, 5))
