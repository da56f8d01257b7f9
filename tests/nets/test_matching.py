"""Matching by nets: by features and by a confidence, against what their layers give one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from cortado import functional
from cortado.layers._data.transform import blob, limited
from cortado.nets.matching import Matcher
from cortado.nets.net import Net
from cortado.nets.specs import load
from cortado.nets.weights import save
from cortado.prototxt_like import Message, SpecError, loads
from hyperpixel_toy import SMALL
from shared import SHARED, needs_shared

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


BLOBS = """
name: blobs
layer:
- {name: image1, type: Input, top: image1, input_param: &image {shape: {dim: [1, 3, 60, 80]}}}
- {name: image2, type: Input, top: image2, input_param: *image}
- siamese:
    suffix: _q
    input: {data: [image1, image2]}
    output: {feature: [feature1, feature2]}
    layer:
    - {name: conv, type: Convolution, bottom: data, top: conv, convolution_param: {
        num_output: 6, kernel_size: 5, stride: 2, pad: 1, weight_filler: &filler {type: msra}}}
    - {name: relu, type: ReLU, bottom: conv, top: conv}
    - {name: deep, type: Convolution, bottom: conv, top: deep, convolution_param: {
        num_output: 8, kernel_size: 3, stride: 2, pad: 1, weight_filler: *filler}}
    - {name: wide, type: Convolution, bottom: conv, top: wide, convolution_param: {
        num_output: 8, kernel_h: 3, kernel_w: 3, stride_h: 2, stride_w: 1, weight_filler: *filler}}
    - {name: flat, type: Flatten, bottom: deep, top: flat}
    - {name: embed, type: Convolution, bottom: deep, top: embed, convolution_param: {
        num_output: 4, kernel_size: 1, weight_filler: *filler}}
    - {name: norm, type: ChannelL2Norm, bottom: embed, top: feature}
match_param: {feature: [feature1, feature2], downsampling_factor: 4, coordinate_offset: 0.5}
"""


LOST = """    - {name: lost, type: Reshape, bottom: deep, top: lost, reshape_param: {
        shape: {dim: [1, 16, 5, 30]}}}
match_param"""


def bilinear(feature: np.ndarray, x: float, y: float) -> np.ndarray:
    """A map [C, H, W] at the cell coordinates (x, y), in float64."""
    height, width = feature.shape[1:]
    u, v = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
    total = np.zeros(len(feature))
    for row in range(height):
        for column in range(width):
            weight = max(0, 1 - abs(u - column)) * max(0, 1 - abs(v - row))
            total += weight * feature[:, row, column].astype(np.float64)
    return total


@pytest.mark.parametrize(
    ("feature", "step", "offset", "stride"),
    [
        ("conv", 0, 1, 2),
        ("conv", 4, 1, 2),
        ("deep", 0, 0.5, 4),
        ("deep", 3.5, 0.5, 4),
        ("embed", 4, 0.5, 4),
        (None, 3, 0.5, 4),
    ],
)
def test_any_map_is_matched_by_at_any_step(
    feature: str | None, step: float, offset: float, stride: int
) -> None:
    """Against loops. A map's cells lie where the net's arithmetic puts them, or where match_param says
    if they are the cells that it speaks of."""
    rng = np.random.default_rng(3)
    first, second = (rng.integers(0, 255, (*size, 3), np.uint8) for size in ((32, 40), (28, 36)))
    matcher = Matcher(message(BLOBS), seed=0, feature=feature, step=step)
    assert (matcher.params.downsampling_factor, matcher.params.coordinate_offset) == (stride, offset)
    names = (feature, f"{feature}_q") if feature else ("feature1", "feature2")
    assert matcher.params.feature == names
    with torch.no_grad():
        given = [blob(image, matcher.transform) for image in (first, second)]
        # the net's blobs after the layers that write them in place
        made = [Net(message(BLOBS), seed=0)(image1=x, image2=x, keep=names) for x in given]
    one, other = made[0][names[0]][0].numpy(), made[1][names[1]][0].numpy()

    def at(values: np.ndarray, x: float, y: float) -> np.ndarray:
        found = bilinear(values, (x - offset) / stride, (y - offset) / stride)
        return found / np.linalg.norm(found) if feature else found

    points = np.array([[20, 10], [7.25, 30.5], [39, 0]])
    found, distance = matcher.match(first, second, points)
    rows, columns = (
        (
            [offset + stride * i for i in range(count)]
            if not step
            else [i * step for i in range(99) if offset <= i * step <= offset + stride * (count - 1)]
        )
        for count in other.shape[1:]
    )
    if step:
        rows, columns = ([x for x in axis if x < n] for axis, n in ((rows, 28), (columns, 36)))
    candidates = [(x, y) for y in rows for x in columns]
    described = np.array([at(other, *place) for place in candidates])
    for (x, y), match, far in zip(points, found, distance, strict=True):
        away = np.linalg.norm(described - at(one, x, y), axis=1)
        assert match.tolist() == pytest.approx(candidates[int(away.argmin())])
        assert far == pytest.approx(away.min(), rel=1e-4, abs=1e-6)
    kept = matcher.candidates(matcher.describe(second))
    np.testing.assert_allclose(kept.points.numpy(), candidates)
    np.testing.assert_allclose(kept.features.numpy(), described, rtol=1e-4, atol=1e-5)
    assert matcher.spacing(matcher.describe(second)) == (step or stride)


def test_a_step_is_in_pixels_of_the_image_that_the_net_is_not_given() -> None:
    text = BLOBS.replace("coordinate_offset: 0.5", "longer_side: 20")
    image = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    matcher = Matcher(message(text), seed=0, feature="conv", step=5)
    described = matcher.describe(image)
    assert described.ratio == 0.5
    points = matcher.candidates(described).points.numpy()
    # cells reach from the given image's pixel 1 to 17 and 13, of 20 x 15: conv has 9 x 7 of them
    assert np.unique(points[:, 0]).tolist() == [5, 10, 15, 20, 25, 30]
    assert np.unique(points[:, 1]).tolist() == [5, 10, 15, 20, 25]
    asked = torch.from_numpy(points * 0.5 - 0.25 - 1)
    at = matcher.at(described, points)
    plain = described.values["conv", 2][0].numpy()
    for (x, y), feature in zip(asked.tolist(), at.numpy(), strict=True):
        wanted = bilinear(plain, x / 2, y / 2)
        np.testing.assert_allclose(feature, wanted / np.linalg.norm(wanted), rtol=1e-4, atol=1e-6)


def test_cells_are_read_as_they_are_where_the_step_meets_them() -> None:
    image = np.random.default_rng(1).integers(0, 255, (60, 80, 3), np.uint8)
    text = BLOBS.replace("kernel_size: 5, stride: 2, pad: 1", "kernel_size: 5, stride: 2, pad: 2")
    text = text.replace("coordinate_offset: 0.5", "coordinate_offset: 0")
    cells, pixels = (Matcher(message(text), seed=0, feature="deep", step=s) for s in (0, 4))
    one, other = (each.candidates(each.describe(image)) for each in (cells, pixels))
    np.testing.assert_array_equal(one.points, other.points)
    np.testing.assert_array_equal(one.features, other.features)


def test_a_map_of_a_net_with_a_confidence(photographs: tuple[np.ndarray, np.ndarray]) -> None:
    matcher = Matcher(message(), seed=0, feature="conv2", step=4)
    assert (matcher.measure, matcher.params.feature) == ("distance", ("conv2", "conv2_p"))
    assert (matcher.params.downsampling_factor, matcher.params.coordinate_offset) == (8, 0)
    found, distance = matcher.match(*photographs, POINTS)
    assert np.isfinite(found).all()
    assert (distance <= 2).all()
    assert Matcher(message(), seed=0, step=4).step == 0  # a confidence's cells stay


def test_only_what_is_matched_by_needs_weights(tmp_path: Path) -> None:
    shared = BLOBS[: BLOBS.index("    - {name: embed")]
    some = f"{shared}    - {{name: norm, type: ReLU, bottom: deep, top: feature}}"
    save(Net(message(some), seed=5), tmp_path / "some.safetensors")
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    matcher = Matcher(message(BLOBS), tmp_path / "some.safetensors", feature="deep")
    with torch.no_grad():
        filled = Net(message(some), weights=tmp_path / "some.safetensors")
        given = blob(image, matcher.transform)
        wanted = filled(image1=given, image2=given, keep=["deep"])
    described = matcher.describe(image).values["deep", 1]
    assert torch.equal(described, wanted["deep"])
    with pytest.raises(SpecError, match="not fill the net: .*; not in the file: embed, embed_q\n"):
        Matcher(message(BLOBS), tmp_path / "some.safetensors", feature="embed")
    with pytest.raises(SpecError, match="not in the file: embed, embed_q"):
        Matcher(message(BLOBS), tmp_path / "some.safetensors")


ONE = """
name: one
layer:
- {name: data, type: Input, top: data, input_param: {shape: {dim: [1, 3, 60, 80]}}}
- {name: conv, type: Convolution, bottom: data, top: conv, convolution_param: {
    num_output: 6, kernel_size: 3, stride: 2, pad: 1, weight_filler: {type: msra}}}
- {name: fc, type: InnerProduct, bottom: conv, top: fc, inner_product_param: {
    num_output: 4, weight_filler: {type: msra}}}
"""


def test_a_net_of_one_image_without_match_param() -> None:
    """Its layers for images of one size are not run."""
    image = np.random.default_rng(0).integers(0, 255, (32, 40, 3), np.uint8)
    matcher = Matcher(message(ONE), seed=0, feature="conv")
    assert (matcher.params.downsampling_factor, matcher.params.coordinate_offset) == (2, 0)
    shifted = np.zeros_like(image)
    shifted[:, 6:] = image[:, :-6]
    points = np.array([[10, 10], [12, 20], [20, 16]])
    found, distance = matcher.match(image, shifted, points)
    np.testing.assert_array_equal(found, points + np.array([6, 0]))
    np.testing.assert_allclose(distance, 0, atol=1e-6)


def test_twins_that_are_written_out(photographs: tuple[np.ndarray, np.ndarray]) -> None:
    conv = "convolution_param: {num_output: 4, kernel_size: 3, pad: 1, weight_filler: {type: msra}}"
    text = ONE[: ONE.index("- {name: conv")].replace("data", "image1") + (
        "- {name: image2, type: Input, top: image2, input_param: {shape: {dim: [1, 3, 60, 80]}}}\n"
        f"- {{name: conv, type: Convolution, bottom: image1, top: conv, {conv}}}\n"
        f"- {{name: conv_p, type: Convolution, bottom: image2, top: conv_p, {conv}}}\n"
    )
    text = text.replace("input_image1", "input")
    matcher = Matcher(message(text), seed=0, feature="conv")
    assert matcher.params.feature == ("conv", "conv_p")
    assert matcher.params.image == ("image1", "image2")


REFUSED_MAPS = {
    "no blob": (BLOBS, "depe", '"depe" is no blob of the net in the stage deploy\n'),
    "a blob close to it": (
        BLOBS,
        "depe",
        'did you mean "deep"? blobs: conv, deep, embed, feature1',
    ),
    "no map": (BLOBS, "flat", 'read from a map [N, C, H, W]; "flat" is [1, 2400]'),
    "of the second branch": (BLOBS, "deep_q", '"deep_q" is not in the first of two twin branches'),
    "two steps": (
        BLOBS,
        "wide",
        'cells of "wide" have no one step and offset in the image: they lie at 2u + 3 and at 4u + 3',
    ),
    "an unknown place": (
        BLOBS.replace("match_param", LOST),
        "lost",
        "no receptive field leads to them from the images",
    ),
    "three inputs": (
        ONE + "- {name: more, type: Input, top: [m1, m2], input_param: {shape: {dim: [1, 2]}}}",
        "conv",
        "matching gives the net one image or two; in the stage deploy its inputs are data, m1, m2",
    ),
}


@pytest.mark.parametrize("name", REFUSED_MAPS)
def test_maps_that_are_not_matched_by(name: str) -> None:
    text, feature, said = REFUSED_MAPS[name]
    with pytest.raises(SpecError) as caught:
        Matcher(message(text), seed=0, feature=feature)
    assert said in str(caught.value)
    assert str(caught.value).startswith("small.yaml:")


@pytest.mark.parametrize("step", [-1, np.nan, np.inf])
def test_no_step(step: float) -> None:
    with pytest.raises(ValueError, match="step: expected pixels, or 0 for the cells of the map, got"):
        Matcher(message(FEATURES), seed=0, step=step)


@needs_shared
def test_ucns_trunk_with_the_weights_of_googlenet() -> None:
    assert SHARED is not None
    weights = SHARED / "data" / "weights" / "bvlc_googlenet.caffemodel"
    matcher = Matcher("ucn_hn", weights, feature="inception_3b/output", step=4)
    assert (matcher.params.downsampling_factor, matcher.params.coordinate_offset) == (4, 0)
    first, second, disparity = skimage.data.stereo_motorcycle()
    x, y = (each.ravel() for each in np.meshgrid(np.arange(40, 100, 8), np.arange(12, 70, 8)))
    crops = first[100:180, 200:320], second[100:180, 180:300]
    found, _ = matcher.match(*crops, np.stack([x, y], 1))
    truth = np.stack([x - disparity[y + 100, x + 200] + 20, y], 1)  # 20: the crop begins further left
    known = np.isfinite(truth).all(1)
    assert known.sum() > 40
    assert np.median(np.linalg.norm(found - truth, axis=1)[known]) < 4
    with pytest.raises(SpecError, match="not in the file: feature_conv, feature_conv_p"):
        Matcher("ucn_hn", weights)
