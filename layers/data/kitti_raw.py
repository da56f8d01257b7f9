"""KITTI's raw drives: laser points that are seen from two places of a drive (Geiger et al., 2013), with
the camera's motion between them; UCN's Figure 5, Table 6, and Figure 5 of its supplement.

Read from the authors' folder of synchronised, rectified drives:

- ``2011_09_26/2011_09_26_drive_0001_sync/``: ``image_02/data/0000000000.png`` (02 and 03 the colour
  cameras, 00 and 01 the grey ones), ``velodyne_points/data/0000000000.bin`` (rows x, y, z, reflectance
  in float32, metres), ``oxts/data/0000000000.txt`` (30 numbers, of which the first six are read:
  latitude and longitude in degrees, altitude in metres, roll, pitch, yaw in radians), and
  ``tracklet_labels.xml`` where there is one.
- ``2011_09_26/``: ``calib_cam_to_cam.txt`` (P_rect of the camera, R_rect_00), ``calib_velo_to_cam.txt``
  and ``calib_imu_to_velo.txt`` (R, T). Rotations are rounded there: the nearest rotation is used.

A pair is the frames n and n + ``step`` of a drive, each n for which both scans are there. The points of
scan n are projected into image n, and by the motion that GPS and IMU give into image n + step. Places
are Mercator's, as in the authors' kit, but with the scale at the latitude of frame n, not of the
drive's first frame: of a distance that is less than a thousandth. Dropped are points

- nearer to a camera than ``NEAREST`` or outside of an image;
- behind others: where a point of the same scan within ``CLOSE`` pixels (between pixels that they are
  rounded to) is nearer by more than the share ``AGREE`` of its depth. The scanner stands above the
  cameras, and sees what is hidden from them;
- in the boxes of tracklets (``MARGIN`` larger at every side) that move by more than ``MOVES`` in the
  world from frame n to n + step, or have no place at n + step;
- that frame n + step does not confirm: the nearest point of its own scan in its image (those behind
  others left out) is ``CLOSE`` pixels away or more, or its depth differs by more than the share
  ``AGREE``. That removes what moves without a tracklet, and what is hidden there. With ``occluded``
  they are kept.

Splits are Table 2 of UCN's supplement, and the class is its type of scene: ``test``, ``trn``, or
``all``, whatever drives the folder has, of any date, "other" those that the table lacks. The table
names drives 79 and 84 for both training and testing: they are in ``test`` alone. It counts 27, 28 and
29 as city, which KITTI has as roads. Drives that the folder lacks are left out; it must have one of
the split's. A pair with no point left has points [0, 2].
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .._data.files import open_file, read_text, read_xml
from .._data.images import image_size
from .._data.keypoint_pairs import (
    Array,
    KeypointPair,
    PairReader,
    Row,
    as_count,
    as_flag,
    expect_folder,
    expect_image,
    expect_split,
    numbers,
    reader,
    some,
)
from .._geometry.motion import Motion

HOLDS = "drives such as 2011_09_26/2011_09_26_drive_0001_sync"
CAMERAS = ("00", "01", "02", "03")
DATE = "2011_09_26"
SPLITS = {
    "trn": {
        "city": (1, 2, 5, 9, 11, 13, 14, 27, 28, 29, 48, 51, 56, 57, 59),
        "road": (15, 32),
        "residential": (19, 20, 22, 23, 35, 36, 39, 46, 61, 64),
    },
    "test": {"city": (84, 91), "road": (52, 70), "residential": (79, 86, 87)},
}

NEAREST = 0.1  # metres before the camera
CLOSE = 3.0  # pixels: lines of a scan are about 5 apart, and its points within them 1
AGREE = 0.05  # share of the depth
MOVES = 0.1  # metres: 7 pixels of a thing 10 metres away
MARGIN = 0.1  # metres
EARTH = 6378137.0  # metres, its radius at the equator
OXTS = 30  # numbers a line

Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]
Size = tuple[int, int]  # height, width


class Frames(NamedTuple):
    """A pair that is listed: its drive's folder, the numbers of its frames, and its class."""

    drive: Path
    first: int
    second: int
    category: str


class Calibration(NamedTuple):
    """How a camera stands: its matrix [3, 3], and [4, 4] from the scanner's coordinates to its own,
    rectified ones, and from those of the IMU to the scanner's."""

    camera: Array
    of_scanner: Array
    of_imu: Array


class Tracklet(NamedTuple):
    """An object in two frames: its size (length, width, height) in metres, and (x, y, z, yaw), where
    the middle of its bottom is in the scanner's coordinates of each; None where it has no place."""

    size: Array
    here: Array
    there: Array | None


@reader("kitti-raw")
class KittiRaw(PairReader):
    """Pairs of frames of KITTI's raw drives, :class:`KeypointPair` with a motion each; see the module.

    step: from the first frame to the second; camera: 00 to 03; occluded: keep what the second scan
    does not confirm.
    """

    pixels = True

    def __init__(
        self,
        folder: str | Path,
        split: str = "test",
        step: int | str = 1,
        camera: str = "02",
        occluded: bool | str = False,
    ) -> None:
        expect_split(split, (*SPLITS, "all"))
        self.step, self.occluded = as_count(step, "step"), as_flag(occluded, "occluded")
        self.camera = str(camera).zfill(2)
        if self.camera not in CAMERAS:
            raise ValueError(f'camera: expected {" or ".join(CAMERAS)}, got "{camera}"')
        self.folder = expect_folder(folder, HOLDS)
        self.rows = some(
            [
                Frames(drive, number, number + self.step, category)
                for drive, category in _drives(self.folder, split)
                for number in _scanned(drive, self.step)
            ],
            self.folder,
            f"drives with two scans {self.step} apart",
        )

    def read(self, row: Frames) -> KeypointPair:
        drive, frames = row.drive, (row.first, row.second)
        images = [
            expect_image(drive / f"image_{self.camera}" / "data" / f"{number:010}.png", str(drive))
            for number in frames
        ]
        sizes = [image_size(image, f'image "{image}"') for image in images]
        calibration = read_calibration(drive.parent, self.camera)
        places = [drive / "oxts" / "data" / f"{number:010}.txt" for number in frames]
        poses = _poses(*(read_oxts(path) for path in places))
        moved = _camera_motion(calibration, poses)

        scan = read_scan(_scan_path(drive, row.first))
        points = _transformed(scan, calibration.of_scanner)
        pixels1, seen = _seen(points, calibration.camera, sizes[0])
        labels = drive / "tracklet_labels.xml"
        if labels.exists():  # after _seen: what moves hides, too
            still = ~_on_moving(scan[seen], read_tracklets(labels, frames), calibration, poses)
            pixels1, seen = pixels1[still], seen[still]
        points = _transformed(points[seen], moved)
        pixels2, kept = _projected(points, calibration.camera, sizes[1])
        if not self.occluded:
            other = _transformed(read_scan(_scan_path(drive, row.second)), calibration.of_scanner)
            there = _confirmed(pixels2, points[kept, 2], other, calibration.camera, sizes[1])
            pixels2, kept = pixels2[there], kept[there]
        return KeypointPair(
            images[0],
            images[1],
            pixels1[kept],
            category=row.category,
            name=f"{drive.name}/{row.first:010}-{row.second:010}",
            points2=pixels2,
            length=1.0,
            motion=Motion(moved[:3, :3], moved[:3, 3], calibration.camera, calibration.camera),
        )


def _drives(folder: Path, split: str) -> list[tuple[Path, str]]:
    """The drives of a split that are there, and their classes; raises ValueError without any."""
    named = {
        f"{DATE}_drive_{number:04}_sync": category
        for one, scenes in SPLITS.items()
        for category, drives in scenes.items()
        for number in drives
        if split in (one, "all")
    }
    if split == "all":
        found = sorted(path for path in folder.glob("*/*_drive_*_sync") if path.is_dir())
    else:
        paths = (folder / DATE / name for name in sorted(named))
        found = [path for path in paths if path.is_dir()]
    if not found:
        wanted = HOLDS if split == "all" else f"one of {', '.join(sorted(named))}"
        raise ValueError(f"{folder}: expected {wanted}, found none")
    return [(path, named.get(path.name, "other")) for path in found]


def _scan_path(drive: Path, number: int) -> Path:
    return drive / "velodyne_points" / "data" / f"{number:010}.bin"


def _scanned(drive: Path, step: int) -> list[int]:
    """The frames that have a scan, and so has the frame ``step`` later."""
    names = (path.stem for path in _scan_path(drive, 0).parent.glob("*.bin"))
    numbers = {int(name) for name in names if name.isascii() and name.isdecimal() and len(name) == 10}
    return sorted(number for number in numbers if number + step in numbers)


def read_scan(path: Path) -> Array:
    """The points [P, 3] of a scan in metres: x forward, y left, z up from the scanner."""
    try:
        with open_file(path) as file:
            raw = file.read()
    except OSError as error:
        raise ValueError(f'cannot read the scan "{path}": {error.strerror or error}') from None
    if not raw or len(raw) % 16:
        expected = "expected rows of 4 floats, 16 bytes each, at least one"
        raise ValueError(f"{path}: {expected}, found {len(raw)} bytes")
    points = np.frombuffer(raw, "<f4").reshape(-1, 4)[:, :3].astype(np.float64)
    if not np.isfinite(points).all():
        row = np.flatnonzero(~np.isfinite(points).all(1))[0]
        raise ValueError(f"{path}: expected finite numbers, found {points[row].tolist()} in row {row}")
    return points


def read_oxts(path: Path) -> Array:
    """Latitude, longitude (degrees), altitude (metres), roll, pitch, yaw (radians) of a frame: [6]."""
    pose = _values(read_text(path, "the GPS/IMU data"), OXTS, str(path))[:6]
    if not abs(pose[0]) < 90:
        raise ValueError(f"{path}: expected a latitude between -90 and 90, found {pose[0]:g}")
    return pose


def _values(text: str, count: int, what: str) -> Array:
    """So many finite numbers, set apart by spaces."""
    cells = text.split()
    if len(cells) != count or ";" in text:
        raise ValueError(f'{what}: expected {count} numbers, found "{text.strip()[:200]}"')
    return numbers(Row(what, cells), range(count))


def read_calibration(folder: Path, camera: str) -> Calibration:
    """How a camera and the IMU stand to the scanner, from the three files of a day."""
    name = f"P_rect_{camera}"
    path, cameras = _calibrations(folder / "calib_cam_to_cam.txt", {name: 12, "R_rect_00": 9})
    projection = cameras[name].reshape(3, 4)
    matrix, offset = projection[:, :3], projection[:, 3]
    low = matrix[np.tril_indices(3)].tolist()  # fx, 0, fy, 0, 0, 1
    if min(low[0], low[2]) <= 0 or low[1::2] != [0, 0, 1] or low[4]:
        expected = "expected [[fx, s, cx, .], [0, fy, cy, .], [0, 0, 1, .]]"
        raise ValueError(f"{path}: {name}: {expected}, found {projection.tolist()}")
    rectify, shift = np.eye(4), np.eye(4)
    rectify[:3, :3] = _rotation(cameras["R_rect_00"], f"{path}: R_rect_00")
    # P (X, 1) = matrix (X + matrix^-1 offset): where the camera stands beside camera 00.
    shift[:3, 3] = np.linalg.solve(matrix, offset)
    of_scanner = shift @ rectify @ _rigid(folder / "calib_velo_to_cam.txt")
    return Calibration(matrix, of_scanner, _rigid(folder / "calib_imu_to_velo.txt"))


def _rigid(path: Path) -> Array:
    """The transformation [4, 4] of a file with R and T."""
    _, values = _calibrations(path, {"R": 9, "T": 3})
    made = np.eye(4)
    made[:3, :3], made[:3, 3] = _rotation(values["R"], f"{path}: R"), values["T"]
    return made


def _calibrations(path: Path, wanted: dict[str, int]) -> tuple[Path, dict[str, Array]]:
    """The file, and the lines ``name: values`` that are wanted of it, by how many numbers each has."""
    split = (line.partition(":") for line in read_text(path, "the calibration").splitlines())
    lines = {name.strip(): text for name, colon, text in split if colon}
    for name in wanted:
        if name not in lines:
            raise ValueError(f"{path}: expected {name}, found {', '.join(lines) or 'nothing'}")
    return path, {
        name: _values(lines[name], count, f"{path}: {name}") for name, count in wanted.items()
    }


def _rotation(values: Array, what: str) -> Array:
    """The rotation [3, 3] that is nearest to nine rounded numbers."""
    given = values.reshape(3, 3)
    left, _, right = np.linalg.svd(given)
    nearest = left @ right
    if np.abs(nearest - given).max() > 1e-3 or np.linalg.det(nearest) < 0:
        raise ValueError(f"{what}: expected a rotation, found {given.tolist()}")
    return nearest


def _poses(*oxts: Array) -> list[Array]:
    """From the IMU's coordinates at each place to the world's, [4, 4] each: x east, y north, z up."""
    scale = EARTH * math.cos(math.radians(oxts[0][0]))
    poses = []
    for latitude, longitude, altitude, *angles in oxts:
        north = math.log(math.tan(math.radians(90 + latitude) / 2))
        pose = np.eye(4)
        pose[:3, 3] = scale * math.radians(longitude), scale * north, altitude
        (sin_r, cos_r), (sin_p, cos_p), (sin_y, cos_y) = ((math.sin(a), math.cos(a)) for a in angles)
        roll = np.array([[1, 0, 0], [0, cos_r, -sin_r], [0, sin_r, cos_r]])
        pitch = np.array([[cos_p, 0, sin_p], [0, 1, 0], [-sin_p, 0, cos_p]])
        yaw = np.array([[cos_y, -sin_y, 0], [sin_y, cos_y, 0], [0, 0, 1]])
        pose[:3, :3] = yaw @ pitch @ roll
        poses.append(pose)
    return poses


def _camera_motion(calibration: Calibration, poses: list[Array]) -> Array:
    """From the camera's coordinates at the first pose to those at the second: [4, 4]."""
    to_camera = calibration.of_scanner @ calibration.of_imu
    return to_camera @ np.linalg.solve(poses[1], poses[0]) @ np.linalg.inv(to_camera)


def _transformed(points: Array, by: Array) -> Array:
    return points @ by[:3, :3].T + by[:3, 3]


def _projected(points: Array, camera: Array, size: Size) -> tuple[Array, Indices]:
    """Where points [P, 3] of a camera's coordinates are in its image (height, width): the pixels
    [M, 2] of those that are in it, and which these are."""
    before = np.flatnonzero(points[:, 2] > NEAREST)
    seen = points[before] @ camera.T
    pixels = seen[:, :2] / seen[:, 2:]
    inside = ((pixels >= 0) & (pixels <= [size[1] - 1, size[0] - 1])).all(1)
    return pixels[inside], before[inside]


def _seen(points: Array, camera: Array, size: Size) -> tuple[Array, Indices]:
    """As :func:`_projected`, without the points that are behind others."""
    from scipy.ndimage import minimum_filter

    pixels, which = _projected(points, camera, size)
    column, row = np.rint(pixels).astype(int).T
    depth = points[which, 2]
    nearest = np.full(size, np.inf)
    np.minimum.at(nearest, (row, column), depth)
    reach = np.arange(-int(CLOSE), int(CLOSE) + 1)
    disc = np.hypot(reach[:, None], reach) <= CLOSE
    nearest = minimum_filter(nearest, footprint=disc, mode="constant", cval=np.inf)
    front = depth <= (1 + AGREE) * nearest[row, column]
    return pixels[front], which[front]


def _confirmed(pixels: Array, depth: Array, scan: Array, camera: Array, size: Size) -> Mask:
    """Which points, at such pixels [M, 2] and depths [M], a scan of the image [P, 3] has, too."""
    from scipy.spatial import cKDTree

    others, which = _seen(scan, camera, size)
    if not len(pixels) or not len(others):
        return np.zeros(len(pixels), bool)
    away, at = cKDTree(others).query(pixels, distance_upper_bound=CLOSE)
    found = np.isfinite(away)
    there = scan[which[at[found]], 2]
    found[found] = np.abs(depth[found] - there) <= AGREE * there
    return found


def read_tracklets(path: Path, frames: tuple[int, int]) -> list[Tracklet]:
    """The objects of a drive that have a place in the first of two frames."""
    root = read_xml(read_text(path, "the tracklets"), path)
    listed = root.find("tracklets")
    if listed is None:
        raise ValueError(f"{path}: expected <tracklets> in <boost_serialization>, found <{root.tag}>")
    found = []
    for number, item in enumerate(listed.findall("item")):
        what = f"{path}: tracklet {number}"
        *size, first = _tags(item, ("l", "w", "h", "first_frame"), what)
        if min(size) <= 0 or first != int(first):
            expected = "expected l, w and h above 0 and a whole first_frame"
            raise ValueError(f"{what}: {expected}, found {size} and {first:g}")
        poses = dict(enumerate(item.findall("poses/item"), int(first)))
        here, there = (
            np.array(_tags(poses[frame], ("tx", "ty", "tz", "rz"), f"{what} in frame {frame}"))
            if frame in poses
            else None
            for frame in frames
        )
        if here is not None:
            found.append(Tracklet(np.array(size), here, there))
    return found


def _tags(element: ElementTree.Element, names: tuple[str, ...], what: str) -> list[float]:
    """The finite numbers of an element's children of these names."""
    texts = {name: element.findtext(name) or "" for name in names}
    return [float(_values(text, 1, f"{what}: {name}")[0]) for name, text in texts.items()]


def _on_moving(
    points: Array, tracklets: list[Tracklet], calibration: Calibration, poses: list[Array]
) -> Mask:
    """Which points [P, 3] of the first frame's scan are in the box of an object that moves."""
    to_world = [pose @ np.linalg.inv(calibration.of_imu) for pose in poses]
    moving = np.zeros(len(points), bool)
    for size, here, there in tracklets:
        if there is not None:
            begin, end = (
                _transformed(place[:3], by) for place, by in zip((here, there), to_world, strict=True)
            )
            if np.linalg.norm(end - begin) <= MOVES:
                continue
        *middle, yaw = here
        x, y, z = (points - middle).T
        along, across = x * np.cos(yaw) + y * np.sin(yaw), y * np.cos(yaw) - x * np.sin(yaw)
        length, width, height = size
        moving |= (
            (np.abs(along) <= length / 2 + MARGIN)
            & (np.abs(across) <= width / 2 + MARGIN)
            & (np.abs(z - height / 2) <= height / 2 + MARGIN)
        )
    return moving
