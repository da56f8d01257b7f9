"""``python -m benchmarks.calls [--json FILE] [--before FILE] [--write]``: what a call of a functional
form costs on inputs so small that its mathematics hardly counts, without a gradient and with a backward
pass.

Microseconds are of CPU time on one thread, the least of several rounds. ``--json`` keeps them;
``--before`` shows those that another version has kept: ``PYTHONPATH=OTHER python benchmarks/calls.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cortado.functional as CF
import torch
from cortado.tools.results import cpu_name
from torch import Tensor

RESULTS = Path(__file__).parent / "results" / "calls.md"
ROIS = torch.tensor([[0.0, 1, 1, 5, 5], [0, 2, 2, 6, 6]])
SIZES: dict[str, Any] = {"size_a": (8, 8), "size_b": (8, 8)}
HEADER = (
    "| form | forward us | calls/s | with backward us | calls/s |\n| --- | ---: | ---: | ---: | ---: |",
    "| form | forward us | before | calls/s | with backward us | before | calls/s |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
)


@dataclass(frozen=True)
class Case:
    """A call: what learns, and the rest."""

    form: str
    learns: tuple[Tensor, ...]
    names: tuple[str, ...]
    rest: dict[str, Any]

    def run(self, learns: Sequence[Tensor]) -> Tensor:
        """The first top."""
        given = dict(zip(self.names, learns, strict=True))
        found = getattr(CF, self.form)(**given, **self.rest)
        top: Tensor = found if isinstance(found, Tensor) else found[0]
        return top


def cases() -> list[Case]:
    """Every form that has a gradient."""
    torch.manual_seed(0)
    map, other, scores = torch.randn(1, 2, 2, 2), torch.randn(1, 2, 2, 2), torch.rand(2, 2)
    pairs = torch.tensor([[[0.0, 0, 4, 4, 1], [4, 0, 0, 4, 0]]])
    cells = torch.rand(1, 2, 2, 2, 2)
    return [
        Case("channel_l2_norm", (map,), ("bottom",), {}),
        Case("convolutional_spatial_transformer", (map, torch.zeros(1, 4, 2, 2)), ("u", "theta"), {}),
        Case(
            "correspondence_contrastive_loss", (map, other), ("feature1", "feature2"), {"pairs": pairs}
        ),
        Case("extract_feature", (map,), ("feature",), {"pairs": pairs}),
        Case("hough_voting", (scores,), ("scores",), {"rois_a": ROIS, "rois_b": ROIS, **SIZES}),
        Case("knn", (map.flatten(2), other), ("query", "reference"), {}),
        Case("rectified_cosine", (scores, 1 - scores), ("a", "b"), {}),
        Case("region_hinge_loss", (scores,), ("scores",), {"label": torch.eye(2)}),
        Case("regularized_hough_matching", (cells,), ("similarity",), SIZES),
        Case("roi_pooling", (map,), ("data",), {"rois": ROIS, "pooled_h": 1, "pooled_w": 1}),
    ]


def measured(case: Case, rounds: int) -> tuple[float, float]:
    """Microseconds of a call without a gradient, and of one with its backward pass."""
    leaves = [x.clone().requires_grad_() for x in case.learns]
    gradient = torch.ones_like(case.run(case.learns))

    def both() -> None:
        torch.autograd.grad(case.run(leaves), leaves, gradient)

    return least(lambda: case.run(case.learns), rounds), least(both, rounds)


def least(call: Callable[[], object], rounds: int, calls: int = 200) -> float:
    """Microseconds of CPU time a call, in the fastest round."""
    found = []
    for _ in range(rounds + 1):  # the first warms up
        start = time.thread_time()
        for _ in range(calls):
            call()
        found.append((time.thread_time() - start) / calls * 1e6)
    return min(found[1:])


def row(form: str, now: Sequence[float], before: Sequence[float] | None) -> str:
    cells = []
    for i, us in enumerate(now):
        then = [f"{before[i]:.1f}"] if before else []
        cells += [f"{us:.1f}", *then, f"{1e6 / us:,.0f}"]
    return f"| {form} | {' | '.join(cells)} |"


def main() -> None:
    """Measure and print, and write if asked, the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="keep the figures in this file")
    parser.add_argument("--before", type=Path, help="a file of figures to show beside")
    parser.add_argument("--write", action="store_true", help="to the folder of results")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    before = json.loads(arguments.before.read_text()) if arguments.before else {}
    load = os.getloadavg()[0]
    lines = [
        f"{cpu_name()}, 1 thread, torch {torch.__version__}, load {load:.1f} at the start",
        "",
        *HEADER[bool(before)].split("\n"),
    ]
    print("\n".join(lines))
    figures = {}
    for case in cases():
        figures[case.form] = measured(case, arguments.rounds)
        lines.append(row(case.form, figures[case.form], before.get(case.form)))
        print(lines[-1], flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures))
    if arguments.write:
        RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
