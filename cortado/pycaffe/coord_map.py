"""How the coordinates of two tops of a net specification correspond, so that one can be cropped to the
other, as fully convolutional nets do (Long et al., CVPR 2015).

A map is ``(axis, scale, shift)``: from ``axis`` on (None: whatever axis), the coordinate x of a
layer's bottom is at ``scale * x + shift`` of its top. ``scale`` and ``shift`` are arrays, a value an
axis, or one for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .net_spec import Function, Top, layers

Map = tuple[int | None, Any, Any]

PASS_THROUGH_LAYERS = [
    *("AbsVal", "BatchNorm", "Bias", "BNLL", "Dropout", "Eltwise", "ELU", "Log", "LRN", "Exp", "MVN"),
    *("Power", "ReLU", "PReLU", "Scale", "Sigmoid", "Split", "TanH", "Threshold"),
]
_IDENTITY: Map = (None, 1, 0)


class UndefinedMapException(Exception):
    """A layer whose coordinates do not follow from its bottom's."""


class AxisMismatchException(Exception):
    """Maps of different axes that cannot be one after the other."""


def conv_params(fn: Function) -> tuple[int, Any, Any, Any]:
    """First axis, stride, extent of the kernel and padding of a layer with a window."""
    given = fn.params.get("convolution_param") or fn.params.get("pooling_param") or fn.params
    if old := sorted({f"{k}_{a}" for k in ("pad", "kernel", "stride") for a in "hw"} & set(given)):
        raise ValueError(f"{fn.type_name}: {', '.join(old)}: give kernel_size, stride and pad instead")
    kernel, stride, pad, dilation = (
        np.array(given.get(name, default), ndmin=1)
        for name, default in (("kernel_size", None), ("stride", 1), ("pad", 0), ("dilation", 1))
    )
    return given.get("axis", 1), stride, (kernel - 1) * dilation + 1, pad


def crop_params(fn: Function) -> tuple[int, Any]:
    """First axis and offsets of a Crop layer."""
    given = fn.params.get("crop_param", fn.params)
    return given.get("axis", 2), np.array(given.get("offset", 0), ndmin=1)


def coord_map(fn: Function) -> Map:
    """The map of a layer. Raises :class:`UndefinedMapException` for one that has none."""
    if fn.type_name in ("Convolution", "Pooling", "Im2col"):
        axis, stride, extent, pad = conv_params(fn)
        return axis, 1 / stride, (pad - (extent - 1) / 2) / stride
    if fn.type_name == "Deconvolution":
        axis, stride, extent, pad = conv_params(fn)
        return axis, stride, (extent - 1) / 2 - pad
    if fn.type_name in PASS_THROUGH_LAYERS:
        return _IDENTITY
    if fn.type_name == "Crop":
        axis, offset = crop_params(fn)
        return axis - 1, 1, -offset  # as a window's axis: of the channels, before the first cropped
    raise UndefinedMapException(f"{fn.type_name} maps no coordinates")


def compose(base_map: Map, next_map: Map) -> Map:
    """One map after another: the scales' product, the second's shift in units of the first."""
    axis1, scale1, shift1 = base_map
    axis2, scale2, shift2 = next_map
    if None not in (axis1, axis2) and axis1 != axis2:
        raise AxisMismatchException(f"axes {axis1} and {axis2}")
    return axis2 if axis1 is None else axis1, scale1 * scale2, scale1 * shift2 + shift1


def inverse(coord_map: Map) -> Map:
    """From the top's coordinates to the bottom's."""
    axis, scale, shift = coord_map
    return axis, 1 / scale, -shift / scale


def coord_map_from_to(top_from: Top, top_to: Top) -> Map:
    """The map of ``top_from``'s coordinates to ``top_to``'s, over an ancestor that they share."""
    below = dict(_below(top_from))
    for top, back in _below(top_to):
        if top in below:
            return compose(back, inverse(below[top]))
    raise RuntimeError("the tops share no ancestor from which coordinates can be followed to both")


def _below(top: Top) -> Iterator[tuple[Top, Map]]:
    """The tops below a top, itself first, with their maps to it, as far as maps are defined."""
    maps = {top: _IDENTITY}
    frontier = [top]
    while frontier:
        current = frontier.pop()
        yield current, maps[current]
        try:
            step = coord_map(current.fn)
        except UndefinedMapException:
            continue
        read = current.fn.inputs
        for bottom in read[:1] if current.fn.type_name == "Crop" else read:
            if bottom not in maps:
                maps[bottom] = compose(maps[current], step)
                frontier.append(bottom)


def crop(top_from: Top, top_to: Top) -> Any:
    """A Crop layer that crops ``top_from`` to the cells of ``top_to``.

    Raises AssertionError, as Caffe does, where no crop makes them correspond: scales differ, or an
    offset is negative or not whole.
    """
    axis, scale, shift = coord_map_from_to(top_from, top_to)
    scale, shift = np.array(scale, ndmin=1), np.array(shift, ndmin=1)
    if (scale != 1).any():
        raise AssertionError(f"cannot crop: one has {scale} times the cells of the other")
    if (shift > 0).any():
        raise AssertionError(f"cannot crop by the negative offset {-shift}")
    if (np.round(shift) != shift).any():
        raise AssertionError(f"cannot crop by the offset {-shift}, which is not whole")
    offset = [int(x) for x in -np.round(shift)]
    first = 2 if axis is None else axis + 1
    return layers.Crop(top_from, top_to, crop_param={"axis": first, "offset": offset})
