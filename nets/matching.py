"""Matching two images with a net: what ``cortado match``, ``evaluate`` and a user's script share.

The spec says everything: ``transform_param`` of its data layer how an image becomes a blob, and
``match_param`` which blobs take the images, which give the features or the confidence of matches, and
which image point a cell stands for. Or any other map of the net is read for features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from cortado.layers import extract_feature, hyperpixel_flow, keypoint_transfer
from cortado.layers._data.transform import TransformParams, blob, limited, limited_size
from cortado.layers._geometry.cells import CellParams
from cortado.prototxt_like.bind import bind
from cortado.prototxt_like.message import Message
from cortado.prototxt_like.source import SpecError

from . import neighbours
from .branches import Branches, Values
from .feature_maps import match_params
from .graph import MatchParams
from .neighbours import Described, unit
from .net import Net
from .specs import load

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Description:
    """What a net makes of an image on its own: the image's size (height, width) as the net is given it,
    in its pixels ``ratio`` to one of the image's own, and the values of blobs. Pixel x of the image is
    at ``ratio * x + shift``."""

    size: tuple[int, int]
    ratio: float
    values: Values
    shift: float = 0.0

    def scaled(self, points: npt.ArrayLike) -> torch.Tensor:
        """Points of the image, in the pixels that the net is given."""
        return torch.as_tensor(np.asarray(points, np.float64) * self.ratio + self.shift)

    def unscaled(self, points: torch.Tensor) -> torch.Tensor:
        """The other way."""
        return (points - self.shift) / self.ratio

    @property
    def bytes(self) -> int:
        """Of its blobs, one that two branches share counted once."""
        blobs = {blob.data_ptr(): blob for blob in self.values.values()}
        return sum(blob.nbytes for blob in blobs.values())


class Matcher:
    """The best matches of points by a net: nearest neighbours in the space of its features, or those of
    the highest confidence.

    spec: a spec file, its name if it comes with cortado, or its message, with ``match_param``, whose
    stage ``deploy`` takes the images from Input layers. weights: a file that
    :func:`cortado.nets.weights.load` reads, or None; it fills the layers that matching needs.
    seed: of the fillers. device: where the net runs. Images are arrays [H, W] or [H, W, 3], RGB,
    uint8 or floats in 0..1; points are (x, y) in their pixels.

    feature: a map of the net [N, C, H, W] that is matched by instead, at unit length: its name in the
    first of twin branches, or in a net of one input, which then needs no ``match_param``. step: the
    candidates are every so many pixels of image 2, from 0 on, with features interpolated between cells,
    as far as the cells reach; 0: the cells themselves. A confidence has no other candidates.

    Raises :class:`SpecError` where the spec lacks something.
    """

    def __init__(
        self,
        spec: str | Path | Message,
        weights: str | Path | None = None,
        seed: int | None = None,
        device: str | torch.device = "cpu",
        feature: str | None = None,
        step: float = 0,
    ) -> None:
        if not 0 <= step < math.inf:
            raise ValueError(f"step: expected pixels, or 0 for the cells of the map, got {step}")
        message = spec if isinstance(spec, Message) else load(spec)
        self.transform = transform_params(message)
        self.net = Net(message, phase="TEST", stages=("deploy",), seed=seed, weights=weights)
        self.normalized = feature is not None
        self.params = self._match_params() if feature is None else match_params(self.net, feature)
        self.step = 0.0 if self.params.confidence else step
        if set(self.net.inputs) != set(self.params.image):
            text = (
                f"matching gives the net {', '.join(self.params.image)}; in the stage deploy its inputs"
            )
            raise SpecError(f"{text} are {', '.join(self.net.inputs) or 'none'}", message.span)
        for name in self._wanted():
            if name not in self.net.blob_shapes:
                text = f'match_param: "{name}" is no blob of the net in the stage deploy'
                raise SpecError(text, message.span)
        self.net.to(device)
        self.branches = Branches(self.net, self.params.image, self._wanted())
        self._expect_weights()
        self.cells = CellParams(
            self.params.downsampling_factor, self.params.receptive_field, self.params.margin
        )

    def _match_params(self) -> MatchParams:
        if self.net.match is None:
            raise SpecError(
                "matching needs a match_param, which names the blobs of the images and the features",
                self.net.graph.message.span,
                "{image: [image1, image2], feature: [feature1, feature2], downsampling_factor: 4}",
            )
        return self.net.match

    def _expect_weights(self) -> None:
        """Raises :class:`SpecError` where a layer that matching needs was not filled."""
        report = self.net.report
        if report is None:
            return
        parts = (*self.branches.sides, self.branches.meeting)
        needed = {wired.step.name for part in parts for wired in part}
        missing = tuple(name for name in report.missing if name in needed)
        if missing:
            said = replace(report, missing=missing)
            raise SpecError(f"the weights do not fill the net: {said}", self.net.graph.message.span)

    def _wanted(self) -> tuple[str, ...]:
        return tuple(
            filter(None, (*self.params.feature, self.params.confidence, self.params.similarity))
        )

    @property
    def measure(self) -> str:
        """What a match comes with: a "distance" in feature space, or a "confidence"."""
        return "confidence" if self.params.confidence else "distance"

    def describe(self, image: np.ndarray) -> Description:
        """What matching needs of an image of any size, to be kept for any number of pairs."""
        given, ratio = self.given(image)
        size = given.shape[2], given.shape[3]
        return Description(size, ratio, self.branches.describe(given), self._shift(ratio))

    def given(self, image: np.ndarray) -> tuple[torch.Tensor, float]:
        """An image's blob [1, C, H, W] as the net is given it, and its pixels to one of the image's."""
        smooth = not self.params.confidence
        made, ratio = limited(blob(image, self.transform)[0], self.params.longer_side, smooth)
        return made[None].to(self.net.device), ratio

    def _shift(self, ratio: float) -> float:
        """Of pixel 0: centres lie half a pixel from the corners, which hyperpixels do not regard."""
        return 0.0 if self.params.confidence else (ratio - 1) / 2

    def match(
        self,
        image1: np.ndarray | Description,
        image2: np.ndarray | Description,
        points: np.ndarray,
        nearest: bool = False,
    ) -> tuple[Array, Array]:
        """The match [P, 2] of each point [P, 2] of image 1 in image 2, and its :attr:`measure` [P].

        ``nearest`` asks for nearest neighbours of a net that has a confidence, too. NaN for points that
        no cell of a confidence holds.
        """
        one, other = (x if isinstance(x, Description) else self.describe(x) for x in (image1, image2))
        match = self._by_confidence if self.params.confidence else self._by_features
        found, measure = match(one, other, one.scaled(points), nearest)
        return other.unscaled(found.double().cpu()).numpy(), measure.double().cpu().numpy()

    def _by_features(
        self, one: Description, other: Description, points: torch.Tensor, nearest: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Those whose candidate's feature is the nearest."""
        candidates = self._candidates(other, 1)
        index, distance = neighbours.nearest(self._at(one, points, 0), candidates.features)
        return candidates.points[index], distance

    def at(self, image: Description, points: np.ndarray, side: int = 0) -> torch.Tensor:
        """The features [P, C] at points [P, 2] of an image, interpolated between cells.

        side: 0 for the first image's branch, 1 for the second's."""
        return self._at(image, image.scaled(points), side)

    @torch.no_grad()
    def _at(self, image: Description, points: torch.Tensor, side: int) -> torch.Tensor:
        """The same, of points in the pixels that the net is given."""
        feature = self._map(image, side)
        table = torch.zeros(1, len(points), 5)
        table[0, :, :2] = points
        found = extract_feature.extract_feature(
            feature,
            table.to(feature.device),
            downsampling_factor=self.params.downsampling_factor,
            coordinate_offset=self.params.coordinate_offset,
        )[0].T
        return unit(found) if self.normalized else found

    def candidates(self, image: Description, side: int = 1) -> Described:
        """The points of an image that may be matched, and their features; of the second one's branch
        with ``side`` 1."""
        found = self._candidates(image, side)
        return Described(image.unscaled(found.points), found.features)

    @torch.no_grad()
    def _candidates(self, image: Description, side: int) -> Described:
        """The same, points in the pixels that the net is given."""
        feature = self._map(image, side)
        factor, offset = self.params.downsampling_factor, self.params.coordinate_offset
        axes = [offset + factor * torch.arange(n, dtype=torch.float64) for n in feature.shape[2:]]
        if self.step:
            jump = self.step * image.ratio
            pixels = (image.scaled(self.step * np.arange(math.ceil(n / jump))) for n in image.size)
            axes = [x[(x >= axis[0]) & (x <= axis[-1])] for x, axis in zip(pixels, axes, strict=True)]
        y, x = torch.meshgrid(*axes, indexing="ij")
        points = torch.stack([x.flatten(), y.flatten()], 1)
        if self.step:
            found = self._at(image, points, side)
        else:
            found = feature[0].flatten(1).T
            found = unit(found) if self.normalized else found
        return Described(points.to(found.device), found)

    def spacing(self, image: Description) -> float:
        """How many pixels of an image lie between its candidates, or between cells."""
        return self.step or self.params.downsampling_factor / image.ratio

    def _map(self, image: Description, side: int) -> torch.Tensor:
        """The map of features [1, C, H, W]."""
        return image.values[self.branches.wanted[self.params.feature[side]]]

    def _by_confidence(
        self, one: Description, other: Description, points: torch.Tensor, nearest: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the cells around them go."""
        confidence = self._confidence(one, other, nearest)
        moved, score = keypoint_transfer.keypoint_transfer(
            confidence, points[None].to(confidence.device), one.size, other.size, **vars(self.cells)
        )
        return moved[0], score[0]

    def _confidence(self, one: Description, other: Description, nearest: bool) -> torch.Tensor:
        return self.branches.compare(one.values, other.values, self.compared(nearest))

    def compared(self, nearest: bool = False) -> str:
        """The blob that says how well cells match, or nearest neighbours are; raises :class:`SpecError`
        where the net has none."""
        name = self.params.similarity if nearest else self.params.confidence
        if not name:
            what, field = (
                ("nearest neighbours need", "similarity") if nearest else ("a flow needs", "confidence")
            )
            text = f'{what} the name of a "{field}" in match_param'
            raise SpecError(text, self.net.graph.message.span)
        return name

    def flow(self, image1: np.ndarray | Description, image2: np.ndarray | Description) -> Array:
        """Where each pixel of image 1 goes, [2, H, W] in x and y, of a net that has a confidence.

        Both images are of the size that the net is given them in. NaN where there is none.
        """
        one, other = (x if isinstance(x, Description) else self.describe(x) for x in (image1, image2))
        confidence = self._confidence(one, other, nearest=False)
        image = confidence.new_empty(1).expand(1, 1, *one.size)
        flow = hyperpixel_flow.hyperpixel_flow(confidence, image, other.size, **vars(self.cells))
        return cast(Array, flow[0].double().cpu().numpy())

    def grid(self, image: np.ndarray) -> np.ndarray:
        """The image points [P, 2] of a map's cells that lie inside an image, and take part."""
        size = limited_size(image.shape[0], image.shape[1], self.params.longer_side)
        ratio = max(size) / max(image.shape[:2])
        step, offset = self.params.downsampling_factor, self.params.coordinate_offset
        axes = [np.arange(offset, length, step) for length in size]
        if self.params.confidence:
            kept = self.cells.grid(tuple(map(len, axes)), size)
            axes = [axis[part] for axis, part in zip(axes, kept, strict=True)]
        y, x = np.meshgrid(*axes, indexing="ij")
        return (np.stack([x.ravel(), y.ravel()], 1) - self._shift(ratio)) / ratio


def transform_params(message: Message) -> TransformParams:
    """The first ``transform_param`` of a spec's layers, or the defaults."""
    for field in message.all("layer"):
        block = field.value.get("transform_param") if isinstance(field.value, Message) else None
        if block is not None and isinstance(block.value, Message):
            return bind(TransformParams, block.value, what="transform_param")
    return TransformParams()
