"""What is measured on a GPU: the papers' sizes, and what a user would pick instead.

Inputs are drawn on the device, as many sets as pass its cache. Features have unit length, a query
lies near one of its references.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from cortado.layers._runtime.dispatch import impl
from cortado.layers._runtime.registry import find
from torch import Tensor

from . import plain
from .measure import Call

Function = Callable[..., Any]
OURS, PLAIN, COMPILED = "cortado", "torch", "torch.compile"
FORWARD, BACKWARD, BOTH = "forward", "backward", "forward + backward"
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


@dataclass(frozen=True)
class GpuCase:
    """Implementations of one function of the same leaves, the first of them ours.

    ``moved(leaves, tops)`` gives the fewest bytes of forward and of backward, ``flops`` the
    multiplications and additions of a forward that is bound by them.
    """

    layer: str
    size: str
    draw: Callable[[Draw], tuple[Tensor, ...]]
    implementations: Mapping[str, Function]
    moved: Callable[[Sequence[Tensor], Tensor], tuple[float, float]]
    differentiable: tuple[int, ...] = (0,)
    flops: float = 0
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

    def forced(self, task: Task, device: str) -> AbstractContextManager[None]:
        """Ours runs its kernels or fails."""
        return impl("cuda") if task.implementation == OURS and device != "cpu" else nullcontext()

    def function(self, task: Task) -> Function:
        if task.implementation != COMPILED:
            return self.implementations[task.implementation]
        import torch._functorch.config as config

        config.donated_buffer = False  # which would forbid a second backward of one graph
        return torch.compile(self.implementations[PLAIN], dynamic=False)

    def leaves(self, device: str, dtype: torch.dtype, seed: int) -> tuple[Tensor, ...]:
        return self.draw(Draw(device, dtype, seed))

    def call(self, function: Function, leaves: Sequence[Tensor], direction: str) -> Call:
        """What is timed."""
        if direction == FORWARD:
            return lambda: _without_gradient(function, leaves)
        if direction == BOTH:
            return lambda: self._backward(function, leaves)()
        return self._backward(function, leaves)

    def everything(self, function: Function, leaves: Sequence[Tensor], direction: str) -> Call:
        """What memory is measured of: backward includes the forward that it needs."""
        return self.call(function, leaves, FORWARD if direction == FORWARD else BOTH)

    def _backward(self, function: Function, leaves: Sequence[Tensor]) -> Call:
        fresh = [x.detach().requires_grad_(i in self.differentiable) for i, x in enumerate(leaves)]
        wanted = [fresh[i] for i in self.differentiable]
        top = _first(function(*fresh))
        given = torch.ones_like(top)
        return lambda: torch.autograd.grad(top, wanted, given, retain_graph=True)

    def disagrees(self, task: Task, leaves: Sequence[Tensor]) -> str:
        """How an implementation's first top differs from plain torch's; empty if it does not."""
        if self.tolerance is None or task.implementation == PLAIN:
            return ""
        wanted = _first(_without_gradient(self.implementations[PLAIN], [_wide(x) for x in leaves]))
        with self.forced(task, leaves[0].device.type):
            found = _first(_without_gradient(self.function(task), leaves))
        error = float((found.float() - wanted).abs().max() / wanted.abs().max())
        tolerance = self.tolerance if task.dtype == torch.float32 else max(3e-2, self.tolerance)
        return "" if error <= tolerance else f"differs from torch by {error:.2g}"

    def floor(
        self, direction: str, leaves: Sequence[Tensor], bandwidth: float, rates: Mapping[str, float]
    ) -> float:
        """Milliseconds below which no implementation comes: bytes or flops over what was measured."""
        top = _first(_without_gradient(self.implementations[OURS], leaves))
        forward, backward = self.moved(leaves, top)
        least = {FORWARD: forward, BACKWARD: backward, BOTH: forward + backward}[direction]
        dtype = str(leaves[0].dtype).removeprefix("torch.")
        arithmetic = 0 if direction == BACKWARD else self.flops / rates[dtype]
        return 1e3 * max(least / bandwidth, arithmetic)


def _first(tops: Any) -> Tensor:
    return tops[0] if isinstance(tops, tuple) else tops


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.is_floating_point() else x


@torch.no_grad()
def _without_gradient(function: Function, leaves: Sequence[Tensor]) -> Any:
    return function(*leaves)


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


def _bytes(*tensors: Tensor) -> float:
    return float(sum(x.numel() * x.element_size() for x in tensors))


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
            lambda leaves, top: (2 * _bytes(top), 3 * _bytes(top)),
        ),
        *(
            GpuCase(
                "LRN",
                f"{channels} x {size}",
                lambda draw, channels=channels: (draw.normal(1, channels, height, width),),
                {OURS: _layer("LRN", alpha=1e-4), PLAIN: plain.local_response},
                lambda leaves, top: (2 * _bytes(top), 3 * _bytes(top)),
            )
            for channels in (64, 192)
        ),
    ]


def _touched(feature: Tensor, points: int) -> float:
    """Bytes of the map that bilinear reading at the points needs."""
    images, channels = feature.shape[:2]
    return min(_bytes(feature), 4.0 * images * points * channels * feature.element_size())


def _extraction(cells: Sequence[int], points: int) -> GpuCase:
    return GpuCase(
        "ExtractFeature",
        f"2 x 128 x {cells[0]} x {cells[1]}, {_shown(points)} points",
        lambda draw: (draw.unit(2, 128, *cells), draw.table(2, points, cells)),
        {OURS: _layer("ExtractFeature"), PLAIN: lambda x, pairs: plain.read(x, pairs[..., :2])},
        lambda leaves, top: (
            _touched(leaves[0], points) + _bytes(leaves[1], top),
            _bytes(*leaves, top),
        ),
    )


def _loss(cells: Sequence[int], pairs: int) -> GpuCase:
    def moved(leaves: Sequence[Tensor], top: Tensor) -> tuple[float, float]:
        read = 2 * _touched(leaves[0], pairs) + _bytes(leaves[2])
        return read, read + _bytes(*leaves[:2])

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
        forward = _bytes(*leaves, top) + 8 * top.numel()
        found = min(1.0, queries * k / references) * _bytes(leaves[1])
        return forward, 9.0 * top.numel() + 2 * _bytes(*leaves) - _bytes(leaves[1]) + found

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
        return _bytes(*leaves[:2], leaves[0], top), 0.0

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
        lambda leaves, top: (_bytes(*leaves, top), 2 * _bytes(*leaves) + _bytes(top)),
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
        lambda leaves, top: (_bytes(*leaves, top), 2 * _bytes(*leaves) + _bytes(top)),
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
                table = _first(mine(pairs, index, second, counts))
            return _first(loss(first, second, table))

        return run

    return GpuCase(
        "KNN + HardNegativeMining + CorrespondenceContrastiveLoss",
        f"{_shown(points)} pairs, {_shown(cells[0] * cells[1])} references x 128",
        draw,
        {OURS: step(ours), PLAIN: step(theirs)},
        lambda leaves, top: (_bytes(*leaves), 2 * _bytes(*leaves[:2])),
        (0, 1),
        flops=2.0 * points * cells[0] * cells[1] * 128,
        whole=True,
        tolerance=None,
        compiled=False,
    )
