"""Finding the layer that first gave a value that is not finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .net import Net, Step


def first_nonfinite(net: Net, inputs: Mapping[str, Tensor]) -> str:
    """Run the net once and say which layer first had parameters, or gave tops, with NaN or infinity.

    Gives ``layer "conv3" (net.yaml:12): top "conv3" [2, 16, 8, 8] has 3 values that are not
    finite``, or "" where everything was finite. Raises what the net raises.
    """
    found: list[str] = []

    def look(step: Step, blobs: Mapping[str, Tensor]) -> None:
        for what, blob in blobs.items():
            bad = int((~torch.isfinite(blob.detach())).sum())
            if bad:
                place = f'layer "{step.name}" ({step.span.place})'
                found.append(f"{place}: {what} {list(blob.shape)} has {bad} values that are not finite")

    def look_at(step: Step, module: nn.Module, _: Any, out: Any) -> None:
        tops = (out,) if isinstance(out, Tensor) else out
        look(step, {f'parameter "{name}"': getattr(module, name) for name in step.layer.blob_names})
        look(step, {f'top "{name}"': top for name, top in zip(step.tops, tops, strict=False)})

    hooks = []
    for step in net.steps:
        if step.is_input:
            look(step, {f'top "{name}"': inputs[name] for name in step.tops if name in inputs})
        else:
            hook = step.layer.register_forward_hook(lambda *args, step=step: look_at(step, *args))
            hooks.append(hook)
    try:
        net(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else ""
