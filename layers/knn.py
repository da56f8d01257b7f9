"""KNN: the k nearest references of each query by Euclidean distance, exact.

    distance[n, j, p] = |query[n, :, p] - reference[n, :, index[n, j, p]]|,  ascending in j

Bottoms: ``query`` ``[N, C, P]``; ``reference``, a map ``[N, C, H, W]`` or ``[N, C, R]``, of the same
floating type; optionally how many queries, and how many references, of each image are valid,
``[N, 1]``: the first ones. Tops: ``distance`` ``[N, k, P]`` in the queries' type; ``index``
``[N, k, P]`` int64, ``v W + u`` for a map, plus ``index_base``. Equal distances come by ascending
index. A query that is not valid has index -1 and distance infinity; so do the last of the k where
fewer references are valid. Half inputs are computed, and ranked, in float32.

Features that are not finite: such a reference has distance NaN or infinity and ranks last; such a
query has distance NaN and the first k references.

Backward, for the distance: ``(query - reference) / distance`` to the query and its negative to the
reference, 0 where the distance is 0. The index gets none.

How: matrix products give lower bounds of the distances. What these do not rule out is measured by
differences in float64, so that rounding costs time, never a neighbour. ``_nearest.py`` has the search.

*Differs from the original:* indices are 0-based (the released ones 1-based: ``index_base: 1``).

Source: UCN, Section 4 (hard negative mining by K-NN in a layer).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _nearest
from ._engine import cuda
from ._engine.checks import BlobError, Shape, expect_axes, expect_floating, shapes
from ._engine.declared import Bottom, Role, Top
from ._engine.definition import Spec, define
from ._engine.dispatch import use_cuda
from ._engine.layer import Layer
from ._engine.params import param
from ._engine.registry import register
from ._engine.samples import Sample
from ._engine.wide import wide, wide_dtype
from ._geometry.geometry import Cells, scatter

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Params:
    k: int = param(1, low=1, doc="neighbours of each query")
    use_all_query: bool = param(False, doc="true: every query is valid, whatever the third bottom says")
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


def forward(
    params: Params,
    query: Tensor,
    reference: Tensor,
    num_query: Tensor | None = None,
    num_reference: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    reference = reference.flatten(2)
    counts = _counts(params, query, reference, num_query, num_reference)
    distance, index = _nearest.search(wide(query), wide(reference), *counts, params.k)
    return distance.to(query.dtype), _from_base(index, params.index_base)


def _counts(
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


def _from_base(index: Tensor, base: int) -> Tensor:
    """Indices from 0 as indices from ``base``, or by -base back; -1, for none, stays."""
    return torch.where(index < 0, index, index + base) if base else index


def backward(
    params: Params, distance_gradient: Tensor, query: Tensor, reference: Tensor, index: Tensor
) -> tuple[Tensor, Tensor]:
    shape, reference = reference.shape, reference.flatten(2)
    index = _from_base(index, -params.index_base)
    n, channels, p = query.shape
    k, r = index.shape[1], reference.shape[2]
    at = index.clamp(min=0).view(n, 1, k * p)
    near = wide(reference).gather(2, at.expand(n, channels, k * p)).view(n, channels, k, p)
    unit = wide(query)[:, :, None] - near
    distance = torch.linalg.vector_norm(unit, dim=1)
    weight = (wide(distance_gradient) / distance).masked_fill_((distance == 0) | (index < 0), 0)
    unit *= weight[:, None]
    once = Cells(at, torch.ones_like(at))
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
    queries, references = _counts(params, query, reference, num_query, num_reference)
    n, channels, p = query.shape
    distance, index = query.new_empty(n, k, p), queries.new_empty(n, k, p)
    shared = {"query": query, "reference": reference, "num_query": queries, **_sizes(query, reference)}
    tops = {"distance": distance, "index": index, "total": n * p}
    pending, count = None, None
    if k <= MOST - 3 and channels:
        pending = queries.new_empty(n * p, dtype=torch.int32)
        count = pending.new_zeros(1)
        proven = _screen(query, reference, k, references)
        kernels.launch(
            "knn_settle",
            params,
            over=32 * n * p,
            pending=pending,
            count=count,
            **shared,
            **tops,
            **proven,
        )
    kernels.launch(
        "knn_scan",
        params,
        grid=min(n * p, 8 * cuda.multiprocessors(query.device)),
        block=cuda.threads(256),
        num_reference=references,
        pending=pending,
        count=count,
        **shared,
        **tops,
    )
    return distance, _from_base(index, params.index_base)


def _sizes(query: Tensor, reference: Tensor) -> dict[str, int]:
    return cuda.sizes("_ channels queries", query) | cuda.sizes("_ _ references", reference)


def _screen(query: Tensor, reference: Tensor, k: int, num_reference: Tensor) -> dict[str, Any]:
    """The least bounds of each query, and what else ``knn_settle`` must know of them."""
    (n, channels, p), r = query.shape, reference.shape[2]
    sums = wide_dtype(query.dtype)
    info = torch.finfo(sums)
    centre = reference.mean(2, dtype=sums).nan_to_num(0, 0, 0)
    limits = {"kept": 1 - (3 * channels + 16) * info.eps, "most": info.max / 16}
    bound = reference.new_empty(n, r, dtype=sums)
    kernels.launch(
        "knn_bounds",
        over=n * r,
        reference=reference,
        centre=centre,
        bound=bound,
        channels=channels,
        references=r,
        total=n * r,
        **limits,
    )
    tiles, steps = -(-p // WIDTH), -(-r // WIDTH)
    slices = _slices(n * tiles, steps, cuda.multiprocessors(query.device) * 8 // sums.itemsize)
    keep = min(MOST, k + (7 if slices == 1 else 3))
    least = bound.new_empty(n, p, slices, keep)
    candidate = torch.empty_like(least, dtype=torch.int32)
    kernels.launch(
        "knn_screen",
        grid=(tiles, slices, n),
        block=2 * WIDTH,
        query=query,
        reference=reference,
        centre=centre,
        bound=bound,
        num_reference=num_reference,
        least=least,
        candidate=candidate,
        slices=slices,
        span=-(-steps // slices) * WIDTH,
        keep=keep,
        **_sizes(query, reference),
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
    """Into how many parts to cut the references, so that the device's blocks end at the same time.

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
    shape, index = reference.shape, _from_base(index, -params.index_base)
    query, reference = query.contiguous(), reference.flatten(2).contiguous()
    n, k, p = index.shape
    weight = query.new_empty(n, k, p, dtype=wide_dtype(query.dtype))
    query_gradient, reference_gradient = torch.empty_like(query), torch.empty_like(reference)
    shared = {"query": query, "reference": reference, "weight": weight, **_sizes(query, reference)}
    kernels.launch(
        "knn_backward_query",
        params,
        grid=(-(-p // 32), n),
        block=cuda.threads(256),
        top_gradient=distance_gradient.contiguous(),
        index=index,
        gradient=query_gradient,
        **shared,
    )
    found, order = index.flatten(1).sort(dim=1, stable=True)
    cells = torch.arange(reference.shape[2] + 1, device=index.device).repeat(n, 1)
    kernels.launch(
        "knn_backward_reference",
        params,
        over=reference.numel(),
        order=order,
        start=torch.searchsorted(found, cells, out_int32=True),
        gradient=reference_gradient,
        total=reference.numel(),
        **shared,
    )
    return query_gradient, reference_gradient.view(shape)


definition = define(__name__)


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
    ``[N, 1]`` say how many of each image are valid (all, if not given); where no valid one is left,
    the index is -1 and the distance infinity. Gradients reach both from the distance.
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
    twice = not _nearest.one_product_pays(first, second) or use_cuda(first, second)
    if twice or torch.is_autocast_enabled(first.device.type):
        (distance, index), (_, back) = (knn(*way) for way in ways)
        return distance[0, 0], index[0, 0], back[0, 0, index[0, 0]]
    for query, reference in ways:
        infer(Params(), **shapes("there_and_back", query=query, reference=reference))
    expect_floating(first=first, second=second)
    return _nearest.there_and_back(first, second)


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
        from ._samples import knn as own

        return own.samples(size, rng)
