"""Gradients against finite differences: the arithmetic of :mod:`cortado.tools.gradcheck`.

A difference is taken at a step and, where one-sided differences disagree, at smaller ones: where a
function is smooth the disagreement shrinks with the step, at a kink or a jump it does not.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Any]

FINER = 4.0  # each smaller step is this part of the one before
SUSPECT = 1e-3  # one-sided differences that disagree by more than this are looked at closer
NOISE = 64 * torch.finfo(torch.float64).eps


class Verdict(enum.Enum):
    """What a check says of one blob's gradient."""

    OK = "ok"
    WRONG = "wrong"
    KINK = "not smooth here"
    BLIND = "could not fail"


@dataclass(frozen=True)
class Finding:
    """A blob's gradient against differences.

    ``error`` is relative to the gradient's own scale; ``index``, ``analytic``, ``numeric`` and
    ``step`` are of the worst element (of the worst direction, without an index). ``checked``
    elements, or directions, were compared, ``kinks`` were not, as the function is not smooth there.
    ``note``: what a check found that has no numbers.
    """

    blob: str
    verdict: Verdict
    error: float = 0.0
    index: tuple[int, ...] = ()
    analytic: float = 0.0
    numeric: float = 0.0
    step: float = 0.0
    checked: int = 0
    kinks: int = 0
    note: str = ""


@dataclass(frozen=True)
class Differences:
    """Central differences [...], their rounding, the steps, and where there is a kink."""

    numeric: Tensor
    noise: Tensor
    steps: Tensor
    kink: Tensor


def difference(at: Callable[[float], Tensor], here: Tensor, step: float) -> Differences:
    """The derivative at 0 of a function of a number, element by element of its value, in float64.

    ``here`` is its value there. Takes two evaluations, four more where one-sided differences disagree.
    """
    numeric, gap, noise, size = _two_sided(at, here, step)
    steps = torch.full_like(numeric, step)
    suspect = ~(gap <= SUSPECT * size + noise)  # NaN is suspect
    if not bool(suspect.any()):
        return Differences(numeric, noise, steps, suspect)
    _, coarse, _, _ = _two_sided(at, here, step / FINER)
    finest, fine, fine_noise, _ = _two_sided(at, here, step / FINER**2)
    kink = suspect & ~((fine <= coarse / 2) | (fine <= fine_noise))
    numeric = torch.where(suspect, finest, numeric)
    noise = torch.where(suspect, fine_noise, noise)
    steps = torch.where(suspect, step / FINER**2, steps)
    return Differences(numeric, noise, steps, kink)


def _two_sided(at: Callable[[float], Tensor], here: Tensor, step: float) -> tuple[Tensor, ...]:
    """The central difference, by how much the one-sided ones differ, the rounding in that, and the
    larger one-sided difference."""
    above, below = at(step), at(-step)
    ahead, behind = (above - here) / step, (here - below) / step
    largest = torch.maximum(torch.maximum(above.abs(), below.abs()), here.abs())
    size = torch.maximum(ahead.abs(), behind.abs())
    return (above - below) / (2 * step), (ahead - behind).abs(), NOISE * largest / step, size


def exhaustive(
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor],
    analytic: Callable[..., Sequence[Tensor]],
    wrt: Sequence[int],
    names: Sequence[str],
    *,
    step: float,
    threshold: float,
    kink: float = 0.0,
    kink_range: float = -1.0,
    floor: float = 0.0,
    elements: int | None = None,
    generator: torch.Generator,
) -> list[Finding]:
    """Every element of the inputs ``wrt`` against every element of the tops.

    ``function`` gives the tops in float64, ``analytic`` those that gradients are taken of. Elements
    whose magnitude is within ``kink_range`` of ``kink`` are left out; of an input with more than
    ``elements``, so many random ones are looked at. The error is the largest difference over the
    largest magnitude of the differences, which is taken to be ``floor`` at least.
    """

    def flat(*bottoms: Tensor) -> Tensor:
        return torch.cat([top.reshape(-1).double() for top in function(*bottoms)])

    leaves = [x.detach().clone().requires_grad_(i in wrt) for i, x in enumerate(inputs)]
    tops = torch.cat([top.reshape(-1) for top in analytic(*leaves)])
    rows = _rows(tops, [leaves[i] for i in wrt])
    with torch.no_grad():
        here = flat(*inputs)
    findings = []
    for column, i in enumerate(wrt):
        chosen = _chosen_elements(inputs[i], elements, kink, kink_range, generator)
        numeric = [_along_element(flat, here, inputs, i, int(e), step) for e in chosen]
        gradients = rows[column][chosen]
        findings.append(
            judge(
                names[column],
                gradients,
                _stack(numeric, gradients),
                threshold,
                floor,
                chosen,
                inputs[i],
            )
        )
    return findings


def _rows(tops: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """The Jacobian of each leaf, [elements of the leaf, elements of the tops], in float64."""
    found: list[list[Tensor]] = [[] for _ in leaves]
    for element in tops if tops.requires_grad else ():
        gradients = torch.autograd.grad(
            element, leaves, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for column, gradient in zip(found, gradients, strict=True):
            column.append(gradient.reshape(-1).double())
    return [
        torch.stack(column, 1) if column else leaf.new_zeros(leaf.numel(), tops.numel()).double()
        for leaf, column in zip(leaves, found, strict=True)
    ]


def _chosen_elements(
    x: Tensor, most: int | None, kink: float, kink_range: float, generator: torch.Generator
) -> Tensor:
    away = (x.detach().reshape(-1).abs() - kink).abs() > kink_range
    chosen = away.nonzero()[:, 0].cpu()
    if most is not None and len(chosen) > most:
        chosen = chosen[torch.randperm(len(chosen), generator=generator)[:most]].sort().values
    return chosen


def _along_element(
    flat: Callable[..., Tensor],
    here: Tensor,
    inputs: Sequence[Tensor],
    i: int,
    element: int,
    step: float,
) -> Differences:
    def at(offset: float) -> Tensor:
        moved = inputs[i].detach().double().clone(memory_format=torch.contiguous_format)
        moved.view(-1)[element] += offset
        return flat(*inputs[:i], moved, *inputs[i + 1 :])

    with torch.no_grad():
        return difference(at, here, step)


def _stack(each: Sequence[Differences], like: Tensor) -> Differences:
    if not each:
        return Differences(like, like, like, like.bool())
    parts = zip(*((d.numeric, d.noise, d.steps, d.kink) for d in each), strict=True)
    return Differences(*(torch.stack(part) for part in parts))


def directional(
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor],
    analytic: Callable[..., Sequence[Tensor]],
    wrt: Sequence[int],
    names: Sequence[str],
    *,
    step: float,
    threshold: float,
    floor: float = 0.0,
    directions: int = 2,
    generator: torch.Generator,
) -> list[Finding]:
    """Each input along random directions, whose elements are normal; two passes a direction, six
    where the function may not be smooth.

    The objective is a randomly weighted sum of the tops. The error of an input is
    ``|analytic - numeric| / |numeric|``, both vectors over the directions.
    """
    leaves = [x.detach().clone().requires_grad_(i in wrt) for i, x in enumerate(inputs)]
    tops = analytic(*leaves)
    weights = [_normal(top, generator) for top in tops]
    chosen = [(top.double() * w).sum() for top, w in zip(tops, weights, strict=True)]
    objective = torch.stack(chosen).sum()
    asked = [leaves[i] for i in wrt]
    gradients = [torch.zeros_like(leaf) for leaf in asked]
    if objective.requires_grad:
        gradients = list(
            torch.autograd.grad(objective, asked, allow_unused=True, materialize_grads=True)
        )

    def weighed(*bottoms: Tensor) -> Tensor:
        pairs = zip(function(*bottoms), weights, strict=True)
        return torch.stack([(top.double() * w).sum() for top, w in pairs]).sum()

    with torch.no_grad():
        here = weighed(*inputs)
    findings = []
    for column, i in enumerate(wrt):
        along = [_normal(inputs[i], generator) for _ in range(directions)]
        numeric = [_along(weighed, here, inputs, i, d, step) for d in along]
        products = torch.stack([(gradients[column].double() * d).sum() for d in along]).cpu()
        findings.append(judge(names[column], products, _stack(numeric, products), threshold, floor))
    return findings


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.device)


def _along(
    objective: Callable[..., Tensor],
    here: Tensor,
    inputs: Sequence[Tensor],
    i: int,
    direction: Tensor,
    step: float,
) -> Differences:
    def at(offset: float) -> Tensor:
        moved = torch.add(inputs[i].detach().double(), direction, alpha=offset)
        return objective(*inputs[:i], moved, *inputs[i + 1 :])

    with torch.no_grad():
        found = difference(at, here, step)
    return Differences(*(part.cpu() for part in vars(found).values()))


def by_torch(
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor],
    analytic: Callable[..., Sequence[Tensor]],
    wrt: Sequence[int],
    names: Sequence[str],
    *,
    threshold: float,
    **options: Any,
) -> list[Finding]:
    """:func:`exhaustive`, and ``torch.autograd.gradcheck`` where the function is smooth.

    What torch alone finds, such as a backward that gives other bits each time, is a finding of its
    own.
    """
    findings = exhaustive(function, inputs, analytic, wrt, names, threshold=threshold, **options)
    if any(finding.kinks for finding in findings):
        return findings
    leaves = [x.detach().clone().requires_grad_(i in wrt) for i, x in enumerate(inputs)]
    most = options["elements"]
    some = most is not None and any(inputs[i].numel() > most for i in wrt)
    try:
        torch.autograd.gradcheck(
            lambda *x: tuple(analytic(*x)),
            leaves,
            eps=options["step"],
            rtol=threshold,
            atol=1e-7,
            fast_mode=some,
        )
    except RuntimeError as error:  # GradcheckError is one
        if all(finding.verdict is Verdict.OK for finding in findings):
            note = str(error).partition("\n")[0]
            findings.append(Finding("torch.autograd.gradcheck", Verdict.WRONG, math.inf, note=note))
    return findings


def judge(
    blob: str,
    analytic: Tensor,
    found: Differences,
    threshold: float,
    floor: float = 0.0,
    elements: Tensor | None = None,
    like: Tensor | None = None,
) -> Finding:
    """One blob's verdict: rows of ``analytic`` are its ``elements``, or directions, without them."""
    kinks = int(found.kink.reshape(len(found.kink), -1).any(1).sum()) if found.kink.numel() else 0
    if not (found.kink.numel() and bool((~found.kink).any())):
        return Finding(blob, Verdict.KINK if kinks else Verdict.BLIND, kinks=kinks)
    whole = _length if elements is None else _largest
    off = (analytic - found.numeric).abs() - found.noise
    off = torch.where(found.kink, 0, off.nan_to_num(nan=math.inf).clamp(min=0))
    size = torch.where(found.kink, 0, found.numeric.abs())
    certain = (size - found.noise).clamp(min=0)
    scale = max(whole(size), floor)
    error = whole(off) / scale if scale else (math.inf if whole(off) else 0.0)
    worst = int((off if bool(off.any()) else size).argmax())
    numbers = analytic, found.numeric, found.steps
    gradient, difference, step = (float(x.reshape(-1)[worst]) for x in numbers)
    index: tuple[int, ...] = ()
    if elements is not None and like is not None:
        index = unravel(int(elements[worst // off[0].numel()]), like)
    verdict = Verdict.OK
    if not error <= threshold:
        verdict = Verdict.WRONG
    elif whole(certain) <= threshold * scale:
        verdict = Verdict.KINK if kinks else Verdict.BLIND
    checked = len(analytic) - kinks
    return Finding(blob, verdict, error, index, gradient, difference, step, checked, kinks)


def _length(x: Tensor) -> float:
    return float(x.norm())


def _largest(x: Tensor) -> float:
    return float(x.max())


def unravel(flat: int, like: Tensor) -> tuple[int, ...]:
    """The index of a flat element in a tensor's shape."""
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), tuple(like.shape)))
