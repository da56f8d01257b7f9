"""Finds the shared folder of vectors and data that lies beside the project, where it is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "tests" / "vectors"
NOT_KEPT = "a Caffe vector case of the shared folder, which is not here (set CORTADO_SHARED)"


def _find() -> Path | None:
    candidates = [Path(os.environ[k]) for k in ("CORTADO_SHARED",) if k in os.environ]
    candidates.append(ROOT.parent / "shared")
    return next((path for path in candidates if (path / "caffe_vectors").is_dir()), None)


SHARED = _find()
needs_shared = pytest.mark.skipif(
    SHARED is None, reason="the shared folder is not here (set CORTADO_SHARED)"
)


def cases(*prefixes: str) -> list[ParameterSet]:
    """The Caffe vector cases whose names start so, as values of ``pytest.mark.parametrize``.

    Each is a folder: in the shared folder, else among those kept here; a case that is in neither is
    skipped. The mark ``caffe_vector`` lets the summary count them.
    """
    names = sorted(name for name in _names() if name.startswith(prefixes))
    assert names, f"no Caffe vector case starts with {prefixes}"
    return [pytest.param(_folder(name), id=name, marks=_marks(name)) for name in names]


def case(name: str) -> Path:
    """The folder of one case; the test is skipped where it is not here."""
    if not _folder(name).is_dir():
        pytest.skip(NOT_KEPT)
    return _folder(name)


def _names() -> list[str]:
    if SHARED:
        return [path.name for path in (SHARED / "caffe_vectors").iterdir() if path.is_dir()]
    return (KEPT / "names.txt").read_text(encoding="utf-8").split()


def _folder(name: str) -> Path:
    return (SHARED / "caffe_vectors" if SHARED else KEPT) / name


def _marks(name: str) -> list[pytest.MarkDecorator]:
    missing = pytest.mark.skipif(not _folder(name).is_dir(), reason=NOT_KEPT)
    return [pytest.mark.caffe_vector, missing]
