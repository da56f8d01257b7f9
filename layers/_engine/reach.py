"""How a top's cells lie over a bottom's, along one axis: what receptive fields are made of."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

Length = int | Fraction


class Reach(NamedTuple):
    """Cell o of the top sees ``extent`` cells of the bottom, centred at ``o * stride + shift``.

    Where the top's cells lie between the bottom's, ``extent`` holds those that any of them sees.
    """

    extent: Length = 1
    stride: Length = 1
    shift: Length = 0


SAME = Reach()


def window(kernel: int, stride: int = 1, pad: int = 0, dilation: int = 1) -> Reach:
    """Of a convolution or pooling, in bottom cells."""
    span = dilation * (kernel - 1)
    return Reach(span + 1, stride, Fraction(span, 2) - pad)


def transposed(kernel: int, stride: int = 1, pad: int = 0, dilation: int = 1) -> Reach:
    """Of a deconvolution, in bottom cells."""
    span = Fraction(dilation * (kernel - 1))
    return Reach(span / stride + 1, Fraction(1, stride), (pad - span / 2) / stride)
