"""Caffe's ``transform_param``: from an image to a net's input blob, the same everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import torch

from .params import param


class ChannelOrder(Enum):
    """Order of a blob's channels; Caffe's own nets are BGR (they read images with OpenCV)."""

    BGR = "BGR"
    RGB = "RGB"
    GRAY = "GRAY"


@dataclass(frozen=True)
class TransformParams:
    """What a net wants done to an image: channels, mean, scale, crop, mirror."""

    scale: float = param(1.0, doc="factor applied after the mean is subtracted")
    mean_value: tuple[float, ...] = param(
        (), unit="grey levels 0..255", doc="one for all channels, or one for each in channel_order"
    )
    channel_order: ChannelOrder = param(ChannelOrder.BGR, doc="order of the blob's channels")
    crop_size: int = param(
        0, low=0, unit="pixels", doc="side of the square crop while training, 0: none"
    )
    mirror: bool = param(False, doc="while training, mirror every second image at random")

    @property
    def channels(self) -> int:
        """Number of channels of the blob."""
        return 1 if self.channel_order is ChannelOrder.GRAY else 3


def read_image(path: str | Path) -> np.ndarray:
    """An image file as RGB uint8 [H, W, 3], its pixels as stored; OSError if it is none."""
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Any image array (grey or RGB or RGBA; uint8, or floating in 0..1) as RGB uint8 [H, W, 3]."""
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise ValueError(f"expected an image [H, W] or [H, W, 1|3|4], got {list(image.shape)}")
    if image.dtype != np.uint8:
        if image.dtype.kind != "f":
            raise ValueError(f"expected an image of uint8 or of floats in 0..1, got {image.dtype}")
        image = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    image = image[..., None] if image.ndim == 2 else image[..., :3]
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))


def transform(image: torch.Tensor, params: TransformParams) -> torch.Tensor:
    """Channels, mean and scale of ``params`` applied to RGB images.

    ``image`` is [..., 3, H, W] with grey levels 0..255; the result is [..., C, H, W] in float32.
    Grey is OpenCV's 0.299 R + 0.587 G + 0.114 B. Crop and mirror belong to the data layer, which
    knows the coordinates they move. Raises ValueError for a mean of another number of channels.
    """
    if len(params.mean_value) not in (0, 1, params.channels):
        raise ValueError(f"expected 1 or {params.channels} mean_value, got {len(params.mean_value)}")
    image = image.float()
    if params.channel_order is ChannelOrder.BGR:
        image = image.flip(-3)
    elif params.channel_order is ChannelOrder.GRAY:
        weights = torch.tensor([0.299, 0.587, 0.114], device=image.device)
        image = (image * weights[:, None, None]).sum(-3, keepdim=True)
    if params.mean_value:
        image = image - torch.tensor(params.mean_value, device=image.device)[:, None, None]
    return image * params.scale


def blob(image: np.ndarray, params: TransformParams) -> torch.Tensor:
    """An image array (see :func:`as_rgb`) as the net's input blob [1, C, H, W]."""
    rgb = torch.from_numpy(as_rgb(image).transpose(2, 0, 1).copy())
    return transform(rgb, params)[None]
