"""Finding the layer that first gave a value that is not finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .build import BuiltLayer
from .net import Net


def first_nonfinite(net: Net, inputs: Mapping[str, Tensor]) -> str:
    """Run the net once and say which layer first had parameters, or gave tops, with NaN or infinity.

    Gives ``layer "conv3" (net.yaml:12): top "conv3" [2, 16, 8, 8] has 3 values that are not
    finite``, or "" where everything was finite. Raises what the net raises.
    """
    found: list[str] = []

    def look(made: BuiltLayer, module: nn.Module, _: Any, out: Any) -> None:
        if found:
            return
        blobs = {f'parameter "{n}"': getattr(module, n) for n in made.layer.blob_names}
        tops = (out,) if isinstance(out, Tensor) else out
        blobs |= {f'top "{name}"': top for name, top in zip(made.tops, tops, strict=False)}
        for what, blob in blobs.items():
            bad = int((~torch.isfinite(blob.detach())).sum())
            if bad:
                place = f"{made.node} ({made.node.span.place})"
                found.append(f"{place}: {what} {list(blob.shape)} has {bad} values that are not finite")
                return

    hooks = [
        made.layer.register_forward_hook(lambda *args, made=made: look(made, *args))
        for made in net.built.layers
    ]
    try:
        net(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else ""
