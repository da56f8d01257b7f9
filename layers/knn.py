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
the k-th distance found. Rounding thus costs time, never a neighbour.

*Differs from the original:* indices are 0-based (the released ones 1-based: ``index_base: 1``).

Source: UCN, Section 4 (hard negative mining by K-NN in a layer).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._runtime import autocast
from ._runtime.checks import BlobError, Shape, expect_axes, expect_floating
from ._runtime.geometry import Corners, scatter
from ._runtime.layer import Layer
from ._runtime.params import param
from ._runtime.registry import register
from ._runtime.samples import Sample

BLOCK = 16  # references that share one bound
TILE = 1024  # queries, and references, of one product
ELEMENTS = 2**20  # of a temporary of the measurement: 8 MiB in float64
NONE = torch.iinfo(torch.int64).max  # the index of no reference: sorts last


@dataclass(frozen=True)
class Params:
    k: int = param(1, low=1, doc="neighbours of each query")
    use_all_query: bool = param(False, doc="true: the number of valid queries is not regarded")
    use_all_ref: bool = param(True, doc="false: the fourth bottom says how many references are valid")
    index_base: int = param(0, low=0, high=1, doc="index of the first reference; 1 as released")


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
    references = int(np.prod(reference[2:]))
    if params.k > references:
        raise BlobError(
            f"k is {params.k}, but {{reference}} has {references} features", reference=reference
        )
    for name, count in (("num_query", num_query), ("num_reference", num_reference)):
        if count is not None and (count[:1] != query[:1] or np.prod(count) != query[0]):
            raise BlobError(f"expected {{{name}}} to be [{query[0]}, 1]", **{name: count})
    if not params.use_all_ref and num_reference is None:
        raise BlobError("use_all_ref: false needs a fourth bottom with the number of valid references")
    top = (query[0], params.k, query[2])
    return top, top


class Images(NamedTuple):
    """A few images' features: as rows to measure, and as the two factors of their bounds."""

    query: Tensor  # [n, P, C]
    reference: Tensor  # [n, R, C]
    valid: Tensor  # [n]: how many references
    left: Tensor  # [n, P, C + 1]: rows (q', 1)
    right: Tensor  # [n, C + 1, blocks * BLOCK]: columns (-2 r', |r'|^2 less its error)
    offset: Tensor  # [n, P] float64: |q'|^2 less its error; NaN where q is not finite
    scale: Tensor  # [n] float64: of q' and r'
    tiles: int  # of the columns of ``right``


def forward(
    query: Tensor, reference: Tensor, k: int, num_query: Tensor, num_reference: Tensor
) -> tuple[Tensor, Tensor]:
    """``[N, C, P]``, ``[N, C, R]``, numbers of valid ones ``[N]`` -> distance, index ``[N, k, P]``."""
    n, channels, p = query.shape
    query, reference = _wide(query), _wide(reference)
    distance = query.new_full((n * p, k), torch.inf)
    index = torch.full((n * p, k), -1, device=query.device)
    valid = torch.arange(p, device=query.device) < num_query[:, None]
    group = max(1, ELEMENTS // max(1, channels * reference.shape[2]))
    stride = max(1, TILE // group)
    for image in range(0, n, group):
        part = slice(image, image + group)
        images = _prepare(query[part], reference[part], num_reference[part])
        for start in range(0, p, stride):
            tile = slice(start, start + stride)
            rows = valid[part, tile].flatten().nonzero()[:, 0]
            to = _flat(torch.arange(n * p, device=query.device).view(n, p)[part], tile)[rows]
            distance[to], index[to] = _search(images, tile, rows, k)
    index.masked_fill_(index == NONE, -1)
    distance.masked_fill_(index < 0, torch.inf)
    return _columns(distance, n), _columns(index, n)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _flat(x: Tensor, tile: slice) -> Tensor:
    """A tile of ``[n, P, ...]`` as rows."""
    return x[:, tile].flatten(0, 1)


def _columns(rows: Tensor, n: int) -> Tensor:
    """``[N P, k]`` -> ``[N, k, P]``."""
    return rows.view(n, -1 if n else 0, rows.shape[1]).transpose(1, 2).contiguous()


def _prepare(query: Tensor, reference: Tensor, valid: Tensor) -> Images:
    n, channels, r = reference.shape
    tiles = -(-r // TILE)
    dtype = _product_dtype(query)
    left = query.new_ones(n, query.shape[2], channels + 1, dtype=dtype)
    right = query.new_zeros(n, channels + 1, -(-r // (tiles * BLOCK)) * tiles * BLOCK, dtype=dtype)
    q, x, x_square = left[:, :, :channels], right[:, :channels, :r], right[:, channels]
    centre = reference.mean(2, keepdim=True).nan_to_num(0, 0, 0)
    torch.sub(query.mT, centre.mT, out=q)
    torch.sub(reference, centre, out=x)
    q_norm = torch.linalg.vector_norm(q, dim=2, dtype=torch.float64)
    x_norm = torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)
    norms = torch.cat((q_norm, x_norm), 1)
    exponent = norms.where(norms.isfinite(), 0).amax(1).frexp().exponent.clamp(min=-100)
    scale = torch.ldexp(torch.ones_like(norms[:, 0]), -exponent)
    # No overflow and, but for ``tiny``, no underflow: the longest vector is at most 1 long.
    q.masked_fill_(~q_norm.isfinite()[:, :, None], 0).mul_(scale[:, None, None])
    x.masked_fill_(~x_norm.isfinite()[:, None], 0).mul_(-2 * scale[:, None, None])
    # Centring errs by at most u (|q'| + |r'|) in the distance, the product by (C + 2) u
    # (|q'| + |r'|)^2 in its square, where u is half of eps and (a + b)^2 <= 2 (a^2 + b^2).
    info = torch.finfo(dtype)
    kept = 1 - (channels + 8) * info.eps
    x_square[:, :r] = (
        (kept * (x_norm * scale[:, None]).square()).nan_to_num(nan=torch.inf).clamp(max=info.max)
    )
    past = torch.arange(right.shape[2], device=valid.device) >= valid[:, None]
    x_square.masked_fill_(past, torch.inf)
    offset = kept * (q_norm * scale[:, None]).square() - 4 * (channels + 1) * info.tiny
    offset.masked_fill_(~q_norm.isfinite(), torch.nan)
    return Images(query.mT, reference.mT.contiguous(), valid, left, right, offset, scale, tiles)


def _product_dtype(x: Tensor) -> torch.dtype:
    """The dtype whose matrix product rounds as its eps says: not float32 where TF32 is allowed."""
    product = torch.backends.cuda.matmul if x.is_cuda else torch.backends.mkldnn.matmul
    return x.dtype if product.fp32_precision in ("none", "ieee") else torch.float64


def _bounds(left: Tensor, right: Tensor, tiles: int) -> Tensor:
    """The least bound of each query and block, less the query's offset: ``[n, P, blocks]``."""
    n, p = left.shape[:2]
    bounds = left.new_empty(n, p, tiles, right.shape[2] // (tiles * BLOCK))
    product = left.new_empty(n, p, right.shape[2] // tiles)
    for tile, columns in enumerate(right.chunk(tiles, dim=2)):
        torch.bmm(left, columns, out=product)
        torch.amin(product.view(n, p, BLOCK, -1), dim=2, out=bounds[:, :, tile])
    return bounds.flatten(2)


def _members(block: Tensor, blocks: int, tiles: int) -> Tensor:
    """The references of blocks ``[rows, m]``: ``[rows, m * BLOCK]``, those of a tile interleaved."""
    width = blocks // tiles
    first = block // width * (width * BLOCK) + block % width
    return (first[:, :, None] + width * torch.arange(BLOCK, device=block.device)).flatten(1)


def _search(images: Images, tile: slice, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Distance and index ``[rows, k]`` of some rows of a tile of queries."""
    r = images.reference.shape[1]
    image = (rows // (images.left[:, tile].shape[1] or 1))[:, None]
    query, offset = _flat(images.query, tile)[rows], _flat(images.offset, tile)[rows]
    scale, valid, first = images.scale[image[:, 0]], images.valid[image], image * r
    reference = images.reference.flatten(0, 1)
    bounds = _bounds(images.left[:, tile], images.right, images.tiles).flatten(0, 1)[rows]
    blocks = bounds.shape[1]
    distance = query.new_full((len(rows), k), torch.nan)
    index = torch.arange(k, device=rows.device).expand(len(rows), k)
    index = index.where(offset.isnan()[:, None] & (index < valid), NONE)
    open_rows, step = (~offset.isnan()).nonzero()[:, 0], k
    while len(open_rows):
        step, remaining = min(step, blocks), []
        for part in open_rows.split(max(1, ELEMENTS // (BLOCK * max(query.shape[1], 8 * step)))):
            bound, block = bounds[part].topk(min(step + 1, blocks), largest=False)
            ids = _members(block[:, :step], blocks, images.tiles)
            measured = (bound[:, :step] == torch.inf).repeat_interleave(BLOCK, dim=1)
            ids.masked_fill_(measured | (ids >= valid[part]), NONE)
            found = _measure(query[part], reference, ids, first[part])
            distance[part], index[part] = _least(
                torch.cat((distance[part], found), 1), torch.cat((index[part], ids), 1), k
            )
            if step < blocks:
                bounds[part[:, None], block[:, :step]] = torch.inf
                limit = _limit(distance[part, -1], offset[part], scale[part])
                remaining.append(part[~(bound[:, step] > limit) & (bound[:, step] < torch.inf)])
        open_rows, step = torch.cat(remaining) if remaining else rows[:0], 2 * step
    return distance, index


def _limit(distance: Tensor, offset: Tensor, scale: Tensor) -> Tensor:
    """The bound of a reference that may still be as near as ``distance`` after its rounding."""
    above = distance.double() * (1 + torch.finfo(distance.dtype).eps)
    return (above * scale).square() - offset


def _measure(query: Tensor, reference: Tensor, ids: Tensor, first: Tensor) -> Tensor:
    """Distances ``[rows, m]`` by differences, summed in float64; NaN where there is no reference."""
    parts = []
    for some in ids.split(max(1, ELEMENTS // max(1, query.numel())), dim=1):
        at = some.where(some != NONE, 0) + first
        difference = reference[at.flatten()].view(*at.shape, -1).double()
        difference -= query[:, None]
        parts.append(torch.linalg.vector_norm(difference, dim=2).masked_fill_(some == NONE, torch.nan))
    return torch.cat(parts, 1).to(query.dtype)


def _least(distance: Tensor, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` least of each row by (distance, index); NaN comes last."""
    index, order = index.sort(dim=1)
    distance, nearest = distance.gather(1, order).sort(dim=1, stable=True)
    return distance[:, :k], index.gather(1, nearest[:, :k])


def backward(
    distance_gradient: Tensor, query: Tensor, reference: Tensor, index: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of ``query`` and ``reference``."""
    n, channels, p = query.shape
    k, r = index.shape[1], reference.shape[2]
    at = index.clamp(min=0).view(n, 1, k * p)
    near = _wide(reference).gather(2, at.expand(n, channels, k * p)).view(n, channels, k, p)
    unit = _wide(query)[:, :, None] - near
    distance = torch.linalg.vector_norm(unit, dim=1)
    weight = (_wide(distance_gradient) / distance).masked_fill_((distance == 0) | (index < 0), 0)
    unit *= weight[:, None]
    once = Corners(at, torch.ones_like(at))
    reference_gradient = scatter(unit.view(n, channels, k * p), once, 1, r)[:, :, 0].neg_()
    return unit.sum(2).to(query.dtype), reference_gradient.to(reference.dtype)


class Function(torch.autograd.Function):
    @staticmethod
    def forward(
        query: Tensor, reference: Tensor, k: int, num_query: Tensor, num_reference: Tensor
    ) -> tuple[Tensor, Tensor]:
        distance, index = forward(query, reference, k, num_query, num_reference)
        return distance.to(query.dtype), index

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        query, reference, *_ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(query, reference, output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, distance_gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return *backward(distance_gradient, *ctx.saved_tensors), None, None, None


def knn(
    query: Tensor,
    reference: Tensor,
    k: int = 1,
    num_query: Tensor | None = None,
    num_reference: Tensor | None = None,
    index_base: int = 0,
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
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")
    params = Params(k, index_base=index_base, use_all_ref=num_reference is None)
    return _knn(params, query, reference, num_query, num_reference)


def _knn(
    params: Params, query: Tensor, reference: Tensor, *counts: Tensor | None
) -> tuple[Tensor, Tensor]:
    shapes = [None if count is None else tuple(count.shape) for count in counts]
    infer(params, tuple(query.shape), tuple(reference.shape), *shapes)
    expect_floating(query=query, reference=reference)
    reference = reference.flatten(2)
    use_all = (params.use_all_query, params.use_all_ref)
    valid = [
        query.new_full((len(query),), x.shape[2], dtype=torch.int64)
        if count is None or all_of_them
        else count.detach().reshape(-1).to(query.device, torch.int64).clamp(0, x.shape[2])
        for x, count, all_of_them in zip((query, reference), counts, use_all, strict=True)
    ]
    distance, index = autocast.apply(Function, query, reference, params.k, *valid)
    if params.index_base:
        index = torch.where(index < 0, index, index + params.index_base)
    return distance, index


@register("KNN", bottoms=(2, 4), tops=(1, 2))
class KNN(Layer):
    Params = Params
    bottom_names = ("query", "reference", "num_query", "num_reference")
    infer = staticmethod(infer)

    def forward(
        self,
        query: Tensor,
        reference: Tensor,
        num_query: Tensor | None = None,
        num_reference: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        return _knn(self.params, query, reference, num_query, num_reference)

    @staticmethod
    def samples(size: str, rng: np.random.Generator) -> list[Sample]:
        def sample(
            name: str, query: Shape, reference: Shape, *counts: list[int], **options: Any
        ) -> Sample:
            features = [torch.from_numpy(rng.standard_normal(shape)) for shape in (query, reference)]
            numbers = [torch.tensor(count, dtype=torch.float64)[:, None] for count in counts]
            return Sample(Params(**options), (*features, *numbers), (0, 1), name=name)

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
            sample("padded", (3, 2, 4), (3, 2, 5), [4, 0, 2], k=2),
            sample("few references", (2, 2, 3), (2, 2, 7), [3, 2], [7, 2], k=3, use_all_ref=False),
            sample("counts without use", (1, 2, 3), (1, 2, 7), [1], [2], use_all_query=True),
            sample("one channel", (2, 1, 3), (2, 1, 40), k=4),
        ]
