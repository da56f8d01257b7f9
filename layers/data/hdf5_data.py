"""HDF5Data: rows of the data sets of HDF5 files.

``source`` lists the files, one a line. Tops: the data sets of the tops' names, ``batch_size`` rows of
each, float32; all have as many rows in a file. The files are read one after the other, round and
round; with ``shuffle`` in another order each time, and so are the rows of each. A file is in memory
whole while it is read. Source: Caffe's behaviour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._data.batches import BatchLayer
from .._data.files import read_text
from .._data.hdf5_file import Hdf5Error, expect_numbers, member, open_hdf5, reading
from .._data.transform import TransformParams
from .._engine.checks import Shape
from .._engine.parallel import share
from .._engine.params import param
from .._engine.registry import register


@dataclass(frozen=True)
class Params:
    """``hdf5_data_param``."""

    source: str = param(doc="the list of HDF5 files")
    batch_size: int = param(low=1, doc="rows a batch")
    shuffle: bool = param(False, doc="files and rows in random order")
    transform_param: TransformParams | None = param(None, doc="refused: the rows are given as they are")

    def __post_init__(self) -> None:
        if self.transform_param is not None:
            raise ValueError("HDF5Data does not transform its rows: leave out transform_param")


def read_list(source: str) -> list[str]:
    """The files of a list; raises ValueError where it cannot be read, or names none."""
    lines = read_text(source, "the list of HDF5 files").splitlines()
    files = [line.strip() for line in lines if line.strip()]
    if not files:
        raise ValueError(f'the list of HDF5 files "{source}" is empty')
    return files


def read_sets(path: str, names: tuple[str, ...]) -> list[np.ndarray]:
    """The data sets of these names, float32; raises ValueError if they are not there or differ in
    rows."""
    with open_hdf5(path) as file, reading(path):
        found = [member(path, file, name) for name in names]
        for name, data in zip(names, found, strict=True):
            expect_numbers(path, name, data)
            if not data.ndim:
                raise Hdf5Error(f'{path}: data set "{name}" is not rows of numbers, but one')
        sets = [np.asarray(data, np.float32) for data in found]
    rows = [f'"{name}" {len(data)}' for name, data in zip(names, sets, strict=True)]
    if len({len(data) for data in sets}) > 1 or not len(sets[0]):
        raise ValueError(f"{path}: expected as many rows of each data set, got {', '.join(rows)}")
    return sets


@register("HDF5Data", bottoms=0, tops=(1, None), block="hdf5_data_param")
class HDF5Data(BatchLayer):
    """See the module's text. The position is a row of a file of a round through all of them."""

    Params = Params

    def __init__(
        self,
        params: Any,
        bottom_shapes: tuple[Shape, ...] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(params, bottom_shapes, generator)
        self.files = read_list(params.source)
        self.round, self.turn = 0, 0  # of the files; turn: how many of them the round has finished
        self._read: tuple[int, list[np.ndarray]] = (-1, [])
        self._order: tuple[tuple[int, ...], np.ndarray] = ((), np.arange(0))

    def infer(self, params: Any) -> tuple[Shape, ...]:
        """The tops' shapes, which the first file decides; raises ValueError if it cannot be read."""
        return tuple((params.batch_size, *data.shape[1:]) for data in self.sets())

    def sets(self) -> list[np.ndarray]:
        """The data sets of the file that it is the turn of."""
        file = self.turn
        if self.params.shuffle:
            file = int(self.draw(0, self.round).permutation(len(self.files))[self.turn])
        if self._read[0] != file:
            self._read = (file, read_sets(self.files[file], self.tops))
        return self._read[1]

    def row(self) -> list[np.ndarray]:
        """The next row of each data set."""
        sets = self.sets()
        row = self.position
        if self.params.shuffle:
            key = (1, self.round, self.turn)
            if self._order[0] != (self.seed, *key):
                self._order = ((self.seed, *key), self.draw(*key).permutation(len(sets[0])))
            row = int(self._order[1][row])
        found = [data[row] for data in sets]
        self.skip(1)
        return found

    def skip(self, rows: int) -> None:
        """Pass over rows."""
        self.position += rows
        while self.position >= (length := len(self.sets()[0])):
            self.position -= length
            self.turn += 1
            if self.turn == len(self.files):
                self.round, self.turn = self.round + 1, 0

    def forward(self) -> tuple[Tensor, ...]:
        own, after = share(0, self.params.batch_size)
        self.skip(own.start)
        rows = [self.row() for _ in own]
        self.skip(after - own.stop)
        tops = []
        for name, column in zip(self.tops, zip(*rows, strict=True), strict=True):
            if len(shapes := {row.shape for row in column}) > 1:
                raise ValueError(f'data set "{name}" has rows of several shapes: {sorted(shapes)}')
            tops.append(torch.from_numpy(np.stack(column)))
        return tuple(tops)

    def get_extra_state(self) -> Tensor:
        """Seed, row, round and turn."""
        return torch.tensor([self.seed, self.position, self.round, self.turn])

    def set_extra_state(self, state: Any) -> None:
        self.seed, self.position, self.round, self.turn = (int(value) for value in state)
