"""CorrespondenceFiles: the truth moves with the images, whatever the views; what is drawn, of what.

Made images hold their own coordinates: red is x, green is y. What a view shows at a point is thus where
in the image that point lies.
"""

from __future__ import annotations

import math
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cortado.layers._data import keypoint_pairs
from cortado.layers._data.crops import View, crop, whole
from cortado.layers._data.keypoint_pairs import KeypointPair, PairReader, readers
from cortado.layers._data.transform import ChannelOrder, TransformParams
from cortado.layers._data.views import Draw, rotation, warp
from cortado.layers._engine import parallel
from cortado.layers.data import correspondence_files
from cortado.layers.data.correspondence_files import (
    CorrespondenceFiles,
    Matches,
    Params,
    draw_steps,
    draw_table,
    draw_views,
)
from cortado.nets.net import Net
from cortado.prototxt_like import loads
from cortado.prototxt_like.source import SpecError
from PIL import Image

from tests.shared import SHARED, needs_shared

HEIGHT1, WIDTH1 = 200, 240
HEIGHT2, WIDTH2 = 230, 210
MATRIX = np.array([[0.9, 0.15], [-0.1, 1.05]])  # points of image 2 from those of image 1
EVERYTHING = {
    "view_rotation": 25.0,
    "rotation": 40.0,
    "scale_min": 0.45,
    "scale_max": 1.6,
    "relative_scale_min": 0.7,
    "relative_scale_max": 1.4,
    "shift": 0.15,
}
LIGHT = {"contrast": 0.3, "brightness": 0.1, "gamma": 0.3, "color": 0.1, "noise": 0.03}


def matched(points: np.ndarray) -> np.ndarray:
    return points @ MATRIX.T + [3.25, 20.5]


def coordinates(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.full_like(x, 77)], 2).astype(np.uint8)


class Made(PairReader):
    """Pairs of a folder: ``N.npz`` with the points, ``N_1.png`` and ``N_2.png``."""

    pixels = True

    def __init__(self, folder: str, split: str = "test", end: str = "") -> None:
        self.split, self.end = split, end
        self.rows = sorted(Path(folder).glob(f"*{end}.npz"))

    def read(self, row: Path) -> KeypointPair:
        with np.load(row) as file:
            found = dict(file)
        image1, image2 = (row.with_name(f"{row.stem}_{i}.png") for i in (1, 2))
        points1, points2 = found["points1"], found["points2"]
        return KeypointPair(image1, image2, points1, "made", row.stem, points2, 1.0, found.get("signs"))


@pytest.fixture(autouse=True)
def made_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    readers()  # all there are: these come on top
    sparse = type("Sparse", (Made,), {"pixels": False})
    monkeypatch.setitem(keypoint_pairs._readers, "made", Made)
    monkeypatch.setitem(keypoint_pairs._readers, "sparse", sparse)


def add_pair(folder: Path, name: str, points1: np.ndarray, points2: np.ndarray, **more: Any) -> None:
    np.savez(folder / f"{name}.npz", points1=points1, points2=points2, **more)
    Image.fromarray(coordinates(HEIGHT1, WIDTH1)).save(folder / f"{name}_1.png")
    Image.fromarray(coordinates(HEIGHT2, WIDTH2)).save(folder / f"{name}_2.png")


def dense(step: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """All points of image 1 on a grid whose match lies inside image 2."""
    y, x = np.mgrid[: HEIGHT1 - 1 : step, : WIDTH1 - 1 : step]
    points = np.stack([x.ravel(), y.ravel()], 1).astype(float)
    there = matched(points)
    inside = ((there >= 0) & (there <= [WIDTH2 - 1, HEIGHT2 - 1])).all(1)
    return points[inside], there[inside]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two dense pairs."""
    for name in "ab":
        add_pair(tmp_path, name, *dense())
    return tmp_path


def layer(folder: Path, seed: int = 3, side: int = 40, **fields: Any) -> CorrespondenceFiles:
    mirror, order = fields.pop("mirror", False), ChannelOrder.RGB
    images = TransformParams(crop_size=side, mirror=mirror, channel_order=order)
    fields = {"source": (f"made:{folder}",), "num_points": 60, "transform_param": images} | fields
    return CorrespondenceFiles(Params(**fields), (), torch.Generator().manual_seed(seed))


def read(image: torch.Tensor, points: np.ndarray) -> np.ndarray:
    """Bilinear reading of an image [C, H, W] at points [P, 2] (x, y), as a loop: [P, C]."""
    values = image.double().numpy()
    found = []
    for x, y in points:
        i, j = min(int(y), image.shape[1] - 2), min(int(x), image.shape[2] - 2)
        a, b = y - i, x - j
        top = (1 - b) * values[:, i, j] + b * values[:, i, j + 1]
        found.append((1 - a) * top + a * ((1 - b) * values[:, i + 1, j] + b * values[:, i + 1, j + 1]))
    return np.array(found)


def rows_of(tops: tuple[torch.Tensor, ...], n: int = 0) -> np.ndarray:
    return tops[2][n, : int(tops[3][n, 0])].double().numpy()


# The truth moves with the images.


@pytest.mark.parametrize("mirror", [False, True])
def test_both_views_show_the_two_points_of_a_match(folder: Path, mirror: bool) -> None:
    made = layer(folder, mirror=mirror, **EVERYTHING)
    turned = set()
    for _ in range(12):
        tops = made()
        rows = rows_of(tops)
        assert len(rows) == 60
        assert (rows[:, 4] == 1).all()
        there1, there2 = read(tops[0][0], rows[:, :2])[:, :2], read(tops[1][0], rows[:, 2:4])[:, :2]
        last = np.array([WIDTH2, HEIGHT2]) - 1
        clear = (np.minimum(there1, there2) > 2).all(1) & (there2 < last - 2).all(1)  # of reflections
        assert clear.sum() > 40
        np.testing.assert_allclose(matched(there1)[clear], there2[clear], atol=1e-3)
        right, down = (tops[0][0, :2, 19 + i, 20 - i] - tops[0][0, :2, 19, 19] for i in (0, 1))
        turned.add(bool(right[0] * down[1] < right[1] * down[0]))
    assert turned == ({False, True} if mirror else {False})


def test_the_table_is_that_of_a_loop() -> None:
    """All matches that both views show, by a loop that solves the views' equations."""
    points1, points2 = dense(step=3)
    signs = (np.arange(len(points1)) % 3 > 0).astype(float)
    images = TransformParams(crop_size=30, mirror=True)
    params = Params(source=("none",), transform_param=images, **EVERYTHING)
    sizes = (HEIGHT1, WIDTH1), (HEIGHT2, WIDTH2)
    for number in range(4):
        matches = Matches(points1, points2, signs)
        views = draw_views(params, matches, sizes, Draw(1, number))
        table, count = draw_table(matches, views, 900, Draw(2, number))
        wanted = []
        for (x1, y1), (x2, y2), sign in zip(points1, points2, signs, strict=True):
            row = []
            for x, y, view in ((x1, y1, views[0]), (x2, y2, views[1])):
                (a, b, c), (d, e, f), _ = view.matrix
                determinant = a * e - b * d
                row += [(e * (x - c) - b * (y - f)) / determinant]
                row += [(a * (y - f) - d * (x - c)) / determinant]
            if all(0 <= value <= 29 for value in row):
                wanted.append([*row, sign])
        assert 20 < count == len(wanted) < 900
        found = table[:count].double().numpy()
        order, expected = np.lexsort(found.T[:4].round(2)), np.array(wanted)
        expected = expected[np.lexsort(expected.T[:4].round(2))]
        np.testing.assert_allclose(found[order], expected, atol=1e-4)
        assert (table[count:] == torch.tensor([0.0, 0, 0, 0, -1])).all()


class Most(Draw):
    """Draws the ends of all ranges."""

    def around(self, half: float) -> float:
        return half

    def log_uniform(self, low: float, high: float) -> float:
        return high


@pytest.mark.parametrize("sign", [1, -1])
def test_images_are_mirrored_scaled_and_turned(sign: int) -> None:
    params = Params(
        source=("none",),
        view_rotation=30.0,
        rotation=20.0,
        scale_max=2.0,
        relative_scale_max=1.5,
        transform_param=TransformParams(crop_size=8, mirror=True),
    )
    number = next(n for n in range(99) if (Most(0, n).rng.random() < 0.5) == (sign < 0))
    right1, right2 = (np.linalg.inv(s) @ [1, 0] for s in draw_steps(params, Most(0, number)))
    cos, sin = (f(math.radians(30)) for f in (math.cos, math.sin))
    np.testing.assert_allclose(right1, [2 * sign * cos, 2 * sign * sin])
    cos, sin = (f(math.radians(50)) for f in (math.cos, math.sin))
    np.testing.assert_allclose(right2, [3 * sign * cos, 3 * sign * sin])
    down1, down2 = (np.linalg.inv(s) @ [0, 1] for s in draw_steps(params, Most(0, number)))
    np.testing.assert_allclose(down1, [-2 * math.sin(math.radians(30)), 2 * math.cos(math.radians(30))])
    np.testing.assert_allclose(down2, [-3 * sin, 3 * cos])


# What a view shows.


@pytest.mark.parametrize("mirror", [False, True])
def test_a_crop_alone_holds_the_images_own_pixels(folder: Path, mirror: bool) -> None:
    made = layer(folder, mirror=mirror)
    ways = set()
    for _ in range(8):
        tops = made()
        for image, size in ((tops[0][0], (HEIGHT1, WIDTH1)), (tops[1][0], (HEIGHT2, WIDTH2))):
            first, last = int(image[0, 0, 0]), int(image[0, 0, -1])
            top = int(image[1, 0, 0])
            ways.add(last < first)
            columns = np.linspace(first, last, 40)
            assert abs(last - first) == 39
            own = coordinates(*size)[top : top + 40][:, columns.astype(int)]
            np.testing.assert_array_equal(image.numpy(), own.transpose(2, 0, 1))
        rows = rows_of(tops)
        assert (rows[:, :2] == np.rint(rows[:, :2])).all()  # as whole as those of the truth
    assert ways == ({False, True} if mirror else {False})


def test_a_view_that_shrinks_passes_nothing_over() -> None:
    y, x = np.mgrid[:64, :64]
    checks = torch.from_numpy(((x + y) % 2 * 200).astype(np.uint8))[None].expand(3, -1, -1)
    for middle in ([31.5, 31.5], [31.0, 30.7]):
        for scale, most in ((0.5, 1e-3), (0.3, 20), (0.1, 1e-3)):
            view = crop((64, 64), np.eye(2) / scale, np.array(middle), 6)
            assert (view.of(checks) - 100).abs().max() < most
    assert (warp(checks, view.matrix, 6, 6) - 100).abs().max() > 30  # a single reading


def test_a_view_that_shrinks_by_a_whole_number_is_the_mean_of_its_pixels() -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 24, 24), dtype=np.uint8))
    matrix = np.array([[3.0, 0, 1], [0, 3, 1], [0, 0, 1]])  # the middle of each 3 x 3
    wanted = image.double().view(3, 8, 3, 8, 3).mean((2, 4))
    np.testing.assert_allclose(View(matrix, (8, 8)).of(image), wanted, atol=1e-3)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 33.0])
def test_beyond_its_borders_an_image_is_reflected(angle: float) -> None:
    image = torch.from_numpy(coordinates(9, 7).transpose(2, 0, 1))
    steps = rotation(angle)[:2, :2]
    view = crop((9, 7), steps, np.array([3.0, 4.0]), 25)
    shown = view.of(image).numpy()
    for y in range(25):
        for x in range(25):
            across, down, _ = view.matrix @ [x, y, 1]
            wanted = [_triangle(across, 6), _triangle(down, 8), 77]
            np.testing.assert_allclose(shown[:, y, x], wanted, atol=1e-4)


def _triangle(place: float, last: int) -> float:
    while not 0 <= place <= last:
        place = -place if place < 0 else 2 * last - place
    return place


def test_images_of_one_pixel() -> None:
    for size in ((1, 1), (1, 5), (5, 1)):
        image = torch.full((3, *size), 9, dtype=torch.uint8)
        for steps in (np.eye(2), rotation(30)[:2, :2], np.eye(2) * 3, np.eye(2) / 3):
            assert np.allclose(crop(size, steps, np.zeros(2), 4).of(image), 9)


def test_a_crop_stays_inside_an_image_that_it_fits() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        size = tuple(rng.integers(20, 90, 2))
        steps = rotation(rng.uniform(-180, 180))[:2, :2] * rng.uniform(0.3, 3)
        side = int(rng.integers(2, 30))
        middle = rng.uniform(-20, 110, 2)
        view = crop(size, steps, middle, side)
        corners = [view.matrix @ [x, y, 1] for x in (0, side - 1) for y in (0, side - 1)]
        low, high = np.min(corners, 0)[:2], np.max(corners, 0)[:2]
        last = np.array(size[::-1]) - 1
        found = (low + high) / 2
        for axis in range(2):
            if high[axis] - low[axis] <= last[axis]:
                assert low[axis] > -1e-9
                assert high[axis] < last[axis] + 1e-9
                if low[axis] > 1 and high[axis] < last[axis] - 1:
                    assert found[axis] == pytest.approx(middle[axis])
            else:
                assert found[axis] == pytest.approx(last[axis] / 2)


# What is drawn.


def test_the_first_crop_holds_a_match_anywhere_in_it(folder: Path) -> None:
    point = np.array([[120.0, 100.0]])
    add_pair(folder, "one", point, matched(point))
    made = layer(folder, source=(f"made:{folder}",), option=("end=one",), shift=0.2)
    places = [rows_of(made()) for _ in range(60)]
    assert all(len(rows) == 1 for rows in places)
    first = np.concatenate(places)[:, :2]
    assert (first.min(0) < 6).all()
    assert (first.max(0) > 33).all()
    second = np.concatenate(places)[:, 2:4]
    assert (np.abs(second - 19.5) <= 0.2 * 40 + 0.5).all()  # in the middle but for the shift
    assert (second.max(0) - second.min(0) > 10).all()


def test_the_second_crop_is_where_the_firsts_matches_are() -> None:
    points1, points2 = dense()
    params = Params(source=("none",), transform_param=TransformParams(crop_size=40))
    matches = Matches(points1, points2, None)
    sizes = (HEIGHT1, WIDTH1), (HEIGHT2, WIDTH2)
    for number in range(20):
        first, second = draw_views(params, matches, sizes, Draw(number))
        wanted = np.median(points2[first.shows(points1)], 0)
        middle = second.matrix[:2, 2] + 19.5
        last = np.array([WIDTH2, HEIGHT2]) - 1 - 19.5
        assert (np.abs(middle - np.clip(wanted, 19.5, last)) <= 0.5).all()


def test_rows_are_drawn_all_alike_and_each_once() -> None:
    points = np.stack([np.arange(20.0), np.zeros(20)], 1)
    view = whole((10, 20), np.eye(2))
    counts: Counter[float] = Counter()
    for number in range(2000):
        table, count = draw_table(Matches(points, points, None), (view, view), 5, Draw(number))
        assert count == 5 == len(set(table[:, 0].tolist()))
        counts.update(table[:, 0].tolist())
    assert set(counts) == set(range(20))
    assert all(420 < count < 580 for count in counts.values())  # 500 +- 4 of the deviation, 19


def test_a_pair_that_comes_again_has_other_points(folder: Path) -> None:
    made = layer(folder, side=0, option=("end=a",))
    first, again = (rows_of(made()) for _ in range(2))
    assert not set(map(tuple, first)) & set(map(tuple, again[:10]))


def test_a_match_that_a_turned_crop_cannot_hold(folder: Path) -> None:
    corner = np.zeros((1, 2))
    add_pair(folder, "corner", corner, np.array([[100.0, 90]]))
    made = layer(folder, option=("end=corner",), view_rotation=45.0)
    tops = [made() for _ in range(10)]
    assert {top[3].item() for top in tops} == {0}
    assert all((top[1][0, :2, 20, 20] - torch.tensor([100.0, 90])).abs().max() < 2 for top in tops)


def test_points_outside_of_an_image_are_not_drawn_where_it_is_reflected(folder: Path) -> None:
    points = np.array([[-3.0, 7], [5, 7], [WIDTH1 + 4, 7]])
    add_pair(folder, "out", points, np.array([[4.0, 4], [6, 6], [7, 7]]))
    rows = rows_of(layer(folder, source=(f"sparse:{folder}",), option=("end=out",), side=300)())
    assert rows.tolist() == [[30 + 5, 50 + 7, 45 + 6, 35 + 6, 1]]


def test_two_points_that_do_not_match_stay_so(folder: Path) -> None:
    points1, points2 = dense()
    signs = (points1[:, 0] % 4 > 1).astype(float)
    add_pair(folder, "signs", points1, points2, signs=signs)
    made = layer(folder, option=("end=signs",), mirror=True, **EVERYTHING)
    tops = made()
    rows = rows_of(tops)
    there = read(tops[0][0], rows[:, :2])[:, 0]
    assert set(rows[:, 4]) == {0, 1}
    np.testing.assert_array_equal(rows[:, 4], np.rint(there) % 4 > 1)


def test_crops_are_around_matches_not_around_what_is_none(folder: Path) -> None:
    far = np.tile([[200.0, 150.0]], (5000, 1))
    one = np.array([[40.0, 50.0]])
    signs = np.array([1.0] + [0.0] * 5000)
    points1 = np.concatenate([one, far])
    add_pair(folder, "few", points1, points1, signs=signs)
    assert rows_of(layer(folder, option=("end=few",))()).shape == (1, 5)
    add_pair(folder, "none", far, far, signs=np.zeros(5000))
    rows = rows_of(layer(folder, option=("end=none",))())
    assert (len(rows), set(rows[:, 4])) == (60, {0.0})


def test_a_pair_without_matches_is_padding(folder: Path) -> None:
    add_pair(folder, "empty", np.zeros((0, 2)), np.zeros((0, 2)))
    for side in (40, 0):
        _, _, pairs, count = layer(folder, side=side, option=("end=empty",))()
        assert count.tolist() == [[0]]
        assert (pairs == torch.tensor([0.0, 0, 0, 0, -1])).all()


def test_another_light_keeps_views_and_truth(folder: Path) -> None:
    plain = layer(folder, **EVERYTHING)()
    for name, most in LIGHT.items():
        lit = layer(folder, **EVERYTHING, **{name: most})()
        assert torch.equal(lit[2], plain[2])
        assert torch.equal(lit[3], plain[3])
        assert not any(torch.equal(a, b) for a, b in zip(lit[:2], plain[:2], strict=True))
    own = layer(folder, brightness=0.5, side=0)()
    changes = [(own[i][0, :2, 0, 0] - 0.255).tolist() for i in (0, 1)]  # of black, each its own
    assert changes[0] != changes[1]


# Whole images.


def test_images_as_they_are_each_of_its_size(folder: Path) -> None:
    made = layer(folder, side=0)
    image1, image2, pairs, count = tops = made()
    assert tuple(tuple(top.shape) for top in tops) == made.infer(made.params)
    np.testing.assert_array_equal(image1[0], coordinates(HEIGHT1, WIDTH1).transpose(2, 0, 1))
    np.testing.assert_array_equal(image2[0], coordinates(HEIGHT2, WIDTH2).transpose(2, 0, 1))
    assert count.item() == 60
    np.testing.assert_allclose(matched(pairs[0, :, :2].numpy()), pairs[0, :, 2:4], atol=1e-4)


def test_images_as_they_are_are_mirrored_together(folder: Path) -> None:
    made = layer(folder, side=0, mirror=True)
    ways = []
    for _ in range(12):
        tops = made()
        mirrored = bool(tops[0][0, 0, 0, 0] == WIDTH1 - 1)
        ways.append(mirrored)
        for image, size in ((tops[0], (HEIGHT1, WIDTH1)), (tops[1], (HEIGHT2, WIDTH2))):
            own = coordinates(*size)[:, :: -1 if mirrored else 1].transpose(2, 0, 1)
            np.testing.assert_array_equal(image[0], own)
        rows = rows_of(tops)
        there1, there2 = read(tops[0][0], rows[:, :2])[:, :2], read(tops[1][0], rows[:, 2:4])[:, :2]
        np.testing.assert_allclose(matched(there1), there2, atol=1e-3)
    assert set(ways) == {False, True}


def test_channels_mean_and_scale(folder: Path) -> None:
    images = TransformParams(mean_value=(10.0, 20.0, 30.0), scale=0.5)
    image1 = layer(folder, transform_param=images)()[0][0]
    plain = layer(folder, transform_param=TransformParams(channel_order=ChannelOrder.RGB))()[0][0]
    mean = torch.tensor([10.0, 20, 30])[:, None, None]
    torch.testing.assert_close(image1, (plain.flip(0) - mean) / 2)
    grey = TransformParams(channel_order=ChannelOrder.GRAY, crop_size=16)
    made = layer(folder, transform_param=grey, batch_size=2)
    tops = made()
    assert tops[0].shape == (2, 1, 16, 16)
    assert tuple(tuple(top.shape) for top in tops) == made.infer(made.params)
    assert {top.dtype for top in tops} == {torch.float32}


# One sample after the other.


def test_a_sample_depends_on_the_seed_and_its_number_alone(folder: Path) -> None:
    fields = EVERYTHING | LIGHT | {"mirror": True}
    two_and_two = layer(folder, batch_size=2, **fields)
    four = layer(folder, batch_size=4, **fields)()
    assert four[0].shape == (4, 3, 40, 40)
    for top, first, second in zip(four, two_and_two(), two_and_two(), strict=True):
        assert torch.equal(top, torch.cat([first, second]))
    resumed = layer(folder, seed=9, batch_size=2, **fields)
    resumed()
    state = layer(folder, batch_size=2, **fields)
    state()
    resumed.set_extra_state(state.get_extra_state())
    for top, wanted in zip(resumed(), four, strict=True):
        assert torch.equal(top, wanted[2:])
    assert not torch.equal(layer(folder, seed=4, batch_size=4, **fields)()[0], four[0])


def test_two_processes_share_a_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = layer(folder, batch_size=4, **EVERYTHING)
    wanted = [alone(), alone()]
    monkeypatch.setattr(parallel.dist, "get_world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(parallel.dist, "get_rank", lambda rank=rank: rank)
        share = layer(folder, batch_size=2, **EVERYTHING)
        with parallel.together():
            found = [share(), share()]
        for tops, all_tops in zip(found, wanted, strict=True):
            for top, whole_top in zip(tops, all_tops, strict=True):
                assert torch.equal(top, whole_top[2 * rank : 2 * rank + 2])


def names(made: CorrespondenceFiles, count: int) -> str:
    return "".join(made.pair(made.row(number))[0].name for number in range(count))


def test_each_time_round_in_another_order(folder: Path) -> None:
    for name in "cdef":
        add_pair(folder, name, *dense(20))
    shuffled = names(layer(folder), 18)
    rounds = [shuffled[start : start + 6] for start in (0, 6, 12)]
    assert [sorted(order) for order in rounds] == [list("abcdef")] * 3
    assert len({*rounds, "abcdef"}) == 4
    assert names(layer(folder, shuffle=False), 8) == "abcdefab"
    assert names(layer(folder, seed=4), 18) != shuffled
    fresh, restored = layer(folder), layer(folder, seed=4)
    assert "".join(fresh.pair(fresh.row(number))[0].name for number in (13, 1, 13)) == (
        shuffled[13] + shuffled[1] + shuffled[13]
    )
    names(restored, 6)
    restored.set_extra_state(fresh.get_extra_state())
    assert names(restored, 6) == rounds[0]


def test_cache_keeps_the_pairs_used_last(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "cd":
        add_pair(folder, name, *dense(20))
    read, paths = correspondence_files._read, []
    monkeypatch.setattr(correspondence_files, "_read", lambda path: paths.append(path) or read(path))

    def run(cache: int) -> tuple[list[Any], int]:
        paths.clear()
        made = layer(folder, cache=cache, **EVERYTHING)
        tops = [made() for _ in range(12)]
        assert len(made.kept) == min(cache, 4)
        return tops, len(paths) // 2

    plain, count = run(0)
    assert count == 12
    for cache, wanted in ((2, None), (4, 4), (9, 4)):
        cached, count = run(cache)
        assert count == wanted if wanted else 4 < count < 12
        assert all(map(torch.equal, sum(plain, ()), sum(cached, ())))
    made = layer(folder, cache=2, shuffle=False)
    for row in (0, 1, 0, 2):
        made.opened(row)
    assert list(made.kept) == [0, 2]


def test_sources_follow_one_another(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    add_pair(other, "x", *dense(20))
    made = layer(folder, source=(f"made:{other}", f"sparse:{folder}"), shuffle=False)
    assert [made.pair(made.row(n))[0].name for n in range(4)] == ["x", "a", "b", "x"]
    assert [made.pair(n)[1] for n in range(3)] == [True, False, False]
    split = layer(folder, source=(f"made:{other}", f"sparse:{folder}"), split="trn", option=("end=b",))
    assert [source.split for source in split.sources] == ["trn", "trn"]
    assert [len(source) for source in split.sources] == [0, 1]


def test_pf_willow(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    group = tmp_path / "car(G)"
    group.mkdir()
    points = rng.uniform([30, 30], [150, 120], (10, 2))
    there = matched(points)
    Image.fromarray(coordinates(HEIGHT1, WIDTH1)).save(group / "one.png")
    Image.fromarray(coordinates(HEIGHT2, WIDTH2)).save(group / "two.png")
    cells = [*points.T.ravel(), *there.T.ravel()]
    line = ",".join(["x/car(G)/one.png", "x/car(G)/two.png", *(f"{value:.17g}" for value in cells)])
    head = ",".join(["imageA", "imageB", *("p" for _ in cells)])
    (tmp_path / "test_pairs.csv").write_text(f"{head}\n{line}\n")
    tops = layer(tmp_path, source=(f"pf-willow:{tmp_path}",), side=96, scale_min=0.5, scale_max=0.5)()
    rows = rows_of(tops)
    assert 5 <= len(rows) <= 10
    there1, there2 = read(tops[0][0], rows[:, :2])[:, :2], read(tops[1][0], rows[:, 2:4])[:, :2]
    np.testing.assert_allclose(matched(there1), there2, atol=0.02)


def listed(folder: Path, tables: dict[str, np.ndarray]) -> str:
    """A list of pairs with these tables, as a source."""
    lines = []
    for name, table in tables.items():
        add_pair(folder, name, table, table)
        np.save(folder / f"{name}.npy", table)
        lines.append(f"{name}_1.png,{name}_2.png,{name}.npy\n")
    (folder / "pairs.csv").write_text("".join(lines))
    return f"list:{folder / 'pairs.csv'}"


def test_a_list_of_tables(tmp_path: Path) -> None:
    points1, points2 = dense(5)
    signs = np.arange(len(points1)) % 3 - 1
    table = np.c_[points1, points2, signs]
    tops = layer(tmp_path, source=(listed(tmp_path, {"a": table}),), side=0, num_points=2000)()
    rows = rows_of(tops)
    given = {tuple(row) for row in table.astype(np.float32)}
    assert set(map(tuple, rows)) == {row for row in given if row[4] >= 0}
    assert len(rows) == (signs >= 0).sum()


def test_a_million_matches_in_bounded_memory(tmp_path: Path) -> None:
    """A pair's points take 32 MB; its table as it is read, and what is drawn of it, twice that. At no
    time are there those of two pairs, and nothing is left when the samples are done."""
    points = np.random.default_rng(0).uniform(0, [WIDTH1 - 40, HEIGHT1 - 40], (1_000_000, 2))
    table = np.c_[points, matched(points) * 0.8].astype(np.float32)
    source = listed(tmp_path, {"a": table, "b": table})
    made = layer(tmp_path, source=(source,), batch_size=2, **EVERYTHING)
    made()
    tracemalloc.start()
    try:
        for _ in range(10):
            assert made()[3].tolist() == [[60], [60]]
        left, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert left < 2**20
    assert 64e6 < peak < 110e6


@needs_shared
def test_middlebury_pairs_look_alike() -> None:
    assert SHARED is not None
    source = (f"middlebury:{SHARED / 'data' / 'stereo'}",)
    fields = {"scale_min": 0.5, "mirror": True, "rotation": 30.0, "num_points": 300}
    made = layer(Path(), source=source, side=160, **fields)
    for _ in range(2):
        tops = made()
        rows = rows_of(tops)
        assert len(rows) > 100
        one, two = read(tops[0][0], rows[:, :2]), read(tops[1][0], rows[:, 2:4])
        apart, unmoved = np.abs(one - two), np.abs(one - np.roll(two, 1, 0))
        assert np.median(apart) * 2 < np.median(unmoved)


# What goes wrong.


def spec(source: str, fields: str = "crop_size: 32", more: str = "") -> Net:
    head = "{name: data, type: CorrespondenceFiles, top: [image1, image2, pairs, num_pairs], "
    head += f"transform_param: {{{fields}}}, correspondence_files_param: "
    return Net(loads(f"layer: [{head}{{source: ['{source}']{more}}}}}]"))


def test_a_net_of_it_opens_no_image_when_it_is_built(folder: Path) -> None:
    assert spec(f"made:{folder}", more=", batch_size: 3")()["image1"].shape == (3, 3, 32, 32)
    for path in folder.glob("*.png"):
        path.unlink()
    net = spec(f"made:{folder}", more=", num_points: 7")
    assert net.blob_shapes["pairs"] == (1, 7, 5)
    with pytest.raises(ValueError, match=r'cannot read image ".*_1\.png": No such file'):
        net()
    with pytest.raises(SpecError, match=r'cannot read image ".*_1\.png": No such file'):
        spec(f"made:{folder}", "crop_size: 0")


@pytest.mark.parametrize(
    ("fields", "more", "message"),
    [
        ("crop_size: 0", ", batch_size: 2", "batch_size 2 needs transform_param.crop_size"),
        ("crop_size: 0", ", rotation: 5", "rotations, scales and shift need transform_param.crop_size"),
        (
            "crop_size: 0",
            ", scale_max: 2",
            "rotations, scales and shift need transform_param.crop_size",
        ),
        ("crop_size: 1", "", "crop_size: expected at least 2 pixels"),
        ("crop_size: 9", ", scale_min: 2", "scale_min, 2, exceeds scale_max, 1"),
        (
            "crop_size: 9",
            ", relative_scale_max: 0.5",
            "relative_scale_min, 1, exceeds relative_scale_max",
        ),
        ("crop_size: 9", ", option: [end]", 'option: expected NAME=VALUE, each name once, got "end"'),
        (
            "crop_size: 9",
            ", option: ['split=trn']",
            'expected NAME=VALUE, each name once, got "split=trn"',
        ),
        ("crop_size: 9", ", option: ['end=a', 'end=b']", 'each name once, got "end=b"'),
        ("crop_size: 9", ", option: ['colour=no']", "made has no colour (it has end)"),
    ],
)
def test_what_a_spec_is_told(folder: Path, fields: str, more: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec(f"made:{folder}", fields, more)
    assert message in str(caught.value)


def test_sources_that_are_none(folder: Path) -> None:
    with pytest.raises(SpecError, match='unknown data set "nothing:x": expected one of '):
        spec("nothing:x")
    with pytest.raises(ValueError, match="^source: expected at least one data set$"):
        Params(source=())
    with pytest.raises(ValueError, match="^the sources hold no pairs$"):
        layer(folder, option=("end=nothing",))


def test_outlines_have_no_matches(tmp_path: Path) -> None:
    images = tmp_path / "101_ObjectCategories" / "ant"
    images.mkdir(parents=True)
    Image.new("RGB", (40, 20)).save(images / "image_0001.jpg")
    name = "ant/image_0001.jpg"
    (tmp_path / "test_pairs.csv").write_text(f"a,b,c,d\n{name},{name},1,1;2;8,4;6;8,1;2;3,4;5;5\n")
    made = layer(tmp_path, source=(f"caltech-101:{tmp_path}",))
    with pytest.raises(
        ValueError, match=r'^source "caltech-101:.*": expected pairs with known matches'
    ):
        made()


@pytest.mark.parametrize(
    ("points1", "points2", "which", "shown"),
    [
        ([WIDTH1 + 2.0, 5], [1, 1], 1, "240 x 200 pixels, and a match of bad at (242, 5)"),
        ([1, 1], [4.0, HEIGHT2], 2, "210 x 230 pixels, and a match of bad at (4, 230)"),
        ([-1.0, 1], [4.0, 4], 1, "240 x 200 pixels, and a match of bad at (-1, 1)"),
        ([1, 1], [4.0, math.nan], 2, "210 x 230 pixels, and a match of bad at (4, nan)"),
    ],
)
def test_an_image_of_another_size_than_the_truth(
    folder: Path, points1: list[float], points2: list[float], which: int, shown: str
) -> None:
    first, second = dense(10)
    add_pair(folder, "bad", np.array([*first, points1]), np.array([*second, points2]))
    with pytest.raises(ValueError) as caught:
        layer(folder, option=("end=bad",))()
    image = folder / f"bad_{which}.png"
    assert str(caught.value) == f"{image}: expected the image that the truth is of, found {shown}"
    sparse = layer(folder, source=(f"sparse:{folder}",), option=("end=bad",), side=0, num_points=1000)
    assert sparse()[3].item() == len(first)  # an annotator's point may lie outside: left out


def test_half_a_pixel_belongs_to_the_image(folder: Path) -> None:
    points = np.array([[WIDTH1 - 0.5, 5], [0.0, HEIGHT1 - 1], [WIDTH1 - 1, 0]])
    add_pair(folder, "half", points, np.array([[5.0, 5], [0, HEIGHT2 - 1], [WIDTH2 - 1, 0]]))
    rows = rows_of(layer(folder, option=("end=half",), side=0)())
    assert sorted(rows[:, 0]) == [0, WIDTH1 - 1]
