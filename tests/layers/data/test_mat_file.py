"""The reader of MATLAB's files against SciPy's, and against damage."""

from __future__ import annotations

import os
import re
import struct
import tracemalloc
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io.matlab
from cortado.layers._data import mat_file
from scipy.io import loadmat, savemat
from scipy.sparse import csc_matrix, issparse
from shared import SHARED, needs_shared

CLASSES = ["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"]  # MATLAB's classes from 6 on
TYPES = {"i1": 1, "u1": 2, "i2": 3, "u2": 4, "i4": 5, "u4": 6, "f4": 7, "f8": 9, "i8": 12, "u8": 13}
CELL, STRUCT, OBJECT, CHAR, SPARSE, DOUBLE, INT8, UINT8 = 1, 2, 3, 4, 5, 6, 8, 9
FUNCTION, OPAQUE = 16, 17
MATRIX, COMPRESSED = 14, 15
LOGICAL, COMPLEX = 1 << 9, 1 << 11


def theirs(path: Path, **options: Any) -> dict[str, Any]:
    return {name: value for name, value in loadmat(path, **options).items() if name[:2] != "__"}


def expect_same(found: Any, expected: Any, dtypes: bool = True) -> None:
    """``dtypes``: those of numbers too, but that ours have the machine's byte order."""
    if not isinstance(expected, np.ndarray) and not issparse(expected):
        assert found == (expected.decode() if isinstance(expected, bytes) else expected)
        return
    assert found.shape == expected.shape
    if issparse(expected):
        assert found.dtype == {"b": bool, "c": complex}.get(expected.dtype.kind, float)
        np.testing.assert_array_equal(found.toarray(), expected.toarray())
        return
    assert type(found) is np.ndarray
    assert found.dtype.names == expected.dtype.names
    for name in expected.dtype.names or ():
        expect_same(found[name], expected[name], dtypes)
    if expected.dtype.names is None and expected.dtype == object:
        for one, other in zip(found.flat, expected.flat, strict=True):
            expect_same(one, other, dtypes)
    elif expected.dtype.names is None:
        assert found.flags.writeable
        assert found.flags.aligned
        assert found.dtype.isnative
        if dtypes or expected.dtype.kind == "U":
            assert found.dtype == expected.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found, expected)


def expect_as_theirs(path: Path, dtypes: bool = True) -> dict[str, Any]:
    found, expected = mat_file.read(path), theirs(path)
    assert list(found) == [name for name in expected if name != "__function_workspace__"]
    for name, value in found.items():
        expect_same(value, expected[name], dtypes)
    return found


def cells(*items: Any) -> np.ndarray:
    array = np.empty((1, len(items)), object)
    array[0] = items
    return array


def some_value(rng: np.random.Generator, depth: int = 0) -> Any:
    """Anything that savemat writes."""
    kind = rng.integers(4 if depth > 3 else 6)
    shape = tuple(rng.integers(0, 4, rng.choice([2, 2, 2, 3, 4])))
    if kind < 2:
        values = rng.integers(-100, 100, shape).astype(rng.choice([*CLASSES, "?", "c8", "c16"]))
        if values.dtype.kind in "fc" and values.size:
            values.flat[0] = rng.choice([np.nan, np.inf, 0.1])
        return values
    if kind == 2:
        letters = np.array(["a", "Zürich", "ひらがな", "😀", "", "conv1_1"])
        return rng.choice(letters, rng.choice([0, 1, 1, 2, 3]))
    if kind == 3:
        return csc_matrix(rng.integers(-1, 2, shape[:2]).astype(rng.choice(["f8", "c16"])))
    if kind == 4:
        array = np.empty(shape, object)
        for at in np.ndindex(array.shape):
            array[at] = some_value(rng, depth + 1)
        return array
    names = [f"field{i}" for i in range(rng.integers(1, 4))]
    structs = np.empty(shape[:2], [(name, object) for name in names])
    for at in np.ndindex(structs.shape):
        structs[at] = tuple(some_value(rng, depth + 1) for _ in names)
    return structs


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", [*CLASSES, "?", "c8", "c16"])
def test_numbers(tmp_path: Path, dtype: str, compressed: bool) -> None:
    shapes = [(0, 0), (1, 1), (0, 3), (2, 3), (2, 3, 4), (3, 0, 2), (2, 1, 1, 1, 2)]
    arrays = [(np.arange(np.prod(shape)) % 100).reshape(shape).astype(dtype) for shape in shapes]
    content = {f"x{i}": array for i, array in enumerate(arrays)}
    savemat(tmp_path / "x.mat", content, do_compression=compressed)
    found = expect_as_theirs(tmp_path / "x.mat")
    for name, values in content.items():
        assert found[name].dtype == (np.uint8 if dtype == "?" else dtype)
        np.testing.assert_array_equal(found[name], values)


OTHERS = {
    "no text": "",
    "text": "one two",
    "unicode": "Zürich ひらがな 😀",
    "texts": np.array(["one", "three"]),
    "texts of two axes": np.array([["ab", "c"]] * 3),
    "texts of nothing": np.array(["", ""]),
    "a struct without fields": {"a": {}, "b": cells({}, {})},
    "structs": {"a": [], "b": {"c": "d"}},
    "an array of structs": np.zeros((2, 3), [("a", object), ("b", "f4")]),
    "no structs": np.zeros((0, 0), [("a", object)]),
    "cells": [1, "a", [2.5, [True]]],
    "no cells": np.empty((2, 0), object),
    "infinite": np.array([complex(np.inf, 0), complex(0, np.inf), complex(np.nan, 1)]),
    "sparse": csc_matrix(np.array([[0, 1, 0], [2.5, 0, 3]])),
    "sparse and complex": csc_matrix(np.array([[0, 1j, 0], [2, 0, np.inf]])),
}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("value", OTHERS.values(), ids=OTHERS)
def test_other_values(tmp_path: Path, value: Any, compressed: bool) -> None:
    savemat(tmp_path / "x.mat", {"x": value, "y": cells(value, value)}, do_compression=compressed)
    assert list(expect_as_theirs(tmp_path / "x.mat")) == ["x", "y"]


@pytest.mark.parametrize("seed", range(60))
def test_random_values(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    content = {f"x{i}": some_value(rng) for i in range(rng.integers(4))}
    savemat(tmp_path / "x.mat", content, do_compression=seed % 2 == 0)
    expect_as_theirs(tmp_path / "x.mat")


def test_version_4(tmp_path: Path) -> None:
    content = {"empty": np.zeros((0, 0)), "complex": np.array([[1, 2j]]), "text": np.array(["ab", "c"])}
    for dtype in ("f8", "f4", "i4", "i2", "u2", "u1"):
        content[dtype] = np.arange(6).reshape(2, 3).astype(dtype)
    savemat(tmp_path / "x.mat", content, format="4")
    found = expect_as_theirs(tmp_path / "x.mat", dtypes=False)
    assert [found[name].dtype for name in ("u1", "f4", "complex")] == [float, float, complex]


# Files by hand, of both byte orders and with what savemat never writes


def element(type: int, data: bytes, order: str = "<") -> bytes:
    padding = bytes(-len(data) % 8)
    return struct.pack(order + "II", type, len(data)) + data + padding


def small(type: int, data: bytes, order: str = "<") -> bytes:
    return struct.pack(order + "I", len(data) << 16 | type) + data.ljust(4, b"\0")


def values(dtype: str, *numbers: float, order: str = "<") -> bytes:
    return element(TYPES[dtype], np.array(numbers, order + dtype).tobytes(), order)


def matrix(
    kind: int, shape: tuple[int, ...], *content: bytes, name: str = "", flags: int = 0, order: str = "<"
) -> bytes:
    parts = values("u4", kind | flags, 0, order=order) + values("i4", *shape, order=order)
    return element(MATRIX, parts + element(1, name.encode(), order) + b"".join(content), order)


def compressed(data: bytes, order: str = "<") -> bytes:
    packed = zlib.compress(data)
    return struct.pack(order + "II", COMPRESSED, len(packed)) + packed


def file(*variables: bytes, order: str = "<") -> bytes:
    head = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(order + "HH", 0x0100, 0x4D49)
    return head + b"".join(variables)


def everything(order: str) -> bytes:
    """A file of one variable of each kind, the last ones compressed."""

    def make(name: str, kind: int, shape: tuple[int, ...], *content: bytes, flags: int = 0) -> bytes:
        return matrix(kind, shape, *content, name=name, flags=flags, order=order)

    def ints(*numbers: int, dtype: str = "i4") -> bytes:
        return values(dtype, *numbers, order=order)

    def number(*numbers: int) -> bytes:
        return make("", DOUBLE, (1, len(numbers)), ints(*numbers, dtype="u1"))

    def text(type: int, characters: str, encoding: str) -> bytes:
        return element(type, characters.encode(encoding + ("-le" if order == "<" else "-be")), order)

    def fields(length: int, names: bytes) -> tuple[bytes, bytes]:
        return small(5, struct.pack(order + "i", length), order), element(1, names, order)

    two = fields(8, b"one".ljust(8, b"\0") + b"two".ljust(8, b"\0"))
    named = [(6 + i, dtype) for i, dtype in enumerate(CLASSES)]
    variables = [make(name, kind, (2, 2), ints(1, 2, 3, 4, dtype=name)) for kind, name in named]
    variables += [
        make("complex", DOUBLE, (1, 2), ints(1, 2), ints(-3, 4, dtype="i2"), flags=COMPLEX),
        make("logical", UINT8, (1, 2), small(2, b"\1\0", order), flags=LOGICAL),
        make("utf8", CHAR, (1, 3), element(16, "aé😀".encode(), order)),
        make("utf16", CHAR, (2, 2), text(17, "aébひ", "utf-16")),
        make("utf32", CHAR, (1, 2), text(18, "ひ😀", "utf-32")),
        make("uint16", CHAR, (1, 2), text(4, "ab", "utf-16")),
        make("uint8", CHAR, (1, 3), small(2, b"abc", order)),
        make("blank", CHAR, (1, 3), element(1, b"", order)),
        make("cells", CELL, (1, 3), number(1, 2), element(MATRIX, b"", order), make("", CELL, (0, 0))),
        make("object", OBJECT, (1, 1), small(1, b"ob", order), *two, number(), number(3)),
        make("function", FUNCTION, (1, 1), number(5)),
        make(
            "sparse", SPARSE, (2, 3), ints(1, 0, 1, 9), ints(0, 1, 1, 3), ints(5, 6, 7, 0, dtype="u1")
        ),
    ]
    ones = element(TYPES["f8"], b"\1\1", order)  # bytes, whatever their type says
    packed = [
        make("logical_sparse", SPARSE, (2, 3), ints(1, 0), ints(0, 1, 1, 2), ones, flags=LOGICAL),
        make("struct", STRUCT, (2, 1), *two, number(1), number(2), number(3), number(4)),
        make("no_fields", STRUCT, (1, 1), *fields(1, b"")),
    ]
    return file(*variables, *(compressed(data, order) for data in packed), order=order)


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders(tmp_path: Path, order: str) -> None:
    path = tmp_path / "x.mat"
    path.write_bytes(everything(order))
    found = expect_as_theirs(path, dtypes=False)
    assert [found[name].dtype for name in CLASSES] == CLASSES
    assert (found["complex"] == [[1 - 3j, 2 + 4j]]).all()
    assert found["utf16"].tolist() == ["ab", "éひ"]
    assert found["uint16"].tolist() == ["ab"]
    assert found["object"]["two"].item().tolist() == [[3]]
    assert found["sparse"].dtype == float
    assert found["logical_sparse"].dtype == bool


def test_an_opaque_object(tmp_path: Path) -> None:
    parts = [values("u4", OPAQUE, 0), *(element(1, text) for text in (b"x", b"MCOS", b"string"))]
    parts.append(matrix(UINT8, (0, 3), values("u1")))
    (tmp_path / "x.mat").write_bytes(file(element(MATRIX, b"".join(parts))))
    found = mat_file.read(tmp_path / "x.mat")["x"].item()
    assert found[:3] == ("x", "MCOS", "string")
    assert found[3].shape == (0, 3)


@pytest.mark.parametrize("kind", range(10), ids=CLASSES)
def test_the_class_decides_the_dtype(tmp_path: Path, kind: int) -> None:
    path = tmp_path / "x.mat"
    for stored in TYPES:
        path.write_bytes(file(matrix(6 + kind, (1, 2), values(stored, 1, 100), name="x")))
        found = mat_file.read(path)["x"]
        assert found.dtype == loadmat(path, mat_dtype=True)["x"].dtype == CLASSES[kind]
        assert found.tolist() == [[1, 100]]


@pytest.mark.parametrize(
    ("stored", "number"), [("f8", np.nan), ("f4", 0.5), ("i2", 128), ("i1", -1), ("u8", 2**63)]
)
def test_numbers_that_are_not_of_their_class(tmp_path: Path, stored: str, number: float) -> None:
    kind = UINT8 if number == -1 else INT8
    (tmp_path / "x.mat").write_bytes(file(matrix(kind, (1, 1), values(stored, number), name="x")))
    assert re.search(
        f"expected u?int8, got other values in {np.dtype(stored)}$", refusal(tmp_path / "x.mat")
    )


def test_field_names_that_repeat(tmp_path: Path) -> None:
    parts = [small(5, struct.pack("i", 2)), element(1, b"a\0b\0a\0a\0")]
    numbers = [matrix(UINT8, (1, 1), small(2, bytes([i]))) for i in range(4)]
    (tmp_path / "x.mat").write_bytes(file(matrix(STRUCT, (1, 1), *parts, *numbers, name="x")))
    assert expect_as_theirs(tmp_path / "x.mat")["x"].dtype.names == ("a", "b", "_1_a", "_2_a")


def test_a_stream_without_its_end(tmp_path: Path) -> None:
    """As MATLAB leaves it at times."""
    data = matrix(DOUBLE, (1, 3), values("f8", 1, 2, 3), name="x")
    packed = zlib.compress(data)[:-4]
    (tmp_path / "x.mat").write_bytes(file(struct.pack("<II", COMPRESSED, len(packed)) + packed))
    assert expect_as_theirs(tmp_path / "x.mat")["x"].tolist() == [[1, 2, 3]]


# Files that MATLAB wrote


MATLABS = Path(scipy.io.matlab.__file__).parent / "tests" / "data"
REFUSED = {
    "bad_miuint32",
    "corrupted_zlib_checksum",
    "corrupted_zlib_data",
    "debigged_m4",
    "malformed1",
    "testhdf5_7.4_GLNX86",
    "testsparse_4.2c_SOL2",
    "testsparsecomplex_4.2c_SOL2",
}


@pytest.mark.skipif(not MATLABS.is_dir(), reason="SciPy is installed without its tests' files")
@pytest.mark.filterwarnings("ignore")  # loadmat's
def test_files_of_many_versions_of_matlab() -> None:
    paths = sorted(MATLABS.glob("*.mat"))
    assert len(paths) > 90
    refused = set()
    for path in paths:
        try:
            found = mat_file.read(path)
        except ValueError:
            refused.add(path.stem)
            continue
        if path.stem == "bad_miutf8_array_name":  # which loadmat refuses
            assert list(found) == ["äray_name"]
            continue
        expect_as_theirs(path, dtypes=False)
        for name, value in theirs(path, mat_dtype=True).items():
            # loadmat then drops imaginary parts, makes a logical array bool, leaves a sparse one
            if value.dtype.kind in "fiu" and "complex" not in name and "sparse" not in name:
                assert found[name].dtype == value.dtype.newbyteorder("=")
    assert refused == REFUSED & {path.stem for path in paths}


@needs_shared
def test_pf_willow() -> None:
    paths = sorted((SHARED / "data" / "pf_willow").glob("*/*.mat"))
    assert len(paths) == 100
    for path in paths:
        assert expect_as_theirs(path)["pts_coord"].shape == (2, 10)


# Damage


def refusal(path: Path) -> str:
    """Why a file is not read, without its name."""
    with pytest.raises(ValueError) as caught:
        mat_file.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


@needs_shared
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("mat_SIGSEGV", "expected values at byte 872, got the end of its matrix"),
        ("mat_SIGSEGV_2", "expected characters at byte 256, got the end of its matrix"),
        ("mat_UnboundLocalError", "expected an array of a class up to 17, got 129"),
    ],
)
def test_damage_that_loadmat_does_not_survive(name: str, why: str) -> None:
    path = SHARED / "cases" / "hostile" / "min" / f"{name}.mat"
    assert refusal(path) == f"the variable at byte 128: {why}"


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        mat_file.read(tmp_path / "missing.mat")
    os.mkfifo(tmp_path / "fifo.mat")
    for path in (tmp_path / "fifo.mat", tmp_path, Path("/dev/zero")):  # none of which may block
        with pytest.raises(OSError, match=f"{path}"):
            mat_file.read(path)


def says(value: Any) -> str:
    """A test's name."""
    return value if isinstance(value, str) else ""


NO_MAT_FILE = 'not a MAT file: expected its version and "IM" or "MI" at byte 124'
HDF5 = "MATLAB's version 7.3 is not read: save it with -v7"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", NO_MAT_FILE),
        (b"text" * 100, NO_MAT_FILE),
        (file()[:-1], NO_MAT_FILE),
        (file().replace(b"\0\1IM", b"\0\3IM"), NO_MAT_FILE),
        (file().replace(b"\0\1IM", b"\0\2IM") + bytes(400) + b"\x89HDF\r\n\x1a\n", HDF5),
        (file(order=">").replace(b"\1\0MI", b"\2\0MI"), HDF5),
        (b"\x89HDF\r\n\x1a\n" + bytes(400), HDF5),
    ],
    ids=says,
)
def test_other_files(tmp_path: Path, data: bytes, why: str) -> None:
    (tmp_path / "x.mat").write_bytes(data)
    assert refusal(tmp_path / "x.mat") == why


def level4(*head: int, data: bytes = b"") -> bytes:
    """A variable "a" of kind, rows, columns, and whether it is complex."""
    return struct.pack("<5i2s", *head, 2, b"a\0") + data


HEAD4 = "expected the head of an array of IEEE numbers"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (bytes(19), "cut short: 20 bytes expected, 19 are there"),
        (bytes(20), HEAD4),
        (level4(1000, 1, 1, 0), HEAD4),
        (level4(2000, 1, 1, 0), HEAD4),
        (level4(100, 1, 1, 0), HEAD4),
        (level4(60, 1, 1, 0), HEAD4),
        (level4(3, 1, 1, 0), HEAD4),
        (level4(0, -1, -1, 0), HEAD4),
        (level4(0, 1, 1, 2), HEAD4),
        (struct.pack("<5i", 0, 1, 1, 0, 9), "cut short: 9 bytes expected, 0 are there"),
        (
            level4(0, 2**31 - 1, 2**31 - 1, 1),
            f"cut short: {16 * (2**31 - 1) ** 2} bytes expected, 0 are there",
        ),
        (level4(11, 1, 1, 0, data=b"aaaa"), "expected uint8, got other values in float32"),
        (level4(2, 1, 1, 0, data=bytes(8)), "a sparse matrix of version 4 is not read"),
    ],
    ids=says,
)
def test_damage_of_version_4(tmp_path: Path, data: bytes, why: str) -> None:
    (tmp_path / "x.mat").write_bytes(data)
    assert refusal(tmp_path / "x.mat") == f"the variable of version 4 at byte 0: {why}"


ONE = values("f8", 1)
NAMES = element(1, b"a\0b\0")
LENGTH = small(5, struct.pack("<i", 2))
WIDE = 2**31 - 1


def number(*content: bytes, shape: tuple[int, ...] = (1, 1)) -> bytes:
    return matrix(DOUBLE, shape, *content)


def struct_of(*content: bytes, shape: tuple[int, ...] = (1, 1)) -> bytes:
    return matrix(STRUCT, shape, *content)


def sparse(rows: list[int], starts: list[int], *, shape: tuple[int, ...] = (2, 1)) -> bytes:
    return matrix(SPARSE, shape, values("i4", *rows), values("i4", *starts), ONE)


def nested(depth: int) -> bytes:
    data = number(ONE)
    for _ in range(depth - 1):
        data = matrix(CELL, (1, 1), data)
    return data


LENGTHS = "expected the length of field names, got"
STARTS = "expected where each column of a sparse matrix starts"
ROWS = "expected rows below 2 in a sparse matrix"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (bytes(7), "cut short: 8 bytes expected, 7 are there"),
        (bytes(8), "expected a matrix, got an element of type 0"),
        (ONE, "expected a matrix, got an element of type 9"),
        (struct.pack("<II", MATRIX, 2**32 - 1), "cut short: 4294967295 bytes expected, 0 are there"),
        (
            struct.pack("<II", COMPRESSED, 2**32 - 1),
            "cut short: 4294967295 bytes expected, 0 are there",
        ),
        (element(MATRIX, b""), "expected an array's flags at byte 0, got the end of its matrix"),
        (element(MATRIX, ONE), "expected an array's flags, got 8 bytes of type 9"),
        (matrix(18, (1, 1)), "expected an array of a class up to 17, got 18"),
        (number(ONE, shape=(-1, 1)), "expected an array's sizes, got (-1, 1)"),
        (number(ONE, shape=(1,)), "expected two sizes or more of an array, got 1"),
        (number(ONE, shape=(1,) * 33), "expected an array's sizes, got 132 bytes of type 5"),
        (number(ONE, shape=(1, 2)), "expected [1, 2] values of float64, got 8 bytes"),
        (number(ONE, shape=(WIDE,) * 8), f"expected {[WIDE] * 8} values of float64, got 8 bytes"),
        (number(ONE, ONE), "16 bytes too many at byte 56"),
        (number(element(16, b"a")), "expected values, got an element of type 16"),
        (
            number(struct.pack("<II", 9, 2**32 - 1)),
            "expected values at byte 40, got 4294967295 bytes in 0",
        ),
        (number(struct.pack("<II", 5 << 16 | 2, 0)), "expected values at byte 40, got 5 bytes in 4"),
        (matrix(CHAR, (1, 2), element(16, b"a")), "expected 2 characters, got 1"),
        (matrix(CHAR, (1, 2), ONE), "expected characters, got an element of type 9"),
        (matrix(CELL, (WIDE,) * 3), f"expected {WIDE**3} matrices in 0 bytes"),
        (matrix(CELL, (1, 1), ONE), "expected a matrix, got an element of type 9"),
        (nested(65), "more than 64 cells or structs within one another"),
        (struct_of(values("i4", 0), NAMES), f"{LENGTHS} (0,) of 4"),
        (struct_of(values("i4", 3), NAMES), f"{LENGTHS} (3,) of 4"),
        (struct_of(values("i4"), NAMES), f"{LENGTHS} () of 4"),
        (struct_of(LENGTH, ONE), "expected field names, got an element of type 9"),
        (struct_of(LENGTH, NAMES, shape=(9, 9)), "expected 162 matrices in 0 bytes"),
        (matrix(FUNCTION, (1, 1)), "expected a matrix at byte 40, got the end of its matrix"),
        (sparse([1], [0, 1], shape=(1, 1, 1)), "expected two sizes of a sparse matrix, got 3"),
        (matrix(SPARSE, (1, 1), ONE, ONE), "expected integers for where a sparse matrix's values are"),
        (sparse([2], [0, 1]), ROWS),
        (sparse([-1], [0, 1]), ROWS),
        (sparse([1], [0, 2]), STARTS),
        (sparse([1], [1, 1]), STARTS),
        (sparse([1], [0, 2, 1], shape=(2, 2)), STARTS),
        (sparse([1], [0, 1], shape=(2, WIDE)), STARTS),
        (sparse([0, 1], [0, 2]), "expected 2 values of a sparse matrix"),
        (compressed(b""), "the compressed bytes are cut short"),
        (compressed(ONE), "expected a matrix, got an element of type 9"),
        (compressed(number(ONE)[:-1]), "expected 56 bytes compressed, got 55"),
        (compressed(number(ONE) + b"a"), "more than the expected 56 bytes are compressed"),
        (
            compressed(number(ONE))[:-1] + b"a",
            "the compressed bytes are damaged: Error -3 while decompressing data: incorrect data check",
        ),
    ],
    ids=says,
)
def test_damage(tmp_path: Path, data: bytes, why: str) -> None:
    (tmp_path / "x.mat").write_bytes(file(data))
    assert refusal(tmp_path / "x.mat") == f"the variable at byte 128: {why}"


def test_nesting_that_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.mat").write_bytes(file(matrix(CELL, (1, 1), nested(63), name="x")))
    expect_as_theirs(tmp_path / "x.mat")


def test_two_variables_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "x.mat").write_bytes(file(matrix(DOUBLE, (1, 1), ONE, name="a") * 2))
    assert refusal(tmp_path / "x.mat") == 'two variables are called "a"'


def peak(path: Path) -> int:
    """The bytes that it takes to refuse or to read a file."""
    tracemalloc.start()
    with suppress(ValueError):
        mat_file.read(path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


ZEROS = element(2, bytes(2**18))
MANY = (1, 2**18)
STARTS_OF_MANY = values("i4", 0, 2**18)
MUCH = {
    "compressed": compressed(matrix(UINT8, (1, 2**26), element(2, bytes(2**26)))),
    "widened": matrix(DOUBLE, MANY, ZEROS),
    "complex": matrix(DOUBLE, MANY, ZEROS, ZEROS, flags=COMPLEX),
    "text": matrix(CHAR, MANY, element(16, bytes(2**18))),
    "blanks": matrix(CHAR, (WIDE, WIDE), element(16, b"")),
    "cells": matrix(CELL, MANY, element(MATRIX, b"") * 2**18),
    "no fields": matrix(STRUCT, (WIDE, WIDE), LENGTH, element(1, b"")),
    "fields": matrix(STRUCT, (0, 0), LENGTH, element(1, bytes(2**18))),
    "sparse": matrix(SPARSE, (2**20, 1), ZEROS, STARTS_OF_MANY, ZEROS),
    "variables": matrix(UINT8, (0, 0), element(2, b"")) * 2**14,
}


@pytest.mark.parametrize("data", MUCH.values(), ids=MUCH)
def test_a_file_that_takes_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(mat_file, "MOST", 2**20)
    path = tmp_path / "x.mat"
    path.write_bytes(file(data))
    hint = "save it in parts, or without compression (-v6)"
    assert f"the file takes more than 1,048,576 bytes beyond its own: {hint}" in refusal(path)
    assert peak(path) < 2 * (len(data) + 2**20)


WORDS = [*range(19), 33, 2**8 - 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 1 << 16 | 2, 5 << 16 | 1]


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    if not data:
        return data
    at = int(rng.integers(len(data)))
    kind = rng.integers(8)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + rng.bytes(rng.choice([1, 4, 8])) + data[at:]
    if kind == 2:
        return data[:at] + data[at + int(rng.choice([1, 4, 8, 56])) :]
    if kind == 3:
        other = int(rng.integers(len(data)))
        return data[:at] + data[other : other + int(rng.choice([8, 56, 200]))] + data[at:]
    if kind < 6:
        return data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :]
    at -= at % 4
    word = int(rng.choice([*WORDS, int(rng.integers(2**32))]))
    return data[:at] + word.to_bytes(4, "little" if rng.random() < 0.8 else "big") + data[at + 4 :]


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """A file that is mutated up to three times: its own bytes, or those that are compressed in it."""
    packed = data.find(b"\x78\x9c", 128)
    count = rng.integers(1, 4)
    if packed > 0 and rng.random() < 0.7:
        inside = zlib.decompressobj().decompress(data[packed:])
        for _ in range(count):
            inside = mutated(inside, rng)
        return data[: packed - 8] + compressed(inside)
    for _ in range(count):
        data = mutated(data, rng)
    return data


def seeds(folder: Path) -> list[bytes]:
    rng = np.random.default_rng(0)
    weights = cells(np.ones((3, 3, 2, 2), "f4"), np.zeros((1, 2)))
    layer = {"name": "conv", "type": "conv", "weights": weights}
    net = {"layers": cells(layer, layer), "meta": {"classes": cells("a", "b"), "on": True}}
    made = [everything("<"), everything(">")]
    for content in (net, *({"x": some_value(rng), "y": some_value(rng)} for _ in range(6))):
        for options in ({}, {"do_compression": True}):
            savemat(folder / "seed.mat", content, **options)
            made.append((folder / "seed.mat").read_bytes())
    content = {"x": np.ones((2, 3)), "y": "text", "z": np.array([[2j]])}
    savemat(folder / "seed.mat", content, format="4")
    return [*made, (folder / "seed.mat").read_bytes()]


def test_damage_of_all_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mat_file, "MOST", 2**22)
    made, rng = seeds(tmp_path), np.random.default_rng(1)
    path, refused = tmp_path / "x.mat", 0
    for i in range(400):
        data = damaged(made[i % len(made)], rng)
        path.write_bytes(data)
        assert peak(path) < 2 * (len(data) + 2**22)
        try:
            mat_file.read(path)
        except ValueError as error:
            refused += str(error).startswith(f"{path}: ")
    assert 200 < refused < 400
