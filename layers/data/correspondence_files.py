"""Views of image pairs whose matches are known, from the files of data sets: to train UCN on.

``source`` names data sets and their folders, ``middlebury:DIR`` or ``list:pairs.csv``: every reader of
pairs with known matches is one (``_data/keypoint_pairs.py``). Their pairs are read one after the
other, round and round, with ``shuffle`` in another order each time; one pair is in memory at a time,
or ``cache`` of them, as they were read: a small data set then costs its views alone.

Tops: image1, image2 ``[N, C, S, S]`` (S = ``transform_param.crop_size``; channels, mean and scale as
``transform_param`` says) or, with crop_size 0, ``[1, C, h, w]``, each of its own size; pairs
``[N, P, 5]``, rows (x1, y1, x2, y2, s) in pixels of the views, s = 1 for a match, 0 for two points
that the data set tells not to match, and -1 for padding (all zero); and num_pairs ``[N, 1]``, the rows
before the padding. float32; no gradient.

**Views.** Both images are mirrored by one coin, scaled, turned and cut, in this order; the second is
scaled and turned by ``relative_scale`` and ``rotation`` more. The first crop is set so that a match
drawn at random lies anywhere in it; the second's middle is the median of where the first's matches lie,
moved by ``shift``. Both are then moved into their images if they fit, which may cost a turned crop its
match in a corner; where one does not fit, the image is in its middle, reflected at its borders. A crop
that is neither scaled nor turned is at whole pixels, and its pixels are the image's own. One that
shrinks holds means of what its pixels cover, not single readings. Nothing but the crop is changed
unless it is asked for: real pairs bring changes of their own.

**Points** move with the views exactly. ``num_points`` are drawn without replacement, all alike, from
those that lie between the centres of the outermost pixels of both views: P rows, or fewer and padding.

Sample n depends on the seed and on n alone, so that a run can be resumed or split; its views, its
points and the light of each image are drawn apart. Raises ValueError for a pair with a match outside of
an image, where the data set's truth is of pixels: another image, or another size, than it was made for.
"""

from __future__ import annotations

from bisect import bisect
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._data.batches import BatchLayer
from .._data.crops import View, crop, whole, within
from .._data.images import image_size, read_image
from .._data.keypoint_pairs import Array, KeypointPair, as_options, open_pairs
from .._data.transform import TransformParams, transform
from .._data.views import Draw, change_light, rotation
from .._engine import parallel
from .._engine.checks import Shape
from .._engine.params import param
from .._engine.registry import register

Size = tuple[int, int]
VIEWS, POINTS, LIGHT = 2, 3, 4  # what is drawn of a sample; LIGHT of image 1, LIGHT + 1 of image 2


@dataclass(frozen=True)
class Params:
    """``correspondence_files_param``, and the ``transform_param`` beside it.

    Ranges are uniform; a scale is drawn log-uniformly, a factor of light from exp(+-range).
    """

    source: tuple[str, ...] = param(doc="data sets and their folders, such as middlebury:DIR")
    split: str = param("", doc="of every source; empty: each one's own choice")
    option: tuple[str, ...] = param((), doc="NAME=VALUE, which the reader of every source is given")
    batch_size: int = param(1, low=1, doc="pairs a batch, N")
    num_points: int = param(1000, low=1, doc="rows of the pair table, P")
    shuffle: bool = param(True, doc="each time in another order")
    cache: int = param(0, low=0, doc="pairs kept in memory once they were read, the last ones used")
    view_rotation: float = param(0.0, low=0, high=180, unit="degrees", doc="of both views, +-")
    scale_min: float = param(1.0, low=0.05, unit="view pixels per image pixel", doc="of both views")
    scale_max: float = param(
        1.0, low=0.05, unit="view pixels per image pixel", doc="the largest random zoom of both views"
    )
    rotation: float = param(
        0.0, low=0, high=180, unit="degrees", doc="of the second view's content against the first's, +-"
    )
    relative_scale_min: float = param(1.0, low=0.05, doc="scale of the second view over the first's")
    relative_scale_max: float = param(
        1.0, low=0.05, doc="the largest random zoom of the one against the other"
    )
    shift: float = param(0.0, low=0, high=1, unit="view sides", doc="of the second crop, +-")
    contrast: float = param(0.0, low=0, doc="log of the factor about the mean, +-")
    brightness: float = param(0.0, low=0, unit="full ranges", doc="+-")
    gamma: float = param(0.0, low=0, doc="log of the exponent, +-")
    color: float = param(0.0, low=0, doc="log of each channel's gain, +-")
    noise: float = param(0.0, low=0, unit="full ranges", doc="largest standard deviation")
    transform_param: TransformParams = param(
        factory=TransformParams, doc="how images are made of what is read"
    )

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError("source: expected at least one data set")
        for name in ("scale", "relative_scale"):
            low, high = (getattr(self, f"{name}_{end}") for end in ("min", "max"))
            if low > high:
                raise ValueError(f"{name}_min, {low:g}, exceeds {name}_max, {high:g}")
        if not self.transform_param.crop_size:
            self._expect_entire()
        elif self.transform_param.crop_size < 2:
            raise ValueError("crop_size: expected at least 2 pixels, or 0 for images as they are")

    def _expect_entire(self) -> None:
        """Raises ValueError for what images as they are cannot be."""
        if self.batch_size != 1:
            raise ValueError(
                f"images as they are have sizes of their own: batch_size {self.batch_size} needs "
                "transform_param.crop_size"
            )
        ranges = self.view_rotation, self.rotation, self.shift
        scales = self.scale_min, self.scale_max, self.relative_scale_min, self.relative_scale_max
        if any(ranges) or any(scale != 1 for scale in scales):
            raise ValueError("rotations, scales and shift need transform_param.crop_size")

    @property
    def changes_light(self) -> bool:
        """Whether the views' light is other than the images'."""
        return any((self.contrast, self.brightness, self.gamma, self.color, self.noise))


class Opened(NamedTuple):
    """A pair as it was read: both images [3, H, W] in uint8, and the matches inside them."""

    images: tuple[Tensor, Tensor]
    matches: Matches

    @property
    def sizes(self) -> tuple[Size, Size]:
        return _size(self.images[0]), _size(self.images[1])


class Matches(NamedTuple):
    """Points of two images, float64 [K, 2] each: ``signs`` [K] is 1 where they match, else 0; None is
    1 everywhere."""

    points1: Array
    points2: Array
    signs: Array | None

    def those(self, rows: Any) -> Matches:
        """The matches of some rows, given by indices or a mask [K]."""
        signs = self.signs
        return Matches(self.points1[rows], self.points2[rows], None if signs is None else signs[rows])


def expected(pair: KeypointPair, sizes: tuple[Size, Size], dense: bool) -> Matches:
    """The matches of a pair that lie inside both images, of these sizes (H, W).

    Raises ValueError if ``dense``, that is the data set's truth is of pixels, and one lies outside: by
    more than half a pixel, which is where an image ends.
    """
    matches = Matches(pair.points1, pair.points2, pair.signs)
    inside = np.ones(len(pair.points1), bool)
    for path, points, size in zip((pair.image1, pair.image2), matches[:2], sizes, strict=True):
        if dense and not (kept := within(points, size, margin=0.5)).all():
            x, y = points[~kept][0]
            found = f"{size[1]} x {size[0]} pixels, and a match of {pair.name} at ({x:g}, {y:g})"
            raise ValueError(f"{path}: expected the image that the truth is of, found {found}")
        inside &= within(points, size)
    return matches if inside.all() else matches.those(inside)


def draw_steps(params: Params, draw: Draw) -> tuple[Array, Array]:
    """Random steps [2, 2] of both views: from a step in the view to that in its image."""
    mirror = -1.0 if params.transform_param.mirror and draw.rng.random() < 0.5 else 1.0
    angle, more = draw.around(params.view_rotation), draw.around(params.rotation)
    scale = draw.log_uniform(params.scale_min, params.scale_max)
    relative = draw.log_uniform(params.relative_scale_min, params.relative_scale_max)
    first, second = (
        np.diag([mirror, 1.0]) @ rotation(-turned)[:2, :2] / size
        for turned, size in ((angle, scale), (angle + more, scale * relative))
    )
    return first, second


def draw_views(
    params: Params, matches: Matches, sizes: tuple[Size, Size], draw: Draw
) -> tuple[View, View]:
    """Random views of two images of sizes (H, W): crops that share matches, or the images as they are.

    Where nothing matches, crops are where points that do not match are, or in the images' middles.
    """
    steps1, steps2 = draw_steps(params, draw)
    side = params.transform_param.crop_size
    if not side:
        return whole(sizes[0], steps1), whole(sizes[1], steps2)
    if matches.signs is not None and matches.signs.any():
        matches = matches.those(matches.signs == 1)
    points1, points2, _ = matches
    if not len(points1):
        points1, points2 = ((np.array([size[::-1]]) - 1) / 2 for size in sizes)
    chosen = draw.rng.integers(len(points1))
    beside = draw.rng.uniform(-0.5, 0.5, 2) * (side - 1)
    first = crop(sizes[0], steps1, points1[chosen] + steps1 @ beside, side)
    seen = first.shows(points1)
    seen[chosen] = True  # which a turned crop may have lost when it was moved into the image
    shift = draw.rng.uniform(-params.shift, params.shift, 2) * side
    return first, crop(sizes[1], steps2, np.median(points2[seen], 0) + steps2 @ shift, side)


def draw_table(
    matches: Matches, views: tuple[View, View], num_points: int, draw: Draw
) -> tuple[Tensor, int]:
    """A pair table [P, 5] of matches that both views show, drawn without replacement, and how many."""
    rows = np.flatnonzero(views[0].shows(matches.points1))
    rows = rows[views[1].shows(matches.points2[rows])]
    rows = draw.rng.choice(rows, min(num_points, len(rows)), replace=False)
    points1, points2, signs = matches.those(rows)
    table = np.zeros((num_points, 5), np.float32)
    table[:, 4] = -1
    given = table[: len(rows)]
    given[:, :2], given[:, 2:4] = views[0].points(points1), views[1].points(points2)
    given[:, 4] = 1 if signs is None else signs
    return torch.from_numpy(table), len(rows)


@register("CorrespondenceFiles", bottoms=0, tops=4)
class CorrespondenceFiles(BatchLayer):
    """Random views of the pairs of ``source``, with their matches; see the module."""

    Params = Params

    def __init__(
        self,
        params: Any,
        bottom_shapes: tuple[Shape, ...] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(params, bottom_shapes, generator)
        options = as_options(params.option)
        self.sources = [open_pairs(source, params.split, **options) for source in params.source]
        self.starts = [0, *accumulate(map(len, self.sources))]  # of each source in all, and the end
        self.kept: dict[int, Opened] = {}  # by row, the last one used at the end
        if not self.starts[-1]:
            raise ValueError("the sources hold no pairs")

    def infer(self, params: Any) -> tuple[Shape, ...]:
        """The tops' shapes, which without a crop the first pair decides; raises ValueError if it cannot
        be read."""
        n, side = params.batch_size, params.transform_param.crop_size
        sizes = [(side, side)] * 2
        if not side:
            pair, _ = self.pair(self.row(0))
            sizes = [image_size(path, f'image "{path}"') for path in (pair.image1, pair.image2)]
        image1, image2 = ((n, params.transform_param.channels, *size) for size in sizes)
        return image1, image2, (n, params.num_points, 5), (n, 1)

    def forward(self) -> tuple[Tensor, ...]:
        numbers, self.position = parallel.share(self.position, self.params.batch_size)
        first, second, pairs, count = zip(*map(self.sample, numbers), strict=True)
        num_pairs = torch.tensor(count, dtype=torch.float32)[:, None]
        return torch.stack(first), torch.stack(second), torch.stack(pairs), num_pairs

    def sample(self, number: int) -> tuple[Tensor, Tensor, Tensor, int]:
        """Images [C, H, W], pair table and number of pairs of one sample."""
        images, matches = opened = self.opened(self.row(number))
        views = draw_views(self.params, matches, opened.sizes, self.draws(VIEWS, number))
        table, count = draw_table(matches, views, self.params.num_points, self.draws(POINTS, number))
        first = self.shown(images[0], views[0], self.draws(LIGHT, number))
        second = self.shown(images[1], views[1], self.draws(LIGHT + 1, number))
        return first, second, table, count

    def draws(self, what: int, number: int) -> Draw:
        """The random numbers of something of a sample."""
        return Draw(self.seed, what, number)

    def shown(self, image: Tensor, view: View, draw: Draw) -> Tensor:
        """What a net is given of an image [3, h, w] in 0..255."""
        shown = view.of(image)
        if self.params.changes_light:
            shown = change_light(shown, self.params, draw)
        return transform(shown, self.params.transform_param)

    def row(self, number: int) -> int:
        """Which pair of all is a sample's."""
        count = self.starts[-1]
        return self.shuffled(number, count) if self.params.shuffle else number % count

    def opened(self, row: int) -> Opened:
        """A pair of all, read or kept."""
        opened = self.kept.pop(row, None)
        if opened is None:
            pair, dense = self.pair(row)
            images = _read(pair.image1), _read(pair.image2)
            opened = Opened(images, expected(pair, (_size(images[0]), _size(images[1])), dense))
        self.kept[row] = opened
        while len(self.kept) > self.params.cache:
            del self.kept[next(iter(self.kept))]
        return opened

    def pair(self, row: int) -> tuple[KeypointPair, bool]:
        """A pair of all, and whether its data set's truth is of pixels."""
        which = bisect(self.starts, row) - 1
        pair = self.sources[which][row - self.starts[which]]
        if not isinstance(pair, KeypointPair):
            name = self.params.source[which]
            raise ValueError(f'source "{name}": expected pairs with known matches, found outlines')
        return pair, self.sources[which].pixels


def _read(path: Path) -> Tensor:
    """An RGB image [3, H, W] in uint8."""
    return torch.from_numpy(read_image(path, True, f'image "{path}"').transpose(2, 0, 1))


def _size(image: Tensor) -> Size:
    return image.shape[1], image.shape[2]
