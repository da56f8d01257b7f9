"""Time every layer of a net, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from .options import device_options, named_once, plugins, python_layers, state_options, the_device

if TYPE_CHECKING:
    import torch
    from cortado.nets.net import Net, Step
    from torch import Tensor

    Blobs = dict[str, Tensor]


@dataclass
class LayerTime:
    """A layer's share of one iteration: milliseconds, and bytes of its tops and of what it keeps
    for its backward (tensors that are neither parameters nor other layers' tops)."""

    name: str
    type: str
    forward_ms: float = 0.0
    backward_ms: float = 0.0
    top_bytes: int = 0
    kept_bytes: int = 0


@dataclass
class NetTime:
    """All layers, and a whole iteration without waiting for the device after each layer."""

    layers: list[LayerTime]
    forward_ms: float
    backward_ms: float
    peak_bytes: int
    """Of a GPU's memory; 0 on the CPU."""


@click.command()
@click.argument("spec", type=click.Path(), required=False)
@click.option("--model", type=click.Path(), help="The same as SPEC.")
@click.option("--iterations", type=click.IntRange(1), default=10, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@partial(state_options, phase="TRAIN")
@device_options
@python_layers
@plugins
def command(
    spec: str | None,
    model: str | None,
    iterations: int,
    as_json: bool,
    phase: str,
    level: int,
    stages: tuple[str, ...],
    allow_python_layers: bool,
    **options: Any,
) -> None:
    """Run the net of SPEC and show each layer's mean forward and backward time, memory and share.

    Inputs are random, labels and tables of coordinates zero. Backward starts from the loss, or
    from random gradients of the outputs where there is none. The phase is TRAIN, as Caffe's.

    \b
    cortado time ucn_hn --stage deploy --iterations 5
    """
    import json

    from cortado.nets.net import Net

    net = Net(
        named_once(spec, model, "net's spec"),
        phase.upper(),
        level=level,
        stages=stages,
        seed=0,
        allow_python_layers=allow_python_layers,
    ).to(the_device(options))
    times = time_net(net, iterations)
    if as_json:
        click.echo(json.dumps(asdict(times)))
    else:
        show(times, net)


def time_net(net: Net, iterations: int) -> NetTime:
    """Mean times over ``iterations`` runs of a net, after one that is not counted."""
    inputs = random_inputs(net)
    layers = [LayerTime(step.name, step.layer.type_name) for step in net.steps]
    for i in range(iterations + 1):
        for row, run in zip(layers, _one_by_one(net, inputs), strict=True):
            if i:
                row.forward_ms += run.forward_ms / iterations
                row.backward_ms += run.backward_ms / iterations
                row.top_bytes, row.kept_bytes = run.top_bytes, run.kept_bytes
    whole = [_whole(net, inputs) for _ in range(iterations + 1)][1:]
    forward, backward = (sum(times) / iterations for times in zip(*whole, strict=True))
    return NetTime(layers, forward, backward, _peak(net, inputs))


def random_inputs(net: Net) -> Blobs:
    """A tensor for each Input layer's top: zero where a layer reads labels or coordinates."""
    import torch

    from .subjects import uncheckable

    zero = uncheckable(net)
    generator = torch.Generator().manual_seed(0)

    def one(name: str) -> Tensor:
        shape = net.blob_shapes[name]
        blob = torch.zeros(shape) if name in zero else torch.randn(shape, generator=generator)
        return blob.to(net.device)

    return {name: one(name) for name in net.inputs}


def _one_by_one(net: Net, inputs: Blobs) -> list[LayerTime]:
    """Forward through all layers, backward through all, each with its own graph and clock."""
    blobs: Blobs = dict(inputs)
    runs = []
    for step in net.steps:
        run = _Run(step, blobs, net.device)
        blobs.update(run.tops)
        runs.append(run)
    for run in reversed(runs):
        run.backward()
    return [run.time for run in runs]


class _Run:
    """One layer's forward pass on detached bottoms, ready for its backward pass."""

    def __init__(self, step: Step, blobs: Blobs, device: torch.device) -> None:
        self.step, self.device = step, device
        self.time = LayerTime(step.name, step.layer.type_name)
        self.bottoms: list[Tensor] = []
        if step.is_input:
            self.tops = {name: blobs[name] for name in step.tops}
            return
        self.bottoms = [_leaf(blob) for blob in step.bottom_tensors(blobs)]
        kept: dict[int, int] = {}
        with _noting(kept):
            self.time.forward_ms = clocked(self._forward, device)
        for known in (*self.bottoms, *step.layer.blobs, *self.tops.values()):
            kept.pop(known.data_ptr(), None)
        self.time.kept_bytes = sum(kept.values())

    def _forward(self) -> None:
        tops = self.step.run(self.bottoms)
        if not self.bottoms:
            tops = tuple(top.to(self.device) for top in tops)
        self.tops = dict(zip(self.step.tops, tops, strict=False))
        self.time.top_bytes = sum(top.nbytes for top in self.tops.values())

    def backward(self) -> None:
        import torch

        tops = [top for top in self.tops.values() if top.requires_grad and top.grad_fn]
        leaves = [leaf for leaf in self.bottoms if leaf.requires_grad]
        leaves += [blob for blob in self.step.layer.blobs if blob.requires_grad]
        if not tops or not leaves:
            return
        gradients = [torch.randn_like(top) for top in tops]
        self.time.backward_ms = clocked(
            lambda: torch.autograd.grad(tops, leaves, gradients, allow_unused=True), self.device
        )


def _leaf(blob: Tensor) -> Tensor:
    """The blob without its history; it gets a gradient if it would in the net."""
    return blob.detach().requires_grad_(blob.requires_grad)


@contextmanager
def _noting(kept: dict[int, int]) -> Iterator[None]:
    """Note address and bytes of what autograd keeps."""
    import torch

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def clocked(work: Callable[[], object], device: torch.device) -> float:
    """Milliseconds that some work takes, until the device has done it."""
    import time

    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - begin) * 1e3


def _whole(net: Net, inputs: Blobs) -> tuple[float, float]:
    """Milliseconds of the net's forward and backward."""
    made: list[Any] = []
    forward = clocked(lambda: made.append(net(inputs)), net.device)
    backward = clocked(lambda: _backward(net, made[0]), net.device)
    net.zero_grad()
    return forward, backward


def _backward(net: Net, blobs: Any) -> None:
    import torch

    if blobs.loss.requires_grad:
        blobs.loss.backward()
        return
    outputs = [blobs[name] for name in net.outputs if blobs[name].requires_grad]
    if outputs:
        torch.autograd.backward(outputs, [torch.randn_like(output) for output in outputs])


def _peak(net: Net, inputs: Blobs) -> int:
    import torch

    if net.device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(net.device)
    _whole(net, inputs)
    return torch.cuda.max_memory_allocated(net.device)


def show(times: NetTime, net: Net) -> None:
    """The table a person reads."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", overflow="fold")
    table.add_column("type")
    for column in ("forward ms", "backward ms", "share", "tops MiB", "kept MiB"):
        table.add_column(column, justify="right")
    total = sum(row.forward_ms + row.backward_ms for row in times.layers) or 1.0
    for row in times.layers:
        share = (row.forward_ms + row.backward_ms) / total
        sizes = (f"{size / 2**20:.2f}" for size in (row.top_bytes, row.kept_bytes))
        table.add_row(
            *(row.name, row.type, f"{row.forward_ms:.3f}", f"{row.backward_ms:.3f}", f"{share:.1%}"),
            *sizes,
        )
    console = Console()
    if not console.is_terminal:
        console.width = 160
    console.print(f"{net.graph.name or 'net'}: {net.graph.state}, {net.device}")
    console.print(table)
    forward = sum(row.forward_ms for row in times.layers)
    console.print(
        f"layer by layer: forward {forward:.3f} ms, backward {total - forward:.3f} ms, "
        f"together {total:.3f} ms"
    )
    whole = times.forward_ms + times.backward_ms
    console.print(
        f"as one net: forward {times.forward_ms:.3f} ms, backward {times.backward_ms:.3f} ms, "
        f"together {whole:.3f} ms"
    )
    if times.peak_bytes:
        console.print(f"peak GPU memory {times.peak_bytes / 2**20:.0f} MiB")
