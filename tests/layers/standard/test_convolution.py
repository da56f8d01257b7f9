"""Convolution and Deconvolution against Caffe, and what they refuse."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import caffe_vectors
import numpy as np
import pytest
import torch
from cortado.layers._engine.checks import BlobError
from cortado.layers._engine.fillers import FillerParams, FillerType
from cortado.layers.standard.convolution import (
    Convolution,
    Deconvolution,
    Im2col,
    Im2colParams,
    Params,
    infer,
)
from shared import cases


@pytest.mark.parametrize("case", cases("01_"))
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
        ({"kernel_h": 3}, "kernel_h and kernel_w go together"),
        ({"kernel_size": (3,), "kernel_h": 3}, "give kernel_size, or kernel_h and kernel_w, not both"),
        ({"kernel_size": (3,), "stride_w": 2}, "stride_h and stride_w go together"),
        ({"kernel_size": (3,), "pad": (1,), "pad_h": 1}, "give pad, or pad_h and pad_w, not both"),
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
        ({}, [(2, 4, 6, 6)], "give kernel_size, or kernel_h and kernel_w"),
        ({"kernel_size": (9,)}, [(2, 4, 6, 6)], "bottom0 [2, 4, 6, 6] has no room for the kernel"),
        (
            {"kernel_size": (3,), "group": 3},
            [(2, 3, 6, 6)],
            "num_output 4 is not a multiple of group 3",
        ),
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
        ({"kernel_size": (3, 3)}, [(2, 3)], "kernel_size is given 2 times for 0 spatial axes"),
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


def taps(shape: tuple[int, ...], params: Params) -> list[tuple[tuple[int, ...], ...]]:
    """For each output place of a plain window, the kernel's elements and what they lie on."""
    size = infer(params, (1, params.group, *shape))[0][2:]
    k, s, p, d = params.kernel_size[0], params.stride[0], params.pad[0], params.dilation[0]
    return [
        (out, tap, tuple(o * s - p + t * d for o, t in zip(out, tap, strict=True)))
        for out in np.ndindex(*size)
        for tap in np.ndindex(*(k,) * len(shape))
    ]


@pytest.mark.parametrize("shape", [(5,), (4, 3), (3, 4, 3), (2, 3, 3, 4), (2, 3, 2, 3, 2)])
@pytest.mark.parametrize("group", [1, 2])
def test_any_number_of_axes(shape: tuple[int, ...], group: int) -> None:
    filler = FillerParams(FillerType.uniform, min=-1)
    params = Params(
        4, True, (1,), (2,), (2,), (2,), group=group, weight_filler=filler, bias_filler=filler
    )
    x = torch.randn(2, 2, *shape, dtype=torch.float64)
    layer = Convolution(params, (x.shape,)).double()
    (top,) = layer(x)
    weight, bias = layer.weight.detach(), layer.bias.detach()
    wanted = bias.reshape(-1, *(1,) * len(shape)) * torch.ones_like(top)
    for out, tap, at in taps(shape, params):
        if all(0 <= a < n for a, n in zip(at, shape, strict=True)):
            for o in range(4):
                first = o // 2 if group == 2 else 0
                inputs = slice(first, first + 1) if group == 2 else slice(0, 2)
                wanted[(slice(None), o, *out)] += (
                    x[(slice(None), inputs, *at)] @ weight[(o, slice(None), *tap)]
                )
    torch.testing.assert_close(top.detach(), wanted)


@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 2, 3)])
def test_deconvolution_is_the_transpose_over_any_axes(shape: tuple[int, ...]) -> None:
    """<conv x, y> = <x, deconv y> with one weight, x as large as deconv y."""
    y = torch.randn(2, 4, *shape, dtype=torch.float64)
    filler = FillerParams(type=FillerType.msra)
    back = Params(6, False, (1,), (3,), (2,), (2,), group=2, weight_filler=filler)
    deconv = Deconvolution(back, (y.shape,)).double()
    (image,) = deconv(y)
    x = torch.randn_like(image)
    conv = Convolution(dataclasses.replace(back, num_output=4), (x.shape,)).double()
    conv.weight.data = deconv.weight.data
    torch.testing.assert_close((conv(x)[0] * y).sum(), (x * image).sum())


@pytest.mark.parametrize("kernel", [(1,), ()])
def test_no_spatial_axes(kernel: tuple[int, ...]) -> None:
    x = torch.randn(3, 4)
    params = Params(6, kernel_size=kernel, group=2, weight_filler=FillerParams(FillerType.xavier))
    for kind in (Convolution, Deconvolution):
        layer = kind(params, (x.shape,))
        (top,) = layer(x)
        assert kind.infer(params, (3, 4)) == (top.shape,) == ((3, 6),)
    layer = Convolution(params, (x.shape,))
    assert layer.weight.shape == (6, 2)
    wanted = torch.cat([x[:, :2] @ layer.weight[:3].T, x[:, 2:] @ layer.weight[3:].T], 1)
    torch.testing.assert_close(layer(x)[0], wanted)


@pytest.mark.parametrize(("kernel", "stride", "pad"), [(5, 2, 0), (7, 3, 1), (6, 4, 0)])
def test_kernel_larger_than_the_image(kernel: int, stride: int, pad: int) -> None:
    """By less than the stride: Caffe's quotient is 0, so there is one window, zeros beyond the end."""
    params = Params(2, True, (pad,), (kernel,), (stride,), weight_filler=FillerParams(FillerType.msra))
    x = torch.randn(1, 3, 4, 4)
    layer = Convolution(params, (x.shape,))
    (top,) = layer(x)
    assert infer(params, (1, 3, 4, 4)) == (top.shape,) == ((1, 2, 1, 1),)
    covered = layer.weight[:, :, pad : pad + 4, pad : pad + 4]
    torch.testing.assert_close(top[:, :, 0, 0], (covered * x).sum((1, 2, 3))[None])
    columns = Im2col(Im2colParams(kernel_size=(kernel,), stride=(stride,), pad=(pad,)))(x)
    torch.testing.assert_close(layer.weight.flatten(1) @ columns[0, :, 0], top[0, :, 0])


def test_dilation_of_nothing() -> None:
    """Each element of the kernel lies on its window's first pixel, as Caffe's im2col has it."""
    options = {"pad": (1,), "kernel_size": (3,), "stride": (2,), "dilation": (0,)}
    filler = FillerParams(FillerType.msra)
    params = Params(4, False, group=2, weight_filler=filler, **options)
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64)
    layer = Convolution(params, (x.shape,)).double()
    (top,) = layer(x)
    assert layer.weight.shape == (4, 1, 3, 3)
    assert infer(params, (2, 2, 5, 4)) == (top.shape,) == ((2, 4, 4, 3),)  # (n + 2 - 1) / 2 + 1
    wanted = torch.zeros_like(top)
    for out, tap, at in taps((5, 4), params):
        if all(0 <= a < n for a, n in zip(at, (5, 4), strict=True)):
            for o in range(4):
                wanted[(slice(None), o, *out)] += (
                    x[(slice(None), o // 2, *at)] * layer.weight[(o, 0, *tap)]
                )
    torch.testing.assert_close(top, wanted)
    columns = Im2col(Im2colParams(num_output=3, group=2, **options))(x[:, :1])  # both ignored
    torch.testing.assert_close(
        torch.einsum("ok,nkhw->nohw", layer.weight[:2].flatten(1), columns), top[:, :2]
    )
    deconv = Deconvolution(dataclasses.replace(params, num_output=2), (top.shape,)).double()
    deconv.weight.data = layer.weight.data
    (image,) = deconv(top)
    assert image.shape == (2, 2, 5, 3)  # 2 (n - 1) + 1 - 2
    back = Convolution(params, (image.shape,)).double()
    back.weight.data = layer.weight.data
    y = torch.randn_like(image)
    torch.testing.assert_close((back(y)[0] * top).sum(), (y * image).sum())


@pytest.mark.parametrize("shape", [(5,), (4, 6), (3, 4, 5)])
def test_im2col(shape: tuple[int, ...]) -> None:
    params = Im2colParams(kernel_size=(2,), pad=(1,), stride=(2,), dilation=(2,))
    x = torch.randn(2, 3, *shape)
    top = Im2col(params)(x)
    (wanted_shape,) = Im2col.infer(params, tuple(x.shape))
    assert tuple(top.shape) == wanted_shape
    wanted = torch.zeros(wanted_shape).unflatten(1, (3, *(2,) * len(shape)))
    for out, tap, at in taps(shape, dataclasses.replace(params, num_output=1)):
        if all(0 <= a < n for a, n in zip(at, shape, strict=True)):
            wanted[(slice(None), slice(None), *tap, *out)] = x[(slice(None), slice(None), *at)]
    assert torch.equal(top, wanted.flatten(1, 1 + len(shape)))


def test_im2col_at_another_axis() -> None:
    x = torch.randn(2, 3, 4, 5, 6)
    params = Im2colParams(kernel_size=(3,), axis=2)
    top = Im2col(params)(x)
    assert top.shape == (2, 3, 36, 3, 4)
    torch.testing.assert_close(top[:, 1], Im2col(Im2colParams(kernel_size=(3,)))(x[:, 1]))
    with pytest.raises(BlobError, match=r"^expected spatial axes after axis 1 of bottom0 \[2, 3\]$"):
        Im2col(Im2colParams(kernel_size=(3,)))(torch.zeros(2, 3))
