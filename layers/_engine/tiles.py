"""What the kernels of ``tiles.cu`` need; ``kernels`` are a layer's, whose text is with that file."""

from __future__ import annotations

from torch import Tensor

from . import cuda

TILE = 32


def blocks(images: int, channels: int, length: int) -> int:
    """Blocks for ``[N, C, L]``."""
    return images * -(-channels // TILE) * -(-length // TILE)


def to_rows(kernels: cuda.Kernels, x: Tensor) -> Tensor:
    """``[N, C, ...]`` -> ``[N, L, C]``, by a kernel."""
    x = x.contiguous().flatten(2)
    n, channels, length = x.shape
    rows = x.new_empty(n, length, channels)
    kernels.launch(
        "to_rows",
        source=x,
        target=rows,
        channels=channels,
        length=length,
        grid=blocks(n, channels, length),
        block=cuda.threads(256),
    )
    return rows
