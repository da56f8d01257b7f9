"""ConvolutionalSpatialTransformer: every location's own affine transform of its k x k patch.

    top[n, :, i k + row, j k + column] = U[n, :, y, x]  read bilinearly, zero outside, at
        x = j + t1 dx + t2 dy + t3,    dx = column - (k - 1) / 2
        y = i + t4 dx + t5 dy + t6,    dy = row - (k - 1) / 2

with t = theta[n, :, i, j], all in cells of U. Bottoms: ``u`` ``[N, C, H, W]``; ``theta``, of the
same type, ``[N, 4, H, W]``: (t1, t2, t4, t5), the translation t3, t6 being 0, or ``[N, 6, H, W]``:
(t1, ..., t6). Top: ``[N, C, k H, k W]``, patches side by side, to be convolved with stride k. With
``theta_mode: RELATIVE`` theta is the difference from the identity: 1 is added to t1 and t5.

Backward fills both gradients, the exact derivatives. Where a point lies on a cell centre the
derivative by theta is one-sided, and which side is up to the rounding of the point.

The points are rounded to about W times the type's eps cells: 2e-5 for W = 300 in float32; half
types are computed in float32. A point far outside reads 0 and has no gradient; one that is not
finite (by a NaN or an infinity in theta) makes its element of the top NaN and gives u no gradient.

The kernels sum in one order and give the same bits every time. Torch operations on CUDA tensors do
not: under ``torch.use_deterministic_algorithms`` their backward raises torch's own error.

*Differs from the original:* the released source is not public; ``RELATIVE`` is a choice, so that
theta near 0 gives the patch as it is.

Source: UCN, Section 4 and Supplement 2 (one spatial transformer per location).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._engine import cuda
from ._engine.checks import BlobError, Shape, expect_axes
from ._engine.declared import Bottom, Top
from ._engine.definition import Spec, define
from ._engine.layer import Layer
from ._engine.params import param
from ._engine.reach import Reach
from ._engine.registry import register
from ._engine.samples import Sample
from ._engine.wide import wide

if TYPE_CHECKING:
    import numpy as np

BILINEAR, ZEROS, ALIGN_CORNERS = 0, 0, False  # as aten.grid_sampler_2d numbers them


class Transform(enum.Enum):
    """The family of transforms; theta's channels say whether with translation."""

    AFFINE = 0


class ThetaMode(enum.Enum):
    """Whether theta is the transform or its difference from the identity."""

    ABSOLUTE = 0
    RELATIVE = 1


@dataclass(frozen=True)
class Params:
    kernel_size: int = param(3, low=1, unit="cells", doc="side of the patch of one location")
    theta_mode: ThetaMode = param(ThetaMode.RELATIVE, doc="RELATIVE: the identity is added to theta")
    type: Transform = param(Transform.AFFINE, doc="the family of transforms")


BOTTOMS = (Bottom("u", "[N, C, H, W]"), Bottom("theta", "[N, 4, H, W] or [N, 6, H, W]"))
TOPS = (Top("top"),)


def infer(params: Params, u: Shape, theta: Shape) -> tuple[Shape]:
    """``[N, C, k H, k W]``; raises :class:`BlobError` for bottoms that do not fit together."""
    expect_axes("N C H W", u=u, theta=theta)
    if theta[1] not in (4, 6):
        raise BlobError("expected {theta} to have 4 or 6 channels", theta=theta)
    if (u[0], *u[2:]) != (theta[0], *theta[2:]):
        raise BlobError("bottoms disagree on N, H or W: {u}, {theta}", u=u, theta=theta)
    k = params.kernel_size
    return ((u[0], u[1], k * u[2], k * u[3]),)


def meta(params: Params, u: Tensor, theta: Tensor) -> Sequence[Spec]:
    """The top."""
    (n, channels, height, width), k = u.shape, params.kernel_size
    return (((n, channels, k * height, k * width), u.dtype),)


def sampling_points(theta: Tensor, params: Params) -> Tensor:
    """The points (x, y) read for each element of the top, ``[N, k H, k W, 2]``.

    As grid_sampler_2d counts them: -1 and 1 are the outer edges of the first and the last cell.
    """
    (n, channels, height, width), k = theta.shape, params.kernel_size
    one = 1 if params.theta_mode is ThetaMode.RELATIVE else 0
    t = theta.view(n, channels, height, 1, width, 1).unbind(1)
    t1, t2, t3, t4, t5, t6 = t if channels == 6 else (t[0], t[1], 0, t[2], t[3], 0)
    d = _offsets(theta, k)
    dx, dy = d, d[:, None, None]
    j = torch.arange(width, dtype=theta.dtype, device=theta.device)[:, None]
    i = torch.arange(height, dtype=theta.dtype, device=theta.device)[:, None, None, None]
    along_x, x = (t1 + one) * dx, t2 * dy + (j + t3)
    along_y, y = t4 * dx, (t5 + one) * dy + (i + t6)
    points = theta.new_empty(n, height, k, width, k, 2)
    for axis, (along, at, size) in enumerate(((along_x, x, width), (along_y, y, height))):
        rest = at.mul_(2 / size).add_(1 / size - 1)
        torch.add(along.mul_(2 / size), rest, out=points[..., axis])
    return points.view(n, k * height, k * width, 2)


def _offsets(like: Tensor, k: int) -> Tensor:
    """dx of each column, dy of each row of a patch."""
    return torch.arange(k, dtype=like.dtype, device=like.device) - (k - 1) / 2


def forward(params: Params, u: Tensor, theta: Tensor) -> tuple[Tensor]:
    (n, channels, height, width), k = u.shape, params.kernel_size
    if not u.numel():
        return (u.new_empty(n, channels, k * height, k * width),)
    split, points = _split(wide(u), sampling_points(wide(theta), params))
    top = torch.ops.aten.grid_sampler_2d(split, points, BILINEAR, ZEROS, ALIGN_CORNERS)
    return (top.view(n, channels, k * height, k * width).to(u.dtype),)


def backward(
    params: Params, wanted: Sequence[bool], top_gradient: Tensor, u: Tensor, theta: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    (n, _, height, width), k = u.shape, params.kernel_size
    if not u.numel():
        return torch.zeros_like(u), torch.zeros_like(theta)
    split, points = _split(wide(u), sampling_points(wide(theta), params))
    given = wide(top_gradient).reshape(*split.shape[:2], k * height, k * width)
    u_gradient, points_gradient = torch.ops.aten.grid_sampler_2d_backward(
        given, split, points, BILINEAR, ZEROS, ALIGN_CORNERS, (wanted[0], True)
    )
    u_gradient = u_gradient.view(u.shape).to(u.dtype) if wanted[0] else None
    if not wanted[1]:
        return u_gradient, None
    d = _offsets(points, k)
    first = torch.stack((d, torch.ones_like(d)), dim=1)  # dx and 1, or dy and 1
    by_column = first.new_zeros(k, 2, 4)  # to dx gx, gx, dx gy, gy, with g the points' gradient
    by_column[:, 0, :2], by_column[:, 1, 2:] = first * (2 / width), first * (2 / height)
    rows = points_gradient.view(n, -1, height, k, width, 2 * k) @ by_column.view(2 * k, 4)
    sums = torch.einsum("ngiajs,ar->rsnij", rows, first)  # over patches, of these times dy or 1
    parts = [sums[1, 0], sums[0, 1], sums[1, 1], sums[1, 2], sums[0, 3], sums[1, 3]]  # t1 to t6
    if theta.shape[1] == 4:
        del parts[5], parts[2]
    return u_gradient, torch.stack(parts, dim=1).to(theta.dtype)


def _split(u: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Groups of channels as a batch: on the CPU, images are what grid_sampler_2d runs in parallel."""
    n, channels, height, width = u.shape
    threads = 1 if u.is_cuda else torch.get_num_threads()
    groups = next((g for g in range(1, channels) if channels % g == 0 and n * g >= threads), 1)
    shared = points[:, None].expand(n, groups, *points.shape[1:]).flatten(0, 1)
    return u.reshape(n * groups, channels // groups, height, width), shared


kernels = cuda.Kernels(__file__)
CHUNK, TILE = 32, 64  # channels and cells that a block takes, as in the .cu


def forward_cuda(params: Params, u: Tensor, theta: Tensor) -> tuple[Tensor]:
    (n, channels, height, width), k = u.shape, params.kernel_size
    top = u.new_empty(n, channels, k * height, k * width)
    size = k * k * height * width
    rows = _rows(u.contiguous())
    kernels.launch(
        "transformer_forward",
        params,
        grid=(n * _blocks(size, TILE), _blocks(channels, CHUNK)),
        block=cuda.threads(256),
        u=rows,
        top=top,
        channels=channels,
        row=rows.shape[-1],
        size=size,
        **_transforms(theta, params),
    )
    return (top,)


def backward_cuda(
    params: Params, wanted: Sequence[bool], top_gradient: Tensor, u: Tensor, theta: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """CHUNK channels at a time: their gradient, turned to rows, stays in the cache."""
    n, channels, height, width = u.shape
    top_gradient, cells = top_gradient.contiguous(), height * width
    transforms = _transforms(theta, params)
    u_gradient = torch.empty_like(u, memory_format=torch.contiguous_format) if wanted[0] else None
    theta_gradient = None
    if wanted[1]:
        theta_gradient = theta.new_zeros(theta.shape, dtype=cuda.accumulator_dtype(u.dtype))
    if not u.numel():
        return u_gradient, None if theta_gradient is None else theta_gradient.to(theta.dtype)
    readers = _readers(theta, params, transforms) if wanted[0] else {}
    rows = _rows(u.contiguous()) if wanted[1] else None
    for first in range(0, channels, CHUNK):
        given = _rows(top_gradient, first, CHUNK)
        common = {"given": given, "row": given.shape[-1], "first": first}
        if wanted[0]:
            kernels.launch(
                "transformer_backward_u",
                grid=n * _blocks(cells, TILE),
                block=cuda.threads(512),
                gradient=u_gradient,
                **cuda.sizes("_ channels height width", u),
                **common,
                **readers,
            )
        if rows is not None:
            threads = cuda.threads(256)
            lanes = CHUNK // _vector(u)
            kernels.launch(
                "transformer_backward_theta",
                params,
                grid=_blocks(n * cells, threads // lanes),
                block=threads,
                u=rows,
                gradient=theta_gradient,
                locations=n * cells,
                u_row=rows.shape[-1],
                **common,
                **transforms,
            )
    return u_gradient, None if theta_gradient is None else theta_gradient.to(theta.dtype)


def _transforms(theta: Tensor, params: Params) -> dict[str, Any]:
    """What every kernel that finds points is given, beside the layer's parameters."""
    return {
        "theta": theta.contiguous(),
        "one": 1 if params.theta_mode is ThetaMode.RELATIVE else 0,
        **cuda.sizes("_ parts height width", theta),
    }


def _rows(x: Tensor, first: int = 0, count: int | None = None) -> Tensor:
    """``[N, C, ...]`` -> ``[N, ..., row]``: channels from ``first`` on, zeros up to 16 bytes."""
    n, channels = x.shape[:2]
    size, vector = math.prod(x.shape[2:]), _vector(x)
    row = _blocks(min(channels - first, count or channels), vector) * vector
    rows = x.new_empty(n, size, row)
    kernels.launch(
        "transformer_turn",
        grid=(n * _blocks(size, TILE), _blocks(row, CHUNK)),
        block=cuda.threads(256),
        x=x,
        rows=rows,
        channels=channels,
        first=first,
        row=row,
        size=size,
    )
    return rows


def _readers(theta: Tensor, params: Params, transforms: dict[str, Any]) -> dict[str, Tensor]:
    """Which points read a cell: all, in the order of their cells, and where each cell's begin."""
    n, _, height, width = theta.shape
    size = params.kernel_size**2 * height * width
    nowhere = n * (height + 1) * (width + 1)
    points = theta.new_empty(n, size, 2, dtype=cuda.accumulator_dtype(theta.dtype))
    key = theta.new_empty(n * size, dtype=torch.int32)
    kernels.launch(
        "transformer_points",
        params,
        over=n * size,
        points=points,
        key=key,
        count=n * size,
        size=size,
        nowhere=nowhere,
        **transforms,
    )
    key, order = torch.sort(key, stable=True)
    cells = torch.arange(nowhere + 1, dtype=key.dtype, device=key.device)
    return {"points": points, "order": order, "starts": torch.searchsorted(key, cells)}


def _vector(x: Tensor) -> int:
    return 16 // x.element_size()


def _blocks(work: int, per_block: int) -> int:
    return -(-work // per_block)


definition = define(__name__)


def convolutional_spatial_transformer(
    u: Tensor,
    theta: Tensor,
    kernel_size: int = Params.kernel_size,
    theta_mode: ThetaMode | str = Params.theta_mode,
) -> Tensor:
    """Each location's k x k patch of ``u`` ``[N, C, H, W]``, transformed by its own ``theta``.

    ``theta`` ``[N, 4, H, W]`` is the 2 x 2 linear part in row-major order, ``[N, 6, H, W]`` the
    2 x 3 affine matrix, in cells; ``"RELATIVE"`` adds the identity to it, ``"ABSOLUTE"`` takes it
    as it is. Gives ``[N, C, k H, k W]``. Raises ``BlobError`` for shapes that do not fit,
    ``TypeError`` unless both are of one floating type, ``ValueError`` for a kernel size below 1.
    Source: UCN, Section 4 and Supplement 2.
    """
    top: Tensor = definition(definition.params(kernel_size, theta_mode), u, theta)
    return top


@register("ConvolutionalSpatialTransformer")
class ConvolutionalSpatialTransformer(Layer):
    definition = definition

    @classmethod
    def multiply_adds(
        cls, params: Any, bottoms: Sequence[Shape], tops: Sequence[Shape], blobs: Sequence[Shape]
    ) -> int | None:
        return 4 * math.prod(tops[0])  # each element lies between four

    @classmethod
    def reach(cls, params: Any, i: int, bottom: Shape, j: int, top: Shape) -> tuple[Reach, ...] | None:
        """As the identity would have it. Patches overlap in u: on an even grid of k cells for each of
        u's, an element's is at most (k - 1) / 2 (1 - 1 / k) cells from where its grid has it."""
        step = Fraction(1, params.kernel_size)
        aside = (params.kernel_size - 1) * (1 - step if i == 0 else step)
        return (Reach(1 + aside, step, (step - 1) / 2),) * 2

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        from ._samples import convolutional_spatial_transformer as own

        return own.samples(size, rng)
