"""Each paper layer at paper size, and the same by plain torch operations and autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from cortado.layers._engine.registry import find
from cortado.layers._engine.samples import Sample
from cortado.tools import plain
from cortado.tools.measuring import Call, backward, forward, nbytes, traffic
from torch import Tensor

from .onnx import max_roi_pool


@dataclass(frozen=True)
class Case:
    """Two functions of the same leaves whose first top is the same."""

    name: str
    ours: Callable[..., Tensor]
    theirs: Callable[..., Tensor]
    leaves: Sequence[Tensor]
    differentiable: Sequence[int] = (0,)
    products: Callable[..., Call] | None = None  # the least of the forward, if not memory traffic

    @property
    def directions(self) -> tuple[str, ...]:
        return ("forward", "backward") if self.differentiable else ("forward",)

    def calls(self, direction: str) -> tuple[Call, Call, Call]:
        """Ours, the alternative's, and the floor's."""
        if direction == "forward":
            return *self.whole(direction), self._forward_floor()
        return self._backward(self.ours), self._backward(self.theirs), self._backward_floor()

    def whole(self, direction: str) -> tuple[Call, Call]:
        """The calls whose memory is measured: backward includes the forward that it needs."""
        if direction == "forward":
            return forward(self.ours, self.leaves), forward(self.theirs, self.leaves)
        ours, theirs = self.ours, self.theirs
        return lambda: self._backward(ours)(), lambda: self._backward(theirs)()

    def _backward(self, function: Callable[..., Tensor]) -> Call:
        return backward(function, self.leaves, self.differentiable)

    def _forward_floor(self) -> Call:
        if self.products:
            return self.products(*self.leaves)
        with torch.no_grad():
            return traffic(nbytes(*self.leaves, self.ours(*self.leaves)))

    def _backward_floor(self) -> Call:
        with torch.no_grad():
            top = self.ours(*self.leaves)
        return traffic(nbytes(top, *(self.leaves[i] for i in self.differentiable)))


def cases() -> list[Case]:
    """Every case, its inputs drawn from the layers' own samples."""
    return [
        Case(
            "ChannelL2Norm, 2 x 128 x 95 x 311",
            _layer("ChannelL2Norm"),
            plain.normalized,
            _bottoms("ChannelL2Norm"),
        ),
        Case(
            "ExtractFeature, 2 x 3,000 points",
            _layer("ExtractFeature"),
            lambda feature, pairs: plain.read(feature, pairs[..., :2]),
            _bottoms("ExtractFeature"),
        ),
        Case(
            "CorrespondenceContrastiveLoss, 2 x 3,000 pairs",
            _layer("CorrespondenceContrastiveLoss"),
            _contrastive_loss(),
            _bottoms("CorrespondenceContrastiveLoss"),
            (0, 1),
        ),
        *(
            Case(
                f"KNN, 3,000 of 22,000 x 128, k = {(1, 5)[i]}",
                _layer("KNN", i),
                lambda query, reference, k=(1, 5)[i]: plain.nearest(query, reference, k)[0],
                _bottoms("KNN", i),
                (0, 1),
                products=_distances,
            )
            for i in range(2)
        ),
        Case(
            "HardNegativeMining, 2 x 3,000 pairs",
            _layer("HardNegativeMining"),
            lambda *bottoms: plain.mined(*bottoms)[0],
            _bottoms("HardNegativeMining"),
            (),
        ),
        *(_transformer(i, batch) for i in range(2) for batch in (1, 2)),
        Case(
            "ROIPooling, 512 x 30 x 40, 1,000 regions",
            _layer("ROIPooling"),
            lambda data, rois: plain.pooled(data, rois, 7, 7, 1 / 16),
            _bottoms("ROIPooling"),
        ),
        _on_one_thread(),
        Case(
            "RectifiedCosine, 1,000 x 1,000 regions x 2,048",
            _layer("RectifiedCosine"),
            lambda a, b: F.relu(F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).mT),
            _bottoms("RectifiedCosine"),
            (0, 1),
        ),
        *(_voting(regions) for regions in (500, 1000, 2000)),
        *(_correlation(size) for size in ("paper", "large")),
        *(_matching(size) for size in ("paper", "large")),
    ]


def _distances(query: Tensor, reference: Tensor) -> Call:
    """KNN's products, in tiles."""
    wide, narrow = query[0].mT.contiguous(), reference[0].flatten(1)
    tiles = [(tile, tile.new_empty(len(wide), tile.shape[1])) for tile in narrow.split(1024, 1)]
    return lambda: [torch.mm(wide, tile, out=out) for tile, out in tiles]


def _on_one_thread() -> Case:
    """ROI pooling against onnxruntime's MaxRoiPool, both on one thread."""
    pooling, bottoms = _layer("ROIPooling"), _bottoms("ROIPooling")

    def alone(data: Tensor, rois: Tensor) -> Tensor:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return pooling(data, rois)
        finally:
            torch.set_num_threads(threads)

    name = "ROIPooling on one thread against onnxruntime, 512 x 30 x 40, 1,000 regions"
    return Case(name, alone, max_roi_pool((7, 7), 1 / 16), bottoms, ())


def _voting(regions: int) -> Case:
    """Half the paper's regions, all of them, or each twice."""
    scores, *rois, image_a, image_b = _bottoms("HoughVoting")
    rois = [table.repeat(2, 1)[:regions] for table in rois]
    scores = scores.repeat(2, 2)[:regions, :regions].contiguous()
    voting = _layer("HoughVoting")
    sizes = tuple(image_a.shape[2:]), tuple(image_b.shape[2:])
    return Case(
        f"HoughVoting against index_add, {regions:,} x {regions:,} regions",
        lambda scores: voting(scores, *rois, image_a, image_b),
        lambda scores: plain.voted(scores, *rois, *sizes),
        [scores],
    )


def _correlation(size: str) -> Case:
    """Five maps a side; the least are the products at each map's own size, of the cells that count."""
    *maps, image_a, image_b = _bottoms("HyperpixelCorrelation", size=size)
    layer = _entry("HyperpixelCorrelation")(_sample("HyperpixelCorrelation", size=size).params)
    sides = maps[:5], maps[5:]
    grid = [length for side in sides for length in side[0].shape[2:]]
    kept = plain.kept_cells(layer.params, grid, image_a.shape[2:], image_b.shape[2:])

    def products(*maps: Tensor) -> Call:
        first = [(maps[0][..., *kept[:2]], maps[5][..., *kept[2:]])]
        pairs = [
            (a[0].flatten(1).mT.contiguous(), b[0].flatten(1))
            for a, b in (*first, *zip(maps[1:5], maps[6:], strict=True))
        ]
        outs = [a.new_empty(len(a), b.shape[1]) for a, b in pairs]
        return lambda: [torch.mm(*pair, out=out) for pair, out in zip(pairs, outs, strict=True)]

    return Case(
        f"HyperpixelCorrelation against upsampled maps, {_cells(kept)}",
        lambda *maps: layer(*maps, image_a, image_b),
        lambda *maps: plain.correlated(maps[:5], maps[5:], kept),
        maps,
        tuple(range(10)),
        products,
    )


def _matching(size: str) -> Case:
    similarity, image_a, image_b = _bottoms("RegularizedHoughMatching", size=size)
    layer = _entry("RegularizedHoughMatching")(_sample("RegularizedHoughMatching", size=size).params)
    sizes = tuple(image_a.shape[2:]), tuple(image_b.shape[2:])
    kept = plain.kept_cells(layer.params, similarity.shape[1:], *sizes)
    return Case(
        f"RegularizedHoughMatching against index_add, {_cells(kept)}",
        lambda similarity: layer(similarity, image_a, image_b),
        lambda similarity: plain.matched(similarity, *sizes, kept, layer.params.jump),
        [similarity],
    )


def _cells(kept: plain.Kept) -> str:
    down_a, across_a, down_b, across_b = (part.stop - part.start for part in kept)
    return f"{down_a * across_a:,} x {down_b * across_b:,} cells"


def _sample(kind: str, i: int = 0, size: str = "paper") -> Sample:
    sample: Sample = _entry(kind).samples(size, np.random.default_rng(0))[i]
    return sample


def _bottoms(kind: str, i: int = 0, size: str = "paper") -> list[Tensor]:
    sample = _sample(kind, i, size)
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


def _contrastive_loss() -> Callable[..., Tensor]:
    sample = _entry("CorrespondenceContrastiveLoss").samples("paper", np.random.default_rng(0))[0]
    return lambda *bottoms: plain.contrastive_loss(*bottoms, margin=sample.params.margin)


def _transformer(i: int, batch: int) -> Case:
    channels, k = ((96, 3), (16, 5))[i]
    leaves = [x.repeat(batch, 1, 1, 1) for x in _bottoms("ConvolutionalSpatialTransformer", i)]
    return Case(
        f"ConvolutionalSpatialTransformer, {batch} x {channels} x 95 x 311, k = {k}",
        _layer("ConvolutionalSpatialTransformer", i),
        lambda u, theta: plain.transformed(u, theta, k),
        leaves,
        (0, 1),
    )
