"""What methods find in the pairs of a benchmark, and how right it is.

What ``cortado evaluate``, the search for layers and a user's script share. A method is called with a
pair of :mod:`cortado.layers._data.keypoint_pairs`, and gives where the points of image 1 are in
image 2. The benchmark's own protocol measures that: PCK of key points, LT-ACC and IoU of outlines::

    pairs = open_pairs("pf-willow:DIR")
    methods = {"net": ByNet(Descriptions(Matcher("hpf_resnet50", "weights.npz")))}
    found = [each["net"] for each in evaluate(pairs, methods, (0.05, 0.1))]
    means([each.figures for each in found], [pair.category for pair in pairs]).mean
"""

from __future__ import annotations

import ctypes
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from cortado.layers._data.images import image_size, read_image
from cortado.layers._data.keypoint_pairs import ImagePair, KeypointPair, OutlinePair, digest
from cortado.layers._data.transform import limited_size
from cortado.layers._geometry.keypoints import pair_pck
from cortado.layers.metrics.label_transfer import filled, label_transfer

from .matching import Description, Matcher

Array = npt.NDArray[np.float64]
ROOM = 128 << 20  # ten images of 300 x 300 pixels by a ResNet-50 are 120 MiB


class Descriptions:
    """A matcher's descriptions of image files. Those used last are kept, up to ``room`` bytes; files of
    the same bytes have one.

    ``count`` and ``seconds`` say how many images were read and described, and how long that took.
    """

    def __init__(self, matcher: Matcher, room: int = ROOM) -> None:
        self.matcher, self.room = matcher, room
        self.count, self.seconds = 0, 0.0
        self._kept: OrderedDict[str, Description] = OrderedDict()

    def __call__(self, path: Path) -> Description:
        """Raises ValueError for a file that is no image."""
        key = digest(path)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        begin = time.perf_counter()
        made = self.matcher.describe(read_image(path, what=f'image "{path}"'))
        if self.matcher.net.device.type == "cuda":
            torch.cuda.synchronize(self.matcher.net.device)
        self.seconds += time.perf_counter() - begin
        self.count += 1
        self._kept[key] = made
        while sum(each.bytes for each in self._kept.values()) > self.room:
            self._kept.popitem(last=False)
        return made


class Answer(NamedTuple):
    """Where a method finds the points of image 1, float64 [K, 2] in pixels of image 2, NaN where it
    finds none; the seconds that it took once the images were described."""

    points: Array
    seconds: float


Method: TypeAlias = Callable[[ImagePair], Answer]


class ByNet:
    """A net's matches, or with ``nearest`` the nearest neighbours in what its confidence is made of.

    Raises :class:`SpecError` where the net has none.
    """

    def __init__(self, describe: Descriptions, nearest: bool = False) -> None:
        self.describe, self.nearest = describe, nearest
        if nearest:
            describe.matcher.compared(nearest)

    def __call__(self, pair: ImagePair) -> Answer:
        images = self.describe(pair.image1), self.describe(pair.image2)
        begin = time.perf_counter()
        matcher = self.describe.matcher
        points, _ = matcher.match(*images, pair.points1, self.nearest)
        if matcher.net.device.type == "cpu":
            give_back()
        return Answer(points, time.perf_counter() - begin)


def give_back() -> None:
    """Hand back to the system what glibc keeps of freed blobs; elsewhere, nothing happens.

    Between maps that are kept, those of every other size leave holes: with PF-WILLOW's pairs and a
    ResNet-50 a hundred MiB of them.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim(ctypes.c_size_t(0))


def identity(pair: ImagePair) -> Answer:
    """Each point at its own place, of image 1 scaled to the size of image 2."""
    begin = time.perf_counter()
    size1, size2 = (image_size(path, f'image "{path}"') for path in (pair.image1, pair.image2))
    points = pair.points1 * (np.array(size2[::-1]) / size1[::-1])
    return Answer(points, time.perf_counter() - begin)


class Found(NamedTuple):
    """What a method finds in a pair, and its figures [A], by the names of :func:`figure_names`.

    others: of points of image 1 that were matched besides, whose truth need not be known, a row each,
    (x1, y1, x2, y2).
    """

    pair: ImagePair
    points: Array
    figures: Array
    seconds: float
    others: Array


def evaluate(
    pairs: Iterable[ImagePair],
    methods: Mapping[str, Method],
    alphas: Sequence[float] = (),
    longer_side: int = 0,
    pixels: Sequence[float] = (),
    besides: Callable[[ImagePair], Array] | None = None,
) -> Iterator[dict[str, Found]]:
    """What each method finds, pair by pair. A point that is NaN counts as wrong.

    alphas: thresholds of PCK in units of a pair's T; pixels: in pixels of image 2. longer_side:
    outlines are filled in image 2 of at most so many pixels (0: as it is). besides: points [Q, 2] of
    image 1 to be matched in the same call as the pair's own. Raises what the methods raise, and
    ValueError for images that cannot be read.
    """
    for pair in pairs:
        more = besides(pair) if besides else np.zeros((0, 2))
        asked = replace(pair, points1=np.concatenate([pair.points1, more])) if len(more) else pair
        own, found = len(pair.points1), {}
        for name, method in methods.items():
            points, seconds = method(asked)
            right = figures(pair, points[:own], alphas, longer_side, pixels)
            found[name] = Found(pair, points[:own], right, seconds, np.c_[more, points[own:]])
        yield found


def figure_names(
    pair: ImagePair, alphas: Sequence[float] = (), pixels: Sequence[float] = ()
) -> tuple[str, ...]:
    """What the figures of a benchmark of such pairs are called."""
    if isinstance(pair, OutlinePair):
        return "LT-ACC", "IoU"
    return *(f"PCK@{limit:g}px" for limit in pixels), *(f"PCK@{alpha:g}" for alpha in alphas)


def figures(
    pair: ImagePair,
    points: Array,
    alphas: Sequence[float] = (),
    longer_side: int = 0,
    pixels: Sequence[float] = (),
) -> Array:
    """How right points [K, 2] are that were found in image 2, by the protocol of such pairs: PCK at
    each number of pixels and each alpha, or (LT-ACC, IoU) of outlines, filled in image 2 of at most
    ``longer_side`` pixels."""
    if isinstance(pair, KeypointPair):
        parts = ((1.0, pixels), (pair.length, alphas))
        return np.concatenate([pair_pck(points, pair.points2, *part) for part in parts])
    assert isinstance(pair, OutlinePair)
    size = image_size(pair.image2, f'image "{pair.image2}"')
    given = limited_size(*size, longer_side)
    masks = (filled(outline * (max(given) / max(size)), given) for outline in (points, pair.outline2))
    return np.array(label_transfer(*masks))


def even_points(height: int, width: int, count: int) -> Array:
    """About so many points [P, 2] of an image, on an even grid of whole pixels."""
    step = max((height * width / count) ** 0.5, 1.0)
    y, x = (np.unique(np.arange(step / 2, side - 0.5, step).astype(int)) for side in (height, width))
    return np.stack(np.meshgrid(x, y), 2).reshape(-1, 2).astype(np.float64)


def spread(count: int, most: int | None) -> list[int]:
    """At most so many of ``count`` places, evenly over all of them; with None every one."""
    most = count if most is None else min(most, count)
    return [i * count // most for i in range(most)]
