"""KITTI's raw drives on made ones of their format: matches and motions that are known in closed form,
what is hidden or moves, and files that are damaged or missing."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cortado.layers._data.keypoint_pairs import KeypointPair, open_pairs
from cortado.layers._geometry.motion import direction_deviation, rotation_deviation
from cortado.layers.data.kitti_raw import AGREE, CLOSE, SPLITS, KittiRaw
from PIL import Image
from scipy.spatial.transform import Rotation

DRIVE = "2011_09_26_drive_0084_sync"
SIZE = (60, 180)  # of the images: height, width
CAMERA = np.array([[90, 0, 85.5], [0, 92, 28.25], [0, 0, 1]])
OFFSETS = {"00": [0, 0, 0], "01": [-40, 0, 0], "02": [5.5, 0.2, 0.003], "03": [-42, 2.1, 0.0027]}
RECTIFY = Rotation.from_euler("xyz", [0.4, -0.5, 0.6], degrees=True).as_matrix()
# Of the scanner x forward, y left, z up; of the camera x right, y down, z forward.
TO_CAMERA = RECTIFY.T @ np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0]])
OF_CAMERA = np.array([-0.004, -0.076, -0.27])
TO_SCANNER = Rotation.from_euler("z", 0.8, degrees=True).as_matrix()
OF_SCANNER = np.array([-0.81, 0.32, -0.8])
LATITUDE, LONGITUDE, ALTITUDE = 49.01, 8.43, 112.8
EARTH = 6378137.0

# The car at each frame: metres east, north and up of the first, and roll, pitch, yaw in radians.
PLACES = [
    ([0.0, 0.0, 0.0], [0.01, -0.02, 0.3]),
    ([0.7, 0.5, 0.05], [-0.01, 0.01, 0.33]),
    ([1.6, 0.8, 0.0], [0.02, 0.0, 0.29]),
]


def matrix(rotation: np.ndarray, translation: Any) -> np.ndarray:
    made = np.eye(4)
    made[:3, :3], made[:3, 3] = rotation, translation
    return made


def to_world(frame: int) -> np.ndarray:
    """From the scanner's coordinates at a frame to the world's: [4, 4]."""
    place, (roll, pitch, yaw) = PLACES[frame]
    pose = matrix(Rotation.from_euler("ZYX", [yaw, pitch, roll]).as_matrix(), place)
    return pose @ np.linalg.inv(matrix(TO_SCANNER, OF_SCANNER))


def to_camera(camera: str) -> np.ndarray:
    """From the scanner's coordinates to a camera's: [4, 4]."""
    shift = matrix(np.eye(3), np.linalg.inv(CAMERA) @ OFFSETS[camera])
    return shift @ matrix(RECTIFY, [0, 0, 0]) @ matrix(TO_CAMERA, OF_CAMERA)


def moved(points: np.ndarray, by: np.ndarray) -> np.ndarray:
    return np.array([(by @ [*point, 1])[:3] for point in points]).reshape(-1, 3)


def oxts(frame: int) -> list[float]:
    (east, north, up), angles = PLACES[frame]
    scale = EARTH * math.cos(math.radians(LATITUDE))
    longitude = LONGITUDE + math.degrees(east / scale)
    mercator = math.asinh(math.tan(math.radians(LATITUDE))) + north / scale
    latitude = math.degrees(math.atan(math.sinh(mercator)))
    return [latitude, longitude, ALTITUDE + up, *angles, *range(24)]


def line(values: Any) -> str:
    return " ".join(repr(float(value)) for value in np.ravel(values))


def write_calibration(day: Path, line: Callable[[Any], str] = line) -> None:
    lines = [
        "calib_time: 09-Jan-2012 13:57:47",
        "corner_dist: 9.950000e-02",
        f"R_rect_00: {line(RECTIFY)}",
    ]
    for camera, offset in OFFSETS.items():
        lines.append(f"P_rect_{camera}: {line(np.c_[CAMERA, offset])}")
    (day / "calib_cam_to_cam.txt").write_text("\n".join(lines) + "\n")
    for name, r, t in (("velo_to_cam", TO_CAMERA, OF_CAMERA), ("imu_to_velo", TO_SCANNER, OF_SCANNER)):
        text = f"calib_time: 15-Mar-2012 11:37:16\nR: {line(r)}\nT: {line(t)}\n"
        (day / f"calib_{name}.txt").write_text(text)


def write_scan(drive: Path, frame: int, world: np.ndarray) -> np.ndarray:
    """The scan of points [P, 3] of the world, and what it holds, [P, 3]."""
    points = moved(world, np.linalg.inv(to_world(frame))).astype("<f4")
    path = drive / "velodyne_points" / "data" / f"{frame:010}.bin"
    path.write_bytes(np.c_[points, np.full(len(points), 0.3, "<f4")].tobytes())
    return points.astype(np.float64)


def make_drive(folder: Path, name: str = DRIVE, frames: int = 2) -> Path:
    drive = folder / name[:10] / name
    for part in ("image_02", "image_03", "image_00", "velodyne_points", "oxts"):
        (drive / part / "data").mkdir(parents=True)
    for frame in range(frames):
        for camera in ("02", "03", "00"):
            path = drive / f"image_{camera}" / "data" / f"{frame:010}.png"
            Image.new("RGB", SIZE[::-1]).save(path)
        (drive / "oxts" / "data" / f"{frame:010}.txt").write_text(line(oxts(frame)) + "\n")
    write_calibration(drive.parent)
    return drive


def ahead(x: Any, y: Any, z: Any) -> np.ndarray:
    """A grid of points [P, 3] of the world, given in metres from the scanner at frame 0."""
    grid = np.stack(np.meshgrid(x, y, z, indexing="ij"), -1).reshape(-1, 3)
    return moved(grid, to_world(0))


WALL = ahead(20.0, np.linspace(-25, 25, 150), np.linspace(-6, 8, 50))


def project(points: np.ndarray, camera: str = "02") -> tuple[np.ndarray, np.ndarray]:
    """Pixels [P, 2] and depths [P] of points [P, 3] of a scanner."""
    seen = np.array([CAMERA @ point for point in moved(points, to_camera(camera))])
    return seen[:, :2] / seen[:, 2:], seen[:, 2]


def within(pixels: np.ndarray) -> np.ndarray:
    return ((pixels >= 0) & (pixels <= [SIZE[1] - 1, SIZE[0] - 1])).all(1)


def known(pair: KeypointPair) -> set[tuple[float, ...]]:
    """The matches as a set, in hundredths of a pixel."""
    return {tuple(row) for row in np.rint(100 * np.c_[pair.points1, pair.points2]).astype(int)}


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    return make_drive(tmp_path)


def still(drive: Path, *frames: int) -> list[np.ndarray]:
    return [write_scan(drive, frame, WALL) for frame in frames]


@pytest.mark.parametrize("camera", ["02", "03", "00"])
def test_matches_and_motion_of_a_wall(drive: Path, camera: str) -> None:
    scan, _ = still(drive, 0, 1)
    (pair,) = open_pairs(f"kitti-raw:{drive.parent.parent}", camera=camera)
    assert isinstance(pair, KeypointPair)
    step = np.linalg.inv(to_world(1)) @ to_world(0)  # the scanner's
    pixels1, depth = project(scan, camera)
    pixels2, _ = project(moved(scan, step), camera)
    seen = (depth > 0) & within(pixels1) & within(pixels2)
    assert 1000 < seen.sum() < len(scan)
    np.testing.assert_allclose(pair.points1, pixels1[seen], atol=1e-7)
    np.testing.assert_allclose(pair.points2, pixels2[seen], atol=1e-6)
    assert pair.motion is not None
    assert (pair.length, KittiRaw.pixels) == (1, True)
    truth = to_camera(camera) @ step @ np.linalg.inv(to_camera(camera))
    np.testing.assert_allclose(pair.motion.rotation, truth[:3, :3], atol=1e-9)
    np.testing.assert_allclose(pair.motion.translation, truth[:3, 3], atol=1e-7)
    assert pair.motion.camera1.tolist() == pair.motion.camera2.tolist() == CAMERA.tolist()
    assert (pair.category, pair.name) == ("city", f"{DRIVE}/0000000000-0000000001")
    assert pair.image1 == drive / f"image_{camera}" / "data" / "0000000000.png"
    assert pair.image2 == drive / f"image_{camera}" / "data" / "0000000001.png"


def test_the_camera_moves_as_the_car_does(drive: Path) -> None:
    """Forward is along z, a turn to the left (yaw) turns what is seen about y, to the right."""
    still(drive, 0, 1)
    turned = oxts(0)
    turned[5] += 0.02
    turned[2] += 0.5  # up: things sink, y grows
    (drive / "oxts" / "data" / "0000000001.txt").write_text(line(turned))
    motion = KittiRaw(drive.parent.parent)[0].motion
    assert motion is not None
    about = Rotation.from_matrix(motion.rotation).as_rotvec()
    np.testing.assert_allclose(about, [0, 0.02, 0], atol=2e-3)
    assert motion.translation[1] == pytest.approx(0.5, rel=0.05)


def test_steps(tmp_path: Path) -> None:
    """Frames n and n + step, without those whose scan is missing."""
    drive = make_drive(tmp_path, frames=3)
    scans = still(drive, 0, 1, 2)
    names = {step: [p.name[-21:] for p in KittiRaw(tmp_path, step=step)] for step in (1, "2")}
    assert names == {
        1: ["0000000000-0000000001", "0000000001-0000000002"],
        "2": ["0000000000-0000000002"],
    }
    pair = KittiRaw(tmp_path, step=2)[0]
    pixels, _ = project(moved(scans[0], np.linalg.inv(to_world(2)) @ to_world(0)))
    first, _ = project(scans[0])
    both = np.flatnonzero(within(first) & within(pixels) & (first[:, 0] > 5))[:5]
    assert known(pair) >= {tuple(np.rint(100 * np.r_[first[i], pixels[i]]).astype(int)) for i in both}
    (drive / "velodyne_points" / "data" / "0000000001.bin").unlink()
    assert len(KittiRaw(tmp_path, step=2)) == 1
    with pytest.raises(ValueError, match=r": expected drives with two scans 1 apart, found none$"):
        KittiRaw(tmp_path)


def naive(scans: list[np.ndarray], occluded: bool) -> np.ndarray:
    """The matches [M, 4] of two scans as the module says it, point by point."""

    def seen(points: np.ndarray) -> list[int]:
        pixels, depth = project(points)
        inside = [i for i in range(len(points)) if depth[i] > 0.1 and within(pixels[i : i + 1])[0]]
        front = []
        for i in inside:
            at = np.rint(pixels[i])
            near = [depth[j] for j in inside if math.hypot(*(np.rint(pixels[j]) - at)) <= CLOSE]
            if depth[i] <= (1 + AGREE) * min(near):
                front.append(i)
        return front

    step = np.linalg.inv(to_world(1)) @ to_world(0)
    pixels1, _ = project(scans[0])
    pixels2, depth2 = project(moved(scans[0], step))
    others, depths = project(scans[1])
    visible = seen(scans[1])
    rows = []
    for i in seen(scans[0]):
        if depth2[i] <= 0.1 or not within(pixels2[i : i + 1])[0]:
            continue
        away = [math.hypot(*(others[j] - pixels2[i])) for j in visible]
        there = depths[visible[int(np.argmin(away))]]
        if occluded or (min(away) < CLOSE and abs(depth2[i] - there) <= AGREE * there):
            rows.append([*pixels1[i], *pixels2[i]])
    return np.array(rows)


@pytest.mark.parametrize("occluded", [False, True])
def test_what_is_hidden_as_a_plain_loop_finds_it(drive: Path, occluded: bool) -> None:
    rng = np.random.default_rng(5)
    here, there = (rng.uniform([-5, -12, -3], [40, 12, 4], (n, 3)) for n in (700, 300))
    world = moved(here, to_world(0))
    scans = [write_scan(drive, 0, world)]
    scans.append(write_scan(drive, 1, np.r_[world[100:], moved(there, to_world(0))]))
    pair = KittiRaw(drive.parent.parent, occluded=occluded)[0]
    expected = naive(scans, occluded)
    assert 60 < len(expected) < 420
    np.testing.assert_allclose(np.c_[pair.points1, pair.points2], expected, atol=1e-6)


def test_what_an_occluder_hides(drive: Path) -> None:
    """A panel before the wall, seen at both frames, and one that comes to stand there at the second."""
    panel, late = (ahead(8.0, np.linspace(y, y + 1.5, 40), np.linspace(-1, 1, 40)) for y in (2.0, -4))
    scan = write_scan(drive, 0, np.r_[WALL, panel])
    write_scan(drive, 1, np.r_[WALL, panel, late])
    pixels, _ = project(scan)
    box = [f(pixels[len(WALL) :], axis=0) for f in (np.min, np.max)]

    def behind(pair: KeypointPair) -> int:
        """How many of the wall's points are deep inside the panel's outline in image 1."""
        wall = {tuple(row) for row in np.rint(100 * pixels[: len(WALL)]).astype(int)}
        inside = ((pair.points1 > box[0] + 1) & (pair.points1 < box[1] - 1)).all(1)
        return sum(tuple(row) in wall for row in np.rint(100 * pair.points1[inside]).astype(int))

    strict, loose = (KittiRaw(drive.parent.parent, occluded=o)[0] for o in ("no", "yes"))
    assert behind(strict) == behind(loose) == 0
    hidden = project(moved(late, np.linalg.inv(to_world(1))))[0]
    low, high = hidden.min(0), hidden.max(0)
    in_late = [((p.points2 > low + 1) & (p.points2 < high - 1)).all(1).sum() for p in (strict, loose)]
    assert in_late[0] == 0
    assert in_late[1] > 50
    assert known(strict) < known(loose)


def tracklet(first: int, size: tuple[float, ...], places: list[list[float]]) -> str:
    poses = "".join(
        f"<item><tx>{x}</tx><ty>{y}</ty><tz>{z}</tz><rx>0</rx><ry>0</ry><rz>{yaw}</rz></item>"
        for x, y, z, yaw in places
    )
    length, width, height = size
    return (
        f"<item><objectType>Car</objectType><h>{height}</h><w>{width}</w><l>{length}</l>"
        f"<first_frame>{first}</first_frame><poses><count>{len(places)}</count>{poses}</poses></item>"
    )


def write_tracklets(drive: Path, *items: str) -> Path:
    path = drive / "tracklet_labels.xml"
    path.write_text(
        '<?xml version="1.0" encoding="UTF-8" standalone="yes" ?>\n<!DOCTYPE boost_serialization>\n'
        '<boost_serialization signature="serialization::archive" version="9">\n<tracklets>'
        f"<count>{len(items)}</count>{''.join(items)}</tracklets></boost_serialization>\n"
    )
    return path


def at(place: list[float], yaw: float, frame: int) -> list[float]:
    """A place and heading given at frame 0's scanner, in the coordinates of a frame's scanner."""
    step = np.linalg.inv(to_world(frame)) @ to_world(0)
    heading = step[:3, :3] @ [math.cos(yaw), math.sin(yaw), 0]
    return [*moved(np.array([place]), step)[0], math.atan2(heading[1], heading[0])]


def test_points_on_moving_objects(drive: Path) -> None:
    """Two boxes of 2 m before the wall: one slides along it, one is parked. The second scan does not
    tell, since there is something at the same depth where the box was; its tracklet does."""
    size = (2.0, 0.2, 2.0)
    turn = math.pi / 2  # their length lies along the wall
    fence = ahead(15.0, np.linspace(-8, 8, 120), np.linspace(-1, 1, 16))
    for frame in (0, 1):
        write_scan(drive, frame, np.r_[WALL, fence])
    folder = drive.parent.parent
    whole = KittiRaw(folder)[0]

    def removed(*items: str) -> np.ndarray:
        """Where the points that tracklets remove are in the scan of frame 0: rows (y, z)."""
        write_tracklets(drive, *items)
        left = known(KittiRaw(folder)[0])
        assert left <= known(whole)
        gone = np.array(sorted(known(whole) - left)).reshape(-1, 4)[:, :2]
        scan = moved(np.r_[WALL, fence], np.linalg.inv(to_world(0)))
        places = {
            tuple(pixel): point
            for pixel, point in zip(np.rint(100 * project(scan)[0]).astype(int), scan, strict=True)
        }
        return np.array([places[tuple(pixel)] for pixel in gone]).reshape(-1, 3)

    parked = tracklet(0, size, [at([15, -3, -1], turn, frame) for frame in (0, 1)])
    slides = tracklet(0, size, [at([15, y, -1], turn, frame) for frame, y in ((0, 3), (1, 3.5))])
    assert not len(removed(parked))
    gone = removed(parked, slides)
    assert (abs(gone - [15, 3, 0]).max(0) <= [0.1, 1.1, 1.1]).all()
    sideways = abs(moved(fence, np.linalg.inv(to_world(0)))[:, 1] - 3)
    assert (sideways <= 1).sum() <= len(gone) <= (sideways <= 1.2).sum()
    # It has no place in the second frame; it comes later; it left before.
    assert len(removed(tracklet(0, size, [at([15, 3, -1], turn, 0)]))) == len(gone)
    assert not len(removed(tracklet(1, size, [at([15, 3, -1], turn, 1)])))
    assert not len(removed(tracklet(-5, size, [at([15, 3, -1], turn, 0)])))
    # Across the wall instead of along it: a strip as wide as the box.
    across = tracklet(0, size, [at([15, y, -1], 0, frame) for frame, y in ((0, 3), (1, 3.5))])
    assert 0 < len(removed(across)) < len(gone) / 3


def test_a_box_that_stands_askew(drive: Path) -> None:
    """Of a slope through a box, the points in it or at most a tenth of a metre outside are removed."""
    x, y = np.random.default_rng(2).uniform([[9], [-3]], [[13], [3]], (2, 3000))
    here = np.stack([x, y, 1.25 * (x - 11)], 1)
    write_scan(drive, 0, moved(here, to_world(0)))
    write_scan(drive, 1, moved(here, to_world(0)))
    folder = drive.parent.parent
    whole = known(KittiRaw(folder, occluded=True)[0])
    length, width, height, yaw = 3.0, 0.8, 1.2, 0.5
    place = [11.0, 0.4, -0.6]
    later = [at([place[0], place[1] + y, place[2]], yaw, 1) for y in (0.0, 0.2)]
    write_tracklets(drive, tracklet(0, (length, width, height), [[*place, yaw], later[0]]))
    assert known(KittiRaw(folder, occluded=True)[0]) == whole
    write_tracklets(drive, tracklet(0, (length, width, height), [[*place, yaw], later[1]]))
    left = known(KittiRaw(folder, occluded=True)[0])
    scan = moved(moved(here, to_world(0)), np.linalg.inv(to_world(0)))
    step = np.linalg.inv(to_world(1)) @ to_world(0)
    matches = np.c_[project(scan)[0], project(moved(scan, step))[0]]
    inside = set()
    for point, match in zip(scan, np.rint(100 * matches).astype(int), strict=True):
        away = point - place
        along = away[0] * math.cos(yaw) + away[1] * math.sin(yaw)
        across = -away[0] * math.sin(yaw) + away[1] * math.cos(yaw)
        up = abs(away[2] - height / 2)
        if abs(along) <= length / 2 + 0.1 and abs(across) <= width / 2 + 0.1 and up <= height / 2 + 0.1:
            inside.add(tuple(match))
    assert len(whole & inside) > 100
    assert left == whole - inside


@pytest.mark.parametrize(("away", "confirmed"), [(0.0, True), (2.9, True), (3.1, False), (8.0, False)])
@pytest.mark.parametrize("depth", [0.94, 0.96, 1.04, 1.06])
def test_what_confirms_a_point(drive: Path, away: float, confirmed: bool, depth: float) -> None:
    """A point of the second scan so many pixels aside, at such a share of the depth."""
    first = np.array([[15.0, 1.0, 0.0]])
    (scan,) = write_scan(drive, 0, moved(first, to_world(0)))[None]
    step = np.linalg.inv(to_world(1)) @ to_world(0)
    (pixel,), (far,) = project(moved(scan, step))
    ray = np.linalg.solve(CAMERA, [pixel[0] + away, pixel[1], 1])
    other = moved(np.array([ray * far * depth]), np.linalg.inv(to_camera("02")))
    write_scan(drive, 1, moved(other, to_world(1)))
    agrees = confirmed and 0.95 < 1 / depth < 1.05
    assert len(KittiRaw(drive.parent.parent)[0].points1) == agrees
    assert len(KittiRaw(drive.parent.parent, occluded="yes")[0].points1) == 1


def test_occluded_keeps_tracklets_rule(drive: Path) -> None:
    still(drive, 0, 1)
    folder = drive.parent.parent
    whole = KittiRaw(folder, occluded="yes")[0]
    moving = tracklet(0, (2, 2, 2), [at([20, y, -1], 0, frame) for frame, y in ((0, 0), (1, 1))])
    write_tracklets(drive, moving)
    assert known(KittiRaw(folder, occluded="yes")[0]) < known(whole)


def test_a_pair_without_points(drive: Path) -> None:
    write_scan(drive, 0, ahead(-20.0, [0.0], [0.0]))  # behind the camera
    still(drive, 1)
    pair = KittiRaw(drive.parent.parent)[0]
    assert pair.points1.shape == pair.points2.shape == (0, 2)
    still(drive, 0)
    write_scan(drive, 1, ahead(-20.0, [0.0], [0.0]))  # nothing is confirmed
    assert KittiRaw(drive.parent.parent)[0].points1.shape == (0, 2)


def test_rotations_are_rounded_in_the_files(drive: Path) -> None:
    still(drive, 0, 1)
    exact = KittiRaw(drive.parent.parent)[0]
    write_calibration(drive.parent, lambda v: " ".join(f"{x:.6e}" for x in np.ravel(v)))
    pair = KittiRaw(drive.parent.parent)[0]
    assert pair.motion is not None
    assert exact.motion is not None
    np.testing.assert_allclose(pair.motion.rotation @ pair.motion.rotation.T, np.eye(3), atol=1e-13)
    assert rotation_deviation(pair.motion.rotation, exact.motion.rotation) < 1e-5
    assert direction_deviation(pair.motion.translation, exact.motion.translation) < 1e-4


def test_splits(tmp_path: Path) -> None:
    drives = {
        "2011_09_26_drive_0001_sync": ("trn", "city"),
        "2011_09_26_drive_0015_sync": ("trn", "road"),
        "2011_09_26_drive_0019_sync": ("trn", "residential"),
        "2011_09_26_drive_0079_sync": ("test", "residential"),
        "2011_09_26_drive_0084_sync": ("test", "city"),
        "2011_09_26_drive_0117_sync": ("", "other"),
        "2011_09_28_drive_0001_sync": ("", "other"),
    }
    for name in drives:
        still(make_drive(tmp_path, name), 0, 1)
    for split in ("trn", "test", "all"):
        found = {p.drive.name: p.category for p in KittiRaw(tmp_path, split).rows}
        assert found == {
            name: category for name, (one, category) in drives.items() if split in (one, "all")
        }
    assert [row.drive.name[-9:-5] for row in open_pairs(f"kitti-raw:{tmp_path}").rows] == [
        "0079",
        "0084",
    ]
    with pytest.raises(ValueError, match=r'^no split "val": expected trn or test or all$'):
        KittiRaw(tmp_path, "val")


def test_the_table_of_the_paper() -> None:
    counts = {split: [len(drives) for drives in scenes.values()] for split, scenes in SPLITS.items()}
    assert counts == {"trn": [15, 2, 10], "test": [2, 2, 3]}
    both = [{n for drives in scenes.values() for n in drives} for scenes in SPLITS.values()]
    assert not both[0] & both[1]
    assert both[1] >= {79, 84}


def test_folders_without_drives(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'^no folder ".*none": expected drives such as 2011_09_26/'):
        KittiRaw(tmp_path / "none")
    with pytest.raises(
        ValueError, match=r": expected one of 2011_09_26_drive_0052_sync, .*, found none$"
    ):
        KittiRaw(tmp_path)
    with pytest.raises(ValueError, match=r": expected drives such as .*_drive_0001_sync, found none$"):
        KittiRaw(tmp_path, "all")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"camera": "04"}, 'camera: expected 00 or 01 or 02 or 03, got "04"'),
        ({"step": 0}, 'step: expected a whole number of at least 1, got "0"'),
        ({"occluded": "maybe"}, 'occluded: expected yes or no, got "maybe"'),
    ],
)
def test_options_that_are_none(drive: Path, options: dict[str, Any], message: str) -> None:
    still(drive, 0, 1)
    with pytest.raises(ValueError) as caught:
        KittiRaw(drive.parent.parent, **options)
    assert str(caught.value) == message


def said(path: Path, data: bytes | str | None) -> str:
    """What is raised where a file of the drive holds that, or is missing."""
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    folder = next(parent for parent in path.parents if (parent / "2011_09_26").is_dir())
    with pytest.raises(ValueError) as caught:
        KittiRaw(folder)[0]
    return str(caught.value).replace(str(path), "FILE").replace(str(folder), "DIR")


def test_damaged_scans(drive: Path) -> None:
    still(drive, 0, 1)
    for frame in (0, 1):
        path = drive / "velodyne_points" / "data" / f"{frame:010}.bin"
        raw = path.read_bytes()
        rows = "expected rows of 4 floats, 16 bytes each, at least one"
        assert said(path, raw[:-3]) == f"FILE: {rows}, found {len(raw) - 3} bytes"
        assert said(path, b"") == f"FILE: {rows}, found 0 bytes"
        broken = raw[:20] + np.float32(np.nan).tobytes() + raw[24:]
        assert said(path, broken).startswith("FILE: expected finite numbers, found [")
        assert said(path, broken).endswith(", nan, " + said(path, broken).rpartition(", ")[2])
        assert said(path, broken).endswith("] in row 1")
        path.write_bytes(raw)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cells: cells[:29], 'FILE: expected 30 numbers, found "49.01'),
        (lambda cells: [*cells, "0"], 'FILE: expected 30 numbers, found "49.01'),
        (lambda cells: [], 'FILE: expected 30 numbers, found ""'),
        (
            lambda cells: [*cells[:7], "nan", *cells[8:]],
            'FILE: column 8: expected a number, found "nan"',
        ),
        (lambda cells: [*cells[:7], "x", *cells[8:]], 'FILE: column 8: expected a number, found "x"'),
        (lambda cells: ["90", *cells[1:]], "FILE: expected a latitude between -90 and 90, found 90"),
    ],
)
def test_damaged_oxts(drive: Path, change: Callable[[list[str]], list[str]], message: str) -> None:
    still(drive, 0, 1)
    path = drive / "oxts" / "data" / "0000000001.txt"
    assert said(path, " ".join(change(path.read_text().split()))).startswith(message)
    assert said(path, None).startswith('cannot read the GPS/IMU data "FILE": No such file')


NAMES = "calib_time, corner_dist, R_rect_00, P_rect_00, P_rect_01, P_rect_03"


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("cam_to_cam", "P_rect_02", None, f"FILE: expected P_rect_02, found {NAMES}"),
        ("cam_to_cam", "P_rect_02", "1 2 3", 'FILE: P_rect_02: expected 12 numbers, found "1 2 3"'),
        (
            "cam_to_cam",
            "P_rect_02",
            "0 0 1 0 0 1 1 0 0 0 1 0",
            "FILE: P_rect_02: expected [[fx, s, cx, .], [0, fy, cy, .], [0, 0, 1, .]], found "
            "[[0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0]]",
        ),
        (
            "cam_to_cam",
            "R_rect_00",
            "2 0 0 0 2 0 0 0 2",
            "FILE: R_rect_00: expected a rotation, found "
            "[[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]]",
        ),
        (
            "velo_to_cam",
            "R",
            "1 0 0 0 1 0 0 0 -1",
            "FILE: R: expected a rotation, found [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, -1.0]]",
        ),
        ("velo_to_cam", "T", "1 2 x", 'FILE: T: column 3: expected a number, found "x"'),
        ("velo_to_cam", "T", "1 2;3 4", 'FILE: T: expected 3 numbers, found "1 2;3 4"'),
        ("imu_to_velo", "T", None, "FILE: expected T, found calib_time, R"),
    ],
)
def test_damaged_calibration(drive: Path, name: str, key: str, value: str | None, message: str) -> None:
    still(drive, 0, 1)
    path = drive.parent / f"calib_{name}.txt"
    lines = [line for line in path.read_text().splitlines() if not line.startswith(f"{key}:")]
    lines += [] if value is None else [f"{key}: {value}"]
    assert said(path, "\n".join(lines)) == message
    assert said(path, "") == f"FILE: expected {'P_rect_02' if 'cam_to' in name else 'R'}, found nothing"
    assert said(path, None).startswith('cannot read the calibration "FILE": No such file')


def test_damaged_tracklets(drive: Path) -> None:
    still(drive, 0, 1)
    path = write_tracklets(drive, tracklet(0, (2, 2, 2), [[15, 0, 0, 0], [15, 1, 0, 0]]))
    whole = path.read_text()
    for cut in range(0, len(whole.rstrip()), 7):
        assert said(path, whole[:cut]).startswith("FILE: expected XML: ")
    entity = '<!DOCTYPE boost_serialization [<!ENTITY a "aaaa">]>'
    assert said(path, whole.replace("<!DOCTYPE boost_serialization>", entity)) == (
        "FILE: expected XML, found a document type's declarations, or UTF-16"
    )
    assert said(path, "<a/>") == "FILE: expected <tracklets> in <boost_serialization>, found <a>"
    no_number = 'FILE: tracklet 0: l: expected 1 numbers, found ""'
    assert said(path, whole.replace("<l>2</l>", "")) == no_number
    found = 'FILE: tracklet 0 in frame 1: ty: column 1: expected a number, found "x"'
    assert said(path, whole.replace("<ty>1</ty>", "<ty>x</ty>")) == found
    expected = "FILE: tracklet 0: expected l, w and h above 0 and a whole first_frame"
    zero = said(path, whole.replace("<w>2</w>", "<w>0</w>"))
    assert zero == f"{expected}, found [2.0, 0.0, 2.0] and 0"
    half = said(path, whole.replace("<first_frame>0<", "<first_frame>0.5<"))
    assert half == f"{expected}, found [2.0, 2.0, 2.0] and 0.5"


def test_images_that_are_missing_or_none(drive: Path) -> None:
    still(drive, 0, 1)
    path = drive / "image_02" / "data" / "0000000001.png"
    assert said(path, b"no image").startswith('cannot read image "FILE": ')
    assert said(path, None) == f'DIR/2011_09_26/{DRIVE}: no image "FILE"'
