"""HyperpixelCorrelation: how alike the hyperpixels of two images are, without ever making them.

A hyperpixel is what several maps of one net hold at a cell of the first of them, the base: the others
are upsampled to it bilinearly (``align_corners``), and all are concatenated along their channels
(Hyperpixel Flow, Eq. 1). Of a cell p of image A and a cell p' of image B (Eq. 4)

    s(p, p') = max(0, cos(f(p), f'(p'))) ^ exponent

Bottoms: the maps of image A, each ``[N, C_l, H_l, W_l]``, the base first; then as many of B,
``[N, C_l, H'_l, W'_l]``; one floating type. With a ``margin`` also the two images, or their sizes (two
values, height and width). Top: ``[N, H, W, H', W']`` over the cells of the bases, in that type. Cells
that the margin leaves out (``_geometry/cells.py``) are not computed: they get 0, and give no gradient.
With ``channel_weights`` the layer owns a blob ``[C_l]`` for each map, shared by A and B, which
multiplies its channels.

**How.** With U the upsampling of a map F (cells by channels) to the base's size, the numerator is a sum
over the maps,

    N = sum of U F F'^T U'^T:

maps of one size are multiplied at that size, and their sum ``[h, w, h', w']`` is upsampled along its
four axes. The squared length of a hyperpixel, the sum of (U F F^T U^T)(p, p), takes the products of a
cell with itself and its neighbours alone (``_hyperpixels.py``). Lengths below ``eps`` count as ``eps``,
those whose square overflows (1.8e19 in float32) give NaN. Arithmetic is in float32 or wider; what
rounding leaves of hyperpixels that cancel stays within 0 to 1. On CUDA the matrix products are torch's
(cuBLAS), in float32, or TF32 where torch is told to; kernels do what surrounds them.

Backward fills the gradients of all maps, and of the channel weights. With g the top's gradient,
h = exponent cos^(exponent - 1) where the cosine is positive, else 0, and L(p) the length of f(p),

    G(p, p') = g h / (L(p) L'(p')),    a(p) = -sum over p' of g h cos / L(p)^2,
    dF = U^T G U' F' + (U^T diag(a) U) F

(a = 0 where the length is held at eps), and likewise for B.

For ``res2b, res3d, res4d, res4e, res4f`` of a ResNet-50 and 3,300 cells a side (300 x 200 pixels) the
base takes 2.8 billion multiply-adds and everything else 1.3; 3,840 channels, upsampled and
concatenated, take 42.

*Differs from the original:* the same numbers, by linearity; and the original has no eps (0 / 0 is NaN).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._engine import cuda
from ._engine.checks import BlobError, Shape, expect_axes, expect_floating, kind_of, shapes
from ._engine.declared import Bottom, Role, Top, Trait
from ._engine.definition import Definition, Spec
from ._engine.fillers import FillerParams, parameter
from ._engine.layer import Layer
from ._engine.operators import unbacked
from ._engine.params import param
from ._engine.registry import register
from ._engine.samples import Sample
from ._engine.sizes import Size, expect_sizes, shape_of
from ._engine.wide import wide_dtype
from ._geometry.cells import CellParams, clear_others, counts, place
from ._hyperpixels import base_term, cosines, groups, product, squared_lengths, to_maps, upsampled_term

if TYPE_CHECKING:
    import numpy as np

NOWHERE = 0.0, 0.0  # an image that is not given: without a margin none is looked at


@dataclass(frozen=True)
class Params(CellParams):
    exponent: float = param(3.0, low=1, doc="of the rectified cosine")
    eps: float = param(1e-12, above=0, doc="the least length to divide by")
    channel_weights: bool = param(False, doc="a blob for each map that multiplies its channels")
    filler: FillerParams = param(  # compilers know of no instance that is a default
        factory=lambda: FillerParams(value=1.0), doc="what these blobs begin with; default: constant 1"
    )


BOTTOMS = (
    Bottom("maps", "[N, C, H, W]", many=True),
    Bottom("size_a", "[N, C, H, W]", Role.SIZE, optional=True),
    Bottom("size_b", "[N, C, H, W]", Role.SIZE, optional=True),
)
TOPS = (Top("top"),)


def split(bottoms: Sequence[Any], margin: bool) -> tuple[list[Any], list[Any], list[Any]]:
    """The maps of A, those of B, the sizes; raises BlobError for an odd number of maps."""
    count = len(bottoms) - 2 * margin
    if count < 2 or count % 2:
        sizes = " and two images" if margin else ""
        raise BlobError(f"expected as many maps of B as of A{sizes}, got {len(bottoms)} bottoms")
    return list(bottoms[: count // 2]), list(bottoms[count // 2 : count]), list(bottoms[count:])


def infer(params: Params, *bottoms: Shape) -> tuple[Shape]:
    """``[N, H, W, H', W']``; raises :class:`BlobError` for bottoms that do not fit together."""
    maps_a, maps_b, sizes = split(bottoms, params.margin is not None)
    count = len(maps_a)
    read_as = f"maps of A: {count}, of B: {count}, images: {len(sizes)}"
    named = {f"bottom{i}": shape for i, shape in enumerate(bottoms[: 2 * count])}
    expect_axes("N C H W", **named)
    for i, (name, shape) in enumerate(named.items()):
        other, base = f"bottom{i % count}", f"bottom{i - i % count}"
        if shape[1] != named[other][1]:
            raise BlobError(f"channels differ: {{{other}}}, {{{name}}} ({read_as})", **named)
        if shape[0] != maps_a[0][0]:
            raise BlobError(f"batch sizes differ: {{bottom0}}, {{{name}}} ({read_as})", **named)
        if 0 in shape[2:] and 0 not in named[base][2:]:
            raise BlobError(f"{{{name}}} has no cells for those of {{{base}}}", **named)
    images = {f"bottom{2 * count + i}": shape for i, shape in enumerate(sizes)}
    expect_sizes({"bottom0": maps_a[0]}, **images)
    return ((maps_a[0][0], *maps_a[0][2:], *maps_b[0][2:]),)


def meta(
    params: Params, maps: Sequence[Tensor], size_a: Tensor | None = None, size_b: Tensor | None = None
) -> Sequence[Spec]:
    """The top; of the cells that take part, the rectified cosines and both images' squared lengths."""
    maps_a, maps_b = halves(maps)
    (n, _, *grid), dtype = maps_a[0].shape, maps_a[0].dtype
    grid += maps_b[0].shape[2:]
    kept = grid if params.margin is None else [unbacked() for _ in grid]
    wide = wide_dtype(dtype)
    lengths = ((n, *kept[:2]), wide), ((n, *kept[2:]), wide)
    return ((n, *grid), dtype), ((n, *kept), wide), *lengths


def halves(maps: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """The maps of A and those of B."""
    count = len(maps) // 2
    return maps[:count], maps[count:]


def forward(
    params: Params,
    maps: Sequence[Tensor],
    size_a: Size | None = None,
    size_b: Size | None = None,
    keep: bool = True,
) -> tuple[Tensor | None, ...]:
    base, *others = every = groups(*halves(maps))
    kept = params.pair(base.sizes, size_a or NOWHERE, size_b or NOWHERE)
    lengths_a = squared_lengths([x.a for x in every], kept[:2])
    lengths_b = squared_lengths([x.b for x in every], kept[2:])
    upsampled = [upsampled_term(product(x.a, x.b), base.sizes, kept) for x in others]
    top = clear_others(maps[0].new_empty(len(base.a), *base.sizes), kept)
    cosine = base.a.new_empty(len(base.a), *counts(kept)) if keep else None
    into = top[:, *kept]
    for rows, some in cosines([base_term(base, kept), *upsampled], lengths_a, lengths_b, params.eps):
        if cosine is not None:
            cosine[:, rows] = some
        into[:, rows] = some if params.exponent == 1 else some.pow_(params.exponent)
    return (top, cosine, lengths_a, lengths_b) if keep else (top, None, None, None)


def backward(
    params: Params,
    top_gradient: Tensor,
    maps: Sequence[Tensor],
    cosine: Tensor,
    lengths_a: Tensor,
    lengths_b: Tensor,
) -> list[Tensor]:
    kept = params.pair_again(top_gradient.shape[1:], cosine.shape[1:])
    slope = top_gradient[:, *kept].to(cosine.dtype) * (cosine > 0)  # to become g h
    if params.exponent != 1:
        slope = slope.mul_(cosine ** (params.exponent - 1)).mul_(params.exponent)
    along = slope * cosine  # g h cos
    own = [
        (-along.sum(axes) / 2 / squared).masked_fill_(squared.sqrt() <= params.eps, 0)  # a / 2
        for axes, squared in (((3, 4), lengths_a), ((1, 2), lengths_b))
    ]
    slope *= (1 / lengths_a.sqrt().clamp(min=params.eps))[..., None, None]
    slope *= (1 / lengths_b.sqrt().clamp(min=params.eps))[:, None, None]  # now G
    return to_maps(slope, own, *halves(maps), kept)


kernels = cuda.Kernels(__file__)
CHANNELS = 64  # of a map, that a block adds up
SPAN, COLUMNS = 64, 4  # of matches a block takes SPAN cells of A and 32 COLUMNS of B


def forward_cuda(
    params: Params,
    maps: Sequence[Tensor],
    size_a: Size | None = None,
    size_b: Size | None = None,
    keep: bool = True,
) -> tuple[Tensor | None, ...]:
    scalar = maps[0].dtype
    base, *others = every = groups(*halves(_dense(maps)))
    kept = params.pair(base.sizes, size_a or NOWHERE, size_b or NOWHERE)
    lengths_a = _squared_lengths_cuda([x.a for x in every], kept[:2], scalar)
    lengths_b = _squared_lengths_cuda([x.b for x in every], kept[2:], scalar)
    cut = base.cut(kept)
    numerator = product(cut.a, cut.b)
    for x in others:
        up = x.up_to(base.sizes, kept)
        columns = up.columns(product(x.a, x.b))
        numerator.flatten(2).baddbmm_(up.down_a.expand(len(columns), -1, -1), columns)
    top = maps[0].new_empty(len(base.a), *base.sizes)
    kernels.launch(
        "hyperpixel_correlation_finish",
        params,
        numerator=numerator,
        squared_a=lengths_a,
        squared_b=lengths_b,
        top=top,
        keeps=keep,
        grid=math.prod(top.shape[:3]) * min(math.prod(top.shape[3:]), 1),
        block=cuda.threads(256),
        **place(base.sizes, kept),
    )
    return (top, numerator, lengths_a, lengths_b) if keep else (top, None, None, None)


def _squared_lengths_cuda(maps: Sequence[Tensor], kept: Sequence[slice], scalar: torch.dtype) -> Tensor:
    n, base = len(maps[0]), maps[0].shape[2:]
    squared = maps[0].new_empty(n, *counts(kept))
    for i, x in enumerate(maps):
        pieces, tiles = -(-x.shape[1] // CHANNELS), -(-math.prod(x.shape[2:]) // 32)
        partial = x.new_empty(n, pieces, 4, *x.shape[2:])
        kernels.launch(
            "hyperpixel_correlation_products",
            scalar=scalar,
            x=x,
            partial=partial,
            span=CHANNELS,
            pieces=pieces,
            tiles=tiles,
            grid=n * pieces * tiles,
            block=cuda.threads(256),
            **cuda.sizes("_ channels height width", x),
        )
        kernels.launch(
            "hyperpixel_correlation_lengths",
            over=squared.numel(),
            scalar=scalar,
            products=partial.sum(1),
            squared=squared,
            adds=i > 0,
            total=squared.numel(),
            base_h=base[0],
            base_w=base[1],
            **_side(x, kept),
        )
    return squared


def backward_cuda(
    params: Params,
    top_gradient: Tensor,
    maps: Sequence[Tensor],
    cosine: Tensor,
    lengths_a: Tensor,
    lengths_b: Tensor,
) -> list[Tensor]:
    kept = params.pair_again(top_gradient.shape[1:], cosine.shape[1:])
    n, rows, columns = len(cosine), *(math.prod(x.shape[1:]) for x in (lengths_a, lengths_b))
    pieces, strips = -(-rows // SPAN), -(-columns // (32 * COLUMNS))
    slope = torch.empty_like(cosine)
    along_a, along_b = cosine.new_empty(n, strips, rows), cosine.new_empty(n, pieces, columns)
    kernels.launch(
        "hyperpixel_correlation_slope",
        params,
        top_gradient=top_gradient.contiguous(),
        cosine=cosine,
        squared_a=lengths_a,
        squared_b=lengths_b,
        slope=slope,
        along_a=along_a,
        along_b=along_b,
        span=SPAN,
        pieces=pieces,
        strips=strips,
        grid=n * pieces * strips,
        block=cuda.threads(256),
        constants={"COLUMNS": COLUMNS},
        **place(top_gradient.shape[1:], kept),
    )
    own = [torch.empty_like(x) for x in (lengths_a, lengths_b)]
    for partial, squared, found in zip((along_a, along_b), (lengths_a, lengths_b), own, strict=True):
        kernels.launch(
            "hyperpixel_correlation_own",
            params,
            over=found.numel(),
            scalar=top_gradient.dtype,
            partial=partial,
            squared=squared,
            own=found,
            total=found.numel(),
            pieces=partial.shape[1],
            cells=partial.shape[2],
        )
    return to_maps(slope, own, *halves(_dense(maps)), kept, _completed_cuda)


def _completed_cuda(
    gradient: Tensor,
    x: Tensor,
    base: Shape,
    kept: Sequence[slice],
    lengths: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """As :func:`._hyperpixels.completed` does."""
    stencil = x.new_empty(len(x), 4, *x.shape[2:])
    cells = stencil.numel() // 4
    kernels.launch(
        "hyperpixel_correlation_stencil",
        over=cells * 32,
        scalar=dtype,
        own=lengths,
        stencil=stencil,
        total=cells,
        base_h=base[0],
        base_w=base[1],
        **_side(x, kept),
    )
    found = torch.empty_like(x, dtype=dtype)
    whole = gradient.numel() == x.numel()
    part = [slice(0, count) for count in x.shape[2:]] if whole else kept
    kernels.launch(
        "hyperpixel_correlation_gradient",
        over=found.numel(),
        product=gradient,
        x=x,
        stencil=stencil,
        gradient=found,
        total=found.numel(),
        channels=x.shape[1],
        **_side(x, part),
    )
    return found


def _side(x: Tensor, kept: Sequence[slice]) -> dict[str, int]:
    """A map's size and the part of a grid that counts."""
    starts = dict(zip(("top", "left"), (part.start for part in kept), strict=True))
    lengths = dict(zip(("kept_h", "kept_w"), counts(kept), strict=True))
    return cuda.sizes("_ _ height width", x) | starts | lengths


def _dense(maps: Sequence[Tensor]) -> list[Tensor]:
    return [x.contiguous() for x in maps]


class _Definition(Definition):
    """Its list of maps is spoken of as the two that a caller knows."""

    def check(self, params: Any, bottoms: Sequence[Any]) -> None:
        maps, *sizes = bottoms
        named, names = _named(*halves(maps)), ("size_a", "size_b")
        if all(size is None for size in sizes):
            sizes = []
        given = [shape_of(self.name, *each) for each in zip(names, sizes, strict=False)]
        infer(params, *shapes(self.name, **named).values(), *given)
        expect_floating(**named)


def _named(maps_a: Sequence[Tensor], maps_b: Sequence[Tensor]) -> dict[str, Tensor]:
    """The maps as the function's caller speaks of them."""
    sides = ("maps_a", maps_a), ("maps_b", maps_b)
    return {f"{name}[{i}]": x for name, maps in sides for i, x in enumerate(maps)}


definition = _Definition(
    "hyperpixel_correlation",
    Params,
    BOTTOMS,
    TOPS,
    kept=("cosine", "lengths_a", "lengths_b"),
    infer=infer,
    meta=meta,
    forward=forward,
    backward=backward,
    forward_cuda=forward_cuda,
    backward_cuda=backward_cuda,
)


def hyperpixel_correlation(
    maps_a: Sequence[Tensor],
    maps_b: Sequence[Tensor],
    size_a: Sequence[float] | Tensor | None = None,
    size_b: Sequence[float] | Tensor | None = None,
    exponent: float = Params.exponent,
    jump: float = Params.jump,
    receptive_field: int = Params.receptive_field,
    margin: float | None = Params.margin,
    weights: Sequence[Tensor] | None = None,
    eps: float = Params.eps,
) -> Tensor:
    """``max(0, cos)^exponent`` ``[N, H, W, H', W']`` of all hyperpixels of two images.

    ``maps_a`` are the maps ``[N, C_l, H_l, W_l]`` of one image, the base first, ``maps_b`` those of the
    other; ``weights`` ``[C_l]`` multiply their channels. ``size_a``, ``size_b`` are the images'
    (height, width) in pixels, or the images, which a ``margin`` (pixels) needs: cells lie ``jump``
    apart, and those whose box of the ``receptive_field`` lies further out get 0. Raises ``BlobError``
    for shapes that do not fit, ``TypeError`` unless all maps are of one floating type on one device,
    ``ValueError`` for a parameter out of range and sizes below a pixel. Source: Hyperpixel Flow,
    Eqs. 1, 4.
    """
    params = definition.params(jump, receptive_field, margin, exponent, eps, weights is not None)
    for name, maps in (("maps_a", maps_a), ("maps_b", maps_b)):
        if not isinstance(maps, (list, tuple)):
            text = f"expected {name} to be a list of tensors, got {kind_of(maps)}"
            raise TypeError(f"{definition.name}: {text}")
    if len(maps_a) != len(maps_b):
        raise BlobError(f"expected as many maps of B as of A, got {len(maps_a)} and {len(maps_b)}")
    sizes: tuple[Any, ...] = () if margin is None else (size_a, size_b)
    for name, size in zip(("size_a", "size_b"), sizes, strict=False):
        shape_of(definition.name, name, size)  # not None, as a layer without images has it
    try:
        return _correlate(params, [*maps_a, *maps_b], sizes, weights or ())
    except BlobError as error:
        arguments = *_named(maps_a, maps_b), "size_a", "size_b"
        names = {f"bottom{i}": name for i, name in enumerate(arguments)}
        names |= {f"weight{i}": f"weights[{i}]" for i in range(len(maps_a))}
        raise BlobError(error.named(names)) from None


def _correlate(
    params: Params, maps: Sequence[Tensor], sizes: Sequence[Any], weights: Sequence[Tensor]
) -> Tensor:
    if weights:
        definition.check(params, (maps, *sizes))
        _expect_weights(weights, maps)
        scale = [x[:, None, None] for x in weights] * 2
        scaled = [x * s for x, s in zip(maps, scale, strict=True)]
        maps = [x.to(scaled[0].dtype) for x in scaled]  # the weights' types may differ
    top: Tensor = definition(params, maps, *sizes)
    return top


def _expect_weights(weights: Sequence[Tensor], maps: Sequence[Tensor]) -> None:
    count = len(maps) // 2
    if len(weights) != count:
        raise BlobError(f"expected weights for each of {count} maps, got {len(weights)}")
    for i, x in enumerate(weights):
        shapes(definition.name, **{f"weights[{i}]": x})
        if x.shape != maps[i].shape[1:2]:
            text = f"expected {{weight{i}}} to be a value for each channel of {{bottom{i}}}"
            raise BlobError(text, **{f"weight{i}": x.shape, f"bottom{i}": maps[i].shape})


@register("HyperpixelCorrelation", bottoms=(2, None), tops=1)
class HyperpixelCorrelation(Layer):
    """How alike the hyperpixels of two images are; see the module."""

    definition = definition
    TRAITS = (Trait.NO_CELLS,)

    def __init__(
        self,
        params: Any = None,
        bottom_shapes: tuple[Shape, ...] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(params, bottom_shapes, generator)
        if self.params.channel_weights:
            first, _, _ = split(bottom_shapes, self.params.margin is not None)
            self.blob_names = tuple(f"weight{i}" for i in range(len(first)))
            for name, shape in zip(self.blob_names, first, strict=True):
                setattr(self, name, parameter(shape[1:2], self.params.filler, generator))

    def forward(self, *bottoms: Tensor) -> Tensor:
        count = len(bottoms) - (0 if self.params.margin is None else 2)
        if count < 2:  # which the definition refuses, whatever else they are
            count = len(bottoms)
        return _correlate(self.params, [*bottoms[:count]], bottoms[count:], self.blobs)

    @classmethod
    def multiply_adds(
        cls, params: Any, bottoms: Sequence[Shape], tops: Sequence[Shape], blobs: Sequence[Shape]
    ) -> int | None:
        maps_a, maps_b, _ = split(bottoms, params.margin is not None)
        pairs = zip(maps_a, maps_b, strict=True)
        return sum(a[0] * a[1] * math.prod(a[2:]) * math.prod(b[2:]) for a, b in pairs)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        from ._samples import hyperpixel_correlation as own

        return own.samples(size, rng)
