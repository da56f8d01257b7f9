"""``cortado.match`` against loops over every candidate, for descriptors and for nets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cortado
import numpy as np
import pytest
import skimage.data
from cortado.nets import models
from cortado.nets.matching import Matcher
from cortado.nets.net import Net
from cortado.nets.weights import save
from cortado.prototxt_like import SpecError
from cortado.tools.matching import METHODS, Descriptors, Matches
from hyperpixel_toy import SMALL
from skimage.io import imsave

APART = 16


def patches(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Unit vectors of 5 x 5 grey patches around the nearest pixels."""
    grey = np.pad(image.astype(np.float64).mean(2) + 1, 2, mode="edge")
    x, y = np.rint(points).astype(int).T
    made = np.array([grey[b : b + 5, a : a + 5].ravel() for a, b in zip(x, y, strict=True)])
    made = made.reshape(-1, 25)
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def photographs() -> tuple[np.ndarray, np.ndarray]:
    coffee = skimage.data.coffee()[60:300:2, 60:380:2]
    return coffee[20:80, 20:100], coffee[28:92, 28:120]


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "patches", patches)


def places(image: np.ndarray, step: float) -> np.ndarray:
    height, width = image.shape[:2]
    rows = [i * step for i in range(height) if i * step < height]
    columns = [i * step for i in range(width) if i * step < width]
    return np.array([(x, y) for y in rows for x in columns], np.float64)


def by_hand(
    first: np.ndarray,
    second: np.ndarray,
    points: np.ndarray,
    step: float,
    mutual: bool = False,
    ratio: float | None = None,
    apart: float = APART,
) -> np.ndarray:
    """Rows (x1, y1, x2, y2, score), one candidate after the other."""
    own, candidates = places(first, step), places(second, step)
    features = [patches(image, xy).astype(float) for image, xy in ((first, own), (second, candidates))]
    rows = []
    for point, query in zip(points, patches(first, points).astype(float), strict=True):
        away = np.linalg.norm(features[1] - query, axis=1)
        best = int(away.argmin())
        if ratio is not None:
            far = np.hypot(*(candidates - candidates[best]).T) > apart
            if not away[best] < ratio * min(away[far], default=np.inf):
                continue
        if mutual:
            back = np.linalg.norm(features[0] - features[1][best], axis=1).argmin()
            if np.hypot(*(own[back] - point)) > step:
                continue
        rows.append([*point, *candidates[best], 1 - away[best] ** 2 / 4])
    return np.array(rows).reshape(-1, 5)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"mutual": True},
    {"ratio": 0.8},
    {"ratio": 0.9, "apart": 0},
    {"mutual": True, "ratio": 0.95, "step": 3},
    {"step": 7.5},
]


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_matches_of_descriptors(
    photographs: tuple[np.ndarray, np.ndarray], options: dict[str, Any], given: bool
) -> None:
    step = options.get("step", 4)
    points = np.array([[5.25, 7], [40, 30], [61, 12.5], [79, 59], [20, 40]])
    asked = points if given else places(photographs[0], step)
    found = cortado.match(*photographs, method="patches", points=points if given else None, **options)
    wanted = by_hand(*photographs, asked, **{"step": 4, **options})
    assert len(found) == len(wanted)
    assert given or len(wanted) > 10
    np.testing.assert_array_equal(found.rows[:, :4], wanted[:, :4])
    np.testing.assert_allclose(found.score, wanted[:, 4], atol=1e-6)
    assert found.sizes == ((60, 80), (64, 92))
    assert (found.names, found.measure) == (("image1", "image2"), "distance")


def test_each_test_leaves_out_some(photographs: tuple[np.ndarray, np.ndarray]) -> None:
    counts = [len(cortado.match(*photographs, method="patches", **options)) for options in OPTIONS[:4]]
    assert 300 == counts[0] > max(counts[1:])
    assert min(counts) > 10


def test_the_best_are_kept_in_their_order(photographs: tuple[np.ndarray, np.ndarray]) -> None:
    every = cortado.match(*photographs, method="patches")
    some = cortado.match(*photographs, method="patches", number=20)
    least = np.sort(every.score)[-20]
    assert len(some) == 20
    np.testing.assert_array_equal(some.rows, every.rows[every.score >= least][:20])
    assert len(cortado.match(*photographs, method="patches", number=1000)) == 300


def test_images_are_files_or_arrays_of_any_kind(
    photographs: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    for name, image in zip("ab", photographs, strict=True):
        imsave(tmp_path / f"{name}.png", image, check_contrast=False)
    paths = [tmp_path / "a.png", str(tmp_path / "b.png")]
    of_files = cortado.match(*paths, method="patches")
    assert of_files.names == tuple(map(str, paths))
    of_arrays = cortado.match(*photographs, method="patches", names=("x", "y"))
    np.testing.assert_array_equal(of_files, of_arrays)
    assert of_arrays.names == ("x", "y")
    floats = [image / 255 for image in photographs]
    np.testing.assert_array_equal(cortado.match(*floats, method="patches"), of_arrays)
    greys = [image[..., 0] for image in photographs]
    alike = [np.repeat(grey[..., None], 3, 2) for grey in greys]
    one, other = (cortado.match(*images, method="patches") for images in (greys, alike))
    np.testing.assert_array_equal(one, other)


def test_larger_images_are_made_smaller(tmp_path: Path) -> None:
    """As a net's match_param says, each by its own ratio; points go there and back."""
    text = models.specs.path("ucn_demo_hn").read_text()
    text = text.replace("match_param: {", "match_param: {longer_side: 80, ")
    (tmp_path / "net.yaml").write_text(text)
    save(Net("ucn_demo_hn", stages=("deploy",), seed=1), tmp_path / "w.safetensors")
    small = skimage.data.coffee()[80:140, 100:180]
    first, second = small.repeat(3, 0).repeat(3, 1), small.repeat(6, 0).repeat(6, 1)
    given = {"net": tmp_path / "net.yaml", "weights": tmp_path / "w.safetensors"}
    every = cortado.match(first, second, **given, mutual=True)
    assert every.sizes == ((180, 240), (360, 480))
    assert len(every) > 250
    assert (np.abs(every.points2 - (2 * every.points1 + 0.5)).max(1) < 1e-9).mean() > 0.95
    np.testing.assert_allclose((every.points1 % 12)[0], 1)  # of a cell's pixel the middle
    as_it_is = cortado.match(small, small, **given, mutual=True)
    np.testing.assert_allclose(3 * as_it_is.points1 + 1, every.points1)
    points = np.random.default_rng(0).uniform(0, 179, (40, 2))
    found = cortado.match(first, second, points=points, **given)
    np.testing.assert_array_equal(found.points1, points)
    assert (np.abs(found.points2 - 2 * points).max(1) < 18).mean() > 0.8


def test_fast_corners(photographs: tuple[np.ndarray, np.ndarray]) -> None:
    found = cortado.match(*photographs, method="patches", points="fast")
    grey = np.rint(photographs[0] @ [0.299, 0.587, 0.114])
    assert len(found) > 20
    around = [(0, 3), (1, 3), (2, 2), (3, 1), (3, 0), (3, -1), (2, -2), (1, -3)]
    around += [(-dx, -dy) for dx, dy in around]
    for x, y in found.points1.astype(int):
        apart = np.array([grey[y + dy, x + dx] - grey[y, x] for dx, dy in around])
        runs = [(sign * np.roll(apart, i)[:9] > 20).all() for sign in (1, -1) for i in range(16)]
        assert any(runs)


def test_what_matches_are(photographs: tuple[np.ndarray, np.ndarray]) -> None:
    found = cortado.match(*photographs, method="patches", number=9)
    assert isinstance(found, Matches)
    assert np.asarray(found).shape == (9, 5)
    assert np.asarray(found).dtype == np.float64
    assert np.array(found, np.float32).dtype == np.float32
    np.testing.assert_array_equal(np.column_stack([found.points1, found.points2, found.score]), found)
    assert isinstance(found[2:5], Matches)
    np.testing.assert_array_equal(found[2:5], found.rows[2:5])
    assert [row[4] for row in found] == found.score.tolist()
    assert found[-1].tolist() == found.rows[8].tolist()
    np.testing.assert_allclose(1 - found.measured**2 / 4, found.score)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_a_shift(method: str) -> None:
    image = skimage.data.astronaut()[100:200, 180:300]
    found = cortado.match(image[:, :-24], image[8:, 24:], method=method, mutual=True, ratio=0.9)
    inside = (found.points1 >= [44, 28]).all(1) & (found.points2 <= [76, 72]).all(1)
    moved = found.points1 - found.points2
    assert inside.sum() > 60
    assert (np.abs(moved - [24, 8])[inside].max(1) == 0).mean() > 0.9
    assert (found.score <= 1 + 1e-6).all()
    assert found.score.max() > 0.9


def test_points_between_pixels(photographs: tuple[np.ndarray, np.ndarray]) -> None:
    """They stay as they were given."""
    points = np.array([[30.25, 20.5], [31.75, 29.25]])
    np.testing.assert_array_equal(cortado.match(*photographs, points=points).points1, points)


def test_nets(photographs: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    """A net by its features, by another of its maps, and by its own candidates."""
    weights = tmp_path / "ucn.safetensors"
    save(Net("ucn_demo_hn", stages=("deploy",), seed=1), weights)
    found = cortado.match(*photographs, net="ucn_demo_hn", weights=weights)
    matcher = Matcher("ucn_demo_hn", weights)
    points = matcher.grid(photographs[0])
    wanted, distance = matcher.match(*photographs, points)
    np.testing.assert_array_equal(found.rows[:, :4], np.column_stack([points, wanted]))
    np.testing.assert_allclose(found.measured, distance, atol=1e-6)
    again = cortado.match(*photographs, net=matcher)
    np.testing.assert_array_equal(found, again)
    other = cortado.match(*photographs, net="ucn_demo_hn", weights=weights, feature="conv2", step=5)
    assert np.unique(other.rows[:, :4] % 5).tolist() == [0]
    assert (other.score > 0.5).all()
    kept = cortado.match(*photographs, net=matcher, mutual=True)
    back = Matcher("ucn_demo_hn", weights).match(*photographs[::-1], wanted)[0]
    lead = np.linalg.norm(back - points, axis=1) <= 4
    np.testing.assert_array_equal(kept.rows[:, :4], np.column_stack([points, wanted])[lead])
    assert 0 < len(kept) < len(found)


@pytest.mark.parametrize("name", models.names())
def test_nets_that_come_with_cortado(name: str, photographs: tuple[np.ndarray, np.ndarray]) -> None:
    """By their names, with their own weights unless others are given."""
    found = cortado.match(*photographs, net=name)
    np.testing.assert_array_equal(cortado.match(*photographs, net=cortado.pretrained(name)), found)
    np.testing.assert_array_equal(cortado.match(*photographs, net=models.specs.path(name)), found)
    again = cortado.match(*photographs, net=name, weights=models.weights(name))
    np.testing.assert_array_equal(again, found)
    np.testing.assert_array_equal(
        cortado.match(*photographs, net=name, feature="conv2/norm2", step=5),
        cortado.match(*photographs, net=cortado.pretrained(name, feature="conv2/norm2", step=5)),
    )


def test_the_best_of_them_is_the_default(photographs: tuple[np.ndarray, np.ndarray]) -> None:
    for step in (None, 5):
        found = cortado.match(*photographs, step=step)
        matcher = cortado.pretrained(models.BEST, step=step or 0)
        np.testing.assert_array_equal(found, cortado.match(*photographs, net=matcher))


def test_a_net_with_a_confidence(photographs: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    save(Net(tmp_path / "small.yaml", seed=0), tmp_path / "small.safetensors")
    matcher = Matcher(tmp_path / "small.yaml", tmp_path / "small.safetensors")
    points = np.array([[20, 20], [0.5, 30], [61, 24]])  # in no cell's box: the second
    wanted, confidence = matcher.match(*photographs, points)
    found = cortado.match(*photographs, net=matcher, points=points)
    rows = np.column_stack([points, wanted, confidence])
    np.testing.assert_array_equal(found, rows[[0, 2]])
    np.testing.assert_array_equal(found.measured, confidence[[0, 2]])
    assert found.measure == "confidence"
    every = cortado.match(*photographs, net=matcher, points=points, keep_lost=True)
    np.testing.assert_array_equal(every, rows)
    np.testing.assert_array_equal(every.known, found)
    grid = cortado.match(*photographs, net=matcher)
    np.testing.assert_array_equal(grid.points1, matcher.grid(photographs[0]))
    kept = cortado.match(*photographs, net=matcher, mutual=True, keep_lost=True)
    back, _ = matcher.match(*photographs[::-1], grid.points2)
    lead = np.linalg.norm(back - grid.points1, axis=1) <= 4
    assert 0 < len(kept) < len(grid)
    np.testing.assert_array_equal(kept, grid.rows[lead])
    with pytest.raises(ValueError, match=r"^a ratio test compares distances: this net has a conf"):
        cortado.match(*photographs, net=matcher, ratio=0.9)


@pytest.mark.parametrize("nothing", [np.nan, 0.0])
def test_points_without_a_descriptor(
    photographs: tuple[np.ndarray, np.ndarray], nothing: float
) -> None:
    """Are not matched, and match nothing, not even each other."""

    def of_some(image: np.ndarray, points: np.ndarray) -> np.ndarray:
        made = patches(image, points)
        made[points[:, 0] < 8] = nothing
        return made

    METHODS["patches"] = of_some
    found = cortado.match(*photographs, method="patches")
    assert len(found) == 300 - 2 * 15
    assert (found.rows[:, [0, 2]] >= 8).all()
    every = cortado.match(*photographs, method="patches", keep_lost=True)
    assert len(every) == 300
    assert np.isnan(every.rows[:, 2:]).all(1).sum() == 30
    assert len(cortado.match(*photographs, method="patches", number=280)) == 270
    points = [[0, 0], [4, 8], [20, 20], [40, 40]]
    for asked, test in ((None, {"ratio": 1.0}), (None, {}), (points, {})):
        kept = {"points": asked, "mutual": True, "keep_lost": True, **test}
        tested = cortado.match(*photographs, method="patches", **kept)
        assert 0 < len(tested) < 270
        assert (tested.rows[:, [0, 2]] >= 8).all()


def test_no_points(photographs: tuple[np.ndarray, np.ndarray]) -> None:
    options: dict[str, Any] = {"mutual": True, "ratio": 0.9, "number": 3}
    found = cortado.match(*photographs, method="patches", points=np.zeros((0, 2)), **options)
    assert found.rows.shape == (0, 5)
    flat = np.zeros((40, 40), np.uint8)
    assert len(cortado.match(flat, flat, method="patches", points="fast")) == 0


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "method": (
        {"method": "surf"},
        'no method "surf": expected one of daisy, sift, sift-oriented',
    ),
    "weights": ({"weights": "w.npz"}, "weights and a feature go with a net"),
    "feature": ({"feature": "conv1"}, "weights and a feature go with a net"),
    "both": ({"method": "daisy", "net": "ucn_hn"}, "give a net or a method, not both"),
    "random": ({"net": "ucn_demo_hn"}, "name the net's weights: a new net's are random"),
    "number": ({"number": 0}, "number: expected at least 1, got 0"),
    "ratio": ({"ratio": 0}, "ratio: expected a number above 0 and at most 1, got 0"),
    "step": ({"step": 0}, "step: expected pixels above 0, got 0"),
    "apart": ({"apart": -1}, "apart: expected pixels, got -1"),
    "points": ({"points": [1, 2]}, r"points: expected \[P, 2\] of them, got \[2\]"),
    "word": ({"points": "slow"}, r'points: expected \[P, 2\] of them, or "fast", got "slow"'),
    "beyond": (
        {"points": [[0, 0], [79, 59.5]]},
        r"points\[1\]: \(79, 59.5\) is not in the 80 x 60 image",
    ),
    "not a number": ({"points": [[0, np.nan]]}, r"points\[0\]: \(0, nan\) is not in the 80 x 60 image"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_asked(name: str, photographs: tuple[np.ndarray, np.ndarray]) -> None:
    options, text = REFUSED[name]
    with pytest.raises(ValueError, match=f"^{text}"):
        cortado.match(*photographs, **options)


def test_images_that_are_none(photographs: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    image = photographs[0]
    with pytest.raises(ValueError, match=r"^image_b: expected an image \[H, W\] or \[H, W, 1\|3\|4\]"):
        cortado.match(image, np.zeros((3, 4, 5, 6)))
    with pytest.raises(ValueError, match=r"^image_a: expected an image of uint8 or of floats in 0..1"):
        cortado.match(image.astype(int), image)
    (tmp_path / "no.png").write_text("no")
    with pytest.raises(ValueError, match="cannot read .*no.png: it is no PNG"):
        cortado.match(tmp_path / "no.png", image)
    with pytest.raises(ValueError, match="cannot read nowhere.png: No such file"):
        cortado.match(image, "nowhere.png")


def test_a_matcher_is_as_it_was_made(photographs: tuple[np.ndarray, np.ndarray]) -> None:
    matcher = Matcher("ucn_demo_hn", seed=0)
    with pytest.raises(ValueError, match="a Matcher has its weights, feature and step: give them"):
        cortado.match(*photographs, net=matcher, step=4)
    with pytest.raises(SpecError, match='"conv9" is no blob of the net'):
        Matcher("ucn_demo_hn", seed=0, feature="conv9")
    narrow = photographs[0][:, :3]
    sparse = Matcher("ucn_hn", seed=0, feature="inception_4a/output", step=50)  # from pixel 4 on
    with pytest.raises(ValueError, match="^image2: no candidate lies in it: enlarge it, or make the"):
        cortado.match(photographs[0], narrow.repeat(8, 1), net=sparse)


def test_the_tables_name_the_same() -> None:
    from cortado.layers._data.measured_pairs import FAST
    from cortado.tools import match, options

    assert tuple(name for name in METHODS if name != "patches") == options.DESCRIPTORS
    assert match.FAST == FAST


def test_descriptors_are_given_a_matchers_way(photographs: tuple[np.ndarray, np.ndarray]) -> None:
    finder = Descriptors(patches, step=6)
    image = finder.describe(photographs[0] / 255)
    points, features = finder.candidates(image)
    np.testing.assert_array_equal(points, places(image, 6))
    np.testing.assert_array_equal(features, patches(image, places(image, 6)))
    assert finder.spacing(image) == 6
