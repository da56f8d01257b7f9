"""Sources of truth: what each file holds, the matches made of it, and what is damaged or hostile."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cortado.layers._data import truth
from cortado.layers._data.truth import (
    as_scale,
    consistent,
    of_disparity,
    of_flow,
    of_homography,
    read_disparity,
    read_flow,
    read_homography,
    read_mask,
    read_table,
    visible,
)
from mutilate import mutilated
from PIL import Image

NAN = float("nan")


def said(read: Callable[..., object], path: Path, *arguments: Any) -> str:
    with pytest.raises(ValueError) as caught:
        read(path, *arguments)
    return str(caught.value).replace(str(path), "FILE").replace(str(path.parent), "DIR")


def png16(path: Path, samples: np.ndarray) -> Path:
    """A PNG of 16 bits, by OpenCV, whose colours are BGR."""
    cv2 = pytest.importorskip("cv2")
    assert cv2.imwrite(str(path), samples[..., ::-1] if samples.ndim == 3 else samples)
    return path


def pfm(path: Path, rows: np.ndarray, order: str = "<", head: str = "Pf") -> Path:
    """A PFM of the rows of an image from the top, which it holds from the bottom."""
    scale = {"<": "-0.003922", ">": "2.5"}[order]
    text = f"{head}\n{rows.shape[1]} {rows.shape[0]}\n{scale}\n"
    path.write_bytes(text.encode() + rows[::-1].astype(f"{order}f4").tobytes())
    return path


def flo(path: Path, flow: np.ndarray) -> Path:
    height, width = flow.shape[:2]
    path.write_bytes(struct.pack("<f2i", 202021.25, width, height) + flow.astype("<f4").tobytes())
    return path


# tables


@pytest.mark.parametrize("head", ["", "x1,y1,x2,y2,s\n", "\ufeffx1, y1, x2, y2, s\r\n", "\n  \n"])
def test_a_table_of_text(tmp_path: Path, head: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{head}1,2.5,3e1,-4,1\n\n 5 , 6,7,8 ,0\r\n0,0,0,0,-1", newline="")
    table = read_table(path)
    assert table.dtype == np.float64
    assert table.tolist() == [[1, 2.5, 30, -4, 1], [5, 6, 7, 8, 0], [0, 0, 0, 0, -1]]


def test_a_table_without_signs_is_of_matches(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("1,2,3,4\n5,6,7,8\n")
    assert read_table(path).tolist() == [[1, 2, 3, 4, 1], [5, 6, 7, 8, 1]]
    np.save(tmp_path / "t.npy", read_table(path)[:, :4])
    assert read_table(tmp_path / "t.npy").tolist() == read_table(path).tolist()


@pytest.mark.parametrize("dtype", ["<f8", ">f8", "f4", "f2", "i2", ">i4", "u1", "g"])
@pytest.mark.parametrize("order", "CF")
def test_a_table_of_numpy(tmp_path: Path, dtype: str, order: Any) -> None:
    table = np.array([[1, 2, 3, 4, 1], [5, 6, 7, 8, 0], [9, 10, 11, 12, 1]], dtype)
    np.save(tmp_path / "t.npy", np.asarray(table, order=order))
    found = read_table(tmp_path / "t.npy")
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, table.astype(np.float64))


FAULTS = {
    "1,2,3,4\n1,2,x,4\n": 'FILE:2: column 3: expected a finite number, found "x"',
    "a,b,c,d\n\n1,2,3,4\n1,2,,4\n": 'FILE:4: column 3: expected a finite number, found ""',
    "x,2,3,4\n1,2,3,4\n": 'FILE:1: column 1: expected a finite number, found "x"',
    "1,2,3,4\n\n1,2,3\n": "FILE:3: expected 4 columns of x1,y1,x2,y2[,s], found 3",
    "1,2,3\n": "FILE:1: expected 4 columns of x1,y1,x2,y2[,s], found 3",
    "1,2,3,4,1\n1,2,3,4\n": "FILE:2: expected 5 columns of x1,y1,x2,y2[,s], found 4",
    "x1;y1;x2;y2\n1;2;3;4\n": "FILE:1: expected 4 columns of x1,y1,x2,y2[,s], found 1",
    "x1\ty1\tx2\ty2\n1\t2\t3\t4\n": "FILE:1: expected 4 columns of x1,y1,x2,y2[,s], found 1",
    "a,b,c\n1,2,3,4\n": "FILE:1: expected 4 columns of x1,y1,x2,y2[,s], found 3",
    "1,2,3,4,1,1\n": "FILE:1: expected 4 columns of x1,y1,x2,y2[,s], found 6",
    "h,i,j,k,l\n1,2,3,4,1\n1,2,3,4,0.5\n": "FILE:3: column 5: expected s = 1, 0 or -1, found 0.5",
    "1,2,3,nan\n": 'FILE:1: column 4: expected a finite number, found "nan"',
    "1,2,3,4\n1,-inf,3,4\n": 'FILE:2: column 2: expected a finite number, found "-inf"',
    "1,2,3,1e999\n": 'FILE:1: column 4: expected a finite number, found "1e999"',
    "1,2,3,1_0\n": 'FILE:1: column 4: expected a finite number, found "1_0"',
    "1,2,3,４\n": 'FILE:1: column 4: expected a finite number, found "４"',
    "1,2,3,4 # no\n": 'FILE:1: column 4: expected a finite number, found "4 # no"',
    "": "FILE: expected rows x1,y1,x2,y2[,s], found none",
    "\n\n": "FILE: expected rows x1,y1,x2,y2[,s], found none",
    "x1,y1,x2,y2\n": "FILE: expected rows x1,y1,x2,y2[,s], found none",
}


@pytest.mark.parametrize("text", FAULTS)
def test_a_table_that_is_damaged(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    assert said(read_table, path) == FAULTS[text]


def test_a_table_of_other_bytes(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"1,2,3,4\n\xff\xfe,2,3,4\n")
    assert said(read_table, path).startswith("FILE:2: column 1: expected a finite number")
    assert said(read_table, tmp_path) == 'cannot read the table "FILE": Is a directory'
    assert said(read_table, tmp_path / "none.csv") == (
        'cannot read the table "FILE": No such file or directory'
    )


def test_tables_changed_at_random_are_read_or_refused_with_their_line(tmp_path: Path) -> None:
    path, refused = tmp_path / "t.csv", []
    for text in mutilated("x1,y1,x2,y2,s\n1,2,3,4,1\n5,6,7,8,0\n9,1.5,2e1,-3,-1\n", 300):
        path.write_text(text, encoding="utf-8", newline="")
        try:
            table = read_table(path)
        except ValueError as error:
            refused.append((str(error), text))
        else:
            assert len(table)
            assert np.isfinite(table).all()
            assert set(table[:, 4]) <= {1, 0, -1}
    assert 100 < len(refused) < 300
    for error, text in refused:
        assert error.startswith(f"{path}:")
        assert "found none" not in error or not any(line[:1].isdigit() for line in text.splitlines())


def header(path: Path, shape: str, descr: str = "'<f8'", order: str = "False") -> Path:
    """A .npy whose header tells a shape that is not there."""
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    path.write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + bytes(80))
    return path


def test_a_table_of_numpy_that_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "t.npy"
    real = "expected real numbers [M, 4] or [M, 5]"
    for array, found in [
        (np.zeros((2, 3)), "[2, 3] of float64"),
        (np.zeros(4), "[4] of float64"),
        (np.zeros((2, 4), complex), "[2, 4] of complex128"),
        (np.zeros((2, 4), bool), "[2, 4] of bool"),
        (np.zeros((2, 4), object), "[2, 4] of object"),
        (np.zeros((2, 4), "f4,f4"), "[2, 4] of [('f0', '<f4'), ('f1', '<f4')]"),
    ]:
        np.save(path, array, allow_pickle=True)
        assert said(read_table, path) == f"FILE: {real}, found {found}"
    np.save(path, np.zeros((0, 5)))
    assert said(read_table, path) == "FILE: expected rows x1,y1,x2,y2[,s], found none"
    row = "FILE: row 1 (from 0): expected finite numbers, and s = 1, 0 or -1, found"
    np.save(path, np.array([[1, 2, 3, 4], [1, NAN, 3, 4]]))
    assert said(read_table, path) == f"{row} [1.0, nan, 3.0, 4.0, 1.0]"
    np.save(path, np.array([[1, 2, 3, 4, 1], [1, 2, 3, 4, 2]], np.int64))
    assert said(read_table, path) == f"{row} [1.0, 2.0, 3.0, 4.0, 2.0]"
    path.write_bytes(b"1,2,3,4\n")
    assert said(read_table, path).startswith("FILE: expected an array of NumPy, .npy: ")
    np.save(path, np.zeros((2, 4)))
    path.write_bytes(path.read_bytes()[:-8])
    assert said(read_table, path) == "FILE: expected 64 bytes of numbers, found 56"
    path.write_bytes(path.read_bytes()[:20])
    assert said(read_table, path).startswith("FILE: expected an array of NumPy, .npy: ")


def test_a_header_of_numpy_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.npy"
    huge = 10**12
    found = said(read_table, header(path, f"({huge}, 4)"))
    assert found == f"FILE: expected {huge * 32:,} bytes of numbers, found 80"
    assert "found 80" in said(read_table, header(path, "(-1, 4)"))
    for shape in ("(2, 4", "'x'", "[[]]", "(2, 4) if 1 else 0"):
        assert said(read_table, header(path, shape)).startswith("FILE: expected an array of NumPy")
    assert said(read_table, header(path, "(2, 4)", "'<q9'")).startswith("FILE: expected an array")
    path.write_bytes(b"\x93NUMPY\3\0" + path.read_bytes()[8:])
    assert said(read_table, path) == "FILE: expected an array of NumPy, .npy: its version is (3, 0)"


def test_a_table_of_numpy_is_held_once(tmp_path: Path) -> None:
    table = np.ones((200_000, 5))
    np.save(tmp_path / "t.npy", table)
    tracemalloc.start()
    read_table(tmp_path / "t.npy")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * table.nbytes


# flow


def made_flow(height: int = 4, width: int = 5) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 2, (height, width, 2)).astype(np.float32)


def test_a_flo(tmp_path: Path) -> None:
    flow = made_flow()
    stored = flow.copy()
    stored[0, 0], stored[1, 2, 1], stored[3, 4, 0] = 1e10, -2e9, NAN
    stored[2, 2, 0], flow[2, 2, 0] = 1e9, 1e9  # as far as a known one goes
    flow[[0, 1, 3], [0, 2, 4]] = NAN
    found = read_flow(flo(tmp_path / "f.flo", stored))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, flow)


def test_a_flo_is_read_as_opencv_does(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    flow = made_flow()
    path = str(tmp_path / "f.flo")
    assert cv2.writeOpticalFlow(path, flow)
    np.testing.assert_array_equal(read_flow(path), flow)
    flo(tmp_path / "f.flo", 2 * flow)
    np.testing.assert_array_equal(read_flow(path), cv2.readOpticalFlow(path))


def test_a_flo_that_is_damaged(tmp_path: Path) -> None:
    path = flo(tmp_path / "f.flo", made_flow())
    whole = path.read_bytes()
    size = "FILE: expected a .flo of 8 bytes a pixel and 12, found"
    for data in (whole[:-1], whole + b"\0"):
        path.write_bytes(data)
        assert said(read_flow, path) == f"{size} 5 x 4 pixels in {len(data)} bytes"
    path.write_bytes(b"XXXX" + whole[4:])
    assert said(read_flow, path) == "FILE: expected a .flo, which begins with PIEH, found b'XXXX'"
    path.write_bytes(whole[:11])
    assert said(read_flow, path) == "FILE: expected a .flo, which begins with PIEH, found b'PIEH'"
    for width, height in ((2**31 - 1, 2**31 - 1), (-5, -4), (0, 4), (2**20, 2**20)):
        path.write_bytes(whole[:4] + struct.pack("<2i", width, height) + whole[12:])
        assert said(read_flow, path) == f"{size} {width} x {height} pixels in 172 bytes"
    path.write_bytes(whole)
    assert said(read_flow, path, (5, 4)) == (
        "FILE: expected 4 x 5 pixels, the size of its image, found 5 x 4"
    )
    assert said(read_flow, tmp_path / "none.flo").startswith('cannot read the flow "FILE"')


def test_kittis_flow(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(0, 2**16, (4, 5, 3)).astype(np.uint16)
    samples[..., 2] = np.arange(20).reshape(4, 5) % 3  # 0: unknown
    samples[0, 1] = 2**15 + 64, 2**15 - 96, 1
    found = read_flow(png16(tmp_path / "f.png", samples), (4, 5))
    assert found.dtype == np.float32
    assert found[0, 1].tolist() == [1, -1.5]
    for y, x in np.ndindex(4, 5):
        u, v, known = (int(n) for n in samples[y, x])
        wanted = [(u - 2**15) / 64, (v - 2**15) / 64] if known else [NAN, NAN]
        np.testing.assert_array_equal(found[y, x], wanted)


def test_an_image_that_is_no_flow(tmp_path: Path) -> None:
    path = tmp_path / "f.png"
    png16(path, np.ones((4, 5), np.uint16))
    assert said(read_flow, path) == "FILE: expected flow, 16 bits of 3 channels, found 1 channel"
    Image.new("RGB", (5, 4)).save(path)
    assert said(read_flow, path) == "FILE: expected 16 bits of 1 or 3 channels, found 8 bits of 3"
    path.write_bytes(b"text")
    assert said(read_flow, path).startswith("cannot read FILE: it is no PNG")


# disparity


@pytest.mark.parametrize("order", "<>")
def test_a_pfm(tmp_path: Path, order: str) -> None:
    disparity = np.array([[0.0, 1.5, -2.25], [np.inf, 7.1, NAN]], np.float32)
    path = pfm(tmp_path / "d.pfm", disparity, order)
    found = read_disparity(path)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.where(np.isfinite(disparity), disparity, NAN))


def test_a_pfm_that_opencv_wrote(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    disparity = made_flow()[..., 0]
    assert cv2.imwrite(str(tmp_path / "d.pfm"), disparity)
    np.testing.assert_array_equal(read_disparity(tmp_path / "d.pfm"), disparity)


def test_a_pfm_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "d.pfm"
    pfm(path, np.ones((2, 9)), head="PF")
    assert said(read_disparity, path) == (
        "cannot read FILE: expected a PFM of 1 channel (Pf), found one of 3 (PF)"
    )
    pfm(path, np.ones((2, 3)))
    assert said(read_disparity, path, 4) == "FILE: expected no scale, its numbers are pixels"
    assert said(read_disparity, path, None, (3, 2)) == (
        "FILE: expected 2 x 3 pixels, the size of its image, found 3 x 2"
    )
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert said(read_disparity, path).startswith("cannot read FILE: ")
    for head in (b"Pf\n3 2\n0\n", b"Pf\n3 2\nnan\n", b"Pf\nx 2\n-1\n", b"Pf\n-3 2\n-1\n", b"Pf\n"):
        path.write_bytes(head + bytes(24))
        assert said(read_disparity, path).startswith("cannot read FILE: ")
    tracemalloc.start()
    path.write_bytes(b"Pf\n999999 999999\n-1\n" + bytes(24))
    assert "are more than" in said(read_disparity, path)
    path.write_bytes(b"Pf\n9999 9999\n-1\n" + bytes(24))
    assert said(read_disparity, path).startswith("cannot read FILE: ")
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


@pytest.mark.parametrize("end", [".png", ".pgm"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("scale", [1, 3, 4, 256, 0.5])
def test_a_disparity_in_an_image(tmp_path: Path, end: str, dtype: Any, scale: float) -> None:
    cv2 = pytest.importorskip("cv2")
    stored = np.array([[0, 1, 2], [100, 254, np.iinfo(dtype).max]], dtype)
    path = tmp_path / f"d{end}"
    assert cv2.imwrite(str(path), stored)
    found = read_disparity(path, scale, (2, 3))
    assert found.dtype == np.float32
    wanted = [[n / scale if n else NAN for n in row] for row in stored.tolist()]
    np.testing.assert_array_equal(found, np.array(wanted, np.float32))
    assert said(read_disparity, path) == (
        "FILE: expected the scale that its numbers are to be divided by"
    )


def test_an_image_that_is_no_disparity(tmp_path: Path) -> None:
    path = tmp_path / "d.png"
    Image.new("RGB", (5, 4)).save(path)
    assert said(read_disparity, path, 4) == "FILE: expected a disparity of 1 channel, found 3"
    Image.fromarray(np.ones((4, 5), np.float32)).save(tmp_path / "d.tif")
    for scale in (None, 4):
        assert said(read_disparity, tmp_path / "d.tif", scale) == (
            "FILE: expected a disparity as .pfm, PNG or PGM, found floats"
        )


def test_a_scale() -> None:
    assert [as_scale(value) for value in (4, "256", "0.5")] == [4, 256, 0.5]
    for value in (0, -1, "nan", "inf", "x", "", None):
        with pytest.raises(ValueError, match=f'^scale: expected a number above 0, got "{value}"$'):
            as_scale(value)


# homographies

H = [[0.9, 0.3, -39.5], [-0.18, 0.94, 153], [1.9e-4, -1.6e-5, 1]]
TEXT = "\n".join(" ".join(map(repr, row)) for row in H)


def xml(data: str, dt: str = "d", rows: str = "3", kind: str = "opencv-matrix") -> str:
    inside = f"<rows>{rows}</rows><cols>3</cols><dt>{dt}</dt><data>{data}</data>"
    return f'<?xml version="1.0"?>\n<opencv_storage><H type_id="{kind}">{inside}</H></opencv_storage>'


@pytest.mark.parametrize(
    "text",
    [TEXT, TEXT.replace(" ", "\t") + "\n\n", "\ufeff" + TEXT, "\n" + TEXT, xml(TEXT), xml(TEXT, "f")],
)
def test_a_homography(tmp_path: Path, text: str) -> None:
    path = tmp_path / "H"
    path.write_text(text, encoding="utf-8")
    found = read_homography(path)
    assert found.dtype == np.float64
    assert found.tolist() == H


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_homography_that_opencv_wrote(tmp_path: Path, dtype: Any) -> None:
    cv2 = pytest.importorskip("cv2")
    matrix = np.array(H, dtype)
    storage = cv2.FileStorage(str(tmp_path / "H.xml"), cv2.FILE_STORAGE_WRITE)
    storage.write("size", np.array([[640, 480]]))  # of 1 x 2: not the one
    storage.write("H12", matrix)
    storage.write("H13", np.eye(3))
    storage.release()
    np.testing.assert_array_equal(read_homography(tmp_path / "H.xml").astype(dtype), matrix)


def test_a_homography_that_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "H"

    def with_text(text: str) -> str:
        path.write_text(text, encoding="utf-8")
        return said(read_homography, path)

    lines = "expected 3 lines of 3 finite numbers, found"
    assert with_text("") == f"FILE: {lines} 0"
    assert with_text("1 0 0\n0 1 0\n") == f"FILE: {lines} 2"
    assert with_text("1 0 0\n\n0 1\n0 0 1") == f'FILE:3: {lines} "0 1"'
    assert with_text("1 0 0\n0 nan 0\n0 0 1") == f'FILE:2: {lines} "0 nan 0"'
    assert with_text("1 0 0\n0 1 0\n0 x 1") == f'FILE:3: {lines} "0 x 1"'
    assert with_text("1 0 0\n0 1 0\n0 0 1\n0 0 1") == f'FILE:4: {lines} "0 0 1"'
    singular = "FILE: expected a homography, found a matrix without an inverse"
    assert with_text("1 2 3\n2 4 6\n0 0 1") == singular
    assert with_text(xml("0 " * 9)) == singular
    nine = "FILE: <H>: expected 9 finite numbers, found"
    assert with_text(xml("1 0 0 0 1 0 0 0")) == f"{nine} 8 among 8"
    assert with_text(xml("1 0 0 0 .Nan 0 0 0 1")) == f"{nine} 8 among 9"
    none = "FILE: expected an opencv-matrix of 3 x 3 real numbers, found none"
    assert with_text(xml(TEXT, "i")) == none
    assert with_text(xml(TEXT, rows="4")) == none
    assert with_text(xml(TEXT, kind="other")) == none
    assert with_text("<opencv_storage/>") == none
    storage = "FILE: expected OpenCV's XML storage"
    assert with_text("<svg/>") == f"{storage}, found <svg>"
    assert with_text(xml(TEXT)[:-3]).startswith(f"{storage}: ")
    entity = '<!DOCTYPE x [<!ENTITY a "1 1 1"><!ENTITY b "&a;&a;&a;">]>'
    assert with_text(f"<?xml version='1.0'?>{entity}{xml('&b;')[22:]}") == (
        f"{storage}, found a document type's declarations, or UTF-16"
    )
    path.write_bytes(xml("&b;").replace("?>", f"?>{entity}").encode("utf-16-le"))
    assert said(read_homography, path) == f"{storage}, found a document type's declarations, or UTF-16"
    assert with_text("1 " * 600_000) == "FILE: expected 3 x 3 numbers, found more than 1,048,576 bytes"
    assert said(read_homography, tmp_path / "none").startswith('cannot read the homography "FILE"')


# masks


def test_a_mask(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    mask = np.array([[0, 128, 255], [1, 2, 3]], np.uint8)
    Image.fromarray(mask).save(path)
    assert read_mask(path, (2, 3)).tolist() == mask.tolist()
    Image.fromarray(mask > 100).save(path)
    assert read_mask(path).tolist() == [[0, 255, 255], [0, 0, 0]]
    assert said(read_mask, path, (3, 2)) == (
        "FILE: expected 2 x 3 pixels, the size of its image, found 3 x 2"
    )
    Image.new("RGB", (3, 2)).save(path)
    assert said(read_mask, path) == "FILE: expected a mask of 8 bits and 1 channel, found uint8 of 3"
    png16(path, np.ones((2, 3), np.uint16))
    assert said(read_mask, path) == "FILE: expected a mask of 8 bits and 1 channel, found uint16 of 1"
    pfm(path, np.ones((2, 3)))
    assert said(read_mask, path) == "FILE: expected a mask of 8 bits and 1 channel, found float32 of 1"


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("f.flo", read_flow),
        ("f.png", read_flow),
        ("d.pfm", read_disparity),
        ("t.npy", read_table),
        ("H.xml", read_homography),
    ],
)
def test_damage_is_refused_with_the_name_or_read(
    tmp_path: Path, name: str, read: Callable[[Path], np.ndarray]
) -> None:
    path, rng, refused = tmp_path / name, random.Random(name), []
    {
        "f.flo": lambda: flo(path, made_flow()),
        "f.png": lambda: png16(path, np.full((4, 5, 3), 2**15, np.uint16)),
        "d.pfm": lambda: pfm(path, made_flow()[..., 0]),
        "t.npy": lambda: np.save(path, np.ones((4, 5))),
        "H.xml": lambda: path.write_text(xml(TEXT)),
    }[name]()
    whole = path.read_bytes()
    for i in range(80):
        data, at = bytearray(whole), rng.randrange(len(whole))
        if i % 4 == 0:
            del data[at:]
        else:
            length = rng.choice((1, 1, 4, 8))
            data[at : at + length] = rng.choice((bytes(length), b"\xff" * length, b"9" * length))
        path.write_bytes(data)
        try:
            read(path)
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) >= 20  # all that are cut off
    assert all(str(path) in error for error in refused)


# matches

SIZE2 = (5, 6)


def rows_of(matches: tuple[np.ndarray, np.ndarray]) -> list[list[float]]:
    points1, points2 = matches
    assert points1.dtype == points2.dtype == np.float64
    assert points1.shape == points2.shape == (len(points1), 2)
    return np.concatenate(matches, 1).tolist()


def inside(x: float, y: float) -> bool:
    return 0 <= x <= SIZE2[1] - 1 and 0 <= y <= SIZE2[0] - 1


@pytest.mark.parametrize("masked", [False, True])
def test_matches_of_flow(masked: bool) -> None:
    flow = np.random.default_rng(1).normal(0, 2, (7, 8, 2)).astype(np.float32)
    flow[1, 2] = NAN
    flow[2, 3, 1] = NAN
    flow[:2, :2] = [[[0, 0], [4, 3]], [[5, 3], [5, 3.0001]]]  # at the borders, and past them
    keep = np.random.default_rng(2).random((7, 8)) < 0.6 if masked else None
    wanted = []
    for y, x in np.ndindex(7, 8):
        u, v = map(float, flow[y, x])
        if inside(x + u, y + v) and (keep is None or keep[y, x]):
            wanted.append([x, y, x + u, y + v])
    found = rows_of(of_flow(flow, SIZE2, keep))
    assert found == wanted
    assert 5 < len(found) < 40
    if not masked:
        for row in ([0, 0, 0, 0], [1, 0, 5, 3], [0, 1, 5, 4]):
            assert row in found


@pytest.mark.parametrize("masked", [False, True])
def test_matches_of_disparity(masked: bool) -> None:
    disparity = np.random.default_rng(1).normal(1, 3, (7, 8)).astype(np.float32)
    disparity[1, 2], disparity[0, 3], disparity[0, 4] = NAN, np.inf, -1.5
    disparity[0, 7], disparity[1, 7], disparity[1, 6] = 2, 7, 6.0001
    keep = np.random.default_rng(2).random((7, 8)) < 0.6 if masked else None
    wanted = []
    for y, x in np.ndindex(7, 8):
        d = float(disparity[y, x])
        if inside(x - d, y) and (keep is None or keep[y, x]):
            wanted.append([x, y, x - d, y])
    found = rows_of(of_disparity(disparity, SIZE2, keep))
    assert found == wanted
    assert 5 < len(found) < 40
    if not masked:
        assert [4, 0, 5.5, 0] not in found
        assert [7, 0, 5, 0] in found
        assert [7, 1, 0, 1] in found


HOMOGRAPHIES = {
    "usual": [[0.6, 0.1, 0.5], [-0.05, 0.7, 0.3], [0.01, -0.02, 1]],
    "of the other sign": [[-0.6, -0.1, -0.5], [0.05, -0.7, -0.3], [-0.01, 0.02, -1]],
    "with a horizon": [[0.6, 0.1, 0.5], [-0.05, 0.7, 0.3], [-0.25, 0.0, 1.25]],  # at x = 5
    "that mirrors": [[-1.0, 0, 5], [0, 1, 0], [0, 0, 1]],
}


@pytest.mark.parametrize("name", HOMOGRAPHIES)
@pytest.mark.parametrize("masked", [False, True])
def test_matches_of_a_homography(name: str, masked: bool) -> None:
    homography = np.array(HOMOGRAPHIES[name])
    keep = np.random.default_rng(2).random((7, 8)) < 0.6 if masked else None
    centre = homography[2] @ [3.5, 3, 1]
    wanted = []
    for y, x in np.ndindex(7, 8):
        a, b, w = homography @ [x, y, 1]
        if keep is not None and not keep[y, x]:
            continue
        if w * centre > 0 and inside(a / w, b / w):
            wanted.append([x, y, a / w, b / w])
    found = rows_of(of_homography(homography, (7, 8), SIZE2, keep))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)
    assert len(found) > 5


@pytest.mark.parametrize("band", [1, 8, 19, 55, 56, 57])
@pytest.mark.parametrize("masked", [False, True])
def test_bands_of_a_homography_change_nothing(
    band: int, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = np.random.default_rng(2).random((7, 8)) < 0.6 if masked else None
    for rows in HOMOGRAPHIES.values():
        monkeypatch.setattr(truth, "BAND", 2**20)
        whole = of_homography(np.array(rows), (7, 8), SIZE2, keep)
        monkeypatch.setattr(truth, "BAND", band)
        parts = of_homography(np.array(rows), (7, 8), SIZE2, keep)
        np.testing.assert_array_equal(rows_of(parts), rows_of(whole))


def test_bands_of_a_homography_save_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truth, "BAND", 2**12)
    tracemalloc.start()
    points1, points2 = of_homography(np.eye(3), (400, 500), (400, 500))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(points1) == 200_000
    assert peak < 2.2 * (points1.nbytes + points2.nbytes)


def test_what_is_behind_is_no_match() -> None:
    homography = np.array([[1.0, 0, -8], [0, 1, -4], [1, 0, -5]])  # the horizon at x = 5
    points1, _ = of_homography(homography, (9, 14), (9, 14))  # its centre at x = 6.5
    assert len(points1)
    assert points1[:, 0].min() > 5
    x, y = 2, 1  # seen from behind, it would fall inside
    a, b, w = homography @ [x, y, 1]
    assert w < 0
    assert 0 <= a / w <= 13
    assert 0 <= b / w <= 8


def test_nothing_known_gives_no_match() -> None:
    for matches in (
        of_flow(np.full((3, 4, 2), NAN, np.float32), SIZE2),
        of_disparity(np.full((3, 4), NAN, np.float32), SIZE2),
        of_homography(np.eye(3), (3, 4), SIZE2, np.zeros((3, 4), bool)),
        of_homography(np.array([[1.0, 0, 99], [0, 1, 0], [0, 0, 1]]), (3, 4), SIZE2),
    ):
        assert [points.shape for points in matches] == [(0, 2), (0, 2)]
    with pytest.raises(ValueError, match=r"^d.pfm: .*, found none \(masks, or a truth of other images"):
        truth.dense_pair(Path("a"), Path("b"), matches, "d.pfm", "", "")


# visible in both


def hidden(d: list[float], x: int) -> bool:
    """Whether another pixel of the row is nearer by more than 1, and lands within 1 pixel."""
    return any(
        e > d[x] + 1 and abs((x - d[x]) - (i - e)) <= 1 for i, e in enumerate(d) if np.isfinite(e)
    )


@pytest.mark.parametrize("width", [1, 2, 3, 7, 33, 64])
def test_visible(width: int) -> None:
    rng = np.random.default_rng(width)
    disparity = rng.uniform(0, 8, (12, width)).astype(np.float32)
    disparity[4:] = np.rint(2 * disparity[4:]) / 2  # ties, and distances of exactly 1
    disparity[rng.random(disparity.shape) < 0.2] = NAN
    disparity[0] = NAN
    disparity[1, 0] = np.inf
    found = visible(disparity)
    for y, row in enumerate(disparity.tolist()):
        for x, d in enumerate(row):
            wanted = bool(np.isfinite(d)) and 0 <= x - d <= width - 1 and not hidden(row, x)
            assert found[y, x] == wanted, (y, x)
    assert width < 7 or 0.05 < found.mean() < 0.9


@pytest.mark.parametrize("tolerance", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("width2", [9, 16, 20])
def test_consistent(tolerance: float, width2: int) -> None:
    rng = np.random.default_rng(width2)
    one = np.rint(2 * rng.uniform(-1, 6, (10, 16))).astype(np.float32) / 2
    two = np.rint(2 * rng.uniform(-1, 6, (10, width2))).astype(np.float32) / 2
    for disparity in (one, two):
        disparity[rng.random(disparity.shape) < 0.15] = NAN
    found = consistent(one, two, tolerance)
    for y, x in np.ndindex(10, 16):
        d = float(one[y, x])
        wanted = False
        if np.isfinite(d):
            to = int(np.floor(x - d + 0.5))
            wanted = 0 <= to < width2 and abs(float(two[y, to]) - d) <= tolerance
        assert found[y, x] == wanted, (y, x)
    assert 0 < found.mean() < 0.9


def test_an_image_by_its_stem(tmp_path: Path) -> None:
    (tmp_path / "a.ppm").touch()
    (tmp_path / "b.png").mkdir()
    assert truth.image_by_stem(tmp_path, "a") == tmp_path / "a.ppm"
    for stem in ("b", "c" * 300):
        with pytest.raises(ValueError) as caught:
            truth.image_by_stem(tmp_path, stem)
        assert str(caught.value) == f'no image "{tmp_path / stem}.*": expected such as {stem}.png'
