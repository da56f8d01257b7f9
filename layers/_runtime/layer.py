"""The base of every layer of a net."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from .checks import Shape
from .declared import OWN, Role
from .definition import Definition
from .params import NoParams
from .reach import SAME, Reach


class Layer(nn.Module):
    """A layer: reads bottoms, gives tops, owns its parameter blobs.

    A subclass sets ``Params`` (a frozen dataclass), ``infer`` (a static method
    ``infer(params, *bottom_shapes) -> top_shapes`` that raises :class:`~.checks.BlobError`), and
    ``forward(*bottoms)``, which gives a tensor or a tuple of tensors, one for each top. Parameter
    blobs are made in ``__init__`` from the bottoms' shapes and listed, in Caffe's order, in
    ``blob_names``; fillers draw from ``generator``. ``self.training`` is Caffe's phase TRAIN.

    ``is_loss`` and ``is_metric`` say what a layer is for: its first top is a term of the loss, or it
    measures the net's results. A loss that sets ``weights_given`` must be given a loss_weight for each
    top where it has several.

    ``tables`` are the bottoms that hold coordinates, which half precision would spoil; ``labels``
    those that never get a gradient, not even with ``force_backward``. A layer whose
    ``backward_refused`` is true has no backward: asking for it is an error, as in Caffe, and so it is
    for the gradient of ``refused_bottoms`` (counted from the last if negative), which
    ``force_backward`` asks for. The parameter blobs of a layer that sets ``statistics`` are kept by
    the layer itself: their lr_mult is 0. One that sets ``in_place_refused`` does not take its bottom
    for its top; one that sets ``rereads`` reads its blob again in its backward pass, as layers that
    wrote it in place later left it. ``shared`` are the bottoms that every item of a batch reads whole:
    their first axis is not the batch's. One whose tops are not maps over its bottoms, whatever their
    lengths, sets ``maps`` to false.
    ``type_name`` and ``block`` (the name of its parameters' block in a spec) are set by
    :func:`~.registry.register`. A net sets ``name``, ``bottoms`` and ``tops``, the names of the layer
    and of its blobs, its ``place`` in the spec, and the phase; a layer that needs them for its shapes
    has ``infer`` as a method of the instance.
    """

    definition: ClassVar[Definition | None] = None
    Params: ClassVar[type] = NoParams
    type_name: ClassVar[str] = ""
    block: ClassVar[str] = ""
    bottom_names: ClassVar[tuple[str, ...]] = ()
    tables: ClassVar[tuple[int, ...]] = ()
    is_loss: ClassVar[bool] = False
    is_metric: ClassVar[bool] = False
    weights_given: ClassVar[bool] = False
    labels: ClassVar[tuple[int, ...]] = ()
    backward_refused: ClassVar[bool] = False
    refused_bottoms: ClassVar[tuple[int, ...]] = ()
    statistics: ClassVar[bool] = False
    in_place_refused: ClassVar[bool] = False
    rereads: ClassVar[bool] = False
    shared: ClassVar[tuple[int, ...]] = ()
    partly_read: ClassVar[tuple[int, ...]] = ()
    maps: ClassVar[bool] = True
    infer: ClassVar[Any]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if (definition := vars(cls).get("definition")) is not None:
            cls._define(definition)

    @classmethod
    def _define(cls, definition: Definition) -> None:
        """What the definition says of the layer."""
        bottoms = [bottom for bottom in definition.bottoms if bottom.role not in OWN]
        cls.Params, cls.infer = definition.Params, staticmethod(definition.infer)
        cls.bottom_names = tuple(bottom.name for bottom in bottoms)
        chosen = {
            "tables": lambda x: x.role in (Role.TABLE, Role.SIZE),
            "labels": lambda x: x.role is Role.LABEL,
            "shared": lambda x: x.shared,
            "partly_read": lambda x: x.partly,
        }
        for flag, test in chosen.items():
            if flag in vars(cls):
                continue
            setattr(cls, flag, tuple(i for i, bottom in enumerate(bottoms) if test(bottom)))

    def __init__(
        self,
        params: Any = None,
        bottom_shapes: tuple[Shape, ...] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.params = params if params is not None else self.Params()
        self.blob_names: tuple[str, ...] = ()
        self.name = self.place = ""
        self.bottoms: tuple[str, ...] = ()
        self.tops: tuple[str, ...] = ()
        self._fitting: tuple[Shape, ...] = ()

    def forward(self, *bottoms: Any) -> Any:
        """The tops, as the layer's definition has them."""
        assert self.definition is not None
        return self.definition(self.params, *bottoms)

    def forward_over(self, *bottoms: torch.Tensor) -> Any:
        """What ``forward`` gives, where the memory of the first bottom may be written: nobody reads it
        again, and nothing learns."""
        return self(*bottoms)

    def check(self, *bottoms: torch.Tensor) -> None:
        """Raise BlobError where ``infer`` does; shapes that were checked last pass at once."""
        shapes = tuple([bottom.shape for bottom in bottoms])
        if shapes != self._fitting:
            self.fit(*map(tuple, shapes))
            self._fitting = shapes

    def fit(self, *bottoms: Shape) -> None:
        """Raise BlobError for bottoms of shapes that the layer does not take."""
        self.infer(self.params, *bottoms)

    @classmethod
    def multiply_adds(
        cls, params: Any, bottoms: Sequence[Shape], tops: Sequence[Shape], blobs: Sequence[Shape]
    ) -> int | None:
        """Of one forward pass, from the shapes of bottoms, tops and parameter blobs; biases are not
        counted. None for a layer whose work is of another kind."""
        return None

    @classmethod
    def reach(cls, params: Any, i: int, bottom: Shape, j: int, top: Shape) -> tuple[Reach, ...] | None:
        """How the cells of top ``j`` lie over those of bottom ``i``, for each of the last axes; None
        where they are not cells of one map. Statistics of a whole map (BatchNorm, MVN) don't count.

        Here: the same cells, if the layer ``maps`` and the lengths after batch and channels are the
        same.
        """
        return (SAME,) * len(top[2:]) if cls.maps and top[2:] == bottom[2:] else None

    @property
    def rereads_top(self) -> bool:
        """Whether what it ``rereads`` is its top alone."""
        return False

    @property
    def blobs(self) -> list[nn.Parameter]:
        """The parameter blobs in Caffe's order (weight, bias, ...)."""
        return [getattr(self, name) for name in self.blob_names]

    def extra_repr(self) -> str:
        return str(self.params)
