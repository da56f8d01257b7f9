"""LSTMUnit: one step of an LSTM, the gates' inputs being given.

c = cont sigmoid(f) c_prev + sigmoid(i) tanh(g), h = sigmoid(o) tanh(c). Bottoms: c_prev [1, N, D],
the inputs of the gates i, f, o, g [1, N, 4 D], cont [1, N], 0 where a sequence begins, which gets no
gradient. Tops: c and h [1, N, D].

*Differs from Caffe:* where cont is neither 0 nor 1 the gradient of f is the exact one.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .._engine.checks import BlobError, Shape
from .._engine.declared import Bottom, Role, Trait
from .._engine.layer import Layer
from .._engine.params import NoParams
from .._engine.registry import register
from .._engine.samples import Sample, normal
from ._recurrent import lstm_unit


def infer(params: NoParams, c_prev: Shape, gates: Shape, cont: Shape) -> tuple[Shape, ...]:
    """The shapes of c and h; raises BlobError for bottoms that do not fit."""
    if len(c_prev) != 3 or c_prev[0] != 1:
        raise BlobError("expected {c_prev} to be [1, N, D]", c_prev=c_prev)
    _, n, d = c_prev
    if gates != (1, n, 4 * d):
        raise BlobError(f"expected {{gates}} to be {[1, n, 4 * d]}", gates=gates)
    if cont != (1, n):
        raise BlobError(f"expected {{cont}} to be {[1, n]}", cont=cont)
    return c_prev, c_prev


@register("LSTMUnit", bottoms=3, tops=2)
class LSTMUnit(Layer):
    """See the module's text."""

    BOTTOMS = (Bottom("c_prev"), Bottom("gates"), Bottom("cont", role=Role.LABEL, refused=True))
    TRAITS = (Trait.NO_CELLS,)
    infer = staticmethod(infer)

    def forward(self, c_prev: Tensor, gates: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
        infer(self.params, tuple(c_prev.shape), tuple(gates.shape), tuple(cont.shape))
        return lstm_unit(c_prev, gates, cont.detach().to(gates.dtype)[..., None])

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        n, d = {"small": (3, 4), "paper": (16, 1000)}.get(size, (64, 1000))
        cont = torch.from_numpy(rng.integers(0, 2, (1, n)).astype(float))
        bottoms = (normal(rng, (1, n, d)), normal(rng, (1, n, 4 * d)), cont)
        return [Sample(NoParams(), bottoms, (0, 1), (0, 1))]
