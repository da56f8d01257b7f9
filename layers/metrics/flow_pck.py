"""PCK of a dense flow: keypoints carried over by it that lie within a distance of the truth.

SCNet's measure (section 5.1) of what RegionFlow makes of region matches: a keypoint p of the first
image is carried to phi(p) = p + flow(p), the flow read at the pixel nearest to p, and is correct
when phi(p) is at most tau L from the true point, L by default the diagonal of the warped image.

Bottoms: flow ``[N, 2, H, W]``, x then y, in pixels, NaN where there is none (never correct); pairs
``[N, P, 5]`` rows (x1, y1, x2, y2, s) in image pixels, of which those with s = 1 count; and,
unless ``length`` is PIXEL, the image ``[N, C, h, w]`` whose L is meant. Top: ``[T]``, one share in
0..1 for each threshold; 0 where nothing counts. No gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .._engine.checks import BlobError, Shape, expect_axes
from .._engine.declared import Bottom, Role, Trait
from .._engine.layer import Layer
from .._engine.params import param
from .._engine.registry import register
from .._geometry.geometry import expect_finite, nearest_cells
from .._geometry.keypoints import Length, share_within


@dataclass(frozen=True)
class Params:
    """Thresholds, and what they are shares of."""

    threshold: tuple[float, ...] = param((0.05, 0.1, 0.15), low=0, doc="in units of length")
    length: Length = param(Length.DIAGONAL, doc="what thresholds are relative to")


def infer(params: Params, flow: Shape, pairs: Shape, image: Shape | None = None) -> tuple[Shape, ...]:
    """Shape of the top; raises BlobError."""
    expect_axes("N 2 H W", flow=flow)
    expect_axes("N P 5", pairs=pairs)
    if flow[1] != 2:
        raise BlobError("expected {flow} to be [N, 2, H, W]", flow=flow)
    if pairs[2] != 5:
        raise BlobError("expected {pairs} to be [N, P, 5], rows (x1, y1, x2, y2, s)", pairs=pairs)
    if flow[0] != pairs[0]:
        raise BlobError("bottoms disagree on N: {flow}, {pairs}", flow=flow, pairs=pairs)
    if params.length is not Length.PIXEL:
        if image is None:
            raise BlobError(f"length {params.length.name} needs an image as a third bottom")
        expect_axes("N C h w", image=image)
    return ((len(params.threshold),),)


@torch.no_grad()
def flow_pck(
    flow: torch.Tensor,
    pairs: torch.Tensor,
    threshold: tuple[float, ...] = (0.05, 0.1, 0.15),
    length: float = 1.0,
) -> torch.Tensor:
    """The share ``[T]`` of keypoints that a flow carries within ``threshold`` times ``length``.

    Bottoms as in the module; ``length`` in pixels. Raises BlobError.
    """
    infer(Params(threshold, Length.PIXEL), tuple(flow.shape), tuple(pairs.shape))
    expect_finite(pairs[..., :4], pairs=pairs)
    height, width = flow.shape[2:]
    if not height * width:
        return share_within(pairs[..., 0], torch.zeros_like(pairs[..., 4], dtype=torch.bool), threshold)
    points = pairs[..., :2]
    cell = nearest_cells(points, height, width, 1.0)
    moved = flow.flatten(2).gather(2, cell[:, None].expand(-1, 2, -1)).transpose(1, 2)
    distance = (points + moved - pairs[..., 2:4]).norm(dim=2) / length
    return share_within(distance, pairs[..., 4] == 1, threshold)


@register("FlowPCK", bottoms=(2, 3))
class FlowPCK(Layer):
    """The share of keypoints that a flow carries near the truth; see the module."""

    Params = Params
    BOTTOMS = (Bottom("flow", role=Role.TABLE), Bottom("pairs", role=Role.TABLE), Bottom("image"))
    TRAITS = (Trait.METRIC,)
    infer = staticmethod(infer)

    def forward(
        self, flow: torch.Tensor, pairs: torch.Tensor, image: torch.Tensor | None = None
    ) -> torch.Tensor:
        bottoms = [flow, pairs] + ([image] if image is not None else [])
        infer(self.params, *(tuple(bottom.shape) for bottom in bottoms))
        height, width = image.shape[-2:] if image is not None else (1, 1)
        length = self.params.length.of(height, width)
        return flow_pck(flow, pairs, self.params.threshold, length)
