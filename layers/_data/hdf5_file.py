"""HDF5 files that stand for themselves: no links out of them, no values kept in other files.

h5py reads in the process, and the HDF5 library under it checks what it reads. What is checked here
before values are read takes some microseconds a data set; one in chunks is read twice where
:func:`expect_readable` is asked.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

from .files import open_file

MAX_DEPTH = 64  # of groups within groups
RATIO = 2000  # deflate's largest is 1032: values beyond are not in the file, but a fill value's copies


class Hdf5Error(ValueError):
    """What this module says of a file."""


_ERRORS = (OSError, KeyError, RuntimeError, TypeError, AttributeError, ValueError, OverflowError)


def _h5py() -> Any:
    try:
        import h5py
    except ModuleNotFoundError:
        raise Hdf5Error("HDF5 files need h5py: pip install 'cortado[hdf5]'") from None
    return h5py


def open_hdf5(path: str | Path) -> Any:
    """An ``h5py.File`` for reading; raises ValueError for what is no HDF5 file."""
    h5py = _h5py()
    with reading(path):
        open_file(path).close()
        return h5py.File(path, "r")


def write_hdf5(path: Path, fill: Callable[[Any], object]) -> None:
    """Write a file that ``fill(h5py.File)`` fills in memory: where a write fails, on a full disk, the
    HDF5 library goes on with damaged memory, up to the end of the process. Raises OSError."""
    h5py = _h5py()
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        fill(file)
    path.write_bytes(memory.getbuffer())


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """What h5py raises within for a damaged file becomes a ValueError that names it."""
    try:
        yield
    except Hdf5Error:
        raise
    except _ERRORS as error:
        why = getattr(error, "strerror", None) or str(error).split("\n")[0] or repr(error)
        raise Hdf5Error(f"{path}: cannot read the HDF5 file: {why}") from None


def shown(name: str | bytes) -> str:
    """A name as an error shows it; one that is not UTF-8 comes as bytes."""
    return f'"{name}"' if isinstance(name, str) else str(name)


def member(path: str | Path, group: Any, name: str | bytes) -> Any:
    """What is called so in a group. Raises ValueError if there is nothing, or a link, which may lead
    out of the file."""
    import h5py

    with reading(path):
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink | None):
            where = "another file" if isinstance(link, h5py.ExternalLink) else "another place"
            raise Hdf5Error(f"{path}: {shown(name)} is a link to {where}, which is not followed")
        if link is None:
            listing = ", ".join(map(shown, group)) or "none"
            raise Hdf5Error(f"{path}: no data set {shown(name)}, only {listing}")
        return group[name]


def datasets(path: str | Path, group: Any) -> Iterator[tuple[str, Any]]:
    """Every data set in a group and in those inside, by the path of its name. Raises ValueError for
    links, a group of two names, and a name that is not UTF-8."""
    import h5py

    seen: set[int] = set()

    def walk(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        for name in group:
            if not isinstance(name, str):
                raise Hdf5Error(f"{path}: a name that is not UTF-8: {name!r}")
            item = member(path, group, name)
            if isinstance(item, h5py.Dataset):
                yield prefix + name, item
            elif isinstance(item, h5py.Group):
                address = h5py.h5o.get_info(item.id).addr
                if address in seen:  # a circle, or as many ways to a group as there are levels
                    raise Hdf5Error(f"{path}: {shown(prefix + name)} is another group's second name")
                seen.add(address)
                if prefix.count("/") >= MAX_DEPTH:
                    raise Hdf5Error(f"{path}: groups are nested more than {MAX_DEPTH} deep")
                yield from walk(item, f"{prefix}{name}/")

    if not isinstance(group, h5py.Group):
        raise Hdf5Error(f"{path}: {shown(group.name or '')} is no group")
    with reading(path):
        yield from walk(group, "")


def expect_numbers(path: str | Path, name: str | bytes, data: Any) -> None:
    """Raises ValueError unless ``data`` is a data set of numbers that lie in this file."""
    import h5py

    what = f"{path}: data set {shown(name)}"
    if not isinstance(data, h5py.Dataset):
        raise Hdf5Error(f"{path}: {shown(name)} is no data set")
    with reading(path):
        _expect_numbers(path, what, data)


def _expect_numbers(path: str | Path, what: str, data: Any) -> None:
    if data.shape is None or data.dtype.kind not in "fiu":
        found = "nothing" if data.shape is None else f"{list(data.shape)} of {data.dtype}"
        raise Hdf5Error(f"{what} holds no numbers, but {found}")
    _expect_inside(what, data)
    size, there = prod(data.shape) * data.dtype.itemsize, os.path.getsize(path)
    if size > RATIO * there:
        raise Hdf5Error(f"{what} claims {size:,} bytes in a file of {there:,}")


def _expect_inside(what: str, data: Any) -> None:
    if data.is_virtual or data.external:
        raise Hdf5Error(f"{what} is kept in other files, which are not read")


def read_text(path: str | Path, group: Any, name: str) -> str:
    """A data set of one string of bytes; raises ValueError for another."""
    data = member(path, group, name)
    if getattr(data, "shape", None) != () or data.dtype.kind not in "SO":
        raise Hdf5Error(f"{path}: {shown(name)} is no text")
    _expect_inside(f"{path}: data set {shown(name)}", data)
    with reading(path):
        return bytes(data[()]).decode()


def expect_readable(path: str | Path, name: str, data: Any) -> None:
    """Raises ValueError for a data set whose values cannot be read, without keeping them."""
    with reading(path):
        begin = data.id.get_offset() if data.chunks is None else None
        if begin is None:
            data[()]
    if begin is not None and begin + data.id.get_storage_size() > os.path.getsize(path):
        raise Hdf5Error(f"{path}: data set {shown(name)} is cut off")
