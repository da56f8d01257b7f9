"""What else computes a layer: torch's operations, torch.compile, torchvision."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from cortado.layers._engine.dispatch import impl
from cortado.layers._engine.layer import Layer
from torch import Tensor

from . import plain
from .measuring import Function, compiled, tuple_of, without_gradient
from .results import COMPILED, OURS, TORCHVISION

AGREEMENT = {torch.float16: 3e-2, torch.bfloat16: 3e-2}  # of the largest element; otherwise 1e-2


class Unavailable(Exception):
    """The layer has no such alternative; the text says why."""


def implementation(layer: Layer, name: str, device: torch.device) -> Function:
    """A function of the layer's bottoms that gives its tops; raises :class:`Unavailable`.

    PLAIN is what a user would write, or else the layer's torch path where its kernels would run;
    COMPILED is ``torch.compile`` of what a user would write, or of the layer's torch path.
    """
    if name == OURS:
        return layer
    if name == TORCHVISION:
        return _of_torchvision(layer)
    written = plain.replacements(layer)
    if name == COMPILED:
        torch.compiler.reset()  # other samples of the layer count against the compiler's limit
        return compiled(written or layer)
    has_kernels = Path(inspect.getfile(type(layer))).with_suffix(".cu").exists()
    if not written and not (has_kernels and device.type == "cuda"):
        raise Unavailable("the layer itself computes in torch's operations")
    return written or layer


def _of_torchvision(layer: Layer) -> Function:
    function = plain.of_torchvision(layer)
    if function is None:
        raise Unavailable("torchvision has no such operation")
    if importlib.util.find_spec("torchvision") is None:
        raise Unavailable("torchvision is not installed")
    return function


def path(name: str) -> AbstractContextManager[None]:
    """Within, a layer that stands for an alternative computes in torch's operations."""
    return nullcontext() if name == OURS else impl("torch")


def difference(layer: Layer, name: str, function: Function, bottoms: Sequence[Tensor]) -> str:
    """How an alternative's first top differs from the layer's; empty if it does not, or where the
    layer's own is random."""
    if name == OURS:
        return ""
    tops: list[Tensor] = []
    runs: list[tuple[Function, str]] = [(layer, OURS), (layer, OURS), (function, name)]
    for seed, (of, its_name) in enumerate(runs):
        torch.manual_seed(seed)
        with path(its_name):
            tops += tuple_of(without_gradient(of, bottoms))[:1]
    if len(tops) < 3 or not torch.equal(*tops[:2]):
        return ""
    ours, theirs = (top.double() for top in tops[1:])
    if ours.shape != theirs.shape:
        return f"gives {list(theirs.shape)}, not {list(ours.shape)}"
    if torch.equal(ours, theirs):
        return ""
    scale = ours[ours.isfinite()].abs().amax().clamp(min=1e-30)
    away = torch.where(ours == theirs, 0.0, (theirs - ours).abs() / scale)  # of infinities too
    wrong = ~(away <= AGREEMENT.get(tops[0].dtype, 1e-2))
    share = 100 * float(wrong.double().mean())
    return f"{share:.3g}% differs, by up to {float(away.amax()):.2g} of the largest" if share else ""
