"""The fillers against the statistics of Caffe's own draws."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from cortado.layers._engine.fillers import FillerParams, FillerType, VarianceNorm, parameter
from cortado.layers.standard.inner_product import InnerProduct
from cortado.layers.standard.inner_product import Params as InnerProductParams
from shared import case

NORMS = {"in": VarianceNorm.FAN_IN, "out": VarianceNorm.FAN_OUT, "avg": VarianceNorm.AVERAGE}
PLAIN = {
    "none": FillerParams(),
    "constant": FillerParams(value=0.7),
    "constant_default": FillerParams(),
    "uniform_default": FillerParams(FillerType.uniform),
    "uniform": FillerParams(FillerType.uniform, min=-0.3, max=0.9),
    "gaussian_default": FillerParams(FillerType.gaussian),
    "gaussian": FillerParams(FillerType.gaussian, mean=0.5, std=0.02),
    "gaussian_sparse": FillerParams(FillerType.gaussian, std=2, sparse=15),
    "positive_unitball": FillerParams(FillerType.positive_unitball),
}


def filler(name: str) -> FillerParams:
    """The filler that a case's name stands for: ``xavier``, ``msra_avg``, ``uniform``, ..."""
    if name in PLAIN:
        return PLAIN[name]
    kind, _, norm = name.partition("_")
    return FillerParams(FillerType[kind], variance_norm=NORMS[norm or "in"])


def draw(shape: tuple[int, ...], params: FillerParams, seed: int = 1) -> np.ndarray:
    return parameter(shape, params, torch.Generator().manual_seed(seed)).detach().double().numpy()


@pytest.mark.caffe_vector
def test_statistics() -> None:
    stats = json.loads((case("09_fillers") / "stats.json").read_text(encoding="utf-8"))
    compared = 0
    for key, blobs in stats.items():
        name = key.split("/")[1]
        for blob in blobs.keys() & {"weight", "bias"}:
            if blob == "bias" and name == "positive_unitball":
                continue  # that case gives the bias no filler
            found = draw(tuple(blobs[blob]["shape"]), filler(name))
            compare(f"{key} {blob}", found, blobs[blob])
            if name.startswith(("uniform", "xavier")):
                compare_bounds(f"{key} {blob}", found, blobs[blob])
            compared += 1
    assert compared > 100


def compare(what: str, found: np.ndarray, wanted: dict[str, float]) -> None:
    """Mean, deviation and share of zeros within 5 standard errors of two samples."""
    n, std = wanted["n"], wanted["std"]
    error = 5 * np.sqrt(2 / n)
    share = wanted["nonzero"]
    kurtosis = 3 / max(share, 1 / n)  # of a sparse gaussian
    assert abs(found.mean() - wanted["mean"]) <= error * std + 1e-9, what
    assert abs(found.std() - std) <= error * std * np.sqrt(kurtosis - 1) / 2 + 1e-9, what
    spread = np.sqrt(share * (1 - share))
    assert abs((found != 0).mean() - share) <= error * spread + 1e-4, what


def compare_bounds(what: str, found: np.ndarray, wanted: dict[str, float]) -> None:
    """The extremes of two uniform samples of n differ by a few n-ths of the range."""
    tolerance = 12 / wanted["n"] * (wanted["max"] - wanted["min"])
    assert abs(found.min() - wanted["min"]) <= tolerance, what
    assert abs(found.max() - wanted["max"]) <= tolerance, what


@pytest.mark.caffe_vector
def test_bilinear() -> None:
    with np.load(case("09_fillers") / "data.npz") as data:
        kernels = {key: data[key] for key in data.files if key.startswith("bilinear/k")}
    assert kernels
    for key, wanted in kernels.items():
        found = draw(wanted.shape, FillerParams(FillerType.bilinear))
        np.testing.assert_allclose(found, wanted, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("kind", [FillerType.gaussian, FillerType.uniform, FillerType.msra])
def test_seeds(kind: FillerType) -> None:
    params = FillerParams(kind)
    assert np.array_equal(draw((4, 5), params), draw((4, 5), params))
    assert not np.array_equal(draw((4, 5), params), draw((4, 5), params, seed=2))


def test_fan() -> None:
    """A grouped convolution's weight (64, 8, 5, 5): fan_in 200, fan_out 64 * 25."""
    for norm, n in ((VarianceNorm.FAN_IN, 200), (VarianceNorm.FAN_OUT, 1600)):
        found = draw((64, 8, 5, 5), FillerParams(FillerType.xavier, variance_norm=norm))
        assert np.abs(found).max() == pytest.approx(np.sqrt(3 / n), rel=1e-3)


@pytest.mark.parametrize(
    ("given", "shape", "message"),
    [
        (
            {"type": FillerType.uniform, "sparse": 2},
            (3, 2),
            "filler uniform cannot be sparse, only gaussian can",
        ),
        ({"type": FillerType.uniform, "min": 2}, (3, 2), "uniform filler: min 2 is above max 1"),
        (
            {"type": FillerType.gaussian, "std": 0},
            (3, 2),
            "gaussian filler: std must be above 0, got 0",
        ),
        (
            {"type": FillerType.xavier},
            (),
            "xavier filler: a blob with axes is needed, not a scalar",
        ),
        (
            {"type": FillerType.gaussian, "sparse": 1},
            (),
            "gaussian filler: a blob with axes is needed, not a scalar",
        ),
        ({}, (3, 0), "constant filler: the blob [3, 0] has no elements"),
        (
            {"type": FillerType.gaussian, "sparse": 4},
            (3, 2),
            "gaussian filler: sparse 4 exceeds 3 outputs",
        ),
        (
            {"type": FillerType.bilinear},
            (3, 2, 4, 5),
            "bilinear filler: a square 4-D weight is needed, not [3, 2, 4, 5]",
        ),
    ],
)
def test_refusals(given: dict, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        draw(shape, FillerParams(**given))
    assert str(caught.value) == message


def test_fields_of_other_fillers_are_passed_over() -> None:
    """Real nets give a constant filler a std of 0."""
    assert draw((2,), FillerParams(value=3.0, std=0.0, min=5.0)).tolist() == [3, 3]
    assert draw((), FillerParams(FillerType.gaussian, mean=7.0, std=1e-9)) == pytest.approx(7)


def test_a_filler_of_nothing_may_say_anything() -> None:
    unused = FillerParams(FillerType.gaussian, std=0.0)
    layer = InnerProduct(InnerProductParams(2, bias_term=False, bias_filler=unused), ((4, 3),))
    assert layer.bias is None


def test_positive_unitball_sums_to_one() -> None:
    found = draw((3, 2, 4), FillerParams(FillerType.positive_unitball))
    assert (found > 0).all()
    np.testing.assert_allclose(found.sum((1, 2)), 1, rtol=1e-6)
