"""PCK, the share of correct keypoints: matches that lie within a distance of the truth.

UCN's measure (section 4): a match is correct when it is at most T pixels from the true point
(geometric sets), or at most alpha L, with L the image's longer side (PASCAL) or its diagonal (CUB).
HardNegativeMining's own PCK, as UCN's text has it, counts those closer than T.

Bottoms: pairs ``[N, P, 5]`` rows (x1, y1, x2, y2, s) in image pixels, of which those with s = 1
count; index ``[N, k, P]`` of KNN, whose first row is the match (-1: no match, never correct); the
reference map ``[N, C, H, W]`` that index refers to; and, where ``length`` asks for L, the second
image ``[N, C, h, w]``. Top: ``[T]``, one share in 0..1 for each threshold; 0 where nothing counts.
No gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .._engine.checks import BlobError, Shape, expect_axes
from .._engine.declared import Bottom, Trait
from .._engine.layer import Layer
from .._engine.params import param
from .._engine.registry import register
from .._geometry.keypoints import Length, share_within


@dataclass(frozen=True)
class Params:
    """Thresholds and the coordinate rule of the map that was searched."""

    threshold: tuple[float, ...] = param((3.0, 5.0, 10.0), low=0, doc="in units of length")
    length: Length = param(Length.PIXEL, doc="what thresholds are relative to")
    downsampling_factor: float = param(
        4.0,
        above=0,
        unit="pixels per cell",
        aliases=("down_sampling_factor",),
        doc="of the map that the index refers to",
    )
    coordinate_offset: float = param(0.0, unit="image pixels", doc="image point of cell 0")
    index_base: int = param(0, low=0, high=1, doc="1 for released nets")


def infer(
    params: Params, pairs: Shape, index: Shape, reference: Shape, image: Shape | None = None
) -> tuple[Shape, ...]:
    """Shape of the top; raises BlobError."""
    expect_axes("N P 5", pairs=pairs)
    expect_axes("N k P", index=index)
    expect_axes("N C H W", reference=reference)
    if (index[0], index[2]) != tuple(pairs[:2]):
        raise BlobError("bottoms disagree on N or P: {pairs}, {index}", pairs=pairs, index=index)
    if params.length is not Length.PIXEL and image is None:
        raise BlobError(f"length {params.length.name} needs the second image as a fourth bottom")
    return ((len(params.threshold),),)


@register("PCK", bottoms=(3, 4))
class PCK(Layer):
    """The share of matches near the truth; see the module."""

    Params = Params
    BOTTOMS = (Bottom("pairs"), Bottom("index"), Bottom("reference"), Bottom("image"))
    TRAITS = (Trait.METRIC,)
    infer = staticmethod(infer)

    @torch.no_grad()
    def forward(
        self,
        pairs: torch.Tensor,
        index: torch.Tensor,
        reference: torch.Tensor,
        image: torch.Tensor | None = None,
    ) -> torch.Tensor:
        bottoms = [pairs, index, reference] + ([image] if image is not None else [])
        infer(self.params, *(tuple(bottom.shape) for bottom in bottoms))
        cell = index[:, 0].long() - self.params.index_base
        width = reference.shape[3]
        matched = torch.stack([cell % width, cell // width], 2) * self.params.downsampling_factor
        matched = matched + self.params.coordinate_offset
        distance = (matched - pairs[..., 2:4]).norm(dim=2)
        distance = distance.masked_fill(cell < 0, torch.inf)
        if image is not None:
            distance = distance / self.params.length.of(*image.shape[-2:])
        return share_within(distance, pairs[..., 4] == 1, self.params.threshold)
