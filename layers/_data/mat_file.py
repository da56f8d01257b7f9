"""MATLAB's files (``.mat``) of versions 5 to 7 and 4, read in Python: damage is a ValueError, no crash.

What comes is what :func:`scipy.io.loadmat` gives by default, which damage can make crash, but:

- Numbers have their class's dtype, whichever smaller one they are stored in, and the machine's byte
  order. A logical array is uint8, a sparse one bool; any other sparse matrix float64 or complex128.
- Characters that are stored as uint16 are UTF-16.
- An object is its struct; what is opaque has strings instead of bytes.
- Only variables come: nothing of the file's head, nor what functions keep in the file.
- Two variables of one name are refused, and sparse matrices of version 4.

Every size is held against what it lies in before anything is allocated; what reading takes beyond the
file's own size (compressed bytes, wider numbers, characters, many small arrays) against ``MOST``.

A net of 100 MB takes 65 ms, and compressed 0.41 s, where loadmat takes 64 ms and 0.40 s; a file of one
small array 22 us, where it takes 36; each array within a cell 5 us, where it takes 2.

Source of the formats: The MathWorks, "MAT-File Format".
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .files import open_file

Array = npt.NDArray[Any]

MOST = 2**30
"""The bytes that reading a file may take beyond the file's own size."""

_ARRAY, _FIELD = 256, 512  # bytes: what an array takes beside its values, and a struct's field
_DEEPEST = 64  # cells and structs within one another
_MOST_AXES = 32  # NumPy's own, before 2.0
_BLOCK = 2**14  # compressed bytes at once, of which at most 1032 times as many come out

_HEAD = 128
_HDF5 = b"\x89HDF\r\n\x1a\n"
_ORDERS = {b"IM": "<", b"MI": ">"}

_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED, _UTF8 = 1, 5, 6, 14, 15, 16
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXTS = {1: "ascii", 2: "ascii", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}

_CELL, _STRUCT, _OBJECT, _CHAR, _SPARSE, _FUNCTION, _OPAQUE = 1, 2, 3, 4, 5, 16, 17
_NUMERIC = "f8 f4 i1 u1 i2 u2 i4 u4 i8 u8"
_CLASSES = {6 + i: np.dtype(name) for i, name in enumerate(_NUMERIC.split())}
_LOGICAL, _COMPLEX = 1 << 9, 1 << 11  # flags of a matrix

_LEVEL4 = ["f8", "f4", "i4", "i2", "u2", "u1"]


def read(path: str | Path) -> dict[str, Any]:
    """The variables of a file by name, each as ``scipy.io.loadmat(path)`` gives it; see the module.

    Arrays of at least two axes in MATLAB's order; strings [rows] of the columns' length; structs with
    fields of objects and cells of objects; sparse matrices as ``scipy.sparse.csc_matrix``. Raises
    OSError for what is no file, and ValueError that names one that is damaged, of another version (7.3
    is HDF5), or takes more than ``MOST`` bytes beyond its own.
    """
    with open_file(path) as stream:
        try:
            return _read(stream)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def _read(stream: BufferedReader) -> dict[str, Any]:
    head = stream.read(_HEAD)
    order = _ORDERS.get(head[126:], "")
    version = head[124 + (order == "<")] if order else 0
    if 0 in head[:4]:  # never in the text that a newer file begins with
        stream.seek(0)
        variables = _level4(stream)
    elif version == 2 or head.startswith(_HDF5):
        raise ValueError("MATLAB's version 7.3 is not read: save it with -v7")
    elif version == 1:
        variables = _Level5(stream, order).variables()
    else:
        raise ValueError('not a MAT file: expected its version and "IM" or "MI" at byte 124')
    found: dict[str, Any] = {}
    for name, value in variables:
        if name in found:
            raise ValueError(f'two variables are called "{name}"')
        found[name] = value
    return found


def _left(stream: BufferedReader) -> int:
    return os.fstat(stream.fileno()).st_size - stream.tell()


def _expect(stream: BufferedReader, size: int) -> None:
    if size > _left(stream):
        raise ValueError(f"cut short: {size} bytes expected, {_left(stream)} are there")


def _take(stream: BufferedReader, size: int) -> bytearray:
    """The next bytes of the file."""
    _expect(stream, size)
    data = bytearray(size)
    if stream.readinto(data) < size:
        raise ValueError("cut short while it was read")
    return data


def _converted(values: Array, dtype: np.dtype[Any]) -> Array:
    with np.errstate(invalid="ignore", over="ignore"):
        converted = values.astype(dtype)
        if dtype.kind in "iu" and not np.array_equal(converted, values):
            raise ValueError(f"expected {dtype}, got other values in {values.dtype}")
    return converted


def _complex(real: Array, imaginary: Array) -> Array:
    found = real.astype(np.complex64 if real.dtype == np.float32 else np.complex128)
    found.imag = imaginary
    return found


def _strings(text: str, shape: tuple[int, ...]) -> Array:
    """Strings of the last axis's characters."""
    if len(text) != math.prod(shape):
        raise ValueError(f"expected {math.prod(shape)} characters, got {len(text)}")
    *outer, last = shape
    if not text:
        return np.empty(outer if last else (*outer[:-1], 0), "U1")
    characters = np.ndarray(shape, "<U1", bytearray(text.encode("utf-32-le")), order="F")
    return np.ascontiguousarray(characters).view(f"<U{last}").reshape(outer)


class _Level5:
    """A file of version 5 to 7: variables, compressed or not, one after another."""

    def __init__(self, stream: BufferedReader, order: str) -> None:
        self.stream, self.order = stream, order
        self.tag = struct.Struct(order + "II")  # type and size of an element
        self.most = MOST

    def spend(self, size: int) -> None:
        self.most -= size
        if self.most < 0:
            hint = "save it in parts, or without compression (-v6)"
            raise ValueError(f"the file takes more than {MOST:,} bytes beyond its own: {hint}")

    def variables(self) -> Iterator[tuple[str, Any]]:
        while _left(self.stream):
            at = self.stream.tell()
            self.spend(_ARRAY)
            try:
                name, value = _Matrix(self, self.variable()).read()
            except ValueError as error:
                raise ValueError(f"the variable at byte {at}: {error}") from None
            if name:  # else what functions keep aside
                yield name, value

    def variable(self) -> memoryview:
        """The bytes of the next matrix."""
        type, size = self.tag.unpack(_take(self.stream, 8))
        if type == _COMPRESSED:
            return self.inflate(size)
        self.expect_matrix(type)
        return memoryview(_take(self.stream, size))

    def expect_matrix(self, type: int) -> None:
        if type != _MATRIX:
            raise ValueError(f"expected a matrix, got an element of type {type}")

    def inflate(self, size: int) -> memoryview:
        """The bytes of a matrix that is compressed, with its tag, into the next ``size`` bytes. The
        stream's end may be missing, as MATLAB leaves it at times."""
        _expect(self.stream, size)
        blocks: Iterator[bytes | bytearray] = (
            _take(self.stream, min(_BLOCK, size - at)) for at in range(0, size, _BLOCK)
        )
        stream, found = zlib.decompressobj(), bytearray()
        try:
            tag = stream.decompress(next(blocks, b""), 8)
            if len(tag) < 8:
                raise ValueError("the compressed bytes are cut short")
            type, inside = self.tag.unpack(tag)
            self.expect_matrix(type)
            self.spend(inside)
            for block in chain((stream.unconsumed_tail,), blocks):
                found += stream.decompress(block, inside + 1 - len(found))
                if len(found) > inside:
                    raise ValueError(f"more than the expected {inside} bytes are compressed")
        except zlib.error as error:
            raise ValueError(f"the compressed bytes are damaged: {error}") from None
        if len(found) < inside:
            raise ValueError(f"expected {inside} bytes compressed, got {len(found)}")
        return memoryview(found)


class _Matrix:
    """A matrix of version 5 to 7: elements one after another, some of them matrices again."""

    __slots__ = ("at", "data", "depth", "end", "file")

    def __init__(
        self, file: _Level5, data: memoryview, at: int = 0, end: int | None = None, depth: int = 1
    ) -> None:
        self.file, self.data, self.depth = file, data, depth
        self.at, self.end = at, len(data) if end is None else end

    def read(self) -> tuple[str, Any]:
        """Its name and value."""
        flags = self.flags()
        kind = flags & 0xFF
        if kind == _OPAQUE:
            name, value = self.opaque()
        else:
            shape = self.ints("an array's sizes")
            if len(shape) < 2:
                raise ValueError(f"expected two sizes or more of an array, got {len(shape)}")
            name, value = self.string("a name"), self.value(kind, flags, shape)
        if self.at < self.end:
            raise ValueError(f"{self.end - self.at} bytes too many at byte {self.at}")
        return name, value

    def value(self, kind: int, flags: int, shape: tuple[int, ...]) -> Any:
        if kind in _CLASSES:
            return self.numeric(shape, _CLASSES[kind], bool(flags & _COMPLEX))
        if kind == _CHAR:
            return self.characters(shape)
        if kind == _CELL:
            return self.cells(shape)
        if kind == _OBJECT:
            self.string("a class's name")
        if kind in (_STRUCT, _OBJECT):
            return self.structs(shape)
        if kind == _SPARSE:
            return self.sparse(shape, flags)
        if kind == _FUNCTION:
            return self.matrix()
        raise ValueError(f"expected an array of a class up to {_OPAQUE}, got {kind}")

    # Elements

    def take(self, what: str) -> tuple[int, int, int]:
        """The next element's type, first byte and size."""
        begin = self.at + 8
        if begin > self.end:
            raise ValueError(f"expected {what} at byte {self.at}, got the end of its matrix")
        type, size = self.file.tag.unpack_from(self.data, self.at)
        if type > 0xFFFF:  # a small one: the size lies in the type's upper half, the bytes in the tag
            type, size, begin, end = type & 0xFFFF, type >> 16, self.at + 4, self.at + 8
        else:
            end = self.end
        if size > end - begin:
            raise ValueError(f"expected {what} at byte {self.at}, got {size} bytes in {end - begin}")
        self.at = min(begin + size + 7 & ~7, self.end)
        return type, begin, size

    def flags(self) -> int:
        type, begin, size = self.take("an array's flags")
        if (type, size) != (_UINT32, 8):
            raise ValueError(f"expected an array's flags, got {size} bytes of type {type}")
        flags: int = self.file.tag.unpack_from(self.data, begin)[0]
        return flags

    def ints(self, what: str) -> tuple[int, ...]:
        type, begin, size = self.take(what)
        if type not in (_INT32, _UINT32) or size % 4 or size > 4 * _MOST_AXES:
            raise ValueError(f"expected {what}, got {size} bytes of type {type}")
        values = struct.unpack_from(f"{self.file.order}{size // 4}i", self.data, begin)
        if min(values, default=0) < 0:
            raise ValueError(f"expected {what}, got {values}")
        return values

    def string(self, what: str) -> str:
        type, begin, size = self.take(what)
        if type not in (_INT8, _UTF8):
            raise ValueError(f"expected {what}, got an element of type {type}")
        return str(self.data[begin : begin + size], "latin1" if type == _INT8 else "utf-8")

    def numbers(self, shape: tuple[int, ...] | None = None) -> Array:
        """Values as they are stored; all of them where no shape is given."""
        type, begin, size = self.take("values")
        if type not in _NUMBERS:
            raise ValueError(f"expected values, got an element of type {type}")
        dtype = np.dtype(self.file.order + _NUMBERS[type])
        if shape is None:
            shape = (size // dtype.itemsize,)
        if math.prod(shape) * dtype.itemsize != size:
            raise ValueError(f"expected {list(shape)} values of {dtype}, got {size} bytes")
        return np.ndarray(shape, dtype, self.data, begin, order="F")

    def matrix(self) -> Any:
        """A matrix within this one."""
        type, begin, size = self.take("a matrix")
        self.file.expect_matrix(type)
        if self.depth == _DEEPEST:
            raise ValueError(f"more than {_DEEPEST} cells or structs within one another")
        self.file.spend(_ARRAY)
        if not size:
            return np.zeros((1, 0))
        return _Matrix(self.file, self.data, begin, begin + size, self.depth + 1).read()[1]

    def expect_matrices(self, count: int) -> None:
        if 8 * count > self.end - self.at:
            raise ValueError(f"expected {count} matrices in {self.end - self.at} bytes")

    # Classes

    def converted(self, values: Array, dtype: np.dtype[Any]) -> Array:
        if values.dtype == dtype:
            return values
        self.file.spend(values.size * dtype.itemsize)
        return _converted(values, dtype)

    def numeric(self, shape: tuple[int, ...], dtype: np.dtype[Any], is_complex: bool) -> Array:
        values = self.converted(self.numbers(shape), dtype)
        if not is_complex:
            return values
        self.file.spend(16 * values.size)
        return _complex(values, self.converted(self.numbers(shape), dtype))

    def characters(self, shape: tuple[int, ...]) -> Array:
        type, begin, size = self.take("characters")
        if type not in _TEXTS:
            raise ValueError(f"expected characters, got an element of type {type}")
        codec = _TEXTS[type]
        if codec in ("utf-16", "utf-32"):
            codec += "-le" if self.file.order == "<" else "-be"
        count = math.prod(shape)
        self.file.spend(16 * count if size else _ARRAY * count)
        text = str(self.data[begin : begin + size], codec, "replace")
        return _strings(text if size else " " * count, shape)  # of blanks, some writers store none

    def cells(self, shape: tuple[int, ...]) -> Array:
        count = math.prod(shape)
        self.expect_matrices(count)
        cells = np.empty(count, object)
        for i in range(count):
            cells[i] = self.matrix()
        return cells.reshape(shape, order="F")

    def structs(self, shape: tuple[int, ...]) -> Array:
        count, fields = math.prod(shape), self.fields()
        if not fields:
            self.file.spend(_ARRAY * count)
            return np.empty(shape, object, order="F")
        self.expect_matrices(count * len(fields))
        structs = np.empty(count, [(name, object) for name in fields])
        for i in range(count):
            structs[i] = tuple([self.matrix() for _ in fields])
        return structs.reshape(shape, order="F")

    def fields(self) -> list[str]:
        """The names of a struct's fields; one that repeats is numbered."""
        lengths, names = self.ints("the length of field names"), self.string("field names")
        if len(lengths) != 1 or (names and (not lengths[0] or len(names) % lengths[0])):
            raise ValueError(f"expected the length of field names, got {lengths} of {len(names)}")
        fields: list[str] = []
        seen: Counter[str] = Counter()
        for at in range(0, len(names), lengths[0] or 1):
            self.file.spend(_FIELD)
            name = names[at : at + lengths[0]].split("\0")[0]
            fields.append(f"_{seen[name]}_{name}" if name in seen else name)
            seen[name] += 1
        return fields

    def sparse(self, shape: tuple[int, ...], flags: int) -> Any:
        from scipy.sparse import csc_matrix

        if len(shape) != 2:
            raise ValueError(f"expected two sizes of a sparse matrix, got {len(shape)}")
        rows, starts = self.numbers(), self.numbers()[: shape[1] + 1]
        if rows.dtype.kind not in "iu" or starts.dtype.kind not in "iu":
            raise ValueError("expected integers for where a sparse matrix's values are")
        count = int(starts[-1]) if len(starts) == shape[1] + 1 else -1
        if not 0 <= count <= len(rows) or starts[0] != 0 or (starts[1:] < starts[:-1]).any():
            raise ValueError("expected where each column of a sparse matrix starts")
        rows = rows[:count]
        if (rows < 0).any() or (rows >= shape[0]).any():
            raise ValueError(f"expected rows below {shape[0]} in a sparse matrix")
        self.file.spend(16 * (len(rows) + len(starts)))
        values = self.nonzeros(count, flags)
        return csc_matrix((values, rows.astype(np.int64), starts.astype(np.int64)), shape)

    def nonzeros(self, count: int, flags: int) -> Array:
        """A sparse matrix's values, after which there may be room for more."""
        begin = self.at
        if flags & _LOGICAL:
            _, first, size = self.take("values")
            if size == count:  # a byte each, whatever type is declared
                return np.ndarray(count, np.uint8, self.data, first) != 0
            self.at = begin
        parts = [
            self.converted(self.numbers()[:count], np.dtype(np.float64))
            for _ in ("real", "imaginary")[: 2 if flags & _COMPLEX else 1]
        ]
        if min(map(len, parts)) < count:
            raise ValueError(f"expected {count} values of a sparse matrix")
        if flags & _LOGICAL:
            return parts[0] != 0
        return _complex(*parts) if flags & _COMPLEX else parts[0]

    def opaque(self) -> tuple[str, Array]:
        """An object of a kind that only MATLAB knows: its name, system, class, and what is stored."""
        name, system, kind = (self.string(what) for what in ("a name", "a system", "a class's name"))
        found = np.empty(1, [(field, object) for field in ("s0", "s1", "s2", "arr")])
        found[0] = name, system, kind, self.matrix()
        return name, found


def _level4(stream: BufferedReader) -> Iterator[tuple[str, Array]]:
    """The variables of a file of version 4: double or text, of two axes."""
    while _left(stream):
        at = stream.tell()
        try:
            yield _variable4(stream)
        except ValueError as error:
            raise ValueError(f"the variable of version 4 at byte {at}: {error}") from None


def _variable4(stream: BufferedReader) -> tuple[str, Array]:
    head = _take(stream, 20)
    order = "<" if int.from_bytes(head[:4], "little") < 5000 else ">"
    kind, *shape, imaginary, length = struct.unpack(order + "5i", head)
    machine, zero, stored, kind = kind // 1000, kind // 100 % 10, kind // 10 % 10, kind % 10
    sound = min(*shape, length - 1) >= 0 and imaginary in (0, 1) and kind <= 2 and not zero
    if machine != (order == ">") or stored >= len(_LEVEL4) or not sound:
        raise ValueError("expected the head of an array of IEEE numbers")
    if kind == 2:
        raise ValueError("a sparse matrix of version 4 is not read")
    name = _take(stream, length).strip(b"\0").decode("latin1")
    dtype = np.dtype(order + _LEVEL4[stored])
    size, count = math.prod(shape) * dtype.itemsize, 1 + imaginary
    data = _take(stream, count * size)
    parts = [np.ndarray(shape, dtype, data, i * size, order="F") for i in range(count)]
    if kind == 1:
        text = _converted(parts[0], np.dtype(np.uint8)).tobytes("F").decode("latin1")
        return name, _strings(text, tuple(shape))
    numbers = [_converted(part, np.dtype(np.float64)) for part in parts]
    return name, _complex(*numbers) if imaginary else numbers[0]
