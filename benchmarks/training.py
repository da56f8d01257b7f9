"""One training step of UCN-HN on a pair of KITTI's size, as it is and in plain torch operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from cortado.layers._engine.dispatch import impl
from cortado.nets import specs
from cortado.nets.graph import StateFields
from cortado.nets.solver import Solver
from cortado.tools import plain
from cortado.tools.measuring import Call
from cortado.tools.results import OURS, PLAIN
from torch import Tensor

from .gpu_cases import Draw, Task

STEP = "training step"


class Training:
    """Measured as the other cases are; the loss is read in each step, as the solver does."""

    layer = "UCN-HN"
    sets = 1
    points = 1000

    def __init__(self, small: bool = False) -> None:
        self.height, self.width = (96, 128) if small else (375, 1242)
        self.size = f"{self.height} x {self.width}, {self.points:,} pairs"

    def tasks(self, number: int) -> list[Task]:
        return [Task(number, torch.float32, STEP, name) for name in (OURS, PLAIN)]

    def forced(self, task: Task, device: str) -> AbstractContextManager[None]:
        return impl("cuda") if task.implementation == OURS and device != "cpu" else nullcontext()

    def function(self, task: Task) -> Any:
        def solver(*leaves: Tensor) -> Solver:
            names = ("image1", "image2", "pairs", "num_pairs")
            given = dict(zip(names, leaves, strict=True))
            made = Solver(
                specs.path("ucn_hn_solver"),
                feed=lambda n: given,
                device=leaves[0].device,
                train_state=StateFields(),
            )
            if task.implementation == PLAIN:
                in_plain_operations(made)
            return made

        return solver

    def leaves(self, device: str, dtype: torch.dtype, seed: int) -> tuple[Tensor, ...]:
        draw = Draw(device, dtype, seed)
        image = 50 * draw.wide(1, 3, self.height, self.width)
        pairs = draw.table(1, self.points, (self.height // 4, self.width // 4))
        pairs[..., 2:4], pairs[..., 4] = pairs[..., :2] + 8, 1
        counts = torch.full((1, 1), float(self.points), device=device)
        return image, image.roll((8, 8), (2, 3)), pairs, counts

    def call(self, function: Any, leaves: Sequence[Tensor], direction: str) -> Call:
        solver = function(*leaves)
        return lambda: solver.step()

    everything = call

    def floor(
        self, direction: str, leaves: Sequence[Tensor], bandwidth: float, rates: Mapping[str, float]
    ) -> None:
        """Convolutions by whatever algorithm: no floor is known."""

    def disagrees(self, task: Task, leaves: Sequence[Tensor]) -> str:
        return ""


def in_plain_operations(solver: Solver) -> None:
    """Put what a user would write in the place of every layer of the net that is more than that."""
    for layer in solver.net.layers.children():
        if replacement := plain.replacements(layer):
            layer.forward = replacement
