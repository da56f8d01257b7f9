"""LMDB: the records of a database file, read without liblmdb.

The file is read, never mapped: what is cut short or damaged is a ValueError, not a signal. Nothing is
held but a file descriptor, which goes with the object, and no lock is taken.

The records are those of the newest transaction when the file was opened. A transaction writes to new
pages, to pages that one at least two before it has freed, and at last its meta page, by turns one of
two. So the records stay whole until the second transaction since then overwrites their meta page: it is
looked at after each record, and if it has changed, a ValueError says so. A file that was deleted, or
replaced by another, is read on as it was.

LMDB keeps no checksums: damage within a value, or that leaves a sound structure, is not seen.

A record of 3 KB takes about 3.3 us in the order of the keys and 6 in any order, where liblmdb takes 0.8
and 1.5; one of 200 KB 11 and 14, where it takes 8.5 and 9. Of this the look at the meta page is 0.5.

Format: LMDB 0.9, 64 bit, little endian. Source: liblmdb's mdb.c.
"""

from __future__ import annotations

import os
import struct
import weakref
from bisect import bisect_right
from typing import NamedTuple
from zlib import crc32

from .files import open_file

_MAGIC = 0xBEEFC0DE
_VERSION = 1
_BRANCH, _LEAF, _OVERFLOW, _META_PAGE = 1, 2, 4, 8
_KINDS = 0x6F  # the bits of a page's flags that say its kind; the others are a writer's own
_PAGE_SIZES = [2**n for n in range(9, 16)]
_MAX_DEPTH = 32
_DUPLICATES = 4  # a flag of a database
_BIG = 1  # a flag of a node: its value lies in overflow pages
_NO_PAGE = 2**64 - 1

_META = struct.Struct("<Q2xH4xII16xI48xHH24xQQQQ")  # the fields of _Meta from number on
_PAGE = struct.Struct("<Q2xHHH")  # its number, kind, ends of the pointers and of the gap behind them
_OVERFLOW_PAGE = struct.Struct("<Q2xHI")  # its number, kind, how many pages
_NODE = struct.Struct("<IHH")  # of a leaf: sizes of value and, last, key, flags; else a page's 48 bits
_POINTER = struct.Struct("<H")  # from the page's start
_NUMBER = struct.Struct("<Q")


class _Meta(NamedTuple):
    at: int  # its place in the file
    raw: bytes
    number: int
    kind: int
    magic: int
    version: int
    page_size: int
    flags: int
    depth: int
    records: int
    root: int
    last_page: int
    transaction: int


class LmdbFile:
    """An LMDB's records, bytes, by number in the order of their keys.

    ``source``: the database's folder or its file. Raises ValueError for what is not there, not an
    LMDB, damaged, or changed meanwhile, and for named databases or several values a key.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._file = _open(source)
        weakref.finalize(self, os.close, self._file)
        meta = self._newest_meta()
        while meta != (again := self._newest_meta()):  # a writer may have been at it
            meta = again
        self._meta = meta
        self._leaves: list[tuple[int, int]] = []  # the leaf pages known, from the first on: page, CRC;
        self._starts = [0]  # the number of each one's first record, and of the next one's
        self._ahead = [(meta.root, 1)] if meta.records else []  # pages to go on with, and their depths
        self._seen = {meta.root}
        self._leaf, self._bytes = -1, b""  # which of them was read last
        self._check()

    def __len__(self) -> int:
        return self._meta.records

    def __getitem__(self, number: int) -> bytes:
        if not 0 <= number < len(self):
            raise IndexError(f'the database "{self.source}" has no record {number} of {len(self)}')
        try:
            return self._value(*self._find(number))
        finally:  # where the database was changed, neither a value nor damage means anything
            if self._read(self._meta.at, _META.size) != self._meta.raw:
                raise self._error("was changed while it was read") from None

    def _error(self, what: str) -> ValueError:
        return ValueError(f'the database "{self.source}" {what}')

    def _read(self, at: int, size: int) -> bytes:
        try:
            found = _pread(self._file, size, at)
        except OSError as error:
            raise self._error(f"cannot be read: {error}") from None
        if len(found) < size:
            raise self._error(f"is cut short at byte {at + len(found)}")
        return found

    def _newest_meta(self) -> _Meta:
        first = self._read_meta(0)
        return max(first, self._read_meta(first.page_size), key=lambda meta: meta.transaction)

    def _read_meta(self, at: int) -> _Meta:
        raw = self._read(at, _META.size)
        meta = _Meta(at, raw, *_META.unpack(raw))
        if meta.magic != _MAGIC and not at:
            if any(_MAGIC.to_bytes(4, order) in raw[:32] for order in ("little", "big")):
                raise self._error("is an LMDB of another layout; 64 bit, little endian is read")
            raise self._error("is not an LMDB")
        if meta.magic == _MAGIC and meta.version != _VERSION:
            raise self._error(f"is an LMDB of version {meta.version}; version {_VERSION} is read")
        sound = meta.magic == _MAGIC and meta.number == bool(at) and meta.kind & _META_PAGE
        if not sound or meta.page_size not in _PAGE_SIZES:
            raise self._error(f"is damaged: there is no meta page at byte {at}")
        return meta

    def _check(self) -> None:
        """Hold the meta page against the file."""
        meta, length = self._meta, os.fstat(self._file).st_size
        if meta.flags & _DUPLICATES:
            raise self._error("has several values a key, which are not read")
        empty = {meta.records == 0, meta.depth == 0, meta.root == _NO_PAGE}
        most = length // (_NODE.size + 2)  # a node and its pointer
        if len(empty) > 1 or meta.depth > _MAX_DEPTH or meta.records > most:
            raise self._error(f"is damaged: the meta page at byte {meta.at} does not fit")
        whole = (meta.last_page + 1) * meta.page_size
        self._end = min(length, whole)
        if length < whole:  # which may be right: pages that are freed at once are never written
            try:
                for number in range(len(self)):
                    self._place(*self._find(number))
            except ValueError:
                missing = f"{whole - length} of {whole} bytes are missing"
                raise self._error(f"is cut short: {missing}") from None

    def _find(self, number: int) -> tuple[int, int, int]:
        """A record's node, whose leaf page is read."""
        while number >= self._starts[-1]:
            self._go_on()
        leaf = bisect_right(self._starts, number) - 1
        if leaf != self._leaf:
            page, checked = self._leaves[leaf]
            found = self._read(page * self._meta.page_size, self._meta.page_size)
            if crc32(found) != checked:
                raise self._error(f"is damaged: page {page} is not what it was")
            self._leaf, self._bytes = leaf, found
        (node,) = _POINTER.unpack_from(self._bytes, _PAGE.size + 2 * (number - self._starts[leaf]))
        size, flags, key = _NODE.unpack_from(self._bytes, node)
        return node + _NODE.size + key, size, flags

    def _go_on(self) -> None:
        """Read the next leaf page."""
        page, depth = self._ahead[-1]
        while depth < self._meta.depth:
            below = self._read_branch(page)
            self._ahead[-1:] = [(page, depth + 1) for page in reversed(below)]
            page, depth = self._ahead[-1]
        found, count = self._read_leaf(page)
        start = self._starts[-1] + count
        if (left := len(self) - start) < 0 or bool(left) != (len(self._ahead) > 1):
            raise self._error(f"is damaged: it does not hold the {len(self)} records that it says")
        self._ahead.pop()
        self._leaf, self._bytes = len(self._leaves), found
        self._leaves.append((page, crc32(found)))
        self._starts.append(start)

    def _read_page(self, page: int, kind: int) -> tuple[bytes, int, tuple[int, ...]]:
        """A page of the tree, where its nodes start, and the pointers to them."""
        size = self._meta.page_size
        if not 2 <= page < self._end // size:
            raise self._error(f"is damaged: page {page} is outside of it")
        found = self._read(page * size, size)
        number, flags, lower, upper = _PAGE.unpack_from(found)
        count = (lower - _PAGE.size) // 2
        sound = number == page and flags & _KINDS == kind and count > 0 and lower % 2 == 0
        if not sound or not lower <= upper <= size:
            raise self._error(f"is damaged: page {page} is not the page of the tree that it should be")
        return found, upper, struct.unpack_from(f"<{count}H", found, _PAGE.size)

    def _read_branch(self, page: int) -> list[int]:
        """The pages below a branch page."""
        found, upper, pointers = self._read_page(page, _BRANCH)
        if min(pointers) < upper or max(pointers) > len(found) - _NODE.size:
            raise self._error(f"is damaged: page {page} has a node outside of it")
        nodes = [_NODE.unpack_from(found, at) for at in pointers]
        below = [low | high << 32 for low, high, _ in nodes]
        if len(set(below) - self._seen) < len(below):
            raise self._error(f"is damaged: page {page} leads to where another does")
        self._seen.update(below)
        return below

    def _read_leaf(self, page: int) -> tuple[bytes, int]:
        """A leaf page, whose nodes must lie side by side up to its end, and how many they are."""
        found, upper, pointers = self._read_page(page, _LEAF)
        starts, ends, kinds = {len(found), *pointers}, {upper}, 0
        for at in pointers:
            if at > len(found) - _NODE.size:
                break
            size, flags, key = _NODE.unpack_from(found, at)
            ends.add(at + _NODE.size + key + (_NUMBER.size if flags & _BIG else size) + 1 & ~1)
            kinds |= flags
        if starts != ends or len(starts) <= len(pointers):
            raise self._error(f"is damaged: the nodes of page {page} do not fill it")
        if kinds & ~_BIG:
            raise self._error("has named databases or several values a key, which are not read")
        return found, len(pointers)

    def _place(self, value: int, size: int, flags: int) -> int:
        """Where in the file the overflow pages of a node's value start; 0 if it is in the node."""
        if not flags:
            return 0
        (page,) = _NUMBER.unpack_from(self._bytes, value)
        at = page * self._meta.page_size
        if page < 2 or at + _OVERFLOW_PAGE.size + size > self._end:
            raise self._error(f"is damaged: a value of {size} bytes in page {page} is outside of it")
        return at

    def _value(self, value: int, size: int, flags: int) -> bytes:
        at = self._place(value, size, flags)
        if not at:
            return self._bytes[value : value + size]
        found = self._read(at, _OVERFLOW_PAGE.size + size)
        number, kind, pages = _OVERFLOW_PAGE.unpack_from(found)
        page_size = self._meta.page_size
        if number != at // page_size or kind & _KINDS != _OVERFLOW or len(found) > pages * page_size:
            raise self._error(f"is damaged: page {at // page_size} holds no value of {size} bytes")
        return found[_OVERFLOW_PAGE.size :]


def _read_at(file: int, size: int, at: int) -> bytes:
    os.lseek(file, at, os.SEEK_SET)
    return os.read(file, size)


_pread = getattr(os, "pread", _read_at)  # Windows has none


def _open(source: str) -> int:
    path = os.path.join(source, "data.mdb") if os.path.isdir(source) else source
    try:
        with open_file(path) as file:
            return os.dup(file.fileno())
    except FileNotFoundError:
        what = "there is no database" if path == source else "there is no data.mdb in"
        raise ValueError(f'{what} "{source}"') from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f'cannot open the database "{source}": {why}') from None
