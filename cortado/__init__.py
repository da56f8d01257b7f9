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
    "impl": "layers._engine.dispatch",
    "checks": "layers._engine.checks",
    "settle": "layers._engine.checks",
    "register": "layers._engine.registry",
    "Layer": "layers._engine.layer",
    "Definition": "layers._engine.definition",
    "define": "layers._engine.definition",
    "Bottom": "layers._engine.declared",
    "Top": "layers._engine.declared",
    "Role": "layers._engine.declared",
    "Trait": "layers._engine.declared",
    "param": "layers._engine.params",
    "Sample": "layers._engine.samples",
    "BlobError": "layers._engine.checks",
    "Kernels": "layers._engine.plan",
    "match": "tools.matching",
    "pretrained": "nets.models",
    "open_pairs": "layers._data.keypoint_pairs",
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
