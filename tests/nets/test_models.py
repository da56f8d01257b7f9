"""The trained nets that come with cortado: what their files hold, and that they match."""

from __future__ import annotations

import os
from pathlib import Path

import cortado
import numpy as np
import pytest
import skimage.data
import torch
from cortado.nets import models, specs
from cortado.nets.net import Net
from safetensors.torch import load_file
from skimage.transform import rotate

NAMES = models.names()
LIMIT = 5 * 2**20


def test_the_best_is_one_of_them() -> None:
    assert models.BEST in NAMES
    assert {"ucn_hn", "ucn_hn_st"} <= set(NAMES)
    assert models.weights() == models.weights(models.BEST)
    card = (models.FOLDER / "README.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert f"`{name}`" in card
    assert f"the best one, `{models.BEST}`" in card


@pytest.mark.parametrize("name", NAMES)
def test_a_file_holds_the_net_in_float16(name: str) -> None:
    """All of its layers in the stage deploy, and nothing else; in a net they are float32."""
    file = models.weights(name)
    assert file.stat().st_size < LIMIT
    stored = load_file(file)
    assert {blob.dtype for blob in stored.values()} == {torch.float16}
    assert all(blob.isfinite().all() for blob in stored.values())
    net = Net(name, stages=("deploy",), weights=file)
    assert (net.report.missing, net.report.unused) == ((), ())
    assert sum(blob.numel() for blob in stored.values()) == net.num_parameters
    assert net.match.longer_side == 1280
    for blob in net.parameters():
        assert blob.dtype == torch.float32
    layer, *_ = net.params
    torch.testing.assert_close(net.params[layer][0].half(), stored[f"layers.{layer}.weight"])


@pytest.mark.parametrize("name", NAMES)
def test_most_of_a_moved_photograph_is_found(name: str) -> None:
    """Of one nobody trained on; darkened, and with noise, so that no patch is the same."""
    image = skimage.data.stereo_motorcycle()[0][140:360, 100:420]
    noise = np.random.default_rng(0).normal(0, 3, image.shape)
    moved = (0.8 * image + noise).clip(0, 255).astype(np.uint8)[10:, 22:]
    matcher = cortado.pretrained(name)
    shares = []
    for mutual in (False, True):
        found = cortado.match(image, moved, net=matcher, mutual=mutual)
        inside = ((found.points1 >= [54, 42]) & (found.points1 < [288, 188])).all(1)
        error = np.linalg.norm(found.points1 - found.points2 - [22, 10], axis=1)[inside]
        assert len(error) > 500
        shares.append((error <= 5).mean())
    assert min(shares) > 0.75


@pytest.mark.parametrize("name", NAMES)
def test_a_turned_photograph_tells_trained_features(name: str) -> None:
    """By 30 degrees: of GoogLeNet with a random embedding at most half the matches are right."""
    image = skimage.data.stereo_motorcycle()[0][140:360, 200:420]
    found = cortado.match(image, rotate(image, 30), net=cortado.pretrained(name))
    centre, turn = (len(image) - 1) / 2, np.deg2rad(30)
    around = found.points1 - centre
    back = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    error = np.linalg.norm(found.points2 - (around @ back + centre), axis=1)
    inside = np.hypot(*around.T) < 90
    assert inside.sum() > 500
    assert (error[inside] <= 5).mean() > 0.8


def test_a_matcher_as_it_is_asked_for() -> None:
    image = skimage.data.coffee()[80:140, 100:180]
    matcher = cortado.pretrained()
    assert (matcher.step, matcher.normalized) == (0, False)
    assert matcher.net.report.path == str(models.weights(models.BEST))
    matcher = cortado.pretrained("ucn_hn", device="cpu", feature="conv2/norm2", step=6)
    points = matcher.candidates(matcher.describe(image)).points
    assert np.unique(points % 6).tolist() == [0]
    assert matcher.at(matcher.describe(image), points).shape[1] == 192


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ucn_hn_ts", 'did you mean "ucn_hn_st"? there are: '),
        ("ucn_demo_hn", 'did you mean "ucn_hn"? there are: '),
        ("hpf_resnet50", "; there are: "),
    ],
)
def test_a_name_that_is_none(name: str, said: str) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        cortado.pretrained(name)
    assert f'no weights of "{name}" come with cortado; ' in str(raised.value)
    assert str(raised.value).endswith(f"{said}{', '.join(NAMES)}")


def test_the_weights_of_a_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its name or its file; a file of the user's own has none, whatever its name."""
    monkeypatch.chdir(tmp_path)
    wanted = models.weights("ucn_hn")
    assert models.weights_of("ucn_hn") == models.weights_of(specs.path("ucn_hn")) == wanted
    assert models.weights_of("ucn_demo_hn") is None
    assert models.weights_of("nowhere.yaml") is None
    Path("mine.yaml").symlink_to(specs.path("ucn_hn"))
    assert models.weights_of("mine.yaml") == models.weights_of(Path("..", tmp_path.name, "mine.yaml"))
    assert models.weights_of("mine.yaml") == wanted
    assert models.weights_of(os.path.relpath(specs.path("ucn_hn"))) == wanted
    Path("copy.yaml").write_text(specs.path("ucn_hn").read_text())
    assert models.weights_of("copy.yaml") is None
    Path("ucn_hn").write_text("name: mine\n")
    assert models.weights_of("ucn_hn") is None
    assert models.weights_of("ucn_hn.yaml") == wanted
    with pytest.raises(cortado.SpecError, match='no file "ucn_nh" here'):
        models.weights_of("ucn_nh")
