"""LT-ACC and IoU: how well an object's outline, carried over by a method, covers the object's mask.

For Caltech-101: the vertices of image A's outline are transferred to image B, both outlines are filled
in B, and the two masks are compared. A plain module; float64.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


def filled(outline: npt.NDArray[np.float64], size: tuple[int, int]) -> Mask:
    """The mask [H, W] of an outline's inside, in an image of size (H, W).

    outline: [K, 2], its vertices (x, y) in pixels, 0-based, in order; those that are NaN are left out,
    and fewer than 3 enclose nothing. Filled as ``skimage.draw.polygon`` does.
    """
    from skimage.draw import polygon

    outline = outline[~np.isnan(outline).any(1)]
    mask = np.zeros(size, bool)
    if len(outline) >= 3:
        mask[polygon(outline[:, 1], outline[:, 0], size)] = True
    return mask


def label_transfer(found: Mask, truth: Mask) -> tuple[float, float]:
    """(LT-ACC, IoU) of two masks [H, W]: the share of pixels of the same label, and the intersection
    over the union of the foreground, 0 where there is none. Raises ValueError for masks of two shapes.
    """
    if found.shape != truth.shape or not found.size:
        shapes = f"{list(found.shape)} and {list(truth.shape)}"
        raise ValueError(f"expected two masks of one shape [H, W], got {shapes}")
    union = np.count_nonzero(found | truth)
    iou = np.count_nonzero(found & truth) / union if union else 0.0
    return float(np.mean(found == truth)), float(iou)
