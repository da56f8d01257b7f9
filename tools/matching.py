"""Matches between two photographs: what ``cortado.match`` gives and ``cortado match`` writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, cast, overload

import numpy as np
import numpy.typing as npt

from . import dense_descriptors, exports

if TYPE_CHECKING:
    import torch
    from cortado.nets.matching import Matcher
    from cortado.nets.neighbours import Described

Array: TypeAlias = npt.NDArray[np.float64]
Image: TypeAlias = str | Path | npt.NDArray[Any]
"""A file, or an array [H, W] or [H, W, 3], RGB, uint8 or floats in 0..1."""

METHODS = dense_descriptors.DESCRIPTORS
STEP = 4.0  # pixels between the candidates of descriptors
APART = 16.0  # pixels from the match to the runner-up of the ratio test: as UCN's hard negatives are


@dataclass(frozen=True, eq=False)
class Matches(Sequence[Array]):
    """Matches between two images, in the order of the points of the first.

    rows: float64 [K, 5], (x1, y1, x2, y2, score). Points are pixels of the images as they were given,
    x right, y down, 0-based, pixel centres at integers: OpenCV's convention. A score is the higher the
    better: ``1 - d^2 / 4`` of features at the distance d, which is (1 + cosine) / 2 for those of unit
    length; or a net's confidence.

    names: what the images are called, their paths or "image1" and "image2"; sizes: their (height,
    width); measure: "distance" or "confidence"; images: the images as they were given.

    ``len``, index, iteration, and ``np.asarray`` are those of the rows; a slice is :class:`Matches`.
    """

    rows: Array
    names: tuple[str, str]
    sizes: tuple[tuple[int, int], tuple[int, int]]
    measure: str = "distance"
    images: tuple[Image, Image] | None = field(default=None, repr=False)

    @property
    def points1(self) -> Array:
        """Points of image 1, [K, 2]."""
        return self.rows[:, :2]

    @property
    def points2(self) -> Array:
        """Points of image 2, [K, 2]."""
        return self.rows[:, 2:4]

    @property
    def score(self) -> Array:
        """How sure each match is, [K]."""
        return self.rows[:, 4]

    @property
    def measured(self) -> Array:
        """What each match was chosen by, [K]: the distance of the features, which is the better the
        lower, or the confidence."""
        return 2 * np.sqrt(1 - self.score) if self.measure == "distance" else self.score

    @property
    def known(self) -> Matches:
        """Those that were found."""
        return self._some(np.flatnonzero(~np.isnan(self.rows).any(axis=1)))

    def best(self, number: int) -> Matches:
        """At most so many of the highest score, in the same order; of equal ones the first."""
        found = self.known
        return found._some(np.sort(np.argsort(-found.score, kind="stable")[:number]))

    def opencv(self) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]:
        """Key points of image 1, those of image 2 and the matches, as ``cv2.KeyPoint`` and
        ``cv2.DMatch``, for ``cv2.drawMatches`` and the like.

        Points that several matches share are one key point. A DMatch's distance is the features', or
        the negative confidence. Raises ImportError without OpenCV.
        """
        return exports.opencv(self)

    def save(self, path: str | Path, **options: Any) -> None:
        """Write the matches to a file of the kind that its suffix says: see
        :func:`cortado.tools.exports.write`."""
        exports.write(path, self, **options)

    def _some(self, rows: npt.NDArray[Any] | slice) -> Matches:
        return replace(self, rows=self.rows[rows])

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Array: ...

    @overload
    def __getitem__(self, index: slice) -> Matches: ...

    def __getitem__(self, index: int | slice) -> Array | Matches:
        return self._some(index) if isinstance(index, slice) else self.rows[index]

    def __iter__(self) -> Iterator[Array]:
        return iter(self.rows)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.array(self.rows, dtype) if copy else np.asarray(self.rows, dtype)


def match(
    image_a: Image,
    image_b: Image,
    *,
    net: str | Path | Matcher | None = None,
    weights: str | Path | None = None,
    feature: str | None = None,
    method: str | None = None,
    points: npt.ArrayLike | str | None = None,
    number: int | None = None,
    mutual: bool = False,
    ratio: float | None = None,
    apart: float = APART,
    step: float | None = None,
    device: str | torch.device = "cpu",
    names: tuple[str, str] | None = None,
    keep_lost: bool = False,
) -> Matches:
    """The matches of points of image A in image B.

    Images are files, or arrays [H, W] or [H, W, 3], RGB, uint8 or floats in 0..1. What compares them:

    net, weights: by default the trained net that comes with cortado. Or a spec with a ``match_param``
    (its file, or its name if it comes with cortado) and a file of weights, which may be left out where
    they come with cortado, too (:func:`cortado.nets.models.names`). Or a
    :class:`~cortado.nets.matching.Matcher`, such as ``cortado.pretrained()`` gives, which is worth
    keeping for several pairs. feature: a map of the net that is matched by instead of its
    ``match_param``'s.
    method: in place of a net, descriptors: "daisy", "sift" (upright), "sift-oriented", or OpenCV's
    learned ones, "beblid" and "beblid-oriented".

    What is matched:

    points: [P, 2], (x, y) in pixels of A, or "fast" for FAST corners of A; by default a grid. Points
    whose features are all 0, as descriptors are in a flat patch, match nothing.
    step: the candidates in B, and the grid in A, are every so many pixels; by default a net's own
    cells, or 4. keep_lost: a point without a match, as nets with a confidence have, is a row of nan.

    Which matches are kept:

    number: at most so many, those of the highest score.
    mutual: those whose match in B has its own best match in A at most one step from the point; a point
    without a match is none of them, with ``keep_lost`` neither.
    ratio: those whose distance is less than ``ratio`` times that of the nearest candidate more than
    ``apart`` pixels from the match (Lowe's test for dense candidates); 0.8 to 0.95 are usual.

    device: where a net runs. names: what the images are called in exports; by default their paths, or
    "image1" and "image2".

    A net is given larger images at the ``longer_side`` of its ``match_param``, 1280 pixels for the nets
    that come with cortado; all that is asked and found is in pixels of the images as they are.

    Raises ValueError for what cannot be matched, and :class:`SpecError` for a net that cannot.
    """
    _expect(number, ratio, apart, step)
    finder = open_finder(net, weights, feature, method, step, device)
    given = _opened(image_a, "image_a"), _opened(image_b, "image_b")
    asked = None if points is None else _asked(points, given[0])
    called = names or (_name(image_a, "image1"), _name(image_b, "image2"))
    if finder.measure == "confidence":
        if ratio is not None:
            raise ValueError("a ratio test compares distances: this net has a confidence")
        rows = _by_confidence(cast("Matcher", finder), *given, asked, mutual, called)
    else:
        rows = by_features(finder, *given, asked, mutual, ratio, apart, called)
    sizes = ((given[0].shape[0], given[0].shape[1]), (given[1].shape[0], given[1].shape[1]))
    made = Matches(rows, called, sizes, finder.measure, (image_a, image_b))
    made = made if keep_lost else made.known
    return made if number is None else made.best(number)


# What finds them


class Finder(Protocol):
    """What describes images, and gives features at their points: a Matcher, or :class:`Descriptors`."""

    @property
    def measure(self) -> str: ...

    def describe(self, image: npt.NDArray[Any], /) -> Any: ...

    def at(self, image: Any, points: Array, side: int = 0) -> torch.Tensor: ...

    def candidates(self, image: Any, side: int = 1) -> Described: ...

    def spacing(self, image: Any) -> float: ...


@dataclass(frozen=True)
class Descriptors:
    """Descriptors at points of an image, as a :class:`Matcher` gives a net's features; the candidates
    are every ``step`` pixels."""

    compute: dense_descriptors.Describe
    step: float = STEP
    measure: ClassVar[str] = "distance"

    def describe(self, image: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The image as the descriptors are given it, RGB uint8."""
        from cortado.layers._data.transform import as_rgb

        return as_rgb(image)

    def at(self, image: npt.NDArray[Any], points: Array, side: int = 0) -> torch.Tensor:
        """The descriptors [P, C] at points [P, 2]."""
        import torch

        return torch.from_numpy(np.asarray(self.compute(image, points), np.float32))

    def candidates(self, image: npt.NDArray[Any], side: int = 1) -> Described:
        """Every ``step`` pixels, and the descriptors there."""
        import torch
        from cortado.nets.neighbours import Described

        x, y = np.meshgrid(*(np.arange(0, length, self.step) for length in image.shape[1::-1]))
        points = np.stack([x.ravel(), y.ravel()], 1).astype(np.float64)
        return Described(torch.from_numpy(points), self.at(image, points))

    def spacing(self, image: npt.NDArray[Any]) -> float:
        """Pixels between candidates."""
        return self.step

    def nearest(self, first: npt.NDArray[Any], second: npt.NDArray[Any], points: Array) -> Array:
        """The match [P, 2] in image 2 of each point [P, 2] of image 1, NaN for one in a flat patch."""
        return by_features(self, first, second, points, False, None, APART)[:, 2:4]


def open_finder(
    net: str | Path | Matcher | None = None,
    weights: str | Path | None = None,
    feature: str | None = None,
    method: str | None = None,
    step: float | None = None,
    device: str | torch.device = "cpu",
) -> Finder:
    """What :func:`match` matches by; raises ValueError for what does not go together."""
    if net is None and (weights, feature) != (None, None):
        raise ValueError("weights and a feature go with a net")
    if method is not None:
        if net is not None:
            raise ValueError("give a net or a method, not both")
        if method not in METHODS:
            raise ValueError(f'no method "{method}": expected one of {", ".join(METHODS)}')
        return Descriptors(METHODS[method], STEP if step is None else step)
    from cortado.nets import models
    from cortado.nets.matching import Matcher

    if net is None:
        return models.pretrained(device=device, step=step or 0)
    if isinstance(net, Matcher):
        if (weights, feature, step) != (None, None, None):
            raise ValueError("a Matcher has its weights, feature and step: give them to it")
        return net
    return open_net(net, weights, device=device, feature=feature, step=step or 0)


def open_net(
    spec: str | Path,
    weights: str | Path | None = None,
    layers: Sequence[int] | None = None,
    **options: Any,
) -> Matcher:
    """A net by its file or name, with the weights that come with it unless others are given.

    layers: blocks of hyperpixels, in place of the spec's; options: Matcher's. Raises ValueError where
    there are no weights, and what Matcher raises.
    """
    from cortado.nets import hyperpixels, models, specs
    from cortado.nets.matching import Matcher

    message = specs.load(spec)
    if layers is not None:
        message = hyperpixels.choose(message, layers)
    weights = models.weights_of(spec) if weights is None else weights
    matcher = Matcher(message, weights, **options)
    if matcher.net.params and weights is None:
        raise ValueError("name the net's weights: a new net's are random")
    return matcher


# Finding them


def by_features(
    finder: Finder,
    first: npt.NDArray[Any],
    second: npt.NDArray[Any],
    asked: Array | None,
    mutual: bool,
    ratio: float | None,
    apart: float,
    names: tuple[str, str] = ("image_a", "image_b"),
) -> Array:
    """Rows [P, 5] of the nearest neighbours that pass the tests; nan where a feature is no number."""
    import torch
    from cortado.nets import neighbours

    one, other = _described(finder, first, names[0]), _described(finder, second, names[1])
    candidates = _candidates(finder, other, 1, names[1])
    if asked is None:
        own = _candidates(finder, one, 0, names[0])
        inside = (own.points <= torch.tensor(first.shape[1::-1]).to(own.points) - 1).all(1)
        points, query = own.points[inside], own.features[inside]
    else:
        points, query = torch.from_numpy(asked).to(candidates.points), told(finder.at(one, asked))
    if mutual and asked is None:
        found, kept = neighbours.mutual(own, candidates.features, finder.spacing(one))
        row, distance, kept = found.row[inside], found.distance[inside], kept[inside]
    else:
        row, distance = neighbours.nearest(query, candidates.features)
        kept = torch.ones_like(row, dtype=torch.bool)
        if mutual:
            own = _candidates(finder, one, 0, names[0])
            kept = neighbours.returns(points, row, candidates.features, own, finder.spacing(one))
    if mutual:
        kept &= ~distance.isnan()
    if ratio is not None:
        kept &= distance < ratio * neighbours.runner_up(query, candidates, row, apart)
    score = 1 - distance.double() ** 2 / 4
    matched = candidates.points[row]
    matched[score.isnan()] = torch.nan
    rows = torch.cat([points, matched, score[:, None]], 1)
    return cast(Array, rows[kept].cpu().numpy())


def _described(finder: Finder, image: npt.NDArray[Any], name: str) -> Any:
    """What a finder makes of an image; raises ValueError for one that its net cannot take."""
    from cortado.nets.net import LayerError

    try:
        return finder.describe(image)
    except LayerError as error:
        height, width = image.shape[:2]
        why = f"{name}: the net takes no image of {width} x {height} pixels ({error.__cause__})"
        raise ValueError(f"{why}: enlarge it") from error


def _candidates(finder: Finder, image: Any, side: int, name: str) -> Described:
    """The candidates of an image, features that tell nothing NaN; raises ValueError if it has none."""
    from cortado.nets.neighbours import Described

    points, features = finder.candidates(image, side)
    if not len(points):
        raise ValueError(f"{name}: no candidate lies in it: enlarge it, or make the step smaller")
    return Described(points, told(features))


def told(features: torch.Tensor) -> torch.Tensor:
    """Features [P, C], NaN where they are all 0 and tell nothing: as near to each other as can be, and
    at one distance from every other of unit length."""
    return features.masked_fill(~features.any(1, keepdim=True), float("nan"))


def _by_confidence(
    matcher: Matcher,
    first: npt.NDArray[Any],
    second: npt.NDArray[Any],
    asked: Array | None,
    mutual: bool,
    names: tuple[str, str],
) -> Array:
    """Rows [P, 5] of the matches by a net's confidence, which is nan for points that no cell holds."""
    one, other = _described(matcher, first, names[0]), _described(matcher, second, names[1])
    for image, described, name in ((first, one, names[0]), (second, other, names[1])):
        if not len(matcher.grid(image)):
            height, width = described.size
            given = f"given to the net as {width} x {height} pixels"
            raise ValueError(f"{name}: {given}, of which its margin leaves no cell: enlarge it")
    points = matcher.grid(first) if asked is None else asked
    found, confidence = matcher.match(one, other, points)
    rows = np.column_stack([points, found, confidence])
    if mutual:
        rows = rows[~np.isnan(rows).any(1)]
        back, _ = matcher.match(other, one, rows[:, 2:4])
        rows = rows[np.linalg.norm(back - rows[:, :2], axis=1) <= matcher.spacing(one)]
    return rows


def _opened(image: Image, name: str) -> npt.NDArray[np.uint8]:
    """An image as RGB uint8 [H, W, 3]; raises ValueError for what is none."""
    from cortado.layers._data.images import read_image
    from cortado.layers._data.transform import as_rgb

    if isinstance(image, (str, Path)):
        return read_image(image)
    array = np.asarray(image)
    if array.dtype.kind == "f" and not ((array >= 0) & (array <= 1)).all():
        raise ValueError(f"{name}: expected floats in 0..1, or uint8")
    if not array.size:
        raise ValueError(f"{name}: expected an image, got {list(array.shape)}")
    try:
        return as_rgb(array)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _name(image: Image, name: str) -> str:
    return str(image) if isinstance(image, (str, Path)) else name


def _asked(points: npt.ArrayLike | str, image: npt.NDArray[np.uint8]) -> Array:
    """The points to be matched, float64 [P, 2]; raises ValueError for one that is not in the image."""
    from cortado.layers._data.measured_pairs import FAST, fast

    if isinstance(points, str):
        if points != FAST:
            raise ValueError(f'points: expected [P, 2] of them, or "{FAST}", got "{points}"')
        return fast(image)
    asked = np.array(points, np.float64)
    if asked.ndim != 2 or asked.shape[1] != 2:
        raise ValueError(f"points: expected [P, 2] of them, got {list(asked.shape)}")
    width, height = image.shape[1::-1]
    outside = ~((asked >= 0) & (asked <= [width - 1, height - 1])).all(1)
    if outside.any():
        row = int(outside.argmax())
        x, y = asked[row]
        raise ValueError(f"points[{row}]: ({x:g}, {y:g}) is not in the {width} x {height} image")
    return asked


def _expect(number: int | None, ratio: float | None, apart: float, step: float | None) -> None:
    if number is not None and number < 1:
        raise ValueError(f"number: expected at least 1, got {number}")
    if ratio is not None and not 0 < ratio <= 1:
        raise ValueError(f"ratio: expected a number above 0 and at most 1, got {ratio}")
    if not 0 <= apart < np.inf:
        raise ValueError(f"apart: expected pixels, got {apart}")
    if step is not None and not 0 < step < np.inf:
        raise ValueError(f"step: expected pixels above 0, got {step}")
