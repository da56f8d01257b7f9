"""Caffe's data transformer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cortado.layers._data.transform import (
    ChannelOrder,
    Transformer,
    TransformParams,
    limited,
    limited_size,
    resized,
    transform,
)
from cortado.prototxt_like import SpecError, loads
from cortado.prototxt_like.bind import bind
from cortado.prototxt_like.wire import write_blob

IMAGE = np.arange(2 * 5 * 7, dtype=np.uint8).reshape(2, 5, 7)


def made(
    *, training: bool = False, seed: int = 0, image: np.ndarray = IMAGE, **fields: Any
) -> np.ndarray:
    transformer = Transformer(TransformParams(**fields))
    made = transformer(image, training, np.random.default_rng(seed))
    assert tuple(made.shape) == transformer.shape(image.shape)
    return made.numpy()


def test_nothing_asked_for() -> None:
    assert made().dtype == np.float32
    np.testing.assert_array_equal(made(), IMAGE)


def test_the_mean_goes_before_the_scale() -> None:
    np.testing.assert_array_equal(made(scale=0.5, mean_value=(4.0,)), (IMAGE - 4.0) * 0.5)
    by_channel = (IMAGE - np.array([1.0, 8.0])[:, None, None]) * 2
    np.testing.assert_array_equal(made(scale=2.0, mean_value=(1.0, 8.0)), by_channel)


def test_the_deviation_goes_between_mean_and_scale() -> None:
    by_channel = (IMAGE - np.array([1.0, 8.0])[:, None, None]) / np.array([4.0, 16.0])[:, None, None]
    fields = {"mean_value": (1.0, 8.0), "std_value": (4.0, 16.0)}
    np.testing.assert_array_equal(made(**fields), by_channel)
    np.testing.assert_array_equal(made(scale=0.5, **fields), by_channel * 0.5)
    np.testing.assert_array_equal(made(std_value=(4.0,)), IMAGE / 4.0)


def test_an_image_as_torchvisions_nets_want_it() -> None:
    """ToTensor and Normalize: in [0, 1], less ImageNet's mean, by its deviation."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    rgb = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 4, 5), dtype=np.uint8))
    fields = {"mean_value": tuple(255 * x for x in mean), "std_value": tuple(255 * x for x in std)}
    wanted = (rgb.double() / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    found = transform(rgb, TransformParams(channel_order=ChannelOrder.RGB, **fields))
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5)
    bgr = {name: values[::-1] for name, values in fields.items()}
    torch.testing.assert_close(transform(rgb, TransformParams(**bgr)), found.flip(0), rtol=0, atol=0)


@pytest.mark.parametrize("axes", [3, 4])
def test_a_mean_file_is_cropped_and_mirrored_with_the_image(tmp_path: Path, axes: int) -> None:
    """Where the image is its own mean nothing is left, wherever the crop lies."""
    mean = IMAGE.astype(np.float32).reshape((1, 2, 5, 7)[4 - axes :])
    write_blob(tmp_path / "mean.binaryproto", mean)
    for seed in range(8):
        fields = {"crop_size": 3, "mirror": True, "mean_file": str(tmp_path / "mean.binaryproto")}
        assert not made(training=True, seed=seed, **fields).any()


def test_the_crop_is_central_in_testing_and_everywhere_in_training() -> None:
    np.testing.assert_array_equal(made(crop_size=3), IMAGE[:, 1:4, 2:5])
    np.testing.assert_array_equal(made(crop_size=4), IMAGE[:, 0:4, 1:5])
    corners = {float(made(training=True, seed=s, crop_size=3)[0, 0, 0]) for s in range(300)}
    assert corners == {float(IMAGE[0, y, x]) for y in range(3) for x in range(5)}


@pytest.mark.parametrize("training", [False, True])
def test_half_are_mirrored_in_both_phases(training: bool) -> None:
    firsts = [made(training=training, seed=s, mirror=True)[0, 0].tolist() for s in range(200)]
    plain, mirrored = IMAGE[0, 0].tolist(), IMAGE[0, 0, ::-1].tolist()
    assert 70 < firsts.count(mirrored) < 130
    assert firsts.count(plain) + firsts.count(mirrored) == 200


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^mean_file and mean_value exclude each other$"):
        TransformParams(mean_file="m", mean_value=(1.0,))
    with pytest.raises(ValueError, match=r"^force_color and force_gray exclude each other$"):
        TransformParams(force_color=True, force_gray=True)
    with pytest.raises(ValueError, match=r"^crop_size 6 exceeds the image's 5 x 7 pixels$"):
        made(crop_size=6)
    with pytest.raises(ValueError, match=r"^expected 1 or 2 mean_value, got 3$"):
        made(mean_value=(1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match=r"^expected 1 or 2 std_value, got 3$"):
        made(std_value=(1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match=r"^expected 1 or 3 std_value, got 2$"):
        transform(torch.zeros(3, 2, 2), TransformParams(std_value=(1.0, 2.0)))
    with pytest.raises(SpecError, match="std_value must be above 0, got 0"):
        bind(TransformParams, loads("std_value: [1, 0, 1]"))
    path = str(tmp_path / "mean.binaryproto")
    write_blob(path, np.zeros((1, 2, 5, 6), np.float32))
    with pytest.raises(ValueError, match=r"the mean is \[2, 5, 6\], the image \[2, 5, 7\]$"):
        made(mean_file=path)
    write_blob(path, np.zeros((2, 2, 5, 6), np.float32))
    with pytest.raises(ValueError, match=r"expected a mean \[C, H, W\], got \[2, 2, 5, 6\]$"):
        made(mean_file=path)
    with pytest.raises(ValueError, match=r"no\.binaryproto"):
        made(mean_file=str(tmp_path / "no.binaryproto"))
    with pytest.raises(ValueError, match="mean_file is for images of one size"):
        transform(np.zeros((3, 2, 2)), TransformParams(mean_file=path))  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(4, 3), (11, 16), (9, 13)])
def test_resizing_is_opencvs(size: tuple[int, int]) -> None:
    cv2 = pytest.importorskip("cv2")
    image = np.random.default_rng(0).integers(0, 256, (3, 9, 13), dtype=np.uint8)
    wanted = cv2.resize(image.transpose(1, 2, 0), size[::-1]).transpose(2, 0, 1)
    found = resized(image, *size)
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_the_longer_side_is_limited(dtype: torch.dtype) -> None:
    """Bilinear at pixel centres, by loops; (int(H r), int(W r)); a ratio for the points."""
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 9, 14))).to(dtype)
    found, ratio = limited(image, 10)
    assert ratio == 10 / 14
    assert found.shape == (2, 6, 10)  # 9 * 10 / 14 = 6.4
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for y in range(6):
        for x in range(10):
            v, u = max((y + 0.5) * 9 / 6 - 0.5, 0), max((x + 0.5) * 14 / 10 - 0.5, 0)
            i, j = int(v), int(u)
            rows, columns = image.double()[:, [i, min(i + 1, 8)]], [j, min(j + 1, 13)]
            wanted = rows[:, 0, columns] * (1 - v + i) + rows[:, 1, columns] * (v - i)
            wanted = wanted[:, 0] * (1 - u + j) + wanted[:, 1] * (u - j)
            torch.testing.assert_close(found[:, y, x].double(), wanted, rtol=0, atol=1e-4)


def test_what_is_finer_than_a_pixel_is_smoothed_away() -> None:
    """Only if asked for: every third column is all that is sampled else."""
    image = torch.zeros(3, 90, 120)
    image[:, :, 1::3] = 240
    (plain, ratio), (smooth, same) = limited(image, 40), limited(image, 40, smooth=True)
    assert ratio == same == 40 / 120
    assert (plain == 240).all()
    torch.testing.assert_close(smooth[:, :, 1:-1], torch.full((3, 30, 38), 80.0), atol=10, rtol=0)


@pytest.mark.parametrize("longer_side", [0, 14, 20])
def test_an_image_that_is_small_enough_stays(longer_side: int) -> None:
    image = torch.rand(3, 9, 14)
    found, ratio = limited(image, longer_side)
    assert found is image
    assert ratio == 1


def test_a_limited_size_is_exact() -> None:
    """Which int(582 * (300 / 582)) in floating point is not: it is 299."""
    assert limited_size(582, 291, 300) == (300, 150)
    assert all(limited_size(side, 1, 300) == (300, 1) for side in range(301, 2000))
    assert limited_size(375, 500, 300) == (225, 300)
