"""Pairs of views made from photographs by random homographies: what data layers of them share.

A pair is two square views of one photograph: the first under a random similarity, the second
under that and a random homography H about the view's centre (rotation, scale, anisotropy,
perspective, shift); both then change in contrast, brightness, gamma, colour and noise. A point
x of the first view lies at H x in the second.

Sample n depends on the seed and on n alone, so that a run can be resumed or split.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .._engine.checks import Shape
from .._engine.layer import Layer
from .._engine.params import param
from .images import SUFFIXES, read_image
from .transform import TransformParams


@dataclass(frozen=True)
class ViewParams:
    """Ranges are uniform; a scale is drawn log-uniformly, a jitter from exp(+-range)."""

    source: tuple[str, ...] = param(
        doc='photographs: image files, folders of them, or "skimage:NAME" for one of scikit-image\'s'
    )
    view_rotation: float = param(20.0, low=0, high=180, unit="degrees", doc="of the first view, +-")
    view_scale_min: float = param(
        0.8, above=0, unit="photograph pixels per view pixel", doc="of the first view, at least"
    )
    view_scale_max: float = param(
        1.6, above=0, unit="photograph pixels per view pixel", doc="of the first view, at most"
    )
    rotation: float = param(45.0, low=0, high=180, unit="degrees", doc="between the views, +-")
    scale_min: float = param(0.8, above=0, doc="size of the second view's content over the first's")
    scale_max: float = param(1.25, above=0, doc="the same, at most")
    anisotropy: float = param(0.15, low=0, doc="log of the stretch along a random axis, +-")
    perspective: float = param(0.15, low=0, high=0.5, doc="change of depth from centre to border, +-")
    shift: float = param(0.08, low=0, high=1, unit="view sides", doc="+-")
    contrast: float = param(0.25, low=0, doc="log of the factor about the mean, +-")
    brightness: float = param(0.1, low=0, unit="full ranges", doc="+-")
    gamma: float = param(0.25, low=0, doc="log of the exponent, +-")
    color: float = param(0.08, low=0, doc="log of each channel's gain, +-")
    noise: float = param(0.02, low=0, unit="full ranges", doc="largest standard deviation")
    seed: int = param(-1, wide=True, doc="-1: drawn when the net is built")
    transform_param: TransformParams = param(
        factory=lambda: TransformParams(crop_size=192), doc="how images are made of what is read"
    )

    @property
    def image_shape(self) -> Shape:
        """Of one view: C, S, S."""
        side = self.transform_param.crop_size
        return (self.transform_param.channels, side, side)


class Light(Protocol):
    """The ranges of a random change of light, which :class:`ViewParams` describes."""

    @property
    def contrast(self) -> float: ...
    @property
    def brightness(self) -> float: ...
    @property
    def gamma(self) -> float: ...
    @property
    def color(self) -> float: ...
    @property
    def noise(self) -> float: ...


def read_photographs(source: str) -> list[np.ndarray]:
    """The RGB images of one ``source``: a file, a folder, or scikit-image's own by name.

    Raises ValueError that names the source, or the file that is no image.
    """
    folder = Path(source)
    if source.startswith("skimage:"):
        import skimage.data

        folder = Path(skimage.data.__file__).parent
        paths = [folder / f"{source[8:]}{end}" for end in (".png", ".jpg")]
        paths = [path for path in paths if path.is_file()]
    elif folder.is_dir():
        paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
    else:
        paths = [folder] if folder.is_file() else []
    if not paths:
        raise ValueError(f'source "{source}": no image file, folder of images or skimage:NAME')
    return [read_image(path) for path in paths]


class Draw:
    """Random numbers of one sample."""

    def __init__(self, *seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def around(self, half: float) -> float:
        return float(self.rng.uniform(-half, half))

    def jitter(self, half: float) -> float:
        """exp of a uniform number of +-half."""
        return math.exp(self.around(half))

    def log_uniform(self, low: float, high: float) -> float:
        return math.exp(self.rng.uniform(math.log(low), math.log(high)))

    def seed(self) -> int:
        return int(self.rng.integers(2**31))


def translation(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])


def rotation(angle: float) -> np.ndarray:
    """3 x 3 rotation by an angle in degrees, from x towards y."""
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def draw_view(params: ViewParams, size: tuple[int, int], draw: Draw) -> np.ndarray:
    """A random similarity: centred view pixels -> photograph pixels of an image (H, W)."""
    side = params.transform_param.crop_size
    scale = draw.log_uniform(params.view_scale_min, params.view_scale_max)
    scale = min(scale, min(size) / side)
    angle = draw.around(params.view_rotation)
    mirror = -1.0 if params.transform_param.mirror and draw.rng.random() < 0.5 else 1.0
    half = scale * side / 2
    room = [max(0.0, length / 2 - 0.5 - half) for length in size]
    y, x = (length / 2 - 0.5 + draw.around(r) for length, r in zip(size, room, strict=True))
    linear = rotation(angle) @ np.diag([scale * mirror, scale, 1])
    return translation(x, y) @ linear


def draw_homography(params: ViewParams, draw: Draw) -> np.ndarray:
    """A random homography: centred pixels of the first view -> those of the second."""
    side = params.transform_param.crop_size
    axis, stretch = rotation(draw.around(180)), draw.jitter(params.anisotropy)
    scale = draw.log_uniform(params.scale_min, params.scale_max)
    linear = axis.T @ np.diag([scale * stretch, scale / stretch, 1]) @ axis
    homography = rotation(draw.around(params.rotation)) @ linear
    homography[:2, 2] = [draw.around(params.shift) * side for _ in range(2)]
    homography[2, :2] = [draw.around(params.perspective) / (side / 2) for _ in range(2)]
    return homography


def project(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points [P, 2] (x, y) mapped by a 3 x 3 homography."""
    mapped = np.c_[points, np.ones(len(points))] @ homography.T
    return mapped[:, :2] / mapped[:, 2:]


def warp(image: Tensor, homography: np.ndarray, height: int, width: int) -> Tensor:
    """Resample an image [C, h, w]: output pixel x takes the image at ``homography`` x, bilinearly,
    reflected at the borders. Returns [C, height, width]."""
    m = torch.as_tensor(homography, dtype=torch.float32)
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    u, v, w = (row[0] * x + row[1] * y + row[2] for row in m)
    size = image.shape[-2:]
    last = [max(length - 1, 1) for length in size]
    grid = torch.stack([2 * u / w / last[1] - 1, 2 * v / w / last[0] - 1], -1)
    image = image[None].float()
    return F.grid_sample(image, grid[None], padding_mode="reflection", align_corners=True)[0]


def change_light(image: Tensor, params: Light, draw: Draw) -> Tensor:
    """Random gamma, contrast, brightness, channel gains and noise of an image in 0..255."""
    image = (image / 255).clamp(1e-3, 1) ** draw.jitter(params.gamma)
    mean = image.mean()
    image = (image - mean) * draw.jitter(params.contrast) + mean + draw.around(params.brightness)
    gain = torch.tensor([draw.jitter(params.color) for _ in range(3)])
    noise = draw.rng.uniform(0, params.noise) * draw.rng.standard_normal(image.shape, dtype=np.float32)
    return (image * gain[:, None, None] + torch.from_numpy(noise)).clamp(0, 1) * 255


class Views(NamedTuple):
    """Two views [3, S, S] of a photograph in 0..255, and where their points lie.

    ``homography`` maps pixels of the first view to those of the second, ``view`` to those of the
    photograph, whose ``size`` is (H, W).
    """

    first: Tensor
    second: Tensor
    homography: np.ndarray
    view: np.ndarray
    size: tuple[int, int]


def draw_views(params: ViewParams, photographs: list[Tensor], draw: Draw) -> Views:
    """A pair of views of one of the photographs [3, H, W]."""
    side = params.transform_param.crop_size
    photograph = photographs[draw.rng.integers(len(photographs))]
    size = (photograph.shape[1], photograph.shape[2])
    centre = translation(side / 2 - 0.5, side / 2 - 0.5)
    view = draw_view(params, size, draw) @ np.linalg.inv(centre)
    homography = centre @ draw_homography(params, draw) @ np.linalg.inv(centre)
    first = change_light(warp(photograph, view, side, side), params, draw)
    second = warp(photograph, view @ np.linalg.inv(homography), side, side)
    second = change_light(second, params, draw)
    return Views(first, second, homography, view, size)


def draw_pairs(views: Views, num_points: int, draw: Draw) -> tuple[Tensor, int]:
    """A pair table [P, 5] of points of two views, and its number of correspondences.

    Rows are (x1, y1, x2, y2, s), s = 1, or all zero with s = -1 behind the correspondences. Points
    that leave the second view, or that show none of the photograph, are dropped.
    """
    side, size = views.first.shape[-1], views.size
    first = draw.rng.uniform(0, side - 1, (3 * num_points, 2))
    second, source = project(views.homography, first), project(views.view, first)
    inside = ((second >= 0) & (second <= side - 1)).all(1)
    inside &= ((source >= 0) & (source <= [size[1] - 1, size[0] - 1])).all(1)
    kept = np.flatnonzero(inside)[:num_points]
    table = np.zeros((num_points, 5), np.float32)
    table[:, 4] = -1
    table[: len(kept)] = np.c_[first[kept], second[kept], np.ones(len(kept))]
    return torch.from_numpy(table), len(kept)


class ViewsLayer(Layer):
    """The base of data layers that make pairs of views; their ``Params`` are ViewParams."""

    Params: ClassVar[type] = ViewParams

    def __init__(
        self,
        params: Any,
        bottom_shapes: tuple[Shape, ...] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(params, bottom_shapes, generator)
        if params.transform_param.crop_size < 2:
            raise ValueError(f"{self.type_name} needs transform_param.crop_size, the views' side")
        self.seed = params.seed
        if self.seed < 0:
            self.seed = int(torch.randint(2**31, (), generator=generator, device="cpu"))
        self.position = 0  # samples given so far
        self.photographs: list[Tensor] = []

    def get_extra_state(self) -> Tensor:
        """The position, so that a restored net goes on with the next sample."""
        return torch.tensor([self.seed, self.position])

    def set_extra_state(self, state: Any) -> None:
        self.seed, self.position = (int(value) for value in state)

    def views(self, draw: Draw) -> Views:
        """The views that one sample draws."""
        if not self.photographs:  # read on first use: building a net opens no image
            images = [image for source in self.params.source for image in read_photographs(source)]
            self.photographs = [torch.from_numpy(image.transpose(2, 0, 1).copy()) for image in images]
        return draw_views(self.params, self.photographs, draw)
