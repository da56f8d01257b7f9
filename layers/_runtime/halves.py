"""Half precision under autocast, where a layer has no sums that would suffer from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .definition import Definition


def outside_of_autocast(definition: Definition, params: Any, bottom: Any, *others: Tensor) -> Tensor:
    """``definition(params, bottom, *others)`` in the types that they have: half gives half."""
    first = bottom[0] if isinstance(bottom, (list, tuple)) else bottom
    device = first.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):  # of which meta has none
        return definition(params, bottom, *others)
    with torch.autocast(device, enabled=False):
        return definition(params, bottom, *others)
