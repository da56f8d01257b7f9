"""KNN: the k nearest references of each query by Euclidean distance, exact.

    distance[n, j, p] = |query[n, :, p] - reference[n, :, index[n, j, p]]|,  ascending in j

Bottoms: ``query`` ``[N, C, P]``; ``reference``, a map ``[N, C, H, W]`` or ``[N, C, R]``, of the same
floating type; optionally how many queries, and how many references, of each image are valid,
``[N, 1]``. Tops: ``distance`` ``[N, k, P]`` in the queries' type; ``index`` ``[N, k, P]`` int64,
``v W + u`` for a map, plus ``index_base``. Equal distances come by ascending index. A query beyond
the valid ones, and a place for which there are too few valid references, has index -1 and distance
infinity. Half inputs are computed, and ranked, in float32.

Features that are not finite: such a reference has distance NaN or infinity and ranks last; such a
query has distance NaN and the first k references.

Backward, for the distance: ``(query - reference) / distance`` to the query and its negative to the
reference, 0 where the distance is 0. The index gets none.

How: the Q x R distances are never held. Tiles of one matrix product give a lower bound of each
squared distance, ``|r|^2 - 2 q.r + |q|^2`` of centred features less the largest rounding error that
it can have, of which only the least of each block of 16 references is kept. The blocks of a query
are then measured by differences in float64, the lowest bound first, until the next bound is above
the k-th distance found. Rounding thus costs time, never a neighbour. The same product bounds the
distances of each reference to blocks of queries: ``there_and_back``.

*Differs from the original:* indices are 0-based (the released ones 1-based: ``index_base: 1``).

Source: UCN, Section 4 (hard negative mining by K-NN in a layer).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ._engine import cuda
from ._engine.checks import BlobError, Shape, expect_axes, expect_floating, shapes
from ._engine.declared import Bottom, Role, Top
from ._engine.definition import Definition, Spec
from ._engine.dispatch import use_cuda
from ._engine.layer import Layer
from ._engine.params import param
from ._engine.registry import register
from ._engine.samples import Sample
from ._engine.wide import wide, wide_dtype
from ._geometry.geometry import Corners, scatter

BLOCK = 16  # references that share one bound
# Of one product: large, because threads meet after each, but what its minima are taken of is still in
# the cache. REFERENCES / BLOCK are whole vectors of a processor, or amin takes three times as long.
QUERIES, REFERENCES = 2048, 512
ELEMENTS = 2**19  # of a temporary: 4 MiB in float64
BACK = 2**25  # bounds of single features and blocks of others, held at once: 128 MiB in float32
PART = 2048  # rows of a part there and back, as its queries are searched again: fewer do not pay
NONE = torch.iinfo(torch.int64).max  # the index of no reference: sorts last


@dataclass(frozen=True)
class Params:
    k: int = param(1, low=1, doc="neighbours of each query")
    use_all_query: bool = param(False, doc="true: the number of valid queries is not regarded")
    use_all_ref: bool = param(True, doc="false: the fourth bottom says how many references are valid")
    index_base: int = param(0, low=0, high=1, doc="index of the first reference; 1 as released")


BOTTOMS = (
    Bottom("query", "[N, C, P]"),
    Bottom("reference", "[N, C, H, W]"),
    Bottom("num_query", "[N, 1]", Role.COUNT, optional=True),
    Bottom("num_reference", "[N, 1]", Role.COUNT, optional=True),
)
TOPS = (Top("distance"), Top("index", "an index is a choice"))


def infer(
    params: Params,
    query: Shape,
    reference: Shape,
    num_query: Shape | None = None,
    num_reference: Shape | None = None,
) -> tuple[Shape, Shape]:
    """``[N, k, P]`` twice; raises :class:`BlobError` for bottoms that do not fit together."""
    expect_axes("N C P", query=query)
    if len(reference) not in (3, 4):
        raise BlobError("expected {reference} to be [N, C, H, W] or [N, C, R]", reference=reference)
    both = {"query": query, "reference": reference}
    if query[0] != reference[0]:
        raise BlobError("batch sizes differ: {query}, {reference}", **both)
    if query[1] != reference[1]:
        raise BlobError("bottoms disagree on channels: {query}, {reference}", **both)
    references = math.prod(reference[2:])
    if params.k > references:
        raise BlobError(
            f"k is {params.k}, but {{reference}} has {references} features", reference=reference
        )
    for name, count in (("num_query", num_query), ("num_reference", num_reference)):
        if count is not None and (count[:1] != query[:1] or math.prod(count) != query[0]):
            raise BlobError(f"expected {{{name}}} to be [{query[0]}, 1]", **{name: count})
    if not params.use_all_ref and num_reference is None:
        raise BlobError("use_all_ref: false needs a fourth bottom with the number of valid references")
    top = (query[0], params.k, query[2])
    return top, top


def meta(params: Params, query: Tensor, *_: Tensor | None) -> Sequence[Spec]:
    """Distance and index."""
    shape = (query.shape[0], params.k, query.shape[2])
    return (shape, query.dtype), (shape, torch.int64)


class Images(NamedTuple):
    """A few images' features: as rows to measure, and as the two factors of their bounds."""

    query: Tensor  # [n, P, C]
    reference: Tensor  # [n, blocks, BLOCK, C]
    valid: Tensor  # [n]: how many references
    left: Tensor  # [n, P, C + 2]: rows (-2 q', 1, |q'|^2 less its error)
    right: list[Tensor]  # of tiles [n, C + 2, BLOCK * blocks of it]: (r', |r'|^2 less its error, 1)
    finite: Tensor  # [n, P]: which queries are
    scale: Tensor  # [n] float64: of q' and r'


def forward(
    params: Params,
    query: Tensor,
    reference: Tensor,
    num_query: Tensor | None = None,
    num_reference: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    reference, k, dtype = reference.flatten(2), params.k, query.dtype
    queries, references = _valid(params, query, reference, num_query, num_reference)
    query, reference = wide(query), wide(reference)
    n, channels, p = query.shape
    distance = query.new_empty(n, p, k)
    index = queries.new_empty(n, p, k)
    valid = torch.arange(p, device=query.device) < queries[:, None]
    group = max(1, ELEMENTS // max(1, channels * reference.shape[2]))
    stride = max(1, min(QUERIES // group, BACK * BLOCK // reference.shape[2]))
    for image in range(0, n, group):
        part = slice(image, image + group)
        images = _prepare(query[part], reference[part], references[part])
        for start in range(0, p, stride):
            tile = slice(start, start + stride)
            bounds = _bounds(images.left[:, tile], images.right)
            found = _search(images, tile, bounds, valid[part, tile], k)
            distance[part, tile], index[part, tile] = found
    index = _counted(index.mT.contiguous(), params.index_base)
    return distance.mT.contiguous().to(dtype), index


def _valid(
    params: Params,
    query: Tensor,
    reference: Tensor,
    num_query: Tensor | None,
    num_reference: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """How many queries, and how many references, of each image are valid: ``[N]`` beside them."""
    queries, references = (
        query.new_full((len(query),), x.shape[2], dtype=torch.int64)
        if count is None or all_of_them
        else count.reshape(-1).to(query.device, torch.int64).clamp(0, x.shape[2])
        for x, count, all_of_them in (
            (query, num_query, params.use_all_query),
            (reference, num_reference, params.use_all_ref),
        )
    )
    return queries, references


def _counted(index: Tensor, base: int) -> Tensor:
    """Indices from 0 counted from ``base``, or with -base back; -1, for none, stays."""
    return torch.where(index < 0, index, index + base) if base else index


def _prepare(query: Tensor, reference: Tensor, valid: Tensor) -> Images:
    n, channels, r = reference.shape
    blocks = -(-r // BLOCK)
    columns = max(1, min(blocks, REFERENCES // BLOCK))
    tiles = -(-blocks // columns)
    rows = reference.new_zeros(n, tiles * columns * BLOCK, channels)
    rows[:, :r] = reference.mT
    dtype = _product_dtype(query)
    left = query.new_ones(n, query.shape[2], channels + 2, dtype=dtype)
    right = query.new_ones(n, tiles, BLOCK, columns, channels + 2, dtype=dtype)
    centre = reference.mean(2)[:, None].nan_to_num(0, 0, 0)
    q, x = left[..., :-2], right[..., :-2]
    torch.sub(query.mT, centre, out=q)
    torch.sub(_by_tile(rows, right), centre[:, None, None], out=x)
    q_norm, x_norm, scale = _scale(q, x)
    q *= -2
    # Centring errs by at most u (|q'| + |r'|) in the distance, the product by (C + 3) u
    # (|q'| + |r'|)^2 in its square, where u is half of eps and (a + b)^2 <= 2 (a^2 + b^2).
    info = torch.finfo(dtype)
    kept = 1 - (channels + 9) * info.eps
    left[..., -1] = (kept * q_norm.square()).clamp(max=info.max)
    right[..., -2] = (kept * x_norm.square()).clamp(max=info.max)
    past = torch.arange(rows.shape[1], device=valid.device) >= valid[:, None]
    right[..., -2].masked_fill_(_by_tile(past, right), torch.inf)
    widths = [min(columns, blocks - start) for start in range(0, blocks, columns)]
    factors = [right[:, i, :, :width].flatten(1, 2).mT for i, width in enumerate(widths)]
    rows = rows.unflatten(1, (-1, BLOCK))[:, :blocks]
    return Images(query.mT.contiguous(), rows, valid, left, factors, q_norm.isfinite(), scale)


def _product_dtype(x: Tensor) -> torch.dtype:
    """The dtype whose matrix product rounds as its eps says: not float32 where TF32 is allowed."""
    backend: Any = torch.backends.cuda if x.is_cuda else torch.backends.mkldnn
    return x.dtype if backend.matmul.fp32_precision in ("none", "ieee") else torch.float64


def _by_tile(rows: Tensor, right: Tensor) -> Tensor:
    """``[n, R, ...]`` as ``[n, tiles, BLOCK, blocks of a tile, ...]``."""
    tiles, columns = right.shape[1], right.shape[3]
    return rows.unflatten(1, (tiles, columns, BLOCK)).transpose(2, 3)


def _scale(q: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale both in place to a longest vector of at most 1, so that no square overflows.

    Gives their norms and the scale, a power of 2. Vectors that are not finite become 0, of
    infinite norm.
    """
    norms = [_norm(y) for y in (q, x)]
    finite = [norm.isfinite() for norm in norms]
    every = [
        norm.where(good, 0).flatten(1).amax(1)
        for norm, good in zip(norms, finite, strict=True)
        if norm.numel()
    ]
    exponent = torch.stack(every).amax(0).frexp().exponent.clamp(min=-100)
    scale = torch.ldexp(q.new_ones(len(q), dtype=torch.float64), -exponent)
    for y, norm, good in zip((q, x), norms, finite, strict=True):
        if not good.all():
            y.masked_fill_(~good[..., None], 0)
            norm.masked_fill_(~good, torch.inf)
        y *= _over(scale, y).to(y.dtype)
        norm *= _over(scale, norm)
    return norms[0], norms[1], scale


def _norm(y: Tensor) -> Tensor:
    """Lengths over the last axis in float64, without all of ``y`` in float64."""
    some = max(1, ELEMENTS * y.shape[1] // max(1, y.numel()))
    return torch.cat(
        [torch.linalg.vector_norm(part, dim=-1, dtype=torch.float64) for part in y.split(some, 1)], 1
    )


def _over(scale: Tensor, y: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (y.dim() - 1))


def _bounds(left: Tensor, right: list[Tensor], back: Tensor | None = None) -> Tensor:
    """The least bound of each query and block of references: ``[n, P, blocks]``.

    ``back`` ``[blocks, BLOCK, P / BLOCK]`` gets, of a single image, the least of each reference and
    block of queries.
    """
    n, p, _ = left.shape
    widths = [tile.shape[2] // BLOCK for tile in right]
    bounds = left.new_empty(n, p, sum(widths))
    room, start = left.new_empty(n * p * BLOCK * max(widths)), 0
    for tile, width in zip(right, widths, strict=True):
        product = room[: n * p * BLOCK * width].view(n, p, BLOCK * width)
        torch.bmm(left, tile, out=product)
        some = slice(start, start + width)
        torch.amin(product.view(n, p, BLOCK, width), dim=2, out=bounds[..., some])
        if back is not None:
            back[some] = product.view(-1, BLOCK, BLOCK, width).amin(1).permute(2, 1, 0)
        start += width
    return bounds


def _search(
    images: Images, tile: slice, bounds: Tensor, valid: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Distance and index ``[n, P, k]`` of a tile of queries, by their bounds ``[n, P, blocks]``, which
    are spent; those not ``valid`` inf and -1."""
    n, p = valid.shape
    query, reference = images.query[:, tile].flatten(0, 1), images.reference.flatten(0, 1)
    bounds = bounds.flatten(0, 1)
    blocks = bounds.shape[1]
    image = torch.arange(n, device=query.device).repeat_interleave(p)
    count, finite = images.valid[image, None], images.finite[:, tile].flatten()
    underflow = 4 * (query.shape[1] + 2) * torch.finfo(bounds.dtype).tiny
    distance = query.new_full((n * p, k), torch.nan)
    index = torch.arange(k, device=query.device).where(~finite[:, None], NONE)
    index.masked_fill_((index >= count) | ~valid.reshape(-1, 1), NONE)
    rows, step = (valid.flatten() & finite).nonzero()[:, 0], k
    while len(rows):
        step, unsure = min(step, blocks), []
        for part in rows.split(max(1, ELEMENTS // (BLOCK * max(query.shape[1], 8 * step)))):
            bound, block = bounds[part].topk(min(step + 1, blocks), largest=False)
            ids = _members(block[:, :step], bound[:, :step], count[part])
            measured = _measure(query[part], reference, block[:, :step] + image[part, None] * blocks)
            distance[part], index[part] = _least(
                torch.cat((distance[part], measured.masked_fill_(ids == NONE, torch.nan)), 1),
                torch.cat((index[part], ids), 1),
                k,
            )
            if step < blocks:
                bounds[part[:, None], block[:, :step]] = torch.inf
                limit = _limit(distance[part, -1], images.scale[image[part]]) + underflow
                unsure.append(part[~(bound[:, step] > limit) & (bound[:, step] < torch.inf)])
        rows, step = torch.cat(unsure) if unsure else rows[:0], 2 * step
    distance.masked_fill_(index == NONE, torch.inf)
    index.masked_fill_(index == NONE, -1)
    return distance.view(n, p, k), index.view(n, p, k)


def _members(block: Tensor, bound: Tensor, valid: Tensor) -> Tensor:
    """The references of blocks ``[rows, m]``: ``[rows, m * BLOCK]``; NONE where measured before."""
    ids = block[:, :, None] * BLOCK + torch.arange(BLOCK, device=block.device)
    return ids.masked_fill_(
        (bound[:, :, None] == torch.inf) | (ids >= valid[:, :, None]), NONE
    ).flatten(1)


def _limit(distance: Tensor, scale: Tensor) -> Tensor:
    """The bound of a reference that may still be as near as ``distance`` after its rounding."""
    above = distance.double() * (1 + torch.finfo(distance.dtype).eps)
    return (above * scale).square()


def _measure(query: Tensor, reference: Tensor, block: Tensor) -> Tensor:
    """Distances ``[rows, m * BLOCK]`` to blocks by differences, summed in float64."""
    parts = []
    for some in block.split(max(1, ELEMENTS // max(1, BLOCK * query.numel())), dim=1):
        shape = (len(query), some.shape[1] * BLOCK, query.shape[1])
        difference = reference.index_select(0, some.flatten()).double().view(shape)
        difference -= query[:, None]
        parts.append(torch.linalg.vector_norm(difference, dim=2))
    return torch.cat(parts, 1).to(query.dtype)


def _least(distance: Tensor, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` least of each row by (distance, index); NaN comes last."""
    index, order = index.sort(dim=1)
    distance, nearest = distance.gather(1, order).sort(dim=1, stable=True)
    return distance[:, :k], index.gather(1, nearest[:, :k])


def backward(
    params: Params, distance_gradient: Tensor, query: Tensor, reference: Tensor, index: Tensor
) -> tuple[Tensor, Tensor]:
    shape, reference, index = reference.shape, reference.flatten(2), _counted(index, -params.index_base)
    n, channels, p = query.shape
    k, r = index.shape[1], reference.shape[2]
    at = index.clamp(min=0).view(n, 1, k * p)
    near = wide(reference).gather(2, at.expand(n, channels, k * p)).view(n, channels, k, p)
    unit = wide(query)[:, :, None] - near
    distance = torch.linalg.vector_norm(unit, dim=1)
    weight = (wide(distance_gradient) / distance).masked_fill_((distance == 0) | (index < 0), 0)
    unit *= weight[:, None]
    once = Corners(at, torch.ones_like(at))
    reference_gradient = scatter(unit.view(n, channels, k * p), once, 1, r)[:, :, 0].neg_()
    return unit.sum(2).to(query.dtype), reference_gradient.to(reference.dtype).view(shape)


kernels = cuda.Kernels(__file__)
WIDTH, MOST = 128, 16  # queries and references of a tile, bounds kept of a query: as in the .cu


def forward_cuda(
    params: Params,
    query: Tensor,
    reference: Tensor,
    num_query: Tensor | None = None,
    num_reference: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    query, reference, k = query.contiguous(), reference.flatten(2).contiguous(), params.k
    queries, references = _valid(params, query, reference, num_query, num_reference)
    n, channels, p = query.shape
    threads, sites = cuda.threads(256), cuda.multiprocessors(query.device)
    distance = query.new_empty(n, k, p)
    index = queries.new_empty(n, k, p)
    sizes = {"channels": channels, "queries": p, "references": reference.shape[2]}
    counts = {"num_query": queries, "num_reference": references}
    pending, count = None, None
    if k <= MOST - 3 and channels:
        pending = queries.new_empty(n * p, dtype=torch.int32)
        count = pending.new_zeros(1)
        proven = _screen(query, reference, k, references)
        kernels.launch(
            "knn_settle",
            query=query,
            reference=reference,
            num_query=queries,
            distance=distance,
            index=index,
            pending=pending,
            count=count,
            total=n * p,
            k=k,
            grid=cuda.blocks(n * p, threads // 32),
            block=threads,
            **sizes,
            **proven,
        )
    kernels.launch(
        "knn_scan",
        query=query,
        reference=reference,
        **counts,
        pending=pending,
        count=count,
        distance=distance,
        index=index,
        total=n * p,
        k=k,
        grid=min(n * p, 8 * sites),
        block=threads,
        **sizes,
    )
    return distance, _counted(index, params.index_base)


def _screen(query: Tensor, reference: Tensor, k: int, num_reference: Tensor) -> dict[str, Any]:
    """The least bounds of each query, and what else ``knn_settle`` must know of them."""
    n, channels, p = query.shape
    r = reference.shape[2]
    sums = wide_dtype(query.dtype)
    info, threads = torch.finfo(sums), cuda.threads(256)
    centre = reference.mean(2, dtype=sums).nan_to_num(0, 0, 0)
    limits = {"kept": 1 - (3 * channels + 16) * info.eps, "most": info.max / 16}
    bound = reference.new_empty(n, r, dtype=sums)
    kernels.launch(
        "knn_bounds",
        reference=reference,
        centre=centre,
        bound=bound,
        channels=channels,
        references=r,
        total=n * r,
        grid=cuda.blocks(n * r, threads),
        block=threads,
        **limits,
    )
    tiles, steps = -(-p // WIDTH), -(-r // WIDTH)
    slices = _slices(n * tiles, steps, cuda.multiprocessors(query.device) * 8 // sums.itemsize)
    keep = min(MOST, k + (7 if slices == 1 else 3))
    least = bound.new_empty(n, p, slices, keep)
    candidate = torch.empty_like(least, dtype=torch.int32)
    kernels.launch(
        "knn_screen",
        query=query,
        reference=reference,
        centre=centre,
        bound=bound,
        num_reference=num_reference,
        least=least,
        candidate=candidate,
        channels=channels,
        queries=p,
        references=r,
        slices=slices,
        span=-(-steps // slices) * WIDTH,
        keep=keep,
        grid=(tiles, slices, n),
        block=2 * WIDTH,
    )
    return limits | {
        "centre": centre,
        "least": least,
        "candidate": candidate,
        "slices": slices,
        "keep": keep,
        "slack": 8 * (channels + 1) * info.tiny,
        # of a distance, measured in double and rounded, to what may round to the same
        "reach": 1 + info.eps + (channels + 4) * torch.finfo(torch.float64).eps,
    }


@functools.lru_cache(maxsize=256)
def _slices(tiles: int, steps: int, resident: int) -> int:
    """Into how many parts to cut the references, so that the device's blocks end together.

    ``tiles`` of queries, ``steps`` of references, blocks ``resident`` at once; a block costs about
    a step to begin.
    """
    return min(
        range(1, min(steps, 64) + 1),
        key=lambda slices: -(-tiles * slices // resident) * (-(-steps // slices) + 1),
    )


def backward_cuda(
    params: Params, distance_gradient: Tensor, query: Tensor, reference: Tensor, index: Tensor
) -> tuple[Tensor, Tensor]:
    shape, index = reference.shape, _counted(index, -params.index_base)
    query, reference = query.contiguous(), reference.flatten(2).contiguous()
    n, channels, p = query.shape
    k, r = index.shape[1], reference.shape[2]
    threads = cuda.threads(256)
    weight = query.new_empty(n, k, p, dtype=wide_dtype(query.dtype))
    query_gradient, reference_gradient = torch.empty_like(query), torch.empty_like(reference)
    sizes = {"channels": channels, "queries": p, "references": r, "k": k, "block": threads}
    kernels.launch(
        "knn_backward_query",
        top_gradient=distance_gradient.contiguous(),
        query=query,
        reference=reference,
        index=index,
        weight=weight,
        gradient=query_gradient,
        grid=(-(-p // 32), n),
        **sizes,
    )
    found, order = index.flatten(1).sort(dim=1, stable=True)
    cells = torch.arange(r + 1, device=index.device).repeat(n, 1)
    kernels.launch(
        "knn_backward_reference",
        query=query,
        reference=reference,
        weight=weight,
        order=order,
        start=torch.searchsorted(found, cells, out_int32=True),
        gradient=reference_gradient,
        total=reference.numel(),
        grid=cuda.blocks(reference.numel(), threads),
        **sizes,
    )
    return query_gradient, reference_gradient.view(shape)


definition = Definition(
    "knn",
    Params,
    BOTTOMS,
    TOPS,
    infer=infer,
    meta=meta,
    forward=forward,
    backward=backward,
    forward_cuda=forward_cuda,
    backward_cuda=backward_cuda,
)


def knn(
    query: Tensor,
    reference: Tensor,
    k: int = Params.k,
    num_query: Tensor | None = None,
    num_reference: Tensor | None = None,
    index_base: int = Params.index_base,
) -> tuple[Tensor, Tensor]:
    """The ``k`` nearest references of each query: distance and index ``[N, k, P]``.

    ``query`` ``[N, C, P]``, ``reference`` ``[N, C, H, W]`` or ``[N, C, R]``, of one floating type.
    Distances are Euclidean, in the queries' type, ascending; equal ones by ascending index. The
    index, int64, is ``v W + u`` for a map, plus ``index_base``. ``num_query`` and ``num_reference``
    ``[N, 1]`` say how many of each image are valid (all, if not given); a place without a valid
    query or reference has index -1 and distance infinity. Gradients reach both from the distance.
    Raises ``BlobError`` for shapes that do not fit and for k above the number of references,
    ``TypeError`` unless the features are floating point of one type, ``ValueError`` for k below 1.
    """
    params = definition.params(k, use_all_ref=num_reference is None, index_base=index_base)
    tops: tuple[Tensor, Tensor] = definition(params, query, reference, num_query, num_reference)
    return tops


@torch.no_grad()
def there_and_back(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest row of ``second`` ``[R, C]`` to each of ``first`` ``[P, C]``, distance and index
    ``[P]``; and the row of ``first`` that is the nearest to that one, index ``[P]``.

    What :func:`knn` gives there and then back, on the CPU of one matrix product unless they are so many
    that two are faster; without a gradient. Raises ``BlobError`` where either has no row or channels
    differ, ``TypeError`` unless both are floating point of one type.
    """
    ways = ((first.T[None], second.T[None]), (second.T[None], first.T[None]))
    rows = BACK * BLOCK // max(1, len(first))
    slower = rows < min(PART, len(second))
    if slower or use_cuda(first, second) or torch.is_autocast_enabled(first.device.type):
        (distance, index), (_, back) = (knn(*way) for way in ways)
        return distance[0, 0], index[0, 0], back[0, 0, index[0, 0]]
    for query, reference in ways:
        infer(Params(), **shapes("there_and_back", query=query, reference=reference))
    expect_floating(first=first, second=second)
    parts = [_there_and_back(wide(first), some) for some in wide(second).split(rows)]
    distance, index, back = (torch.stack(found, 1) for found in zip(*parts, strict=True))
    index += rows * torch.arange(len(parts), device=index.device)
    best = distance.sort(dim=1, stable=True).indices[:, :1]
    distance, index, back = (found.gather(1, best)[:, 0] for found in (distance, index, back))
    return distance.to(first.dtype), index, back


def _there_and_back(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distance, index and index back ``[P]``."""
    size = len(first)
    first = F.pad(first, (0, 0, 0, -size % BLOCK), value=torch.nan)
    references = torch.tensor([len(second)], device=second.device)
    images = _prepare(first.T[None], second.T[None], references)
    turned = images._replace(
        query=second[None],
        reference=first.view(1, -1, BLOCK, first.shape[1]),
        valid=torch.tensor([len(first)], device=first.device),
        finite=_norm(second[None]).isfinite(),
    )
    back = images.left.new_empty(images.reference.shape[1], BLOCK, turned.reference.shape[1])

    def forth(tile: slice) -> Tensor:
        left = images.left[:, tile]
        blocks = back.narrow(2, tile.start // BLOCK, left.shape[1] // BLOCK)
        return _bounds(left, images.right, blocks)

    distance, index = _searched(images, forth, torch.ones_like(images.finite))
    found = torch.zeros_like(turned.finite)
    found[0, index[:size]] = True
    bounds = back.flatten(0, 1)[None, : len(second)]
    _, returned = _searched(turned, lambda tile: bounds[:, tile], found)
    return distance[:size], index[:size], returned[index[:size]]


def _searched(
    images: Images, bounds: Callable[[slice], Tensor], valid: Tensor
) -> tuple[Tensor, Tensor]:
    """Distance and index ``[P]`` of a single image's queries, by the bounds of each tile of them."""
    tiles = [slice(start, start + QUERIES) for start in range(0, valid.shape[1], QUERIES)]
    found = [_search(images, tile, bounds(tile), valid[:, tile], 1) for tile in tiles]
    distance, index = (torch.cat(parts, 1)[0, :, 0] for parts in zip(*found, strict=True))
    return distance, index


@register("KNN")
class KNN(Layer):
    definition = definition

    @classmethod
    def multiply_adds(
        cls, params: Any, bottoms: Sequence[Shape], tops: Sequence[Shape], blobs: Sequence[Shape]
    ) -> int | None:
        return math.prod(bottoms[0]) * math.prod(bottoms[1][2:])

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        def sample(
            name: str,
            query: Shape,
            reference: Shape,
            *counts: list[int],
            differentiable: tuple[int, ...] = (0, 1),
            **options: Any,
        ) -> Sample:
            params = Params(**options)
            features = map(torch.from_numpy, _apart(params.k, query, reference, rng))
            numbers = [torch.tensor(count, dtype=torch.float64)[:, None] for count in counts]
            if counts:
                differentiable = ()  # no finite differences of infinity
            return Sample(params, (*features, *numbers), differentiable, name=name)

        def alike(
            name: str,
            query: Shape,
            reference: Shape,
            k: int,
            near: int = 0,
            every: int = 0,
            radius: float = 0.0,
        ) -> Sample:
            """Normal features: so many near each query, each such one the same, in two clusters."""
            q, x = (torch.from_numpy(rng.standard_normal(shape)) for shape in (query, reference))
            if near:
                own = rng.permutation(reference[2])[: near * query[2]]
                x[:, :, own] = 0.1 * x[:, :, own] + q.repeat(1, 1, near)
            if every:
                x[:, :, ::every] = x[:, :, :1]
                q[:, :, ::every] = x[:, :, :1] + 0.01 * q[:, :, ::every]
            if radius:
                q, x = (radius * y - 1e4 for y in (q, x))
                q[:, :, ::2], x[:, :, ::2] = q[:, :, ::2] + 4e4, x[:, :, ::2] + 4e4
            return Sample(Params(k), (q, x), (), name=name)

        if size == "paper":
            return [
                sample("nearest of KITTI", (1, 128, 3000), (1, 128, 88, 250)),
                sample("five of KITTI", (1, 128, 3000), (1, 128, 88, 250), k=5),
            ]
        if size == "large":
            return [sample("dense", (1, 128, 22_000), (1, 128, 88, 250))]
        return [
            sample("nearest", (2, 3, 5), (2, 3, 4, 6)),
            sample("all of them, 1-based", (1, 2, 3), (1, 2, 2, 3), k=6, index_base=1),
            sample("three", (2, 4, 3), (2, 4, 40), k=3),
            sample("one channel", (2, 1, 3), (2, 1, 9), k=2),
            sample("padded", (3, 2, 4), (3, 2, 5), [4, 0, 2], k=2),
            sample("few references", (2, 2, 3), (2, 2, 7), [3, 2], [7, 2], k=3, use_all_ref=False),
            sample("two blocks of queries", (1, 1, 34), (1, 1, 4)),
            sample("two tiles of queries", (1, 2, 129), (1, 2, 3), differentiable=()),
            alike("two slices", (1, 12, 2), (1, 12, 260), k=2, near=8),
            sample("many neighbours", (2, 8, 2), (2, 8, 70), [1, 2], k=34),
            alike("duplicates", (2, 3, 2), (2, 3, 40), k=2, every=2),
            alike("two far clusters", (1, 3, 2), (1, 3, 50), k=2, radius=1e-4),
            sample("counts without use", (1, 2, 3), (1, 2, 7), [1], [2], use_all_query=True),
        ]


def _apart(
    k: int, query: Shape, reference: Shape, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Normal features of which no query's first k + 1 distances are nearly 0 or nearly the same.

    Where there are references enough, each query has k of its own nearby, at different distances.
    """
    n, channels, p = query
    r = int(np.prod(reference[2:]))
    while True:
        q, x = rng.standard_normal(query), rng.standard_normal((n, channels, r))
        if k * p <= r:
            away = rng.standard_normal((n, channels, p, k))
            away *= (0.2 + 0.1 * np.arange(k)) / np.linalg.norm(away, axis=1, keepdims=True)
            own = rng.permutation(r)[: k * p]
            x[:, :, own] = (q[..., None] + away).reshape(n, channels, -1)
        count = min(k + 1, r)
        nearest = knn(torch.from_numpy(q), torch.from_numpy(x), count)[0].numpy()
        gaps = np.diff(nearest, axis=1, prepend=0)
        if not gaps.size or gaps.min() > 0.01:
            return q, x.reshape(reference)
