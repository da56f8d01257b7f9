"""The name ``caffe`` for this package, for modules that were written for Caffe."""

from __future__ import annotations

import importlib.util
import sys

_PACKAGE = __name__.rpartition(".")[0]


def install() -> None:
    """Let ``import caffe`` give this package from now on, in all modules of the process."""
    for name, module in list(sys.modules.items()):
        if name == _PACKAGE or name.startswith(f"{_PACKAGE}."):
            sys.modules["caffe" + name.removeprefix(_PACKAGE)] = module


def install_where_missing() -> None:
    """:func:`install`, unless there is a Caffe."""
    if "caffe" not in sys.modules and importlib.util.find_spec("caffe") is None:
        install()
