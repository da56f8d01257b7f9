"""``Classifier``: class probabilities of images, from a net with one input and one output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cortado.layers.standard._blob import Array

from . import io
from .net import Net
from .proto import caffe_pb2


class Classifier(Net):
    """A net in phase TEST with its preprocessing.

    ``image_dims`` (height, width) is the size that images get before they are cropped to the input's
    (default: the input's); ``mean``, ``input_scale``, ``raw_scale`` and ``channel_swap`` are those of
    :class:`~cortado.pycaffe.io.Transformer`.
    """

    def __init__(
        self,
        model_file: str | Path,
        pretrained_file: str | Path,
        image_dims: Sequence[int] | None = None,
        mean: Array | None = None,
        input_scale: float | None = None,
        raw_scale: float | None = None,
        channel_swap: Sequence[int] | None = None,
    ) -> None:
        super().__init__(model_file, caffe_pb2.TEST, weights=pretrained_file)
        self.transformer = transformer(self, mean, input_scale, raw_scale, channel_swap)
        self.crop_dims = np.array(self.blobs[self.inputs[0]].shape[2:])
        self.image_dims = self.crop_dims if image_dims is None else image_dims

    def predict(self, inputs: Sequence[Array], oversample: bool = True) -> Array:
        """Probabilities [N, classes] of images [H, W, K].

        With ``oversample`` the mean over ten crops (:func:`~cortado.pycaffe.io.oversample`), else of
        the crop at the centre.
        """
        images = np.stack([io.resize_image(image, self.image_dims) for image in inputs])
        if oversample:
            crops = io.oversample(images, self.crop_dims)
        else:
            low = (np.array(self.image_dims) / 2 - self.crop_dims / 2).astype(int)
            high = (np.array(self.image_dims) / 2 + self.crop_dims / 2).astype(int)
            crops = images[:, low[0] : high[0], low[1] : high[1]]
        name = self.inputs[0]
        given = np.stack([self.transformer.preprocess(name, crop) for crop in crops])
        batch: dict[str, Any] = {name: given}
        predictions = self.forward_all(**batch)[self.outputs[0]]
        if oversample:
            predictions = predictions.reshape(len(predictions) // 10, 10, -1).mean(1)
        return predictions


def transformer(
    net: Net,
    mean: Array | None,
    input_scale: float | None,
    raw_scale: float | None,
    channel_swap: Sequence[int] | None,
) -> io.Transformer:
    """The preprocessing of images [H, W, K] for a net's first input."""
    name = net.inputs[0]
    made = io.Transformer({name: net.blobs[name].shape})
    made.set_transpose(name, (2, 0, 1))
    if mean is not None:
        made.set_mean(name, mean)
    if input_scale is not None:
        made.set_input_scale(name, input_scale)
    if raw_scale is not None:
        made.set_raw_scale(name, raw_scale)
    if channel_swap is not None:
        made.set_channel_swap(name, channel_swap)
    return made
