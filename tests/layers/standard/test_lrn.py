"""LRN against Caffe and against loops."""

from __future__ import annotations

from pathlib import Path

import caffe_vectors
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cortado.layers._engine.definition import Definition
from cortado.layers._engine.samples import Sample
from cortado.layers.standard import lrn
from cortado.layers.standard.lrn import LRN, NormRegion, Params
from shared import cases
from suite import LayerSuite
from torch.library import opcheck


@pytest.mark.parametrize("case", cases("03_"))
def test_caffe(case: Path) -> None:
    caffe_vectors.check(case)


class TestLRN(LayerSuite):
    layer = LRN
    wrong = (
        ((torch.zeros(2, 3, 4),), "expected bottom [2, 3, 4] to be [N, C, H, W]"),
        (
            (torch.zeros(2, 3, 4, 5, dtype=torch.int64),),
            "expected bottom to be floating point, got torch.int64",
        ),
    )

    def samples(self, size: str = "small") -> list[Sample]:
        """By the kernels, those that they compute; the others are torch's there as well."""
        found = super().samples(size)
        return [x for x in found if self.path != "cuda" or lrn.covers(x.params)]

    @property
    def definition(self) -> Definition:
        return lrn.by_kernels if self.path == "cuda" else lrn.definition

    def test_operators_of_the_kernels_definition(self) -> None:
        """In torch operations the same bits, with nothing kept."""
        definition = lrn.by_kernels
        for sample in self.samples():
            if not lrn.covers(sample.params):
                with pytest.raises(ValueError, match="^the kernels are for windows of"):
                    definition(sample.params, *sample.bottoms)
                continue
            found = []
            for run in (lrn.definition, definition):
                (x,) = self.leaves(sample)
                top = run.operator(x, *run.schema.scalars(sample.params))
                top = top[0] if isinstance(top, tuple) else top
                found.append((top, *torch.autograd.grad(top, x, top.detach().cos())))
            scalars = definition.schema.scalars(sample.params)
            opcheck(definition.operator, (*self.leaves(sample), *scalars))
            if self.path != "cuda":
                assert all(map(torch.equal, *found))

    def oracle(self, params: Params, x: np.ndarray) -> tuple[np.ndarray, ...]:
        across = params.norm_region is NormRegion.ACROSS_CHANNELS
        reach, y = params.local_size // 2, np.empty_like(x)
        count = params.local_size if across else params.local_size**2
        for n, c, i, j in np.ndindex(*x.shape):
            if across:
                window = x[n, max(0, c - reach) : c + reach + 1, i, j]
            else:
                window = x[n, c, max(0, i - reach) : i + reach + 1, max(0, j - reach) : j + reach + 1]
            scale = (params.k if across else 1) + params.alpha * (window**2).sum() / count
            y[n, c, i, j] = x[n, c, i, j] * scale**-params.beta
        return (y,)


@pytest.mark.parametrize("channels", [1, 2, 3, 9])
@pytest.mark.parametrize("local_size", [1, 3, 5, 7])
def test_across_channels_equals_torch(channels: int, local_size: int) -> None:
    """Windows wider than the blob, too."""
    x = torch.randn(2, channels, 3, 4, dtype=torch.float64, requires_grad=True)
    g = torch.randn_like(x)
    ours = LRN(Params(local_size, alpha=0.5, k=2.0))(x)
    torchs = F.local_response_norm(x, local_size, 0.5, 0.75, 2.0)
    torch.testing.assert_close(ours, torchs)
    torch.testing.assert_close(torch.autograd.grad(ours, x, g), torch.autograd.grad(torchs, x, g))


def test_even_local_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^local_size must be odd, got 4$"):
        Params(4)
