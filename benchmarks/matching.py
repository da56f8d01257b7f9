"""``python -m benchmarks.matching [--write]``: matching two images of 640 x 480 by the nets that come
with cortado, in one thread, against plain torch: the net written by hand, and the matrix product of the
features.

Seconds are the process's CPU time, in interleaved rounds, so that other work on the machine disturbs
both alike.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cortado.nets import models
from cortado.nets.matching import Description, Matcher
from cortado.tools.matching import by_features
from cortado.tools.measuring import Call
from cortado.tools.results import cpu_name
from torch import Tensor, nn

from .nets import interleaved
from .plain_nets import UCN, UCNFast

RESULTS = Path(__file__).parent / "results" / "matching.md"
PLAIN: dict[str, Callable[[], nn.Module]] = {
    "ucn_hn": UCN,
    "ucn_hn_st": partial(UCN, transformed=True),
    "ucn_fast": UCNFast,
}
SIZE, POINTS, STEP = (640, 480), 4000, 4  # pixels, points of image 1, pixels between candidates
TILE = 1024  # rows and columns of one product: the fastest among 256 to all of them
HEADER = (
    "| net | what | s | alternative s | ours / alternative | quartiles |\n"
    "| --- | --- | ---: | ---: | ---: | ---: |"
)


def main() -> None:
    """Measure and print, and write if asked, the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="to the folder of results")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        f"{cpu_name()}, 1 thread, torch {torch.__version__}, {arguments.rounds} rounds, "
        f"load {os.getloadavg()[0]:.1f} at the start",
        "",
        *HEADER.split("\n"),
    ]
    print(*lines, sep="\n", flush=True)
    for name in PLAIN:
        for row in rows(name, arguments.rounds):
            lines.append(row)
            print(row, flush=True)
    for process in (None, *PLAIN):
        lines += ["", f"{process or 'import torch'}: {memory(process)} MiB."]
        print(lines[-1])
    if arguments.write:
        RESULTS.write_text("\n".join([*_explained(), "", *lines, ""]), encoding="utf-8")


def _explained() -> list[str]:
    return [
        "# Matching two images of 640 x 480",
        "",
        "By the nets that come with cortado, with their weights. Medians of the process's CPU time;",
        "the ratio is the median over the rounds. The alternatives: the same net in plain torch",
        "modules; and the matrix product of the features alone, of those points or of all cells,",
        f"{TILE} x {TILE} at a time into one piece of memory (in one call it takes 1.8 times as long).",
        "Memory: the most that one process has held, in MiB, once it has matched all cells of two",
        "images by the net; and once it has imported torch.",
    ]


def rows(name: str, rounds: int) -> list[str]:
    """The lines of one net."""
    found = []
    for what, both in calls(name).items():
        times = interleaved(list(both), rounds)
        mine, theirs = map(statistics.median, times)
        low, ratio, high = statistics.quantiles((a / b for a, b in zip(*times, strict=True)), n=4)
        found.append(
            f"| {name} | {what} | {mine:.2f} | {theirs:.2f} | {ratio:.2f} | {low:.2f} to {high:.2f} |"
        )
    return found


def calls(name: str) -> dict[str, tuple[Call, Call]]:
    """What is measured of a net, and its alternative."""
    one, other = images()
    matcher, dense = models.pretrained(name), models.pretrained(name, step=STEP)
    plain = PLAIN[name]().eval()
    fill(plain, matcher)
    first, second = matcher.describe(one), matcher.describe(other)
    points = np.random.default_rng(0).uniform(0, SIZE, (POINTS, 2))
    at, every = dense.at(first, points).contiguous(), dense.candidates(second).features.contiguous()
    mine, theirs = (
        matcher.candidates(x, i).features.contiguous() for i, x in enumerate((first, second))
    )
    kept = Kept(matcher, {id(one): first, id(other): second})

    def described() -> Tensor:
        """The features [1, C, H, W] of the second image."""
        matcher.describe(one)
        (found,) = {*matcher.describe(other).values.values()}
        return found

    @torch.no_grad()
    def written() -> Tensor:
        return [plain(matcher.given(image)[0]) for image in (one, other)][1]

    torch.testing.assert_close(described(), written(), rtol=0, atol=1e-4)
    return {
        "features of both images": (described, written),
        f"{POINTS} points, candidates every {STEP} px": (
            lambda: dense.match(first, second, points),
            lambda: product(at, every),
        ),
        f"{POINTS} points, all cells": (
            lambda: matcher.match(first, second, points),
            lambda: product(at, theirs),
        ),
        "all cells, mutual": (
            lambda: by_features(kept, one, other, None, True, None, 0),
            lambda: product(mine, theirs),
        ),
    }


class Kept:
    """A matcher that has described its images before."""

    def __init__(self, matcher: Matcher, described: dict[int, Description]) -> None:
        self.matcher, self.described = matcher, described

    def describe(self, image: np.ndarray) -> Description:
        return self.described[id(image)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.matcher, name)


def images() -> list[np.ndarray]:
    """Two windows of a photograph, the second 24 and 16 pixels on and darker."""
    from skimage import data

    width, height = SIZE
    photograph = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None] / 255
    whole = (
        F.interpolate(photograph, (height + 16, width + 24), mode="area")[0].permute(1, 2, 0).numpy()
    )
    return [np.ascontiguousarray(whole[:height, :width]), 0.8 * whole[16:, 24:]]


def fill(plain: nn.Module, matcher: Matcher) -> None:
    """Give a plain module a net's parameters, which stand in one order."""
    with torch.no_grad():
        for mine, theirs in zip(matcher.net.parameters(), plain.parameters(), strict=True):
            theirs.copy_(mine)


def product(first: Tensor, second: Tensor) -> None:
    """All products of rows of the one and of the other, of which none is kept."""
    room = first.new_empty(TILE, TILE)
    for a in first.split(TILE):
        for b in second.split(TILE):
            torch.mm(a, b.T, out=room[: len(a), : len(b)])


def memory(name: str | None) -> int:
    """The most MiB that a process held, once it had matched all cells by a net, or imported torch."""
    code = (
        "import torch" if name is None else f"from benchmarks import matching as m; m.whole({name!r})"
    )
    report = "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    command = [sys.executable, "-c", f"{code}; {report}"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(run.stdout.split()[1]) // 1024


def whole(name: str) -> None:
    """Match all cells of the images, from nothing."""
    torch.set_num_threads(1)
    one, other = images()
    by_features(models.pretrained(name), one, other, None, True, None, 0)


if __name__ == "__main__":
    main()
