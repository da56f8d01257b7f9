"""Caffe's solvers: SGD with momentum and Adam, with Caffe's arithmetic.

One iteration, as in Caffe: the gradients of ``iter_size`` passes are summed, clipped by their
global L2 norm, divided by ``iter_size``, weight decay is added, then the rule gives the update.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from cortado.prototxt_like import load
from cortado.prototxt_like.bind import bind
from cortado.prototxt_like.message import Message
from cortado.prototxt_like.source import Errors, SpecError, did_you_mean

from .build import LearnableBlob
from .graph import StateFields
from .net import Net
from .weights import load as load_weights
from .weights import replace_file, save, share

LOGGER = logging.getLogger("cortado.solver")

Tensors = dict[str, torch.Tensor]
Feed = Callable[[int], Mapping[str, torch.Tensor]]


def _field(default: Any, **metadata: Any) -> Any:
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class SolverParams:
    """A solver spec's fields, named as in Caffe."""

    net: str = ""
    train_net: str = ""
    type: str = "SGD"
    base_lr: float = _field(0.01, low=0)
    lr_policy: str = "fixed"
    gamma: float = _field(0.1, low=0)
    stepsize: int = _field(0, low=0)
    momentum: float = _field(0.0, low=0, high=1)
    momentum2: float = _field(0.999, low=0, high=1)
    delta: float = _field(1e-8, low=0)
    weight_decay: float = _field(0.0, low=0)
    regularization_type: str = "L2"
    clip_gradients: float = -1.0
    iter_size: int = _field(1, low=1)
    max_iter: int = _field(0, low=0)
    display: int = _field(0, low=0)
    average_loss: int = _field(1, low=1)
    test_iter: int = _field(0, low=0)
    test_interval: int = _field(0, low=0)
    test_initialization: bool = True
    snapshot: int = _field(0, low=0)
    snapshot_prefix: str = ""
    snapshot_after_train: bool = True
    random_seed: int = -1
    train_state: StateFields = StateFields()
    test_state: StateFields = StateFields()
    solver_mode: str = ""
    """Read and ignored, as ``device_id``: the ``device`` given to the solver decides."""
    device_id: int = 0
    rms_decay: float = 0.99
    """Read and ignored: no rule here has it."""


POLICIES: dict[str, Callable[[SolverParams, int], float]] = {
    "fixed": lambda p, t: p.base_lr,
    "step": lambda p, t: p.base_lr * p.gamma ** (t // p.stepsize),
}


@dataclass(frozen=True)
class Rule:
    """An update rule: number of history tensors a parameter has, and the value to subtract.

    ``update(params, rate, iteration, gradient, history)`` changes the history in place; ``rate``
    includes lr_mult, ``gradient`` the weight decay.
    """

    histories: int
    update: Callable[[SolverParams, float, int, torch.Tensor, list[torch.Tensor]], torch.Tensor]


def sgd(
    params: SolverParams, rate: float, t: int, gradient: torch.Tensor, history: list[torch.Tensor]
) -> torch.Tensor:
    """V = momentum V + rate g; the rate stays inside of the momentum when it changes."""
    return history[0].mul_(params.momentum).add_(gradient, alpha=rate)


def adam(
    params: SolverParams, rate: float, t: int, gradient: torch.Tensor, history: list[torch.Tensor]
) -> torch.Tensor:
    """rate sqrt(1 - b2^k) / (1 - b1^k) m / (sqrt(v) + delta), k = t + 1, b1 = momentum."""
    (m, v), (b1, b2) = history, (params.momentum, params.momentum2)
    m.mul_(b1).add_(gradient, alpha=1 - b1)
    v.mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
    correction = math.sqrt(1 - b2 ** (t + 1)) / (1 - b1 ** (t + 1))
    return m.div(v.sqrt().add_(params.delta)).mul_(rate * correction)


RULES = {"SGD": Rule(1, sgd), "Adam": Rule(2, adam)}


class Solver:
    """Trains the net of a solver spec.

    ``spec`` is a path or message; ``net`` is looked for beside the spec, then in the working
    directory. ``feed`` gives the inputs of the n-th forward pass, for nets with ``Input`` layers
    (``test_feed`` those of the n-th pass of a test).
    ``weights`` is a file to start from. ``on_iteration(solver, loss)`` is called after each update.
    Further keywords override the spec's fields (``max_iter=100``). Messages go to the logger
    ``cortado.solver``.

    Random numbers: fillers and data layers follow ``random_seed``, and so does what layers draw
    from torch's generators while training; the caller's own generators are left alone.

    Raises :class:`~cortado.prototxt_like.source.SpecError` for mistakes in either spec.
    """

    def __init__(
        self,
        spec: str | Path | Message,
        *,
        feed: Feed | None = None,
        test_feed: Feed | None = None,
        weights: str | Path | None = None,
        device: str | torch.device | None = None,
        on_iteration: Callable[[Solver, float], None] | None = None,
        log: Callable[[str], None] = LOGGER.info,
        **overrides: Any,
    ) -> None:
        message = spec if isinstance(spec, Message) else load(spec)
        self.params = replace(read_params(message), **overrides)
        self.feed, self.test_feed = feed, test_feed or feed
        self.on_iteration, self.log = on_iteration, log
        self.iter = 0
        self.losses: deque[float] = deque(maxlen=self.params.average_loss)
        path = self._net_path(message)
        seed = self.params.random_seed if self.params.random_seed >= 0 else torch.seed()
        self.net = self._make_net(path, "TRAIN", self.params.train_state, seed)
        self.report = load_weights(self.net, weights) if weights else None
        self.test_net = self._test_net(path, seed)
        if device is not None:
            for net in self.nets:
                net.to(device)
        self._rng = _Randomness(seed, self.net.device)
        self.rule = RULES[self.params.type]
        self.history = [
            [torch.zeros_like(blob.parameter, requires_grad=False) for _ in range(self.rule.histories)]
            for blob in self.net.learnable
        ]
        self._prefix = self.params.snapshot_prefix or Path(message.span.source.name).stem

    def _net_path(self, message: Message) -> Path:
        name = self.params.train_net or self.params.net
        beside = Path(message.span.source.name).parent / name
        if found := next((path for path in (beside, Path(name)) if path.is_file()), None):
            return found
        place = message.all("train_net" if self.params.train_net else "net")[-1].value.span
        raise SpecError(f'no file "{name}" beside the solver, nor in the working directory', place)

    def _test_net(self, path: Path, seed: int) -> Net | None:
        if not self.params.test_iter:
            return None
        net = self._make_net(path, "TEST", self.params.test_state, seed + 1)
        share(net, self.net)
        return net

    def _make_net(self, path: Path, phase: str, state: StateFields, seed: int) -> Net:
        phase = state.phase.name if state.phase else phase
        return Net(path, phase, level=state.level, stages=state.stage, seed=seed)

    @property
    def nets(self) -> list[Net]:
        return [self.net, *([self.test_net] if self.test_net else [])]

    @property
    def rate(self) -> float:
        """The learning rate of the coming iteration."""
        return POLICIES[self.params.lr_policy](self.params, self.iter)

    def solve(self) -> None:
        """Train up to ``max_iter``, then :meth:`finish`."""
        self.step(self.params.max_iter - self.iter)
        self.finish()

    def finish(self) -> None:
        """What is due after the last iteration: the snapshot, the test."""
        every, after = self.params.snapshot, self.params.snapshot_after_train
        if after and not (every and self.iter and self.iter % every == 0):
            self.snapshot()
        if self._due(self.params.test_interval):
            self.test()

    def step(self, n: int = 1) -> float:
        """Do ``n`` iterations; gives the last one's loss (before its update)."""
        loss = math.nan
        for _ in range(n):
            first = self.iter == 0 and not self.params.test_initialization
            if self._due(self.params.test_interval) and not first:
                self.test()
            with self._rng:
                loss = self._gradients()
                self._apply()
            self.losses.append(loss)
            if self._due(self.params.display):
                smoothed = sum(self.losses) / len(self.losses)
                self.log(f"iteration {self.iter}, loss {smoothed:.6g}, rate {self.rate:.4g}")
            self.iter += 1
            if self.on_iteration:
                self.on_iteration(self, loss)
            if self._due(self.params.snapshot):
                self.snapshot()
        return loss

    def _due(self, interval: int) -> bool:
        return interval > 0 and self.iter % interval == 0

    def _gradients(self) -> float:
        """Sum the gradients of ``iter_size`` passes; gives their mean loss."""
        self.net.zero_grad()
        losses = []
        for i in range(self.params.iter_size):
            forward = self.iter * self.params.iter_size + i
            blobs = self.net(self._inputs(self.feed, forward))
            if blobs.loss.requires_grad:
                blobs.loss.backward()
            losses.append(blobs.loss.detach())
        return float(torch.stack(losses).mean())

    def _inputs(self, feed: Feed | None, forward: int) -> Tensors:
        given = feed(forward) if feed else {}
        return {name: tensor.to(self.net.device) for name, tensor in given.items()}

    @torch.no_grad()
    def _apply(self) -> None:
        params = self.params
        scale, rate = self._clip() / params.iter_size, self.rate
        for blob, history in zip(self.net.learnable, self.history, strict=True):
            if blob.lr_mult:
                gradient = self._regularized(blob, scale)
                step = rate * blob.lr_mult
                update = self.rule.update(params, step, self.iter, gradient, history)
                blob.parameter.sub_(update)

    def _clip(self) -> float:
        """The factor that brings the global norm of all gradients down to ``clip_gradients``."""
        grads = [blob.parameter.grad for blob in self.net.learnable]
        limit, norms = self.params.clip_gradients, [g.norm() for g in grads if g is not None]
        if limit < 0 or not norms:
            return 1.0
        return min(1.0, limit / max(float(torch.stack(norms).norm()), 1e-30))

    def _regularized(self, blob: LearnableBlob, scale: float) -> torch.Tensor:
        """The gradient, scaled, with weight decay; the parameter's ``grad`` stays as it was."""
        parameter, decay = blob.parameter, self.params.weight_decay * blob.decay_mult
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad * scale
        if decay:
            pull = parameter if self.params.regularization_type == "L2" else parameter.sign()
            gradient.add_(pull, alpha=decay)
        return gradient

    @torch.no_grad()
    def test(self) -> Tensors:
        """Mean of each output of the TEST net over ``test_iter`` passes; they are logged too."""
        if self.test_net is None:
            raise ValueError("the solver spec has no test_iter, so there is nothing to test")
        sums: Tensors = {}
        for i in range(self.params.test_iter):
            with self._rng:
                blobs = self.test_net(self._inputs(self.test_feed, i))
            for name, blob in blobs.items():
                sums[name] = sums.get(name, 0) + blob.double()
        means = {name: total / self.params.test_iter for name, total in sums.items()}
        for name, mean in means.items():
            if mean.numel() == 1:
                self.log(f"iteration {self.iter}, test {name} = {mean.item():.6g}")
        return means

    def snapshot(self) -> Path:
        """Write ``<prefix>_iter_<n>.safetensors`` and ``.solverstate``; gives the latter's path.

        Both are written beside and renamed, the state last.
        """
        stem = f"{self._prefix}_iter_{self.iter}"
        model, path = Path(f"{stem}.safetensors"), Path(f"{stem}.solverstate")
        save(self.net, model)
        state = {
            "iter": self.iter,
            "type": self.params.type,
            "net": model.name,
            "history": self.history,
            "losses": list(self.losses),
            "random": self._rng.state(),
            "layers": [_layer_states(net) for net in self.nets],
        }
        replace_file(path, lambda beside: torch.save(state, beside))
        self.log(f"iteration {self.iter}, snapshot {path}")
        return path

    def restore(self, path: str | Path) -> None:
        """Go on from a ``.solverstate``; the run continues with the same bits.

        Raises ValueError where the state is another solver's or another net's.
        """
        path = Path(path)
        state = torch.load(path, map_location=self.net.device, weights_only=True)
        if not isinstance(state, dict) or not {"type", "iter", "history"} <= state.keys():
            raise ValueError(f"{path} is not a solver's state")
        if state["type"] != self.params.type:
            raise ValueError(f"{path} is of a {state['type']} solver, this one is {self.params.type}")
        shapes = [[h.shape for h in history] for history in state["history"]]
        if shapes != [[h.shape for h in history] for history in self.history]:
            raise ValueError(f"{path} is of a net with other parameters")
        load_weights(self.net, path.with_name(state["net"]))
        self.iter, self.history = state["iter"], state["history"]
        self.losses.extend(state["losses"])
        self._rng.restore(state["random"])
        for net, states in zip(self.nets, state["layers"], strict=False):
            for name, extra in states.items():
                net.layer_by_name[name].set_extra_state(extra)


def read_params(message: Message) -> SolverParams:
    """Bind a solver spec; raises SpecError with all its mistakes."""
    errors = Errors()
    params: SolverParams | None = errors.attempt(bind, SolverParams, message, what="a solver")
    if params is not None:
        _check(params, message, errors)
    errors.check()
    assert params is not None
    return params


def _check(params: SolverParams, message: Message, errors: Errors) -> None:
    def complain(name: str, text: str, hint: str = "") -> None:
        given = message.get(name)
        errors.add(text, given.value.span if given else message.span, hint)

    known: dict[str, Mapping[str, object]] = {
        "type": RULES,
        "lr_policy": POLICIES,
        "regularization_type": dict.fromkeys(("L1", "L2")),
    }
    for name, choices in known.items():
        value = getattr(params, name)
        if value not in choices:
            complain(name, f'unknown {name} "{value}"', did_you_mean(value, choices, "known"))
    if not (params.net or params.train_net):
        complain("net", 'a solver needs "net"')
    if params.lr_policy == "step" and not params.stepsize:
        complain("lr_policy", 'lr_policy "step" needs stepsize')
    if params.test_interval and not params.test_iter:
        complain("test_interval", "test_interval needs test_iter")


def _layer_states(net: Net) -> dict[str, Any]:
    """What layers keep beside their parameters, such as a data layer's position."""
    return {
        name: layer.get_extra_state()
        for name, layer in net.layer_by_name.items()
        if type(layer).get_extra_state is not torch.nn.Module.get_extra_state
    }


class _Randomness:
    """A stream of torch's random numbers of the solver's own, entered for each iteration."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        with torch.random.fork_rng(devices=self._devices()):
            torch.manual_seed(seed)
            self.kept = self._current()

    def _devices(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []

    def _current(self) -> list[torch.Tensor]:
        states = [torch.get_rng_state()]
        return states + [torch.cuda.get_rng_state(device) for device in self._devices()]

    def _set(self, states: list[torch.Tensor]) -> None:
        torch.set_rng_state(states[0].cpu())
        for device, state in zip(self._devices(), states[1:], strict=False):
            torch.cuda.set_rng_state(state.cpu(), device)

    def __enter__(self) -> None:
        self.outer = self._current()
        self._set(self.kept)

    def __exit__(self, *_: object) -> None:
        self.kept = self._current()
        self._set(self.outer)

    def state(self) -> list[torch.Tensor]:
        return self.kept

    def restore(self, states: list[torch.Tensor]) -> None:
        self.kept = [state.cpu() for state in states]
