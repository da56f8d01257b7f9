"""RNN: o_t = tanh(W_o h_t + b_o), h_t = tanh(W_x x_t + b + W_static x_static + W_h (cont_t h_(t-1))).

Bottoms and tops as ``standard/_recurrent.py`` has them, the hidden state being h. Blobs: weight_x
[D, elements of x], bias [D], weight_static [D, elements of x_static] if there is one, weight_h
[D, D], weight_o [D, D], bias_o [D]. Backward is through all steps of the batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .._engine.checks import Shape
from .._engine.fillers import FillerParams, FillerType, parameter
from .._engine.registry import register
from .._engine.samples import Sample, normal
from . import _recurrent as recurrent
from ._recurrent import Recurrent, RecurrentParams


def infer(params: RecurrentParams, *bottoms: Shape) -> tuple[Shape, ...]:
    """The shapes of o and, if exposed, of the last h; raises BlobError."""
    return recurrent.infer(params, 1, *bottoms)


@register("RNN", bottoms=(2, 4), tops=(1, 2), block="recurrent_param")
class RNN(Recurrent):
    """See the module's text."""

    infer = staticmethod(infer)
    states, gates = 1, 1

    def __init__(
        self,
        params: Any,
        bottom_shapes: tuple[Shape, ...],
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(params, bottom_shapes, generator)
        d = params.num_output
        self.blob_names += ("weight_o", "bias_o")
        self.weight_o = self.matrix((d, d), generator)
        self.bias_o = parameter((d,), params.bias_filler, generator)

    def step(self, gates: Tensor, state: tuple[Tensor, ...], cont: Tensor) -> tuple[Tensor, ...]:
        return (gates.tanh(),)

    def output(self, h: Tensor) -> Tensor:
        return F.linear(h, self.weight_o, self.bias_o).tanh()

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
