"""HyperpixelFlow: the dense flow of a confidence of matches between the cells of two images.

Each pixel of image A is carried as KeypointTransfer carries a point (Hyperpixel Flow, section 3.3): by
the mean of where the cells go whose box holds it, each to its match of the highest confidence.

Bottoms: ``confidence`` ``[N, H, W, H', W']``, any floating type; ``size_a`` and ``size_b``, each an
image ``[N, C, h, w]``, of which only the shape is read; ``size_b`` may be two values (height, width).
Top: flow ``[N, 2, h, w]`` float32, or float64 for a float64 confidence, image pixels to go in x and in
y; NaN at pixels that no box holds, and everywhere if no cell of B takes part. Cells as
``_geometry/cells.py`` has them. No gradient: a choice has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ._engine.checks import BlobError, Shape, expect_values, valueless
from ._engine.declared import Bottom, Role, Top, Trait
from ._engine.definition import Spec, define
from ._engine.layer import Layer
from ._engine.registry import register
from ._engine.samples import Sample
from ._engine.sizes import Size, shape_of, size_of, size_tensor
from ._engine.wide import wide_dtype
from ._geometry.cells import CellParams
from ._geometry.transfer import Steps, expect_confidence

if TYPE_CHECKING:
    import numpy as np

Params = CellParams
CHOICE = "a choice has none"
BOTTOMS = (
    Bottom("confidence", "[N, H, W, H', W']", why_no_gradient=CHOICE),
    Bottom("size_a", "[N, C, h, w]", Role.SIZE, shared=True),
    Bottom("size_b", "[N, C, h, w]", Role.SIZE, shared=True),
)
TOPS = (Top("flow", why_no_gradient=CHOICE),)


def infer(params: CellParams, confidence: Shape, size_a: Shape, size_b: Shape) -> tuple[Shape]:
    """``[N, 2, h, w]``; raises :class:`BlobError` unless ``size_a`` is an image, and the rest fits."""
    expect_confidence(confidence, size_a, size_b)
    if len(size_a) != 4:
        raise BlobError("expected {size_a} to be an image [N, C, H, W]", size_a=size_a)
    return ((confidence[0], 2, *size_a[2:]),)


def meta(params: CellParams, confidence: Tensor, size_a: Tensor, size_b: Tensor) -> Sequence[Spec]:
    return (((confidence.shape[0], 2, *size_a.shape[2:]), wide_dtype(confidence.dtype)),)


def forward(params: CellParams, confidence: Tensor, size_a: Size, size_b: Size) -> tuple[Tensor]:
    y, x = (torch.arange(int(length), device=confidence.device) for length in size_a)
    flow = confidence.new_empty(len(confidence), 2, len(y), len(x), dtype=wide_dtype(confidence.dtype))
    for n, one in enumerate(confidence):
        flow[n] = Steps(one, x, y, params, size_a, size_b).at_grid()[:2]
    return (flow,)


definition = define(__name__)


def hyperpixel_flow(
    confidence: Tensor,
    size_a: Sequence[float] | Tensor,
    size_b: Sequence[float] | Tensor,
    jump: float = Params.jump,
    receptive_field: int = Params.receptive_field,
    margin: float | None = Params.margin,
) -> Tensor:
    """The flow ``[N, 2, h, w]`` of each pixel of A, pixels in x and in y, NaN where there is none.

    ``confidence`` is ``[N, H, W, H', W']``; ``size_a``, ``size_b`` are the images' (height, width) in
    pixels, or the images. See the module; raises as ``keypoint_transfer`` does. Source: Hyperpixel
    Flow, section 3.3.
    """
    params = definition.params(jump, receptive_field, margin)
    if isinstance(size_a, Tensor) and size_a.dim() == 4:
        flow: Tensor = definition(params, confidence, size_a, size_b)
        return flow
    return _by_values(params, confidence, size_a, size_b)


def _by_values(
    params: CellParams,
    confidence: Tensor,
    size_a: Sequence[float] | Tensor,
    size_b: Sequence[float] | Tensor,
) -> Tensor:
    """The flow over an image of A that is given by its height and width: by one of that shape, which
    the flow's follows."""
    if math.prod(shape_of(definition.name, "size_a", size_a)) != 2:
        definition.check(params, (confidence, size_a, size_b))  # which says so
    if isinstance(size_a, Tensor):
        expect_values("the flow's shape depends on size_a's values", size_a)
    lengths = size_of("size_a", size_a)
    whole = [int(length) for length in lengths]
    image = size_tensor(whole)
    if whole != [*lengths]:  # the fraction says which cells take part
        if not torch.compiler.is_dynamo_compiling():
            definition.check(params, (confidence, image, size_b))
        if not valueless(confidence):
            return forward(params, confidence.detach(), lengths, size_of("size_b", size_b))[0]
    flow: Tensor = definition(params, confidence, image, size_b)
    return flow


@register("HyperpixelFlow")
class HyperpixelFlow(Layer):
    """Dense flow from matches of cells; see the module."""

    definition = definition
    TRAITS = (Trait.NO_CELLS,)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        from ._samples import hyperpixel_flow as own

        return own.samples(size, rng)
