"""cortado: Caffe-era visual correspondence on today's PyTorch.

Names are resolved on first use, so that ``import cortado`` loads neither torch nor CuPy.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

_root = Path(__file__).resolve().parent.parent
if (_root / "setup.cfg").is_file() and (_root / "prototxt_like").is_dir():
    __path__.append(str(_root))  # a checkout without an install: PYTHONPATH=. is enough

__version__ = "0.1.0"

_NAMES = {
    "Net": "nets.net",
    "Solver": "nets.solver",
    "SpecError": "prototxt_like.source",
    "impl": "layers._runtime.dispatch",
    "checks": "layers._runtime.checks",
    "settle": "layers._runtime.checks",
    "register": "layers._runtime.registry",
    "Layer": "layers._runtime.layer",
    "Definition": "layers._runtime.definition",
    "Bottom": "layers._runtime.declared",
    "Top": "layers._runtime.declared",
    "Role": "layers._runtime.declared",
    "Trait": "layers._runtime.declared",
    "param": "layers._runtime.params",
    "Sample": "layers._runtime.samples",
    "BlobError": "layers._runtime.checks",
    "Kernels": "layers._runtime.plan",
    "match": "tools.matching",
    "pretrained": "nets.models",
    "open_pairs": "layers._runtime.keypoint_pairs",
}
__all__ = [*_NAMES, "functional", "gradcheck"]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"cortado.{_NAMES[name]}"), name)
    if name in ("functional", "gradcheck", "layers", "nets", "prototxt_like", "tools"):
        return importlib.import_module(f"cortado.{name}")
    raise AttributeError(f"module 'cortado' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
