"""Finds the shared folder of vectors and data that lies beside the project, where it is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _find() -> Path | None:
    candidates = [Path(os.environ[k]) for k in ("CORTADO_SHARED",) if k in os.environ]
    candidates.append(ROOT.parent / "shared")
    return next((path for path in candidates if (path / "caffe_vectors").is_dir()), None)


SHARED = _find()
needs_shared = pytest.mark.skipif(
    SHARED is None, reason="the shared folder is not here (set CORTADO_SHARED)"
)


def cases(*prefixes: str) -> list[Path]:
    """The Caffe vector cases whose names start so: from the shared folder, else those kept here."""
    folder = SHARED / "caffe_vectors" if SHARED else ROOT / "tests" / "vectors"
    found = sorted(path for path in folder.glob("*") if path.name.startswith(prefixes))
    return [path for path in found if path.is_dir()]
