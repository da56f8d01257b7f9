"""``python -m benchmarks.nets [--write]``: nets of a spec against the same nets as plain torch modules.

Seconds are the process's CPU time in one thread, in interleaved rounds, so that other work on the
machine disturbs both alike.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from cortado.nets.net import Net
from cortado.tools.measuring import Call, peak
from cortado.tools.results import cpu_name
from torch import Tensor, nn

from .net_specs import SPECS
from .plain_nets import PLAIN

RESULTS = Path(__file__).parent / "results" / "nets.md"
HEADER = (
    "| net | pass | ms | plain ms | plain / ours | quartiles | MiB | plain MiB |\n"
    "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
)


def main() -> None:
    """Measure both nets and print, and write if asked, the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="to the folder of results")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        f"{cpu_name()}, 1 thread, torch {torch.__version__}, batch {arguments.batch}, "
        f"{arguments.rounds} rounds, load {os.getloadavg()[0]:.1f} at the start",
        "",
        *HEADER.split("\n"),
    ]
    print(*lines, sep="\n", flush=True)
    for name in SPECS:
        for row in rows(name, arguments.batch, arguments.rounds):
            lines.append(row)
            print(row, flush=True)
    lines += ["", f"GoogLeNet's prototxt is parsed and built in {building():.2f} s of CPU time."]
    print(lines[-1])
    if arguments.write:
        RESULTS.write_text("\n".join([*_explained(), "", *lines, ""]), encoding="utf-8")


def _explained() -> list[str]:
    return [
        "# Nets of a spec against plain torch modules",
        "",
        "The same parameters and inputs, the same outputs. Medians of the process's CPU time; the",
        "ratio is the median over the rounds. MiB: the most that torch's allocator held at once beyond",
        "inputs and parameters.",
    ]


def rows(name: str, batch: int, rounds: int) -> list[str]:
    """A line of the table for the forward pass and one for forward and backward."""
    ours, plain, image = pair(name, batch)
    found = []
    for what, kind in (("forward", inference), ("forward + backward", training)):
        calls = [kind(ours, image), kind(plain, image)]
        times = interleaved(calls, rounds)
        mine, theirs = (1e3 * statistics.median(column) for column in times)
        ratios = [b / a for a, b in zip(*times, strict=True)]
        low, ratio, high = statistics.quantiles(ratios, n=4)
        memory = " | ".join(f"{peak(call):.1f}" for call in calls)
        found.append(
            f"| {name} | {what} | {mine:.1f} | {theirs:.1f} | {ratio:.3f} "
            f"| {low:.3f} to {high:.3f} | {memory} |"
        )
    return found


def pair(name: str, batch: int) -> tuple[Callable[[Tensor], Tensor], nn.Module, Tensor]:
    """The net of the spec, the plain module with the same parameters, and an input for both."""
    net = Net(written(name, batch), "TEST", seed=0)
    plain = PLAIN[name]().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for mine, theirs in zip(net.parameters(), plain.parameters(), strict=True):
            fan = mine[0].numel()
            mine.normal_(0, (2 / fan) ** 0.5 if mine.dim() > 1 else 0.1, generator=generator)
            theirs.copy_(mine.view_as(theirs))
    image = torch.randn(net.blob_shapes["data"], generator=generator)

    def ours(data: Tensor) -> Tensor:
        return net(data=data)["prob"]

    with torch.no_grad():
        torch.testing.assert_close(ours(image), plain(image), rtol=1e-4, atol=1e-6)
    return ours, plain, image


def written(name: str, batch: int) -> Path:
    """A net's prototxt in a file of its own."""
    path = Path(tempfile.mkdtemp()) / f"{name}.prototxt"
    path.write_text(str(SPECS[name](batch)), encoding="utf-8")
    return path


def inference(net: Callable[[Tensor], Tensor], image: Tensor) -> Call:
    def call() -> None:
        with torch.no_grad():
            net(image)

    return call


def training(net: Callable[[Tensor], Tensor], image: Tensor) -> Call:
    """Forward, and backward to the parameters from a gradient of the probabilities."""

    def call() -> None:
        net(image).square().sum().backward()

    return call


def interleaved(calls: list[Call], rounds: int) -> list[list[float]]:
    """Seconds of CPU time of each call in each round, in turn first and last."""
    times: list[list[float]] = [[] for _ in calls]
    for i in range(rounds + 2):
        order = range(len(calls)) if i % 2 else reversed(range(len(calls)))
        for k in order:
            start = time.process_time()
            calls[k]()
            if i >= 2:
                times[k].append(time.process_time() - start)
    return times


def building() -> float:
    """Seconds of CPU time from GoogLeNet's file to its net: the best of three."""
    path, seconds = written("GoogLeNet", 1), []
    for _ in range(3):
        start = time.process_time()
        Net(path)
        seconds.append(time.process_time() - start)
    return min(seconds)


if __name__ == "__main__":
    main()
