"""ImageData: images of a list, with labels.

``source`` lists an image file and its label (an integer) a line; the file's name follows
``root_folder``, which is put before it as it is; a line without a label has label 0. Tops: images
[N, C, H, W], float32, BGR (or as ``transform_param.channel_order`` says) or grey (``is_color:
false``), resized, cropped and so on as ``transform_param`` says; labels [N], float32. All images of
a batch have the size of its first; a batch of one may have any. The list is read round and round,
shuffled anew each time with ``shuffle``, from a random one of the first ``rand_skip`` images on.

Images are read to the pixels that OpenCV gives, as Caffe does: in 8 bits, turned as EXIF says.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._data.batches import BatchLayer
from .._data.files import read_text
from .._data.images import planes, read_image
from .._data.transform import ChannelOrder, Transformer, TransformParams, resized
from .._engine.checks import Shape
from .._engine.parallel import share
from .._engine.params import param
from .._engine.registry import register


@dataclass(frozen=True)
class Params:
    """``image_data_param``, and the ``transform_param`` beside it."""

    source: str = param(doc="the list of images")
    batch_size: int = param(1, low=1, doc="N")
    rand_skip: int = param(
        0, low=0, unit="images", doc="at the start so many samples at most, at random, are left out"
    )
    shuffle: bool = param(False, doc="images in random order")
    new_height: int = param(0, low=0, unit="pixels", doc="0: as it is")
    new_width: int = param(0, low=0, unit="pixels", doc="0: as it is")
    is_color: bool = param(True, doc="false: images in grey")
    root_folder: str = param("", doc="before each path of the list")
    transform_param: TransformParams = param(
        factory=TransformParams, doc="how images are made of what is read"
    )

    def __post_init__(self) -> None:
        if bool(self.new_height) != bool(self.new_width):
            raise ValueError("new_height and new_width go together")


def read_list(source: str) -> list[tuple[str, int]]:
    """The image files and labels of a list; raises ValueError where it cannot be read."""
    text = read_text(source, "the list of images")
    images = []
    for number, line in enumerate(text.splitlines(), 1):
        name, _, label = line.rstrip().rpartition(" ")
        if not name:
            name, label = label, "0"
        if not re.fullmatch(r"[+-]?[0-9]{1,10}", label) or abs(int(label)) >= 2**31:
            raise ValueError(f'{source}:{number}: expected a label, got "{label}"')
        if name:
            images.append((name, int(label)))
    if not images:
        raise ValueError(f'the list of images "{source}" is empty')
    return images


@register("ImageData", bottoms=0, tops=2)
class ImageData(BatchLayer):
    """See the module's text."""

    Params = Params

    def __init__(
        self,
        params: Any,
        bottom_shapes: tuple[Shape, ...] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(params, bottom_shapes, generator)
        self.images = read_list(params.source)
        self.transformer = Transformer(params.transform_param)

    @property
    def skipped(self) -> int:
        """Images passed over at the beginning."""
        return int(self.draw(0).integers(self.params.rand_skip)) if self.params.rand_skip else 0

    def infer(self, params: Any) -> tuple[Shape, ...]:
        """The tops' shapes, which the first image decides; raises ValueError if it cannot be read."""
        if self.skipped >= len(self.images):
            raise ValueError(f"rand_skip passes over all of {len(self.images)} images")
        shape = self.transformer.shape(self.read(0)[0].shape)
        return (params.batch_size, *shape), (params.batch_size,)

    def read(self, number: int) -> tuple[np.ndarray, int]:
        """The image [C, H, W] of a sample before it is transformed, and its label."""
        p: Params = self.params
        name, label = self.images[self._index(number + self.skipped)]
        order = p.transform_param.channel_order
        color = p.is_color and order is not ChannelOrder.GRAY
        path = p.root_folder + name
        image = planes(read_image(path, color, f'image "{path}"'))
        if p.new_height:
            image = resized(image, p.new_height, p.new_width)
        return image[::-1] if color and order is ChannelOrder.RGB else image, label

    def _index(self, number: int) -> int:
        """Where in the list the ``number``-th image read is."""
        count = len(self.images)
        return self.shuffled(number, count) if self.params.shuffle else number % count

    def forward(self) -> tuple[Tensor, Tensor]:
        numbers, self.position = share(self.position, self.params.batch_size)
        made: list[Tensor] = []
        labels = []
        for number in numbers:
            image, label = self.read(number)
            made.append(self.transformer(image, self.training, self.draw(2, number)))
            labels.append(float(label))
            if made[-1].shape != made[0].shape:
                name = self.images[self._index(number + self.skipped)][0]
                found = f'"{name}" is {list(made[-1].shape)}, the batch\'s first {list(made[0].shape)}'
                raise ValueError(f"images of a batch have one size: {found}")
        return torch.stack(made), torch.tensor(labels)
