"""The made pairs of regions: true matches, the same for a seed, proposals kept where they recur."""

import numpy as np
import pytest
import skimage.io
import torch
from cortado.layers._data.transform import ChannelOrder, TransformParams
from cortado.layers._data.views import project
from cortado.layers.data import region_pairs
from cortado.layers.data.region_pairs import Params, Proposals, RegionPairs, infer, truth_under

STILL = {"contrast": 0.0, "brightness": 0.0, "gamma": 0.0, "color": 0.0, "noise": 0.0}
ALIKE = {"rotation": 0.0, "scale_min": 1.0, "scale_max": 1.0, "anisotropy": 0.0, "perspective": 0.0}
UNIFORM = Proposals.RANDOM_UNIFORM


def layer(**fields):
    fields = {"source": ("skimage:coffee",), "num_proposals": 30, "num_points": 50, "seed": 3} | fields
    transform = TransformParams(
        crop_size=fields.pop("side", 64),
        channel_order=ChannelOrder.RGB,
        mirror=fields.pop("mirror", False),
    )
    return RegionPairs(Params(**fields, transform_param=transform))


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("method", Proposals)
def test_shapes_and_what_the_tables_hold(method):
    made = layer(proposals=method)
    tops = made()
    assert tuple(tuple(top.shape) for top in tops) == infer(made.params)
    for rois in tops[2:4]:
        assert (rois[:, 0] == 0).all()
        assert (rois[:, 1:] >= 0).all()
        assert (rois[:, 1:] <= 63).all()
        assert (rois[:, 3:] >= rois[:, 1:3]).all()
    assert set(tops[4][:, 4].tolist()) <= {1.0, -1.0}


def naive_truth(homography, box, size, visible):
    """The box around a finely sampled border of the region."""
    x1, y1, x2, y2 = box
    t = np.linspace(0, 1, 201)
    xs, ys = x1 - 0.5 + t * (x2 - x1 + 1), y1 - 0.5 + t * (y2 - y1 + 1)
    sides = [(xs, y1 - 0.5), (xs, y2 + 0.5), (x1 - 0.5, ys), (x2 + 0.5, ys)]
    border = np.concatenate([np.stack(np.broadcast_arrays(*side), 1) for side in sides])
    moved = project(homography, border)
    low, high = moved.min(0) + 0.5, moved.max(0) - 0.5
    inside = np.minimum(high, [size[1] - 1, size[0] - 1]) - np.maximum(low, 0) + 1
    share = np.prod(np.maximum(inside, 0)) / np.prod(high - low + 1)
    if share < visible:
        return [0, 0, 0, 0, -1]
    return [*np.maximum(low, 0), *np.minimum(high, [size[1] - 1, size[0] - 1]), 1]


def test_truth_is_the_box_around_the_warped_region():
    rng = np.random.default_rng(1)
    low = rng.integers(0, 40, (40, 2))
    rois = torch.from_numpy(np.concatenate([low, low + rng.integers(0, 30, (40, 2))], 1))
    homography = np.array([[0.9, -0.3, 9], [0.25, 1.1, -8], [1e-3, -5e-4, 1]])
    found = truth_under(homography, rois, (60, 70), visible=0.6)
    wanted = [naive_truth(homography, box, (60, 70), 0.6) for box in rois.numpy()]
    assert {row[4] for row in wanted} == {1, -1}
    assert np.allclose(found.numpy(), wanted, atol=1e-4)


def test_truth_under_the_identity_and_a_mirror():
    rois = torch.tensor([[0.0, 2, 3, 9, 4], [0, 5, 5, 5, 5]])
    assert torch.equal(truth_under(np.eye(3), rois, (20, 20))[:, :4], rois[:, 1:])
    mirror = np.array([[-1.0, 0, 19], [0, 1, 0], [0, 0, 1]])
    wanted = torch.tensor([[10.0, 3, 17, 4, 1], [14, 5, 14, 5, 1]])
    assert torch.equal(truth_under(mirror, rois, (20, 20)), wanted)


def test_a_match_that_is_cut_counts_while_enough_of_it_is_seen():
    shift = np.array([[1.0, 0, -6], [0, 1, 0], [0, 0, 1]])
    rois = torch.tensor([[0.0, 0, 0, 9, 9]])  # 4 of its 10 columns stay
    assert truth_under(shift, rois, (20, 20), 0.4).tolist() == [[0, 0, 3, 9, 1]]
    assert truth_under(shift, rois, (20, 20), 0.41).tolist() == [[0, 0, 0, 0, -1]]


def test_true_matches_look_alike():
    """A shift between the views, which is not whole: the truth is rounded."""
    image1, image2, rois1, _, truth, _ = layer(proposals=UNIFORM, **STILL, **ALIKE)()
    apart, unmoved = [], []
    for (_, x1, y1, x2, y2), (*match, s) in zip(rois1.int().tolist(), truth.tolist(), strict=True):
        x, y = round(match[2]) - x2, round(match[3]) - y2
        if s == 1 and x1 + x >= 0 and y1 + y >= 0 and match[2] < 62 and match[3] < 62:  # not cut
            region = image1[0, :, y1 : y2 + 1, x1 : x2 + 1]
            moved = image2[0, :, y1 + y : y2 + y + 1, x1 + x : x2 + x + 1]
            apart.append((region - moved).abs().mean())
            unmoved.append((region - image2[0, :, y1 : y2 + 1, x1 : x2 + 1]).abs().mean())
    assert len(apart) > 5
    assert np.mean(apart) < np.mean(unmoved) / 2


def test_a_sample_depends_on_the_seed_and_its_number_alone():
    made = layer()
    first, second = made(), made()
    resumed = layer(seed=9)
    resumed.set_extra_state(torch.tensor([3, 1]))
    assert same(resumed(), second)
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[2], second[2])
    assert resumed.get_extra_state().tolist() == [3, 2]


def test_pairs_that_recur_keep_their_proposals(monkeypatch):
    made, endless = layer(num_pairs=2), layer()()
    first = [made() for _ in range(2)]
    monkeypatch.setattr(region_pairs, "propose", None)  # not called again
    again = [made() for _ in range(2)]
    assert all(same(one, other) for one, other in zip(first, again, strict=True))
    assert same(endless, first[0])


def test_mirrored_views_have_mirrored_truth_and_points():
    """The same draw with and without the mirror differs in the photograph's side alone: points and
    truth follow the homography between the views in both."""
    mirrored = 0
    for seed in range(6):
        image1, image2, _, _, _, points = layer(mirror=True, proposals=UNIFORM, **STILL, seed=seed)()
        rows = points[0][points[0, :, 4] == 1].round().long()
        one, two = (im[0, :, rows[:, c + 1], rows[:, c]] for im, c in ((image1, 0), (image2, 2)))
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        assert (one - two).abs().mean() < 0.5 * (one - one[:, order]).abs().mean()
        plain = layer(proposals=UNIFORM, **STILL, seed=seed)()[0]
        mirrored += not torch.equal(plain, image1)
    assert mirrored


def test_an_image_of_one_colour_has_a_single_region(tmp_path):
    skimage.io.imsave(tmp_path / "grey.png", np.full((80, 80, 3), 90, np.uint8), check_contrast=False)
    tops = layer(source=(str(tmp_path / "grey.png"),), **STILL, shift=0.0, **ALIKE)()
    assert tops[2].tolist() == [[0, 0, 0, 63, 63]]
    assert tops[4].tolist() == [pytest.approx([0, 0, 63, 63, 1])]


def test_the_crop_is_the_side():
    with pytest.raises(ValueError, match="RegionPairs needs transform_param.crop_size"):
        RegionPairs(Params(source=("skimage:coffee",), transform_param=TransformParams()))
