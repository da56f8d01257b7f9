"""HDF5Output: writes two blobs to the data sets "data" and "label" of an HDF5 file.

Bottoms of as many items, with at most four axes, to be [N, C, H, W] in the file, float32, where
missing axes are 1. No tops. The file is written whole by a forward, in place of an older one. It holds
one forward: the second is an error, as in Caffe.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._data.files import replace_file
from .._data.hdf5_file import write_hdf5
from .._engine.checks import BlobError, Shape, expect_values
from .._engine.declared import Bottom
from .._engine.layer import Layer
from .._engine.params import param
from .._engine.registry import register
from ..standard._losses import expect_items


@dataclass(frozen=True)
class Params:
    """``hdf5_output_param``."""

    file_name: str = param(doc="the file to write")


def infer(params: Params, data: Shape, label: Shape) -> tuple[Shape, ...]:
    """No tops; raises BlobError for bottoms that do not fit."""
    expect_items(data=data, label=label)
    for name, shape in {"data": data, "label": label}.items():
        if len(shape) > 4:
            raise BlobError(f"expected {{{name}}} to have at most 4 axes", **{name: shape})
    return ()


@register("HDF5Output", bottoms=2, tops=0, block="hdf5_output_param")
class HDF5Output(Layer):
    """See the module's text."""

    Params = Params
    BOTTOMS = (Bottom("data"), Bottom("label"))
    infer = staticmethod(infer)

    def __init__(
        self,
        params: Any,
        bottom_shapes: tuple[Shape, ...] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(params, bottom_shapes, generator)
        self.written = False

    @torch.no_grad()
    def forward(self, data: Tensor, label: Tensor) -> tuple[Tensor, ...]:
        infer(self.params, tuple(data.shape), tuple(label.shape))
        expect_values("HDF5Output writes values", data, label)
        path = Path(self.params.file_name)
        if self.written:
            raise ValueError(f"{path} holds a forward already, and cannot take another")

        def fill(file: Any) -> None:
            for name, blob in {"data": data, "label": label}.items():
                shape = (*blob.shape, 1, 1, 1)[:4]
                file[name] = blob.float().cpu().reshape(shape).numpy()

        try:
            replace_file(path, lambda beside: write_hdf5(beside, fill))
        except OSError as error:
            raise ValueError(str(error)) from None
        self.written = True
        return ()
