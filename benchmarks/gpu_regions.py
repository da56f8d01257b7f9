"""SCNet's layers on a GPU at the paper's sizes: 1,000 regions of an image, descriptors of 2,048."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from cortado.layers.hough_voting import hough_voting
from cortado.layers.rectified_cosine import rectified_cosine
from cortado.layers.roi_pooling import roi_pooling
from cortado.tools import plain
from cortado.tools.measuring import nbytes
from cortado.tools.results import OURS, PLAIN, TORCHVISION
from torch import Tensor

from .gpu_cases import HALVES, Draw, GpuCase

ONE_HOT = "one-hot matrix"
BINS = 7  # along each side of a region
STRIDE = 16  # image pixels a cell
PHOTOS = (375, 500), (333, 500)  # height, width


def region_cases(small: bool = False) -> list[GpuCase]:
    """Every case; ``small`` is for trying them out."""
    regions, channels, size = (24, 6, 16) if small else (1000, 512, 2048)
    cells = (8, 11) if small else (30, 40)
    return [
        _pooling(regions, channels, cells),
        *(_connected(regions, channels, size, tf32) for tf32 in (False, True)),
        _similarity(regions, size),
        *(_voting(count) for count in ((12, 24, 36) if small else (500, 1000, 2000))),
        *(_scoring(regions, size, tf32) for tf32 in (False, True)),
    ]


def rois(draw: Draw, count: int, size: Sequence[int]) -> Tensor:
    """``[count, 5]`` in an image (height, width): sides of 1/20 to 3/4 of its own."""
    extent = torch.tensor([size[1] - 1, size[0] - 1], device=draw.device)
    sides = (0.05 + 0.7 * draw.uniform(count, 2)) * extent
    corner = draw.uniform(count, 2) * (extent - sides)
    return torch.cat((torch.zeros_like(corner[:, :1]), corner, corner + sides), dim=1)


def _named(size: str, tf32: bool) -> str:
    return f"{size}, TF32" if tf32 else size


def _pooling(regions: int, channels: int, cells: Sequence[int]) -> GpuCase:
    image = [STRIDE * (length - 1) + 1 for length in cells]
    options = {"pooled_h": BINS, "pooled_w": BINS, "spatial_scale": 1 / STRIDE}

    def of_torchvision(data: Tensor, rois: Tensor) -> Tensor:
        from torchvision.ops import roi_pool

        top: Tensor = roi_pool(data, rois, (BINS, BINS), 1 / STRIDE)
        return top

    return GpuCase(
        "ROIPooling",
        f"{channels} x {cells[0]} x {cells[1]}, {regions:,} regions, {BINS} x {BINS}",
        lambda draw: (draw.normal(1, channels, *cells), rois(draw, regions, image)),
        {
            OURS: partial(roi_pooling, **options),
            PLAIN: partial(plain.pooled, **options),
            TORCHVISION: of_torchvision,
        },
        lambda leaves, top: (nbytes(*leaves, top), nbytes(leaves[0], top) + 4 * top.numel()),
        compiled=False,  # a graph of as many operations as there are regions
    )


def _connected(regions: int, channels: int, size: int, tf32: bool) -> GpuCase:
    """What reads the pooled regions: all of one's bins to its descriptor."""
    inputs = channels * BINS * BINS
    flops = 2.0 * regions * inputs * size

    def draw(draw: Draw) -> tuple[Tensor, ...]:
        weight = draw.wide(size, channels, BINS, BINS) / inputs**0.5
        return draw.normal(regions, channels, BINS, BINS), weight.to(draw.dtype)

    return GpuCase(
        "Convolution",
        _named(f"{regions:,} regions, {inputs:,} to {size:,}", tf32),
        draw,
        {
            OURS: F.conv2d,
            PLAIN: lambda x, weight: F.linear(x.flatten(1), weight.flatten(1))[..., None, None],
        },
        lambda leaves, top: (nbytes(*leaves, top), 2 * nbytes(*leaves) + nbytes(top)),
        (0, 1),
        flops=flops,
        backward_flops=2 * flops,
        tf32=tf32,
        tolerance=1e-2,
        halves=() if tf32 else (torch.bfloat16,),
        compiled=False,
    )


def _similarity(regions: int, size: int) -> GpuCase:
    flops = 2.0 * regions * regions * size
    return GpuCase(
        "RectifiedCosine",
        f"{regions:,} x {regions:,} x {size:,}",
        lambda draw: (draw.normal(regions, size), draw.normal(regions, size)),
        {OURS: rectified_cosine, PLAIN: plain.cosines},
        lambda leaves, top: (nbytes(*leaves, top), 2 * nbytes(*leaves, top)),
        (0, 1),
        flops=flops,
        backward_flops=2 * flops,
    )


def _voting(count: int) -> GpuCase:
    sizes = {"size_a": PHOTOS[0], "size_b": PHOTOS[1]}

    def draw(draw: Draw) -> tuple[Tensor, ...]:
        scores = draw.uniform(count, count).to(draw.dtype)
        return scores, *(rois(draw, count, size) for size in PHOTOS)

    return GpuCase(
        "HoughVoting",
        f"{count:,} x {count:,}",
        draw,
        {
            OURS: partial(hough_voting, **sizes),
            PLAIN: partial(plain.voted, **sizes),
            ONE_HOT: partial(plain.voted, **sizes, one_hot=True),
        },
        lambda leaves, top: (nbytes(*leaves, top), nbytes(*leaves) + 2 * nbytes(top)),
        halves=HALVES if count == 1000 else (),
        compiled=count == 1000,
    )


def _scoring(regions: int, size: int, tf32: bool) -> GpuCase:
    """From four sets of descriptors, two of them for geometry, to z of SCNet-AG+ (Eq. 12)."""
    flops = 2 * 2.0 * regions * regions * size

    def draw(draw: Draw) -> tuple[Tensor, ...]:
        descriptors = [draw.normal(regions, size) for _ in range(4)]
        return *descriptors, *(rois(draw, regions, photo) for photo in PHOTOS)

    def ours(a: Tensor, b: Tensor, to_a: Tensor, to_b: Tensor, *rois: Tensor) -> Tensor:
        return hough_voting(rectified_cosine(a, b), *rois, *PHOTOS, rectified_cosine(to_a, to_b))

    def theirs(a: Tensor, b: Tensor, to_a: Tensor, to_b: Tensor, *rois: Tensor) -> Tensor:
        return plain.voted(plain.cosines(a, b), *rois, *PHOTOS, plain.cosines(to_a, to_b))

    return GpuCase(
        "RectifiedCosine, twice, + HoughVoting",
        _named(f"{regions:,} x {regions:,} x {size:,}", tf32),
        draw,
        {OURS: ours, PLAIN: theirs},
        lambda leaves, top: (nbytes(*leaves, top), 2 * nbytes(*leaves, top)),
        (0, 1, 2, 3),
        flops=flops,
        backward_flops=2 * flops,
        tf32=tf32,
        tolerance=1e-2,
        halves=() if tf32 else HALVES,
        compiled=False,
    )
