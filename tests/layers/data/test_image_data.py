"""ImageData: the list, the channels, the order, and what a resumed run reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cortado.layers._data.transform import ChannelOrder, TransformParams
from cortado.layers.data.image_data import ImageData, Params, read_list
from cortado.nets.net import Net
from cortado.prototxt_like import loads
from cortado.prototxt_like.source import SpecError
from PIL import Image

SIZES = [(6, 8), (6, 8), (6, 8), (4, 5)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of one colour, (10 i, 20 i, 30 i) in RGB, with label i."""
    for i, (height, width) in enumerate(SIZES):
        colour = np.full((height, width, 3), (10 * i, 20 * i, 30 * i), np.uint8)
        Image.fromarray(colour).save(tmp_path / f"image {i}.png")
    lines = [f"image {i}.png {i}" for i in range(3)]
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n\n")
    return tmp_path


def made(folder: Path, *, training: bool = True, seed: int = 0, **fields: Any) -> ImageData:
    params = Params(**({"source": str(folder / "list.txt"), "root_folder": f"{folder}/"} | fields))
    return ImageData(params, (), torch.Generator().manual_seed(seed)).train(training)


def test_blue_comes_first_and_the_list_goes_round(folder: Path) -> None:
    layer = made(folder, batch_size=2)
    assert layer.infer(layer.params) == ((2, 3, 6, 8), (2,))
    read = [layer() for _ in range(3)]
    assert torch.cat([labels for _, labels in read]).tolist() == [0, 1, 2, 0, 1, 2]
    images = torch.cat([images for images, _ in read])
    assert images[:, :, 2, 3].tolist() == [[30 * i, 20 * i, 10 * i] for i in (0, 1, 2, 0, 1, 2)]


def test_grey_rgb_and_new_size(folder: Path) -> None:
    def pixel(**fields: Any) -> list[float]:
        layer = made(folder, batch_size=3, **fields)
        images, _ = layer()
        assert tuple(images.shape) == layer.infer(layer.params)[0]
        return images[1, :, 0, 0].tolist()

    assert pixel(is_color=False) == [18]  # 0.299 10 + 0.587 20 + 0.114 30
    assert pixel(transform_param=TransformParams(channel_order=ChannelOrder.RGB)) == [10, 20, 30]
    assert pixel(transform_param=TransformParams(channel_order=ChannelOrder.GRAY)) == [18]
    assert pixel(new_height=3, new_width=2) == [30, 20, 10]
    assert pixel(transform_param=TransformParams(scale=0.5, mean_value=(10.0,))) == [10, 5, 0]


def test_as_opencv_reads(folder: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "image 0.png")
    for is_color in (True, False):
        images, _ = made(folder, is_color=is_color)()
        wanted = np.atleast_3d(cv2.imread(str(folder / "image 0.png"), int(is_color)))
        np.testing.assert_array_equal(images[0].numpy(), wanted.transpose(2, 0, 1))


def test_shuffle_gives_each_image_once_a_round(folder: Path) -> None:
    layer = made(folder, batch_size=3, shuffle=True)
    rounds = [tuple(layer()[1].tolist()) for _ in range(20)]
    assert all(sorted(each) == [0, 1, 2] for each in rounds)
    assert len(set(rounds)) > 2
    assert [tuple(made(folder, batch_size=3, shuffle=True)()[1].tolist())] == rounds[:1]
    assert len({made(folder, shuffle=True, seed=s)()[1].item() for s in range(20)}) == 3


def test_resumes_in_the_middle(folder: Path) -> None:
    fields = {
        "batch_size": 2,
        "shuffle": True,
        "transform_param": TransformParams(crop_size=3, mirror=True),
    }
    layer = made(folder, seed=1, **fields)
    layer()
    resumed = made(folder, seed=2, **fields)
    resumed()  # whose order is then another's
    resumed.set_extra_state(layer.get_extra_state())
    for _ in range(4):
        for one, two in zip(layer(), resumed(), strict=True):
            assert torch.equal(one, two)


def test_rand_skip(folder: Path) -> None:
    firsts = {made(folder, rand_skip=2, seed=s)()[1].item() for s in range(30)}
    assert firsts == {0, 1}
    layer = made(folder, rand_skip=100, seed=1)
    with pytest.raises(ValueError, match=r"^rand_skip passes over all of 3 images$"):
        layer.infer(layer.params)


def test_sizes_may_differ_in_batches_of_one(folder: Path) -> None:
    (folder / "list.txt").write_text("image 2.png 2\nimage 3.png 3")
    layer = made(folder)
    assert [tuple(layer()[0].shape[2:]) for _ in range(3)] == [(6, 8), (4, 5), (6, 8)]
    with pytest.raises(ValueError) as caught:
        made(folder, batch_size=2)()
    assert str(caught.value) == (
        'images of a batch have one size: "image 3.png" is [3, 4, 5], the batch\'s first [3, 6, 8]'
    )


def test_lists(folder: Path) -> None:
    path = folder / "list.txt"
    path.write_text("a b.png 7\nplain.png\n\nc.png -1\n")
    assert read_list(str(path)) == [("a b.png", 7), ("plain.png", 0), ("c.png", -1)]
    path.write_text("a.png 1\nmy image.png\n")
    with pytest.raises(ValueError, match=r'list\.txt:2: expected a label, got "image\.png"$'):
        read_list(str(path))
    for label in ("1_000", "１２", "2147483648", "9" * 20, "1.5", "0x10"):
        path.write_text(f"a.png {label}\n", encoding="utf-8")
        with pytest.raises(ValueError, match=f'txt:1: expected a label, got "{label}"$'):
            read_list(str(path))
    path.write_text("\n")
    with pytest.raises(ValueError, match=r'list\.txt" is empty$'):
        read_list(str(path))
    with pytest.raises(ValueError, match=r"^cannot read the list of images"):
        read_list(str(folder / "missing.txt"))
    with pytest.raises(ValueError, match=r"^new_height and new_width go together$"):
        Params("list.txt", new_height=3)


def net(folder: Path, fields: str = "") -> Net:
    text = f"""
        layer {{ name: "data" type: "ImageData" top: "data" top: "label"
                transform_param {{ crop_size: 4 mirror: true mean_value: 5 }}
                image_data_param {{ source: "{folder}/list.txt" batch_size: 2
                                   root_folder: "{folder}/" {fields} }} }}"""
    return Net(loads(text, "net.prototxt", notation="prototxt"), "TRAIN", seed=1)


def test_in_a_net(folder: Path) -> None:
    made = net(folder)
    assert made.blob_shapes == {"data": (2, 3, 4, 4), "label": (2,)}
    blobs = made()
    assert blobs["data"][1, :, 0, 0].tolist() == [25, 15, 5]
    assert blobs["label"].tolist() == [0, 1]


def test_a_missing_image_is_a_located_error(folder: Path) -> None:
    (folder / "image 0.png").unlink()
    with pytest.raises(SpecError, match=r'net\.prototxt:2:.*\n*.*cannot read image ".*image 0\.png"'):
        net(folder)
