"""The base of every layer of a net."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from .checks import Shape
from .declared import OWN, Bottom, Trait
from .definition import Definition
from .params import NoParams
from .reach import SAME, Reach

# What a layer set before there were BOTTOMS and TRAITS.
GONE = {
    *("bottom_names", "tables", "labels", "refused_bottoms", "shared", "partly_read"),
    *("is_loss", "is_metric", "weights_given", "backward_refused", "statistics", "in_place_refused"),
    *("rereads", "maps"),
}


class Layer(nn.Module):
    """A layer of a net: it reads bottoms, gives tops, and owns its parameter blobs.

    Most layers have a :class:`~.definition.Definition`, named ``definition``, which says all but the
    type's name. One without sets ``Params``, a frozen dataclass; ``BOTTOMS``, a record of each bottom;
    ``infer(params, *bottom_shapes) -> top_shapes``, static, which raises :class:`~.checks.BlobError`;
    and ``forward(*bottoms)``, which gives a tensor, or a tuple with one for each top. ``TRAITS`` is
    what else nets and tools must know.

    Parameter blobs are made in ``__init__`` from the bottoms' shapes and listed, in Caffe's order, in
    ``blob_names``; fillers draw from ``generator``. ``self.training`` is Caffe's phase TRAIN.

    A net sets ``name``, ``bottoms`` and ``tops``, the names of the layer and of its blobs, and its
    ``place`` in the spec. A layer whose shapes depend on them has ``infer`` as a method of the
    instance. :func:`~.registry.register` sets ``type_name`` and ``block``, the name of the parameters'
    block in a spec.
    """

    definition: ClassVar[Definition | None] = None
    Params: ClassVar[type] = NoParams
    BOTTOMS: ClassVar[tuple[Bottom, ...]] = ()
    TRAITS: ClassVar[tuple[Trait, ...]] = ()
    type_name: ClassVar[str] = ""
    block: ClassVar[str] = ""
    infer: ClassVar[Any]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if gone := sorted(GONE & vars(cls).keys()):
            text = f"{cls.__name__} sets {gone[0]}: bottoms are declared in BOTTOMS, all else in TRAITS"
            raise TypeError(text)
        if (definition := vars(cls).get("definition")) is not None:
            cls.Params, cls.infer = definition.Params, staticmethod(definition.infer)
            cls.BOTTOMS = tuple(x for x in definition.bottoms if x.role not in OWN)

    @classmethod
    def record(cls, i: int, count: int) -> Bottom:
        """The record of bottom ``i`` of ``count``; of ``many`` the first one's."""
        if cls.BOTTOMS and cls.BOTTOMS[0].many:
            rest = [bottom for bottom in cls.BOTTOMS[1:] if not bottom.optional]
            last = i - (count - len(rest))
            return cls.BOTTOMS[0] if last < 0 else rest[last]
        return cls.BOTTOMS[i] if i < len(cls.BOTTOMS) else Bottom(f"bottom{i}")

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

        Here: the same cells, if the lengths after batch and channels are the same, unless the layer
        has the trait ``NO_CELLS``.
        """
        same = top[2:] == bottom[2:] and Trait.NO_CELLS not in cls.TRAITS
        return (SAME,) * len(top[2:]) if same else None

    @property
    def rereads_top(self) -> bool:
        """Whether what it rereads is its top alone."""
        return False

    @property
    def blobs(self) -> list[nn.Parameter]:
        """The parameter blobs in Caffe's order (weight, bias, ...)."""
        return [getattr(self, name) for name in self.blob_names]

    def extra_repr(self) -> str:
        return str(self.params)
