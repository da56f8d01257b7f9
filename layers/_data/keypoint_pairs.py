"""Pairs of images with annotated points: the records of the data sets' readers, and what these share.

A reader is a sequence of the pairs of one split: it has a length, an index and an iteration, keeps
the list of the pairs, and reads the annotation of a pair when it is asked for. Readers are found by
name (:func:`open_pairs`), because their files lie in ``layers/data/``. Points are (x, y) in pixels of
the image as it is stored, in the annotation's own numbers.

All that is missing or damaged is a ValueError that names the file (its line), and what was expected.
"""

from __future__ import annotations

import csv
import hashlib
import inspect
import io
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from .._engine import registry
from .._geometry.motion import Motion
from . import mat_file
from .files import open_file, read_text
from .images import SUFFIXES

Array = npt.NDArray[np.float64]
Rows = TypeVar("Rows", bound=Sequence[Any])
SPLITS = ("trn", "val", "test")


@dataclass(frozen=True, eq=False)
class ImagePair:
    """Two images, and the points of the first, float64 [K, 2], that are to be found in the second."""

    image1: Path
    image2: Path
    points1: Array
    category: str
    name: str

    @property
    def identical(self) -> bool:
        """Whether both images are the same file, or files of the same bytes."""
        if self.image1 == self.image2:
            return True
        same_size = self.image1.stat().st_size == self.image2.stat().st_size
        return same_size and digest(self.image1) == digest(self.image2)


@dataclass(frozen=True, eq=False)
class KeypointPair(ImagePair):
    """A pair whose key points are known in both images: ``points1[k]`` corresponds to ``points2[k]``.

    points2: float64 [K, 2]; length: PCK's unit T in pixels of image 2, by the benchmark's own rule.
    signs: float64 [K], 1 where they do and 0 where the two points are known not to; None: all do.
    motion: how the camera moved between the images, where that is known.
    """

    points2: Array
    length: float
    signs: Array | None = None
    motion: Motion | None = None


@dataclass(frozen=True, eq=False)
class OutlinePair(ImagePair):
    """A pair of objects' outlines: ``points1`` are the vertices of the first, in order.

    outline2: float64 [L, 2], the vertices of the second, which do not correspond to the first's.
    """

    outline2: Array


class PairReader(ABC):
    """The pairs of one split of a data set: ``len(pairs)``, ``pairs[n]``, ``for pair in pairs``.

    ``pixels`` says whether thresholds of PCK are pixels: every pair's T is 1, and its points are all
    that are known, of which a user draws some. ``left_out`` counts listed pairs without common points.
    """

    rows: Sequence[Any]
    pixels: ClassVar[bool] = False
    left_out: int = 0

    @abstractmethod
    def read(self, row: Any) -> ImagePair:
        """The pair of one of the rows; raises ValueError where it cannot be read."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> ImagePair:
        return self.read(self.rows[number])

    def __iter__(self) -> Iterator[ImagePair]:
        return map(self.read, self.rows)


R = TypeVar("R", bound=Callable[..., PairReader])
_readers: dict[str, Callable[..., PairReader]] = {}
_sources: dict[str, str] = {}


def reader(name: str, of: str = "DIR") -> Callable[[R], R]:
    """Make a reader, which is opened by (folder, split, options), known to :func:`open_pairs`.

    of: what stands behind the colon where it is asked for, a folder (DIR), a FILE, or a word. Options
    are text where they come from a command or a spec: :func:`as_flag` and the like read them.
    """

    def decorate(cls: R) -> R:
        _readers[name], _sources[name] = cls, f"{name}:{of}"
        return cls

    return decorate


def readers() -> dict[str, Callable[..., PairReader]]:
    """Every data set's reader by its name, sorted."""
    registry.scan()
    return dict(sorted(_readers.items()))


def sources() -> dict[str, str]:
    """How every data set is asked for, such as ``pf-pascal:DIR``, by its name, sorted."""
    return {name: _sources.get(name, f"{name}:DIR") for name in readers()}


def open_pairs(source: str, split: str = "", **options: object) -> PairReader:
    """The pairs of a data set in a folder, ``pf-pascal:DIR``; options are those of its reader.

    split: where the data set has several; empty: the reader's own choice, which is ``test`` if there is
    one. Raises ValueError for an unknown data set, split or option, and where the reader does.
    """
    known = readers()
    name, _, folder = source.partition(":")
    if name not in known:
        names = ", ".join(sources().values())
        raise ValueError(f'unknown data set "{source}": expected one of {names}')
    if not folder:
        expected = "expected a folder (or list file) after the colon"
        raise ValueError(f"{name}: {expected}, {sources()[name]}")
    takes = [*inspect.signature(known[name]).parameters][2:]
    for option in options:
        if option not in takes:
            raise ValueError(f"{name} has no {option}" + f" (it has {', '.join(takes)})" * bool(takes))
    given = {"split": split} if split else {}
    return known[name](folder, **given, **options)


def digest(path: str | Path) -> str:
    """A digest of a file's bytes, kept while its size and time of change stay the same."""
    stat = os.stat(path)
    return _digest(str(path), stat.st_size, stat.st_mtime_ns)


@cache
def _digest(path: str, size: int, changed: int) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Row(NamedTuple):
    """A line of a list: ``FILE:LINE`` and its columns."""

    place: str
    cells: list[str]


def read_rows(
    path: Path,
    least: int,
    columns: str,
    files: int = 1,
    suffixes: Iterable[str] = SUFFIXES,
    comment: str | None = None,
) -> list[Row]:
    """The rows of a csv file, their cells without spaces around them.

    Left out are empty lines, those that begin with ``comment``, and the head: a first row that has none
    of the suffixes in its first ``files`` columns. Raises ValueError for a row of fewer columns than
    ``least``, which are those that ``columns`` names.
    """
    rows: list[Row] = []
    known, first = {*suffixes}, True
    lines = csv.reader(io.StringIO(read_text(path, "the list of pairs"), newline=""))
    try:
        for line in lines:
            cells = [cell.strip() for cell in line]
            if not any(cells) or (comment and cells[0].startswith(comment)):
                continue
            head = first and not known & {Path(cell).suffix.lower() for cell in cells[:files]}
            first = False
            if head:
                continue
            place = f"{path}:{lines.line_num}"
            if any("\0" in cell for cell in cells):
                raise ValueError(f"{place}: expected a line of csv, found a character 0")
            if len(cells) < least:
                raise ValueError(f"{place}: expected the columns {columns}, found {len(cells)}")
            rows.append(Row(place, cells))
    except csv.Error as error:
        raise ValueError(f"{path}:{lines.line_num}: expected a line of csv: {error}") from None
    return rows


def finite_number(text: str) -> float | None:
    """The finite number that a cell holds; None for anything else."""
    try:
        value = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def numbers(row: Row, columns: range) -> Array:
    """The finite numbers of some columns (0-based), each one or several set apart by semicolons."""
    found = []
    for column in columns:
        for text in row.cells[column].rstrip("; ").split(";"):
            if (value := finite_number(text)) is None:
                raise ValueError(f'{row.place}: column {column + 1}: expected a number, found "{text}"')
            found.append(value)
    return np.array(found)


def polygon(row: Row, column: int) -> Array:
    """The points [K, 2] whose x stand in one column and whose y in the next, set apart by ``;``."""
    x, y = (numbers(row, range(c, c + 1)) for c in (column, column + 1))
    if len(x) != len(y):
        found = f"columns {column + 1} and {column + 2} have {len(x)} and {len(y)} numbers"
        raise ValueError(f"{row.place}: expected as many x as y, {found}")
    return np.stack([x, y], 1)


def read_variable(path: Path, name: str, shape: tuple[int | None, ...]) -> Array:
    """A variable of a ``.mat`` file, numbers of this shape (None: any length), as float64."""
    try:
        found = mat_file.read(path)
    except OSError as error:
        raise ValueError(f'cannot read the annotation "{path}": {error.strerror or error}') from None
    if name not in found:
        raise ValueError(f"{path}: expected {name}, found {', '.join(found) or 'no variable'}")
    return as_numbers(found[name], shape, f"{path}: {name}")


def as_numbers(value: Any, shape: tuple[int | None, ...], what: str) -> Array:
    """What an annotation holds as float64 of this shape; raises ValueError for anything else."""
    wanted = f"{what}: expected numbers [{', '.join('K' if n is None else str(n) for n in shape)}]"
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(f"{wanted}, found lists of different lengths") from None
    fits = array.ndim == len(shape) and all(
        n in (None, m) for n, m in zip(shape, array.shape, strict=True)
    )
    if array.dtype.kind not in "iuf" or not fits:
        kind = "" if array.dtype.kind in "iuf" else f" of {array.dtype}"
        raise ValueError(f"{wanted}, found {list(array.shape)}{kind}")
    return array.astype(np.float64)


def finite(values: Array, what: str) -> Array:
    """The same values; raises ValueError where one is NaN or infinite."""
    if not np.isfinite(values).all():
        raise ValueError(f"{what}: expected finite numbers, found {values[~np.isfinite(values)][0]}")
    return values


def longer_span(low: Array, high: Array, what: str) -> float:
    """max(w, h) of a box between two corners; raises ValueError where that is not above 0."""
    length = float((high - low).max())
    if not 0 < length < math.inf:
        found = f"{low.tolist()} to {high.tolist()}"
        raise ValueError(f"{what}: expected a box larger than a point, found {found}")
    return length


def some(rows: Rows, listed: Path, holds: str = "pairs of images") -> Rows:
    """The rows of a list or folder; raises ValueError where there are none, saying what it should
    hold."""
    if not rows:
        raise ValueError(f"{listed}: expected {holds}, found none")
    return rows


def as_options(texts: Iterable[str]) -> dict[str, str]:
    """Options written NAME=VALUE, of a command or a spec; raises ValueError for anything else, for a
    name given twice, and for source and split, which are no options."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name in ("", "source", "split", *found):
            raise ValueError(f'option: expected NAME=VALUE, each name once, got "{text}"')
        found[name] = value
    return found


def as_flag(value: object, name: str) -> bool:
    """An option that is yes or no, of a command or a spec too; raises ValueError for anything else."""
    found = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
    if str(value).lower() not in found:
        raise ValueError(f'{name}: expected yes or no, got "{value}"')
    return found[str(value).lower()]


def as_count(value: object, name: str) -> int:
    """An option that is a whole number of at least 1; raises ValueError for anything else."""
    text = str(value)
    if not (text.isascii() and text.isdecimal() and len(text) < 18 and int(text)):
        raise ValueError(f'{name}: expected a whole number of at least 1, got "{value}"')
    return int(text)


def as_others(value: object, last: int) -> tuple[int, ...]:
    """The option ``to`` of sequences whose pairs are image 1 and image n: which n of 2 to ``last``,
    such as ``2,3``, or a sequence of numbers; raises ValueError for anything else."""
    parts = value if isinstance(value, (list, tuple)) else str(value).split(",")
    texts = {str(part).strip() for part in parts}
    if not texts or not texts <= {str(n) for n in range(2, last + 1)}:
        raise ValueError(f'to: expected numbers of images such as 2,3, up to {last}, got "{value}"')
    return tuple(sorted(map(int, texts)))


def expect_split(split: str, splits: tuple[str, ...]) -> str:
    """The split; raises ValueError where it is none of those that the data set has."""
    if split not in splits:
        raise ValueError(f'no split "{split}": expected {" or ".join(splits)}')
    return split


def expect_folder(path: str | Path, holds: str) -> Path:
    """The folder; raises ValueError where there is none, saying what it should hold."""
    if not os.path.isdir(path):  # False for a name that is too long, of which Path raises OSError
        raise ValueError(f'no folder "{path}": expected {holds}')
    return Path(path)


def expect_image(path: Path, place: str) -> Path:
    """The file; raises ValueError where it is missing, naming the place that calls for it."""
    if not os.path.isfile(path):  # as above
        raise ValueError(f'{place}: no image "{path}"')
    return path
