"""Files that are read only if they are files, and replaced whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedReader
from pathlib import Path

try:
    import fcntl
except ModuleNotFoundError:  # Windows: a dead run's room is not told from a live one's there
    fcntl = None  # type: ignore[assignment]

ROOM = ".cortado-writing-"
"""What the names of folders begin with in which files are written before they take their place."""


def open_file(path: str | Path) -> BufferedReader:
    """Open a file for reading. Raises OSError, for what is none too: a pipe or a device may keep its
    reader waiting, or never end."""
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # to open a folder is an error of its own
        raise OSError(errno.EINVAL, "not a file, but a pipe or a device", str(path))
    return open(path, "rb")


def replace_file(path: str | Path, write: Callable[[Path], object]) -> None:
    """Write a file out of sight, then let it take its place; its folder is made if it is missing.

    ``write`` gets the path to write to, which ends in the file's own name. A reader sees the old file
    or the new one, and a write that fails or is killed leaves the old. A symbolic link stays, and what
    it points to is replaced; the mode is the old file's, or as the umask says. A device or a pipe is
    written to as it is. What killed runs left in the folder is removed. Raises OSError that names the
    file where it cannot be written.
    """
    target = Path(os.path.realpath(path))
    try:
        if target.exists() and not target.is_file():
            write(target)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        clean(target.parent)
        with _room(target.parent) as room:
            beside = room / target.name
            write(beside)
            os.chmod(beside, _mode(target, room))
            os.replace(beside, target)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error


def clean(folder: str | Path) -> None:
    """Remove what runs that were killed left of the files that they were writing in a folder."""
    for room in Path(folder).glob(f"{ROOM}*") if fcntl else ():
        with suppress(OSError), _locked(room, fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(room)


@contextmanager
def _room(folder: Path) -> Iterator[Path]:
    """A new folder inside of another, locked as long as it is in use: a lock goes with its process."""
    with ExitStack() as stack:
        room = folder
        while room == folder or not room.exists():  # gone: taken for a dead run's before it was locked
            room = Path(tempfile.mkdtemp(prefix=ROOM, dir=folder))
            with suppress(FileNotFoundError):
                stack.enter_context(_locked(room, fcntl.LOCK_EX if fcntl else 0))
        stack.callback(shutil.rmtree, room, ignore_errors=True)
        yield room


@contextmanager
def _locked(room: Path, how: int) -> Iterator[None]:
    """Raises OSError where ``how`` does not wait and another process has the lock, or the file system
    has no locks: what is left there stays."""
    if not fcntl:
        yield
        return
    descriptor = os.open(room, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(descriptor, how)
        except OSError:
            if how & fcntl.LOCK_NB:
                raise
        yield
    finally:
        os.close(descriptor)


def _mode(target: Path, room: Path) -> int:
    """The old file's, or what a new file gets here: read from one, as the umask cannot be asked for
    without being set."""
    if target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    probe = room / f"{target.name}.mode"
    probe.touch()
    return stat.S_IMODE(probe.stat().st_mode)
