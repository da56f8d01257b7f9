"""Matches in the files that others read: CSV, COLMAP's database and match list, hloc's HDF5, a picture.

Points of :class:`~cortado.tools.matching.Matches` have their pixel centres at integers, as OpenCV's and
hloc's have; in COLMAP the centre of the upper left pixel is (0.5, 0.5). Of several pairs the key points
of an image are shared: each distinct point is one, in float32, and they are in the order of x, then y.

Sources: https://colmap.github.io/database.html and tutorial.html (Feature Matching: custom matches),
https://github.com/cvg/Hierarchical-Localization (hloc/match_features.py, hloc/utils/io.py).
"""

from __future__ import annotations

import csv
import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from cortado.prototxt_like.files import replace_file, replace_text

from .opencv import opencv as load_opencv

if TYPE_CHECKING:
    from .matching import Matches

Array: TypeAlias = npt.NDArray[Any]
Cameras: TypeAlias = npt.ArrayLike | Mapping[str, npt.ArrayLike]

COLUMNS = ("x1", "y1", "x2", "y2")
PICTURES = (".png", ".jpg", ".pdf", ".svg")
SIMPLE_RADIAL, PINHOLE = 2, 1  # COLMAP's numbers of camera models
FOCAL = 1.2  # times the longer side: what COLMAP takes an unknown focal length to be
MOST_IMAGES = 2**31 - 1  # COLMAP's: a pair's number is id1 times this, plus id2


def write(path: str | Path, matches: Matches | Sequence[Matches], **options: Any) -> None:
    """Write matches to a file of the kind that its suffix says; a file is replaced whole or not at all,
    the two of ``.h5`` one after the other.

    ``.csv``: :func:`write_csv`; ``.db``: :func:`write_colmap`; ``.txt``: :func:`write_match_list`;
    ``.h5``: :func:`write_hloc`; ``.png``, ``.jpg``, ``.pdf``, ``.svg``: :func:`write_picture`. Options
    are theirs. A CSV and a picture take one pair.

    Raises ValueError for another suffix, and where the writers do; OSError where the file cannot be
    written.
    """
    WRITERS[expect_suffix(path)](path, matches, **options)


def expect_suffix(path: str | Path) -> str:
    """The suffix of a file that can be written; raises ValueError for another."""
    suffix = Path(path).suffix.lower()
    if suffix not in WRITERS:
        raise ValueError(f"{path}: expected a file ending in {', '.join(WRITERS)}")
    return suffix


def files(path: str | Path) -> tuple[str, ...]:
    """The files that are written for a path."""
    beside = (str(features_path(path)),) if Path(path).suffix.lower() == ".h5" else ()
    return (str(path), *beside)


def _pairs(matches: Matches | Sequence[Matches]) -> list[Matches]:
    from .matching import Matches

    return [matches] if isinstance(matches, Matches) else [*matches]


def _one(path: str | Path, matches: Matches | Sequence[Matches]) -> Matches:
    pairs = _pairs(matches)
    if len(pairs) != 1:
        raise ValueError(f"{path}: it holds the matches of one pair of images, got {len(pairs)} pairs")
    return pairs[0]


# One pair


def write_csv(path: str | Path, matches: Matches | Sequence[Matches]) -> None:
    """Rows x1, y1, x2, y2 and the measure that the matches were chosen by, under its name: ``distance``
    of the features, the lower the better, or ``confidence``. Numbers have six digits; a point that is
    kept without a match has nan."""
    one = _one(path, matches)
    rows = np.column_stack([one.rows[:, :4], one.measured])

    def fill(beside: Path) -> None:
        with open(beside, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow((*COLUMNS, one.measure))
            writer.writerows([f"{value:.6g}" for value in row] for row in rows)

    replace_file(path, fill)


def write_picture(path: str | Path, matches: Matches | Sequence[Matches], **options: Any) -> None:
    """Both images side by side with lines between matches: see
    :func:`cortado.tools.pictures.draw_matches`, whose options these are."""
    from cortado.layers._data.images import read_image
    from cortado.layers._data.transform import as_rgb

    from .pictures import draw_matches

    one = _one(path, matches)
    if one.images is None:
        raise ValueError(f"{path}: a picture needs the images, which these matches do not have")
    first, second = (
        read_image(image) if isinstance(image, (str, Path)) else as_rgb(np.asarray(image))
        for image in one.images
    )
    draw_matches(path, first, second, one.rows, **options)


def opencv(matches: Matches) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]:
    """Key points of image 1, those of image 2, and the matches as OpenCV has them.

    A key point's size is 1 pixel, its response the highest score of its matches; a match's distance is
    the features', or the negative confidence. Raises :class:`NoOpenCV` without it.
    """
    cv2 = load_opencv("a KeyPoint of OpenCV")
    known = matches.known
    first, at1 = _distinct(known.points1)
    second, at2 = _distinct(known.points2)

    def keypoints(points: Array, at: Array) -> tuple[Any, ...]:
        rows = np.column_stack([points, _highest(known.score, at, len(points))])
        return tuple(cv2.KeyPoint(x, y, 1, -1, score) for x, y, score in rows.tolist())

    far = known.measured if known.measure == "distance" else -known.score
    rows = zip(at1.tolist(), at2.tolist(), far.tolist(), strict=True)
    return keypoints(first, at1), keypoints(second, at2), tuple(cv2.DMatch(*row) for row in rows)


# Several pairs


class Pair(NamedTuple):
    """Two images' names; which of their key points match, int64 [M, 2], each once; the scores [M]."""

    first: str
    second: str
    rows: Array
    score: Array

    @property
    def title(self) -> str:
        return f"{self.first} and {self.second}"


@dataclass(frozen=True)
class Collection:
    """Images by name with their (height, width), their key points float32 [N, 2], and their pairs."""

    sizes: dict[str, tuple[int, int]]
    points: dict[str, Array]
    pairs: list[Pair]


def collect(matches: Matches | Sequence[Matches], folder: str | Path | None = None) -> Collection:
    """The key points of all images and the matches between them, without those that were not found.

    folder: images are called by their paths from there; by default from the folder that holds them all.
    Raises ValueError where two pairs have the same images, or a pair has one image twice.
    """
    pairs = [each.known for each in _pairs(matches)]
    names = _named([name for each in pairs for name in each.names], folder)
    called = [names[name] for each in pairs for name in each.names]
    sizes: dict[str, tuple[int, int]] = {}
    for name, size in zip(called, (size for each in pairs for size in each.sizes), strict=True):
        if sizes.setdefault(name, size) != size:
            raise ValueError(f"{name}: an image of {_shown(size)} and of {_shown(sizes[name])}")
    sides = [xy for each in pairs for xy in (each.points1, each.points2)]
    points, at = _shared(called, sides)
    made = [
        _pair(called[i : i + 2], at[i : i + 2], each.score)
        for i, each in zip(range(0, len(called), 2), pairs, strict=True)
    ]
    _expect_distinct(made)
    return Collection(sizes, points, made)


def _shared(names: Sequence[str], sides: Sequence[Array]) -> tuple[dict[str, Array], list[Array]]:
    """The distinct points of each image, and which of these the points [P, 2] of every side are."""
    places: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        places.setdefault(name, []).append(i)
    points, rows = {}, [*sides]
    for name, mine in places.items():
        points[name], at = _distinct(np.concatenate([sides[i] for i in mine]))
        ends = np.cumsum([len(sides[i]) for i in mine])[:-1]
        for i, part in zip(mine, np.split(at, ends), strict=True):
            rows[i] = part
    return points, rows


def _pair(names: Sequence[str], at: Sequence[Array], score: Array) -> Pair:
    """A pair of which the best of equal matches is kept."""
    order = np.argsort(-score, kind="stable")
    rows, first = np.unique(np.stack(at, 1)[order], axis=0, return_index=True)
    return Pair(names[0], names[1], rows, score[order][first])


def _expect_distinct(pairs: Iterable[Pair]) -> None:
    known: set[frozenset[str]] = set()
    for pair in pairs:
        both = frozenset(pair[:2])
        if len(both) == 1:
            raise ValueError(f"{pair.first} is matched to itself: expected two images, of two names")
        if both in known:
            raise ValueError(f"the pair {pair.title} is given twice")
        known.add(both)


def _named(called: Sequence[str], folder: str | Path | None) -> dict[str, str]:
    """What each image is called in a file: its path from a folder, or from the one that holds all."""
    paths = {name: os.path.abspath(name) for name in called}
    if folder is None:
        base = os.path.commonpath([os.path.dirname(path) for path in paths.values()] or [os.curdir])
    else:
        base = os.path.abspath(folder)
    for name, path in paths.items():
        if os.path.commonpath([base, path]) != base:
            raise ValueError(f"{name} is not in the folder {folder}")
    return {name: Path(os.path.relpath(path, base)).as_posix() for name, path in paths.items()}


def _distinct(points: Array) -> tuple[Array, Array]:
    """The distinct ones of points [P, 2] in float32 [N, 2], and which of these each is, int64 [P]."""
    points, at = np.unique(points.astype(np.float32), axis=0, return_inverse=True)
    return points, at.reshape(-1)


def _highest(score: Array, at: Array, count: int) -> Array:
    """The highest score of each of so many points, which all have one."""
    found = np.full(count, -np.inf)
    np.maximum.at(found, at, score)
    return found


def _shown(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]} pixels"


# COLMAP


SCHEMA = f"""
CREATE TABLE cameras (camera_id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, model INTEGER NOT NULL,
    width INTEGER NOT NULL, height INTEGER NOT NULL, params BLOB, prior_focal_length INTEGER NOT NULL);
CREATE TABLE images (image_id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, name TEXT NOT NULL UNIQUE,
    camera_id INTEGER NOT NULL, prior_qw REAL, prior_qx REAL, prior_qy REAL, prior_qz REAL,
    prior_tx REAL, prior_ty REAL, prior_tz REAL,
    CONSTRAINT image_id_check CHECK(image_id >= 0 and image_id < {MOST_IMAGES}),
    FOREIGN KEY(camera_id) REFERENCES cameras(camera_id));
CREATE UNIQUE INDEX index_name ON images(name);
CREATE TABLE keypoints (image_id INTEGER PRIMARY KEY NOT NULL, rows INTEGER NOT NULL,
    cols INTEGER NOT NULL, data BLOB,
    FOREIGN KEY(image_id) REFERENCES images(image_id) ON DELETE CASCADE);
CREATE TABLE descriptors (image_id INTEGER PRIMARY KEY NOT NULL, rows INTEGER NOT NULL,
    cols INTEGER NOT NULL, data BLOB,
    FOREIGN KEY(image_id) REFERENCES images(image_id) ON DELETE CASCADE);
CREATE TABLE matches (pair_id INTEGER PRIMARY KEY NOT NULL, rows INTEGER NOT NULL,
    cols INTEGER NOT NULL, data BLOB);
CREATE TABLE two_view_geometries (pair_id INTEGER PRIMARY KEY NOT NULL, rows INTEGER NOT NULL,
    cols INTEGER NOT NULL, data BLOB, config INTEGER NOT NULL, F BLOB, E BLOB, H BLOB, qvec BLOB,
    tvec BLOB);
"""
"""COLMAP's tables as of version 3.6, which earlier and later ones open: a later one adds what it has
more, but an earlier one needs the columns that a later one has no more."""

IMAGE = "INSERT INTO images (image_id, name, camera_id) VALUES (?, ?, ?)"


def write_colmap(
    path: str | Path,
    matches: Matches | Sequence[Matches],
    cameras: Cameras | None = None,
    folder: str | Path | None = None,
) -> None:
    """COLMAP's database of images, key points and matches of one or more pairs. Nothing is verified:
    its ``two_view_geometries`` are empty, and COLMAP's geometric verification comes next.

    cameras: camera matrices [3, 3], pixel ~ matrix X, pixel centres at integers: one for all images, or
    by the images' names in the file. Such a camera is a PINHOLE whose focal length is known; any other
    is a SIMPLE_RADIAL, as COLMAP's own are, with a focal length of 1.2 times the longer side. folder:
    COLMAP's folder of images, from which they are named; by default the one that holds them all.

    Raises ValueError where :func:`collect` does, and for a matrix that is none of a pinhole camera.
    """
    found = collect(matches, folder)
    rows = [_camera(name, size, _matrix(name, cameras, found)) for name, size in found.sizes.items()]
    ids = {name: i for i, name in enumerate(found.sizes, 1)}

    def fill(beside: Path) -> None:
        try:
            with closing(sqlite3.connect(beside)) as database, database:
                database.executescript(SCHEMA)
                for name, camera in zip(ids, rows, strict=True):
                    row, points = ids[name], _blob(found.points[name] + np.float32(0.5))
                    database.execute("INSERT INTO cameras VALUES (?, ?, ?, ?, ?, ?)", (row, *camera))
                    database.execute(IMAGE, (row, name, row))
                    database.execute("INSERT INTO keypoints VALUES (?, ?, ?, ?)", (row, *points))
                for pair in found.pairs:
                    database.execute("INSERT INTO matches VALUES (?, ?, ?, ?)", _matched(pair, ids))
        except sqlite3.Error as error:
            raise OSError(str(error)) from error

    replace_file(path, fill)


def _matched(pair: Pair, ids: Mapping[str, int]) -> tuple[Any, ...]:
    """The pair's row of the table of matches, the image of the lower number first."""
    numbers = [ids[pair.first], ids[pair.second]]
    order = [0, 1] if numbers[0] < numbers[1] else [1, 0]
    low, high = sorted(numbers)
    return low * MOST_IMAGES + high, *_blob(pair.rows[:, order].astype(np.uint32))


def _blob(values: Array) -> tuple[int, int, bytes]:
    return *values.shape, values.astype(values.dtype.newbyteorder("<")).tobytes()


def _matrix(name: str, cameras: Cameras | None, found: Collection) -> Array | None:
    if not isinstance(cameras, Mapping):
        return None if cameras is None else np.asarray(cameras, np.float64)
    for known in cameras:
        if known not in found.sizes:
            raise ValueError(f'no image is called "{known}", only {", ".join(found.sizes)}')
    return np.asarray(cameras[name], np.float64) if name in cameras else None


def _camera(name: str, size: tuple[int, int], matrix: Array | None) -> tuple[Any, ...]:
    """An image's row of the table of cameras, without the number."""
    height, width = size
    if matrix is None:
        model, params = SIMPLE_RADIAL, [FOCAL * max(size), width / 2, height / 2, 0]
    else:
        if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
            raise ValueError(f"the camera of {name}: expected a matrix [3, 3] of numbers")
        plain = np.array([[matrix[0, 0], 0, matrix[0, 2]], [0, matrix[1, 1], matrix[1, 2]], [0, 0, 1]])
        if not (matrix == plain).all() or min(matrix[0, 0], matrix[1, 1]) <= 0:
            text = "expected a matrix [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], fx and fy above 0"
            raise ValueError(f"the camera of {name}: {text}, got {matrix.tolist()}")
        model = PINHOLE
        params = [matrix[0, 0], matrix[1, 1], matrix[0, 2] + 0.5, matrix[1, 2] + 0.5]
    return model, width, height, np.array(params, "<f8").tobytes(), int(matrix is not None)


def write_match_list(
    path: str | Path, matches: Matches | Sequence[Matches], folder: str | Path | None = None
) -> None:
    """COLMAP's list of raw matches, which ``matches_importer --match_type raw`` reads: of each pair the
    two names, a line of two key points' numbers a match, an empty line.

    The key points are those that :func:`write_colmap` writes of the same matches. Raises ValueError
    where :func:`collect` does, and for a name with a space, which the list has no way to write.
    """
    parts = []
    for pair in collect(matches, folder).pairs:
        for name in pair[:2]:
            if len(name.split()) != 1:
                raise ValueError(f'{path}: a name in a list of matches has no spaces, got "{name}"')
        lines = (f"{i} {j}\n" for i, j in pair.rows.tolist())
        parts.append(f"{pair.first} {pair.second}\n{''.join(lines)}\n")
    replace_text(path, "".join(parts))


# hloc


def features_path(path: str | Path) -> Path:
    """Where the key points of hloc's matches go: ``X-features.h5`` beside ``X.h5``."""
    path = Path(path)
    return path.with_name(f"{path.stem}-features{path.suffix}")


def write_hloc(
    path: str | Path, matches: Matches | Sequence[Matches], folder: str | Path | None = None
) -> None:
    """hloc's matches, ``X.h5``, and the key points that they are of, ``X-features.h5``.

    Of a pair the group ``name0/name1`` (with - for / in the names) holds ``matches0``, int32 [N], the
    key point of the second image for each of the first, -1 for none, and ``matching_scores0``, float16
    [N]: of several matches of a key point the best. Of an image the group of its name holds
    ``keypoints``, float32 [N, 2], ``scores``, float32 [N], the highest of its matches', and
    ``image_size``, (width, height).

    Raises ValueError where :func:`collect` does, and without h5py.
    """
    from cortado.layers._data.hdf5_file import write_hdf5

    found = collect(matches, folder)
    groups = {_group(pair.first, pair.second): pair for pair in found.pairs}
    if len(groups) < len(found.pairs):
        raise ValueError(f'{path}: two pairs have one name, as "/" is written "-" in it')

    def fill_matches(file: Any) -> None:
        for name, pair in groups.items():
            group = file.create_group(name)
            for key, values in _per_point(pair, len(found.points[pair.first])).items():
                group.create_dataset(key, data=values)

    def fill_features(file: Any) -> None:
        for name, points in found.points.items():
            group = file.create_group(name)
            group.create_dataset("keypoints", data=points)
            group.create_dataset("scores", data=_scores(name, found).astype(np.float32))
            group.create_dataset("image_size", data=np.array(found.sizes[name][::-1]))

    replace_file(features_path(path), lambda beside: write_hdf5(beside, fill_features))
    replace_file(path, lambda beside: write_hdf5(beside, fill_matches))


def _group(first: str, second: str) -> str:
    return "/".join(name.replace("/", "-") for name in (first, second))


def _per_point(pair: Pair, count: int) -> dict[str, Array]:
    order = np.argsort(pair.score, kind="stable")  # the best is written last
    to, score = np.full(count, -1, np.int32), np.zeros(count, np.float16)
    to[pair.rows[order, 0]], score[pair.rows[order, 0]] = pair.rows[order, 1], pair.score[order]
    return {"matches0": to, "matching_scores0": score}


def _scores(name: str, found: Collection) -> Array:
    at, score = zip(
        *(
            (pair.rows[:, side], pair.score)
            for pair in found.pairs
            for side in (0, 1)
            if pair[side] == name
        ),
        strict=True,
    )
    return _highest(np.concatenate(score), np.concatenate(at), len(found.points[name]))


WRITERS: dict[str, Callable[..., None]] = {
    ".csv": write_csv,
    ".db": write_colmap,
    ".txt": write_match_list,
    ".h5": write_hloc,
    **dict.fromkeys(PICTURES, write_picture),
}
