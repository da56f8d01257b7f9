"""The Caffe vector cases that are kept here are those of the shared folder, to the byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from shared import KEPT, SHARED, needs_shared

FOLDERS = sorted(path for path in KEPT.iterdir() if path.is_dir())


@needs_shared
@pytest.mark.parametrize("kept", FOLDERS, ids=lambda path: path.name)
def test_kept_as_it_is(kept: Path) -> None:
    original = SHARED / "caffe_vectors" / kept.name
    for path in original.rglob("*"):
        if path.is_file():
            copy = kept / path.relative_to(original)
            assert copy.read_bytes() == path.read_bytes(), path.name


def test_a_selection_of_two_megabytes() -> None:
    assert sum(path.stat().st_size for path in KEPT.rglob("*")) < 2_000_000
    names = (KEPT / "names.txt").read_text(encoding="utf-8").split()
    assert {path.name for path in FOLDERS} <= set(names)
