"""Files are replaced whole or not at all, and nothing beside them is touched."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cortado.prototxt_like import files
from cortado.prototxt_like.files import clean, open_file, replace_file


def write(text: str):
    return lambda beside: beside.write_text(text, encoding="utf-8")


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "folders" / "that are made" / "a.txt"
    for text in ("old", "new"):
        replace_file(path, write(text))
        assert path.read_text() == text
    assert names(path.parent) == ["a.txt"]


def test_a_write_that_fails_leaves_the_old(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(beside: Path) -> None:
        beside.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="cannot write .*a.txt: No space left on device"):
        replace_file(path, fail)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_the_name_is_the_file_s_own(tmp_path: Path) -> None:
    """Some writers choose their format by it."""
    seen = []
    replace_file(
        tmp_path / "a.caffemodel.h5", lambda beside: (seen.append(beside.name), beside.touch())
    )
    assert seen == ["a.caffemodel.h5"]


def test_files_beside_it_are_not_touched(tmp_path: Path) -> None:
    others = ["out.csv.part", ".out.csv", f".out.csv.{os.getpid()}", "out.csv~", "out.csv.tmp"]
    for name in others:
        (tmp_path / name).write_text(name)
    replace_file(tmp_path / "out.csv", write("new"))
    assert names(tmp_path) == sorted([*others, "out.csv"])
    assert all((tmp_path / name).read_text() == name for name in others)


def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    there, link = tmp_path / "elsewhere" / "a.txt", tmp_path / "link.txt"
    link.symlink_to(there)
    for text in ("made", "replaced"):  # of a file that is not there yet, too
        replace_file(link, write(text))
        assert link.is_symlink()
        assert there.read_text() == text
    assert names(tmp_path / "elsewhere") == ["a.txt"]


def test_a_device_is_written_to(tmp_path: Path) -> None:
    replace_file("/dev/null", write("gone"))
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)

    def through(beside: Path) -> None:
        with pytest.raises(BlockingIOError):  # no end before the last writer is gone
            os.read(reader, 1)
        beside.write_text("through")

    replace_file(pipe, through)
    assert [os.read(reader, 100) for _ in range(2)] == [b"through", b""]
    os.close(reader)
    assert stat.S_ISFIFO(os.stat(pipe).st_mode)


def test_a_pipe_without_a_name_is_written_to() -> None:
    """As ``--out /dev/stdout | gzip``: what /dev/stdout leads to is no path."""
    reader, writer = os.pipe()
    replace_file(f"/dev/fd/{writer}", write("through"))
    os.close(writer)
    assert [os.read(reader, 100) for _ in range(2)] == [b"through", b""]
    os.close(reader)


def test_a_pipe_that_nobody_reads_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="cannot write .*pipe: No such device or address"):
        replace_file(tmp_path / "pipe", write("nobody"))


def test_a_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(OSError, match="cannot write .*link: Too many levels of symbolic links"):
        replace_file(tmp_path / "link", write("new"))
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_the_mode_of_a_new_file_is_as_the_umask_says(tmp_path: Path, mask: int) -> None:
    def private(beside: Path) -> None:
        beside.write_text("new")
        beside.chmod(0o600)  # as safetensors makes its files

    before = os.umask(mask)
    try:
        replace_file(tmp_path / "a.txt", private)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o666 & ~mask


def test_the_mode_of_an_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(0o640)
    replace_file(path, write("new"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


KILLED = """
import sys, time
from cortado.prototxt_like.files import replace_file

def write(beside):
    beside.write_text("half")
    (beside.parent / "of the writer's own").write_text("too")
    print("writing", flush=True)
    time.sleep(60)

replace_file(sys.argv[1], write)
"""


def test_what_killed_runs_left_is_removed_and_what_is_written_now_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    runs = [
        subprocess.Popen([sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE) for _ in range(2)
    ]
    try:
        for run in runs:
            assert run.stdout
            assert run.stdout.readline() == b"writing\n"
        assert len(names(tmp_path)) == 3
        runs[0].send_signal(signal.SIGKILL)
        runs[0].wait()
        clean(tmp_path)
        assert len(names(tmp_path)) == 2
        replace_file(path, write("new"))
        assert len(names(tmp_path)) == 2
    finally:
        for run in runs:
            run.kill()
            run.communicate()
    replace_file(path, write("newer"))
    assert names(tmp_path) == ["a.txt"]
    assert path.read_text() == "newer"


def test_a_user_s_own_folder_of_that_name_is_a_room_or_left(tmp_path: Path) -> None:
    link = tmp_path / f"{files.ROOM}{files._HOST}-link"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    link.symlink_to(tmp_path / "mine")
    (tmp_path / f"{files.ROOM}{files._HOST}-file").touch()
    clean(tmp_path)
    assert names(tmp_path) == [f"{files.ROOM}{files._HOST}-{name}" for name in ("file", "link")] + [
        "mine"
    ]
    assert names(tmp_path / "mine") == ["file"]


def test_another_host_s_room_is_left_for_a_day(tmp_path: Path) -> None:
    """Its lock may not be seen from here."""
    room = tmp_path / f"{files.ROOM}elsewhere-abc"
    room.mkdir()
    clean(tmp_path)
    assert room.exists()
    os.utime(room, (0, 0))
    clean(tmp_path)
    assert not room.exists()


@pytest.mark.parametrize("name", ["a" * 255, "mode", "-", "a b", "é"])
def test_any_name_of_a_file(tmp_path: Path, name: str) -> None:
    replace_file(tmp_path / name, write("new"))
    assert names(tmp_path) == [name]
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) & 0o600 == 0o600


def test_the_error_has_its_number(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(OSError, match="cannot write .*: Not a directory") as caught:
        replace_file(tmp_path / "a" / "b", write("new"))
    assert caught.value.errno == errno.ENOTDIR


def test_many_writers_of_one_file(tmp_path: Path) -> None:
    path, errors = tmp_path / "a.txt", []

    def work(text: str) -> None:
        try:
            for _ in range(20):
                replace_file(path, write(text * 1000))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(text,)) for text in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert names(tmp_path) == ["a.txt"]
    assert path.read_text() in {text * 1000 for text in "abcd"}


def test_only_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(OSError, match="not a file, but a pipe or a device"):
            open_file(path)
    with pytest.raises(IsADirectoryError):
        open_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_file(tmp_path / "none")
