"""What holds for each of Caffe's layers: gradients, shapes, empty batches, layouts, precisions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from cortado.layers._engine.declared import Trait
from cortado.layers._engine.layer import Layer
from cortado.layers._engine.samples import Sample
from cortado.layers.standard import (
    argmax,
    batch_norm,
    batch_reindex,
    convolution,
    crop,
    exp_log_power,
    filter,
    interp,
    mvn,
    neurons,
    normalize,
    permute,
    pooling,
    prelu,
    reduction,
    reshape,
    scale,
    slice,
    spp,
    tile,
)
from cortado.prototxt_like.bind import bind, unbind
from suite import close, spread
from torch import Tensor

LAYERS = [
    argmax.ArgMax,
    batch_norm.BatchNorm,
    batch_reindex.BatchReindex,
    convolution.Convolution,
    convolution.Deconvolution,
    convolution.Im2col,
    crop.Crop,
    exp_log_power.ExpLayer,
    exp_log_power.LogLayer,
    exp_log_power.PowerLayer,
    filter.Filter,
    interp.Interp,
    mvn.MVN,
    neurons.AbsVal,
    neurons.BNLL,
    neurons.Clip,
    neurons.ELU,
    neurons.ReLU,
    neurons.Sigmoid,
    neurons.Swish,
    neurons.TanH,
    neurons.Threshold,
    normalize.Normalize,
    permute.Permute,
    pooling.Pooling,
    prelu.PReLU,
    reduction.Reduction,
    reshape.Flatten,
    reshape.Reshape,
    scale.Bias,
    scale.Scale,
    slice.Slice,
    spp.SPP,
    tile.Tile,
]
every_layer = pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.type_name)


def made(kind: type[Layer], sample: Sample, dtype: torch.dtype = torch.float64) -> Layer:
    shapes = tuple(tuple(x.shape) for x in sample.bottoms)
    return kind(sample.params, shapes, torch.Generator().manual_seed(1)).to(dtype)


def run(layer: Layer, *bottoms: Tensor) -> tuple[Tensor, ...]:
    tops = layer(*bottoms)
    return tops if isinstance(tops, tuple) else (tops,)


def small(kind: type[Layer]) -> Iterator[Sample]:
    samples = kind.samples("small", np.random.default_rng(7))
    assert samples
    yield from samples


def cast(sample: Sample, kind: type[Layer], dtype: torch.dtype) -> list[Tensor]:
    return [
        x
        if kind.record(i, len(sample.bottoms)).coordinates or not x.is_floating_point()
        else x.to(dtype)
        for i, x in enumerate(sample.bottoms)
    ]


@every_layer
def test_gradients(kind: type[Layer]) -> None:
    """Of bottoms and parameter blobs, against differences."""
    checked = 0
    for sample in small(kind):
        if not sample.differentiable or not sample.check_gradient:
            continue
        layer = made(kind, sample)
        learned = [blob for blob in layer.blobs if Trait.STATISTICS not in kind.TRAITS]
        wanted = [sample.bottoms[i].detach().requires_grad_() for i in sample.differentiable]

        def function(*leaves: Tensor, layer: Layer = layer, sample: Sample = sample) -> object:
            bottoms = list(sample.bottoms)
            for i, leaf in zip(sample.differentiable, leaves, strict=False):
                bottoms[i] = leaf
            blobs = dict(zip(layer.blob_names, leaves[len(sample.differentiable) :], strict=False))
            tops = torch.func.functional_call(layer, blobs, tuple(bottoms))
            return tuple((tops if isinstance(tops, tuple) else (tops,))[i] for i in sample.tops)

        assert torch.autograd.gradcheck(function, [*wanted, *learned], fast_mode=True)
        checked += 1
    assert checked or Trait.NO_BACKWARD in kind.TRAITS


@every_layer
@pytest.mark.parametrize("empty", [False, True], ids=["batch", "no items"])
def test_shapes(kind: type[Layer], empty: bool) -> None:
    for sample in small(kind):
        layer = made(kind, sample)
        axis0_is_batch = not (kind is scale.Scale or kind is scale.Bias) or len(sample.bottoms) == 1
        if empty and not axis0_is_batch:
            bottoms = [sample.bottoms[0][:0], *sample.bottoms[1:]]
        else:
            bottoms = [x[:0] if empty else x for x in sample.bottoms]
        leaves = [x.detach().requires_grad_(i in sample.differentiable) for i, x in enumerate(bottoms)]
        tops = run(layer, *leaves)
        shapes = layer.infer(sample.params, *(tuple(x.shape) for x in bottoms))
        if kind is filter.Filter:  # which is a bound there
            shapes = [(len(top), *shape[1:]) for top, shape in zip(tops, shapes, strict=True)]
        assert [tuple(top.shape) for top in tops] == [tuple(shape) for shape in shapes]
        assert all(top.dtype in (torch.float64, torch.float32) for top in tops)
        if sample.tops:
            sum(tops[i].sum() for i in sample.tops).backward()
            for i in sample.differentiable:
                assert leaves[i].grad.shape == bottoms[i].shape


@every_layer
def test_layouts(kind: type[Layer]) -> None:
    """Bottoms and gradients that are not contiguous."""
    for sample in small(kind):
        layer, results = made(kind, sample), []
        for layout in (torch.clone, spread):
            plain = [layout(x) if x.is_floating_point() else x for x in sample.bottoms]
            leaves = [x.requires_grad_(i in sample.differentiable) for i, x in enumerate(plain)]
            tops = run(layer, *leaves)
            given = [torch.linspace(-1, 2, t.numel(), dtype=t.dtype).view_as(t).cos() for t in tops]
            chosen = [tops[i] for i in sample.tops]
            wanted = [leaves[i] for i in sample.differentiable]
            found = (
                torch.autograd.grad(chosen, wanted, [layout(given[i]) for i in sample.tops])
                if wanted
                else ()
            )
            results.append([*tops, *found])
        for a, b in zip(*results, strict=True):
            close(a, b.detach(), 1e-13, sample.name)


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_precisions(kind: type[Layer], dtype: torch.dtype) -> None:
    tolerance = {torch.float32: 1e-6, torch.float16: 3e-3, torch.bfloat16: 3e-2}[dtype]
    for sample in small(kind):
        bottoms = cast(sample, kind, dtype)
        tops = run(made(kind, sample, dtype), *bottoms)
        wide = [x.double() if x.is_floating_point() else x for x in bottoms]
        exact = made(kind, sample, dtype).double()
        for i, (top, wanted) in enumerate(zip(tops, run(exact, *wide), strict=True)):
            assert top.dtype == dtype or i not in sample.tops
            close(top, wanted.detach(), tolerance, f"{sample.name} top {i}")


@every_layer
def test_params_round_trip(kind: type[Layer]) -> None:
    for sample in small(kind):
        params = sample.params
        assert bind(type(params), unbind(params), what=kind.type_name) == params
