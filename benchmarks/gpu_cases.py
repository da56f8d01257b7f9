"""What is measured on a GPU: the papers' sizes, and what a user would pick instead.

Inputs are drawn on the device, as many sets as pass its cache. Features have unit length, a query
lies near one of its references.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from cortado.layers._engine.dispatch import impl
from cortado.layers._engine.registry import find
from cortado.tools import plain
from cortado.tools.measuring import (
    Call,
    Function,
    backward,
    compiled,
    forward,
    nbytes,
    tuple_of,
    without_gradient,
)
from cortado.tools.results import BACKWARD, COMPILED, FORWARD, OURS, PLAIN
from torch import Tensor

BOTH = "forward + backward"
HALVES = (torch.float16, torch.bfloat16)
CELLS = (95, 311)  # of a KITTI pair's features
FACTOR = 4  # image pixels a cell


class Draw:
    """Random tensors on a device; ``dtype`` is that of features, tables are float32."""

    def __init__(self, device: str, dtype: torch.dtype, seed: int) -> None:
        self.device, self.dtype = device, dtype
        self.generator = torch.Generator(device).manual_seed(seed)

    def wide(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.device)

    def normal(self, *shape: int) -> Tensor:
        return self.wide(*shape).to(self.dtype)

    def unit(self, *shape: int) -> Tensor:
        return F.normalize(self.wide(*shape), dim=1).to(self.dtype)

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self.generator, device=self.device)

    def near(self, reference: Tensor, count: int) -> Tensor:
        """Queries ``[N, C, count]``, each 0.3 from a random reference."""
        cells = reference.flatten(2).float()
        own = cells[:, :, self.integers(cells.shape[2], count)]
        away = 0.3 * F.normalize(self.wide(*own.shape), dim=1)
        return F.normalize(own + away, dim=1).to(self.dtype)

    def table(self, images: int, points: int, cells: Sequence[int] = CELLS) -> Tensor:
        """Pairs of one place, a few pixels apart; two true matches for a false and an ignored one."""
        size = torch.tensor([cells[1], cells[0]], device=self.device) * FACTOR
        first = torch.rand(images, points, 2, generator=self.generator, device=self.device) * size
        label = torch.tensor([1.0, 0, 1, -1], device=self.device)[self.integers(4, images, points, 1)]
        return torch.cat((first, first + 3 * self.wide(images, points, 2), label), 2)


@dataclass(frozen=True)
class Task:
    """One line of the results."""

    case: int
    dtype: torch.dtype
    direction: str
    implementation: str


@contextmanager
def precision(name: str) -> Iterator[None]:
    """CUDA's float32 products and convolutions in ``"tf32"``, or in float32 (``"ieee"``), within."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = name
        yield
    finally:
        for backend, old in zip(backends, before, strict=True):
            backend.fp32_precision = old


@dataclass(frozen=True)
class GpuCase:
    """Implementations of one function of the same leaves, the first of them ours.

    ``moved(leaves, tops)`` gives the fewest bytes of forward and of backward, ``flops`` and
    ``backward_flops`` the multiplications and additions of what is bound by them. With ``tf32`` the
    products of float32 are in TF32, else in float32.
    """

    layer: str
    size: str
    draw: Callable[[Draw], tuple[Tensor, ...]]
    implementations: Mapping[str, Function]
    moved: Callable[[Sequence[Tensor], Tensor], tuple[float, float]]
    differentiable: tuple[int, ...] = (0,)
    flops: float = 0
    backward_flops: float = 0
    tf32: bool = False
    whole: bool = False  # forward and backward are one measurement
    tolerance: float | None = 1e-3  # of the first tops, in float32; None: they are random
    halves: Sequence[torch.dtype] = HALVES
    sets: int = 0  # of inputs; 0: as many as pass the cache
    compiled: bool = True  # whether to try torch.compile too, which takes its time

    @property
    def directions(self) -> tuple[str, ...]:
        if self.whole:
            return (BOTH,)
        return (FORWARD, BACKWARD) if self.differentiable else (FORWARD,)

    def tasks(self, number: int) -> list[Task]:
        """Ours in every type, then the others in float32, the compiled one last."""
        names = [name for name in self.implementations if name != OURS]
        names += [COMPILED] if self.compiled else []
        return [
            Task(number, dtype, direction, name)
            for direction in self.directions
            for dtype, name in [
                *((dtype, OURS) for dtype in (torch.float32, *self.halves)),
                *((torch.float32, name) for name in names),
            ]
        ]

    @contextmanager
    def forced(self, task: Task, device: str) -> Iterator[None]:
        """Ours runs its kernels or fails; products are in the case's precision."""
        ours = task.implementation == OURS and device != "cpu"
        with precision("tf32" if self.tf32 else "ieee"), impl("cuda") if ours else nullcontext():
            yield

    def function(self, task: Task) -> Function:
        if task.implementation != COMPILED:
            return self.implementations[task.implementation]
        return compiled(self.implementations[PLAIN])

    def leaves(self, device: str, dtype: torch.dtype, seed: int) -> tuple[Tensor, ...]:
        return self.draw(Draw(device, dtype, seed))

    def call(self, function: Function, leaves: Sequence[Tensor], direction: str) -> Call:
        """What is timed."""
        if direction == FORWARD:
            return forward(function, leaves)
        if direction == BOTH:
            return lambda: backward(function, leaves, self.differentiable)()
        return backward(function, leaves, self.differentiable)

    def everything(self, function: Function, leaves: Sequence[Tensor], direction: str) -> Call:
        """What memory is measured of: backward includes the forward that it needs."""
        return self.call(function, leaves, FORWARD if direction == FORWARD else BOTH)

    def disagrees(self, task: Task, leaves: Sequence[Tensor]) -> str:
        """How an implementation's first top differs from plain torch's; empty if it does not."""
        if self.tolerance is None or task.implementation == PLAIN:
            return ""
        wanted = tuple_of(without_gradient(self.implementations[PLAIN], [_wide(x) for x in leaves]))[0]
        with self.forced(task, leaves[0].device.type):
            found = tuple_of(without_gradient(self.function(task), leaves))[0]
        error = float((found.float() - wanted).abs().max() / wanted.abs().max())
        tolerance = self.tolerance if task.dtype == torch.float32 else max(3e-2, self.tolerance)
        return "" if error <= tolerance else f"differs from torch by {error:.2g}"

    def floor(
        self, direction: str, leaves: Sequence[Tensor], bandwidth: float, rates: Mapping[str, float]
    ) -> float:
        """Milliseconds below which no implementation comes: bytes or flops over what was measured."""
        top = tuple_of(without_gradient(self.implementations[OURS], leaves))[0]
        forward, backward = self.moved(leaves, top)
        least = {FORWARD: forward, BACKWARD: backward, BOTH: forward + backward}[direction]
        flops = {
            FORWARD: self.flops,
            BACKWARD: self.backward_flops,
            BOTH: self.flops + self.backward_flops,
        }
        rate = rates["tf32" if self.tf32 else str(leaves[0].dtype).removeprefix("torch.")]
        return 1e3 * max(least / bandwidth, flops[direction] / rate)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.is_floating_point() else x


# -------------------------------------------------------------------------------------- cases


def gpu_cases(small: bool = False) -> list[GpuCase]:
    """Every case; ``small`` is for trying them out."""
    cells = (8, 12) if small else CELLS
    few, many = (30, 60) if small else (3000, 100_000)
    near = (6, 10) if small else (88, 250)  # 22,000 references
    return [
        *_wide_cases(cells),
        *(_extraction(cells, points) for points in (few, many)),
        *(_loss(cells, pairs) for pairs in (few, many)),
        *(
            _knn(near, count, k, compiled=(count, k) == (few, 1))
            for count in (few // 3, few, many)
            for k in (1, 5)
        ),
        *(_mining(cells, points) for points in (few, many)),
        *(_transformer(cells, *of) for of in ((96, 3), (16, 5))),
        *(_convolution(cells, *of) for of in ((96, 208, 3), (16, 48, 5))),
        _mined_pairs(near, many),
    ]


def _layer(kind: str, **options: Any) -> Function:
    entry = find(kind)
    assert entry is not None
    layer = entry.layer(entry.layer.Params(**options))
    return lambda *bottoms: layer(*bottoms)


def _shown(count: int) -> str:
    return f"{count:,}"


def _wide_cases(cells: Sequence[int]) -> list[GpuCase]:
    height, width = cells
    size = f"{height} x {width}"
    return [
        GpuCase(
            "ChannelL2Norm",
            f"2 x 128 x {size}",
            lambda draw: (draw.normal(2, 128, height, width),),
            {OURS: _layer("ChannelL2Norm"), PLAIN: plain.normalized},
            lambda leaves, top: (2 * nbytes(top), 3 * nbytes(top)),
        ),
        *(
            GpuCase(
                "LRN",
                f"{channels} x {size}",
                lambda draw, channels=channels: (draw.normal(1, channels, height, width),),
                {OURS: _layer("LRN", alpha=1e-4), PLAIN: plain.local_response},
                lambda leaves, top: (2 * nbytes(top), 3 * nbytes(top)),
            )
            for channels in (64, 192)
        ),
    ]


def _touched(feature: Tensor, points: int) -> float:
    """Bytes of the map that bilinear reading at the points needs."""
    images, channels = feature.shape[:2]
    return min(nbytes(feature), 4.0 * images * points * channels * feature.element_size())


def _extraction(cells: Sequence[int], points: int) -> GpuCase:
    return GpuCase(
        "ExtractFeature",
        f"2 x 128 x {cells[0]} x {cells[1]}, {_shown(points)} points",
        lambda draw: (draw.unit(2, 128, *cells), draw.table(2, points, cells)),
        {OURS: _layer("ExtractFeature"), PLAIN: lambda x, pairs: plain.read(x, pairs[..., :2])},
        lambda leaves, top: (
            _touched(leaves[0], points) + nbytes(leaves[1], top),
            nbytes(*leaves, top),
        ),
    )


def _loss(cells: Sequence[int], pairs: int) -> GpuCase:
    def moved(leaves: Sequence[Tensor], top: Tensor) -> tuple[float, float]:
        read = 2 * _touched(leaves[0], pairs) + nbytes(leaves[2])
        return read, read + nbytes(*leaves[:2])

    return GpuCase(
        "CorrespondenceContrastiveLoss",
        f"2 x 128 x {cells[0]} x {cells[1]}, {_shown(pairs)} pairs",
        lambda draw: (
            draw.unit(2, 128, *cells),
            draw.unit(2, 128, *cells),
            draw.table(2, pairs, cells),
        ),
        {
            OURS: _layer("CorrespondenceContrastiveLoss", margin=1.5),
            PLAIN: lambda first, second, table: plain.contrastive_loss(first, second, table, 1.5),
        },
        moved,
        (0, 1),
    )


def _knn(cells: Sequence[int], queries: int, k: int, compiled: bool) -> GpuCase:
    references = cells[0] * cells[1]

    def draw(draw: Draw) -> tuple[Tensor, ...]:
        reference = draw.unit(1, 128, *cells)
        return draw.near(reference, queries), reference

    def moved(leaves: Sequence[Tensor], top: Tensor) -> tuple[float, float]:
        forward = nbytes(*leaves, top) + 8 * top.numel()
        found = min(1.0, queries * k / references) * nbytes(leaves[1])
        return forward, 9.0 * top.numel() + 2 * nbytes(*leaves) - nbytes(leaves[1]) + found

    return GpuCase(
        "KNN",
        f"{_shown(queries)} of {_shown(references)} x 128, k = {k}",
        draw,
        {
            OURS: _layer("KNN", k=k),
            PLAIN: lambda query, reference: plain.nearest(query, reference, k)[0],
        },
        moved,
        (0, 1),
        flops=2.0 * queries * references * 128,
        tolerance=1e-2,  # cdist's, by a matrix product
        compiled=compiled,
    )


def _mining(cells: Sequence[int], points: int) -> GpuCase:
    def draw(draw: Draw) -> tuple[Tensor, ...]:
        index = draw.integers(cells[0] * cells[1], 2, 1, points)
        counts = torch.full((2, 1), points, device=draw.device)
        return draw.table(2, points, cells), index, draw.wide(2, 1, *cells), counts

    def moved(leaves: Sequence[Tensor], top: Tensor) -> tuple[float, float]:
        return nbytes(*leaves[:2], leaves[0], top), 0.0

    return GpuCase(
        "HardNegativeMining",
        f"2 x {_shown(points)} pairs",
        draw,
        {OURS: _layer("HardNegativeMining"), PLAIN: plain.mined},
        moved,
        (),
        tolerance=None,
        halves=(),
        compiled=points < 10_000,
    )


def _transforms(draw: Draw, channels: int, cells: Sequence[int]) -> tuple[Tensor, Tensor]:
    theta = 0.2 * draw.wide(1, 4, *cells)
    return draw.normal(1, channels, *cells), theta.to(draw.dtype)


def _transformer(cells: Sequence[int], channels: int, k: int) -> GpuCase:
    return GpuCase(
        "ConvolutionalSpatialTransformer",
        f"{channels} x {cells[0]} x {cells[1]}, k = {k}",
        lambda draw: _transforms(draw, channels, cells),
        {
            OURS: _layer("ConvolutionalSpatialTransformer", kernel_size=k),
            PLAIN: lambda u, theta: plain.transformed(u, theta, k),
        },
        lambda leaves, top: (nbytes(*leaves, top), 2 * nbytes(*leaves) + nbytes(top)),
        (0, 1),
    )


def _convolution(cells: Sequence[int], channels: int, filters: int, k: int) -> GpuCase:
    """The transformer with the convolution that reads it, which torchvision has as one operation."""
    transformer = _layer("ConvolutionalSpatialTransformer", kernel_size=k)

    def draw(draw: Draw) -> tuple[Tensor, ...]:
        weight = draw.wide(filters, channels, k, k) / (k * channels**0.5)
        return *_transforms(draw, channels, cells), weight.to(draw.dtype)

    return GpuCase(
        "ConvolutionalSpatialTransformer + Convolution",
        f"{channels} to {filters} x {cells[0]} x {cells[1]}, k = {k}",
        draw,
        {
            OURS: lambda u, theta, weight: F.conv2d(transformer(u, theta), weight, stride=k),
            PLAIN: plain.convolved,
            "torchvision": plain.deformed,
        },
        lambda leaves, top: (nbytes(*leaves, top), 2 * nbytes(*leaves) + nbytes(top)),
        (0, 1, 2),
        flops=2.0 * cells[0] * cells[1] * k * k * channels * filters,
        halves=(),
        compiled=False,
    )


def _mined_pairs(cells: Sequence[int], points: int) -> GpuCase:
    """A mined loss from its features: neighbours of all points, mining, loss, backward."""
    names = ("ExtractFeature", "KNN", "HardNegativeMining", "CorrespondenceContrastiveLoss")
    ours = [_layer(name) for name in names]
    theirs: list[Function] = [
        lambda x, pairs: plain.read(x, pairs[..., :2]),
        lambda query, reference, counts: plain.nearest(query, reference),
        plain.mined,
        plain.contrastive_loss,
    ]

    def draw(draw: Draw) -> tuple[Tensor, ...]:
        first, pairs = draw.unit(1, 128, *cells), draw.table(1, points, cells)
        second = F.normalize(first.float() + 0.05 * draw.wide(*first.shape), dim=1).to(draw.dtype)
        pairs[..., 4] = 1
        return first, second, pairs, torch.full((1, 1), points, device=draw.device)

    def step(layers: Sequence[Function]) -> Function:
        extract, knn, mine, loss = layers

        def run(first: Tensor, second: Tensor, pairs: Tensor, counts: Tensor) -> Tensor:
            with torch.no_grad():
                _, index = knn(extract(first, pairs), second, counts)
                table = tuple_of(mine(pairs, index, second, counts))[0]
            return tuple_of(loss(first, second, table))[0]

        return run

    return GpuCase(
        "KNN + HardNegativeMining + CorrespondenceContrastiveLoss",
        f"{_shown(points)} pairs, {_shown(cells[0] * cells[1])} references x 128",
        draw,
        {OURS: step(ours), PLAIN: step(theirs)},
        lambda leaves, top: (nbytes(*leaves), 2 * nbytes(*leaves[:2])),
        (0, 1),
        flops=2.0 * points * cells[0] * cells[1] * 128,
        whole=True,
        tolerance=None,
        compiled=False,
    )
