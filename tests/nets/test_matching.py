"""Matching by nets: by features and by a confidence, against what their layers give one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from cortado import functional
from cortado.layers._runtime.transform import blob, limited
from cortado.nets.matching import Matcher
from cortado.nets.net import Net
from cortado.nets.specs import load
from cortado.nets.weights import save
from cortado.prototxt_like import Message, SpecError, loads
from hyperpixel_toy import SMALL

CELLS = {"jump": 4.0, "receptive_field": 7, "margin": 0.0}
POINTS = np.array([[20, 20], [33.5, 41], [61, 24], [79.5, 30]])
FEATURES = """
name: features
layer:
- {name: image1, type: Input, top: image1, input_param: &image {shape: {dim: [1, 3, 60, 80]}}}
- {name: image2, type: Input, top: image2, input_param: *image}
- siamese:
    input: {data: [image1, image2]}
    output: {feature: [feature1, feature2]}
    layer:
    - {name: conv, type: Convolution, bottom: data, top: conv, convolution_param: {
        num_output: 12, kernel_size: 5, stride: 4, pad: 0, weight_filler: {type: msra}}}
    - {name: norm, type: ChannelL2Norm, bottom: conv, top: feature}
match_param: {feature: [feature1, feature2], downsampling_factor: 4, coordinate_offset: 2}
"""


def message(text: str = SMALL, old: str = "", new: str = "") -> Message:
    assert old in text
    return loads(text.replace(old, new) if old else text, "small.yaml")


@pytest.fixture(scope="module")
def photographs() -> tuple[np.ndarray, np.ndarray]:
    """Two parts of a photograph, of two sizes."""
    coffee = skimage.data.coffee()[60:300:2, 60:380:2]
    return coffee[20:80, 20:100], coffee[28:92, 28:120]


def test_a_confidence_carries_points(photographs: tuple[np.ndarray, np.ndarray]) -> None:
    matcher = Matcher(message(), seed=0)
    assert matcher.measure == "confidence"
    found, confidence = matcher.match(*photographs, POINTS)
    net = Net(message(), seed=0)
    one, other = (blob(image, matcher.transform) for image in photographs)
    with torch.no_grad():
        blobs = net(image1=one, image2=other, keep=["similarity"])
    points = torch.from_numpy(POINTS)[None]
    for name, got in (
        ("confidence", (found, confidence)),
        ("similarity", matcher.match(*photographs, POINTS, nearest=True)),
    ):
        wanted = functional.keypoint_transfer(blobs[name], points, (60, 80), (64, 92), **CELLS)
        for mine, its in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(mine, its[0].numpy())
            assert mine.dtype == np.float64
    assert np.isnan(found[3]).all()  # beyond the last cell's box, which ends at 79
    assert np.isnan(confidence[3])


def test_descriptions_are_of_one_image_for_any_pair(photographs: tuple[np.ndarray, np.ndarray]) -> None:
    matcher = Matcher(message(), seed=0)
    one, other = map(matcher.describe, photographs)
    for images, described in ((photographs, (one, other)), (photographs[::-1], (other, one))):
        for mine, its in zip(
            matcher.match(*images, POINTS), matcher.match(*described, POINTS), strict=True
        ):
            np.testing.assert_array_equal(mine, its)
    assert (one.size, one.ratio) == ((60, 80), 1.0)
    maps = 60 * 80 * 3 + 15 * 20 * 16 + 8 * 10 * 16
    assert one.bytes == 4 * maps  # the second branch's are the first's


def test_the_nearest_feature_is_the_match(photographs: tuple[np.ndarray, np.ndarray]) -> None:
    matcher = Matcher(message(FEATURES), seed=0)
    assert matcher.measure == "distance"
    points = matcher.grid(photographs[0])[[0, 17, 100]]
    found, distance = matcher.match(*photographs, points)
    one, other = (x.values for x in map(matcher.describe, photographs))
    first, second = (x[name, 1][0].numpy() for x, name in ((one, "feature1"), (other, "feature2")))
    for (x, y), match, far in zip(points, found, distance, strict=True):
        query = first[:, round((y - 2) / 4), round((x - 2) / 4)]
        away = np.linalg.norm(second - query[:, None, None], axis=0)
        row, column = np.unravel_index(away.argmin(), away.shape)
        assert match.tolist() == [4 * column + 2, 4 * row + 2]
        assert far == pytest.approx(away.min(), rel=1e-5, abs=1e-6)


def test_larger_images_are_resized_and_points_with_them(
    photographs: tuple[np.ndarray, np.ndarray],
) -> None:
    small = message(SMALL, "similarity: similarity", "similarity: similarity, longer_side: 69")
    matcher = Matcher(small, seed=0)
    one, other = map(matcher.describe, photographs)
    assert (one.size, one.ratio) == ((51, 69), 69 / 80)
    assert (other.size, other.ratio) == ((48, 69), 0.75)
    given = [limited(blob(image, matcher.transform)[0], 69)[0][None] for image in photographs]
    with torch.no_grad():
        confidence = Net(small, seed=0)(image1=given[0], image2=given[1])["confidence"]
    points = torch.from_numpy(POINTS * (69 / 80))[None]
    wanted, _ = functional.keypoint_transfer(confidence, points, one.size, other.size, **CELLS)
    np.testing.assert_allclose(matcher.match(one, other, POINTS)[0], wanted[0].numpy() / 0.75)
    flow = matcher.flow(one, other)
    assert flow.shape == (2, 51, 69)
    grid = matcher.grid(photographs[0]) * (69 / 80)
    np.testing.assert_allclose(np.unique(grid[:, 0]), np.arange(4, 65, 4))
    np.testing.assert_allclose(np.unique(grid[:, 1]), np.arange(4, 48, 4))


def test_the_grid_is_of_the_cells_that_take_part(photographs: tuple[np.ndarray, np.ndarray]) -> None:
    image = photographs[0]
    matcher = Matcher(message(), seed=0)
    grid = matcher.grid(image)
    assert grid.shape == (14 * 19, 2)
    assert grid.min(0).tolist() == [4, 4]
    assert grid.max(0).tolist() == [76, 56]
    assert not np.isnan(matcher.match(*photographs, grid)[0]).any()
    features = Matcher(message(FEATURES), seed=0).grid(image)
    assert (features[0].tolist(), features[-1].tolist()) == ([2, 2], [78, 58])
    assert len(features) == 15 * 20


def test_the_flow_carries_pixels_as_points(photographs: tuple[np.ndarray, np.ndarray]) -> None:
    matcher = Matcher(message(), seed=0)
    flow = matcher.flow(*photographs)
    assert flow.shape == (2, 60, 80)
    y, x = np.mgrid[:60, :80]
    pixels = np.stack([x.ravel(), y.ravel()], 1)
    found = matcher.match(*photographs, pixels)[0] - pixels
    np.testing.assert_allclose(flow.reshape(2, -1).T, found, atol=1e-4)
    assert np.isnan(flow[:, 0]).all()


REFUSED = {
    "no match_param": (
        (SMALL, SMALL[SMALL.index("match_param") :], ""),
        "matching needs a match_param, which names the blobs of the images and the features",
    ),
    "other inputs": (
        (SMALL, "- {name: image2", "- {name: more, type: Input, top: more}\n- {name: image2"),
        "in the stage deploy its inputs are image1, more, image2",
    ),
    "no inputs": (
        (FEATURES.replace("input_param", "dummy_data_param"), "type: Input", "type: DummyData"),
        "matching gives the net image1, image2; in the stage deploy its inputs are none",
    ),
    "a blob of another stage": (
        (SMALL, "- name: confidence\n", "- name: confidence\n  exclude: {stage: deploy}\n"),
        'match_param: "confidence" is no blob of the net in the stage deploy',
    ),
    "a blob of none": (
        (FEATURES, "feature: [feature1, feature2], down", "feature: [feature1, feature3], down"),
        'match_param: "feature3" is no blob of the net in the stage deploy',
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_nets_that_do_not_match(name: str) -> None:
    edit, text = REFUSED[name]
    with pytest.raises(SpecError) as caught:
        Matcher(message(*edit), seed=0)
    assert text in str(caught.value)
    assert str(caught.value).startswith("small.yaml:")


@pytest.mark.parametrize(("text", "blob"), [(FEATURES, "feature1"), (SMALL, "conv1")])
def test_weights_that_are_not_finite(
    text: str, blob: str, photographs: tuple[np.ndarray, np.ndarray]
) -> None:
    matcher = Matcher(message(text), seed=0)
    with torch.no_grad():
        for values in matcher.net.parameters():
            values.fill_(torch.nan)
    with pytest.raises(ValueError, match=f'expected finite values of "{blob}": the net makes NaN'):
        matcher.match(*photographs, POINTS)


def test_what_a_net_has_not(photographs: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    matcher = Matcher(message(SMALL, "similarity: similarity, ", ""), seed=0)
    with pytest.raises(
        SpecError, match='nearest neighbours need the name of a "similarity" in match_p'
    ):
        matcher.match(*photographs, POINTS, nearest=True)
    with pytest.raises(SpecError, match='a flow needs the name of a "confidence" in match_param'):
        Matcher(message(FEATURES), seed=0).flow(*photographs)
    save(Net(message(FEATURES), seed=0), tmp_path / "other.safetensors")
    with pytest.raises(SpecError, match="the weights do not fill the net: .*conv1"):
        Matcher(message(), tmp_path / "other.safetensors")


def test_a_net_is_found_by_name() -> None:
    matcher = Matcher("ucn_demo_hn", seed=0)
    assert matcher.branches.twins
    assert matcher.net.graph.name == load("ucn_demo_hn").text("name")
