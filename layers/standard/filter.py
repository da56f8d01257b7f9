"""Filter: the items of batches that a selector chooses.

Bottoms: any number of batches [N, ...], then the selector: N numbers, [N] or [N, 1, ...]. A top for
each batch: its items whose selector is not 0, in their order; [N, ...] at most. A net's blob shapes
show that bound, since the number depends on the data. The gradient of an item that was not chosen is
0; the selector gets none.
"""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from torch import Tensor

from .._engine.checks import BlobError, Shape, expect_values
from .._engine.declared import Bottom
from .._engine.layer import Layer
from .._engine.params import NoParams
from .._engine.registry import register
from .._engine.samples import Sample, normal


def infer(params: NoParams, *bottoms: Shape) -> tuple[Shape, ...]:
    """The tops' largest shapes; raises BlobError where the selector does not fit the batches."""
    *batches, selector = bottoms
    last = f"bottom{len(batches)}"
    if not selector or prod(selector[1:]) != 1:
        raise BlobError(
            f"expected the selector {{{last}}} to be [N] or [N, 1, ...]", **{last: selector}
        )
    for i, batch in enumerate(batches):
        if batch[:1] != selector[:1]:
            raise BlobError(
                f"{{bottom{i}}} and the selector {{{last}}} differ in their number of items",
                **{f"bottom{i}": batch, last: selector},
            )
    return tuple(batches)


@register("Filter", bottoms=(2, None), tops=(1, None))
class Filter(Layer):
    """See the module's text."""

    BOTTOMS = (Bottom("batch", many=True), Bottom("selector", refused=True))
    infer = staticmethod(infer)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        infer(self.params, *(tuple(bottom.shape) for bottom in bottoms))
        *batches, selector = bottoms
        expect_values("the tops' shapes depend on the selector's values", selector)
        chosen = selector.detach().flatten().nonzero()[:, 0]
        return tuple(batch[chosen] for batch in batches)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        items, channels = {"small": (5, 3), "paper": (64, 4096)}.get(size, (256, 9216))
        selector = torch.from_numpy(rng.integers(0, 2, items).astype(float))
        selector[0] = 1
        bottoms = normal(rng, (items, channels)), normal(rng, (items, 2, 2)), selector
        return [Sample(NoParams(), bottoms, (0, 1), (0, 1))]
