"""The base of every layer of a net."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from .checks import Shape
from .params import NoParams


class Layer(nn.Module):
    """A layer: reads bottoms, gives tops, owns its parameter blobs.

    A subclass sets ``Params`` (a frozen dataclass), ``infer`` (a static method
    ``infer(params, *bottom_shapes) -> top_shapes`` that raises :class:`~.checks.BlobError`), and
    ``forward(*bottoms)``, which gives a tensor or a tuple of tensors, one for each top. Parameter
    blobs are made in ``__init__`` from the bottoms' shapes and listed, in Caffe's order, in
    ``blob_names``; fillers draw from ``generator``. ``self.training`` is Caffe's phase TRAIN.

    ``tables`` are the bottoms that hold coordinates, which half precision would spoil.
    ``type_name`` and ``block`` (the name of its parameters' block in a spec) are set by
    :func:`~.registry.register`.
    """

    Params: ClassVar[type] = NoParams
    type_name: ClassVar[str] = ""
    block: ClassVar[str] = ""
    bottom_names: ClassVar[tuple[str, ...]] = ()
    tables: ClassVar[tuple[int, ...]] = ()
    is_loss: ClassVar[bool] = False
    infer: ClassVar[Any]

    def __init__(
        self,
        params: Any = None,
        bottom_shapes: tuple[Shape, ...] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.params = params if params is not None else self.Params()
        self.blob_names: tuple[str, ...] = ()

    @property
    def blobs(self) -> list[nn.Parameter]:
        """The parameter blobs in Caffe's order (weight, bias, ...)."""
        return [getattr(self, name) for name in self.blob_names]

    def extra_repr(self) -> str:
        return str(self.params)
