"""The camera's motion, on scenes whose depth and motion are known: Middlebury's, and made ones."""

from __future__ import annotations

import math
import sys
from functools import cache
from itertools import product
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from cortado.layers._data.keypoint_pairs import KeypointPair
from cortado.layers._data.measured_pairs import open_measured
from cortado.layers._geometry.motion import direction_deviation, rotation_deviation
from cortado.tools.camera_motion import LEAST, Found, _sampson, estimate
from scipy.spatial.transform import Rotation
from shared import SHARED, needs_shared

SCENES = ("Playroom", "Adirondack", "Jadeplant", "Shelves")
# Degrees about x, y, z, and metres along them: sideways, forward, back and aside, down and turned.
MOTIONS = [
    ((2, -3, 1), (0.3, 0.02, 0.05)),
    ((0, 1, 0), (0.05, 0, -0.4)),
    ((-1, 4, -2), (-0.25, 0.1, 0.1)),
    ((0, 0, 5), (0, 0.2, 0)),
]
CAMERA = np.array([[700, 0, 320], [0, 720, 240], [0, 0, 1.0]])
OTHER = np.array([[500, 3, 300], [0, 510, 200], [0, 0, 1.0]])


class Views(NamedTuple):
    """Matches of two views, the cameras, and the motion between them."""

    points1: np.ndarray
    points2: np.ndarray
    camera1: np.ndarray
    camera2: np.ndarray
    rotation: np.ndarray
    translation: np.ndarray

    def estimated(self, seed: int = 0, threshold: float = 1.0) -> Found:
        found = estimate(*self[:4], threshold=threshold, seed=seed)
        assert found is not None
        return found

    def deviations(self, found: Found) -> tuple[float, float]:
        return (
            rotation_deviation(found.rotation, self.rotation),
            direction_deviation(found.translation, self.translation),
        )

    def spoilt(self, noise: float, wrong: float, rng: np.random.Generator) -> tuple[Views, np.ndarray]:
        """With normal noise in image 2 and a share of matches that are random; and which are right."""
        points2 = self.points2 + rng.normal(0, noise, self.points2.shape)
        right = rng.permutation(len(points2)) >= round(wrong * len(points2))
        low, high = self.points2.min(0), self.points2.max(0)
        points2[~right] = rng.uniform(low, high, ((~right).sum(), 2))
        return self._replace(points2=points2), right


def turned(degrees: tuple[float, ...]) -> np.ndarray:
    return Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()


def seen(points: np.ndarray, camera: np.ndarray) -> np.ndarray:
    rays = points @ camera.T
    return rays[:, :2] / rays[:, 2:]


def views(
    points: np.ndarray,
    degrees: tuple[float, ...],
    translation: tuple[float, ...],
    cameras: tuple[np.ndarray, np.ndarray] = (CAMERA, CAMERA),
) -> Views:
    """Of points [P, 3] in the first camera's coordinates."""
    rotation = turned(degrees)
    moved = points @ rotation.T + translation
    assert (moved[:, 2] > 0).all()
    pixels = seen(points, cameras[0]), seen(moved, cameras[1])
    return Views(*pixels, *cameras, rotation, np.array(translation))


def cloud(count: int = 800, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.c_[rng.uniform(-3, 3, (count, 2)), rng.uniform(4, 20, count)]


def plane(count: int = 800) -> np.ndarray:
    x, y = np.random.default_rng(1).uniform(-3, 3, (2, count))
    return np.c_[x, y, 6 + 0.3 * x - 0.2 * y]


@cache
def middlebury(scene: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Its image, its camera, the pixels [P, 2] whose depth is known, their points [P, 3] in metres."""
    assert SHARED
    folder = SHARED / "data" / "stereo" / scene
    values = dict(line.split("=") for line in (folder / "calib.txt").read_text().splitlines() if line)
    values = {key.strip(): value.strip() for key, value in values.items()}
    rows = values["cam0"].strip("[]").split(";")
    camera = np.array([[float(cell) for cell in row.split()] for row in rows])
    image = cv2.imread(str(folder / "im0.png"))
    _, size, scale, data = (folder / "disp0GT.pfm").read_bytes().split(b"\n", 3)
    width, height = map(int, size.split())
    assert float(scale) < 0  # little-endian
    disparity = np.frombuffer(data, "<f4").reshape(height, width)[::-1].astype(np.float64)
    y, x = np.nonzero(np.isfinite(disparity))
    apart = float(values["baseline"]) / 1000 * camera[0, 0]
    depth = apart / (disparity[y, x] + float(values["doffs"]))
    pixels = np.c_[x, y].astype(np.float64)
    rays = np.linalg.solve(camera, np.c_[pixels, np.ones(len(x))].T).T
    return image, camera, pixels, rays * depth[:, None]


def scene_views(scene: str, number: int, count: int, seed: int = 0) -> Views:
    """So many points of a scene that are inside both views."""
    image, camera, _, points = middlebury(scene)
    degrees, translation = MOTIONS[number]
    after = points @ turned(degrees).T + translation
    points = points[after[:, 2] > 0.1]
    whole = views(points, degrees, translation, (camera, camera))
    last = [image.shape[1] - 1, image.shape[0] - 1]
    inside = np.flatnonzero(((whole.points2 >= 0) & (whole.points2 <= last)).all(1))
    assert len(inside) > 10_000
    chosen = np.random.default_rng(seed).choice(inside, count, replace=False)
    return whole._replace(points1=whole.points1[chosen], points2=whole.points2[chosen])


@needs_shared
@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("number", range(len(MOTIONS)))
def test_perfect_matches_of_middlebury(scene: str, number: int) -> None:
    view = scene_views(scene, number, 1000)
    found = view.estimated()
    assert max(view.deviations(found)) < 1e-3  # degrees: asked are 0.1
    assert found.inliers.all()
    assert np.linalg.norm(found.translation) == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(found.rotation @ found.rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(found.rotation) > 0


@needs_shared
@pytest.mark.parametrize("threshold", [1.0, 3.0])
@pytest.mark.parametrize("seed", range(6))
def test_a_scene_that_is_nearly_a_plane(seed: int, threshold: float) -> None:
    """Nine in ten of these matches agree within a pixel with a motion that is turned by 3 degrees."""
    assert SHARED
    pair = open_measured([f"middlebury:{SHARED / 'data' / 'stereo' / 'Shelves'}"], points=4000)[0]
    assert isinstance(pair, KeypointPair)
    assert pair.motion is not None
    cameras = pair.motion.camera1, pair.motion.camera2
    found = estimate(pair.points1, pair.points2, *cameras, threshold, seed=seed)
    assert found is not None
    assert rotation_deviation(found.rotation, pair.motion.rotation) < 1e-3
    assert direction_deviation(found.translation, pair.motion.translation) < 1e-3


@needs_shared
def test_noise_and_wrong_matches_of_middlebury() -> None:
    """1 pixel of noise, and with 40% of the matches random: means over 16 views in degrees."""
    figures = {}
    for wrong in (0.0, 0.4):
        rows = []
        for seed, (scene, number) in enumerate(product(SCENES, range(len(MOTIONS)))):
            rng = np.random.default_rng(seed)
            view, right = scene_views(scene, number, 1000, seed).spoilt(1, wrong, rng)
            found = view.estimated()
            assert right[found.inliers].mean() > 0.97
            assert found.inliers[right].mean() > 0.75
            rows.append(view.deviations(found))
        figures[wrong] = np.mean(rows, axis=0)
    assert (figures[0.0] < [0.15, 0.4]).all(), figures
    assert (figures[0.4] < [0.3, 1.2]).all(), figures
    assert (figures[0.0] > 1e-3).all()  # the noise is there


@needs_shared
def test_a_view_made_from_the_depth() -> None:
    """Image 2 is image 1 moved by its depth, the nearer before the farther; SIFT matches the two."""
    image, camera, pixels, points = middlebury("Playroom")
    degrees, translation = (1, -2, 1), (0.15, 0.02, -0.1)
    moved = points @ turned(degrees).T + translation
    column, row = np.rint(seen(moved, camera)).astype(int).T
    inside = (column >= 0) & (column < image.shape[1]) & (row >= 0) & (row < image.shape[0])
    order = np.flatnonzero(inside)[np.argsort(-moved[inside, 2], kind="stable")]
    second = np.zeros_like(image)
    x, y = pixels.astype(int)[order].T
    second[row[order], column[order]] = image[y, x]
    holes = (second.max(2) == 0).astype(np.uint8)
    second = np.where(holes[..., None] > 0, cv2.medianBlur(second, 5), second)

    sift = cv2.SIFT_create(1500)
    (keys1, said1), (keys2, said2) = (sift.detectAndCompute(each, None) for each in (image, second))
    assert len(keys2) > 500
    near = cv2.BFMatcher().knnMatch(said1, said2, k=2)
    pairs = [(a.queryIdx, a.trainIdx) for a, b in near if a.distance < 0.8 * b.distance]
    points1, points2 = (
        np.array([keys[pair[i]].pt for pair in pairs]) for i, keys in enumerate((keys1, keys2))
    )
    view = Views(points1, points2, camera, camera, turned(degrees), np.array(translation))
    found = view.estimated()
    rotation, direction = view.deviations(found)
    assert len(pairs) > 200
    assert rotation < 0.2
    assert direction < 2


@pytest.mark.parametrize("cameras", [(CAMERA, CAMERA), (CAMERA, OTHER), (OTHER, CAMERA)])
@pytest.mark.parametrize(
    "translation",
    [(0.3, 0, 0), (-0.3, 0, 0), (0, 0.2, 0), (0, 0, -1), (0, 0, 1), (0.001, 0, 0), (1, -1, 2)],
)
def test_perfect_matches_of_a_cloud(
    translation: tuple[float, ...], cameras: tuple[np.ndarray, np.ndarray]
) -> None:
    """Sideways, forward, opposite ways, by a thousandth of a metre at 4 to 20; of different cameras."""
    view = views(cloud(), (1, -2, 3), translation, cameras)
    found = view.estimated()
    assert max(view.deviations(found)) < 1e-3
    assert found.inliers.all()


@pytest.mark.parametrize("count", [LEAST, LEAST + 1, 10, 20])
def test_few_matches(count: int) -> None:
    view = views(cloud(count), (1, -2, 3), (0.5, 0.1, 0.2))
    assert max(view.deviations(view.estimated())) < 1e-3


@pytest.mark.parametrize("wrong", [0.4, 0.6])
def test_wrong_matches_of_a_cloud(wrong: float) -> None:
    rows = []
    for seed in range(6):
        view = views(cloud(1000, seed), (1, -2, 3), (0.5, 0.1, 0.2))
        view, _ = view.spoilt(1, wrong, np.random.default_rng(seed))
        rows.append(view.deviations(view.estimated()))
    assert (np.mean(rows, axis=0) < [0.25, 1.0]).all()


def test_matches_that_are_off_to_one_side() -> None:
    """A fifth of the matches is 3 pixels too low, near enough to take part: they count for little."""
    rows = []
    for seed in range(4):
        view = views(cloud(seed=seed), (1, -2, 3), (0.5, 0.1, 0.2))
        view, _ = view.spoilt(0.2, 0, np.random.default_rng(seed))
        view.points2[:160, 1] += 3
        found = view.estimated()
        assert not found.inliers[:160].any()
        rows.append(view.deviations(found))
    assert (np.mean(rows, axis=0) < [0.025, 0.1]).all()  # 0.05 and 0.2 with plain least squares


def test_a_plane() -> None:
    """Perfect matches tell the motion; with noise there are two, and the other fits as well."""
    view = views(plane(), (1, -2, 3), (0.5, 0.1, 0.2))
    assert max(view.deviations(view.estimated())) < 1e-3
    noisy, _ = view.spoilt(0.5, 0, np.random.default_rng(0))
    found = [noisy.estimated(seed) for seed in range(6)]
    assert min(noisy.deviations(each)[0] for each in found) < 0.2
    for each in found:
        assert each.inliers.mean() > 0.95


@pytest.mark.parametrize("noise", [0, 0.5, 1])
def test_a_camera_that_only_turns(noise: float) -> None:
    view = views(cloud(), (1, -2, 3), (0, 0, 0))
    view, _ = view.spoilt(noise, 0, np.random.default_rng(0))
    found = view.estimated()
    assert rotation_deviation(found.rotation, view.rotation) < 0.1
    assert np.linalg.norm(found.translation) == pytest.approx(1)  # and means nothing


def test_no_motion_is_found() -> None:
    view = views(cloud(50), (1, -2, 3), (0.5, 0.1, 0.2))
    few = view._replace(points1=view.points1[: LEAST - 1], points2=view.points2[: LEAST - 1])
    assert estimate(*few[:4]) is None
    none = view._replace(points1=np.zeros((0, 2)), points2=np.zeros((0, 2)))
    assert estimate(*none[:4]) is None
    rng = np.random.default_rng(0)
    found = []
    for _ in range(8):  # matches that are all wrong: five of them always agree with some motion
        points1, points2 = rng.uniform(0, 400, (2, LEAST, 2))
        found.append(estimate(points1, points2, CAMERA, CAMERA))
    assert all(each is None or each.inliers.all() for each in found)
    assert None in found
    same = np.full((50, 2), 3.0)
    assert estimate(same, same, CAMERA, CAMERA) is None
    assert estimate(view.points1, view.points1, CAMERA, CAMERA) is None


def test_points_that_are_not_found() -> None:
    """NaN are no matches, and change nothing."""
    view = views(cloud(), (1, -2, 3), (0.5, 0.1, 0.2))
    view, _ = view.spoilt(0.5, 0.2, np.random.default_rng(0))
    whole = view.estimated()
    lost = np.arange(len(view.points1) + 40) % 21 == 20
    points1, points2 = (np.full((len(lost), 2), np.nan) for _ in range(2))
    points1[~lost], points2[~lost] = view.points1[: (~lost).sum()], view.points2[: (~lost).sum()]
    points1[lost] = 7
    assert (~lost).sum() == len(view.points1)
    found = view._replace(points1=points1, points2=points2).estimated()
    assert found.rotation.tobytes() == whole.rotation.tobytes()
    assert found.translation.tobytes() == whole.translation.tobytes()
    assert (found.inliers[~lost] == whole.inliers).all()
    assert not found.inliers[lost].any()
    assert estimate(points1[lost], points2[lost], CAMERA, CAMERA) is None


def test_the_same_bits_twice() -> None:
    view = views(cloud(), (1, -2, 3), (0.5, 0.1, 0.2))
    view, _ = view.spoilt(1, 0.5, np.random.default_rng(0))
    bits = set()
    for state in (0, 1, 2):
        cv2.setRNGSeed(state)
        found = view.estimated(seed=7)
        bits.add((found.rotation.tobytes(), found.translation.tobytes(), found.inliers.tobytes()))
    assert len(bits) == 1
    assert len({view.estimated(seed).rotation.tobytes() for seed in range(4)}) > 1


def test_distances_as_a_plain_loop_finds_them() -> None:
    rng = np.random.default_rng(3)
    rays1, rays2 = (np.c_[rng.normal(size=(20, 2)), np.ones(20)] for _ in range(2))
    rotation, (x, y, z) = turned((10, 20, -30)), (0.6, 0.0, 0.8)
    essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ rotation
    expected = []
    for a, b in zip(rays1, rays2, strict=True):
        line2 = [sum(essential[i, j] * a[j] for j in range(3)) for i in range(3)]
        line1 = [sum(essential[i, j] * b[i] for i in range(3)) for j in range(3)]
        off = sum(b[i] * line2[i] for i in range(3))
        expected.append(off / math.sqrt(line1[0] ** 2 + line1[1] ** 2 + line2[0] ** 2 + line2[1] ** 2))
    found = _sampson(rotation, np.array([x, y, z]), rays1, rays2)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_the_threshold_is_in_pixels() -> None:
    """Of a camera that moves sideways lines are rows: a match d rows off is d / sqrt(2) away."""
    square = np.array([[700, 0, 320], [0, 700, 240], [0, 0, 1.0]])
    view = views(cloud(), (0, 0, 0), (0.5, 0, 0), (square, square))
    off = np.zeros(len(view.points1))
    off[:100], off[100:200] = 1.2, 1.7
    off[::2] *= -1
    moved = view._replace(points2=view.points2 + np.c_[0 * off, off])
    for threshold in (0.7, 1.0, 1.1, 1.35):
        expected = np.abs(off) / 2**0.5 <= threshold
        inliers = moved.estimated(threshold=threshold).inliers
        assert (inliers == expected).mean() > 0.98, threshold


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    view = views(cloud(50), (1, -2, 3), (0.5, 0.1, 0.2))
    expected = r"^expected points \[P, 2\] of both images, got \[50, 2\] and \[49, 2\]$"
    with pytest.raises(ValueError, match=expected):
        estimate(view.points1, view.points2[1:], CAMERA, CAMERA)
    with pytest.raises(ValueError, match=r"got \[100\] and \[100\]$"):
        estimate(view.points1.ravel(), view.points2.ravel(), CAMERA, CAMERA)
    monkeypatch.setitem(sys.modules, "cv2", None)
    text = r"^the camera's motion needs OpenCV: pip install cortado\[opencv\]$"
    with pytest.raises(ImportError, match=text):
        estimate(*view[:4])
