"""Data: records of a database, images with labels.

``source`` is an LMDB (``backend: LMDB``) whose records are Datums; they are read in the order of their
keys, round and round. Tops: images [N, C, H, W], float32, as ``transform_param`` says; and if wanted
labels [N], float32. Encoded images are BGR as OpenCV would read them: as stored, or with
``transform_param``'s ``force_color`` or ``force_gray``. All images of a batch have the size of its
first; a batch of one may have any.

LevelDB, Caffe's other database, is not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._runtime.batches import BatchLayer
from .._runtime.caffe_files import read_datum
from .._runtime.checks import Shape
from .._runtime.parallel import samples
from .._runtime.params import param
from .._runtime.registry import register
from .._runtime.transform import Transformer, TransformParams


class Backend(Enum):
    """Databases that Caffe reads."""

    LEVELDB = 0
    LMDB = 1


@dataclass(frozen=True)
class Params:
    """``data_param``, and the ``transform_param`` beside it."""

    source: str = param(doc="the database's folder")
    batch_size: int = param(low=1, doc="N")
    rand_skip: int = param(0, low=0, doc="accepted, has no effect, as in Caffe 1.0")
    backend: Backend = param(Backend.LEVELDB, doc="LMDB must be given: LevelDB is not read")
    force_encoded_color: bool = param(False, doc="read encoded images in three channels")
    prefetch: int = param(4, low=0, doc="accepted, has no effect")
    transform_param: TransformParams = param(factory=TransformParams)

    def __post_init__(self) -> None:
        if self.backend is not Backend.LMDB:
            raise ValueError("LevelDB is not read: convert the database, and give backend: LMDB")


_open: dict[Path, Any] = {}  # a process may open an LMDB once, and two nets may read it


class Database:
    """An LMDB's records by number, in the order of their keys. Raises ValueError if it has none."""

    def __init__(self, source: str) -> None:
        try:
            import lmdb
        except ModuleNotFoundError:
            raise ValueError("Data needs lmdb: pip install 'cortado[lmdb]'") from None
        path = Path(source).resolve()
        if not path.exists():
            raise ValueError(f'there is no database "{source}"')
        if path not in _open:
            try:
                _open[path] = lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False)
            except lmdb.Error as error:
                raise ValueError(f'cannot open the database "{source}": {error}') from None
        self.size = int(_open[path].stat()["entries"])
        if not self.size:
            raise ValueError(f'the database "{source}" is empty')
        self._cursor = _open[path].begin().cursor()
        self._at = self.size

    def __getitem__(self, number: int) -> bytes:
        if number < self._at:
            self._cursor.first()
            self._at = 0
        while self._at < number:
            self._cursor.next()
            self._at += 1
        return bytes(self._cursor.value())


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
        self.database = Database(params.source)
        self.transformer = Transformer(params.transform_param)

    def infer(self, params: Any) -> tuple[Shape, ...]:
        """The tops' shapes, which the first record decides; raises ValueError if it cannot be read."""
        shape = self.transformer.shape(self.read(0)[0].shape)
        return (params.batch_size, *shape), (params.batch_size,)

    def read(self, number: int) -> tuple[np.ndarray, int]:
        """The image [C, H, W] of a sample before it is transformed, and its label."""
        p: Params = self.params
        transform = p.transform_param
        color = True if transform.force_color or p.force_encoded_color else None
        record = number % self.database.size
        try:
            return read_datum(self.database[record], False if transform.force_gray else color)
        except ValueError as error:
            raise ValueError(f'record {record} of "{p.source}": {error}') from None

    def forward(self) -> tuple[Tensor, Tensor]:
        numbers, self.position = samples(self.position, self.params.batch_size)
        made: list[Tensor] = []
        labels = []
        for number in numbers:
            image, label = self.read(number)
            made.append(self.transformer(image, self.training, self.draw(number)))
            labels.append(float(label))
            if made[-1].shape != made[0].shape:
                found = f"{list(made[-1].shape)}, the batch's first {list(made[0].shape)}"
                record = number % self.database.size
                raise ValueError(f"images of a batch have one size: record {record} is {found}")
        return torch.stack(made), torch.tensor(labels)
