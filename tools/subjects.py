"""Layers and nets as functions of tensors, for :mod:`cortado.tools.gradcheck`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from cortado.layers._engine.layer import Layer
    from cortado.nets.net import Net
    from torch import Tensor


def layer_class(layer: Any) -> type[Layer]:
    from cortado.layers._engine import registry
    from cortado.prototxt_like.source import did_you_mean

    if not isinstance(layer, str):
        found: type[Layer] = layer
        return found
    entry = registry.find(layer)
    if entry is None:
        hint = did_you_mean(layer, registry.types(), "known")
        raise LookupError(f'no layer type "{layer}": {hint}')
    return entry.layer


def samples_of(
    kind: type[Layer],
    made: Layer | None,
    params: Any,
    bottoms: Sequence[Any] | None,
    wrt: Sequence[int] | None,
    tops: Sequence[int] | None,
    seed: int,
) -> Iterator[Any]:
    """What to check: the bottoms given, or the layer's own samples whose gradient can be checked."""
    import numpy as np
    import torch
    from cortado.layers._engine.samples import Sample

    if made is not None:
        params = made.params
    elif isinstance(params, Mapping):
        from cortado.prototxt_like import loads
        from cortado.prototxt_like.bind import bind

        params = bind(kind.Params, loads(json.dumps(params), "params"), what=kind.__name__)
    if bottoms is not None:
        tensors = tuple(torch.as_tensor(bottom) for bottom in bottoms)
        floating = [i for i, x in enumerate(tensors) if x.is_floating_point()]
        learnt = [i for i in floating if kind.record(i, len(tensors)).features]
        given = learnt if wrt is None else wrt
        yield Sample(params or kind.Params(), tensors, tuple(given))
        return
    if not hasattr(kind, "samples"):
        raise ValueError(f"{kind.__name__} has no samples of its own: give bottoms")
    for sample in kind.samples("small", np.random.default_rng(seed)):
        if sample.check_gradient and params in (None, sample.params):
            chosen = sample.differentiable if wrt is None else tuple(wrt)
            yield Sample(sample.params, sample.bottoms, chosen, sample.tops, sample.name)


def filled(kind: type[Layer], params: Any, bottoms: Sequence[Tensor], seed: int) -> Layer:
    """A layer whose learnable blobs are normal numbers: a filler's zeros would hide mistakes."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    layer = kind(params, tuple(tuple(x.shape) for x in bottoms), generator)
    for blob in layer.parameters():
        if blob.requires_grad:
            with torch.no_grad():
                blob.normal_(generator=generator)
    return layer


def module_function(module: torch.nn.Module, blobs: list[str], bottoms: int) -> Callable[..., Any]:
    """The module as a function of its bottoms and blobs, that leaves the module as it was."""
    from torch.func import functional_call

    def run(*inputs: Tensor) -> Any:
        given = dict(zip(blobs, inputs[bottoms:], strict=True))
        dtype = next((x.dtype for x in inputs if x.is_floating_point()), None)
        rest = dict(module.named_buffers()) | {
            name: p for name, p in module.named_parameters() if name not in given
        }
        for name, kept in rest.items():
            given[name] = kept.detach().clone().to(dtype) if kept.is_floating_point() else kept.clone()
        return functional_call(module, given, inputs[:bottoms])

    return run


def kept_dtype(is_table: bool, x: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The type that an input is checked in: tables of coordinates are float32 at least."""
    import torch

    if not x.is_floating_point():
        return x.dtype
    return torch.float32 if is_table and dtype.itemsize < 4 else dtype


def is_table(layer: type[Layer], i: int, count: int) -> bool:
    """Whether input ``i`` is one of ``count`` bottoms, and holds coordinates."""
    return i < count and layer.record(i, count).coordinates


def bottom_name(layer: type[Layer], i: int) -> str:
    known = i < len(layer.BOTTOMS) and not layer.BOTTOMS[0].many
    return f'bottom "{layer.BOTTOMS[i].name}"' if known else f"bottom {i}"


def uncheckable(net: Net) -> set[str]:
    """Inputs that some layer reads as labels or coordinates."""
    return {
        made.node.bottoms[i]
        for made in net.built.layers
        for i in range(len(made.node.bottoms))
        if not made.layer.record(i, len(made.node.bottoms)).features
    }


def net_function(net: Net, inputs: list[str], keys: list[str]) -> Callable[..., Any]:
    """The net's loss, or its outputs, as a function of its inputs and parameters."""
    from torch.func import functional_call

    has_loss = any(any(made.loss_weights) for made in net.built.layers)

    def function(*tensors: Tensor) -> Any:
        given = dict(zip(inputs, tensors, strict=False))
        dtype = next((x.dtype for x in tensors[len(inputs) :]), None)
        kept = {name: buffer.clone() for name, buffer in net.named_buffers()}
        kept |= {name: p.detach().to(dtype) for name, p in net.named_parameters() if name not in keys}
        learnt = dict(zip(keys, tensors[len(inputs) :], strict=True))
        blobs = functional_call(net, kept | learnt, (given,))
        return blobs.loss if has_loss else tuple(blobs[name] for name in net.outputs)

    return function


@contextmanager
def one_batch(net: Net, precision: Callable[[], torch.dtype]) -> Iterator[None]:
    """Within, layers without bottoms give the batch of their first call, in ``precision()``."""
    batches: dict[int, tuple[Tensor, ...]] = {}

    def same(layer: Layer, bottoms: Any, tops: Any) -> tuple[Tensor, ...]:
        import torch

        tops = (tops,) if isinstance(tops, torch.Tensor) else tuple(tops)
        batch = batches.setdefault(id(layer), tops)
        return tuple(top.to(precision()) if top.is_floating_point() else top for top in batch)

    sources = [m.layer for m in net.built.layers if not m.node.bottoms and m.node.type != "Input"]
    hooks = [layer.register_forward_hook(same) for layer in sources]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
