"""``Detector``: class scores of windows of images, as in R-CNN (Girshick et al., CVPR 2014)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cortado.layers._data.proposals import selective_search
from cortado.layers.standard._blob import Array

from . import io
from .classifier import transformer
from .net import Net
from .proto import caffe_pb2


class Detector(Net):
    """A net in phase TEST that scores windows, each warped to the size of its input.

    ``context_pad`` is the width, in pixels of the input, of the border of context around a window;
    where it leaves the image it is filled with the mean. The others are the
    :class:`~cortado.pycaffe.io.Transformer`'s.
    """

    def __init__(
        self,
        model_file: str | Path,
        pretrained_file: str | Path,
        mean: Array | None = None,
        input_scale: float | None = None,
        raw_scale: float | None = None,
        channel_swap: Sequence[int] | None = None,
        context_pad: int | None = None,
    ) -> None:
        super().__init__(model_file, caffe_pb2.TEST, weights=pretrained_file)
        self.transformer = transformer(self, mean, input_scale, raw_scale, channel_swap)
        self.configure_crop(context_pad)

    def detect_windows(
        self, images_windows: Iterable[tuple[str | Path, Iterable[Any]]]
    ) -> list[dict[str, Any]]:
        """Scores of windows (ymin, xmin, ymax, xmax) of image files.

        Gives a dictionary a window: ``filename``, ``window``, ``prediction``.
        """
        found: list[dict[str, Any]] = []
        crops = []
        name = self.inputs[0]
        for filename, windows in images_windows:
            image = io.load_image(filename)
            for window in windows:
                crops.append(self.transformer.preprocess(name, self.crop(image, window)))
                found.append({"window": window, "filename": filename})
        batch: dict[str, Any] = {name: np.stack(crops)}
        predictions = self.forward_all(**batch)[self.outputs[0]]
        for each, prediction in zip(found, predictions, strict=True):
            each["prediction"] = prediction
        return found

    def detect_selective_search(
        self, image_fnames: Sequence[str | Path], count: int = 2000
    ) -> list[dict[str, Any]]:
        """:meth:`detect_windows` of the regions that selective search proposes in image files, at most
        ``count`` in each."""
        return self.detect_windows([(name, _proposed(name, count)) for name in image_fnames])

    def crop(self, im: Array, window: Any) -> Array:
        """A window (ymin, xmin, ymax, xmax) of an image [H, W, K], with its context if configured."""
        window = np.asarray(window)
        if not self.context_pad:
            return im[window[0] : window[2], window[1] : window[3]]
        size = np.array(self.blobs[self.inputs[0]].shape[2:])
        half = np.array([window[2] - window[0] + 1, window[3] - window[1] + 1]) / 2
        centre, grown = window[:2] + half, half * size / (size - 2 * self.context_pad)
        box = np.round(np.concatenate([centre - grown, centre + grown]))
        scale = size / (box[2:] - box[:2] + 1)
        pad = np.round(np.maximum(0, -box[:2]) * scale).astype(int)
        box = np.clip(box, 0, [*im.shape[:2], *im.shape[:2]]).astype(int)
        room = np.round((box[2:] - box[:2] + 1) * scale).astype(int)
        height, width = np.minimum(room, size - pad)
        crop = np.ones(self.crop_dims, np.float32) * self.crop_mean
        inside = io.resize_image(im[box[0] : box[2], box[1] : box[3]], (height, width))
        crop[pad[0] : pad[0] + height, pad[1] : pad[1] + width] = inside
        return crop

    def configure_crop(self, context_pad: int | None) -> None:
        """Set the width of the context and, for it, the mean as an image [H, W, K] untransformed."""
        name = self.inputs[0]
        order = self.transformer.transpose[name]
        inverse = [order[axis] for axis in order]
        self.crop_dims = np.array(self.blobs[name].shape[1:])[inverse]
        self.context_pad = context_pad
        if not context_pad:
            return
        self.crop_mean: Array = np.zeros(self.crop_dims, np.float32)
        if (mean := self.transformer.mean.get(name)) is not None:
            crop_mean = mean.copy().transpose(inverse)
            if (swap := self.transformer.channel_swap.get(name)) is not None:
                crop_mean = crop_mean[:, :, np.argsort(swap)]
            if (raw_scale := self.transformer.raw_scale.get(name)) is not None:
                crop_mean = crop_mean / raw_scale
            self.crop_mean = crop_mean


def _proposed(filename: str | Path, count: int) -> Array:
    """Windows (ymin, xmin, ymax, xmax), the maxima outside, around a file's proposals."""
    boxes = selective_search(io.load_image(filename), count).numpy().astype(int)
    return np.stack([boxes[:, 1], boxes[:, 0], boxes[:, 3] + 1, boxes[:, 2] + 1], axis=1)
