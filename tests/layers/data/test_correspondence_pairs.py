"""The made pairs: true correspondences, the same for a seed, whatever was asked before."""

import numpy as np
import pytest
import skimage.io
import torch
from cortado.layers._data.transform import TransformParams
from cortado.layers._data.views import Draw, draw_view, project, read_photographs, rotation, warp
from cortado.layers.data.correspondence_pairs import CorrespondencePairs, Params, infer

STILL = {"contrast": 0.0, "brightness": 0.0, "gamma": 0.0, "color": 0.0, "noise": 0.0}


def layer(**fields):
    fields = {"source": ("skimage:astronaut", "skimage:coffee"), "num_points": 200, "seed": 3} | fields
    side = fields.pop("side", 96)
    return CorrespondencePairs(Params(**fields, transform_param=TransformParams(crop_size=side)))


def read(image, points):
    """Bilinear reading of an image [C, H, W] at points [P, 2], as a loop."""
    values = []
    for x, y in points:
        i, j = min(int(y), image.shape[1] - 2), min(int(x), image.shape[2] - 2)
        a, b = y - i, x - j
        top = (1 - b) * image[:, i, j] + b * image[:, i, j + 1]
        values.append((1 - a) * top + a * ((1 - b) * image[:, i + 1, j] + b * image[:, i + 1, j + 1]))
    return np.array(values)


def test_corresponding_points_look_alike():
    for image1, image2, pairs, count in (layer(**STILL)() for _ in range(3)):
        rows = pairs[0, : int(count[0, 0])].numpy()
        assert len(rows) == 200
        one, two = image1[0].numpy(), image2[0].numpy()
        apart = np.abs(read(one, rows[:, :2]) - read(two, rows[:, 2:4])).mean()
        unmoved = np.abs(read(one, rows[:, :2]) - read(two, rows[:, :2])).mean()
        assert apart < 6 < unmoved


def test_shapes_padding_and_order_of_channels():
    made = layer(batch_size=3, shift=1.0, scale_min=3.0, scale_max=4.0)
    tops = made()
    assert tuple(tuple(top.shape) for top in tops) == infer(made.params)
    pairs, count = tops[2], tops[3]
    for rows, valid in zip(pairs, count[:, 0].int(), strict=True):
        assert (rows[:valid, 4] == 1).all()
        assert (rows[valid:] == torch.tensor([0.0, 0, 0, 0, -1])).all()
        assert (rows[:valid, :4] >= 0).all()
        assert (rows[:valid, :4] <= 95).all()
    assert int(count.min()) < 200


def test_a_sample_depends_on_the_seed_and_its_number_alone():
    two_and_two = layer(batch_size=2)
    four = layer(batch_size=4)()
    for top, first, second in zip(four, two_and_two(), two_and_two(), strict=True):
        assert torch.equal(top, torch.cat([first, second]))
    resumed = layer(batch_size=2)
    resumed.set_extra_state(torch.tensor([3, 2]))
    assert torch.equal(resumed()[0], four[0][2:])
    assert not torch.equal(layer(seed=4)()[0], layer(seed=5)()[0])


def test_the_seed_comes_from_the_net_when_none_is_given():
    made = [
        CorrespondencePairs(Params(source=("skimage:coffee",)), (), torch.Generator().manual_seed(s))
        for s in (1, 1, 2)
    ]
    assert made[0].seed == made[1].seed != made[2].seed


def test_warp_reads_where_the_homography_says():
    image = torch.rand(2, 11, 13)
    moved = warp(image, np.array([[1.0, 0, 2], [0, 1, 3], [0, 0, 1]]), 4, 5)
    assert torch.allclose(moved, image[:, 3:7, 2:7], atol=1e-5)
    quarter = project(rotation(90), np.array([[1.0, 0.0]]))
    assert np.allclose(quarter, [[0, 1]])


def test_mirror_flips_about_half_of_the_views():
    params = Params(source=("none",), transform_param=TransformParams(crop_size=64, mirror=True))
    views = [draw_view(params, (300, 400), Draw(1, number)) for number in range(200)]
    assert 70 < sum(np.linalg.det(view) < 0 for view in views) < 130


def test_sources(tmp_path):
    skimage.io.imsave(tmp_path / "grey.png", np.full((4, 5), 7, np.uint8), check_contrast=False)
    skimage.io.imsave(tmp_path / "more.BMP", np.full((3, 2), 8, np.uint8), check_contrast=False)
    (tmp_path / "text.txt").write_text("no photograph")
    assert [image.shape for image in read_photographs(str(tmp_path))] == [(4, 5, 3), (3, 2, 3)]
    assert (read_photographs(str(tmp_path / "grey.png"))[0] == 7).all()
    assert read_photographs("skimage:astronaut")[0].shape == (512, 512, 3)
    with pytest.raises(ValueError, match='^source "skimage:nobody": no image file'):
        read_photographs("skimage:nobody")
    with pytest.raises(ValueError, match=r"^cannot read .*text\.txt: it is no PNG"):
        read_photographs(str(tmp_path / "text.txt"))


def test_the_crop_is_the_side():
    with pytest.raises(ValueError, match="needs transform_param.crop_size"):
        CorrespondencePairs(Params(source=("skimage:coffee",), transform_param=TransformParams()))
