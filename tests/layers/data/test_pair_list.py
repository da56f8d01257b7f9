"""A list of pairs and their truth: every kind of source, what masks leave out, and damage."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from cortado.layers._data import truth
from cortado.layers._data.keypoint_pairs import KeypointPair, open_pairs
from cortado.layers.data.pair_list import PairList
from likeness import SHIFTS, likeness
from PIL import Image
from shared import SHARED

REAL = SHARED / "data" if SHARED else Path("missing")
needs_real = pytest.mark.skipif(
    not (REAL / "stereo").is_dir(), reason="Middlebury is not in the shared folder"
)

HEIGHT, WIDTH = 4, 8
HEIGHT2, WIDTH2 = 5, 7
FLOW = np.random.default_rng(0).normal(0, 1, (HEIGHT, WIDTH, 2)).astype(np.float32)
FLOW = np.rint(FLOW * 64) / np.float32(64)  # which KITTI's PNG holds exactly
DISPARITY = np.rint(np.random.default_rng(1).uniform(1, 4, (HEIGHT, WIDTH)))
DISPARITY2 = np.rint(np.random.default_rng(2).uniform(1, 4, (HEIGHT2, WIDTH2)))[:HEIGHT]
KNOWN = np.random.default_rng(3).random((HEIGHT, WIDTH)) < 0.8
MASK = np.random.default_rng(4).choice(np.array([0, 128, 255], np.uint8), (HEIGHT, WIDTH))
MASK2 = np.random.default_rng(5).choice(np.array([0, 0, 1, 255], np.uint8), (HEIGHT, WIDTH))
HOMOGRAPHY = "0.9 0.05 0.5\n-0.02 1.1 0\n0.001 0 1\n"
TABLE = "x1,y1,x2,y2,s\n0,0,1,1,1\n7,3,6,4,0\n2.5,1.5,3.25,4,1\n1,1,1,1,-1\n8,0,0,0,1\n0,0,0,4.5,0\n"


def png16(path: Path, values: np.ndarray) -> None:
    cv2 = pytest.importorskip("cv2")
    values = np.rint(values).astype(np.uint16)
    assert cv2.imwrite(str(path), values[..., ::-1] if values.ndim == 3 else values)


def pfm(path: Path, values: np.ndarray) -> None:
    head = f"Pf\n{values.shape[1]} {values.shape[0]}\n-1\n".encode()
    path.write_bytes(head + values[::-1].astype("<f4").tobytes())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images, masks, and every kind of truth."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / "a.png")
    Image.new("RGB", (WIDTH2, HEIGHT2)).save(tmp_path / "images" / "b.ppm")
    Image.new("RGB", (WIDTH2, HEIGHT)).save(tmp_path / "images" / "c.png")
    Image.fromarray(MASK).save(tmp_path / "mask.png")
    Image.fromarray(MASK2).save(tmp_path / "mask2.png")
    stored = np.where(KNOWN[..., None], FLOW, np.float32(1e10))
    head = struct.pack("<f2i", 202021.25, WIDTH, HEIGHT)
    (tmp_path / "t.flo").write_bytes(head + stored.astype("<f4").tobytes())
    png16(tmp_path / "flow.png", np.dstack([FLOW * 64 + 2**15, KNOWN]))
    pfm(tmp_path / "t.pfm", np.where(KNOWN, DISPARITY, np.inf))
    pfm(tmp_path / "right.pfm", DISPARITY2)
    png16(tmp_path / "disparity.png", np.where(KNOWN, DISPARITY * 256, 0))
    Image.fromarray(np.where(KNOWN, DISPARITY * 4, 0).astype(np.uint8)).save(tmp_path / "t.pgm")
    Image.fromarray((DISPARITY2 * 4).astype(np.uint8)).save(tmp_path / "right.pgm")
    (tmp_path / "H").write_text(HOMOGRAPHY)
    (tmp_path / "H.txt").write_text(HOMOGRAPHY)
    inside = f"<rows>3</rows><cols>3</cols><dt>d</dt><data>{HOMOGRAPHY}</data>"
    text = f"<opencv_storage><H type_id='opencv-matrix'>{inside}</H></opencv_storage>"
    (tmp_path / "H.xml").write_text(text)
    (tmp_path / "t.csv").write_text(TABLE)
    np.save(tmp_path / "t.npy", truth.read_table(tmp_path / "t.csv"))
    return tmp_path


def opened(folder: Path, *lines: str) -> PairList:
    (folder / "some.csv").write_text("\n".join(lines) + "\n")
    return PairList(folder / "some.csv")


def only(folder: Path, line: str) -> KeypointPair:
    (pair,) = opened(folder, line)
    return pair


def matches(pair: KeypointPair) -> list[list[float]]:
    assert pair.length == 1
    assert pair.motion is None
    return np.c_[pair.points1, pair.points2].tolist()


AB, AC = "images/a.png,images/b.ppm", "images/a.png,images/c.png"


def flow_matches(keep: np.ndarray) -> list[list[float]]:
    found = []
    for y, x in np.ndindex(HEIGHT, WIDTH):
        x2, y2 = x + float(FLOW[y, x, 0]), y + float(FLOW[y, x, 1])
        if keep[y, x] and 0 <= x2 <= WIDTH2 - 1 and 0 <= y2 <= HEIGHT2 - 1:
            found.append([x, y, x2, y2])
    assert 2 < len(found) < HEIGHT * WIDTH - 5
    return found


def disparity_matches(keep: np.ndarray) -> list[list[float]]:
    found = []
    for y, x in np.ndindex(HEIGHT, WIDTH):
        if keep[y, x] and 0 <= x - DISPARITY[y, x] <= WIDTH2 - 1:
            found.append([x, y, x - DISPARITY[y, x], y])
    assert 2 < len(found) < HEIGHT * WIDTH - 5
    return found


@pytest.mark.parametrize("source", ["t.flo", "flow.png", "flow.png,kind=flow"])
def test_flow(folder: Path, source: str) -> None:
    assert matches(only(folder, f"{AB},{source}")) == flow_matches(KNOWN)
    seen = KNOWN & (MASK == 255)
    assert matches(only(folder, f"{AB},{source},visible=mask.png")) == flow_matches(seen)
    seen = KNOWN & (MASK == 0) & (MASK2 == 0)
    pair = only(folder, f"{AB},{source},hidden=mask.png,hidden=mask2.png")
    assert matches(pair) == flow_matches(seen)
    seen = KNOWN & (MASK == 255) & (MASK2 == 0)
    pair = only(folder, f"{AB},{source},hidden=mask2.png,visible=mask.png")
    assert matches(pair) == flow_matches(seen)
    assert pair.signs is None


@pytest.mark.parametrize(
    ("source", "right"),
    [
        ("t.pfm", "right.pfm"),
        ("t.pgm,scale=4", "right.pgm"),
        ("disparity.png,scale=256", ""),
        ("disparity.png,scale=256,kind=disparity", ""),
    ],
)
def test_disparity(folder: Path, source: str, right: str) -> None:
    known = np.where(KNOWN, DISPARITY, np.nan).astype(np.float32)
    seen = truth.visible(known)
    assert seen.sum() < KNOWN.sum()
    assert matches(only(folder, f"{AC},{source}")) == disparity_matches(seen)
    pair = only(folder, f"{AC},{source},hidden=mask2.png")
    assert matches(pair) == disparity_matches(KNOWN & (MASK2 == 0))
    if right:
        agreed = truth.consistent(known, DISPARITY2.astype(np.float32))
        pair = only(folder, f"{AC},{source},disparity2={right}")
        assert matches(pair) == disparity_matches(agreed)
        pair = only(folder, f"{AC},{source},disparity2={right},hidden=mask2.png")
        assert matches(pair) == disparity_matches(agreed & (MASK2 == 0))


@pytest.mark.parametrize("source", ["H.txt", "H.xml", "H,kind=homography"])
def test_a_homography(folder: Path, source: str) -> None:
    homography = np.array(HOMOGRAPHY.split(), float).reshape(3, 3)

    def wanted(keep: np.ndarray) -> list[list[float]]:
        found = []
        for y, x in np.ndindex(HEIGHT, WIDTH):
            a, b, w = homography @ [x, y, 1]
            if keep[y, x] and 0 <= a / w <= WIDTH2 - 1 and 0 <= b / w <= HEIGHT2 - 1:
                found.append([x, y, a / w, b / w])
        return found

    everywhere = np.ones((HEIGHT, WIDTH), bool)
    np.testing.assert_allclose(matches(only(folder, f"{AB},{source}")), wanted(everywhere))
    pair = only(folder, f"{AB},{source},visible=mask.png")
    np.testing.assert_allclose(matches(pair), wanted(MASK == 255))


@pytest.mark.parametrize("source", ["t.csv", "t.npy", "t.csv,kind=table"])
def test_a_table(folder: Path, source: str) -> None:
    pair = only(folder, f"{AB},{source}")
    assert matches(pair) == [[0, 0, 1, 1], [7, 3, 6, 4], [2.5, 1.5, 3.25, 4]]
    assert pair.signs.tolist() == [1, 0, 1]
    assert pair.signs.dtype == np.float64
    (folder / "t.csv").write_text("0,0,1,1\n")
    np.save(folder / "t.npy", [[0, 0, 1, 1, 1.0]])
    assert only(folder, f"{AB},{source}").signs is None


def test_names_and_paths(folder: Path) -> None:
    pairs = opened(
        folder,
        "image1,image2,truth",
        "",
        "# a comment, with commas, and more",
        f" {AB.replace(',', ' , ')} , t.flo ,",
        f"{AB},t.flo,name=one,category=street",
        f"{folder}/images/a.png,{folder}/images/b.ppm,{folder}/t.flo,visible={folder}/mask.png",
        " # another",
    )
    assert [pair.name for pair in pairs] == ["images/a-b", "one", f"{folder}/images/a-b"]
    assert [pair.category for pair in pairs] == ["some", "street", "some"]
    assert {pair.image1 for pair in pairs} == {folder / "images" / "a.png"}
    assert matches(pairs[1]) == matches(pairs[0]) == flow_matches(KNOWN)
    assert matches(pairs[2]) == flow_matches(KNOWN & (MASK == 255))
    opened_by_name = open_pairs(f"list:{folder}/some.csv")
    assert opened_by_name.pixels
    assert len(opened_by_name) == 3


def test_the_head(folder: Path) -> None:
    line, head = f"{AB},t.flo", "image1,image2,truth"
    for lines in (
        ("\ufeff" + line, line),
        ("images/a.png , images/b.ppm , t.flo", line),
        ("# two pairs", head, line, line),
        ("  ", " , ,", f" {head} ", "   ", line, line),
        (f"{head},category", "#", line, line),
    ):
        pairs = opened(folder, *lines)
        assert [matches(pair) for pair in pairs] == [flow_matches(KNOWN)] * 2
    columns = "expected the columns image1,image2,truth"
    assert said(folder, "# no head", head, head, line).startswith('DIR/some.csv:3: no image "')
    assert said(folder, ",images/b.ppm,t.flo") == (
        f'DIR/some.csv:1: {columns}, found ",images/b.ppm,t.flo"'
    )
    assert said(folder, "images/a,images/b.ppm,t.flo") == ('DIR/some.csv:1: no image "DIR/images/a"')


def test_a_name_that_is_too_long(folder: Path) -> None:
    name = "a" * 300 + ".png"
    assert said(folder, f"{AB},t.flo", f"{name},images/b.ppm,t.flo") == (
        f'DIR/some.csv:2: no image "DIR/{name}"'
    )


def said(folder: Path, *lines: str) -> str:
    with pytest.raises(ValueError) as caught:
        list(opened(folder, *lines))
    return str(caught.value).replace(str(folder), "DIR")


def test_lines_that_are_wrong(folder: Path) -> None:
    place = "DIR/some.csv:3:"
    first = (f"{AB},t.flo", "#")
    options = "kind=, scale=, disparity2=, visible=, hidden=, name=, category="
    columns = "expected the columns image1,image2,truth"
    for line, wanted in {
        AB: f'{columns}, found "{AB}"',
        f"{AB},": f'{columns}, found "{AB},"',
        ",b,c": f'{columns}, found ",b,c"',
        f"{AB},t.flo,colour=red": f'expected one of {options}, found "colour=red"',
        f"{AB},t.flo,visible": f'expected one of {options}, found "visible"',
        f"{AB},t.flo,name=": f'expected one of {options}, found "name="',
        f"{AB},t.flo,name=a,name=b": "name is given twice",
        f"{AB},t.flo,kind=warp": ('kind: expected table, flow, disparity, homography, found "warp"'),
        f"{AB},t.csv,hidden=mask.png": "hidden is not for a truth of the kind table",
        f"{AB},t.flo,scale=4": "scale is not for a truth of the kind flow",
        f"{AB},H.txt,disparity2=t.pfm": "disparity2 is not for a truth of the kind homography",
        f"{AB},t.npy,scale=2": "scale is not for a truth of the kind table",
    }.items():
        assert said(folder, *first, line) == f"{place} {wanted}"
    none = "DIR/some.csv: expected pairs of images, found none"
    assert said(folder, "") == said(folder, "# only", "#", "") == said(folder, "head,b,c") == none
    (folder / "some.csv").unlink()
    with pytest.raises(ValueError, match='^cannot read the list of pairs ".*some.csv"'):
        PairList(folder / "some.csv")
    with pytest.raises(ValueError, match='^no split "val": expected test$'):
        PairList(folder / "some.csv", "val")


def test_files_that_are_wrong(folder: Path) -> None:
    Image.fromarray(MASK[:, :5]).save(folder / "small.png")
    (folder / "bad.csv").write_text("x1,y1,x2,y2\n1,2,3,4\n1,2,3,x\n")
    (folder / "tabs.csv").write_text("x1\ty1\tx2\ty2\n1\t2\t3\t4\n")
    (folder / "far.csv").write_text("1,2,30,4\n")
    size = "expected 8 x 4 pixels, the size of its image, found 5 x 4"
    scale = "expected the scale that its numbers are to be divided by"
    flow = "expected flow, 16 bits of 3 channels, found 1 channel"
    for line, wanted in {
        f"{AB},none.flo": 'cannot read the flow "DIR/none.flo": No such file or directory',
        "images/a.png,images/no.png,t.flo": 'no image "DIR/images/no.png"',
        "t.csv,images/b.ppm,t.flo": "cannot read DIR/t.csv: it is no PNG, JPEG, TIFF, WebP, GIF, BMP "
        "or PNM image",
        f"{AB},t.flo,visible=small.png": f"DIR/small.png: {size}",
        f"{AB},t.flo,hidden=none.png": "cannot read DIR/none.png: No such file or directory",
        f"{AB},t.pgm": f"DIR/t.pgm: {scale}",
        f"{AB},disparity.png,kind=disparity": f"DIR/disparity.png: {scale}",
        f"{AB},disparity.png": f"DIR/disparity.png: {flow} (a disparity has a scale=)",
        f"{AB},disparity.png,kind=flow": f"DIR/disparity.png: {flow}",
        f"{AB},t.pgm,scale=0": 'scale: expected a number above 0, got "0"',
        f"{AB},t.pfm,scale=4": "DIR/t.pfm: expected no scale, its numbers are pixels",
        f"{AB},bad.csv": 'DIR/bad.csv:3: column 4: expected a finite number, found "x"',
        f"{AB},tabs.csv": "DIR/tabs.csv:1: expected 4 columns of x1,y1,x2,y2[,s], found 1",
        f"{AB},far.csv": (
            "DIR/far.csv: expected matches inside both images, "
            "found none (masks, or a truth of other images?)"
        ),
        f"{AB},t.csv,kind=homography": (
            'DIR/t.csv:1: expected 3 lines of 3 finite numbers, found "x1,y1,x2,y2,s"'
        ),
        f"{AC},t.pfm,disparity2=t.pfm": (
            "DIR/t.pfm: expected 7 x 4 pixels, the size of its image, found 8 x 4"
        ),
    }.items():
        found = said(folder, "image1,image2,truth", f"{AB},t.flo", line)
        assert found == f"DIR/some.csv:3: {wanted}"


def test_a_pair_is_read_when_it_is_asked_for(folder: Path) -> None:
    pairs = opened(folder, f"{AB},none.flo", f"{AB},t.flo")
    assert len(pairs) == 2
    assert matches(pairs[1]) == flow_matches(KNOWN)
    with pytest.raises(ValueError, match="none.flo"):
        pairs[0]


def test_matches_are_held_by_none_but_the_pair(tmp_path: Path) -> None:
    Image.new("L", (400, 250)).save(tmp_path / "a.png")
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(400), np.arange(250)))
    np.save(tmp_path / "t.npy", np.stack([x, y, x, y], 1).astype(np.float64))
    pairs = opened(tmp_path, *["a.png,a.png,t.npy"] * 3)
    peaks = []
    for number in range(3):
        tracemalloc.start()
        assert len(pairs[number].points1) == 100_000
        left, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        peaks.append(peak)
        assert left < 100_000
    assert max(peaks) < 6 * 100_000 * 5 * 8


@needs_real
def test_real_files(tmp_path: Path) -> None:
    scene, graf = REAL / "stereo" / "Piano", REAL / "homography" / "graf"
    left, right = scene / "im0.png", scene / "im1.png"
    stereo, masked, plane = opened(
        tmp_path,
        f"{left},{right},{scene}/disp0GT.pfm",
        f"{left},{right},{scene}/disp0GT.pfm,visible={scene}/mask0nocc.png",
        f"{graf}/img1.png,{graf}/img2.png,{graf}/H1to2p.xml",
    )
    assert len(masked.points1) == 293776
    assert abs(len(stereo.points1) - len(masked.points1)) < 0.03 * len(masked.points1)
    for pair in (stereo, masked, plane):
        found = likeness(pair)
        assert found > 0.85
        assert all(likeness(pair, *shift) < found - 0.005 for shift in SHIFTS)
