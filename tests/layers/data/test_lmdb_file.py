"""The LMDB reader against liblmdb, and against damage."""

from __future__ import annotations

import gc
import os
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cortado.layers._data.lmdb_file import LmdbFile

lmdb = pytest.importorskip("lmdb", reason="lmdb is not installed")

PAGE = 4096
THRESHOLD = 2038  # a node of more bytes, header and key with it, has its value in overflow pages
Changes = dict[bytes, bytes | None]  # what a transaction puts or, None, deletes


def write(path: Path, *transactions: Changes, **options: Any) -> list[bytes]:
    """Make or go on with a database; its values by liblmdb's cursor."""
    with lmdb.open(str(path), map_size=1 << 26, sync=False, **options) as environment:
        for changes in transactions:
            with environment.begin(write=True) as transaction:
                for key, value in changes.items():
                    if value is None:
                        transaction.delete(key)
                    else:
                        transaction.put(key, value)
        with environment.begin() as transaction:
            return [bytes(value) for _, value in transaction.cursor()]


def read(path: Path) -> list[bytes]:
    return list(LmdbFile(str(path)))


def numbered(*values: bytes) -> Changes:
    return {b"%08d" % i: value for i, value in enumerate(values)}


@pytest.mark.parametrize("seed", range(6))
def test_random_databases(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    longest = int(rng.choice([4, 40, 511]))
    sizes = [0, 1, 7, 100, THRESHOLD - 30, THRESHOLD - 9, THRESHOLD, 4080, 4081, 9000, 100_000]
    chances = rng.dirichlet(np.full(len(sizes), 0.3))
    keys: list[bytes] = []
    for _ in range(rng.integers(1, 7)):
        changes: Changes = {}
        for _ in range(rng.integers(1, 250)):
            if keys and rng.random() < 0.4:
                key = keys[rng.integers(len(keys))]
            else:
                keys.append(key := rng.bytes(rng.integers(1, longest + 1)))
            changes[key] = None if rng.random() < 0.25 else rng.bytes(rng.choice(sizes, p=chances))
        expected = write(tmp_path / "db", changes)
        assert read(tmp_path / "db") == expected
    file = LmdbFile(str(tmp_path / "db"))
    assert len(file) == len(expected)
    for number in rng.permutation(len(expected)).tolist():
        assert file[number] == expected[number]


def test_sizes_about_the_overflow_threshold_and_pages(tmp_path: Path) -> None:
    sizes = [*range(THRESHOLD - 30, THRESHOLD + 4), *range(4070, 4100), *range(8170, 8190)]
    values = [os.urandom(size) for size in sizes]
    assert write(tmp_path / "db", numbered(*values)) == values
    assert read(tmp_path / "db") == values


def test_a_deep_tree(tmp_path: Path) -> None:
    values = [b"%d" % i for i in range(2000)]
    with lmdb.open(str(tmp_path), map_size=1 << 24) as environment:
        with environment.begin(write=True) as transaction:
            for i, value in enumerate(values):
                transaction.put(b"%0500d" % i, value)
        assert environment.stat()["depth"] >= 4
    assert read(tmp_path) == values
    assert LmdbFile(str(tmp_path))[1999] == b"1999"


def test_few_records(tmp_path: Path) -> None:
    write(tmp_path / "one", {b"key": b"value"})
    file = LmdbFile(str(tmp_path / "one"))
    assert (len(file), file[0]) == (1, b"value")
    for number in (-1, 1):
        with pytest.raises(IndexError, match=rf'one" has no record {number} of 1$'):
            file[number]
    write(tmp_path / "none")
    assert read(tmp_path / "none") == []
    write(tmp_path / "none", {b"key": b"value"}, {b"key": None})
    assert read(tmp_path / "none") == []


def test_a_file_without_folder(tmp_path: Path) -> None:
    values = write(tmp_path / "data.lmdb", numbered(b"0", b"1"), subdir=False)
    assert read(tmp_path / "data.lmdb") == values == [b"0", b"1"]
    write(tmp_path / "db", numbered(b"2"))
    assert read(tmp_path / "db" / "data.mdb") == [b"2"]


@pytest.mark.parametrize("writemap", [False, True])
def test_a_writer_beside(tmp_path: Path, writemap: bool) -> None:
    """The records stay until the second transaction, and none is wrong after it."""
    old, new, last = (numbered(*(bytes([i]) * 3000 for i in range(n, n + 50))) for n in (0, 60, 120))
    options = {"map_size": 1 << 24, "writemap": writemap, "sync": False}
    with lmdb.open(str(tmp_path), **options) as environment:

        def put(changes: Changes) -> None:
            with environment.begin(write=True) as transaction:
                for key, value in changes.items():
                    transaction.put(key, value)

        put(old)
        file, last_file = LmdbFile(str(tmp_path)), None
        assert file[0] == old[b"00000000"]
        put(new)
        assert list(file) == list(old.values())
        assert read(tmp_path) == list(new.values())
        for _ in range(3):
            put(last)
            for number in (0, 49):
                with pytest.raises(
                    ValueError, match=r'^the database ".*" was changed while it was read$'
                ):
                    file[number]
            last_file = LmdbFile(str(tmp_path))
            assert list(last_file) == list(last.values())


def test_a_database_made_anew(tmp_path: Path) -> None:
    write(tmp_path / "db", numbered(b"old", b"old too"))
    file = LmdbFile(str(tmp_path / "db"))
    shutil.rmtree(tmp_path / "db")
    write(tmp_path / "db", numbered(b"new"))
    assert list(file) == [b"old", b"old too"]
    assert read(tmp_path / "db") == [b"new"]


def test_nothing_is_held(tmp_path: Path) -> None:
    write(tmp_path / "db", numbered(b"0"))
    file = LmdbFile(str(tmp_path / "db"))
    descriptor = file._file
    os.fstat(descriptor)
    del file
    gc.collect()
    with pytest.raises(OSError):
        os.fstat(descriptor)
    (tmp_path / "db" / "data.mdb").write_bytes(b"none" * 1000)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with pytest.raises(ValueError):
        LmdbFile(str(tmp_path / "db"))
    gc.collect()
    assert not before or len(os.listdir("/proc/self/fd")) == before


def refusal(source: Path) -> str:
    """Why a database is not read, without its name."""
    with pytest.raises(ValueError) as caught:
        read(source)
    return re.sub(r'"[^"]*"', "X", str(caught.value))


NO_FILE = "not a file, but a pipe or a device"


def test_what_is_no_database(tmp_path: Path) -> None:
    assert refusal(tmp_path / "missing") == "there is no database X"
    assert refusal(tmp_path) == "there is no data.mdb in X"
    assert refusal(Path("nul\0")) == "cannot open the database X: embedded null byte"
    os.mkfifo(tmp_path / "fifo")
    assert refusal(tmp_path / "fifo") == f"cannot open the database X: {NO_FILE}"
    os.mkdir(tmp_path / "data.mdb")
    assert refusal(tmp_path) == "cannot open the database X: Is a directory"
    assert refusal(Path("/dev/zero")) == f"cannot open the database X: {NO_FILE}"
    (tmp_path / "text").write_bytes(b"no database" * 100)
    assert refusal(tmp_path / "text") == "the database X is not an LMDB"
    (tmp_path / "text").write_bytes(b"short")
    assert refusal(tmp_path / "text") == "the database X is cut short at byte 5"


def test_databases_of_other_kinds(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path / "named"), map_size=1 << 20, max_dbs=2) as environment:
        environment.open_db(b"name")
    several = "the database X has named databases or several values a key, which are not read"
    assert refusal(tmp_path / "named") == several
    path = tmp_path / "file"
    write(path, numbered(b"0"), subdir=False)
    data = path.read_bytes()
    path.write_bytes(data[: PAGE + 92] + b"\4" + data[PAGE + 93 :])  # the records' flags
    assert refusal(path) == "the database X has several values a key, which are not read"
    path.write_bytes(data[:10] + data[14:])  # of 32 bits
    assert refusal(path) == "the database X is an LMDB of another layout; 64 bit, little endian is read"
    path.write_bytes(data[:16] + data[19:15:-1] + data[20:])
    assert refusal(path) == "the database X is an LMDB of another layout; 64 bit, little endian is read"
    path.write_bytes(data[:20] + struct.pack("<I", 2) + data[24:])
    assert refusal(path) == "the database X is an LMDB of version 2; version 1 is read"


def test_a_file_cut_short_says_so_when_it_is_opened(tmp_path: Path) -> None:
    write(tmp_path / "db", numbered(*(os.urandom(768) for _ in range(3000))))
    path = tmp_path / "db" / "data.mdb"
    size = path.stat().st_size
    os.truncate(path, size // 2)
    with pytest.raises(ValueError) as caught:
        LmdbFile(str(tmp_path / "db"))
    assert str(caught.value) == (
        f'the database "{tmp_path / "db"}" is cut short: {size - size // 2} of {size} bytes are missing'
    )


def test_a_file_that_ends_before_pages_that_nobody_needs(tmp_path: Path) -> None:
    """As LMDB leaves it at times: pages that were freed in their own transaction are not written."""
    values = write(tmp_path / "db", numbered(*(os.urandom(3000) for _ in range(20))))
    path = tmp_path / "db" / "data.mdb"
    data = bytearray(path.read_bytes())
    at = PAGE + 136  # the last page, of the meta page of transaction 1
    struct.pack_into("<Q", data, at, struct.unpack_from("<Q", data, at)[0] + 3)
    path.write_bytes(data)
    assert read(tmp_path / "db") == values


def test_damage_that_kills_a_process_that_maps_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, numbered(*(os.urandom(203) for _ in range(6))), subdir=False)
    data = path.read_bytes()
    path.write_bytes(data[:6709])
    assert refusal(path) == "the database X is cut short: 5579 of 12288 bytes are missing"
    path.write_bytes(data[:9248] + b"\xff\xff" + data[9248:])
    assert refusal(path) == "the database X is damaged: the nodes of page 2 do not fill it"


def test_a_file_cut_short_while_it_is_read(tmp_path: Path) -> None:
    values = write(tmp_path / "db", numbered(*(os.urandom(3000) for _ in range(20))))
    file = LmdbFile(str(tmp_path / "db"))
    assert file[0] == values[0]
    os.truncate(tmp_path / "db" / "data.mdb", 5 * PAGE)
    with pytest.raises(ValueError, match=r"is cut short at byte 20480$"):
        list(file)
    os.truncate(tmp_path / "db" / "data.mdb", 0)
    with pytest.raises(ValueError, match=r"is cut short at byte"):
        file[0]


def test_a_page_that_changes_without_a_transaction(tmp_path: Path) -> None:
    write(tmp_path / "db", numbered(*(os.urandom(1000) for _ in range(20))))
    file = LmdbFile(str(tmp_path / "db"))
    page = file._leaves[0][0] if file[19] and file._leaves else 0
    path = tmp_path / "db" / "data.mdb"
    data = bytearray(path.read_bytes())
    data[page * PAGE + 16] ^= 2
    with path.open("r+b") as opened:
        opened.write(data)
    with pytest.raises(ValueError, match=rf"is damaged: page {page} is not what it was$"):
        file[0]
    assert file[19]


def test_pages_in_circles(tmp_path: Path) -> None:
    write(tmp_path / "db", numbered(*(os.urandom(1000) for _ in range(20))))
    path = tmp_path / "db" / "data.mdb"
    data = path.read_bytes()
    (root,) = struct.unpack_from("<Q", data, PAGE + 128)
    first, second = struct.unpack_from("<HH", data, root * PAGE + 16)
    for target, says in (
        (struct.unpack_from("<I", data, root * PAGE + first)[0], f"page {root} leads to where another"),
        (root, f"page {root} leads to where another"),
        (1, "page 1 is outside of it"),
        (2**31, "page 2147483648 is outside of it"),
    ):
        changed = bytearray(data)
        struct.pack_into("<I", changed, root * PAGE + second, target)
        path.write_bytes(changed)
        assert says in refusal(tmp_path / "db")
    for pointer in (16, PAGE - 2):
        changed = bytearray(data)
        struct.pack_into("<H", changed, root * PAGE + 18, pointer)
        path.write_bytes(changed)
        assert f"page {root} has a node outside of it" in refusal(tmp_path / "db")


META, VALUE = PAGE, 3 * PAGE  # the page of transaction 1; of a long value, after its leaf


@pytest.mark.parametrize(
    ("at", "layout", "value", "says"),
    [
        (META, "Q", 0, "there is no meta page at byte 4096"),
        (META + 10, "H", 2, "there is no meta page at byte 4096"),
        (META + 16, "I", 0, "there is no meta page at byte 4096"),
        (META + 40, "I", 0, "there is no meta page at byte 4096"),
        (META + 40, "I", 2**16, "there is no meta page at byte 4096"),
        (40, "I", 512, "there is no meta page at byte 512"),
        (META + 94, "H", 0, "the meta page at byte 4096 does not fit"),
        (META + 94, "H", 33, "the meta page at byte 4096 does not fit"),
        (META + 94, "H", 2, "page 2 is not the page of the tree that it should be"),
        (META + 120, "Q", 0, "the meta page at byte 4096 does not fit"),
        (META + 120, "Q", 1, "it does not hold the 1 records that it says"),
        (META + 120, "Q", 3, "it does not hold the 3 records that it says"),
        (META + 120, "Q", 2**63, "the meta page at byte 4096 does not fit"),
        (META + 128, "Q", 2**64 - 1, "the meta page at byte 4096 does not fit"),
        (META + 128, "Q", 2**63, f"page {2**63} is outside of it"),
        (META + 136, "Q", 1, "page 2 is outside of it"),
        (META + 136, "Q", 3, "a value of 9000 bytes in page 3 is outside of it"),
        (VALUE, "Q", 4, "page 3 holds no value of 9000 bytes"),
        (VALUE + 10, "H", 2, "page 3 holds no value of 9000 bytes"),
        (VALUE + 12, "I", 2, "page 3 holds no value of 9000 bytes"),
        (VALUE - 24, "I", 10**9, "a value of 1000000000 bytes in page 3 is outside of it"),
        (VALUE - 8, "Q", 1, "a value of 9000 bytes in page 1 is outside of it"),
        (VALUE - 8, "Q", 4, "a value of 9000 bytes in page 4 is outside of it"),
        (VALUE - 8, "Q", 2**63, f"a value of 9000 bytes in page {2**63} is outside of it"),
    ],
)
def test_fields_that_are_damaged(tmp_path: Path, at: int, layout: str, value: int, says: str) -> None:
    path = tmp_path / "file"
    write(path, numbered(bytes(9000), b"short"), subdir=False)
    data = bytearray(path.read_bytes() + bytes(PAGE))
    assert struct.unpack_from("<IHH8sQ", data, VALUE - 24) == (9000, 1, 8, b"00000000", 3)
    struct.pack_into("<" + layout, data, at, value)
    path.write_bytes(data)
    assert refusal(path) == f"the database X is damaged: {says}"


def test_more_records_than_the_meta_page_says(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, {b"%0500d" % i: b"" for i in range(70)}, subdir=False)
    data = bytearray(path.read_bytes())
    for records in (5, 7, 69, 71):
        struct.pack_into("<Q", data, META + 120, records)
        path.write_bytes(data)
        assert "is damaged: it does not hold the" in refusal(path)


def test_each_bit_of_a_leaf_page_s_head(tmp_path: Path) -> None:
    """None is taken for sound, but those of the padding and of a writer's own flags."""
    values = write(tmp_path / "db", numbered(*(os.urandom(n) for n in (0, 9, 50, 301))))
    path = tmp_path / "db" / "data.mdb"
    data = path.read_bytes()
    page = struct.unpack_from("<Q", data, PAGE + 128)[0] * PAGE
    for at in range(16 + 2 * len(values)):
        for bit in range(8):
            changed = bytearray(data)
            changed[page + at] ^= 1 << bit
            path.write_bytes(changed)
            if at in (8, 9, 11) or (at, bit) in ((10, 4), (10, 7)):
                assert read(tmp_path / "db") == values
            else:
                assert "is damaged" in refusal(tmp_path / "db"), (at, bit)


def mutated(data: bytes, rng: np.random.Generator) -> tuple[bytes, tuple[int, int]]:
    """A file that is damaged in one of several ways, and the range of bytes that may have changed."""
    size = len(data)
    kind = rng.integers(8)
    at = int(rng.integers(size))
    if kind == 0:
        return data[:at], (at, size)
    if kind == 1:
        return data[:at] + rng.bytes(rng.integers(1, 9)) + data[at:], (at, size)
    if kind == 2:
        return data[:at] + data[at + int(rng.integers(1, 9)) :], (at, size)
    pages = size // PAGE
    page = int(rng.integers(pages)) * PAGE
    if kind == 3:  # a page at another's place
        other = int(rng.integers(pages)) * PAGE
        return data[:page] + data[other : other + PAGE] + data[page + PAGE :], (page, page + PAGE)
    if kind < 6:  # within a page's head and pointers, or where the metas have theirs
        at = page + int(rng.integers(160 if page < 2 * PAGE else 48))
    length = int(rng.choice([1, 1, 2, 4, 8]))
    number = int.from_bytes(data[at : at + length], "little")
    number ^= 1 << int(rng.integers(8 * length))
    number = int(rng.choice([number, number + 1, 2 ** (8 * length) - 1, 0])) % 2 ** (8 * length)
    return data[:at] + number.to_bytes(length, "little") + data[at + length :], (at, at + length)


def seeds(folder: Path, rng: np.random.Generator) -> list[tuple[Path, list[bytes]]]:
    """Small databases of one leaf, of overflow pages, of several levels, and one that was rewritten."""
    made = []
    for name, transactions in {
        "leaf": [numbered(*(rng.bytes(203) for _ in range(6)))],
        "overflow": [numbered(*(rng.bytes(n) for n in (5000, 300, 9000, 4080, 2030)))],
        "levels": [{b"%0500d" % i: rng.bytes(40) for i in range(80)}],
        "rewritten": [numbered(*(rng.bytes(n) for _ in range(20))) for n in (900, 3000, 60, 900)],
    }.items():
        made.append((folder / name, write(folder / name, *transactions, subdir=False)))
    return made


def fuzz(folder: Path, count: int) -> dict[str, int]:
    """Damage databases ``count`` times and see how it went.

    Damage within a value is in the value and nowhere else, a file that was cut short is refused or
    read right; any other damage is refused, or what is read is bytes of the file.
    """
    rng = np.random.default_rng(0)
    went = {"refused": 0, "as before": 0, "in the value": 0, "not seen": 0}
    made = [(path, path.read_bytes(), values) for path, values in seeds(folder, rng)]
    for i in range(count):
        path, data, values = made[i % len(made)]
        changed, (start, stop) = mutated(data, rng)
        path.write_bytes(changed)
        try:
            found = read(path)
        except ValueError as error:
            went["refused"] += str(path) in str(error)
            continue
        if found == values:
            went["as before"] += 1
            continue
        assert not data.startswith(changed)
        assert all(value in changed for value in found)
        hit = [n for n, value in enumerate(values) if inside(data, value, start, stop)]
        if hit and len(changed) == len(data):
            differ = [n for n, value in enumerate(values) if found[n] != value]
            assert (len(found), differ) == (len(values), hit)
            at = data.index(values[hit[0]])
            assert found[hit[0]] == changed[at : at + len(values[hit[0]])]
            went["in the value"] += 1
        else:
            went["not seen"] += 1
    return went


def inside(data: bytes, value: bytes, start: int, stop: int) -> bool:
    at = data.index(value)
    return at <= start and stop <= at + len(value)


def test_damage_of_all_kinds(tmp_path: Path) -> None:
    went = fuzz(tmp_path, 1000)
    assert sum(went.values()) == 1000
    assert min(went.values()) > 0
    assert went["not seen"] < 50, went
