"""Is a backward the derivative of its forward? Two checks by finite differences.

:func:`directional` follows a few random directions, so it is cheap at any size;
:func:`caffe_check` moves every element by itself, as Caffe's ``GradientChecker`` does, but
measures errors against the gradient's own size (Caffe's are never measured against less than 1,
so that small gradients pass whatever they are).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Any]


class GradientError(AssertionError):
    """A gradient that differs from the finite difference by more than the threshold."""


def directional(
    function: Function,
    inputs: Sequence[Tensor],
    wrt: Sequence[int] = (0,),
    tops: Sequence[int] = (0,),
    *,
    step: float = 1e-5,
    threshold: float = 1e-5,
    directions: int = 2,
    seed: int = 0,
) -> list[float]:
    """The relative error of each input's gradient along random directions; raises above ``threshold``.

    The objective is a randomly weighted sum of the chosen ``tops``. A direction's elements are
    normal; the step is ``step`` times that. The error of an input is
    ``|analytic - numeric| / |numeric|``, both vectors over the directions. Float64 inputs only.
    """
    _expect_double(inputs, wrt)
    generator = torch.Generator().manual_seed(seed)
    objective = _objective(function, tops, generator)
    errors = []
    for i, gradient in zip(wrt, _gradients(objective, inputs, wrt), strict=True):
        analytic, numeric = [], []
        for _ in range(directions):
            direction = _normal(inputs[i], generator)
            with torch.no_grad():
                ahead = objective(*_moved(inputs, i, direction, step))
                behind = objective(*_moved(inputs, i, direction, -step))
            numeric.append(float(ahead - behind) / (2 * step))
            analytic.append(float((gradient * direction).sum()))
        errors.append(_relative(torch.tensor(analytic), torch.tensor(numeric)))
    return _judged("directional", errors, wrt, threshold)


def caffe_check(
    function: Function,
    inputs: Sequence[Tensor],
    wrt: Sequence[int] = (0,),
    tops: Sequence[int] = (0,),
    *,
    step: float = 1e-2,
    threshold: float = 1e-3,
    kink: float = 0.0,
    kink_range: float = -1.0,
) -> list[float]:
    """The relative error of each input's Jacobian, element by element; raises above ``threshold``.

    Input elements whose magnitude is within ``kink_range`` of ``kink`` are left out. The error is
    the largest difference over the Jacobian's largest magnitude. Takes two forward passes per
    input element and a backward pass per top element: for small inputs, in float64.
    """
    _expect_double(inputs, wrt)

    def flat(*bottoms: Tensor) -> Tensor:
        return torch.cat([top.reshape(-1) for top in _chosen(function(*bottoms), tops)])

    leaves = _leaves(inputs, wrt)
    top = flat(*leaves)
    rows = [
        torch.autograd.grad(element, [leaves[i] for i in wrt], retain_graph=True, allow_unused=True)
        for element in top
    ]
    errors = []
    for column, i in enumerate(wrt):
        moved = inputs[i].detach().clone(memory_format=torch.contiguous_format)
        around = [*inputs[:i], moved, *inputs[i + 1 :]]
        values, numeric = moved.view(-1), moved.new_zeros(moved.numel(), len(rows))
        with torch.no_grad():
            for element, value in enumerate(values.tolist()):
                values[element] = value + step
                ahead = flat(*around)
                values[element] = value - step
                numeric[element] = (ahead - flat(*around)) / (2 * step)
                values[element] = value
        kept = (values.abs() - kink).abs() > kink_range
        blank = torch.zeros_like(inputs[i])
        found = [blank if row[column] is None else row[column] for row in rows]
        analytic = torch.stack([gradient.reshape(-1) for gradient in found], dim=1)
        errors.append(_relative(analytic[kept], numeric[kept], float("inf")))
    return _judged("caffe_check", errors, wrt, threshold)


def _expect_double(inputs: Sequence[Tensor], wrt: Sequence[int]) -> None:
    for i in wrt:
        if inputs[i].dtype != torch.float64:
            raise TypeError(f"expected input {i} to be float64, got {inputs[i].dtype}")


def _chosen(tops: Any, wanted: Sequence[int]) -> list[Tensor]:
    tops = tops if isinstance(tops, tuple) else (tops,)
    return [tops[i] for i in wanted]


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)


def _objective(
    function: Function, wanted: Sequence[int], generator: torch.Generator
) -> Callable[..., Tensor]:
    weights: list[Tensor] = []

    def objective(*bottoms: Tensor) -> Tensor:
        tops = _chosen(function(*bottoms), wanted)
        if not weights:
            weights.extend(_normal(top, generator) for top in tops)
        return torch.stack([(w * top).sum() for w, top in zip(weights, tops, strict=True)]).sum()

    return objective


def _leaves(inputs: Sequence[Tensor], wrt: Sequence[int]) -> list[Tensor]:
    return [x.detach().requires_grad_(i in wrt) for i, x in enumerate(inputs)]


def _gradients(
    objective: Callable[..., Tensor], inputs: Sequence[Tensor], wrt: Sequence[int]
) -> list[Tensor]:
    leaves = _leaves(inputs, wrt)
    found = torch.autograd.grad(
        objective(*leaves), [leaves[i] for i in wrt], allow_unused=True, materialize_grads=True
    )
    return list(found)


def _moved(inputs: Sequence[Tensor], i: int, direction: Tensor, step: float) -> list[Tensor]:
    return [*inputs[:i], torch.add(inputs[i], direction, alpha=step), *inputs[i + 1 :]]


def _relative(analytic: Tensor, numeric: Tensor, order: float = 2) -> float:
    """The difference over the finite difference's size; a NaN is infinitely wrong."""
    if analytic.numel() == 0 or torch.equal(analytic, numeric):
        return 0.0
    difference = torch.linalg.vector_norm(analytic - numeric, order)
    error = float(difference / torch.linalg.vector_norm(numeric, order))
    return error if error == error else float("inf")


def _judged(check: str, errors: list[float], wrt: Sequence[int], threshold: float) -> list[float]:
    bad = [f"input {i} by {e:.3g}" for i, e in zip(wrt, errors, strict=True) if e > threshold]
    if bad:
        raise GradientError(f"{check}: gradient is off for {', '.join(bad)} (threshold {threshold:g})")
    return errors
