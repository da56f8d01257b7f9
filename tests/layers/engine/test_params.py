"""Functional forms hold their values to the ranges that a spec's are held to."""

from __future__ import annotations

import dataclasses

import cortado.functional as CF
import numpy as np
import pytest
import torch
from cortado.layers._engine import params

MAP, PAIRS, INDEX = (
    torch.ones(1, 2, 3, 4),
    torch.zeros(1, 5, 5),
    torch.zeros(1, 1, 5, dtype=torch.int64),
)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: CF.extract_feature(MAP, PAIRS, downsampling_factor=0),
            "factor: expected above 0",
        ),
        (lambda: CF.channel_l2_norm(MAP, eps=-1), "eps: expected at least 0, got -1"),
        (lambda: CF.knn(MAP[:, :, 0], MAP, index_base=7), "index_base: expected at most 1, got 7"),
        (lambda: CF.knn(MAP[:, :, 0], MAP, k=0), "k: expected at least 1, got 0"),
        (
            lambda: CF.hard_negative_mining(PAIRS, INDEX, MAP, pixel_threshold=-1),
            "pixel_threshold: expected at least 0, got -1",
        ),
        (
            lambda: CF.correspondence_contrastive_loss(MAP, MAP, PAIRS, margin=-1),
            "margin: expected at least 0, got -1",
        ),
        (
            lambda: CF.convolutional_spatial_transformer(MAP, torch.zeros(1, 4, 3, 4), 0),
            "kernel_size: expected at least 1, got 0",
        ),
        (
            lambda: CF.hard_negative_mining(PAIRS, INDEX, MAP, pck_radii=(1, np.float32("nan"))),
            "pck_radii: expected a number, got nan",
        ),
    ],
)
def test_a_value_out_of_range(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@dataclasses.dataclass(frozen=True)
class Some:
    number: float
    several: tuple[float, ...] = ()


def test_numbers_of_numpy_become_pythons():
    given = Some(np.float32(0.5), (1, np.float64(2)))
    kept = params.valid(given)
    assert kept == given
    assert [type(x) for x in (kept.number, *kept.several)] == [float, int, float]
    assert params.valid(kept) is kept
