"""Matching two images with a net: what ``cortado match``, the demo and a user's script share.

The spec says everything: ``transform_param`` of its data layer how an image becomes a blob, and
``match_param`` which blobs take the images, which give the features, and which image point a
feature cell stands for.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from cortado.layers import extract_feature, knn
from cortado.layers._runtime.transform import TransformParams, blob
from cortado.prototxt_like.bind import bind
from cortado.prototxt_like.message import Message
from cortado.prototxt_like.source import SpecError

from .net import Net
from .specs import load


class Matcher:
    """Nearest neighbours in the feature space of a net.

    spec: a spec file, its name if it comes with cortado, or its message, with ``match_param``, whose
    stage ``deploy`` takes the images from Input layers. weights: a file that
    :func:`cortado.nets.weights.load` reads, or None.
    seed: of the fillers. device: where the net runs. Images are arrays [H, W] or [H, W, 3], RGB,
    uint8 or floats in 0..1; points are (x, y) in their pixels.

    Raises :class:`SpecError` where the spec lacks something.
    """

    def __init__(
        self,
        spec: str | Path | Message,
        weights: str | Path | None = None,
        seed: int | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        message = spec if isinstance(spec, Message) else load(spec)
        self.transform = transform_params(message)
        self.net = Net(message, phase="TEST", stages=("deploy",), seed=seed, weights=weights)
        if self.net.match is None:
            raise SpecError(
                "matching needs a match_param, which names the blobs of the images and the features",
                message.span,
                "{image: [image1, image2], feature: [feature1, feature2], downsampling_factor: 4}",
            )
        if self.net.report and self.net.report.missing:
            raise SpecError(f"the weights do not fill the net: {self.net.report}", message.span)
        self.net.to(device)
        self.params = self.net.match

    @torch.no_grad()
    def features(self, image1: np.ndarray, image2: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """The feature maps [1, C, H, W] of two images of any size."""
        names, images = self.params.image, (image1, image2)
        inputs = {
            name: blob(image, self.transform).to(self.net.device)
            for name, image in zip(names, images, strict=True)
        }
        blobs = self.net(**inputs, keep=self.params.feature)
        first, second = (blobs[name] for name in self.params.feature)
        return first, second

    @torch.no_grad()
    def match(
        self, image1: np.ndarray, image2: np.ndarray, points: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The match of each point [P, 2] of image 1 among the cells of image 2.

        Returns the matched points [P, 2] and their feature distances [P].
        """
        first, second = self.features(image1, image2)
        factor, offset = self.params.downsampling_factor, self.params.coordinate_offset
        table = torch.zeros(1, len(points), 5)
        table[0, :, :2] = torch.as_tensor(points)
        query = extract_feature.extract_feature(
            first, table.to(first.device), downsampling_factor=factor, coordinate_offset=offset
        )
        distance, index = knn.knn(query, second)
        width = second.shape[3]
        cells = torch.stack([index[0, 0] % width, index[0, 0] // width], 1)
        return (cells * factor + offset).cpu().numpy(), distance[0, 0].cpu().numpy()

    def grid(self, image: np.ndarray) -> np.ndarray:
        """The image points [P, 2] of a feature map's cells that lie inside an image."""
        step, offset = self.params.downsampling_factor, self.params.coordinate_offset
        y, x = np.meshgrid(
            *(np.arange(offset, length, step) for length in image.shape[:2]), indexing="ij"
        )
        return np.stack([x.ravel(), y.ravel()], 1)


def transform_params(message: Message) -> TransformParams:
    """The first ``transform_param`` of a spec's layers, or the defaults."""
    for field in message.all("layer"):
        block = field.value.get("transform_param") if isinstance(field.value, Message) else None
        if block is not None and isinstance(block.value, Message):
            return bind(TransformParams, block.value, what="transform_param")
    return TransformParams()
