"""Caffe's update rules and learning-rate policies: the arithmetic of one iteration.

A rule gives the value to subtract from a parameter, and changes its history in place. ``rate``
includes lr_mult, the gradient includes clipping, ``iter_size`` and weight decay.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from .solver_params import SolverParams

History = list[Tensor]


@dataclass(frozen=True)
class Rule:
    """An update rule, and how many history tensors it keeps of a parameter."""

    update: Callable[[SolverParams, float, int, Tensor, History], Tensor]
    histories: int = 1
    momentum: bool = True
    """Whether it has a momentum; Caffe refuses one where it has not."""


def sgd(p: SolverParams, rate: float, t: int, gradient: Tensor, history: History) -> Tensor:
    """V = momentum V + rate g; the rate stays inside of the momentum when it changes."""
    return history[0].mul_(p.momentum).add_(gradient, alpha=rate)


def nesterov(p: SolverParams, rate: float, t: int, gradient: Tensor, history: History) -> Tensor:
    """(1 + momentum) V' - momentum V, where V' is SGD's new V."""
    before = history[0].clone()
    after = sgd(p, rate, t, gradient, history)
    return after.mul(1 + p.momentum).sub_(before, alpha=p.momentum)


def adagrad(p: SolverParams, rate: float, t: int, gradient: Tensor, history: History) -> Tensor:
    """rate g / (sqrt(sum of g^2) + delta)."""
    history[0].addcmul_(gradient, gradient)
    return gradient.div(history[0].sqrt().add_(p.delta)).mul_(rate)


def rmsprop(p: SolverParams, rate: float, t: int, gradient: Tensor, history: History) -> Tensor:
    """rate g / (sqrt(mean of g^2) + delta), a mean that decays by ``rms_decay``."""
    history[0].mul_(p.rms_decay).addcmul_(gradient, gradient, value=1 - p.rms_decay)
    return gradient.div(history[0].sqrt().add_(p.delta)).mul_(rate)


def adadelta(p: SolverParams, rate: float, t: int, gradient: Tensor, history: History) -> Tensor:
    """rate g sqrt((mean of updates^2 + delta) / (mean of g^2 + delta)); both decay by momentum."""
    squares, updates = history
    squares.mul_(p.momentum).addcmul_(gradient, gradient, value=1 - p.momentum)
    update = updates.add(p.delta).div_(squares.add(p.delta)).sqrt_().mul_(gradient)
    updates.mul_(p.momentum).addcmul_(update, update, value=1 - p.momentum)
    return update.mul_(rate)


def adam(p: SolverParams, rate: float, t: int, gradient: Tensor, history: History) -> Tensor:
    """rate sqrt(1 - b2^k) / (1 - b1^k) m / (sqrt(v) + delta), k = t + 1, b1 = momentum."""
    (m, v), (b1, b2) = history, (p.momentum, p.momentum2)
    m.mul_(b1).add_(gradient, alpha=1 - b1)
    v.mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
    correction = math.sqrt(1 - b2 ** (t + 1)) / (1 - b1 ** (t + 1))
    return m.div(v.sqrt().add_(p.delta)).mul_(rate * correction)


RULES = {
    "SGD": Rule(sgd),
    "Nesterov": Rule(nesterov),
    "AdaGrad": Rule(adagrad, momentum=False),
    "RMSProp": Rule(rmsprop, momentum=False),
    "AdaDelta": Rule(adadelta, histories=2),
    "Adam": Rule(adam, histories=2),
}


REGULARIZATIONS: dict[str, Callable[[Tensor], Tensor]] = {"L2": lambda x: x, "L1": Tensor.sign}
"""What weight decay adds to a parameter's gradient, but for its factor."""


def _power(base: float, exponent: float) -> float:
    """C's ``pow`` of a base that is not negative, or a whole exponent: infinite where Python raises."""
    try:
        return float(base**exponent)
    except (OverflowError, ZeroDivisionError):
        return math.inf


def poly(p: SolverParams, t: int) -> float:
    """base_lr (1 - t / max_iter)^power; ValueError where that is no number: beyond ``max_iter``,
    unless the power is whole."""
    left = 1 - t / p.max_iter
    if (left < 0 and p.power % 1) or (left == 0 and p.power < 0):
        raise ValueError(f'lr_policy "poly" ends at max_iter {p.max_iter}, this is iteration {t}')
    return p.base_lr * _power(left, p.power)


def sigmoid(p: SolverParams, t: int) -> float:
    """base_lr / (1 + exp(-gamma (t - stepsize)))."""
    return p.base_lr / (1 + math.exp(min(-p.gamma * (t - p.stepsize), 700)))  # exp(710) overflows


def multistep(p: SolverParams, t: int, step: int) -> int:
    """Caffe's ``current_step`` at iteration ``t``: it passes one ``stepvalue`` an iteration at most."""
    return step + (step < len(p.stepvalue) and t >= p.stepvalue[step])


@dataclass(frozen=True)
class Policy:
    """A learning rate by iteration, the fields that it needs to be above zero, and whether it reads
    gamma, which is not negative then."""

    rate: Callable[[SolverParams, int, int], float]
    """Of the parameters, the iteration, and ``current_step``."""
    needs: tuple[str, ...] = ()
    gamma: bool = True
    steps: Callable[[SolverParams, int, int], int] = lambda p, t, step: step
    """``current_step`` at an iteration, from the one before."""


POLICIES = {
    "fixed": Policy(lambda p, t, step: p.base_lr, gamma=False),
    "step": Policy(
        lambda p, t, step: p.base_lr * _power(p.gamma, step),
        ("stepsize",),
        steps=lambda p, t, step: t // p.stepsize,
    ),
    "exp": Policy(lambda p, t, step: p.base_lr * _power(p.gamma, t)),
    "inv": Policy(lambda p, t, step: p.base_lr * _power(1 + p.gamma * t, -p.power)),
    "multistep": Policy(lambda p, t, step: p.base_lr * _power(p.gamma, step), steps=multistep),
    "poly": Policy(lambda p, t, step: poly(p, t), ("max_iter",), gamma=False),
    "sigmoid": Policy(lambda p, t, step: sigmoid(p, t), ("stepsize",)),
}
