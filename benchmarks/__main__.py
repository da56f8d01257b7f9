"""``python -m benchmarks [--device cuda] [--write] [--only NAME]``: the table, printed as it grows."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch
from cortado.tools.measuring import peak
from cortado.tools.results import cpu_name

from .cases import cases
from .measure import HEADER, Row, interleaved

RESULTS = Path(__file__).parent / "results" / "cpu.md"


def main() -> None:
    """Measure every case and print, and write if asked, the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--write", action="store_true", help="to the folder of results")
    parser.add_argument("--rounds", type=int, default=11, help="on the CPU")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--seconds", type=float, default=230, help="for all of a GPU's results")
    parser.add_argument("--results", default=RESULTS.parent, help="the folder of a GPU's results")
    parser.add_argument("--rehearse", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.device == "cuda":
        from .gpu import run

        sys.exit(run(arguments))
    lines = [_machine(arguments.rounds), "", *HEADER.split("\n")]
    print(*lines, sep="\n", flush=True)
    for case in cases():
        if arguments.only not in case.name:
            continue
        for direction in case.directions:
            times = interleaved(case.calls(direction), arguments.rounds)
            memory = [peak(call) for call in case.whole(direction)]
            lines.append(str(Row(case.name, direction, *times, *memory)))
            print(lines[-1], flush=True)
    if arguments.write:
        RESULTS.write_text("\n".join([*_explained(), "", *lines, ""]))


def _explained() -> list[str]:
    return [
        "# The paper's layers on the CPU",
        "",
        "Medians of interleaved rounds; ratio: how many times as fast as the alternative, plain torch",
        "operations and autograd. MiB: the most that torch's allocator held at once beyond the inputs,",
        "tops included, for backward together with its forward. Floor: a copy that moves each input",
        "and each top (backward: the top's and the bottoms' gradients) once; for the forward of KNN",
        "and of HyperpixelCorrelation the matrix products alone.",
    ]


def _machine(rounds: int) -> str:
    return (
        f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {rounds} rounds, "
        f"load {os.getloadavg()[0]:.1f} at the start"
    )


if __name__ == "__main__":
    main()
