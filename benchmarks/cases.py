"""Each paper layer at paper size, and the same by plain torch operations and autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from cortado.layers._runtime.registry import find
from torch import Tensor

from .measure import Call, traffic


@dataclass(frozen=True)
class Case:
    """Two functions of the same leaves whose first top is the same."""

    name: str
    ours: Callable[..., Tensor]
    theirs: Callable[..., Tensor]
    leaves: Sequence[Tensor]
    differentiable: Sequence[int] = (0,)
    product: bool = False  # the least of the forward is a matrix product, not memory traffic

    @property
    def directions(self) -> tuple[str, ...]:
        return ("forward", "backward") if self.differentiable else ("forward",)

    def calls(self, direction: str) -> tuple[Call, Call, Call]:
        """Ours, the alternative's, and the floor's."""
        if direction == "forward":
            return self._forward(self.ours), self._forward(self.theirs), self._forward_floor()
        return self._backward(self.ours), self._backward(self.theirs), self._backward_floor()

    def whole(self, direction: str) -> tuple[Call, Call]:
        """The calls whose memory is measured: backward includes the forward that it needs."""
        if direction == "forward":
            return self._forward(self.ours), self._forward(self.theirs)
        ours, theirs = self.ours, self.theirs
        return lambda: self._backward(ours)(), lambda: self._backward(theirs)()

    def _forward(self, function: Callable[..., Tensor]) -> Call:
        def call() -> None:
            with torch.no_grad():
                function(*self.leaves)

        return call

    def _backward(self, function: Callable[..., Tensor]) -> Call:
        leaves = [
            x.detach().requires_grad_(i in self.differentiable) for i, x in enumerate(self.leaves)
        ]
        wanted = [leaves[i] for i in self.differentiable]
        top = function(*leaves)
        given = torch.ones_like(top)
        return lambda: torch.autograd.grad(top, wanted, given, retain_graph=True)

    def _forward_floor(self) -> Call:
        if not self.product:
            with torch.no_grad():
                return traffic([*self.leaves, self.ours(*self.leaves)])
        query, reference = self.leaves[0][0].mT.contiguous(), self.leaves[1][0].flatten(1)
        tiles = [(tile, tile.new_empty(len(query), tile.shape[1])) for tile in reference.split(1024, 1)]
        return lambda: [torch.mm(query, tile, out=out) for tile, out in tiles]

    def _backward_floor(self) -> Call:
        with torch.no_grad():
            top = self.ours(*self.leaves)
        return traffic([top, *(self.leaves[i] for i in self.differentiable)])


def cases() -> list[Case]:
    """Every case, its inputs drawn from the layers' own samples."""
    return [
        Case(
            "ChannelL2Norm, 2 x 128 x 95 x 311",
            _layer("ChannelL2Norm"),
            lambda x: F.normalize(x, dim=1),
            _bottoms("ChannelL2Norm"),
        ),
        Case(
            "ExtractFeature, 2 x 3,000 points",
            _layer("ExtractFeature"),
            lambda feature, pairs: _read(feature, pairs[..., :2]),
            _bottoms("ExtractFeature"),
        ),
        Case(
            "CorrespondenceContrastiveLoss, 2 x 3,000 pairs",
            _layer("CorrespondenceContrastiveLoss"),
            _contrastive_loss,
            _bottoms("CorrespondenceContrastiveLoss"),
            (0, 1),
        ),
        *(
            Case(
                f"KNN, 3,000 of 22,000 x 128, k = {(1, 5)[i]}",
                _layer("KNN", i),
                _nearest((1, 5)[i]),
                _bottoms("KNN", i),
                (0, 1),
                product=True,
            )
            for i in range(2)
        ),
        Case(
            "HardNegativeMining, 2 x 3,000 pairs",
            _layer("HardNegativeMining"),
            _mined,
            _bottoms("HardNegativeMining"),
            (),
        ),
        *(_transformer(i, batch) for i in range(2) for batch in (1, 2)),
    ]


def _bottoms(kind: str, i: int = 0) -> list[Tensor]:
    sample = _entry(kind).samples("paper", np.random.default_rng(0))[i]
    return [x.float() if x.is_floating_point() else x for x in sample.bottoms]


def _layer(kind: str, i: int = 0) -> Callable[..., Tensor]:
    layer = _entry(kind)(_entry(kind).samples("paper", np.random.default_rng(0))[i].params)

    def first(*bottoms: Tensor) -> Tensor:
        tops = layer(*bottoms)
        return tops[0] if isinstance(tops, tuple) else tops

    return first


def _entry(kind: str) -> type:
    entry = find(kind)
    assert entry is not None
    return entry.layer


def _read(feature: Tensor, points: Tensor, factor: float = 4.0) -> Tensor:
    """The features of image points by grid_sample."""
    size = torch.tensor(feature.shape[:1:-1], dtype=points.dtype) - 1
    grid = 2 * points[:, None] / (factor * size) - 1
    return F.grid_sample(feature, grid, padding_mode="border", align_corners=True)[:, :, 0]


def _contrastive_loss(feature1: Tensor, feature2: Tensor, pairs: Tensor) -> Tensor:
    margin = (
        _entry("CorrespondenceContrastiveLoss").samples("paper", np.random.default_rng(0))[0].params
    )
    difference = _read(feature1, pairs[..., :2]) - _read(feature2, pairs[..., 2:4])
    distance, s = difference.norm(dim=1), pairs[..., 4]
    terms = (s == 1) * distance**2 + (s == 0) * F.relu(margin.margin - distance) ** 2
    return terms.sum() / (2 * (s >= 0).sum())


def _nearest(k: int) -> Callable[..., Tensor]:
    def distances(query: Tensor, reference: Tensor) -> Tensor:
        every = torch.cdist(query.mT, reference.flatten(2).mT)
        return every.topk(k, dim=2, largest=False).values.mT

    return distances


def _mined(pairs: Tensor, index: Tensor, reference: Tensor, counts: Tensor) -> Tensor:
    """The table and what is reported with it, image by image, by masks."""
    tables, positives, true, mined, right = [], [], 0, 0, 0
    for table, nearest, count in zip(pairs, index[:, 0], counts[:, 0].tolist(), strict=True):
        width = reference.shape[3]
        match = 4.0 * torch.stack((nearest % width, nearest // width), dim=1)
        old, new = table.clone(), table.clone()
        old[count:, 4] = -1
        new[:, 4] = -1
        rows = (old[:, 4] == 1).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows))]
        new[rows, 2:4] = table[rows.roll(1), 2:4]
        apart = (new[rows, 2:4] - table[rows, 2:4]).norm(dim=1)
        new[rows[apart >= 16], 4] = 0
        away = (match[rows] - table[rows, 2:4]).norm(dim=1)
        hard = rows[away > 16]
        new[hard, 2:4], new[hard, 4] = match[hard], 0
        tables.append(torch.cat((old, new)))
        positives.append(torch.where(old[:, 4:] == 1, old, old.new_tensor([0, 0, 0, 0, -1])))
        true, mined, right = true + len(rows), mined + len(hard), right + int((away < 10).sum())
    tops = torch.stack(tables), right / max(true, 1), true, mined, torch.stack(positives)
    return tops[0]


def _transformer(i: int, batch: int) -> Case:
    channels, k = ((96, 3), (16, 5))[i]
    leaves = [x.repeat(batch, 1, 1, 1) for x in _bottoms("ConvolutionalSpatialTransformer", i)]
    return Case(
        f"ConvolutionalSpatialTransformer, {batch} x {channels} x 95 x 311, k = {k}",
        _layer("ConvolutionalSpatialTransformer", i),
        lambda u, theta: _transformed(u, theta, k),
        leaves,
        (0, 1),
    )


def _transformed(u: Tensor, theta: Tensor, k: int) -> Tensor:
    n, _, height, width = u.shape
    t1, t2, t4, t5 = theta.view(n, 4, height, 1, width, 1).unbind(1)
    dx = torch.arange(k) - (k - 1) / 2
    dy = dx[:, None, None]
    x = torch.arange(width)[:, None] + (1 + t1) * dx + t2 * dy
    y = torch.arange(height)[:, None, None, None] + t4 * dx + (1 + t5) * dy
    grid = torch.stack((2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1), dim=-1)
    return F.grid_sample(u, grid.view(n, k * height, k * width, 2), align_corners=True)
