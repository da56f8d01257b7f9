"""How well a net's blocks match pairs of images, whichever of them hyperpixels are made of.

Numerators and squared lengths of hyperpixels are sums over the blocks: the products of a pair's maps
are made once, at the maps' own size, and every set of blocks is scored on them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from cortado.layers import _hyperpixels as hyperpixels
from cortado.layers import hyperpixel_correlation as correlation
from cortado.layers import regularized_hough_matching as hough
from cortado.layers._data.keypoint_pairs import KeypointPair
from cortado.layers._displacements import displacement_sums, looked_up
from cortado.layers._geometry.cells import CellParams, Kept
from cortado.layers._geometry.keypoints import pair_pck
from cortado.layers._geometry.transfer import Steps
from cortado.prototxt_like.source import SpecError
from torch import Tensor

from .layer_search import Depth, Layers, Scored
from .matching import Matcher

Array = npt.NDArray[np.float64]
P = TypeVar("P", bound=CellParams)


class Maps(NamedTuple):
    """The maps ``[1, C, h, w]`` of all blocks, by id, of an image that the net was given in ``size``
    (height, width), in its pixels ``ratio`` to one of the image's own."""

    size: tuple[int, int]
    ratio: float
    maps: Sequence[Tensor]


@dataclass(frozen=True)
class Rules:
    """What a net does with the hyperpixels that its blocks give.

    ``own``: the ids of the blocks that its spec chooses. ``cells``: jump and receptive field, in image
    pixels, of each block that may be the base.
    """

    correlation: correlation.Params
    matching: hough.Params
    transfer: CellParams
    own: Layers
    cells: tuple[tuple[float, int], ...]

    @classmethod
    def of(cls, matcher: Matcher) -> Rules:
        """Those of a net; raises SpecError unless it makes its confidence of hyperpixels of blocks, by
        a HyperpixelCorrelation and a RegularizedHoughMatching alone."""
        match, steps = matcher.params, [wired.step for wired in matcher.branches.meeting]
        kinds = (correlation.HyperpixelCorrelation, hough.RegularizedHoughMatching)
        span = matcher.net.graph.message.span
        if tuple(type(step.layer) for step in steps) != kinds:
            text = (
                "expected a confidence made by a HyperpixelCorrelation and a RegularizedHoughMatching"
            )
            found = ", ".join(type(step.layer).__name__ for step in steps) or "neither"
            raise SpecError(f"{text} of blocks, found {found}", span)
        params, voting = (step.layer.params for step in steps)
        first, _, _ = correlation.split(steps[0].bottoms, params.margin is not None)
        if other := [name for name in first if name not in match.block]:
            raise SpecError(
                f'"{other[0]}" is none of the blocks {", ".join(match.block)}', steps[0].span
            )
        if params.channel_weights:
            raise SpecError("a search knows no channel weights of blocks to be chosen", steps[0].span)
        if len({each.margin is None for each in (params, voting, matcher.cells)}) > 1:
            raise SpecError("expected a margin in all of the layers and match_param, or in none", span)
        own = tuple(match.block.index(name) for name in first)
        cells = zip(match.block_jump, match.block_receptive_field, strict=False)
        return cls(params, voting, matcher.cells, own, tuple(cells))

    def on(self, params: P, base: int) -> P:
        """Parameters with the cells of a base; a margin becomes the jump. Raises ValueError where the
        spec says nothing of its cells."""
        if base >= len(self.cells):
            raise ValueError(
                f"block {base} cannot be the first: the cells of {len(self.cells)} are known"
            )
        jump, field = self.cells[base]
        margin = None if params.margin is None else jump
        return replace(params, jump=jump, receptive_field=field, margin=margin)


class Pair:
    """The products of two images' maps, and the squared lengths of their cells.

    ``sets``: those that it is to match by. Held are, for each of their blocks, ``[1, h, w, h', w']``,
    and ``[1, H, W]`` on each base's grid.
    """

    def __init__(self, rules: Rules, a: Maps, b: Maps, sets: Iterable[Layers]) -> None:
        self.rules, self.a, self.b = rules, a, b
        self.products: dict[int, Tensor] = {}
        self.lengths: dict[tuple[int, torch.Size, torch.Size], tuple[Tensor, Tensor]] = {}
        for layers in sets:
            for block in layers:
                if block not in self.products:
                    self.products[block] = hyperpixels.product(a.maps[block], b.maps[block])
                if (key := self._key(layers[0], block)) not in self.lengths:
                    self.lengths[key] = _lengths(a.maps[block], key[1]), _lengths(b.maps[block], key[2])

    @property
    def bytes(self) -> int:
        held = [*self.products.values(), *(x for both in self.lengths.values() for x in both)]
        return sum(x.nbytes for x in held)

    def _key(self, base: int, block: int) -> tuple[int, torch.Size, torch.Size]:
        return block, self.a.maps[base].shape[2:], self.b.maps[base].shape[2:]

    @torch.no_grad()
    def match(self, layers: Layers, points: Array) -> Array:
        """The points [K, 2] of A in B, by hyperpixels of some blocks, as
        :meth:`cortado.nets.matching.Matcher.match` gives them; each image's own pixels."""
        base, sizes = self.products[layers[0]], (self.a.size, self.b.size)
        scaled = torch.as_tensor(points * self.a.ratio).mT.to(base.device)
        confidence = torch.empty_like(base[0])  # written for the cells that hold a point
        cells = self.rules.on(self.rules.transfer, layers[0])
        steps = Steps(confidence, scaled[0], scaled[1], cells, *sizes)
        params = self.rules.on(self.rules.matching, layers[0])
        space = hough.Space.of(params, confidence.shape, *sizes, confidence.device)
        self._confidences(layers, space, steps.down.mT @ steps.across > 0, steps.part)
        found = (scaled + steps.at_points()[:2]).mT / self.b.ratio
        return found.cpu().numpy()

    def _confidences(self, layers: Layers, space: hough.Space, wanted: Tensor, into: Tensor) -> None:
        """Writes the confidences of the ``wanted`` cells of A ``[H, W]`` of those that take part into
        ``[H, W, H', W']``; all cells vote."""
        sums = space.down.new_zeros(1, len(space.down), len(space.across))
        for rows, similarity in self._similarities(layers, space.kept):
            some = displacement_sums(similarity.unbind(2), similarity.shape, similarity)
            sums.narrow(1, len(into) - rows.stop, some.shape[1]).add_(some)
            into[rows][wanted[rows]] = similarity[0][wanted[rows]]
        votes = space.votes(sums).to(into.dtype)
        for c, (found,) in enumerate(looked_up(votes, (1, *into.shape))):
            into[wanted[:, c], c] *= found[wanted[:, c]]

    def _similarities(self, layers: Layers, kept: Kept) -> Iterator[tuple[slice, Tensor]]:
        """Some rows of A after the other, and the similarities ``[1, rows, W, H', W']`` of theirs."""
        by_size: dict[torch.Size, list[Tensor]] = {}
        for block in layers:
            by_size.setdefault(self.products[block].shape[1:], []).append(self.products[block])
        (grid, base), *others = by_size.items()
        terms = [_summed(base, kept)]
        terms += [hyperpixels.upsampled_term(_sum(products), grid, kept) for _, products in others]
        found = [self.lengths[self._key(layers[0], block)] for block in layers]
        a, b = (_sum([both[i] for both in found])[:, *kept[2 * i :][:2]] for i in (0, 1))
        params = self.rules.correlation
        for rows, cosine in hyperpixels.cosines(terms, a, b, params.eps):
            yield rows, cosine if params.exponent == 1 else cosine.pow_(params.exponent)


def _lengths(x: Tensor, base: torch.Size) -> Tensor:
    """Squared lengths of a map's cells, upsampled to a base ``[1, H, W]``."""
    every = [slice(0, count) for count in base]
    return hyperpixels.Square.of(x, base, every)(x).clamp_(min=0)


def _sum(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _summed(products: Sequence[Tensor], kept: Kept) -> hyperpixels.Term:
    """Adds some rows of products of the base's size to a numerator."""
    parts = [each[:, *kept] for each in products]

    def add(rows: slice, numerator: Tensor) -> None:
        for part in parts:
            some = part[:, rows]
            numerator.view(some.shape).add_(some)

    return add


def _timed(pair: Pair, points: Array, layers: Layers) -> tuple[Array, float]:
    begin = time.perf_counter()
    return pair.match(layers, points), time.perf_counter() - begin


@contextmanager
def _side_by_side() -> Iterator[Callable[..., Iterable[tuple[Array, float]]]]:
    """A map by as many threads as torch computes in, one each: threads that share short operations wait
    for one another, and long where a core is busy with something else."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True, eq=False)
class PCK:
    """The PCK of pairs by any sets of blocks, at some alphas.

    ``maps`` gives the blocks' maps of an image's file. What is made of a pair is held for that pair
    alone, while all sets are tried on it.
    """

    rules: Rules
    maps: Callable[[Path], Maps]
    alphas: Sequence[float]

    def figures(self, sets: Sequence[Layers], pairs: Iterable[KeypointPair]) -> tuple[Array, Array]:
        """``[sets, pairs, alphas]``, and each set's seconds, with its share of what all need."""
        found, seconds = [], np.zeros(len(sets))
        with _side_by_side() as run:
            for each in pairs:
                begin = time.perf_counter()
                pair = Pair(self.rules, self.maps(each.image1), self.maps(each.image2), sets)
                seconds += (time.perf_counter() - begin) / len(sets)
                matched = [*run(partial(_timed, pair, each.points1), sets)]
                del pair  # before the next one is made
                seconds += [taken for _, taken in matched]
                found += [
                    pair_pck(points, each.points2, each.length, self.alphas) for points, _ in matched
                ]
        return np.array(found).reshape(-1, len(sets), len(self.alphas)).swapaxes(0, 1), seconds

    def scored(self, sets: Sequence[Layers], pairs: Iterable[KeypointPair]) -> Depth:
        """Their means over the pairs at the first alpha, to 12 digits: the same figures of pairs in
        another order are the same score."""
        found, seconds = self.figures(sets, pairs)
        scores = (round(float(pck), 12) for pck in found[:, :, 0].mean(1))
        return tuple(map(Scored, sets, scores, seconds.tolist()))
