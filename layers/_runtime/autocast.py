"""How the layers meet torch's autocast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def apply(function: type[torch.autograd.Function], *inputs: Any) -> Any:
    """``function.apply(*inputs)`` outside of autocast.

    Where autocast is on, half inputs are read as float32, as torch's own norms and losses do.
    """
    device = next(x.device.type for x in inputs if isinstance(x, Tensor))
    if device == "meta" or not torch.is_autocast_enabled(device):  # of which meta has none
        return function.apply(*inputs)
    with torch.autocast(device, enabled=False):
        return function.apply(*map(_full, inputs))


def _full(x: Any) -> Any:
    half = isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16)
    return x.float() if half else x
