"""The base of data layers that read samples one after the other, from the last back to the first."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._engine.checks import Shape
from .._engine.layer import Layer


class BatchLayer(Layer):
    """A data layer with a seed, drawn from the net's generator, and a position: samples given so far.

    What is random about sample n depends on the seed and on n alone, so that a run can be resumed.
    """

    def __init__(
        self,
        params: Any,
        bottom_shapes: tuple[Shape, ...] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(params, bottom_shapes, generator)
        self.seed = int(torch.randint(2**31, (), generator=generator, device="cpu"))
        self.position = 0
        self._shuffled: tuple[tuple[int, ...], np.ndarray] = ((), np.arange(0))

    def draw(self, *key: int) -> np.random.Generator:
        """The random numbers of this key."""
        return np.random.default_rng((self.seed, *key))

    def shuffled(self, number: int, count: int) -> int:
        """Which of ``count`` items comes as the ``number``-th where they are read round and round, each
        time in another order, which depends on the seed and on the round alone."""
        again, place = divmod(number, count)
        key = (self.seed, again, count)
        if self._shuffled[0] != key:
            self._shuffled = (key, self.draw(1, again).permutation(count))
        return int(self._shuffled[1][place])

    def get_extra_state(self) -> Tensor:
        """The seed and the position, so that a restored net goes on with the next sample."""
        return torch.tensor([self.seed, self.position])

    def set_extra_state(self, state: Any) -> None:
        self.seed, self.position = (int(value) for value in state)
