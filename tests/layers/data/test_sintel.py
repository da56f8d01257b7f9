"""MPI-Sintel, made scenes of the published layout, and damage."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from cortado.layers._data.keypoint_pairs import open_pairs
from cortado.layers.data.sintel import SintelClean
from PIL import Image

HEIGHT, WIDTH = 4, 6
FLOW = np.zeros((HEIGHT, WIDTH, 2), np.float32)
FLOW[..., 0], FLOW[..., 1] = 1.5, -0.25


def mask(path: Path, *hidden: tuple[int, int]) -> None:
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    for x, y in hidden:
        values[y, x] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two scenes, of three frames and of two."""
    training = tmp_path / "training"
    for scene, frames in (("market_2", 2), ("alley_1", 3)):
        for n in range(1, frames + 1):
            for rendering in ("clean", "final"):
                path = training / rendering / scene / f"frame_{n:04}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (WIDTH, HEIGHT), (n, 0, 0)).save(path)
            mask(training / "invalid" / scene / f"frame_{n:04}.png", (0, 1))
            if n < frames:
                mask(training / "occlusions" / scene / f"frame_{n:04}.png", (0, 1), (1, 1), (2, n))
                path = training / "flow" / scene / f"frame_{n:04}.flo"
                path.parent.mkdir(parents=True, exist_ok=True)
                head = struct.pack("<f2i", 202021.25, WIDTH, HEIGHT)
                path.write_bytes(head + (n * FLOW).tobytes())
    return tmp_path


@pytest.mark.parametrize("rendering", ["clean", "final"])
@pytest.mark.parametrize("below", ["", "training"])
def test_the_pairs(folder: Path, rendering: str, below: str) -> None:
    pairs = open_pairs(f"sintel-{rendering}:{folder / below}")
    assert pairs.pixels
    wanted = [("alley_1", 1), ("alley_1", 2), ("market_2", 1)]
    assert [pair.name for pair in pairs] == [f"{scene}/frame_{n:04}" for scene, n in wanted]
    for pair, (scene, n) in zip(pairs, wanted, strict=True):
        assert pair.category == scene
        images = folder / "training" / rendering / scene
        assert pair.image1 == images / f"frame_{n:04}.png"
        assert pair.image2 == images / f"frame_{n + 1:04}.png"
        hidden = {(0, 1), (1, 1), (2, n)}
        known = [(x, y) for y in range(1, HEIGHT) for x in range(WIDTH) if x + 1.5 * n <= WIDTH - 1]
        assert hidden < set(known)
        matches = [[x, y, x + 1.5 * n, y - n / 4] for x, y in known if (x, y) not in hidden]
        assert np.c_[pair.points1, pair.points2].tolist() == matches
        assert (pair.length, pair.signs, pair.motion) == (1, None, None)


def test_with_those_that_are_hidden_but_none_that_is_invalid(folder: Path) -> None:
    seen, all_known = (
        open_pairs(f"sintel-clean:{folder}", occluded=occluded)[0] for occluded in ("no", "yes")
    )
    more = set(map(tuple, all_known.points1)) - set(map(tuple, seen.points1))
    assert more == {(1, 1), (2, 1)}
    assert len(all_known.points1) == len(seen.points1) + 2


def said(folder: Path, **options: object) -> str:
    with pytest.raises(ValueError) as caught:
        list(SintelClean(folder, **options))
    return str(caught.value).replace(str(folder), "DIR")


def test_what_is_missing_or_damaged(folder: Path) -> None:
    holds = "training, with clean, final, flow, invalid and occlusions"
    assert said(folder / "none") == f'no folder "DIR": expected {holds}'
    assert said(folder, split="test") == 'no split "test": expected training'
    assert said(folder, occluded="maybe") == 'occluded: expected yes or no, got "maybe"'
    (folder / "empty").mkdir()
    assert said(folder / "empty") == "DIR/flow: expected alley_1/frame_0001.flo and such, found none"
    training = folder / "training"
    place = "DIR/training/flow/market_2/frame_0001.flo"
    (training / "clean" / "market_2" / "frame_0002.png").unlink()
    assert said(folder) == f'{place}: no image "DIR/training/clean/market_2/frame_0002.png"'
    flow = training / "flow" / "alley_1" / "frame_0002.flo"
    whole = flow.read_bytes()
    flow.write_bytes(whole[:-1])
    found = f"6 x 4 pixels in {len(whole) - 1} bytes"
    assert said(folder) == (
        "DIR/training/flow/alley_1/frame_0002.flo: expected a .flo of 8 bytes a pixel and 12, "
        f"found {found}"
    )
    (training / "occlusions" / "alley_1" / "frame_0001.png").unlink()
    assert said(folder) == (
        "cannot read DIR/training/occlusions/alley_1/frame_0001.png: No such file or directory"
    )
    Image.new("L", (3, 3)).save(training / "invalid" / "alley_1" / "frame_0001.png")
    assert said(folder) == (
        "DIR/training/invalid/alley_1/frame_0001.png: expected 6 x 4 pixels, the size of its image, "
        "found 3 x 3"
    )


def test_masks_are_looked_for_when_the_reader_is_opened(folder: Path) -> None:
    training = folder / "training"
    (training / "occlusions").rename(training / "elsewhere")
    with pytest.raises(ValueError) as caught:
        SintelClean(folder)
    assert str(caught.value) == (
        f'no folder "{training}/occlusions": expected masks, alley_1/frame_0001.png and such'
    )
    assert len(SintelClean(folder, occluded=True)[0].points1)
    (training / "invalid").rename(training / "nowhere")
    with pytest.raises(ValueError, match='^no folder ".*invalid": expected masks'):
        SintelClean(folder, occluded=True)
