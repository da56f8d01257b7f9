"""Where a known match comes from: tables, optical flow, disparity and homographies, read and made into
matches (points1, points2), float64 [M, 2] each, (x, y) in pixels of the two images.

Sizes are (height, width). Maps are of image 1; what is not known in them is NaN. All that is missing or
damaged is a ValueError that names the file, of a text its line too, and what was expected.
"""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from .._geometry.motion import Motion
from .files import open_file, read_xml
from .images import SUFFIXES, image_size, read_16_bits, read_samples
from .keypoint_pairs import KeypointPair, finite_number

Array = npt.NDArray[np.float64]
Map = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Size = tuple[int, int]
Matches = tuple[Array, Array]

COLUMNS = "x1,y1,x2,y2[,s]"
SIGNS = (1, 0, -1)
FLO = b"PIEH"  # the float 202021.25
MOST_KNOWN = 1e9  # a displacement of more pixels says in a .flo that it is not known
MOST_TEXT = 1 << 20  # bytes of a homography's file
BAND = 1 << 20  # pixels that a homography takes at a time
NO_HEADER = (ValueError, SyntaxError, TypeError, LookupError, RecursionError, TokenError)  # of NumPy
_NPY = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_table(path: str | Path) -> Array:
    """Matches as they are listed: float64 [M, 5], rows (x1, y1, x2, y2, s).

    A ``.npy`` of real numbers [M, 4] or [M, 5], or a text with a row a line, its cells set apart by
    commas; a first line of 4 or 5 cells without any number is its head. s is 1 for a match (also where
    there is no such column), 0 for two points that do not match, -1 for a row to be ignored.

    Raises ValueError for a table that is damaged or empty, for numbers that are not finite, and for
    another s.
    """
    path = Path(path)
    return _read_npy(path) if path.suffix.lower() == ".npy" else _read_csv(path)


def read_flow(path: str | Path, size: Size | None = None) -> Map:
    """Optical flow, float32 [H, W, 2]: image 1's (x, y) is image 2's (x + u, y + v); NaN: not known.

    Middlebury's and Sintel's ``.flo``, or KITTI's PNG, 16 bits of 3 channels: u * 64 + 2^15,
    v * 64 + 2^15, and whether it is known. Raises ValueError for what is none, or not of this size.
    """
    flow = _read_flo(Path(path)) if Path(path).suffix.lower() == ".flo" else _read_kitti(path)
    _expect_size(path, flow.shape[:2], size)
    return flow


def read_disparity(path: str | Path, scale: float | None = None, size: Size | None = None) -> Map:
    """Disparity, float32 [H, W]: the left image's (x, y) is the right one's (x - d, y); NaN: not known.

    ``.pfm`` of one channel holds d itself, infinite or NaN where it is not known; 0 is known there, a
    point at infinity. PNG or PGM of one channel, 8 or 16 bits, holds d times ``scale``, and 0 where it
    is not known. Raises ValueError for anything else, a TIFF of floats too, for a scale that is missing
    or not wanted, and where the size is not this one.
    """
    samples = read_samples(path)
    if samples.ndim != 2:
        raise ValueError(f"{path}: expected a disparity of 1 channel, found {samples.shape[2]}")
    _expect_size(path, samples.shape, size)
    real = samples.dtype.kind == "f"
    if real and Path(path).suffix.lower() != ".pfm":  # what TIFFs hold where it is unknown, none says
        raise ValueError(f"{path}: expected a disparity as .pfm, PNG or PGM, found floats")
    if real and scale is not None:
        raise ValueError(f"{path}: expected no scale, its numbers are pixels")
    if not real and scale is None:
        raise ValueError(f"{path}: expected the scale that its numbers are to be divided by")
    known = np.isfinite(samples) if real else samples > 0
    disparity: Map = samples.astype(np.float32)
    if scale is not None:
        disparity /= np.float32(scale)
    disparity[~known] = np.nan
    return disparity


def as_scale(value: object) -> float:
    """The option ``scale`` of a command, a list or a spec; raises ValueError for what is no number
    above 0."""
    scale = finite_number(str(value))
    if scale is None or scale <= 0:
        raise ValueError(f'scale: expected a number above 0, got "{value}"')
    return scale


def read_homography(path: str | Path) -> Array:
    """A homography from image 1 to image 2, float64 [3, 3]: (x2, y2, 1) ~ H (x1, y1, 1).

    A text of 3 lines of 3 numbers, or OpenCV's XML storage, of which the first matrix of 3 x 3 is read.
    Raises ValueError for anything else, and for a matrix that is not finite or has no inverse.
    """
    with _opened(path, "the homography") as file:
        data = file.read(MOST_TEXT + 1)
    if len(data) > MOST_TEXT:
        raise ValueError(f"{path}: expected 3 x 3 numbers, found more than {MOST_TEXT:,} bytes")
    text = data.decode("utf-8-sig", "replace")
    rows = _storage(path, text) if text.lstrip().startswith("<") else _rows(path, text)
    homography = np.array(rows).reshape(3, 3)
    if np.linalg.matrix_rank(homography) < 3:
        raise ValueError(f"{path}: expected a homography, found a matrix without an inverse")
    return homography


def read_mask(path: str | Path, size: Size | None = None) -> npt.NDArray[np.uint8]:
    """A mask, uint8 [H, W], of an image of 1 channel and at most 8 bits; 1 bit is read as 0 and 255.
    Raises ValueError for any other image, or where the size is not this one."""
    samples = read_samples(path)
    if samples.dtype != np.uint8 or samples.ndim != 2:
        found = f"{samples.dtype} of {samples.shape[2] if samples.ndim == 3 else 1}"
        raise ValueError(f"{path}: expected a mask of 8 bits and 1 channel, found {found}")
    _expect_size(path, samples.shape, size)
    return samples


def of_flow(flow: Map, size2: Size, keep: Mask | None = None) -> Matches:
    """The matches of the pixels of image 1 whose flow [H, W, 2] is known, that lie inside image 2.

    keep: bool [H, W], the pixels that count.
    """
    points1, y, x = _pixels(~np.isnan(flow[..., 0] + flow[..., 1]), keep)
    return _inside(points1, points1 + flow[y, x], size2)


def of_disparity(disparity: Map, size2: Size, keep: Mask | None = None) -> Matches:
    """The matches (x - d, y) of the pixels of the left image whose disparity [H, W] is known, that lie
    inside the right one. keep: bool [H, W], the pixels that count."""
    points1, y, x = _pixels(np.isfinite(disparity), keep)
    points2 = points1.copy()
    points2[:, 0] -= disparity[y, x]
    return _inside(points1, points2, size2)


def of_homography(homography: Array, size1: Size, size2: Size, keep: Mask | None = None) -> Matches:
    """The matches of the pixels of image 1 that the homography [3, 3] takes into image 2.

    What it takes to infinity or from behind the camera is left out: where its denominator has not the
    sign that it has at image 1's centre. keep: bool [H, W], the pixels that count.
    """
    height, width = size1
    rows = max(1, BAND // width)  # what does not land inside is dropped before the next band is made
    tops = range(0, height, rows)
    bands = [_of_band(homography, top, min(top + rows, height), size1, size2, keep) for top in tops]
    starts, ends = zip(*bands, strict=True)
    return np.concatenate(starts), np.concatenate(ends)


def _of_band(
    homography: Array, top: int, bottom: int, size1: Size, size2: Size, keep: Mask | None
) -> Matches:
    """The matches of the rows from top to bottom of image 1, see :func:`of_homography`."""
    height, width = size1
    known = np.ones((bottom - top, width), bool)
    points1, _, _ = _pixels(known, None if keep is None else keep[top:bottom])
    points1[:, 1] += top
    centre = homography[2] @ [(width - 1) / 2, (height - 1) / 2, 1]
    x, y, w = (row[0] * points1[:, 0] + row[1] * points1[:, 1] + row[2] for row in homography)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        points2 = np.stack([x, y], 1)
        points2 /= w[:, None]
    before = w * np.sign(centre) > 0
    return _inside(points1, points2, size2, before)


def visible(disparity: npt.NDArray[np.floating[Any]]) -> Mask:
    """Which left pixels [H, W] have a match inside the right image that no nearer surface hides.

    A left pixel is hidden when another one of its row, whose disparity is larger by more than 1,
    lands within 1 pixel of the same right pixel. Both images have one width.
    """
    height, width = disparity.shape
    seen = np.zeros((height, width), bool)
    for y in range(height):
        x = np.flatnonzero(np.isfinite(disparity[y]))
        d = disparity[y, x].astype(np.float64)
        landing = x - d
        order = np.argsort(landing)
        d, landing = d[order], landing[order]
        first = np.searchsorted(landing, landing - 1, "left")
        end = np.searchsorted(landing, landing + 1, "right")
        nearest = _largest(d, first, end)
        seen[y, x[order]] = (nearest <= d + 1) & (landing >= 0) & (landing <= width - 1)
    return seen


def consistent(disparity1: Map, disparity2: Map, tolerance: float = 1.0) -> Mask:
    """Which left pixels [H, W] the right image's disparity [H, W'] agrees with.

    At floor(x - d + 0.5) it is known, and differs from d by at most ``tolerance`` pixels.
    """
    known = np.isfinite(disparity1)
    d = np.where(known, disparity1, 0).astype(np.float64)
    landing = np.floor(np.arange(d.shape[1]) - d + 0.5)
    known &= (landing >= 0) & (landing < disparity2.shape[1])
    at = np.where(known, landing, 0).astype(np.int64)
    other = np.take_along_axis(disparity2, at, 1)
    return known & (np.abs(other - d) <= tolerance)


def by_stem(folder: Path, stem: str, suffixes: Iterable[str] = SUFFIXES) -> Path | None:
    """The file of this name and one of the suffixes, the first that is there; None if there is none."""
    paths = (folder / f"{stem}{end}" for end in suffixes)
    return next((path for path in paths if os.path.isfile(path)), None)


def image_by_stem(folder: Path, stem: str) -> Path:
    """The image of this name, whatever its suffix; raises ValueError if there is none."""
    path = by_stem(folder, stem)
    if path is None:
        raise ValueError(f'no image "{folder / stem}.*": expected such as {stem}.png')
    return path


def dense_pair(
    image1: Path,
    image2: Path,
    matches: Matches,
    source: str | Path,
    category: str,
    name: str,
    motion: Motion | None = None,
    signs: Array | None = None,
) -> KeypointPair:
    """A pair with all its known matches, measured in pixels; raises ValueError, which names the source
    of truth, where there is none."""
    points1, points2 = matches
    if not len(points1):
        why = "masks, or a truth of other images?"
        raise ValueError(f"{source}: expected matches inside both images, found none ({why})")
    return KeypointPair(
        image1, image2, points1, category, name, points2, length=1.0, signs=signs, motion=motion
    )


def homography_pair(
    image1: Path, image2: Path, source: Path, category: str, name: str, keep: Mask | None = None
) -> KeypointPair:
    """The pair of the pixels of image 1 that a homography's file takes into image 2."""
    size1, size2 = image_size(image1), image_size(image2)
    matches = of_homography(read_homography(source), size1, size2, keep)
    return dense_pair(image1, image2, matches, source, category, name)


@contextmanager
def _opened(path: str | Path, what: str) -> Iterator[BinaryIO]:
    """The file, for reading; raises ValueError, which calls it ``what``, where it cannot be read."""
    try:
        with open_file(path) as file:
            yield file
    except OSError as error:
        raise ValueError(f'cannot read {what} "{path}": {error.strerror or error}') from None


@contextmanager
def _opened_table(path: Path) -> Iterator[Iterable[str]]:
    """The lines of a table; what is no UTF-8 in them is no number either."""
    with _opened(path, "the table") as file, io.TextIOWrapper(file, "utf-8-sig", "replace") as text:
        yield text


def _expect_size(path: str | Path, found: tuple[int, ...], size: Size | None) -> None:
    if size is not None and tuple(found) != tuple(size):
        wanted = f"expected {size[1]} x {size[0]} pixels, the size of its image"
        raise ValueError(f"{path}: {wanted}, found {found[1]} x {found[0]}")


def _lines(text: Iterable[str]) -> Iterator[tuple[int, str]]:
    """The lines of a table by their numbers, without empty ones and the head."""
    lines = ((number, line) for number, line in enumerate(text, 1) if not line.isspace())
    for number, line in lines:
        cells = line.split(",")
        if len(cells) not in (4, 5) or any(finite_number(cell) is not None for cell in cells):
            yield number, line
        break
    yield from lines


def _read_csv(path: Path) -> Array:
    with _opened_table(path) as text:
        lines = (line for _, line in _lines(text))
        first = next(lines, "")
        try:
            rows = chain([first], lines)
            found = np.loadtxt(rows, delimiter=",", comments=None, ndmin=2) if first else None
        except ValueError:  # which counts its rows without the head and empty lines
            found = None
    if found is not None and found.shape[1] in (4, 5) and _sound(found):
        return _with_signs(found)
    with _opened_table(path) as text:
        fault = next(_faults(path, text), f"{path}: expected rows {COLUMNS}, found none")
    raise ValueError(fault)


def _faults(path: Path, text: Iterable[str]) -> Iterator[str]:
    """What is wrong with the lines of a table."""
    width = 0
    for number, line in _lines(text):
        place, cells = f"{path}:{number}", [cell.strip() for cell in line.split(",")]
        width = width or (5 if len(cells) == 5 else 4)
        if len(cells) != width:
            yield f"{place}: expected {width} columns of {COLUMNS}, found {len(cells)}"
        for column, cell in enumerate(cells, 1):
            value = finite_number(cell)
            if value is None:
                yield f'{place}: column {column}: expected a finite number, found "{cell}"'
            elif column == 5 and value not in SIGNS:
                yield f"{place}: column 5: expected s = 1, 0 or -1, found {cell}"


def _read_npy(path: Path) -> Array:
    with _opened(path, "the table") as file:
        shape, in_columns, dtype = _npy_header(path, file)
        if len(shape) != 2 or shape[1] not in (4, 5) or dtype.kind not in "iuf":
            expected = "expected real numbers [M, 4] or [M, 5]"
            raise ValueError(f"{path}: {expected}, found {list(shape)} of {dtype}")
        there = os.fstat(file.fileno()).st_size - file.tell()
        wanted = math.prod(shape) * dtype.itemsize
        if shape[0] < 0 or there != wanted:
            raise ValueError(f"{path}: expected {wanted:,} bytes of numbers, found {there:,}")
        if not shape[0]:
            raise ValueError(f"{path}: expected rows {COLUMNS}, found none")
        found = np.fromfile(file, dtype, math.prod(shape))
    table = _with_signs(found.reshape(shape, order="F" if in_columns else "C"))
    if not _sound(table):
        row = next(i for i in range(len(table)) if not _sound(table[i : i + 1]))
        expected = "expected finite numbers, and s = 1, 0 or -1"
        raise ValueError(f"{path}: row {row} (from 0): {expected}, found {table[row].tolist()}")
    return table


def _npy_header(path: Path, file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and dtype."""
    try:
        version = np.lib.format.read_magic(file)
        if version not in _NPY:
            raise ValueError(f"its version is {version}")
        return _NPY[version](file)
    except NO_HEADER as error:
        why = str(error).split("\n")[0]
        raise ValueError(f"{path}: expected an array of NumPy, .npy: {why}") from None


def _sound(table: Array) -> bool:
    """Whether all numbers are finite, and all signs known."""
    return bool(np.isfinite(table).all() and np.isin(table[:, 4:], SIGNS).all())


def _with_signs(table: npt.NDArray[Any]) -> Array:
    """A table of 4 or 5 columns as float64 [M, 5]; the same one where it is that."""
    with np.errstate(over="ignore"):
        if table.shape[1] == 5:
            return np.ascontiguousarray(table, np.float64)
        signed = np.ones((len(table), 5))
        signed[:, :4] = table
    return signed


def _read_flo(path: Path) -> Map:
    with _opened(path, "the flow") as file:
        head = file.read(12)
        if len(head) < 12 or head[:4] != FLO:
            raise ValueError(f"{path}: expected a .flo, which begins with PIEH, found {head[:4]!r}")
        width, height = struct.unpack("<2i", head[4:])
        there, wanted = os.fstat(file.fileno()).st_size, 12 + 8 * width * height
        if min(width, height) < 1 or there != wanted:
            found = f"{width} x {height} pixels in {there:,} bytes"
            raise ValueError(f"{path}: expected a .flo of 8 bytes a pixel and 12, found {found}")
        flow = np.fromfile(file, "<f4", 2 * width * height).reshape(height, width, 2)
    with np.errstate(invalid="ignore"):
        flow[~(np.abs(flow) <= MOST_KNOWN).all(2)] = np.nan
    return flow.astype(np.float32, copy=False)


def _read_kitti(path: str | Path) -> Map:
    samples = read_16_bits(path)
    if samples.ndim != 3:
        raise ValueError(f"{path}: expected flow, 16 bits of 3 channels, found 1 channel")
    flow: Map = samples[..., :2].astype(np.float32)
    flow -= 2**15
    flow /= 64
    flow[samples[..., 2] == 0] = np.nan
    return flow


def _rows(path: str | Path, text: str) -> list[list[float]]:
    """The numbers of a text of three lines of three."""
    rows: list[list[float]] = []
    for number, line in enumerate(text.splitlines(), 1):
        cells = line.split()
        found = [value for cell in cells if (value := finite_number(cell)) is not None]
        if cells and (len(cells) != 3 or len(found) != 3 or len(rows) == 3):
            expected = "expected 3 lines of 3 finite numbers"
            raise ValueError(f'{path}:{number}: {expected}, found "{line.strip()[:80]}"')
        rows += [found] * bool(cells)
    if len(rows) != 3:
        raise ValueError(f"{path}: expected 3 lines of 3 finite numbers, found {len(rows)}")
    return rows


def _storage(path: str | Path, text: str) -> list[float]:
    """The numbers of the first matrix of 3 x 3 in OpenCV's XML storage."""
    root = read_xml(text, path, "OpenCV's XML storage")
    if root.tag != "opencv_storage":
        raise ValueError(f"{path}: expected OpenCV's XML storage, found <{root.tag}>")
    for node in root.iter():
        kind, *size = (node.findtext(key, "").strip() for key in ("dt", "rows", "cols"))
        if node.get("type_id") == "opencv-matrix" and kind in ("d", "f") and size == ["3", "3"]:
            cells = node.findtext("data", "").split()
            found = [value for cell in cells if (value := finite_number(cell)) is not None]
            if len(cells) != 9 or len(found) != 9:
                there = f"found {len(found)} among {len(cells)}"
                raise ValueError(f"{path}: <{node.tag}>: expected 9 finite numbers, {there}")
            return found
    raise ValueError(f"{path}: expected an opencv-matrix of 3 x 3 real numbers, found none")


def _pixels(known: Mask, keep: Mask | None) -> tuple[Array, Any, Any]:
    """The pixels that are known and count: points [M, 2], and their rows and columns."""
    y, x = np.nonzero(known if keep is None else known & keep)
    points = np.empty((len(x), 2))
    points[:, 0], points[:, 1] = x, y
    return points, y, x


def _inside(points1: Array, points2: Array, size2: Size, among: Mask | None = None) -> Matches:
    """The matches (of some of them) that lie inside image 2."""
    height, width = size2
    inside = ((points2 >= 0) & (points2 <= [width - 1, height - 1])).all(1)
    if among is not None:
        inside &= among
    return points1[inside], points2[inside]


def _largest(values: Array, first: npt.NDArray[np.int64], end: npt.NDArray[np.int64]) -> Array:
    """The largest of each values[first[i]:end[i]], none of them empty, [N].

    Two spans of the same power of 2 cover it.
    """
    spans = [values]
    while 2 ** len(spans) <= len(values):
        half = 2 ** (len(spans) - 1)
        spans.append(np.maximum(spans[-1][:-half], spans[-1][half:]))
    power = np.frexp(end - first)[1] - 1
    largest = np.empty(len(values))
    for level, span in enumerate(spans):
        at = power == level
        largest[at] = np.maximum(span[first[at]], span[end[at] - 2**level])
    return largest
