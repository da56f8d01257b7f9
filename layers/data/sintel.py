"""MPI-Sintel's training scenes with their optical flow (Butler et al., ECCV 2012), clean and final.

The folder is the authors' MPI-Sintel-complete, or its ``training``, with ``clean`` or ``final``,
``flow``, ``invalid`` and ``occlusions``, in each a folder a scene: ``<scene>/frame_0001.png``, the flow
``frame_0001.flo``. The pairs are a frame and the next, wherever the flow is there.

The matches are the pixels of the first frame whose flow ends inside the second: without those that
``invalid`` marks, and, unless ``occluded`` is asked for, those that ``occlusions`` marks (both are 0
where a pixel counts). The split is ``training``, the only one whose flow is known; the class is the
scene.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from .._data.images import image_size
from .._data.keypoint_pairs import (
    KeypointPair,
    PairReader,
    as_flag,
    expect_folder,
    expect_image,
    expect_split,
    reader,
    some,
)
from .._data.truth import dense_pair, of_flow, read_flow, read_mask

HOLDS = "training, with clean, final, flow, invalid and occlusions"
SPLIT = "training"
FLOWS = "frame_" + 4 * "[0-9]" + ".flo"


class Sintel(PairReader):
    """The scenes' pairs, :class:`KeypointPair` each; see the module."""

    pixels = True
    rendering: ClassVar[str]

    def __init__(self, folder: str | Path, split: str = SPLIT, occluded: object = False) -> None:
        expect_split(split, (SPLIT,))
        self.occluded = as_flag(occluded, "occluded")
        root = expect_folder(folder, HOLDS)
        self.folder = root / SPLIT if (root / SPLIT).is_dir() else root
        flows = self.folder / "flow"
        self.rows = some(sorted(flows.glob(f"*/{FLOWS}")), flows, "alley_1/frame_0001.flo and such")
        self.masks = ("invalid",) if self.occluded else ("invalid", "occlusions")
        for mask in self.masks:
            expect_folder(self.folder / mask, "masks, alley_1/frame_0001.png and such")

    def read(self, row: Path) -> KeypointPair:
        scene, frame = row.parent.name, row.stem
        following = f"frame_{int(frame.removeprefix('frame_')) + 1:04}"
        image1, image2 = (
            expect_image(self.folder / self.rendering / scene / f"{each}.png", str(row))
            for each in (frame, following)
        )
        size = image_size(image1)
        keep = np.ones(size, bool)
        for mask in self.masks:
            keep &= read_mask(self.folder / mask / scene / f"{frame}.png", size) == 0
        matches = of_flow(read_flow(row, size), image_size(image2), keep)
        return dense_pair(image1, image2, matches, row, scene, f"{scene}/{frame}")


@reader("sintel-clean")
class SintelClean(Sintel):
    """The pass without motion blur, depth of field and atmosphere."""

    rendering = "clean"


@reader("sintel-final")
class SintelFinal(Sintel):
    """The pass with all effects."""

    rendering = "final"
