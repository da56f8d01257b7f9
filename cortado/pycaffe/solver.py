"""Caffe's solvers for Python, over :class:`cortado.nets.solver.Solver`.

Passes run through :class:`~cortado.pycaffe.net.Net`, so that between two steps the nets' blobs and
diffs are those of the last pass; the diffs of parameters are then, as in Caffe, the values that were
subtracted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from cortado.nets.build import LearnableBlob
from cortado.nets.net import Blobs
from cortado.nets.solver import Solver as Trainer
from cortado.nets.solver_params import read_params
from cortado.nets.specs import load
from cortado.nets.updates import RULES

from . import mode
from .alias import install_where_missing
from .net import Net


class _Engine(Trainer):
    """The training, with Caffe's view of the nets."""

    splits = True

    def __init__(self, path: str | Path, type: str) -> None:
        install_where_missing()
        super().__init__(path, type=type, device=mode.device(), log=mode.log, allow_python_layers=True)
        self.views = [Net._of(net) for net in self.nets]
        self.numbers = {id(blob.parameter): i for i, blob in enumerate(self.net.learnable)}

    def _seed(self) -> int:
        seed = self.params.random_seed
        return seed if seed >= 0 else int(torch.randint(2**62, (), device="cpu"))

    def _explain(self, *_: Any) -> None:
        mode.LOGGER.warning("iteration %d: the loss is not finite", self.iter)

    def forward_train(self, n: int) -> Blobs:
        return self.forward(self.views[0])

    def forward_backward(self, n: int) -> Blobs:
        blobs = self.forward_train(n)
        self.views[0]._backward(len(self.views[0].layers) - 1, 0)
        return blobs

    def forward_test(self, which: int, n: int) -> Blobs:
        return self.forward(self.views[1 + which])

    def forward(self, view: Net) -> Blobs:
        """A pass on the inputs that the net's blobs hold."""
        loss = view._forward(0, len(view.layers) - 1)
        blobs = Blobs({name: torch.from_numpy(view.blobs[name].data) for name in view.outputs})
        blobs.loss = torch.tensor(loss)
        return blobs

    def _apply(self, display: bool = False) -> None:
        for i in range(len(self.views[0].layers)):
            self.views[0]._write_back(i)
        device = self.net.device  # set_mode_gpu may have taken it elsewhere
        self.history = [[h.to(device) for h in of] for of in self.history]
        super()._apply(display)

    def subtract(self, blob: LearnableBlob, update: torch.Tensor) -> None:
        super().subtract(blob, update)
        number = self.numbers[id(blob.parameter)]
        self.views[0]._parameters.gradient(number).copy_(update)


class SolverParameter:
    """What a solver's ``param`` shows: the fields of its spec. ``base_lr`` may be set."""

    def __init__(self, engine: Trainer) -> None:
        object.__setattr__(self, "_engine", engine)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine.params, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "base_lr":
            raise AttributeError(f"a solver's {name} cannot be changed")
        self._engine.params = dataclasses.replace(self._engine.params, base_lr=float(value))


class Solver:
    """What all solvers have. Made by :func:`get_solver` from a file, or by the class of its type."""

    type: ClassVar[str] = "SGD"

    def __init__(self, solver_file: str | Path) -> None:
        self._engine = _Engine(solver_file, self.type)
        if self._engine.params.momentum and not RULES[self.type].momentum:
            raise ValueError(f"{self.type} has no momentum, got {self._engine.params.momentum:g}")

    @property
    def net(self) -> Net:
        """The net in training."""
        return self._engine.views[0]

    @property
    def test_nets(self) -> list[Net]:
        return self._engine.views[1:]

    @property
    def iter(self) -> int:
        """Number of updates done."""
        return self._engine.iter

    @property
    def param(self) -> SolverParameter:
        return SolverParameter(self._engine)

    def step(self, iters: int) -> None:
        """Do some iterations."""
        self._engine.step(iters)

    def solve(self, resume_file: str | Path | None = None) -> None:
        """Train up to ``max_iter``, from a snapshot's state if one is given."""
        if resume_file:
            self.restore(resume_file)
        self._engine.solve()

    def apply_update(self) -> None:
        """Update the parameters by their diffs, as an iteration does after its backward pass."""
        self._engine._apply()

    def snapshot(self) -> None:
        """Write weights and state."""
        self._engine.snapshot()

    def restore(self, state_file: str | Path) -> None:
        """Go on from a snapshot's state."""
        self._engine.restore(state_file)

    def share_weights(self, net: Net) -> None:
        """Make the parameters of the net in training another net's, by layer name."""
        net.share_with(self.net)

    def add_callback(self, on_start: Callable[[], Any], on_gradients_ready: Callable[[], Any]) -> None:
        """Call functions before each iteration, and between its backward pass and its update."""
        self._engine.before_forward.append(on_start)
        self._engine.gradients_ready.append(on_gradients_ready)


class SGDSolver(Solver):
    """Stochastic gradient descent with momentum."""

    @property
    def lr(self) -> float:
        """The learning rate of the coming iteration."""
        return self._engine.rate


class NesterovSolver(SGDSolver):
    """Nesterov's accelerated gradient."""

    type = "Nesterov"


class AdaGradSolver(SGDSolver):
    """AdaGrad."""

    type = "AdaGrad"


class RMSPropSolver(SGDSolver):
    """RMSProp."""

    type = "RMSProp"


class AdaDeltaSolver(SGDSolver):
    """AdaDelta."""

    type = "AdaDelta"


class AdamSolver(SGDSolver):
    """Adam."""

    type = "Adam"


_SOLVERS: dict[str, type[Solver]] = {
    kind.type: kind
    for kind in (SGDSolver, NesterovSolver, AdaGradSolver, RMSPropSolver, AdaDeltaSolver, AdamSolver)
}


def get_solver(solver_file: str | Path) -> Solver:
    """The solver of the type that its file names."""
    return _SOLVERS[read_params(load(solver_file)).type](solver_file)
