"""The search of KNN on the CPU: exact, of lower bounds from matrix products.

The Q x R distances are never held. Tiles of one matrix product give a lower bound of each squared
distance, ``|r|^2 - 2 q.r + |q|^2`` of centred features less the largest rounding error that it can
have, of which only the least of each block of 16 references is kept. The blocks of a query are then
measured by differences in float64, the lowest bound first, until the next bound is above the k-th
distance found. Rounding thus costs time, never a neighbour. The same product bounds the distances of
each reference to blocks of queries: :func:`there_and_back`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ._engine.wide import wide

BLOCK = 16  # references that share one bound
# Of one product: large, because threads meet after each, but what its minima are taken of is still in
# the cache. REFERENCES / BLOCK are whole vectors of a processor, or amin takes three times as long.
QUERIES, REFERENCES = 2048, 512
ELEMENTS = 2**19  # of a temporary: 4 MiB in float64
BACK = 2**25  # bounds of single features and blocks of others, held at once: 128 MiB in float32
PART = 2048  # rows of a part there and back, as its queries are searched again: fewer do not pay
NONE = torch.iinfo(torch.int64).max  # the index of no reference: sorts last


class Images(NamedTuple):
    """A few images' features: as rows to measure, and as the two factors of their bounds."""

    query: Tensor  # [n, P, C]
    reference: Tensor  # [n, blocks, BLOCK, C]
    counted: Tensor  # [n]: how many references are valid
    left: Tensor  # [n, P, C + 2]: rows (-2 q', 1, |q'|^2 less its error)
    right: list[Tensor]  # of tiles [n, C + 2, BLOCK * blocks of it]: (r', |r'|^2 less its error, 1)
    finite: Tensor  # [n, P]: which queries are
    scale: Tensor  # [n] float64: of q' and r'


def search(
    query: Tensor, reference: Tensor, queries: Tensor, references: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Distance and index ``[N, k, P]`` of queries ``[N, C, P]`` among references ``[N, C, R]``.

    ``queries`` and ``references`` ``[N]`` say how many of each image are valid.
    """
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
            found = _search_tile(images, tile, bounds, valid[part, tile], k)
            distance[part, tile], index[part, tile] = found
    return distance.mT.contiguous(), index.mT.contiguous()


def _prepare(query: Tensor, reference: Tensor, count: Tensor) -> Images:
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
    past = torch.arange(rows.shape[1], device=count.device) >= count[:, None]
    right[..., -2].masked_fill_(_by_tile(past, right), torch.inf)
    widths = [min(columns, blocks - start) for start in range(0, blocks, columns)]
    factors = [right[:, i, :, :width].flatten(1, 2).mT for i, width in enumerate(widths)]
    rows = rows.unflatten(1, (-1, BLOCK))[:, :blocks]
    return Images(query.mT.contiguous(), rows, count, left, factors, q_norm.isfinite(), scale)


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


def _search_tile(
    images: Images, tile: slice, bounds: Tensor, valid: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Distance and index ``[n, P, k]`` of a tile of queries, by their bounds ``[n, P, blocks]``, which
    are spent; those not ``valid`` inf and -1."""
    n, p = valid.shape
    query, reference = images.query[:, tile].flatten(0, 1), images.reference.flatten(0, 1)
    bounds = bounds.flatten(0, 1)
    blocks = bounds.shape[1]
    image = torch.arange(n, device=query.device).repeat_interleave(p)
    count, finite = images.counted[image, None], images.finite[:, tile].flatten()
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


def _members(block: Tensor, bound: Tensor, count: Tensor) -> Tensor:
    """The references of blocks ``[rows, m]``: ``[rows, m * BLOCK]``; NONE where measured before."""
    ids = block[:, :, None] * BLOCK + torch.arange(BLOCK, device=block.device)
    return ids.masked_fill_(
        (bound[:, :, None] == torch.inf) | (ids >= count[:, :, None]), NONE
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


def rows_at_once(first: Tensor) -> int:
    """How many rows of the second features :func:`there_and_back` takes in one product."""
    return BACK * BLOCK // max(1, len(first))


def one_product_pays(first: Tensor, second: Tensor) -> bool:
    """Whether :func:`there_and_back` is faster than to search twice."""
    return rows_at_once(first) >= min(PART, len(second))


def there_and_back(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What :func:`.knn.there_and_back` gives, of one matrix product in as few parts as possible."""
    rows = rows_at_once(first)
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
        counted=torch.tensor([len(first)], device=first.device),
        finite=_norm(second[None]).isfinite(),
    )
    back = images.left.new_empty(images.reference.shape[1], BLOCK, turned.reference.shape[1])

    def forth(tile: slice) -> Tensor:
        left = images.left[:, tile]
        blocks = back.narrow(2, tile.start // BLOCK, left.shape[1] // BLOCK)
        return _bounds(left, images.right, blocks)

    distance, index = _search_tiles(images, forth, torch.ones_like(images.finite))
    found = torch.zeros_like(turned.finite)
    found[0, index[:size]] = True
    bounds = back.flatten(0, 1)[None, : len(second)]
    _, returned = _search_tiles(turned, lambda tile: bounds[:, tile], found)
    return distance[:size], index[:size], returned[index[:size]]


def _search_tiles(
    images: Images, bounds: Callable[[slice], Tensor], valid: Tensor
) -> tuple[Tensor, Tensor]:
    """Distance and index ``[P]`` of a single image's queries, by the bounds of each tile of them."""
    tiles = [slice(start, start + QUERIES) for start in range(0, valid.shape[1], QUERIES)]
    found = [_search_tile(images, tile, bounds(tile), valid[:, tile], 1) for tile in tiles]
    distance, index = (torch.cat(parts, 1)[0, :, 0] for parts in zip(*found, strict=True))
    return distance, index
