"""Gradient checks of layers, functions and nets: :mod:`cortado.tools.gradcheck`."""

from cortado.tools.gradcheck import (
    GradientError,
    Report,
    cases,
    check_function,
    check_layer,
    check_net,
)

__all__ = ["GradientError", "Report", "cases", "check_function", "check_layer", "check_net"]
