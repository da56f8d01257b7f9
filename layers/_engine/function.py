"""The autograd Function of a layer: one class a layer, named after it, over its definition.

What no layer has, a second derivative, vmap and forward mode, is refused here in the words that the
operators use too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree

C = TypeVar("C", bound=Callable[..., Any])
REFUSED = {
    "second derivative": "its gradient cannot be differentiated again",
    "vmap": "give it a batch",
    "forward mode": "ask for its gradient by backward",
}
OWN = 4  # arguments of a Function before the bottoms


def refusal(name: str, what: str) -> str:
    """Why a layer's second derivative, vmap or forward mode is not to be had."""
    return f"{name} has no {what}: {REFUSED[what]}"


def constant(function: C) -> C:
    """A function that compilers call as they trace, its result a constant of the graph: what
    torch.compiler.assume_constant_result makes, without importing the compiler, 2 s and 70 MB."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


class LayerFunction(torch.autograd.Function):
    """What the layers' Functions are made of."""

    @staticmethod
    def forward(d: Any, kernels: bool, keep: bool, params: Any, *bottoms: Any) -> tuple[Any, ...]:
        found: tuple[Any, ...] = d.compute(kernels, keep, params, d.nested(bottoms))
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        ctx.definition, ctx.kernels, _, ctx.params, *bottoms = inputs
        ctx.definition.save(ctx, ctx.definition.nested(bottoms), output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        d, needs = ctx.definition, ctx.needs_input_grad[OWN:]
        found: list[Tensor | None] = [None] * (OWN + len(needs))
        arguments = d.arguments(ctx, gradients, d.wanted(needs))
        if not arguments:
            return tuple(found)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # a graph of the gradient
            leaves, spec = _pytree.tree_flatten(arguments)
            leaves = leaves if transformed() else asking(leaves)
            own = LayerGradient.apply(d, ctx.kernels, ctx.params, spec, *leaves)
        else:
            own = d.differentiate(ctx.kernels, ctx.params, arguments)
        for i, gradient in zip(range(len(own)) if d.many else d.learning, own, strict=True):
            found[OWN + i] = gradient
        return tuple(found)

    @staticmethod
    def vmap(info: Any, in_dims: Any, d: Any, *inputs: Any) -> Any:
        raise RuntimeError(refusal(d.name, "vmap"))


def asking(leaves: list[Any]) -> list[Any]:
    """With one at least that asks for a gradient: or a layer's gradient would pass for a constant where
    nothing that it is computed from does, and be dropped from a second one without a word."""
    tensors = [x for x in leaves if isinstance(x, Tensor)]
    if any(x.requires_grad for x in tensors):
        return leaves
    floating = [isinstance(x, Tensor) and x.is_floating_point() for x in leaves]
    return [x.detach().requires_grad_() if y else x for x, y in zip(leaves, floating, strict=True)]


class LayerGradient(torch.autograd.Function):
    """A layer's gradient as a node of a graph, which refuses to be differentiated again."""

    @staticmethod
    def forward(d: Any, kernels: bool, params: Any, spec: Any, *leaves: Any) -> tuple[Any, ...]:
        arguments = _pytree.tree_unflatten(list(leaves), spec)
        return tuple(d.differentiate(kernels, params, arguments))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.name = inputs[0].name

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> Any:
        raise RuntimeError(refusal(ctx.name, "second derivative"))

    @staticmethod
    def vmap(info: Any, in_dims: Any, d: Any, *inputs: Any) -> Any:
        raise RuntimeError(refusal(d.name, "vmap"))


def of_layer(name: str) -> type[LayerFunction]:
    """The layer's own Function, which profilers and ``grad_fn`` show by its name."""
    title = "".join(part.capitalize() for part in name.split("_"))
    return type(title, (LayerFunction,), {"__module__": __name__})


def apply(function: type[LayerFunction], *inputs: Any) -> Any:
    """``function.apply(*inputs)`` outside of torch.func's transforms, without its cost: it asks inspect
    for the signature of forward, some 10 us a call."""
    return super(torch.autograd.Function, function).apply(*inputs)  # type: ignore[misc]


def transformed() -> bool:
    """Whether one of torch.func's transforms, or forward mode, is under way."""
    active: bool = torch._C._are_functorch_transforms_active()
    return active or forward_ad._current_level >= 0


def expect_backward_mode(name: str, tensors: Sequence[Any]) -> None:
    """Raise for tensors that carry a tangent."""
    if forward_ad._current_level < 0:
        return
    for x in tensors:
        if isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None:
            raise RuntimeError(refusal(name, "forward mode"))


@constant
def refused_transform() -> bool:
    """Whether a compiler traces vmap or forward mode, which the operator refuses."""
    stack = torch._C._functorch.get_interpreter_stack() or []
    grad = torch._C._functorch.TransformType.Grad
    return any(interpreter.key() != grad for interpreter in stack)
