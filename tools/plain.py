"""What a user would write instead of each layer: torch's operations and autograd, on any device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Kept = tuple[slice, slice, slice, slice]
"""The rows and columns of two images' cells that take part."""


def normalized(x: Tensor, eps: float = 1e-12) -> Tensor:
    """ChannelL2Norm."""
    return F.normalize(x, dim=1, eps=eps)


def local_response(
    x: Tensor, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """LRN across channels."""
    return F.local_response_norm(x, size, alpha, beta, k)


def read(feature: Tensor, points: Tensor, factor: float = 4.0, offset: float = 0.0) -> Tensor:
    """ExtractFeature: the features of image points by grid_sample."""
    height, width = feature.shape[2:]
    u, v = ((points - offset) / factor).unbind(-1)
    grid = torch.stack((2 * u / max(width - 1, 1) - 1, 2 * v / max(height - 1, 1) - 1), dim=-1)
    grid = grid[:, None].to(feature.dtype)
    return F.grid_sample(feature, grid, padding_mode="border", align_corners=True)[:, :, 0]


def contrastive_loss(
    feature1: Tensor,
    feature2: Tensor,
    pairs: Tensor,
    margin: float = 1.0,
    factor: float = 4.0,
    offset: float = 0.0,
) -> Tensor:
    """CorrespondenceContrastiveLoss."""
    first = read(feature1, pairs[..., :2], factor, offset)
    difference = first - read(feature2, pairs[..., 2:4], factor, offset)
    distance, s = difference.norm(dim=1), pairs[..., 4]
    terms = (s == 1) * distance**2 + (s == 0) * F.relu(margin - distance) ** 2
    return terms.sum() / (2 * (s >= 0).sum())


def nearest(query: Tensor, reference: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """KNN: every distance, then the k least; ``[N, k, P]`` twice."""
    every = torch.cdist(query.mT, reference.flatten(2).mT)
    distance, index = every.topk(k, dim=2, largest=False)
    return distance.mT, index.mT


def mined(
    pairs: Tensor,
    index: Tensor,
    reference: Tensor,
    counts: Tensor,
    factor: float = 4.0,
    offset: float = 0.0,
    apart: float = 16.0,
) -> tuple[Tensor, ...]:
    """HardNegativeMining: the table and what is reported with it, image by image, by masks."""
    tables, positives, true, hards, right = [], [], 0, 0, 0
    for table, near, count in zip(pairs, index[:, 0], counts[:, 0].tolist(), strict=True):
        width = reference.shape[3]
        match = factor * torch.stack((near % width, near // width), dim=1) + offset
        match = match.to(table.dtype)
        old, new = table.clone(), table.clone()
        old[int(count) :, 4] = -1
        new[:, 4] = -1
        rows = (old[:, 4] == 1).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), device=rows.device)]
        new[rows, 2:4] = table[rows.roll(1), 2:4]
        gap = (new[rows, 2:4] - table[rows, 2:4]).norm(dim=1)
        new[rows[gap >= apart], 4] = 0
        away = (match[rows] - table[rows, 2:4]).norm(dim=1)
        hard = rows[away > apart]
        new[hard, 2:4], new[hard, 4] = match[hard], 0
        tables.append(torch.cat((old, new)))
        positives.append(torch.where(old[:, 4:] == 1, old, old.new_tensor([0, 0, 0, 0, -1])))
        true, hards, right = true + len(rows), hards + len(hard), right + int((away < 10).sum())
    return torch.stack(tables), torch.tensor(right / max(true, 1)), torch.stack(positives)


def offsets(theta: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """How far from its location each point of a transformed patch lies: x, y ``[N, H, k, W, k]``."""
    n, _, height, width = theta.shape
    t1, t2, t4, t5 = theta.view(n, 4, height, 1, width, 1).unbind(1)
    dx = torch.arange(k, device=theta.device) - (k - 1) / 2
    dy = dx[:, None, None]
    return (1 + t1) * dx + t2 * dy, t4 * dx + (1 + t5) * dy


def transformed(u: Tensor, theta: Tensor, k: int) -> Tensor:
    """ConvolutionalSpatialTransformer, relative, by grid_sample."""
    if theta.shape[1] != 4:
        raise ValueError("theta with a translation is not written in plain operations")
    n, _, height, width = u.shape
    x, y = offsets(theta, k)
    x = x + torch.arange(width, device=u.device)[:, None]
    y = y + torch.arange(height, device=u.device)[:, None, None, None]
    grid = torch.stack((2 * x / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1), dim=-1)
    return F.grid_sample(u, grid.view(n, k * height, k * width, 2), align_corners=True)


def deformed(u: Tensor, theta: Tensor, weight: Tensor) -> Tensor:
    """The transformer and the convolution of its patches, by torchvision's deform_conv2d."""
    from torchvision.ops import deform_conv2d

    k = weight.shape[2]
    d = torch.arange(k, device=u.device) - (k - 1) / 2
    dx, dy = d[:, None, None], d[:, None, None, None]
    t1, t2, t4, t5 = theta[:, :, None, None].unbind(1)  # [N, 1, 1, H, W]
    x, y = t1 * dx + t2 * dy, t4 * dx + t5 * dy
    shift = torch.stack((y, x), dim=3)  # [N, k, k, 2, H, W]
    return deform_conv2d(u, shift.flatten(1, 3), weight, padding=k // 2)


def convolved(u: Tensor, theta: Tensor, weight: Tensor) -> Tensor:
    """The same in torch's operations: the patches, then a convolution with stride k."""
    k = weight.shape[2]
    return F.conv2d(transformed(u, theta, k), weight, stride=k)


def cosines(a: Tensor, b: Tensor, exponent: float = 1.0, eps: float = 1e-12) -> Tensor:
    """RectifiedCosine."""
    a, b = (F.normalize(x[..., 0, 0] if x.dim() == 4 else x, dim=-1, eps=eps) for x in (a, b))
    return F.relu(a @ b.mT) ** exponent


def pooled(
    data: Tensor, rois: Tensor, pooled_h: int, pooled_w: int, spatial_scale: float = 1.0
) -> Tensor:
    """ROIPooling of regions inside of the image, one after the other."""
    corners = (rois[:, 1:] * spatial_scale + 0.5).long()
    images = rois[:, 0].long()
    crops = [
        data[image, :, y1 : y2 + 1, x1 : x2 + 1]
        for image, (x1, y1, x2, y2) in zip(images.tolist(), corners.tolist(), strict=True)
    ]
    return torch.stack([F.adaptive_max_pool2d(crop, (pooled_h, pooled_w)) for crop in crops])


def voted(
    scores: Tensor,
    rois_a: Tensor,
    rois_b: Tensor,
    size_a: tuple[int, int],
    size_b: tuple[int, int],
    votes: Tensor | None = None,
    one_hot: bool = False,
) -> Tensor:
    """HoughVoting by index_add, or by a matrix with a row for each match and a one in its bin."""
    at, count = offset_bins(rois_a, rois_b, size_a, size_b)
    given = (scores if votes is None else votes).flatten()
    if one_hot:
        matrix = (at[:, None] == torch.arange(count, device=at.device)).to(given.dtype)
        found = matrix @ (given @ matrix)
    else:
        found = given.new_zeros(count + 1).index_add(0, at, given)[at]
    return scores * found.where(at < count, 0).view_as(scores)


def offset_bins(
    rois_a: Tensor, rois_b: Tensor, size_a: tuple[int, int], size_b: tuple[int, int]
) -> tuple[Tensor, int]:
    """The bin of each of A's boxes with each of B's, in a row, and how many bins there are; their
    number is that of matches that have none."""
    (x_a, y_a, w_a, h_a), (x_b, y_b, w_b, h_b) = map(_half_extents, (rois_a, rois_b))
    x_a, y_a, w_a, h_a = (value[:, None] for value in (x_a, y_a, w_a, h_a))
    x = x_b + w_b * (size_a[1] - 1 - x_a) / w_a
    y = y_b + h_b * (size_a[0] - 1 - y_a) / h_a
    scale = torch.log2(w_b * h_b / (w_a * h_a))
    height, width = size_b
    cell = max((4 * width * height / 8000) ** 0.5, 5)
    index, inside, count = torch.zeros_like(x), torch.ones_like(x, dtype=torch.bool), 1
    for value, low, high, bins in (
        (scale, -4, 4, 40),
        (x, 0, 2 * width - 1, int(0.4 * width / cell + 0.5)),
        (y, 0, 2 * height - 1, int(0.4 * height / cell + 0.5)),
    ):
        along = ((value - low) * (bins / (high - low))).floor()
        inside &= (along >= 0) & (along < bins)
        index, count = index * bins + along, count * bins
    return index.where(inside, count).long().flatten(), count


def _half_extents(rois: Tensor) -> tuple[Tensor, ...]:
    """Centre and half extents of each box, in double, as bins have edges."""
    x1, y1, x2, y2 = rois[:, -4:].double().unbind(1)
    return (x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) / 2, (y2 - y1) / 2


def correlated(
    maps_a: Sequence[Tensor],
    maps_b: Sequence[Tensor],
    kept: Kept,
    exponent: float = 3.0,
    eps: float = 1e-12,
) -> Tensor:
    """HyperpixelCorrelation: the maps upsampled and concatenated, the kept cells' cosines."""
    base_a, base_b = maps_a[0], maps_b[0]
    a, b = (_hyperimage(maps)[..., *part] for maps, part in ((maps_a, kept[:2]), (maps_b, kept[2:])))
    found = cosines(a.flatten(2).mT, b.flatten(2).mT, exponent, eps)
    top = base_a.new_zeros(len(base_a), *base_a.shape[2:], *base_b.shape[2:])
    top[:, *kept] = found.view_as(top[:, *kept])
    return top


def _hyperimage(maps: Sequence[Tensor]) -> Tensor:
    size = maps[0].shape[2:]
    others = (F.interpolate(x, size, mode="bilinear", align_corners=True) for x in maps[1:])
    return torch.cat((maps[0], *others), dim=1)


def matched(
    similarity: Tensor,
    size_a: tuple[float, float],
    size_b: tuple[float, float],
    kept: Kept,
    jump: float = 4.0,
    cells: float = 8192.0,
    sigma: float = 7 / 2 / 2.354,
    kernel_size: int = 7,
) -> Tensor:
    """RegularizedHoughMatching: a bin for each match, index_add and a convolution of the bins."""
    part = similarity[:, *kept]
    height, width = (a + b for a, b in zip(size_a, size_b, strict=True))
    cell = (height * width / cells) ** 0.5
    rows, columns = int(height / cell) + 1, int(width / cell) + 1
    axes = (torch.arange(k.start, k.stop, device=part.device) * jump for k in kept)
    y, x, y_b, x_b = (axis.float() for axis in axes)
    row = ((size_a[0] - y[:, None] + y_b) / cell).long().clamp(0, rows - 1)
    column = ((size_a[1] - x[:, None] + x_b) / cell).long().clamp(0, columns - 1)
    at = (row[:, None, :, None] * columns + column[:, None]).flatten()
    votes = part.new_zeros(len(part), rows * columns).index_add(1, at, part.flatten(1))
    steps = torch.arange(kernel_size, device=part.device) - kernel_size // 2
    weight = torch.exp(-((steps / sigma) ** 2) / 2).to(part.dtype)
    kernel = torch.outer(weight, weight) / weight.sum() ** 2
    smooth = F.conv2d(votes.view(-1, 1, rows, columns), kernel[None, None], padding=kernel_size // 2)
    top = torch.zeros_like(similarity)
    top[:, *kept] = part * smooth.flatten(1)[:, at].view_as(part)
    return top


WRITTEN = {"bilinear_interpolation": True, "index_base": 0, "normalized": False}
CHOSEN = {
    "ChannelL2Norm": {"eps_mode": "MAX"},
    "LRN": {"norm_region": "ACROSS_CHANNELS"},
    "HardNegativeMining": {"mode": "HARD_NEG_AND_RAND_NEG_AND_POS"},
    "CorrespondenceContrastiveLoss": {"form": "SQUARED_HINGE", "grad": "exact"},
    "ConvolutionalSpatialTransformer": {"theta_mode": "RELATIVE"},
    "ROIPooling": {"edges": "exact"},
}
"""The parameters that are written here: of all layers, and of each."""


def replacements(layer: Any) -> Callable[..., Any] | None:
    """What computes a net's layer in plain operations; None where the layer is just that, or does
    by its parameters what is not written here."""
    kind, params = layer.type_name, layer.params
    if any(getattr(params, name, value) != value for name, value in WRITTEN.items()):
        return None
    if any(getattr(params, name).name != value for name, value in CHOSEN.get(kind, {}).items()):
        return None
    if kind == "HoughVoting" and params != type(params)():
        return None  # the paper's rule and its bins
    if getattr(params, "channel_weights", False):
        return None
    read_options: dict[str, Any] = {
        "factor": getattr(params, "downsampling_factor", 0.0),
        "offset": getattr(params, "coordinate_offset", 0.0),
    }
    column = getattr(params, "coord_start_ind", 0)
    found: dict[str, Callable[..., Any]] = {
        "ChannelL2Norm": lambda x: normalized(x, params.eps),
        "LRN": lambda x: local_response(x, params.local_size, params.alpha, params.beta, params.k),
        "ExtractFeature": lambda feature, pairs: read(
            feature, pairs[..., column : column + 2], **read_options
        ),
        "KNN": lambda query, reference, *counts: nearest(query, reference, params.k),
        "HardNegativeMining": lambda *bottoms: mined(*bottoms, **read_options),
        "CorrespondenceContrastiveLoss": lambda feature1, feature2, pairs: contrastive_loss(
            feature1, feature2, pairs, params.margin, **read_options
        ),
        "ConvolutionalSpatialTransformer": lambda u, theta: transformed(u, theta, params.kernel_size),
        "RectifiedCosine": lambda a, b: cosines(a, b, params.exponent, params.eps),
        "ROIPooling": lambda data, rois: pooled(
            data, rois, params.pooled_h, params.pooled_w, params.spatial_scale
        ),
        "HyperpixelCorrelation": lambda *bottoms: _correlated(params, bottoms),
        "RegularizedHoughMatching": lambda similarity, image_a, image_b: matched(
            similarity,
            *(size_a := image_a.shape[2:], size_b := image_b.shape[2:]),
            kept_cells(params, similarity.shape[1:], size_a, size_b),
            *(params.jump, params.cells, params.sigma, params.kernel_size),
        ),
        "HoughVoting": lambda scores, rois_a, rois_b, image_a, image_b, *votes: voted(
            scores, rois_a, rois_b, image_a.shape[2:], image_b.shape[2:], *votes
        ),
    }
    return found.get(kind)


def kept_cells(
    params: Any, grid: Sequence[int], size_a: Sequence[float], size_b: Sequence[float]
) -> Kept:
    """The cells of a grid [H, W, H', W'] that take part, of images of (height, width)."""
    return (*params.grid(grid[:2], size_a), *params.grid(grid[2:], size_b))


def _correlated(params: Any, bottoms: Sequence[Tensor]) -> Tensor:
    images = bottoms[-2:] if params.margin is not None else ()
    count = (len(bottoms) - len(images)) // 2
    maps = bottoms[:count], bottoms[count : 2 * count]
    sizes: list[Sequence[int]] = [image.shape[2:] for image in images] or [(0, 0)] * 2
    grid = [length for side in maps for length in side[0].shape[2:]]
    return correlated(*maps, kept_cells(params, grid, *sizes), params.exponent, params.eps)


def of_torchvision(layer: Any) -> Callable[..., Any] | None:
    """The operation of torchvision that computes the layer; None where it has none."""
    if layer.type_name != "ROIPooling":
        return None
    params = layer.params

    def pooled(data: Tensor, rois: Tensor) -> Tensor:
        from torchvision.ops import roi_pool

        size = (params.pooled_h, params.pooled_w)
        top: Tensor = roi_pool(data, rois.to(data.dtype), size, params.spatial_scale)
        return top

    return pooled
