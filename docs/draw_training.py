"""Draw images/ucn_training.svg, training.rst's curves, from ucn_training.csv and ucn_validation.csv.

python docs/draw_training.py
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

DOCS = Path(__file__).resolve().parent
COLORS = {"ucn_rn": "#999999", "ucn_hn": "#c0392b", "ucn_hn_st": "#2471a3", "ucn_fast": "#1e8449"}
VALIDATED = {
    "HN": "#c0392b",
    "HN-ST, theta at 0.1": "#2471a3",
    "HN-ST, theta as published": "#5dade2",
    "HN-ST, theta at 1": "#85929e",
}
MEAN = 3  # rows of 20 iterations


def main() -> None:
    plt.rcParams.update({"svg.hashsalt": "cortado", "svg.fonttype": "none"})
    figure, (loss, pck, validated) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    draw_training(loss, pck)
    draw_validation(validated)
    for axes in (loss, pck, validated):
        axes.grid(alpha=0.3)
        axes.set_xlabel("iteration")
    figure.savefig(DOCS / "images" / "ucn_training.svg", metadata={"Date": None})


def draw_training(loss: Axes, pck: Axes) -> None:
    """Of the nets that were trained on all scenes; of the two seeds the second is pale."""
    runs: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    for row in rows("ucn_training.csv"):
        runs[row["net"], row["seed"]].append(
            [float(row[key]) for key in ("iteration", "loss", "pck10")]
        )
    for (net, seed), values in runs.items():
        label, alpha = (net, 1.0) if seed == "1" else (f"{net}, seed {seed}", 0.45)
        every = np.array(values).T
        iteration, *means = (np.convolve(x, np.ones(MEAN) / MEAN, "valid") for x in every)
        for axes, mean in zip((loss, pck), means, strict=True):
            axes.plot(iteration, mean, color=COLORS[net], alpha=alpha, lw=1.2, label=label)
    loss.set(title="loss, mean of 60 iterations", ylim=(0, 0.16))
    pck.set(title="PCK@10 in the batches", ylim=(0, 1))
    loss.legend(fontsize=7)


def draw_validation(axes: Axes) -> None:
    """Of the nets that were trained without the validation scenes."""
    runs: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for row in rows("ucn_validation.csv"):
        if row["group"] == "4" and row["run"] in VALIDATED and row["pairs"] in ("stereo", "rot40"):
            runs[row["run"], row["pairs"]].append((float(row["iteration"]), float(row["pck10"])))
    for (run, pairs), values in runs.items():
        line, label = ("-", run) if pairs == "stereo" else ("--", None)
        axes.plot(*zip(*values, strict=True), line, color=VALIDATED[run], lw=1.2, label=label)
    axes.set(title="PCK@10 of validation: as they are (-),\nturned by 40 degrees (- -)", ylim=(0.3, 1))
    axes.legend(fontsize=7)


def rows(name: str) -> list[dict[str, str]]:
    with (DOCS / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
