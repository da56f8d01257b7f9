"""SPair-71k: 70,958 pairs of images of 18 classes with 3 to 30 key points (Min et al., 2019).

Read from the authors' folder:

- ``Layout/<layout>/<split>.txt``, layout ``large`` (all pairs) or ``small``, split trn, val or test: a
  name a line, such as ``000001-2007_000464-2008_001234:aeroplane``.
- ``PairAnnotation/<split>/<name>.json``, of which ``src_imname``, ``trg_imname``, ``category``,
  ``src_kps``, ``trg_kps`` (lists of (x, y), the common key points, in one order) and ``trg_bndbox``
  (x1, y1, x2, y2) are read.
- ``JPEGImages/<category>/<imname>``.

T is max(w, h) of ``trg_bndbox``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .._data.files import read_text
from .._data.keypoint_pairs import (
    SPLITS,
    KeypointPair,
    PairReader,
    as_numbers,
    expect_folder,
    expect_image,
    expect_split,
    finite,
    longer_span,
    reader,
    some,
)

HOLDS = "JPEGImages, PairAnnotation and Layout"
TEXTS, POINTS = ("src_imname", "trg_imname", "category"), ("src_kps", "trg_kps")


@reader("spair-71k")
class SPair71k(PairReader):
    """The pairs of SPair-71k, :class:`KeypointPair` each; see the module."""

    def __init__(self, folder: str | Path, split: str = "test", layout: str = "large") -> None:
        if layout not in ("large", "small"):
            raise ValueError(f'layout: expected large or small, got "{layout}"')
        self.folder, self.split = expect_folder(folder, HOLDS), expect_split(split, SPLITS)
        listed = self.folder / "Layout" / layout / f"{split}.txt"
        lines = map(str.strip, read_text(listed, "the list of pairs").splitlines())
        self.rows = some([line for line in lines if line], listed)

    def read(self, row: str) -> KeypointPair:
        path = self.folder / "PairAnnotation" / self.split / f"{row}.json"
        noted = _annotation(path)
        name1, name2, category = (_text(noted, key, path) for key in TEXTS)
        points1, points2 = (
            finite(as_numbers(_value(noted, key, path), (None, 2), f"{path}: {key}"), f"{path}: {key}")
            for key in POINTS
        )
        if len(points1) != len(points2) or not len(points1):
            expected = "expected as many src_kps as trg_kps, at least one"
            raise ValueError(f"{path}: {expected}, found {len(points1)} and {len(points2)}")
        box = as_numbers(_value(noted, "trg_bndbox", path), (4,), f"{path}: trg_bndbox")
        images = self.folder / "JPEGImages" / category
        return KeypointPair(
            expect_image(images / name1, str(path)),
            expect_image(images / name2, str(path)),
            points1,
            category,
            name=row,
            points2=points2,
            length=longer_span(box[:2], box[2:], f"{path}: trg_bndbox"),
        )


def _annotation(path: Path) -> dict[str, Any]:
    text = read_text(path, "the annotation")
    try:
        noted = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON: {error}") from None
    if not isinstance(noted, dict):
        raise ValueError(f"{path}: expected an object of JSON, found {type(noted).__name__}")
    return noted


def _value(noted: dict[str, Any], key: str, path: Path) -> Any:
    if key not in noted:
        raise ValueError(f"{path}: expected {key}, found {', '.join(noted) or 'nothing'}")
    return noted[key]


def _text(noted: dict[str, Any], key: str, path: Path) -> str:
    value = _value(noted, key, path)
    if not isinstance(value, str):
        raise ValueError(f"{path}: {key}: expected a string, found {json.dumps(value)[:40]}")
    return value
