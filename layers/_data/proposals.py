"""Region proposals: boxes that may hold an object, the primitives that SCNet matches.

Four ways to make them, as in the paper's comparison (section 5.2): :func:`randomized_prim`,
:func:`selective_search`, :func:`sliding_window` and :func:`random_uniform`. Each gives ``[K, 4]``
float32 rows (x1, y1, x2, y2) in pixels, 0-based, x2 and y2 the last pixel inside, K <= ``count``,
no row twice, the best or the first drawn in front; the same seed gives the same rows. K is less
than ``count`` only where the image has no more: one of a single colour is one region, and gives
one box.

The first two begin with the superpixels of Felzenszwalb and Huttenlocher (IJCV 2004) in two colour
spaces. Their sizes grow with the image, so that a photograph and its half give much the same boxes.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from .transform import as_rgb

BINS = 25  # of a channel's colours
ORIENTATIONS, RESPONSES = 8, 10  # texture: bins of each orientation's response

Row = tuple[float, ...]


@dataclass(frozen=True)
class Regions:
    """The n superpixels of an image, and the m pairs of them that touch.

    ``box`` [n, 4]; ``area`` [n] and ``perimeter`` [n] in pixels and sides of pixels; ``edges``
    [m, 2] pairs of regions, lower first; ``border`` [m] the length of the pair's common border;
    ``color`` and ``texture`` [n, bins] histograms that sum to 1.
    """

    box: np.ndarray
    area: np.ndarray
    perimeter: np.ndarray
    edges: np.ndarray
    border: np.ndarray
    color: np.ndarray
    texture: np.ndarray


def randomized_prim(image: np.ndarray, count: int = 1000, seed: int = 0) -> torch.Tensor:
    """Boxes of random partial spanning trees over superpixels (Manen et al., ICCV 2013).

    Two touching superpixels belong together with probability

        rho = 1 / (1 + exp(3.0017 - 2.6864 c - 1.0029 l - 2.3655 s)),

    c the intersection of their LAB histograms, l their common border over the lesser of their
    perimeters, s = 1 minus their share of the image's area; the numbers are the published ones. A
    tree starts at a random superpixel and grows by one of the edges that leave it, drawn in
    proportion to rho. Before an edge is taken the tree of area share a stops if

        sqrt(a) + (1 - rho) > E,   E uniform in 0..2, drawn once for a tree.

    (The released program has a table of sizes learned on PASCAL VOC in place of sqrt(a), which
    says that objects' sides are spread evenly.)

    image: [H, W], [H, W, 1|3|4], uint8 or floats in 0..1. Order: as drawn. Raises ValueError.
    """
    _expect_count(count)
    rng = np.random.default_rng(seed)
    image = as_rgb(image)
    lab = _lab(image)
    graphs = [_regions(_superpixels(space, 100), lab) for space in (lab, _hsv(image))]
    rho = [_togetherness(regions) for regions in graphs]

    def drawn() -> Iterable[Row]:
        for _ in range(40):
            grown = [grow(g, r, count // 4 + 1, rng) for g, r in zip(graphs, rho, strict=True)]
            yield from _rows(np.stack(grown, 1).reshape(-1, 4))

    return _distinct(drawn(), count)


def _togetherness(regions: Regions) -> np.ndarray:
    """rho [m] of the pairs that touch; see :func:`randomized_prim`."""
    i, j = regions.edges.T
    color = np.minimum(regions.color[i], regions.color[j]).sum(1)
    border = regions.border / np.minimum(regions.perimeter[i], regions.perimeter[j])
    size = 1 - (regions.area[i] + regions.area[j]) / regions.area.sum()
    return 1 / (1 + np.exp(3.0017 - 2.6864 * color - 1.0029 * border - 2.3655 * size))


def grow(regions: Regions, rho: np.ndarray, trees: int, rng: np.random.Generator) -> np.ndarray:
    """The boxes [trees, 4] of random partial spanning trees; see :func:`randomized_prim`.

    An edge drawn in proportion to rho is the first to ring of exponential clocks of rates rho, and
    a clock that has not rung is as good as new. So a tree grows in the order of the distances from
    its start, where an edge is as long as its clock runs: one shortest-path search over a copy of
    the graph for each tree.
    """
    order, chosen = _growth(len(regions.area), regions.edges, rho, trees, rng)
    area = np.cumsum(regions.area[order], 1) / regions.area.sum()
    full = np.ones((trees, 1), bool)  # nothing is left to take
    stops = np.sqrt(area[:, :-1]) + 1 - chosen[:, 1:] > rng.uniform(0, 2, (trees, 1))
    last = np.concatenate([stops, full], 1).argmax(1)
    box = regions.box[order]
    low, high = np.minimum.accumulate(box[..., :2], 1), np.maximum.accumulate(box[..., 2:], 1)
    return np.concatenate([low, high], 2)[np.arange(trees), last]


def _growth(
    n: int, edges: np.ndarray, rho: np.ndarray, trees: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Regions in the order they join [trees, n], and rho of the edge each came by (1 at the start)."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import dijkstra

    copy = n * np.arange(trees)[:, None]
    clock = rng.exponential(size=(trees, len(rho))) / rho
    start = rng.integers(n, size=trees)
    # dijkstra takes no int64 before SciPy 1.15
    row, column = ((copy + end).ravel().astype(np.int32) for end in edges.T)
    graph = csr_array((clock.ravel(), (row, column)), shape=(trees * n, trees * n))
    distance, previous, _ = dijkstra(
        graph,
        directed=False,
        indices=copy[:, 0] + start,
        return_predecessors=True,
        min_only=True,
    )
    order = distance.reshape(trees, n).argsort(1)
    between = np.ones((n, n))
    between[edges[:, 0], edges[:, 1]] = between[edges[:, 1], edges[:, 0]] = rho
    before = np.take_along_axis(previous.reshape(trees, n), order, 1) % n
    chosen = between[before, order]
    chosen[:, 0] = 1
    return order, chosen


def selective_search(image: np.ndarray, count: int = 1000, seed: int = 0) -> torch.Tensor:
    """Boxes of regions merged from superpixels to the whole image (Uijlings et al., IJCV 2013).

    The two most similar regions that touch are merged until one is left; every region on the way
    gives a box. The similarity is a sum of terms in 0..1, a the area, A the image's:

        color    sum over bins of the lesser of the two histograms, 25 bins a channel
        texture  the same of 10 bins for each of 8 orientations of the derivative of each channel
        size     1 - (a_i + a_j) / A
        fill     1 - (area of the box around both - a_i - a_j) / A

    Four hierarchies, over LAB and over HSV superpixels, with and without color; then again over
    superpixels of half the scale, while there are fewer than ``count`` boxes. Order: the i-th last
    region of a hierarchy (the whole image is 1st) gets i times a uniform random number, ascending.

    image: [H, W], [H, W, 1|3|4], uint8 or floats in 0..1. Raises ValueError.
    """
    _expect_count(count)
    rng = np.random.default_rng(seed)
    image = as_rgb(image)
    spaces = (_lab(image), _hsv(image))
    drawn: list[tuple[float, Row]] = []
    for scale in (100, 50, 25):
        for space in spaces:
            regions = _regions(_superpixels(space, scale), space, with_texture=True)
            for with_color in (True, False):
                boxes = merge(regions, with_color)[::-1]
                keys = rng.random(len(boxes)) * np.arange(1, len(boxes) + 1)
                drawn += zip(keys.tolist(), _rows(boxes), strict=True)
        if len({box for _, box in drawn}) >= count:
            break
    return _distinct((box for _, box in sorted(drawn)), count)


def merge(regions: Regions, with_color: bool = True) -> np.ndarray:
    """The boxes [2n - 1, 4] of a hierarchy: the superpixels, then each merged region in turn.

    Of pairs that are equally similar, the one of the lowest numbers is merged.
    """
    n, pairs = len(regions.area), regions.edges
    tree = _Hierarchy(regions, with_color)
    touching: list[set[int]] = [set() for _ in range(2 * n - 1)]
    for i, j in pairs.tolist():
        touching[i].add(j)
        touching[j].add(i)
    queue = list(zip((-tree.similarity(*pairs.T)).tolist(), *pairs.T.tolist(), strict=True))
    heapq.heapify(queue)
    merged = [False] * (2 * n - 1)
    for new in range(n, 2 * n - 1):
        _, i, j = heapq.heappop(queue)
        while merged[i] or merged[j]:
            _, i, j = heapq.heappop(queue)
        merged[i] = merged[j] = True
        tree.join(i, j, new)
        touching[new] = (touching[i] | touching[j]) - {i, j}
        near = sorted(touching[new])
        for k in near:
            touching[k] -= {i, j}
            touching[k].add(new)
        for value, k in zip(tree.similarity(np.array(near, int), new).tolist(), near, strict=True):
            heapq.heappush(queue, (-value, k, new))
    return tree.box


class _Hierarchy:
    """What the similarity needs of the 2n - 1 regions of a hierarchy over n superpixels."""

    def __init__(self, regions: Regions, with_color: bool) -> None:
        kinds = (regions.color, regions.texture) if with_color else (regions.texture,)
        room = len(regions.area) - 1
        self.whole = regions.area.sum()
        self.area = np.pad(regions.area, (0, room))
        self.box = np.pad(regions.box, ((0, room), (0, 0)))
        self.histogram = np.pad(np.concatenate(kinds, 1), ((0, room), (0, 0)))

    def join(self, i: int, j: int, new: int) -> None:
        """Make region ``new`` of two."""
        share = self.area[i] / (self.area[i] + self.area[j])
        self.area[new] = self.area[i] + self.area[j]
        self.histogram[new] = share * self.histogram[i] + (1 - share) * self.histogram[j]
        self.box[new, :2] = np.minimum(self.box[i, :2], self.box[j, :2])
        self.box[new, 2:] = np.maximum(self.box[i, 2:], self.box[j, 2:])

    def similarity(self, i: np.ndarray, j: np.ndarray | int) -> np.ndarray:
        """The sum of the terms [k] of regions i [k] with j, [k] or one."""
        low = np.minimum(self.box[i, :2], self.box[j, :2])
        high = np.maximum(self.box[i, 2:], self.box[j, 2:])
        around = (high - low + 1).prod(1)
        alike = np.minimum(self.histogram[i], self.histogram[j]).sum(1)
        return alike + 2 - around / self.whole  # size + fill: their a_i + a_j cancel


def sliding_window(size: tuple[int, int], count: int = 1000) -> torch.Tensor:
    """Windows spread evenly over an image of ``size`` (H, W), the largest in front.

    Sides from 1/8 of the image's to the whole in half octaves, aspect ratios (width over height,
    relative to the image's) 1/2, 1 and 2; every shape gets about as many windows, which stand at
    most an equal share of their own sides apart. Raises ValueError.
    """
    _expect_size(size)
    _expect_count(count)
    height, width = size
    shapes = [
        (height * side * math.sqrt(1 / ratio), width * side * math.sqrt(ratio))
        for side in 2.0 ** (-np.arange(7) / 2)
        for ratio in (0.5, 1.0, 2.0)
    ]
    shapes = [(h, w) for h, w in shapes if h <= height and w <= width]
    each, rows = count / len(shapes), list[Row]()
    while len(rows) < count and each < 16 * height * width:
        windows = np.concatenate([_windows(size, shape, each) for shape in shapes])
        rows = list(dict.fromkeys(_rows(windows)))
        each *= 1.1
    chosen = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    return _distinct((rows[i] for i in chosen), count)


def _windows(size: tuple[int, int], shape: tuple[float, float], count: float) -> np.ndarray:
    """About ``count`` boxes of one shape (h, w), by rows."""
    room = [max(whole - side, 0) / side for whole, side in zip(size, shape, strict=True)]
    step = math.sqrt(max(room[0] * room[1], 1e-9) / count)  # in sides of the window
    y1, x1 = (
        np.linspace(0, max(whole - side, 0), round(space / step) + 1 if space else 1)
        for whole, side, space in zip(size, shape, room, strict=True)
    )
    y, x = (axis.ravel() for axis in np.meshgrid(y1, x1, indexing="ij"))
    return _clipped(np.stack([x, y, x + shape[1] - 1, y + shape[0] - 1], 1), size)


def random_uniform(size: tuple[int, int], count: int = 1000, seed: int = 0) -> torch.Tensor:
    """Random boxes in an image of ``size`` (H, W), cut at its border.

    The centre, the root of the area's share (from 1/16 to 1) and the logarithm of the aspect ratio
    (width over height, relative to the image's, from 1/3 to 3) are uniform. Order: as drawn.
    Raises ValueError.
    """
    _expect_size(size)
    _expect_count(count)
    height, width = size
    rng = np.random.default_rng(seed)

    def drawn() -> Iterable[Row]:
        for _ in range(20):
            x, y = rng.uniform(0, width - 1, count), rng.uniform(0, height - 1, count)
            side, stretch = rng.uniform(1 / 16, 1, count), 3 ** rng.uniform(-0.5, 0.5, count)
            half = np.stack([width * side * stretch - 1, height * side / stretch - 1], 1) / 2
            centre = np.stack([x, y], 1)
            yield from _rows(_clipped(np.concatenate([centre - half, centre + half], 1), size))

    return _distinct(drawn(), count)


# Superpixels and their features.


def _lab(image: np.ndarray) -> np.ndarray:
    """CIE LAB [H, W, 3], its full range in 0..1."""
    from skimage.color import rgb2lab

    return (rgb2lab(image) + np.array([0, 128, 128])) / [100, 256, 256]


def _hsv(image: np.ndarray) -> np.ndarray:
    """HSV [H, W, 3] in 0..1."""
    from skimage.color import rgb2hsv

    return rgb2hsv(image)


def _superpixels(space: np.ndarray, scale: float) -> np.ndarray:
    """Labels [H, W] from 0, with the published sigma and least size for 500 x 375 pixels."""
    from skimage.segmentation import felzenszwalb

    share = space.shape[0] * space.shape[1] / (500 * 375)
    least = max(1, round(100 * share))
    return felzenszwalb(space, scale=scale, sigma=0.8 * math.sqrt(share), min_size=least)


def _regions(labels: np.ndarray, space: np.ndarray, with_texture: bool = False) -> Regions:
    """The features of labelled pixels, colors and textures taken from ``space`` in 0..1."""
    from scipy.ndimage import find_objects

    n = int(labels.max()) + 1
    box = [(x.start, y.start, x.stop - 1, y.stop - 1) for y, x in find_objects(labels + 1)]
    edges, border = _touching(labels, n)
    outside = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    perimeter = np.bincount(outside, minlength=n) + np.bincount(
        edges.ravel(), np.repeat(border, 2), minlength=n
    )
    channels = [(channel, 0.0, 1.0, BINS) for channel in np.moveaxis(space, 2, 0)]
    return Regions(
        np.array(box),
        np.bincount(labels.ravel(), minlength=n),
        perimeter,
        edges,
        border,
        _histogram(labels, n, channels),
        _histogram(labels, n, _responses(space)) if with_texture else np.empty((n, 0)),
    )


def _touching(labels: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of regions [m, 2] that share a side of a pixel, and how many sides [m]."""
    across = [(labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])]
    one, two = (np.concatenate([side.ravel() for side in sides]) for sides in zip(*across, strict=True))
    differ = one != two
    one, two = one[differ].astype(np.int64), two[differ]
    key, border = np.unique(np.minimum(one, two) * n + np.maximum(one, two), return_counts=True)
    return np.stack([key // n, key % n], 1), border


def _histogram(
    labels: np.ndarray, n: int, channels: Iterable[tuple[np.ndarray, float, float, int]]
) -> np.ndarray:
    """Histograms [n, bins of all channels] that sum to 1; channels are (values, low, high, bins)."""
    columns = []
    for values, low, high, bins in channels:
        bin = ((values - low) * (bins / (high - low))).astype(np.int64).clip(0, bins - 1)
        counted = np.bincount((labels * bins + bin).ravel(), minlength=n * bins)
        columns.append(counted.reshape(n, bins))
    histogram = np.concatenate(columns, 1).astype(float)
    return histogram / histogram.sum(1, keepdims=True)


def _responses(space: np.ndarray) -> Iterable[tuple[np.ndarray, float, float, int]]:
    """Gaussian derivatives (sigma 1) of each channel in each orientation, for :func:`_histogram`."""
    from scipy.ndimage import gaussian_filter

    for channel in np.moveaxis(space, 2, 0):
        down = gaussian_filter(channel, 1, order=(1, 0))
        right = gaussian_filter(channel, 1, order=(0, 1))
        largest = float(np.hypot(down, right).max()) or 1.0
        for angle in 2 * np.pi * np.arange(ORIENTATIONS) / ORIENTATIONS:
            yield np.cos(angle) * right + np.sin(angle) * down, 0.0, largest, RESPONSES


# Boxes.


def _clipped(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes rounded to pixels and cut at the image's border, at least a pixel each."""
    last = np.array([size[1] - 1, size[0] - 1] * 2)
    boxes = np.clip(np.rint(boxes), 0, last)
    boxes[:, 2:] = np.maximum(boxes[:, :2], boxes[:, 2:])
    return boxes


def _rows(boxes: np.ndarray) -> list[Row]:
    return [tuple(row) for row in boxes.tolist()]


def _distinct(rows: Iterable[Row], count: int) -> torch.Tensor:
    """The first ``count`` different rows, as a tensor [K, 4]."""
    fresh: dict[Row, None] = {}
    for row in rows:
        fresh[row] = None
        if len(fresh) == count:
            break
    return torch.tensor(list(fresh), dtype=torch.float32).reshape(-1, 4)


def _expect_count(count: int) -> None:
    if count < 1:
        raise ValueError(f"expected count to be at least 1, got {count}")


def _expect_size(size: tuple[int, int]) -> None:
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"expected size to be (height, width), at least 1 each, got {tuple(size)}")
