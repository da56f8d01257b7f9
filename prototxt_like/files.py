"""Files that are read only if they are files, and replaced whole or not at all."""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import stat
import tempfile
import time
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
_HOST = re.sub(r"\W", "", platform.node()) or "host"
_DAY = 86400  # seconds after which another host's room is a dead run's

_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_file(path: str | Path) -> BufferedReader:
    """Open a file for reading. Raises OSError, for what is none too: a pipe or a device may keep its
    reader waiting, or never end."""
    descriptor = os.open(path, _READ)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "not a file, but a pipe or a device", str(path))
    return os.fdopen(descriptor, "rb")


def is_device(path: str | Path) -> bool:
    """Whether something is there that is no file. Raises OSError for a link to itself.

    The system is asked for what a link leads to: the name that /dev/stdout has for a pipe is none.
    """
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def replace_text(path: str | Path, text: str) -> None:
    """Write a text in UTF-8 as :func:`replace_file` does."""
    replace_file(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def replace_file(path: str | Path, write: Callable[[Path], object]) -> None:
    """Write a file out of sight, then let it take its place; its folder is made if it is missing.

    ``write`` gets the path to write to, which ends in the file's own name. A reader sees the old file
    or the new one, and a write that fails or is killed leaves the old. A symbolic link stays, and what
    it points to is replaced; the mode is the old file's, or as the umask says. A device or a pipe is
    written to as it is. What killed runs left in the folder is removed. Raises OSError that names the
    file where it cannot be written.
    """
    try:
        if is_device(path):
            with _reader(Path(path)):
                write(Path(path))
            return
        target = Path(os.path.realpath(path))
        with suppress(FileExistsError):
            target.parent.mkdir(parents=True)
        clean(target.parent)
        with _room(target.parent) as room:
            beside = room / target.name
            write(beside)
            os.chmod(beside, _mode(target, room))
            os.replace(beside, target)
    except OSError as error:
        raised = OSError(f"cannot write {path}: {error.strerror or error}")
        raised.errno = error.errno
        raise raised from error


def clean(folder: str | Path) -> None:
    """Remove what runs that were killed left of the files that they were writing in a folder."""
    for room in Path(folder).glob(f"{ROOM}*") if fcntl else ():
        with suppress(OSError), _locked(room, fcntl.LOCK_EX | fcntl.LOCK_NB):
            # Some shared file systems keep locks to the host that took them.
            if room.name.startswith(f"{ROOM}{_HOST}-") or time.time() - room.stat().st_mtime > _DAY:
                shutil.rmtree(room)


@contextmanager
def _room(folder: Path) -> Iterator[Path]:
    """A new folder inside of another, locked as long as it is in use: a lock goes with its process."""
    with ExitStack() as stack:
        room = folder
        while room == folder or not room.exists():  # gone: taken for a dead run's before it was locked
            room = Path(tempfile.mkdtemp(prefix=f"{ROOM}{_HOST}-", dir=folder))
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


@contextmanager
def _reader(target: Path) -> Iterator[None]:
    """Raises OSError for a pipe that nobody reads, whose writer would wait for ever."""
    if not target.is_fifo():
        yield
        return
    descriptor = os.open(target, os.O_WRONLY | os.O_NONBLOCK)  # held, so that the reader waits for more
    try:
        yield
    finally:
        os.close(descriptor)


def _mode(target: Path, room: Path) -> int:
    """The old file's, or what a new file gets here: read from one, as the umask cannot be asked for
    without being set."""
    if target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    probe = room / ("mode" if target.name != "mode" else "mode_")
    probe.touch()
    return stat.S_IMODE(probe.stat().st_mode)
