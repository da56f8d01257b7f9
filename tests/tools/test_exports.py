"""Matches in others' files, read back by those who read them: sqlite3, h5py, OpenCV, COLMAP."""

from __future__ import annotations

import csv
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from cortado.tools import exports
from cortado.tools.matching import Matches
from skimage.io import imread, imsave

SIZES = {"a.png": (40, 60), "b.png": (50, 64), "sub/c.png": (40, 60)}
CAMERA = np.array([[70.0, 0, 29.25], [0, 71, 20.5], [0, 0, 1]])


def matches(first: str, second: str, rows: Sequence[Sequence[float]], **options: Any) -> Matches:
    made = np.array(rows, np.float64).reshape(-1, 5)
    return Matches(
        made, (f"photos/{first}", f"photos/{second}"), (SIZES[first], SIZES[second]), **options
    )


@pytest.fixture
def pairs() -> list[Matches]:
    """Of three images; a point of a.png that matches twice, a match given twice, one not found."""
    return [
        matches(
            "b.png",
            "a.png",
            [
                [3, 4, 10, 20, 0.5],
                [1, 2, 10, 20, 0.75],
                [1, 2, 10, 20, 0.25],
                [9.5, 8, 0, 0.25, 1],
                [6, 6, np.nan, np.nan, np.nan],
            ],
        ),
        matches("a.png", "sub/c.png", [[10, 20, 7, 7, 0.5], [11, 3, 8, 8, 0.125]]),
    ]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(path: str, query: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


POINTS = {
    "b.png": [[1, 2], [3, 4], [9.5, 8]],
    "a.png": [[0, 0.25], [10, 20], [11, 3]],
    "sub/c.png": [[7, 7], [8, 8]],
}
ROWS = {("b.png", "a.png"): [[0, 1], [1, 1], [2, 0]], ("a.png", "sub/c.png"): [[1, 0], [2, 1]]}


def test_colmaps_database(pairs: list[Matches]) -> None:
    exports.write("m.db", pairs, cameras={"a.png": CAMERA})
    names = dict(table("m.db", "SELECT name, image_id FROM images"))
    assert names == {"b.png": 1, "a.png": 2, "sub/c.png": 3}
    for name, number in names.items():
        (row,) = table("m.db", f"SELECT rows, cols, data FROM keypoints WHERE image_id = {number}")
        values = np.frombuffer(row[2], "<f4").reshape(row[:2])
        np.testing.assert_array_equal(values, np.array(POINTS[name], np.float32) + 0.5)
    for (first, second), wanted in ROWS.items():
        low, high = sorted((names[first], names[second]))
        (row,) = table(
            "m.db", f"SELECT rows, cols, data FROM matches WHERE pair_id = {low * 2147483647 + high}"
        )
        values = np.frombuffer(row[2], "<u4").reshape(row[:2])
        assert values[:, :: 1 if names[first] == low else -1].tolist() == wanted
    cameras = table("m.db", "SELECT * FROM cameras")
    shown = [(*row[:4], np.frombuffer(row[4], "<f8").tolist(), row[5]) for row in cameras]
    assert shown == [
        (1, 2, 64, 50, [1.2 * 64, 32, 25, 0], 0),
        (2, 1, 60, 40, [70, 71, 29.75, 21], 1),
        (3, 2, 60, 40, [72, 30, 20, 0], 0),
    ]
    assert table("m.db", "SELECT name, camera_id FROM images WHERE image_id = 3") == [("sub/c.png", 3)]
    assert table("m.db", "SELECT * FROM two_view_geometries") == []


def test_of_two_images_the_lower_number_is_first_in_colmap(pairs: list[Matches]) -> None:
    """Whichever of the two the points were asked for in."""
    exports.write("m.db", [*pairs[1:], pairs[0]])
    (row,) = table("m.db", f"SELECT rows, cols, data FROM matches WHERE pair_id = {2147483647 + 3}")
    swapped = [[j, i] for i, j in ROWS["b.png", "a.png"]]
    assert np.frombuffer(row[2], "<u4").reshape(row[:2]).tolist() == swapped


def test_colmap_opens_it(pairs: list[Matches]) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    exports.write("m.db", pairs, cameras=CAMERA)
    with pycolmap.Database.open("m.db") as database:
        assert [image.name for image in database.read_all_images()] == [*POINTS]
        assert database.num_matches() == 5
        keypoints = database.read_keypoints(2)
        np.testing.assert_array_equal(keypoints, np.array(POINTS["a.png"], np.float32) + 0.5)
        assert database.read_matches(2, 3).tolist() == ROWS["a.png", "sub/c.png"]
        assert database.read_matches(1, 2).tolist() == ROWS["b.png", "a.png"]
        camera = database.read_camera(1)
        assert (camera.model.name, camera.has_prior_focal_length) == ("PINHOLE", True)
        # what COLMAP takes the camera matrix to be, its pixel centres at (0.5, 0.5)
        np.testing.assert_array_equal(camera.calibration_matrix()[:2, 2], CAMERA[:2, 2] + 0.5)


def test_earlier_colmaps_columns_are_there(pairs: list[Matches]) -> None:
    exports.write("m.db", pairs)
    columns = [row[1] for row in table("m.db", "PRAGMA table_info(images)")]
    assert columns[:4] == ["image_id", "name", "camera_id", "prior_qw"]
    assert columns[-1] == "prior_tz"


def test_colmaps_list_of_matches(pairs: list[Matches]) -> None:
    exports.write("m.txt", pairs)
    text = "b.png a.png\n0 1\n1 1\n2 0\n\na.png sub/c.png\n1 0\n2 1\n\n"
    assert Path("m.txt").read_text() == text


def test_hloc_reads_it(pairs: list[Matches]) -> None:
    """By the steps of hloc's find_pair and get_matches."""
    exports.write("m.h5", pairs)
    with h5py.File("m.h5") as file, h5py.File("m-features.h5") as features:
        assert sorted(file) == ["a.png", "b.png"]
        for (first, second), wanted in ROWS.items():
            group = file["/".join((first.replace("/", "-"), second.replace("/", "-")))]
            found, scores = group["matches0"][()], group["matching_scores0"][()]
            assert (found.dtype, scores.dtype) == (np.int32, np.float16)
            assert len(found) == len(scores) == len(POINTS[first])
            index = np.flatnonzero(found != -1)
            assert np.stack([index, found[index]], 1).tolist() == wanted
            assert (scores[found == -1] == 0).all()
        assert file["b.png/a.png/matching_scores0"][()].tolist() == [0.75, 0.5, 1]
        assert file["a.png/sub-c.png/matches0"][()].tolist() == [-1, 0, 1]
        for name, wanted in POINTS.items():
            keypoints = features[name]["keypoints"][()]
            assert keypoints.dtype == np.float32
            assert keypoints.tolist() == wanted
            assert features[name]["image_size"][()].tolist() == [*SIZES[name][::-1]]
        assert features["a.png/scores"][()].tolist() == [1, 0.75, 0.125]


def test_of_several_matches_of_a_point_hloc_gets_the_best() -> None:
    rows = [[1, 1, 2, 2, 0.5], [1, 1, 3, 3, 0.75], [1, 1, 4, 4, 0.25]]
    exports.write("m.h5", matches("a.png", "b.png", rows))
    with h5py.File("m.h5") as file:
        assert file["a.png/b.png/matches0"][()].tolist() == [1]
        assert file["a.png/b.png/matching_scores0"][()].tolist() == [0.75]


def test_a_csv_of_one_pair(pairs: list[Matches]) -> None:
    exports.write("m.csv", pairs[0])
    with open("m.csv", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["x1", "y1", "x2", "y2", "distance"]
    assert rows[0] == ["3", "4", "10", "20", "1.41421"]
    assert rows[4] == ["6", "6", "nan", "nan", "nan"]
    exports.write("m.csv", matches("a.png", "b.png", [[1, 2, 3, 4.5, 0.125]], measure="confidence"))
    assert Path("m.csv").read_text() == "x1,y1,x2,y2,confidence\n1,2,3,4.5,0.125\n"
    with pytest.raises(
        ValueError, match=r"^m.csv: it holds the matches of one pair of images, got 2 pa"
    ):
        exports.write("m.csv", pairs)


def test_a_picture(pairs: list[Matches]) -> None:
    with pytest.raises(ValueError, match=r"^m.png: a picture needs the images, which these matches do"):
        exports.write("m.png", pairs[0])
    os.mkdir("photos")
    imsave("photos/b.png", np.full((50, 64, 3), 200, np.uint8), check_contrast=False)
    images = ("photos/b.png", np.full((40, 60), 0.25))
    made = matches("b.png", "a.png", pairs[0].rows.tolist(), images=images)
    made.save("m.png", title="two")
    assert imread("m.png").shape[:2] > (50, 124)


def test_opencvs_key_points(pairs: list[Matches]) -> None:
    first, second, made = pairs[0].opencv()
    assert [(*point.pt, point.response) for point in first] == [
        (1, 2, 0.75),
        (3, 4, 0.5),
        (9.5, 8, 1),
    ]
    assert [point.pt for point in second] == [(0, 0.25), (10, 20)]
    assert [(each.queryIdx, each.trainIdx) for each in made] == [(1, 1), (0, 1), (0, 1), (2, 0)]
    distance = [each.distance for each in made]
    np.testing.assert_allclose(distance, 2 * np.sqrt([0.5, 0.25, 0.75, 0]), rtol=1e-6)
    images = [np.zeros((*size, 3), np.uint8) for size in ((50, 64), (40, 60))]
    drawn = cv2.drawMatches(images[0], first, images[1], second, made, None)
    assert drawn.shape == (50, 124, 3)
    sure = matches("a.png", "b.png", [[1, 2, 3, 4, 5]], measure="confidence")
    assert sure.opencv()[2][0].distance == -5


def test_without_opencv(pairs: list[Matches], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(
        ImportError, match=r"^a KeyPoint of OpenCV needs OpenCV: pip install cortado\[opencv"
    ):
        pairs[0].opencv()


def test_without_h5py(pairs: list[Matches], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ValueError, match=r"HDF5 files need h5py: pip install 'cortado\[hdf5\]'"):
        pairs[0].save("m.h5")
    assert os.listdir() == []


def test_names_are_paths_from_a_folder(pairs: list[Matches]) -> None:
    found = exports.collect(pairs, folder=".")
    assert [*found.sizes] == ["photos/b.png", "photos/a.png", "photos/sub/c.png"]
    found = exports.collect(pairs[0])
    assert [*found.sizes] == ["b.png", "a.png"]
    made = Matches(np.ones((1, 5)), ("x/1.png", "y/1.png"), ((9, 9), (9, 9)))
    assert [*exports.collect(made).sizes] == ["x/1.png", "y/1.png"]
    made = Matches(np.ones((1, 5)), ("image1", "image2"), ((9, 9), (9, 9)))
    assert [*exports.collect(made).sizes] == ["image1", "image2"]


@pytest.mark.parametrize("suffix", ["db", "txt", "h5"])
def test_no_matches(suffix: str) -> None:
    none = matches("a.png", "b.png", [])
    exports.write(f"m.{suffix}", none)
    found = exports.collect(none)
    assert [points.shape for points in found.points.values()] == [(0, 2), (0, 2)]
    if suffix == "db":
        assert table("m.db", "SELECT rows, cols, length(data) FROM matches") == [(0, 2, 0)]
    if suffix == "h5":
        with h5py.File("m.h5") as file:
            assert file["a.png/b.png/matches0"].shape == (0,)


PLAIN = [[1, 2, 3, 4, 0.5]]
REFUSED: dict[str, tuple[list[Matches], str, dict[str, Any], str]] = {
    "a suffix": (
        [matches("a.png", "b.png", PLAIN)],
        "m.json",
        {},
        "m.json: expected a file ending in .csv, .db, .txt, .h5, .png, .jpg, .pdf, .svg",
    ),
    "itself": (
        [matches("a.png", "a.png", PLAIN)],
        "m.db",
        {},
        "a.png is matched to itself: expected two images, of two names",
    ),
    "twice": (
        [matches("a.png", "b.png", PLAIN), matches("b.png", "a.png", PLAIN)],
        "m.txt",
        {},
        "the pair b.png and a.png is given twice",
    ),
    "two sizes": (
        [
            matches("a.png", "b.png", PLAIN),
            Matches(np.ones((1, 5)), ("photos/a.png", "photos/c.png"), ((7, 9), (9, 9))),
        ],
        "m.h5",
        {},
        "a.png: an image of 9 x 7 pixels and of 60 x 40 pixels",
    ),
    "outside": (
        [matches("a.png", "b.png", PLAIN)],
        "m.db",
        {"folder": "elsewhere"},
        "photos/a.png is not in the folder elsewhere",
    ),
    "a space": (
        [Matches(np.ones((1, 5)), ("a.png", "b b.png"), ((9, 9), (9, 9)))],
        "m.txt",
        {},
        'm.txt: a name in a list of matches has no spaces, got "b b.png"',
    ),
    "names alike": (
        [
            Matches(np.ones((1, 5)), ("x/1", "x-1/y"), ((9, 9), (9, 9))),
            Matches(np.ones((1, 5)), ("x-1", "x/1-y"), ((9, 9), (9, 9))),
            Matches(np.ones((1, 5)), ("x-1", "x-1/y"), ((9, 9), (9, 9))),
        ],
        "m.h5",
        {},
        'm.h5: two pairs have one name, as "/" is written "-" in it',
    ),
    "no image of a camera": (
        [matches("a.png", "b.png", PLAIN)],
        "m.db",
        {"cameras": {"c.png": CAMERA}},
        'no image is called "c.png", only a.png, b.png',
    ),
    "skew": (
        [matches("a.png", "b.png", PLAIN)],
        "m.db",
        {"cameras": CAMERA + np.eye(3, k=1)},
        "the camera of a.png: expected a matrix [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], fx and fy above "
        "0, got [[70.0, 1.0, 29.25], [0.0, 71.0, 21.5], [0.0, 0.0, 1.0]]",
    ),
    "no camera": (
        [matches("a.png", "b.png", PLAIN)],
        "m.db",
        {"cameras": [1, 2, 3]},
        "the camera of a.png: expected a matrix [3, 3] of numbers",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_written(name: str) -> None:
    given, path, options, text = REFUSED[name]
    with pytest.raises(ValueError) as caught:
        exports.write(path, given, **options)
    assert str(caught.value) == text
    assert os.listdir() == []


FULL = """
import resource
import numpy as np
from cortado.tools import exports
from cortado.tools.matching import Matches

rows = np.random.default_rng(0).uniform(0, 1, (5000, 5))
made = Matches(rows, ("a", "b"), ((9, 9), (9, 9)))
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
for suffix in ("csv", "db", "txt", "h5"):
    try:
        exports.write(f"m.{suffix}", made)
    except OSError as error:
        print(str(error).split(": ")[0])
"""


def test_a_full_disk_leaves_the_old_file(folder: Path) -> None:
    names = [f"m.{suffix}" for suffix in ("csv", "db", "txt", "h5")]
    for name in names:
        (folder / name).write_text("an older run's")
    assert resource.RLIMIT_FSIZE
    done = subprocess.run([sys.executable, "-c", FULL], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    said = [f"cannot write {name}" for name in (*names[:3], "m-features.h5")]
    assert done.stdout.splitlines() == said
    assert all((folder / name).read_text() == "an older run's" for name in names)
    assert sorted(os.listdir()) == sorted(names)
