"""Train three small SCNets on photographs and match the regions of images they have never seen."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import numpy as np
    from cortado.layers.data.region_pairs import Params
    from torch import Tensor

    Score = Callable[["RegionPair"], Tensor]
    Kept = dict[tuple[int, int], tuple[Tensor, Tensor]]

NETS = {"scnet_a": "scnet_demo_a", "scnet_ag": "scnet_demo_ag", "scnet_ag_plus": "scnet_demo_ag_plus"}
HELD_OUT = ("skimage:rocket", "skimage:coins", "grace_hopper")  # the last is Matplotlib's
PAIRS = 12  # of views of the photographs held out
PROPOSALS = 300
STEREO_PROPOSALS = 500
LARGEST_K = 100
SEED = 1


@dataclass(frozen=True)
class RegionPair:
    """Two RGB images [H, W, 3] in uint8, their regions, and what is true about them.

    ``rois1``, ``rois2`` [K, 5] are rows (0, x1, y1, x2, y2); ``truth`` [K, 5] the true match of each
    of rois1, (x1, y1, x2, y2, s); ``points`` [1, P, 5] corresponding points, (x1, y1, x2, y2, s).
    """

    image1: np.ndarray
    image2: np.ndarray
    rois1: Tensor
    rois2: Tensor
    truth: Tensor
    points: Tensor


@click.command()
@click.option("--out", default="demo_out", show_default=True, type=click.Path(file_okay=False))
@click.option("--iterations", type=click.IntRange(1), help="Instead of the solvers' own.")
def command(out: str, iterations: int | None) -> None:
    """Train scnet_demo_a, scnet_demo_ag and scnet_demo_ag_plus, then match regions with them.

    The tests are views of photographs that were held out and the Middlebury Motorcycle pair. Writes
    scnet_report.json, pictures and the trained weights to --out. Five minutes on two cores.

    \b
    cortado demo_scnet --out demo_out
    """
    begin = time.perf_counter()
    from cortado.prototxt_like.files import replace_text

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"tests": {}, "training": {}}
    proposals: Kept = {}
    for name, net in NETS.items():
        report["training"][name] = train(net, folder, name, iterations, proposals)
    scores = methods(folder)
    for test, pairs in make_tests().items():
        report["tests"][test] = rows = {name: measure(score, pairs) for name, score in scores.items()}
        draw_pcr(folder / f"scnet_{test}_pcr.png", rows)
        for name in NETS:
            picture(folder / f"{test}_{name}.png", pairs[0], scores[name], f"{name}, {test}")
    report["seconds"] = round(time.perf_counter() - begin, 1)
    draw_training(folder, report)
    replace_text(folder / "scnet_report.json", json.dumps(report, indent=1) + "\n")
    show(report)
    click.echo(f"report, pictures and weights: {folder}/")


def train(
    net: str,
    folder: Path,
    name: str,
    iterations: int | None,
    proposals: Kept,
) -> dict[str, Any]:
    """Train a net by its solver spec and save its weights; gives seconds and losses for the report.

    ``proposals`` are those made for the pairs so far: the nets learn from the same pairs.
    """
    from cortado.nets.solver import Solver
    from cortado.nets.specs import path
    from cortado.nets.weights import save

    from .progress import training

    solver = Solver(path(f"{net}_solver"))
    data: Any = solver.net.layer_by_name["data"]
    data.kept = proposals
    begin = time.perf_counter()
    losses = training(solver, iterations or solver.params.max_iter, label=net)
    seconds = time.perf_counter() - begin
    save(solver.net, folder / f"{name}.safetensors")
    return {"seconds": round(seconds, 1), "iterations": len(losses), "loss": losses}


def data_params() -> Params:
    """How the pairs that the nets learn from are made."""
    from cortado.nets.net import Net
    from cortado.nets.specs import path

    params: Params = Net(path(NETS["scnet_a"]), "TRAIN").layer_by_name["data"].params
    return params


def make_tests() -> dict[str, list[RegionPair]]:
    """The pairs of each test, by its name."""
    return {"held_out": list(held_out()), "motorcycle": [stereo()]}


def held_out() -> Iterator[RegionPair]:
    """Views of photographs held out, made as those in training."""
    from cortado.layers._data.transform import ChannelOrder, TransformParams
    from cortado.layers.data.region_pairs import RegionPairs

    params = data_params()
    raw = TransformParams(channel_order=ChannelOrder.RGB, crop_size=params.transform_param.crop_size)
    source = tuple(photograph(name) for name in HELD_OUT)
    layer = RegionPairs(
        replace(
            params,
            source=source,
            num_proposals=PROPOSALS,
            num_pairs=0,
            seed=SEED,
            transform_param=raw,
        )
    )
    for _ in range(PAIRS):
        image1, image2, *tables = layer()
        first, second = (x[0].round().byte().permute(1, 2, 0).numpy() for x in (image1, image2))
        yield RegionPair(first, second, *tables)


def photograph(name: str) -> str:
    """A source of RegionPairs: scikit-image's photographs, or Matplotlib's."""
    from matplotlib.cbook import get_sample_data

    if name.startswith("skimage:"):
        return name
    return str(get_sample_data(f"{name}.jpg", asfileobj=False))


def stereo() -> RegionPair:
    """The Motorcycle pair, at most 2,000 of its points."""
    import numpy as np
    import torch
    from cortado.layers.data.region_pairs import Proposals, propose
    from cortado.layers.data.stereo import motorcycle

    pair = motorcycle()
    rois1, rois2 = (
        propose(image, Proposals.RANDOMIZED_PRIM, STEREO_PROPOSALS, SEED)
        for image in (pair.left, pair.right)
    )
    truth = torch.from_numpy(pair.truth(rois1[:, 1:].numpy())).float()
    chosen = np.random.default_rng(SEED).choice(len(pair.pairs), 2000, replace=False)
    points = torch.from_numpy(np.c_[pair.pairs[chosen], np.ones(2000)]).float()[None]
    return RegionPair(pair.left, pair.right, rois1, rois2, truth, points)


def methods(folder: Path) -> dict[str, Score]:
    """Every method by its name in the report: a pair -> scores [P, S]."""
    nets = {name: by_net(name, folder / f"{name}.safetensors") for name in NETS}
    untrained = {f"{name}_untrained": by_net(name) for name in NETS}
    return nets | untrained | {"hog": by_hog, "hog_voted": by_hog_and_votes, "best_possible": by_truth}


def by_net(name: str, weights: Path | None = None) -> Score:
    """The scores z of a net; without weights, of one as its fillers leave it."""
    import torch
    from cortado.layers._data.transform import blob
    from cortado.nets.matching import transform_params
    from cortado.nets.net import Net
    from cortado.nets.specs import load, path

    message = load(path(NETS[name]))
    transform = transform_params(message)
    net = Net(message, stages=("deploy",), weights=weights, seed=SEED)

    def score(pair: RegionPair) -> Tensor:
        images = {
            "image1": blob(pair.image1, transform),
            "image2": blob(pair.image2, transform),
        }
        with torch.no_grad():
            return net(**images, rois1=pair.rois1, rois2=pair.rois2)["z"]

    return score


def by_hog(pair: RegionPair) -> Tensor:
    """The rectified cosine of the regions' histograms of oriented gradients."""
    from cortado.layers.rectified_cosine import rectified_cosine

    return rectified_cosine(hog(pair.image1, pair.rois1), hog(pair.image2, pair.rois2))


def by_hog_and_votes(pair: RegionPair) -> Tensor:
    """The same with Hough voting, the released code's, which suits dense scores better."""
    from cortado.layers.hough_voting import hough_voting

    sizes = pair.image1.shape[:2], pair.image2.shape[:2]
    return hough_voting(by_hog(pair), pair.rois1, pair.rois2, *sizes, rule="RELEASED")


def by_truth(pair: RegionPair) -> Tensor:
    """The overlap with the truth: no method can choose better among these proposals."""
    from cortado.layers._geometry.boxes import iou_matrix

    return iou_matrix(pair.truth[:, :4], pair.rois2[:, 1:])


def hog(image: np.ndarray, rois: Tensor, side: int = 32) -> Tensor:
    """HOG [K, D] of an image's regions, each resized to 8 x 8 cells of 4 pixels."""
    import numpy as np
    import torch
    import torch.nn.functional as F
    from skimage.feature import hog as skimage_hog

    picture = torch.from_numpy(image.transpose(2, 0, 1).copy())[None] / 255
    described = []
    for x1, y1, x2, y2 in rois[:, 1:].round().int().tolist():
        region = picture[:, :, y1 : y2 + 1, x1 : x2 + 1]
        region = F.interpolate(region, (side, side), mode="bilinear", antialias=True)[0]
        described.append(
            skimage_hog(
                region.permute(1, 2, 0).numpy(),
                orientations=9,
                pixels_per_cell=(side // 8, side // 8),
                cells_per_block=(2, 2),
                channel_axis=-1,
            )
        )
    return torch.from_numpy(np.array(described)).float()


def measure(score: Score, pairs: list[RegionPair]) -> dict[str, Any]:
    """SCNet's measures, averaged over pairs: PCR and its area, mIoU@k, PCK under the regions' flow."""
    import torch
    from cortado.layers.metrics import pcr

    curves, overlaps, points = [], [], []
    begin = time.perf_counter()
    scores = [score(pair) for pair in pairs]
    seconds = (time.perf_counter() - begin) / len(pairs)
    for z, pair in zip(scores, pairs, strict=True):
        curve, miou, pck = measures(z, pair)
        curves.append(curve)
        overlaps.append(miou)
        points.append(pck)
    curve = torch.stack(curves).mean(0)
    return {
        "pcr_area": round(float(pcr.area(curve)), 4),
        "pcr@0.5": round(float(curve[len(curve) // 2]), 4),
        "pck@0.05": round(sum(points) / len(points), 4),
        "pcr": [round(x, 4) for x in curve.tolist()],
        "miou": [round(x, 4) for x in torch.stack(overlaps).mean(0).tolist()],
        "pairs": len(pairs),
        "seconds": round(seconds, 3),
    }


def measures(z: Tensor, pair: RegionPair) -> tuple[Tensor, Tensor, float]:
    """PCR's curve, mIoU@k's and PCK@0.05 of the diagonal, of one pair's scores."""
    from cortado.layers.metrics import flow_pck, miou, pcr
    from cortado.layers.region_flow import region_flow

    height, width = pair.image2.shape[:2]
    flow = region_flow(z, pair.rois1, pair.rois2, pair.image1.shape[:2], (height, width))
    pck = flow_pck.flow_pck(flow, pair.points, (0.05,), length=(height**2 + width**2) ** 0.5)
    curve = pcr.pcr(z, pair.rois2, pair.truth)
    return curve, miou.miou(z, pair.rois2, pair.truth, LARGEST_K), float(pck)


def draw_pcr(path: Path, rows: dict[str, Any]) -> None:
    """The curves of a test's methods."""
    from .pictures import draw_curves

    curves = {name: row["pcr"] for name, row in rows.items()}
    draw_curves(path, curves, "1 - IoU below", "share of regions")


def picture(path: Path, pair: RegionPair, score: Score, title: str) -> None:
    """The matches of a pair's regions, the most certain first."""
    from cortado.layers._geometry.boxes import iou
    from cortado.layers._geometry.regions import best_matches

    from .pictures import draw_regions

    counts = pair.truth[:, 4] == 1
    best, index = best_matches(score(pair)[counts])
    order = best.argsort(descending=True)
    matched = pair.rois2[index, 1:][order]
    overlap = iou(matched, pair.truth[counts, :4][order])
    draw_regions(
        path,
        pair.image1,
        pair.image2,
        pair.rois1[counts, 1:][order].numpy(),
        matched.numpy(),
        overlap.numpy(),
        title=f"{title}: {int((overlap > 0.5).sum())} of {len(overlap)} regions right (IoU above 0.5)",
    )


def draw_training(folder: Path, report: dict[str, Any]) -> None:
    from .pictures import draw_losses

    losses = {name: training["loss"] for name, training in report["training"].items()}
    draw_losses(folder / "scnet_loss.png", losses)


def show(report: dict[str, Any]) -> None:
    """The table a person reads."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", no_wrap=True)
    for test in report["tests"]:
        table.add_column(test, justify="right", no_wrap=True)
    for method in next(iter(report["tests"].values())):
        cells = []
        for rows in report["tests"].values():
            row = rows[method]
            values = (row["pcr_area"], row["pcr@0.5"], row["miou"][9], row["pck@0.05"])
            cells.append(" ".join(f"{value:.3f}".removeprefix("0").rjust(4) for value in values))
        table.add_row(method, *cells)
    console.print("\nArea under PCR, PCR@0.5, mIoU@10, PCK@0.05 (of the regions' flow)")
    console.print(table)
    for name, training in report["training"].items():
        console.print(f"{name}: {training['iterations']} iterations in {training['seconds']:.0f} s")
    console.print(f"{report['seconds']:.0f} s in all")
