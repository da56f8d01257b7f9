"""Data: records of a database, images with labels.

``source`` is an LMDB (``backend: LMDB``) whose records are Datums; they are read in the order of their
keys, round and round. Tops: images [N, C, H, W], float32, as ``transform_param`` says; and if wanted
labels [N], float32. Encoded images are BGR as OpenCV would read them: as stored, or with
``transform_param``'s ``force_color`` or ``force_gray``. All images of a batch have the size of its
first; a batch of one may have any.

No lock is taken, where Caffe takes a reader's: a database that is written to twice while a net reads it
is an error at the next record. One that was deleted and made anew is read by the next net.

LevelDB, Caffe's other database, is not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._data.batches import BatchLayer
from .._data.caffe_files import read_datum
from .._data.lmdb_file import LmdbFile
from .._data.transform import Transformer, TransformParams
from .._engine.checks import Shape
from .._engine.parallel import share
from .._engine.params import param
from .._engine.registry import register


class Backend(Enum):
    """Databases that Caffe reads."""

    LEVELDB = 0
    LMDB = 1


@dataclass(frozen=True)
class Params:
    """``data_param``, and the ``transform_param`` beside it."""

    source: str = param(doc="the database's folder, or its file")
    batch_size: int = param(low=1, doc="N")
    rand_skip: int = param(0, low=0, doc="accepted, has no effect, as in Caffe 1.0")
    backend: Backend = param(Backend.LEVELDB, doc="LMDB must be given: LevelDB is not read")
    force_encoded_color: bool = param(False, doc="read encoded images in three channels")
    prefetch: int = param(4, low=0, doc="accepted, has no effect")
    transform_param: TransformParams = param(
        factory=TransformParams, doc="how images are made of what is read"
    )

    def __post_init__(self) -> None:
        if self.backend is not Backend.LMDB:
            raise ValueError("LevelDB is not read: convert the database, and give backend: LMDB")


@register("Data", bottoms=0, tops=(1, 2))
class Data(BatchLayer):
    """See the module's text."""

    Params = Params

    def __init__(
        self,
        params: Any,
        bottom_shapes: tuple[Shape, ...] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(params, bottom_shapes, generator)
        self.transformer = Transformer(params.transform_param)

    @cached_property
    def database(self) -> LmdbFile:
        """Opened when it is first read, by a copy of the layer anew."""
        found = LmdbFile(self.params.source)
        if not len(found):
            raise ValueError(f'the database "{self.params.source}" is empty')
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "database"}

    def infer(self, params: Any) -> tuple[Shape, ...]:
        """The tops' shapes, which the first record decides; raises ValueError if it cannot be read."""
        shape = self.transformer.shape(self.read(0)[0].shape)
        return (params.batch_size, *shape), (params.batch_size,)

    def read(self, number: int) -> tuple[np.ndarray, int]:
        """The image [C, H, W] of a sample before it is transformed, and its label."""
        p: Params = self.params
        transform = p.transform_param
        color = True if transform.force_color or p.force_encoded_color else None
        record = number % len(self.database)
        stored = self.database[record]
        try:
            return read_datum(stored, False if transform.force_gray else color)
        except ValueError as error:
            raise ValueError(f'record {record} of "{p.source}": {error}') from None

    def forward(self) -> tuple[Tensor, Tensor]:
        numbers, self.position = share(self.position, self.params.batch_size)
        made: list[Tensor] = []
        labels = []
        for number in numbers:
            image, label = self.read(number)
            made.append(self.transformer(image, self.training, self.draw(number)))
            labels.append(float(label))
            if made[-1].shape != made[0].shape:
                found = f"{list(made[-1].shape)}, the batch's first {list(made[0].shape)}"
                record = number % len(self.database)
                raise ValueError(f"images of a batch have one size: record {record} is {found}")
        return torch.stack(made), torch.tensor(labels)
