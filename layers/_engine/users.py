"""Code of the user's own, the modules of Python layers and plugins: what an error in it shows."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

PLUGIN = "cortado_plugin_"
"""What the names of plugins' modules begin with."""
FRAMES = 5  # of a traceback that are shown


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of the user's: whatever is raised within is the user's, too."""
    return function(*arguments)


def called_lines(error: BaseException | None) -> str:
    """What was raised within :func:`call`, and the last lines of the user's own traceback, which are
    none where the call itself failed. "" for an error, and causes of it, that come from elsewhere."""
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [i for i, f in enumerate(frames) if (f.filename, f.name) == (__file__, call.__name__)]
        if ours:
            return _lines(error, [f for f in frames[ours[-1] + 1 :] if not _imports(f.filename)])
        error = error.__cause__
    return ""


def plugin_lines(error: BaseException) -> str:
    """What was raised in a plugin, and the last lines of its own traceback; "" elsewhere."""
    plugins = {getattr(m, "__file__", "") for n, m in sys.modules.items() if n.startswith(PLUGIN)}
    frames = traceback.extract_tb(error.__traceback__)
    inside = [i for i, frame in enumerate(frames) if frame.filename in plugins]
    if isinstance(error, SyntaxError) and error.filename in plugins:
        return _lines(error, [])
    return _lines(error, frames[inside[0] :]) if inside else ""


def _lines(error: BaseException, frames: Sequence[traceback.FrameSummary]) -> str:
    """The error, the last of the frames, and for a SyntaxError its place."""
    notes = [f"{note}\n" for note in getattr(error, "__notes__", ())]
    *where, what = (x for x in traceback.format_exception_only(error) if x not in notes)
    return "".join([what, *traceback.format_list(frames[-FRAMES:]), *where]).rstrip()


def _imports(filename: str) -> bool:
    return filename == importlib.__file__ or filename.startswith("<frozen importlib")
