"""PASCAL-Berkeley on small files of its format: points, units, lists, what is missing or damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
from cortado.layers._data.keypoint_pairs import KeypointPair, open_pairs
from cortado.layers.data.pascal_berkeley import PascalBerkeley
from PIL import Image

POINTS = {
    "2007_000032_1": [
        ("Nose", 1, 10.25, 11),
        ("Tail", 0, 1, 2),
        ("L_Wing", 1, 20, 5.5),
        ("Top", 1, 3, 4),
    ],
    "2007_000033_2": [
        ("Top", 1, 30, 31),
        ("Nose", 1, 32.5, 33),
        ("Tail", 1, 8, 9),
        ("L_Wing", 0, 1, 1),
    ],
    "2007_000033_3": [("Tail", 1, 7.75, 6)],
}
BOUNDS = {"2007_000032_1": (18.0, 9.5), "2007_000033_2": (12.0, 25.0), "2007_000033_3": (5.0, 6.0)}
PAIRS = (
    "aeroplane/2007_000032_1 aeroplane/2007_000033_2\n"
    "\n # a comment\n#a/b a/c\n"
    "aeroplane/2007_000032_1, aeroplane/2007_000033_3\n"
    "aeroplane/2007_000033_3.xml,aeroplane/2007_000033_2.xml\n"
)


def annotation(name: str) -> str:
    width, height = BOUNDS[name]
    points = "\n".join(
        f'    <keypoint name="{key}" visible="{seen}" x="{x:.2f}" y="{y:.2f}" z="0.00"/>'
        for key, seen, x, y in POINTS[name]
    )
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotation>\n'
        f"  <image>{name[:-2]}</image>\n  <voc_id>{name[-1]}</voc_id>\n"
        "  <category>aeroplane</category>\n"
        f'  <visible_bounds height="{height:.2f}" width="{width:.2f}" xmin="1.00" ymin="2.00"/>\n'
        f"  <keypoints>\n{points}\n  </keypoints>\n</annotation>\n"
    )


def make(folder: Path, annotations: str = "annotations", images: str = "JPEGImages") -> Path:
    for name, size in (("2007_000032", (50, 40)), ("2007_000033", (44, 60))):
        (folder / images).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(folder / images / f"{name}.jpg")
    for name in POINTS:
        path = folder / annotations / "aeroplane" / f"{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(annotation(name))
    (folder / "pairs.txt").write_text(PAIRS)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path)


def test_points_and_the_unit(folder: Path) -> None:
    first, second = pairs = open_pairs(f"pascal-berkeley:{folder}", pairs="pairs.txt")
    assert isinstance(first, KeypointPair)
    assert isinstance(second, KeypointPair)
    assert first.points1.tolist() == [[10.25, 11], [3, 4]]  # in the first's order, visible in both
    assert first.points2.tolist() == [[32.5, 33], [30, 31]]
    assert (second.points1.tolist(), second.points2.tolist()) == ([[7.75, 6]], [[8, 9]])
    assert (first.length, second.length, first.signs) == (60, 60, None)
    assert [pair.name[-29:] for pair in pairs] == [
        "e/2007_000032_1-2007_000033_2",
        "e/2007_000033_3-2007_000033_2",
    ]
    assert {pair.category for pair in pairs} == {"aeroplane"}
    assert first.image1 == folder / "JPEGImages" / "2007_000032.jpg"
    assert second.image1 == first.image2 == folder / "JPEGImages" / "2007_000033.jpg"
    assert isinstance(pairs, PascalBerkeley)
    assert (pairs.left_out, pairs.pixels) == (1, False)


def test_the_unit_of_the_object(folder: Path) -> None:
    pairs = PascalBerkeley(folder, pairs=folder / "pairs.txt", length="bbox")
    assert [pair.length for pair in pairs] == [25, 25]


@pytest.mark.parametrize("annotations", ["annotations", "Annotations", ""])
@pytest.mark.parametrize("within", ["", "VOC2011", "VOCdevkit/VOC2011", "TrainVal/VOCdevkit/VOC2011"])
def test_where_folders_are(tmp_path: Path, annotations: str, within: str) -> None:
    make(tmp_path, annotations, str(Path(within) / "JPEGImages"))
    first = PascalBerkeley(tmp_path, pairs="pairs.txt")[0]
    assert first.image1 == tmp_path / within / "JPEGImages" / "2007_000032.jpg"


def test_options_that_are_none(folder: Path) -> None:
    with pytest.raises(ValueError, match=r'^pairs: expected a file of lines such as "aeroplane/'):
        PascalBerkeley(folder)
    with pytest.raises(ValueError, match=r'^length: expected img or bbox, got "diagonal"$'):
        PascalBerkeley(folder, pairs="pairs.txt", length="diagonal")
    with pytest.raises(ValueError, match=r'^no split "trn": expected test$'):
        PascalBerkeley(folder, "trn", pairs="pairs.txt")
    with pytest.raises(ValueError, match=r'^no folder ".*none": expected annotations and JPEGImages$'):
        PascalBerkeley(folder / "none", pairs="pairs.txt")


LINE = "aeroplane/2007_000032_1 aeroplane/2007_000033_1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n\n", "LIST: expected pairs of images, found none"),
        (
            "aeroplane/2007_000032_1 aeroplane/2007_000033_3",
            "LIST: expected pairs of objects, found pairs, but none with a key point that is visible "
            "in both",
        ),
        (
            "\naeroplane/2007_000032_1",
            f'LIST:2: expected two objects of a class as "{LINE}", found "aeroplane/2007_000032_1"',
        ),
        ("a/b c/d", f'LIST:1: expected two objects of a class as "{LINE}", found "a/b c/d"'),
        ("b d", f'LIST:1: expected two objects of a class as "{LINE}", found "b d"'),
        ("a/b a/c", 'LIST:1: no annotation "DIR/annotations/a/b.xml"'),
    ],
)
def test_lists_that_are_none(folder: Path, text: str, message: str) -> None:
    path = folder / "pairs.txt"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        PascalBerkeley(folder, pairs="pairs.txt")
    assert str(caught.value).replace(str(path), "LIST").replace(str(folder), "DIR") == message
    with pytest.raises(ValueError, match=r'^cannot read the list of pairs ".*none\.txt": No such file'):
        PascalBerkeley(folder, pairs="none.txt")


def said(folder: Path, text: str) -> str:
    """What is raised where this is the annotation of an object of the first pair."""
    path = folder / "annotations" / "aeroplane" / "2007_000032_1.xml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        PascalBerkeley(folder, pairs="pairs.txt")
    return str(caught.value).replace(str(path), "FILE")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<image>2007_000032</image>", "", "expected <image> and <visible_bounds> in <annotation>"),
        ("visible_bounds", "bounds", "expected <image> and <visible_bounds> in <annotation>"),
        ('width="18.00" ', "", "visible_bounds: expected width, found height, xmin, ymin"),
        (
            'height="9.50" width="18.00"',
            'height="0" width="0"',
            "visible_bounds: expected a box larger than a point, found [0.0, 0.0] to [0.0, 0.0]",
        ),
        ('x="10.25"', 'x="nan"', 'Nose: x: column 1: expected a number, found "nan"'),
        ('y="11.00"', "", "Nose: expected y, found name, visible, x, z"),
        ('name="Nose"', "", "expected a name of each keypoint"),
    ],
)
def test_annotations_that_are_none(folder: Path, old: str, new: str, message: str) -> None:
    whole = annotation("2007_000032_1")
    assert old in whole
    assert said(folder, whole.replace(old, new)) == f"FILE: {message}"


def test_annotations_with_declarations(folder: Path) -> None:
    entity = '?>\n<!DOCTYPE a [<!ENTITY b "2007"><!ENTITY c "&b;&b;">]>'
    refused = "FILE: expected XML, found a document type's declarations, or UTF-16"
    whole = annotation("2007_000032_1")
    assert said(folder, whole.replace("?>", entity)) == refused
    assert said(folder, whole.replace("?>", '?>\n<!DOCTYPE a SYSTEM "b.dtd">')) == refused
    path = folder / "annotations" / "aeroplane" / "2007_000032_1.xml"
    path.write_text("\ufeff" + whole.replace("?>", "?>\n<!DOCTYPE annotation>"))
    assert len(PascalBerkeley(folder, pairs="pairs.txt")) == 2


def test_annotations_that_are_cut_off(folder: Path) -> None:
    whole = annotation("2007_000032_1").rstrip()
    for cut in range(len(whole)):
        assert said(folder, whole[:cut]).startswith("FILE: expected XML: ")


def test_images_that_are_missing(folder: Path) -> None:
    (folder / "JPEGImages" / "2007_000033.jpg").unlink()
    with pytest.raises(ValueError, match=r'2007_000033_2\.xml: no image ".*2007_000033\.jpg"$'):
        PascalBerkeley(folder, pairs="pairs.txt")[0]
