"""MemoryData: batches of arrays that the program gives.

Tops: data [N, C, H, W] and labels [N], float32, N = ``batch_size``. ``MemoryData.set_arrays``
gives all of the data at once, which is read round and round; ``MemoryData.add`` gives images that
``transform_param`` is applied to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .._data.batches import BatchLayer
from .._data.transform import Transformer, TransformParams
from .._engine.checks import Shape
from .._engine.parallel import share
from .._engine.params import param
from .._engine.registry import register


@dataclass(frozen=True)
class Params:
    """``memory_data_param``, and the ``transform_param`` beside it."""

    batch_size: int = param(low=1, doc="N")
    channels: int = param(low=1, doc="C")
    height: int = param(low=1, unit="pixels", doc="H")
    width: int = param(low=1, unit="pixels", doc="W")
    transform_param: TransformParams = param(
        factory=TransformParams, doc="how images are made of what is read"
    )


def infer(params: Params) -> tuple[Shape, ...]:
    """The tops' shapes."""
    n = params.batch_size
    return (n, params.channels, params.height, params.width), (n,)


@register("MemoryData", bottoms=0, tops=2)
class MemoryData(BatchLayer):
    """See the module's text."""

    Params = Params
    infer = staticmethod(infer)

    def __init__(
        self,
        params: Any,
        bottom_shapes: tuple[Shape, ...] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(params, bottom_shapes, generator)
        self.transformer = Transformer(params.transform_param)
        self.data = torch.empty(0)
        self.label = torch.empty(0)
        self.added = 0
        self._unread = False

    def set_arrays(self, data: npt.ArrayLike, labels: npt.ArrayLike) -> None:
        """Read from these from now on: data [n, C, H, W] and n labels, n a multiple of batch_size.

        Float32 arrays are not copied: what is written into them later is read. They are not
        transformed. Raises ValueError for other shapes.
        """
        images, found = np.asarray(data, np.float32), np.asarray(labels, np.float32)
        wanted = infer(self.params)[0][1:]
        if images.ndim != 4 or images.shape[1:] != wanted:
            size = ", ".join(map(str, wanted))
            raise ValueError(f"expected data [n, {size}], got {list(images.shape)}")
        self._take(torch.from_numpy(images), torch.from_numpy(found.reshape(-1)))

    def add(self, images: Sequence[npt.NDArray[Any]], labels: Sequence[float]) -> None:
        """Transform images [C', H', W'] and read from them from now on.

        Raises ValueError for images that do not get the tops' shape, a number of them that is no
        multiple of batch_size, and while some of those added before have not been read.
        """
        if self._unread:
            raise ValueError("images that were added before have not been read yet")
        made = []
        for i, image in enumerate(images):
            made.append(self.transformer(image, self.training, self.draw(self.added + i)))
            wanted, found = infer(self.params)[0][1:], tuple(made[-1].shape)
            if found != wanted:
                raise ValueError(f"image {i} becomes {list(found)}, expected {list(wanted)}")
        self._take(torch.stack(made) if made else torch.empty(0), torch.tensor(labels).float())
        self.added += len(made)
        self._unread = True

    def _take(self, data: Tensor, labels: Tensor) -> None:
        if len(data) != len(labels):
            raise ValueError(f"{len(data)} items of data have {len(labels)} labels")
        if not len(data) or len(data) % self.params.batch_size:
            size = self.params.batch_size
            raise ValueError(f"expected a multiple of batch_size {size} items, got {len(data)}")
        self.data, self.label, self.position = data, labels, 0

    def forward(self) -> tuple[Tensor, Tensor]:
        if not len(self.data):
            raise ValueError("MemoryData has no data yet: set_arrays or add gives them")
        numbers, after = share(self.position, self.params.batch_size)
        first = numbers.start % len(self.data)
        self._unread &= after < len(self.data)
        self.position = after % len(self.data)
        own = slice(first, first + len(numbers))
        return self.data[own], self.label[own]
