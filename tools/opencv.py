"""OpenCV, which the extra ``opencv`` brings."""

from __future__ import annotations

from contextlib import suppress
from typing import Any


class NoOpenCV(ImportError):
    """OpenCV is not there; the text says what needs it, and what to install."""


def opencv(what: str, extra_modules: bool = False) -> Any:
    """The module cv2, with ``xfeatures2d`` if need be; raises :class:`NoOpenCV`, which names ``what``
    needs it, where it is not installed."""
    found: Any = None
    with suppress(ImportError):
        import cv2

        found = cv2
    if found is None or (extra_modules and not hasattr(found, "xfeatures2d")):
        modules = " with its extra modules" if extra_modules else ""
        raise NoOpenCV(f"{what} needs OpenCV{modules}: pip install cortado[opencv]")
    return found
