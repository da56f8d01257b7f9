"""Hyperpixel Flow against the released code's numbers, and against its own way with upsampled maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cortado.layers._data.images import read_image
from cortado.layers._displacements import bins_of_displacements, displacement_sums
from cortado.layers.regularized_hough_matching import Params
from cortado.nets.matching import Matcher
from cortado.nets.net import Net
from shared import SHARED
from torch import Tensor

DATA = SHARED / "data" if SHARED else Path("missing")
WEIGHTS = DATA / "hpf" / "resnet50_caffe_upto_res4f.npz"
needs_data = pytest.mark.skipif(
    not (WEIGHTS.is_file() and (DATA / "pf_willow").is_dir()),
    reason="Hyperpixel Flow's weights, or PF-WILLOW, are not here",
)
CELLS = Params(jump=4.0, receptive_field=27, margin=4.0)


@pytest.fixture(scope="module")
def matcher() -> Matcher:
    return Matcher("hpf_resnet50", WEIGHTS)


class Pair:
    """One of the twelve pairs whose numbers the released code gave, and ours."""

    def __init__(self, matcher: Matcher, number: int) -> None:
        self.matcher = matcher
        with np.load(DATA / "hpf" / "reference" / f"pair{number:02d}.npz") as file:
            self.given: dict[str, Any] = dict(file)
        folder = DATA / "pf_willow" / str(self.given["group"])
        files = (folder / str(self.given[name]) for name in ("src", "trg"))
        self.images = [matcher.describe(read_image(file)) for file in files]
        self.sizes = [image.size for image in self.images]

    def blob(self, name: str) -> Tensor:
        return self.matcher.branches.compare(*(image.values for image in self.images), name)

    def kept(self, blob: Tensor) -> Tensor:
        """``[P, Q]`` of the cells that take part."""
        return blob[0][self.part(blob)].flatten(2).flatten(0, 1)

    def part(self, blob: Tensor) -> tuple[slice, slice, slice, slice]:
        grids = blob.shape[1:3], blob.shape[3:]
        return sum((CELLS.grid(*each) for each in zip(grids, self.sizes, strict=True)), ())


@pytest.fixture(scope="module", params=range(12))
def pair(matcher: Matcher, request: pytest.FixtureRequest) -> Pair:
    return Pair(matcher, request.param)


@needs_data
class TestReleased:
    def test_similarity(self, pair: Pair) -> None:
        found = pair.kept(pair.blob("similarity"))
        assert found.shape == (len(pair.given["src_valid"]), len(pair.given["trg_valid"]))
        samples = found[pair.given["samp_i"], pair.given["samp_j"]].numpy()
        largest = pair.given["sim_max"]
        assert np.abs(samples - pair.given["samp_sim"]).max() < 1e-5 * largest
        assert np.abs(found.max(1).values.numpy() - pair.given["sim_rowmax"]).max() < 1e-5 * largest
        assert float(found.double().sum()) == pytest.approx(float(pair.given["sim_sum"]), rel=1e-5)

    def test_confidence(self, pair: Pair) -> None:
        found = pair.kept(pair.blob("confidence"))
        samples = found[pair.given["samp_i"], pair.given["samp_j"]].numpy()
        largest = pair.given["conf_max"]
        assert np.abs(samples - pair.given["samp_conf"]).max() < 1e-5 * largest
        assert (found.argmax(1).numpy() == pair.given["conf_rowargmax"]).mean() > 0.999
        assert float(found.double().sum()) == pytest.approx(float(pair.given["conf_sum"]), rel=1e-5)

    def test_bins(self, pair: Pair) -> None:
        """Of each sample the bin, to the number; and what they hold before smoothing."""
        similarity = pair.blob("similarity")
        part = pair.part(similarity)
        found = bins_of_displacements(part, *pair.sizes, CELLS.cells, CELLS.jump)
        (down, rows), (across, columns) = found
        assert [columns, rows] == pair.given["nbins"].tolist()
        counts = [x.stop - x.start for x in part]
        r, c = np.divmod(pair.given["samp_i"], counts[1])
        r_b, c_b = np.divmod(pair.given["samp_j"], counts[3])
        found = across[c_b - c + counts[1] - 1] + columns * down[r_b - r + counts[0] - 1]
        assert found.tolist() == pair.given["samp_bin"].tolist()
        kept = similarity[:, *part]
        sums = displacement_sums(kept.unbind(2), kept.shape, kept)[0].numpy()
        votes = np.zeros((rows, columns))
        np.add.at(votes, (down[:, None], across), sums)
        wanted = pair.given["hough_raw"]
        assert np.abs(votes - wanted).max() < 1e-5 * wanted.max()

    def test_key_points(self, pair: Pair) -> None:
        found, _ = pair.matcher.match(*pair.images, pair.given["kps_src"].T)
        wanted = pair.given["kps_pred"].T
        assert (np.isnan(found) == np.isnan(wanted)).all()
        assert np.nanmax(np.abs(found - wanted)) < 1e-3
        away = np.hypot(*(found - pair.given["kps_trg"].T).T)
        for alpha, share in zip((0.05, 0.1, 0.15), pair.given["pck"], strict=True):
            assert (away <= alpha * pair.given["thres"]).mean() == pytest.approx(share)


@needs_data
def test_equals_its_spec_with_upsampled_and_concatenated_maps() -> None:
    generator = torch.Generator().manual_seed(0)
    images = {f"image{i}": 50 * torch.randn(1, 3, 225, 300, generator=generator) for i in (1, 2)}
    with torch.no_grad():
        ours, theirs = (
            Net(name, weights=WEIGHTS)(images, keep=["similarity"])
            for name in ("hpf_resnet50", "hpf_resnet50_upsampled")
        )
    for name in ("similarity", "confidence"):
        wanted = theirs[name] * (
            ours["similarity"] != 0
        )  # where the margin prunes, only theirs has one
        assert (ours[name] - wanted).abs().max() < 2e-5 * wanted.max()
        assert ours[name].mean() > 0.01 * ours[name].max()
