"""What LSTM and RNN share: the loop over time, the hidden state, the blobs.

Bottoms: x [T, N, ...], a batch of N streams of T steps; cont [T, N], 0 where a stream begins anew
and 1 where it goes on, which is a factor of the state before; if wanted x_static [N, ...], the same
at all steps; with ``expose_hidden`` the hidden state before the first step, [1, N, D] each. Tops: the
outputs [T, N, D], D = ``num_output``; with ``expose_hidden`` the state after the last step.

Without ``expose_hidden`` the state after a forward is the next one's first, so that sequences may
be longer than a batch; it is 0 at first, after :meth:`Recurrent.reset`, and when N has changed.
No gradient goes to cont, nor, as in Caffe, into or out of the exposed states: backward ends with
the batch. Source: Caffe's behaviour.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._engine.checks import BlobError, Shape, valueless
from .._engine.declared import Bottom, Role, Trait
from .._engine.fillers import FillerParams, parameter
from .._engine.layer import Layer
from .._engine.params import param

LOGGER = logging.getLogger("cortado.layers")


@dataclass(frozen=True)
class RecurrentParams:
    """``recurrent_param``."""

    num_output: int = param(low=1, doc="elements of the state and of the output, D")
    weight_filler: FillerParams = param(FillerParams(), doc="of the weights")
    bias_filler: FillerParams = param(FillerParams(), doc="of the biases")
    debug_info: bool = param(False, doc="log the mean magnitude of the state at each step")
    expose_hidden: bool = param(False, doc="the state is a bottom and a top")


def has_static(params: RecurrentParams, states: int, bottoms: Sequence[Any]) -> bool:
    """Whether there is an x_static among the bottoms; raises BlobError for a wrong number of them."""
    known = 2 + (states if params.expose_hidden else 0)
    if len(bottoms) not in (known, known + 1):
        hidden = f", and {states} hidden states," if params.expose_hidden else ""
        raise BlobError(f"expected x, cont{hidden} and at most x_static, got {len(bottoms)} bottoms")
    return len(bottoms) > known


def infer(params: RecurrentParams, states: int, *bottoms: Shape) -> tuple[Shape, ...]:
    """The tops' shapes; raises BlobError for bottoms that do not fit."""
    static = has_static(params, states, bottoms)
    x, cont, *others = bottoms
    if len(x) < 3:
        raise BlobError("expected {x} to be [T, N, ...]", x=x)
    if cont != x[:2]:
        raise BlobError("expected {cont} to be [T, N] of {x}", cont=cont, x=x)
    if static and (len(others[0]) < 2 or others[0][0] != x[1]):
        raise BlobError("expected {x_static} to be [N, ...], N of {x}", x_static=others[0], x=x)
    state = (1, x[1], params.num_output)
    for hidden in others[static:]:
        if hidden != state:
            raise BlobError(f"expected {{hidden}} to be {list(state)}", hidden=hidden)
    return ((*x[:2], params.num_output), *(state for _ in others[static:]))


class Recurrent(Layer):
    """The base: a subclass gives ``states``, ``gates``, its output's blobs, and :meth:`step`.

    ``states`` is the number of its hidden states, h the first; ``gates`` that of blocks of D values
    which a step computes from the input and h.
    """

    Params = RecurrentParams
    BOTTOMS = (Bottom("x"), Bottom("cont", role=Role.LABEL, refused=True))
    TRAITS = (Trait.NO_CELLS,)
    states: ClassVar[int]
    gates: ClassVar[int]

    def __init__(
        self,
        params: Any,
        bottom_shapes: tuple[Shape, ...],
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(params, bottom_shapes, generator)
        d = params.num_output
        static = has_static(params, self.states, bottom_shapes)
        self.blob_names = ("weight_x", "bias", *(("weight_static",) if static else ()), "weight_h")
        self.weight_x = self.matrix((self.gates * d, prod(bottom_shapes[0][2:])), generator)
        self.bias = parameter((self.gates * d,), params.bias_filler, generator)
        self.weight_static = (
            self.matrix((self.gates * d, prod(bottom_shapes[2][1:])), generator) if static else None
        )
        self.weight_h = self.matrix((self.gates * d, d), generator)
        self.carried: Tensor | None = None  # the states [states, N, D] that a forward left

    @classmethod
    def multiply_adds(
        cls, params: Any, bottoms: Sequence[Shape], tops: Sequence[Shape], blobs: Sequence[Shape]
    ) -> int | None:
        steps, streams = bottoms[0][:2]
        matrices = [blob for blob in blobs if len(blob) > 1]
        static = streams * prod(matrices.pop(1)) if has_static(params, cls.states, bottoms) else 0
        return steps * streams * sum(map(prod, matrices)) + static

    def matrix(self, shape: Shape, generator: torch.Generator | None) -> nn.Parameter:
        return parameter(shape, self.params.weight_filler, generator)

    def step(self, gates: Tensor, state: tuple[Tensor, ...], cont: Tensor) -> tuple[Tensor, ...]:
        """The states after a step, from its gates' inputs [N, gates D] and the states [N, D] before;
        cont is [N, 1]."""
        raise NotImplementedError

    def output(self, h: Tensor) -> Tensor:
        """The output [T, N, D] of the states h [T, N, D]."""
        return h

    def reset(self) -> None:
        """Forget the hidden state."""
        self.carried = None

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        infer(self.params, self.states, *(tuple(bottom.shape) for bottom in bottoms))
        x, cont, *others = bottoms
        inputs = _linear("x", x, 2, self.weight_x, self.bias)
        if self.weight_static is not None:
            inputs = inputs + _linear("x_static", others.pop(0), 1, self.weight_static)
        state = self._first_state(inputs, others)
        cont = cont.detach().to(inputs.dtype)
        hs = []
        for gates, goes_on in zip(inputs, cont[..., None], strict=True):
            gates = gates + F.linear(state[0] * goes_on, self.weight_h)
            state = self.step(gates, state, goes_on)
            hs.append(state[0])
        if self.params.debug_info and not valueless(inputs):
            for t, h in enumerate(hs, 1):
                LOGGER.info("step %d: mean magnitude of h %.6g", t, float(h.detach().abs().mean()))
        last = torch.stack([s.detach() for s in state])
        top = self.output(torch.stack(hs) if hs else inputs[..., : self.params.num_output])
        if self.params.expose_hidden:
            return (top, *last[:, None])
        if not valueless(last):
            self.carried = last
        return (top,)

    def _first_state(self, inputs: Tensor, exposed: list[Tensor]) -> tuple[Tensor, ...]:
        shape = (self.states, inputs.shape[1], self.params.num_output)
        if self.params.expose_hidden:
            return tuple(hidden[0].detach() for hidden in exposed)
        carried = None if valueless(inputs) else self.carried
        if carried is None or tuple(carried.shape) != shape:
            return tuple(inputs.new_zeros(shape))
        return tuple(carried.to(inputs))

    def get_extra_state(self) -> Tensor:
        """The hidden state, so that a restored net goes on with it."""
        return torch.empty(0) if self.carried is None else self.carried

    def set_extra_state(self, state: Any) -> None:
        self.carried = state.clone() if state.numel() else None


def _linear(name: str, x: Tensor, axis: int, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    flat = x.flatten(axis)
    if flat.shape[-1] != weight.shape[1]:
        raise BlobError(
            f"{{{name}}} gives {flat.shape[-1]} inputs, the weight takes {weight.shape[1]}",
            **{name: x.shape},
        )
    return F.linear(flat, weight, bias)


def lstm_unit(c: Tensor, gates: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
    """One step of an LSTM: c and h after it, from c [..., D] before, the inputs of the gates i, f, o
    and g [..., 4 D], and cont [..., 1].

    c' = cont sigmoid(f) c + sigmoid(i) tanh(g), h' = sigmoid(o) tanh(c').
    """
    i, f, o, g = gates.chunk(4, -1)
    c = cont * f.sigmoid() * c + i.sigmoid() * g.tanh()
    return c, o.sigmoid() * c.tanh()
