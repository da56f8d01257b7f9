"""BatchReindex: items of a batch picked by their number, any of them several times or not at all.

Bottoms: the batch [N, ...] and the indices [M], of any type, in 0 <= index < N (a fraction is cut
off). Top [M, ...]. An item's gradient is the sum of its copies'; the indices get none.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .._engine.checks import BlobError, Shape, deferred, raise_if
from .._engine.declared import Bottom, Role
from .._engine.layer import Layer
from .._engine.params import NoParams
from .._engine.registry import register
from .._engine.samples import Sample, normal


def infer(params: NoParams, batch: Shape, index: Shape) -> tuple[Shape, ...]:
    """The top's shape; raises BlobError unless the indices are a list and the batch has items."""
    if len(index) != 1:
        raise BlobError("expected {index} to be [M]", index=index)
    if not batch:
        raise BlobError("expected {batch} to be [N, ...]", batch=batch)
    return ((index[0], *batch[1:]),)


@register("BatchReindex", bottoms=2)
class BatchReindex(Layer):
    """See the module's text."""

    BOTTOMS = (Bottom("batch", partly=True), Bottom("index", role=Role.TABLE, refused=True))
    infer = staticmethod(infer)

    def forward(self, batch: Tensor, index: Tensor) -> Tensor:
        infer(self.params, tuple(batch.shape), tuple(index.shape))
        _expect_items(batch, index)
        rows = index.detach().nan_to_num().long().clamp(0, max(len(batch) - 1, 0))
        return batch[rows]

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        items, channels = {"small": (4, 3), "paper": (64, 4096)}.get(size, (256, 9216))
        index = torch.from_numpy(rng.integers(0, items, 3 * items // 2).astype(float))
        return [Sample(NoParams(), (normal(rng, (items, channels)), index))]


def _expect_items(batch: Tensor, index: Tensor) -> None:
    wrong = ~((index >= 0) & (index < len(batch)))
    if deferred(index):
        raise_if(wrong.any().reshape(1), f"index: an item that is not in 0..{len(batch) - 1}")
    elif bool(wrong.any()):
        place = int(wrong.nonzero()[0])
        text = f"{{index}}: {index[place]:g} at {place} is no item of {{batch}}"
        raise BlobError(text, batch=batch.shape, index=index.shape)
