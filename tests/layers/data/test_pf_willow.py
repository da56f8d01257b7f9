"""PF-WILLOW: the real benchmark where it is there, the authors' list, and what is missing or broken."""

from __future__ import annotations

import shutil
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from cortado.layers._data.images import image_size
from cortado.layers._data.keypoint_pairs import digest, open_pairs
from cortado.layers._geometry.keypoints import means, pair_pck
from cortado.layers.data.pf_willow import PFWillow
from PIL import Image
from shared import SHARED

REAL = SHARED / "data" / "pf_willow" if SHARED else Path("missing")
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="PF-WILLOW is not in the shared folder")

GROUPS = {"duck(S)": ("060_0000", "060_0002"), "car(G)": ("Cars_006a", "Cars_007a", "Cars_008b")}


def made_points(group: str, name: str) -> np.ndarray:
    seed = sum(map(ord, group + name))
    return np.random.default_rng(seed).uniform(1, 40, (2, 10))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two groups of small images."""
    for group, names in GROUPS.items():
        (tmp_path / group).mkdir()
        for i, name in enumerate(names):
            Image.new("RGB", (40, 30), (i, 0, 0)).save(tmp_path / group / f"{name}.png")
            points = {"pts_coord": made_points(group, name)}
            scipy.io.savemat(tmp_path / group / f"{name}.mat", points)
    return tmp_path


def listed(folder: Path, head: str = "imageA,imageB,XA1,and so on") -> Path:
    """The authors' list, of three pairs in an order of its own."""
    pairs = [("car(G)", 2, 0), ("duck(S)", 0, 1), ("car(G)", 0, 1)]
    lines = [head] if head else []
    for group, i, j in pairs:
        names = [GROUPS[group][k] for k in (i, j)]
        points = np.concatenate([made_points(group, name).ravel() for name in names])
        lines.append(
            ",".join([*(f"PF-dataset/{group}/{n}.png" for n in names), *map(repr, points.tolist())])
        )
    (folder / "test_pairs.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_all_ordered_pairs_of_each_group(folder: Path) -> None:
    pairs = PFWillow(folder)
    found = [(p.category, p.image1.stem, p.image2.stem) for p in pairs]
    assert found == [(g, *ab) for g in sorted(GROUPS) for ab in permutations(sorted(GROUPS[g]), 2)]
    assert len(pairs) == len(found) == 8
    assert pairs[-1].name == "duck(S)/060_0002-060_0000"
    for pair in pairs:
        np.testing.assert_array_equal(pair.points1, made_points(pair.category, pair.image1.stem).T)
        np.testing.assert_array_equal(pair.points2, made_points(pair.category, pair.image2.stem).T)
        assert pair.points1.dtype == np.float64
        x, y = made_points(pair.category, pair.image2.stem)
        assert pair.length == max(x.max() - x.min(), y.max() - y.min())
    with pytest.raises(IndexError):
        pairs[8]


@pytest.mark.parametrize("head", ["imageA,imageB,XA1,and so on", "0,1,2,3", ""])
def test_the_authors_list_decides(folder: Path, head: str) -> None:
    pairs = PFWillow(listed(folder, head))
    names = ["car(G)/Cars_008b-Cars_006a", "duck(S)/060_0000-060_0002", "car(G)/Cars_006a-Cars_007a"]
    assert [pair.name for pair in pairs] == names
    assert pairs[1].category == "duck(S)"
    by_name = {pair.name: pair for pair in pairs}
    (folder / "test_pairs.csv").unlink()
    for pair in PFWillow(folder):
        if pair.name in by_name:
            other = by_name[pair.name]
            np.testing.assert_array_equal(other.points1, pair.points1)
            np.testing.assert_array_equal(other.points2, pair.points2)
            assert (other.image1, other.image2) == (pair.image1, pair.image2)
            assert other.length == pair.length


def test_identical_images(folder: Path) -> None:
    one, two = (folder / "car(G)" / f"{name}.png" for name in GROUPS["car(G)"][:2])
    assert not PFWillow(folder)[0].identical
    shutil.copy(one, two)
    pair = PFWillow(folder)[0]
    assert (pair.image1, pair.image2) == (one, two)
    assert pair.identical
    Image.new("RGB", (40, 30), (9, 9, 9)).save(two)
    assert not pair.identical


def said(folder: Path) -> str:
    """What is raised on the way to the last pair."""
    with pytest.raises(ValueError) as caught:
        list(PFWillow(folder))
    return str(caught.value).replace(str(folder), "DIR")


def test_what_is_missing(folder: Path) -> None:
    with pytest.raises(ValueError, match=r'^no folder ".*/none": expected groups such as "car\(G\)"'):
        PFWillow(folder / "none")
    with pytest.raises(ValueError, match=r'^no split "val": expected test$'):
        PFWillow(folder, "val")
    (folder / "car(G)" / "Cars_006a.mat").rename(folder / "kept.mat")
    expected = "expected a .png and a .mat of each name"
    assert said(folder) == f'no file "DIR/car(G)/Cars_006a.mat": {expected}'
    (folder / "kept.mat").rename(folder / "car(G)" / "Cars_006a.mat")
    (folder / "duck(S)" / "060_0002.png").unlink()
    assert said(folder) == f'no file "DIR/duck(S)/060_0002.png": {expected}'
    for group in GROUPS:
        shutil.rmtree(folder / group)
    assert said(folder).startswith('DIR: expected groups such as "car(G)"')


def test_key_points_that_are_none(folder: Path) -> None:
    path = folder / "car(G)" / "Cars_006a.mat"
    place = "DIR/car(G)/Cars_006a.mat"
    scipy.io.savemat(path, {"pts_coord": np.ones((10, 2))})
    assert said(folder) == f"{place}: pts_coord: expected numbers [2, 10], found [10, 2]"
    scipy.io.savemat(path, {"pts_coord": np.full((2, 10), np.nan)})
    assert said(folder) == f"{place}: pts_coord: expected finite numbers, found nan"
    scipy.io.savemat(path, {"pts_coord": ["ab", "cd"]})
    assert said(folder) == f"{place}: pts_coord: expected numbers [2, 10], found [2] of <U2"
    scipy.io.savemat(path, {"points": np.ones((2, 10))})
    assert said(folder) == f"{place}: expected pts_coord, found points"
    scipy.io.savemat(path, {"pts_coord": np.ones((2, 10))})
    box = "expected a box larger than a point, found [1.0, 1.0] to [1.0, 1.0]"
    assert said(folder) == f"{place}: key points: {box}"
    path.write_bytes(b"not a MAT file")
    assert said(folder).startswith(f"{place}: not a MAT file")


def test_a_list_that_is_damaged(folder: Path) -> None:
    path = folder / "test_pairs.csv"
    whole = listed(folder).joinpath("test_pairs.csv").read_text().splitlines()
    cells = whole[2].split(",")

    def with_line(line: str) -> str:
        path.write_text("\n".join([*whole[:2], line, *whole[3:]]))
        return said(folder)

    for number in ("1_0", "nan", "inf", "x", "", "１"):
        wrong = ",".join([*cells[:6], number, *cells[7:]])
        assert with_line(wrong) == (
            f'DIR/test_pairs.csv:3: column 7: expected a number, found "{number}"'
        )
    assert with_line(",".join(cells[:-1])) == (
        "DIR/test_pairs.csv:3: expected the columns image A, image B, 10 each of x A, y A, x B, y B, "
        "found 41"
    )
    wrong = ",".join(["PF-dataset/car(G)/none.png", *cells[1:]])
    assert with_line(wrong) == 'DIR/test_pairs.csv:3: no image "DIR/car(G)/none.png"'
    path.write_text(whole[0])
    assert said(folder) == "DIR/test_pairs.csv: expected pairs of images, found none"
    path.write_bytes(b"\xff\xfe")
    assert said(folder).startswith('cannot read the list of pairs "DIR/test_pairs.csv"')


@needs_real
def test_the_real_benchmark() -> None:
    pairs = open_pairs(f"pf-willow:{REAL}")
    assert len(pairs) == 900
    first = pairs[0]
    assert first.name == "car(G)/Cars_006a-Cars_007a"
    np.testing.assert_allclose(first.points1[:2], [[47.935, 98.159], [151.864, 121.801]], atol=1e-3)
    assert len({digest(path) for path in REAL.glob("*/*.png")}) == 70
    assert not any(pair.identical for pair in pairs)  # groups share images, none has one twice


@needs_real
def test_the_identity_scaled_to_the_targets_size_gives_the_published_row() -> None:
    pairs = PFWillow(REAL)
    sizes = {path: np.array(image_size(path)[::-1]) for path in REAL.glob("*/*.png")}
    figures, categories = [], []
    for pair in pairs:
        found = pair.points1 * sizes[pair.image2] / sizes[pair.image1]
        figures.append(pair_pck(found, pair.points2, pair.length, (0.05, 0.1, 0.15)))
        categories.append(pair.category)
    found = means(np.array(figures), categories)
    assert found.pairs == 900
    assert np.round(100 * found.mean, 2).tolist() == [12.20, 27.04, 41.69]
    assert len(found.classes) == 10
    np.testing.assert_allclose(np.mean(list(found.classes.values()), 0), found.mean)  # 90 pairs each
