"""KeypointPairs: the tops of each data set's pairs, their sizes, the order, and what a spec is told."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import cortado
import numpy as np
import pytest
import torch
from cortado.layers._data.keypoint_pairs import open_pairs, read_rows, sources
from cortado.layers._data.transform import ChannelOrder, TransformParams
from cortado.layers.data.keypoint_pairs import KeypointPairs, Params
from cortado.nets.net import Net
from cortado.prototxt_like import loads
from cortado.prototxt_like.source import SpecError
from PIL import Image

SIZES = {"a": (60, 33), "b": (20, 48)}  # width, height
KEYPOINTS = {"a": [[10, 11], [12, 13.5]], "b": [[7, 8], [15, 30]]}
BOXES = {"a": [1, 2, 31, 20], "b": [5, 6, 15, 42]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """SPair-71k of two pairs, (a, b) and (b, a)."""
    images = tmp_path / "JPEGImages" / "cow"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{name}.png")
    (tmp_path / "Layout" / "large").mkdir(parents=True)
    (tmp_path / "PairAnnotation" / "test").mkdir(parents=True)
    (tmp_path / "Layout" / "large" / "test.txt").write_text("a-b\nb-a\n")
    for one, two in ("ab", "ba"):
        noted = {
            "src_imname": f"{one}.png",
            "trg_imname": f"{two}.png",
            "category": "cow",
            "src_kps": KEYPOINTS[one],
            "trg_kps": KEYPOINTS[two],
            "trg_bndbox": BOXES[two],
        }
        path = tmp_path / "PairAnnotation" / "test" / f"{one}-{two}.json"
        path.write_text(json.dumps(noted))
    return tmp_path


def layer(folder: Path, **fields: Any) -> KeypointPairs:
    return KeypointPairs(Params(**({"source": f"spair-71k:{folder}"} | fields)))


def pixels(folder: Path, name: str) -> np.ndarray:
    image = np.asarray(Image.open(folder / "JPEGImages" / "cow" / f"{name}.png"))
    return image.transpose(2, 0, 1)[None]


def test_a_pair_as_it_is_stored(folder: Path) -> None:
    made = layer(folder, transform_param=TransformParams(channel_order=ChannelOrder.RGB))
    image1, image2, pairs, length = tops = made()
    np.testing.assert_array_equal(image1.numpy(), pixels(folder, "a"))
    np.testing.assert_array_equal(image2.numpy(), pixels(folder, "b"))
    assert pairs.tolist() == [[[10, 11, 7, 8, 1], [12, 13.5, 15, 30, 1]]]
    assert length.tolist() == [36]
    assert {top.dtype for top in tops} == {torch.float32}
    assert tuple(tuple(top.shape) for top in tops) == made.infer(made.params)


def test_points_and_the_unit_scale_with_their_image(folder: Path) -> None:
    made = layer(folder, longer_side=30)
    tops = image1, image2, pairs, length = made()
    assert (image1.shape[2:], image2.shape[2:]) == ((16, 30), (12, 30)[::-1])  # 33 * 30 // 60
    assert tuple(tuple(top.shape) for top in tops) == made.infer(made.params)
    one, two = 30 / 60, 30 / 48
    wanted = [[10 * one, 11 * one, 7 * two, 8 * two, 1], [12 * one, 13.5 * one, 15 * two, 30 * two, 1]]
    torch.testing.assert_close(pairs[0], torch.tensor(wanted))
    torch.testing.assert_close(length, torch.tensor([36 * two]))
    only_first = layer(folder, longer_side=48)()
    assert only_first[1].shape[2:] == (48, 20)
    assert only_first[3].item() == 36


def test_channels_mean_and_scale(folder: Path) -> None:
    fields = {"mean_value": (10.0, 20.0, 30.0), "scale": 0.5}
    image1 = layer(folder, transform_param=TransformParams(**fields))()[0]
    mean = np.array([10, 20, 30])[:, None, None]
    np.testing.assert_array_equal(image1.numpy(), (pixels(folder, "a")[:, ::-1] - mean) / 2)
    grey = layer(folder, transform_param=TransformParams(channel_order=ChannelOrder.GRAY))
    assert grey()[0].shape == (1, 1, 33, 60) == grey.infer(grey.params)[0]


def test_in_order_round_and_round_and_resumed(folder: Path) -> None:
    made = layer(folder)
    firsts = [made()[0].shape[3] for _ in range(5)]
    assert firsts == [60, 20, 60, 20, 60]
    resumed = layer(folder)
    resumed.set_extra_state(made.get_extra_state())
    assert [resumed()[0].shape[3], resumed()[0].shape[3]] == [20, 60]


def test_outlines_have_no_matches(tmp_path: Path) -> None:
    images = tmp_path / "101_ObjectCategories" / "ant"
    images.mkdir(parents=True)
    Image.new("RGB", (40, 20)).save(images / "image_0001.jpg")
    name = "ant/image_0001.jpg"
    (tmp_path / "test_pairs.csv").write_text(f"a,b,c,d\n{name},{name},1,1;2;8,4;6;8,1;2;3,4;5;5\n")
    made = KeypointPairs(Params(source=f"caltech-101:{tmp_path}", longer_side=20))
    _, _, pairs, length = made()
    wanted = [[[0.5, 2, 0, 0, -1], [1, 3, 0, 0, -1], [4, 4, 0, 0, -1]]]
    assert (pairs.tolist(), length.tolist()) == (wanted, [0])


def spec(folder: Path, fields: str = "", tops: str = "a, b, p, t") -> Net:
    head = f"{{name: data, type: KeypointPairs, top: [{tops}], keypoint_pairs_param: "
    return Net(loads(f"layer: [{head}{{source: 'spair-71k:{folder}'{fields}}}}}]"))


def test_a_net_of_it(folder: Path) -> None:
    blobs = spec(folder, tops="a, b, p")()
    assert blobs["p"].shape == (1, 2, 5)
    assert spec(folder, ", longer_side: 30")()["t"].tolist() == [36 * 30 / 48]


def refused(folder: Path, fields: str) -> str:
    with pytest.raises(SpecError) as caught:
        spec(folder, fields)
    return str(caught.value).replace(str(folder), "DIR")


def test_what_a_spec_is_told(folder: Path) -> None:
    assert 'no split "validation": expected trn or val or test' in refused(
        folder, ", split: validation"
    )
    assert 'layout: expected large or small, got "huge"' in refused(folder, ", layout: huge")
    assert "spair-71k has no length (it has layout)" in refused(folder, ", length: bbox")
    found = refused(folder, ", transform_param: {crop_size: 9}")
    assert "crop_size and mirror are not for annotated pairs" in found
    (folder / "PairAnnotation" / "test" / "a-b.json").unlink()
    assert 'cannot read the annotation "DIR/PairAnnotation/test/a-b.json"' in refused(folder, "")


@pytest.mark.parametrize("source", ["spair", "spair:x", ":x", ""])
def test_a_source_that_is_none(source: str) -> None:
    known = ", ".join(sources().values())
    assert {"list:FILE", "middlebury:DIR", "skimage:motorcycle"} < {*known.split(", ")}
    with pytest.raises(ValueError) as caught:
        open_pairs(source)
    assert str(caught.value) == f'unknown data set "{source}": expected one of {known}'


@pytest.mark.parametrize(
    ("source", "asked"),
    [("list:", "list:FILE"), ("middlebury:", "middlebury:DIR"), ("skimage", "skimage:motorcycle")],
)
def test_a_source_without_a_folder(source: str, asked: str) -> None:
    with pytest.raises(ValueError) as caught:
        open_pairs(source)
    name = asked.partition(":")[0]
    expected = "expected a folder (or list file) after the colon"
    assert str(caught.value) == f"{name}: {expected}, {asked}"


def test_rows_of_a_list(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("   \n image A , image B\n  ,  \n a.png , b.png , 1;2 \n#c.png,d.png\n")
    rows = read_rows(path, 2, "image A, image B")
    assert [row.cells for row in rows] == [["a.png", "b.png", "1;2"], ["#c.png", "d.png"]]
    assert [row.place for row in rows] == [f"{path}:4", f"{path}:5"]
    path.write_text(" a.png , b.png\n")
    assert [row.cells for row in read_rows(path, 2, "")] == [["a.png", "b.png"]]


def test_it_is_on_the_face() -> None:
    assert cortado.open_pairs is open_pairs


def test_options_are_the_readers(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"^spair-71k has no length \(it has layout\)$"):
        open_pairs(f"spair-71k:{folder}", length="img")
    with pytest.raises(ValueError, match=r"^pf-willow has no layout$"):
        open_pairs(f"pf-willow:{folder}", layout="large")


def test_a_list_that_is_no_csv(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("a.png,b.png\n\n\0.png,b.png")
    with pytest.raises(ValueError, match=r"list\.csv:3: expected a line of csv"):
        read_rows(path, 2, "image A, image B")
    path.write_text("a.png,b.png\n" + "c" * (csv.field_size_limit() + 1) + ",b.png\n")
    with pytest.raises(ValueError, match=r"list\.csv:2: expected a line of csv: field larger than"):
        read_rows(path, 2, "image A, image B")
