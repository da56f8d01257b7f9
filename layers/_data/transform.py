"""Caffe's ``transform_param``: from an image to a net's input blob, the same everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch
import torch.nn.functional as F

from .._engine.checks import Shape
from .._engine.params import param
from .caffe_files import read_blob


class ChannelOrder(Enum):
    """Order of a blob's channels; Caffe's own nets are BGR (they read images with OpenCV)."""

    BGR = "BGR"
    RGB = "RGB"
    GRAY = "GRAY"


@dataclass(frozen=True)
class TransformParams:
    """What a net wants done to an image: channels, mean, deviation, scale, crop, mirror.

    A value x becomes (x - mean) / std_value * scale.
    """

    scale: float = param(1.0, doc="factor applied last: to what std_value has divided, if it is given")
    mean_value: tuple[float, ...] = param(
        (), unit="grey levels 0..255", doc="one for all channels, or one for each in channel_order"
    )
    std_value: tuple[float, ...] = param(
        (),
        above=0,
        unit="grey levels 0..255",
        doc="divides what the mean leaves; one for all channels, or one for each; Caffe has none",
    )
    channel_order: ChannelOrder = param(ChannelOrder.BGR, doc="order of the blob's channels")
    crop_size: int = param(
        0, low=0, unit="pixels", doc="side of the square crop, in training at random; 0: none"
    )
    mirror: bool = param(False, doc="mirror every second image at random")
    mean_file: str = param("", doc="a .binaryproto of the mean image, as large as the images")
    force_color: bool = param(False, doc="read encoded database images in three channels")
    force_gray: bool = param(False, doc="read encoded database images in one channel")

    def __post_init__(self) -> None:
        if self.mean_file and self.mean_value:
            raise ValueError("mean_file and mean_value exclude each other")
        if self.force_color and self.force_gray:
            raise ValueError("force_color and force_gray exclude each other")

    @property
    def channels(self) -> int:
        """Number of channels of the blob."""
        return 1 if self.channel_order is ChannelOrder.GRAY else 3

    def expect_values(self, channels: int) -> None:
        """Raises ValueError where mean_value or std_value are of another number of channels."""
        for name in ("mean_value", "std_value"):
            count = len(getattr(self, name))
            if count not in (0, 1, channels):
                raise ValueError(f"expected 1 or {channels} {name}, got {count}")


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
    """Channels, mean, deviation and scale of ``params`` applied to RGB images.

    ``image`` is [..., 3, H, W] with grey levels 0..255; the result is [..., C, H, W] in float32.
    Grey is OpenCV's 0.299 R + 0.587 G + 0.114 B. Crop and mirror belong to the data layer, which
    knows the coordinates they move. Raises ValueError for a mean or deviation of another number of
    channels, and for a mean_file, which fits images of one size only.
    """
    if params.mean_file:
        raise ValueError("mean_file is for images of one size: give mean_value here")
    params.expect_values(params.channels)
    image = image.float()
    if params.channel_order is ChannelOrder.BGR:
        image = image.flip(-3)
    elif params.channel_order is ChannelOrder.GRAY:
        weights = torch.tensor([0.299, 0.587, 0.114], device=image.device)
        image = (image * weights[:, None, None]).sum(-3, keepdim=True)
    if params.mean_value:
        image = image - torch.tensor(params.mean_value, device=image.device)[:, None, None]
    if params.std_value:
        image = image / torch.tensor(params.std_value, device=image.device)[:, None, None]
    return image * params.scale


def blob(image: np.ndarray, params: TransformParams) -> torch.Tensor:
    """An image array (see :func:`as_rgb`) as the net's input blob [1, C, H, W]."""
    rgb = torch.from_numpy(as_rgb(image).transpose(2, 0, 1).copy())
    return transform(rgb, params)[None]


class Transformer:
    """What Caffe's data layers do to each image: crop, mirror, (x - mean) * scale,
    and what Caffe has not: a deviation that divides before the scale.

    The crop is at random in training and central else; the mirror is a coin's toss in both. The
    mean is that of the crop's own place in ``mean_file``, or one for each channel. Raises ValueError
    for a mean file that cannot be read.
    """

    def __init__(self, params: TransformParams) -> None:
        self.params = params
        self.mean: np.ndarray | None = None
        if params.mean_file:
            mean = read_blob(params.mean_file)
            if mean.ndim not in (3, 4) or (mean.ndim == 4 and mean.shape[0] != 1):
                raise ValueError(
                    f"{params.mean_file}: expected a mean [C, H, W], got {list(mean.shape)}"
                )
            self.mean = mean.reshape(mean.shape[-3:])
        elif params.mean_value:
            self.mean = np.array(params.mean_value, np.float32).reshape(-1, 1, 1)

    def shape(self, image: Shape) -> Shape:
        """The shape that an image [C, H, W] gets; raises ValueError where it does not fit."""
        channels, *size = image
        side = self.params.crop_size
        if min(size) < side:
            raise ValueError(f"crop_size {side} exceeds the image's {size[0]} x {size[1]} pixels")
        if self.params.mean_file and self.mean is not None and self.mean.shape != image:
            found = f"{list(self.mean.shape)}, the image {list(image)}"
            raise ValueError(f"{self.params.mean_file}: the mean is {found}")
        self.params.expect_values(channels)
        return (channels, side, side) if side else image

    def __call__(self, image: np.ndarray, training: bool, rng: np.random.Generator) -> torch.Tensor:
        """An image [C, H, W] of any numbers as float32, its channels as they are."""
        _, height, width = self.shape(image.shape)
        room = (image.shape[1] - height, image.shape[2] - width)
        mirrored = self.params.mirror and rng.integers(2) == 1
        y, x = (int(rng.integers(r + 1)) if training else r // 2 for r in room)
        part = (slice(None), slice(y, y + height), slice(x, x + width))
        made = image[part].astype(np.float32)
        if self.mean is not None:
            made -= self.mean[part] if self.params.mean_file else self.mean
        if self.params.std_value:
            made /= np.array(self.params.std_value, np.float32).reshape(-1, 1, 1)
        made *= np.float32(self.params.scale)
        return torch.from_numpy(made[:, :, ::-1].copy() if mirrored else made)


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """An image [C, H, W] in uint8 at another size: bilinear at pixel centres, nothing smoothed before,
    as OpenCV's default is (whose fixed point may differ by a grey level)."""
    x = torch.from_numpy(image).float()[None]
    made = F.interpolate(x, (height, width), mode="bilinear", align_corners=False)
    return made[0].round().to(torch.uint8).numpy()


def limited_size(height: int, width: int, longer_side: int) -> tuple[int, int]:
    """(height, width) of an image that :func:`limited` gives for one of this size, in whole numbers: no
    rounding of a ratio takes a pixel off the longer side."""
    longer = max(height, width)
    if not 0 < longer_side < longer:
        return height, width
    return max(height * longer_side // longer, 1), max(width * longer_side // longer, 1)


def limited(image: torch.Tensor, longer_side: int, smooth: bool = False) -> tuple[torch.Tensor, float]:
    """An image [C, H, W], its longer side at most so many pixels, and the ratio its points scale by.

    A larger one is resized bilinearly at pixel centres to (int(H r), int(W r)), r = longer_side /
    max(H, W); any other, and all with ``longer_side`` 0, is as it is, with r = 1. ``smooth``: what is
    finer than the new pixels is smoothed away before. Integers become float32, not rounded.
    """
    image = image if image.is_floating_point() else image.float()
    height, width = image.shape[1:]
    size = limited_size(height, width, longer_side)
    if size == (height, width):
        return image, 1.0
    made = F.interpolate(image[None], size, mode="bilinear", align_corners=False, antialias=smooth)[0]
    return made, longer_side / max(height, width)
