"""LSTM: h_t = sigmoid(o) tanh(c_t), c_t = cont_t sigmoid(f) c_(t-1) + sigmoid(i) tanh(g), with

    (i, f, o, g) = W_x x_t + b + W_static x_static + W_h (cont_t h_(t-1)).

Bottoms and tops as ``standard/_recurrent.py`` has them, the output being h, the hidden states h and c.
Blobs: weight_x [4 D, elements of x], bias [4 D], weight_static [4 D, elements of x_static] if there
is one, weight_h [4 D, D]; the gates in the order above. Backward is through all steps of the batch.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .._engine.checks import Shape
from .._engine.fillers import FillerParams, FillerType
from .._engine.registry import register
from .._engine.samples import Sample, normal
from . import _recurrent as recurrent
from ._recurrent import Recurrent, RecurrentParams, lstm_unit


def infer(params: RecurrentParams, *bottoms: Shape) -> tuple[Shape, ...]:
    """The shapes of h and, if exposed, of the last h and c; raises BlobError."""
    return recurrent.infer(params, 2, *bottoms)


@register("LSTM", bottoms=(2, 5), tops=(1, 3), block="recurrent_param")
class LSTM(Recurrent):
    """See the module's text."""

    infer = staticmethod(infer)
    states, gates = 2, 4

    def step(self, gates: Tensor, state: tuple[Tensor, ...], cont: Tensor) -> tuple[Tensor, ...]:
        c, h = lstm_unit(state[1], gates, cont)
        return h, c

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        t, n, inputs, d = {"small": (3, 2, 5, 4), "paper": (20, 16, 1000, 1000)}.get(
            size, (20, 64, 1000, 1000)
        )
        filler = FillerParams(type=FillerType.uniform, min=-0.5, max=0.5)
        cont = torch.ones(t, n).double()
        cont[0], cont[1, 0] = 0, 0
        params = RecurrentParams(d, filler, filler)
        bottoms = (normal(rng, (t, n, inputs)), cont, normal(rng, (n, inputs)))
        return [Sample(params, bottoms[:2], (0,)), Sample(params, bottoms, (0, 2))]
