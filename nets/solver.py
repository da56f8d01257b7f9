"""Caffe's solvers, with Caffe's arithmetic.

One iteration, as in Caffe: the gradients of ``iter_size`` passes are summed, clipped by their
global L2 norm, divided by ``iter_size``, weight decay is added, then the rule gives the update
(:mod:`~cortado.nets.updates`).
"""

from __future__ import annotations

import enum
import io
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cortado.layers._engine import parallel
from cortado.prototxt_like.bind import bind
from cortado.prototxt_like.files import clean
from cortado.prototxt_like.message import Message
from cortado.prototxt_like.source import SpecError
from torch import distributed as dist

from .build import LearnableBlob
from .diagnose import first_nonfinite
from .graph import StateFields, merged
from .net import Blobs, Net
from .solver_params import Source, read_params, sources
from .solver_state import SolverState, read_state, write_state
from .specs import load
from .training import Autocast, LossOf
from .updates import POLICIES, REGULARIZATIONS, RULES
from .weights import load as load_weights
from .weights import save, share

LOGGER = logging.getLogger("cortado.solver")

Tensors = dict[str, torch.Tensor]
Feed = Callable[[int], Mapping[str, torch.Tensor]]


class Action(enum.Enum):
    """What a solver may be asked for between two iterations."""

    NONE = 0
    STOP = 1
    SNAPSHOT = 2


class Solver:
    """Trains the net of a solver spec.

    ``spec`` is a path, a name or a message, as a :class:`~.net.Net`'s; the nets it names are looked
    for beside it, then in the working directory. ``feed`` gives the inputs of the n-th forward pass,
    for nets with ``Input`` layers (``test_feed`` those of the n-th pass of a test). ``weights`` is a
    file to start from, or several separated by commas, instead of the spec's. ``on_iteration(solver,
    loss)`` is called after each update, ``on_test(solver, n, means)`` with the mean outputs of the
    n-th test net after each test. ``action()`` is asked after each iteration and before each pass of a
    test whether to stop or to write a snapshot (:class:`~cortado.nets.signals.Signals`). Further
    keywords override the spec's fields (``max_iter=100``). Messages, Caffe's lines, go to the logger
    ``cortado.solver``.

    Functions in ``before_forward`` are called before each iteration, those in ``gradients_ready``
    between its backward pass and the update.

    ``precision`` is the type of autocast, torch.bfloat16 or torch.float16, in which layers that
    allow it run; float16's gradients are scaled, and an iteration whose gradients overflow is
    left out. ``together``: the processes of torch.distributed's group train one net, each with its
    share of a batch that is as many times as large (a ``feed`` gives this process's share, and
    BatchNorm's statistics are each process's own, as in Caffe); the first one tests and writes
    snapshots, and what one is asked to do all do.

    A loss that is not finite raises FloatingPointError, which names the layer that made it so.

    Random numbers: fillers and data layers follow ``random_seed``, and so does what layers draw
    from torch's generators while training; the caller's own generators are left alone. What they
    draw in a test depends on the iteration alone.

    Raises :class:`~cortado.prototxt_like.source.SpecError` for mistakes in either spec, such as a
    ``snapshot_prefix`` where nothing can be written.
    """

    splits = False
    """Whether the nets have Caffe's Split layers."""

    def __init__(
        self,
        spec: str | Path | Message,
        *,
        feed: Feed | None = None,
        test_feed: Feed | None = None,
        weights: str | Path | None = None,
        device: str | torch.device | None = None,
        on_iteration: Callable[[Solver, float], None] | None = None,
        on_test: Callable[[Solver, int, Tensors], None] | None = None,
        action: Callable[[], Action] = lambda: Action.NONE,
        log: Callable[[str], None] = LOGGER.info,
        precision: torch.dtype | None = None,
        together: bool = False,
        allow_python_layers: bool = False,
        **overrides: Any,
    ) -> None:
        message = spec if isinstance(spec, Message) else load(spec)
        self.params = replace(read_params(message), **overrides)
        self.together = together
        self.allow_python_layers = allow_python_layers
        self.feed, self.test_feed = feed, test_feed or feed
        self.on_iteration, self.on_test, self.action = on_iteration, on_test, action
        self.log = log if self.is_root else _quiet
        self.before_forward: list[Callable[[], None]] = []
        self.gradients_ready: list[Callable[[], None]] = []
        self.iter = self.current_step = 0
        self.stopped = False
        self.last_rate = math.nan
        """Of the last iteration."""
        self._displayed = 0, time.perf_counter()
        self.losses: deque[float] = deque(maxlen=self.params.average_loss)
        self._folder = Path(message.span.source.name).parent
        self._stem = Path(message.span.source.name).stem
        place = message.get("snapshot_prefix")
        self._snapshots_from = place.value.span if place else message.span
        if self.params.snapshot:
            self._expect_writable()
        seed = self._seed()
        train, tests = sources(message, len(self.params.test_iter))
        self.net = self._make_net(train, "TRAIN", self.params.train_state, seed)
        names = ",".join(self.params.weights if weights is None else [str(weights)])
        files = [self._find(name.strip()) for name in names.split(",") if name.strip()]
        if names and not files:
            raise ValueError(f'no file of weights is named in "{names}"')
        self.reports = [load_weights(self.net, file) for file in files]
        self.test_nets = self._make_test_nets(tests, seed, files)
        if device is not None:
            for net in self.nets:
                net.to(device)
        self._rng = _Randomness(seed, self.net.device)
        self._loss = LossOf(self.net, together)
        self._autocast = Autocast(precision, self.net.device)
        self.rule = RULES[self.params.type]
        self.history = [
            [torch.zeros_like(blob.parameter, requires_grad=False) for _ in range(self.rule.histories)]
            for blob in self.net.learnable
        ]

    def _seed(self) -> int:
        """``random_seed``, or one that is drawn: the same for all processes that train together."""
        if self.params.random_seed >= 0:
            return self.params.random_seed
        seed = torch.tensor(torch.seed() % 2**63)
        if self.together:
            device = "cuda" if dist.get_backend() == "nccl" else "cpu"
            seed = seed.to(device)
            dist.broadcast(seed, 0)
        return int(seed)

    @property
    def is_root(self) -> bool:
        """Whether this process logs, tests and writes; Caffe's root solver."""
        return not self.together or dist.get_rank() == 0

    def _find(self, name: str | Path) -> Path:
        beside = self._folder / name
        return beside if beside.is_file() else Path(name)

    def _make_test_nets(self, sources: list[Source], seed: int, files: list[Path]) -> list[Net]:
        states = self.params.test_state or (StateFields(),) * len(sources)
        trained = {id(parameter) for parameter in self.net.parameters()}
        nets = []
        for i, (source, state) in enumerate(zip(sources, states, strict=True), start=1):
            net = self._make_net(source, "TEST", state, seed + i)
            share(net, self.net)
            if any(id(parameter) not in trained for parameter in net.parameters()):
                for file in files:
                    load_weights(net, file)
            nets.append(net)
        return nets

    def _make_net(self, source: Source, phase: str, state: StateFields, seed: int) -> Net:
        """The net in the solver's state; what that leaves open is as the net's own state says."""
        message = source.net
        if not isinstance(message, Message):
            path = self._find(message)
            if not path.is_file():
                text = f'no file "{message}" beside the solver, nor in the working directory'
                raise SpecError(text, source.place)
            message = load(path)
        block = message.get("state")
        own = StateFields()
        if block and isinstance(block.value, Message):
            own = bind(StateFields, block.value, what="state")
        joined = merged(phase, own, state)
        return Net(
            message,
            joined.phase,
            level=joined.level,
            stages=joined.stages,
            seed=seed,
            splits=self.splits,
            allow_python_layers=self.allow_python_layers,
        )

    @property
    def nets(self) -> list[Net]:
        return [self.net, *self.test_nets]

    @property
    def rate(self) -> float:
        """The learning rate of the coming iteration."""
        return POLICIES[self.params.lr_policy].rate(self.params, self.iter, self._next_step())

    def _next_step(self) -> int:
        return POLICIES[self.params.lr_policy].steps(self.params, self.iter, self.current_step)

    def solve(self) -> None:
        """:meth:`start`, train up to ``max_iter``, :meth:`finish`."""
        self.start()
        self.step(self.params.max_iter - self.iter)
        self.finish()

    def start(self) -> None:
        """Say so; raises SpecError if the snapshot after training could not be written."""
        self.log(f"Solving {self.net.graph.name}")
        self.log(f"Learning Rate Policy: {self.params.lr_policy}")
        if self.params.snapshot_after_train:
            self._expect_writable()

    def finish(self) -> None:
        """What is due after the last iteration: the snapshot, the last loss, the test."""
        every, after = self.params.snapshot, self.params.snapshot_after_train
        if after and not (every and self.iter and self.iter % every == 0) and self.is_root:
            self.snapshot()
        if self.stopped:
            self.log("Optimization stopped early.")
            return
        if self._due(self.params.display):
            self._display_last()
        self._test_if_due()
        self.log("Optimization Done.")

    def step(self, n: int = 1) -> float:
        """Do ``n`` iterations; gives the last one's loss (before its update), NaN if there was none.

        Fewer if ``action`` asks to stop: then ``stopped`` is true.
        """
        loss, self.stopped = math.nan, False
        for _ in range(n):
            if self.iter or self.params.test_initialization:
                self._test_if_due()
            if self.stopped:
                break
            for call in self.before_forward:
                call()
            with self._rng, parallel.together(self.together):
                loss, blobs = self._gradients()
                self.losses.append(loss)
                display = self._due(self.params.display)
                if display:
                    self._display(blobs)
                for call in self.gradients_ready:
                    call()
                self._apply(display)
            self.iter += 1
            if self.on_iteration:
                self.on_iteration(self, loss)
            asked = self.action()
            snapshot, self.stopped = self._any(asked is Action.SNAPSHOT, asked is Action.STOP)
            if (self._due(self.params.snapshot) or snapshot) and self.is_root:
                self.snapshot()
            if self.stopped:
                break
        return loss

    def _due(self, interval: int) -> bool:
        """As in Caffe a negative interval is as good as a positive one."""
        return interval != 0 and self.iter % interval == 0

    def _any(self, *flags: bool) -> list[bool]:
        """Whether each is true in one process at least: all go on, and stop, together."""
        if not self.together:
            return list(flags)
        found = torch.tensor(flags, dtype=torch.int32, device=self.net.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return [bool(flag) for flag in found.tolist()]

    def _test_if_due(self) -> None:
        """Test in the first process; all of them learn whether it was asked to stop meanwhile."""
        if self._due(self.params.test_interval) and self.test_nets:
            if self.is_root:
                self.test()
            (self.stopped,) = self._any(self.stopped)

    def _display(self, blobs: Blobs) -> None:
        now = time.perf_counter()
        count, seconds = self.iter - self._displayed[0], now - self._displayed[1]
        speed = f" ({count / seconds:.5g} iter/s, {seconds:.5g}s/{count} iters)" if count else ""
        self._displayed = self.iter, now
        smoothed = sum(self.losses) / len(self.losses)
        self.log(f"Iteration {self.iter}{speed}, loss = {smoothed:.6g}")
        for line in _output_lines(self.net, {name: blobs[name] for name in self.net.outputs}):
            self.log(f"    Train net output {line}")

    def _display_last(self) -> None:
        """One more forward pass, for the loss after the last update."""
        with self._rng, parallel.together(self.together), torch.no_grad():
            loss = self.forward_train(self.iter * self.params.iter_size).loss
            self.losses.append(self._mean(loss))
        self.log(f"Iteration {self.iter}, loss = {sum(self.losses) / len(self.losses):.6g}")

    def _gradients(self) -> tuple[float, Blobs]:
        """Sum the gradients of ``iter_size`` passes; gives their mean loss, and the last's blobs."""
        before = self._rng.start, [_layer_states(net) for net in self.nets]
        self.net.zero_grad()
        losses, last = [], self.params.iter_size - 1
        for i in range(self.params.iter_size):
            with self._loss.gradients_exchanged(i == last):
                blobs = self.forward_backward(self.iter * self.params.iter_size + i)
            losses.append(blobs.loss.detach())
        if not math.isfinite(loss := self._mean(torch.stack(losses).mean())):
            self._explain(loss, *before)
        return loss, blobs

    def _mean(self, loss: torch.Tensor) -> float:
        """Over the processes that train together."""
        if not self.together:
            return float(loss)
        total = loss.clone()
        dist.all_reduce(total)
        return float(total) / dist.get_world_size()

    def forward_train(self, n: int) -> Blobs:
        """The ``n``-th forward pass of the net in training."""
        with self._autocast:
            self._loss(self._inputs(self.feed, n))
        return self._loss.blobs

    def forward_backward(self, n: int) -> Blobs:
        """The ``n``-th forward pass and its backward pass, which adds to the parameters' gradients."""
        blobs = self.forward_train(n)
        if blobs.loss.requires_grad:
            self._autocast.scaled(blobs.loss).backward()
        return blobs

    def _explain(self, loss: float, random: list[torch.Tensor], layers: list[_LayerStates]) -> None:
        """Run the passes of this iteration again, to find what was not finite first.

        Every process runs all of them, as layers wait for each other in them.
        """
        self._rng.begin(random)
        _set_layer_states(self.nets, layers)
        found = []
        for i in range(self.params.iter_size):
            inputs = self._inputs(self.feed, self.iter * self.params.iter_size + i)
            with self._autocast, torch.no_grad():
                found.append(first_nonfinite(self.net, inputs))
        text = next(filter(None, self._gathered(found)), "")
        text = f"; {text}" if text else ", but all blobs were finite when it was repeated"
        raise FloatingPointError(f"iteration {self.iter}: the loss is {loss}{text}")

    def _gathered(self, texts: list[str]) -> list[str]:
        """The texts of all processes."""
        if not self.together:
            return texts
        everyones: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyones, texts)
        return [text for of_one in everyones for text in of_one]

    def _inputs(self, feed: Feed | None, forward: int) -> Tensors:
        given = feed(forward) if feed else {}
        return {name: tensor.to(self.net.device) for name, tensor in given.items()}

    @torch.no_grad()
    def _apply(self, display: bool = False) -> None:
        self.last_rate, self.current_step = self.rate, self._next_step()
        if not self._autocast.unscale([blob.parameter.grad for blob in self.net.learnable]):
            self.log(f"Iteration {self.iter}, gradients overflow: no update")
            return
        if display:
            self.log(f"Iteration {self.iter}, lr = {self.last_rate:.6g}")
        scale = self._clip() / self.params.iter_size
        for blob, history in zip(self.net.learnable, self.history, strict=True):
            # A parameter that stands still (lr_mult 0) has a history, too, as in Caffe's snapshots.
            gradient, step = self._regularized(blob, scale), self.last_rate * blob.lr_mult
            update = self.rule.update(self.params, step, self.iter, gradient, history)
            self.subtract(blob, update)

    def subtract(self, blob: LearnableBlob, update: torch.Tensor) -> None:
        """Update one parameter."""
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
            pull = REGULARIZATIONS[self.params.regularization_type]
            gradient.add_(pull(parameter), alpha=decay)
        return gradient

    def test(self) -> list[Tensors]:
        """Mean of each output of each TEST net over its ``test_iter`` passes; they are logged too.

        Raises ValueError for a solver without test nets.
        """
        if not self.test_nets:
            raise ValueError("the solver spec has no test_iter, so there is nothing to test")
        self.stopped = False
        return [self._test(i) for i in range(len(self.test_nets)) if not self.stopped]

    @torch.no_grad()
    def _test(self, which: int) -> Tensors:
        self.log(f"Iteration {self.iter}, Testing net (#{which})")
        net, passes = self.test_nets[which], self.params.test_iter[which]
        random = _Randomness(self.iter, self.net.device)
        sums: Tensors = {}
        loss = 0.0
        for i in range(passes):
            while (asked := self.action()) is Action.SNAPSHOT:
                self.snapshot()
            if asked is Action.STOP:
                self.stopped = True
                self.log("Test interrupted.")
                return {}
            with random:
                blobs = self.forward_test(which, i)
            loss += float(blobs.loss) if self.params.test_compute_loss else 0
            for name in net.outputs:
                sums[name] = sums.get(name, 0) + blobs[name].double()
        means = {name: total / passes for name, total in sums.items()}
        if self.params.test_compute_loss:
            self.log(f"Test loss: {loss / passes if passes else math.nan:.6g}")
        for line in _output_lines(net, means):
            self.log(f"    Test net output {line}")
        if self.on_test:
            self.on_test(self, which, means)
        return means

    def forward_test(self, which: int, n: int) -> Blobs:
        """The ``n``-th forward pass of a test net."""
        return self.test_nets[which](self._inputs(self.test_feed, n))

    def snapshot(self) -> Path:
        """Write ``<prefix>_iter_<n>.caffemodel`` and ``.solverstate``; gives the latter's path.

        ``snapshot_format`` chooses other files. Both are written beside and renamed, the state
        last, so that the last good snapshot outlives a kill at any moment.
        """
        suffixes = self.params.snapshot_format.suffixes
        model, path = (Path(f"{self._prefix}_iter_{self.iter}{suffix}") for suffix in suffixes)
        weights, state = self.params.snapshot_format.words
        self.log(f"Snapshotting to {weights} file {model}")
        save(self.net, model)
        self.log(f"Snapshotting solver state to {state} file {path}")
        write_state(path, self._state(str(model)))
        return path

    @property
    def _prefix(self) -> Path:
        """What the names of snapshots begin with; as in Caffe, a folder is one to put them in."""
        text = self.params.snapshot_prefix or self._stem
        prefix = Path(text)
        return prefix / self._stem if prefix.is_dir() or text.endswith(("/", os.sep)) else prefix

    def _expect_writable(self) -> None:
        """Raises SpecError where snapshots could not be written: now, not when they are due."""
        folder = self._prefix.parent
        clean(folder)
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if self.is_root and not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            raise SpecError(f"snapshots cannot be written to {folder}", self._snapshots_from)

    def _state(self, model: str) -> SolverState:
        extra = {
            "type": self.params.type,
            "losses": list(self.losses),
            "random": self._rng.state(),
            "layers": [_layer_states(net) for net in self.nets],
            "scale": self._autocast.state(),
        }
        stream = io.BytesIO()
        torch.save(extra, stream)
        histories = [h.detach().cpu().numpy() for of in zip(*self.history, strict=True) for h in of]
        return SolverState(self.iter, model, self.current_step, histories, stream.getvalue())

    def restore(self, path: str | Path) -> None:
        """Go on from a ``.solverstate`` or ``.solverstate.h5``, Caffe's own or one written here.

        A run that goes on from one written here continues with the same bits. Caffe's says nothing
        of random numbers and data layers: these are left as they are.

        Raises ValueError where the state is another solver's or another net's; then nothing has
        changed, except for the weights.
        """
        state = read_state(path)
        extra = self._extra(path, state.extra)
        if extra and extra["type"] != self.params.type:
            raise ValueError(f"{path} is of a {extra['type']} solver, this one is {self.params.type}")
        mine = [h for of in zip(*self.history, strict=True) for h in of]
        if [h.size for h in state.history] != [h.numel() for h in mine]:
            raise ValueError(f"{path} is of another type of solver, or of a net with other parameters")
        if state.learned_net:
            load_weights(self.net, _model_of(Path(path), state.learned_net))
        if extra:
            self._restore_layers(path, extra["layers"])
            self.losses.extend(extra["losses"])
            self._rng.restore(extra["random"])
            self._autocast.restore(extra["scale"])
        for history, stored in zip(mine, state.history, strict=True):
            history.copy_(torch.from_numpy(stored).reshape(history.shape))
        self.iter, self.current_step = state.iter, state.current_step
        self._displayed = self.iter, time.perf_counter()

    def _extra(self, path: str | Path, raw: bytes) -> dict[str, Any]:
        """What a state written here holds beside Caffe's fields; nothing of one that Caffe wrote."""
        if not raw:
            return {}
        try:
            extra: dict[str, Any] = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
            random, mine = extra["random"], self._rng.state()
            sound = (
                isinstance(extra["type"], str)
                and all(isinstance(loss, float) for loss in extra["losses"])
                and [(x.shape, x.dtype) for x in random] == [(x.shape, x.dtype) for x in mine]
                and all(isinstance(of_net, dict) for of_net in extra["layers"])
                and [type(value) for value in extra["scale"]] == [float, int]
            )
            if not sound:
                raise ValueError("it holds something else")
        except Exception as error:  # torch.load documents none, and a damaged one may hold anything
            raise ValueError(f"{path}: broken solver state: {error}") from None
        return extra

    def _restore_layers(self, path: str | Path, states: list[_LayerStates]) -> None:
        """Give the layers their states, or leave all as they were and raise ValueError."""
        before = [_layer_states(net) for net in self.nets]
        try:
            _set_layer_states(self.nets, states)
        except Exception as error:
            _set_layer_states(self.nets, before)
            text = f"{path}: broken solver state, or another net's: {error!r}"
            raise ValueError(text) from None


def _quiet(line: str) -> None:
    """The log of all processes but the first."""


def _output_lines(net: Net, outputs: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """Caffe's lines: ``#0: loss = 0.5 (* 1 = 0.5 loss)``, one for each value of each output."""
    weights = {
        top: weight
        for made in net.built.layers
        for top, weight in zip(made.tops, made.loss_weights, strict=True)
    }
    number = 0
    for name, blob in outputs.items():
        for value in blob.detach().flatten().tolist():
            weight = weights.get(name, 0)
            term = f" (* {weight:g} = {weight * value:.6g} loss)" if weight else ""
            yield f"#{number}: {name} = {value:.6g}{term}"
            number += 1


def _model_of(path: Path, learned_net: str) -> Path:
    """The weights of a state: beside it, as both may have been moved, or where it says."""
    beside, elsewhere = path.with_name(Path(learned_net).name), Path(learned_net)
    if not beside.is_file() and not elsewhere.is_file():
        raise FileNotFoundError(f"{path} goes with the weights {learned_net}, which are not there")
    return beside if beside.is_file() else elsewhere


_LayerStates = dict[str, Any]


def _layer_states(net: Net) -> _LayerStates:
    """What layers keep beside their parameters, such as a data layer's position."""
    return {
        name: layer.get_extra_state()
        for name, layer in net.layer_by_name.items()
        if type(layer).get_extra_state is not torch.nn.Module.get_extra_state
    }


def _set_layer_states(nets: list[Net], states: list[_LayerStates]) -> None:
    for net, of_net in zip(nets, states, strict=False):
        for name, state in of_net.items():
            net.layer_by_name[name].set_extra_state(state)


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
        self.outer, self.start = self._current(), self.kept
        self._set(self.kept)

    def begin(self, states: list[torch.Tensor]) -> None:
        """Inside of the stream, go back to where it was."""
        self._set(states)

    def __exit__(self, *_: object) -> None:
        self.kept = self._current()
        self._set(self.outer)

    def state(self) -> list[torch.Tensor]:
        return self.kept

    def restore(self, states: list[torch.Tensor]) -> None:
        self.kept = [state.cpu() for state in states]
