"""HyperpixelFlow: the dense flow of a confidence of matches between the cells of two images.

Each pixel of image A is carried as KeypointTransfer carries a point (Hyperpixel Flow, section 3.3): by
the mean of where the cells go whose box holds it, each to its match of the highest confidence.

Bottoms: ``confidence`` ``[N, H, W, H', W']``, any floating type; ``size_a`` and ``size_b``, each an
image ``[N, C, h, w]``, of which only the shape is read; ``size_b`` may be two values (height, width).
Top: flow ``[N, 2, h, w]`` float32, or float64 for a float64 confidence, image pixels to go in x and in
y; NaN at pixels that no box holds, and everywhere if no cell of B takes part. Cells as
``_runtime/cells.py`` has them. No gradient: a choice has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._runtime.cells import CellParams
from ._runtime.checks import BlobError, Shape, expect_floating, expect_values, shapes
from ._runtime.layer import Layer
from ._runtime.params import valid
from ._runtime.registry import register
from ._runtime.samples import Sample, distinct
from ._runtime.sizes import shape_of, size_of
from ._runtime.transfer import Steps, expect_confidence

Params = CellParams


def infer(params: CellParams, confidence: Shape, size_a: Shape, size_b: Shape) -> tuple[Shape]:
    """``[N, 2, h, w]``; raises :class:`BlobError` unless ``size_a`` is an image, and the rest fits."""
    expect_confidence(confidence, size_a, size_b)
    if len(size_a) != 4:
        raise BlobError("expected {size_a} to be an image [N, C, H, W]", size_a=size_a)
    return ((confidence[0], 2, *size_a[2:]),)


@torch.no_grad()
def hyperpixel_flow(
    confidence: Tensor,
    size_a: Sequence[float] | Tensor,
    size_b: Sequence[float] | Tensor,
    jump: float = 4.0,
    receptive_field: int = 27,
    margin: float | None = None,
) -> Tensor:
    """The flow ``[N, 2, h, w]`` of each pixel of A, pixels in x and in y, NaN where there is none.

    ``confidence`` is ``[N, H, W, H', W']``; ``size_a``, ``size_b`` are the images' (height, width) in
    pixels, or the images. See the module; raises as ``keypoint_transfer`` does. Source: Hyperpixel
    Flow, section 3.3.
    """
    return _flow(valid(Params(jump, receptive_field, margin)), confidence, size_a, size_b)


def _flow(
    params: CellParams,
    confidence: Tensor,
    size_a: Sequence[float] | Tensor,
    size_b: Sequence[float] | Tensor,
) -> Tensor:
    form, sizes = "hyperpixel_flow", {"size_a": size_a, "size_b": size_b}
    table = shapes(form, confidence=confidence)
    expect_confidence(**table, **{name: shape_of(form, name, size) for name, size in sizes.items()})
    expect_floating(confidence=confidence)
    if isinstance(size_a, Tensor) and size_a.dim() != 4:
        expect_values("the flow's shape depends on size_a's values", size_a)
    lengths = [size_of(name, size) for name, size in sizes.items()]
    dtype = torch.float64 if confidence.dtype == torch.float64 else torch.float32
    y, x = (torch.arange(int(length), device=confidence.device) for length in lengths[0])
    flow = torch.empty(len(confidence), 2, len(y), len(x), dtype=dtype, device=confidence.device)
    for n, one in enumerate(confidence):
        flow[n] = Steps(one, x, y, params, *lengths).at_grid()[:2]
    return flow


@register("HyperpixelFlow", bottoms=3)
class HyperpixelFlow(Layer):
    """Dense flow from matches of cells; see the module."""

    Params = Params
    bottom_names = ("confidence", "size_a", "size_b")
    tables = (1, 2)
    shared = (1, 2)
    maps = False
    infer = staticmethod(infer)

    @torch.no_grad()
    def forward(self, confidence: Tensor, size_a: Tensor, size_b: Tensor) -> Tensor:
        self.check(confidence, size_a, size_b)
        return _flow(self.params, confidence, size_a, size_b)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        if size == "paper":
            return [_sample(rng, "900 x 900 cells", (1, 28, 38, 28, 38), 8.0, 43, 8.0)]
        if size == "large":
            return [_sample(rng, "3300 x 3300 cells", (1, 53, 75, 53, 75), 4.0, 27, 4.0)]
        return [
            _sample(rng, "every cell", (2, 3, 4, 3, 4), 4.0, 5),
            _sample(rng, "a margin", (2, 5, 6, 4, 5), 4.0, 11, 2.0),
            _sample(rng, "holes", (1, 3, 3, 3, 2), 5.0, 3),
        ]


def _sample(rng: np.random.Generator, name: str, grid: Shape, *cells: Any) -> Sample:
    params = Params(*cells)
    sizes = [[int((count - 1) * params.jump) + 1 for count in part] for part in (grid[1:3], grid[3:])]
    images = [torch.zeros(1, 1, *size, dtype=torch.float64) for size in sizes]
    return Sample(params, (distinct(rng, grid), *images), differentiable=(), name=name)
