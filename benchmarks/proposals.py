"""``python -m benchmarks.proposals [--write] [--scenes N]``: how many objects the proposals find.

Objects are cut out of scikit-image's photographs along masks of its own segmentation (marked by
hand with ellipses and grown by a watershed; coins by a threshold) and pasted on other photographs
of 500 x 375 pixels, so that their boxes are known. An object is found when one of the first
``count`` boxes has an IoU of at least 0.5 with its box.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cortado.layers._geometry.boxes import iou_matrix
from cortado.layers.data import proposals

RESULTS = Path(__file__).parent / "results" / "proposals.md"
SIZE = (375, 500)
COUNTS = (100, 300, 1000)
Ellipse = tuple[float, float, float, float]  # centre x, y and radii, in shares of width and height

# Where a photograph surely shows the object, and around it, beyond which it surely does not.
MARKS: dict[str, tuple[str, tuple[Ellipse, ...], tuple[Ellipse, ...]]] = {
    "astronaut": (
        "astronaut",
        ((0.45, 0.16, 0.08, 0.10), (0.38, 0.42, 0.1, 0.08), (0.38, 0.75, 0.27, 0.22)),
        ((0.45, 0.17, 0.13, 0.17), (0.38, 0.42, 0.19, 0.16), (0.36, 0.78, 0.39, 0.42)),
    ),
    "shuttle": ("astronaut", ((0.805, 0.28, 0.035, 0.2),), ((0.81, 0.27, 0.12, 0.28),)),
    "cup and saucer": (
        "coffee",
        ((0.46, 0.57, 0.28, 0.33), (0.485, 0.25, 0.17, 0.17)),
        ((0.46, 0.57, 0.38, 0.45), (0.485, 0.25, 0.24, 0.25)),
    ),
    "cup": ("coffee", ((0.485, 0.25, 0.17, 0.17),), ((0.485, 0.25, 0.22, 0.25),)),
    "cat": ("chelsea", ((0.42, 0.5, 0.27, 0.4),), ((0.42, 0.55, 0.42, 0.56),)),
}
BACKGROUNDS = (
    *("astronaut", "coffee", "chelsea", "rocket", "brick", "grass"),
    *("gravel", "motorcycle_left", "hubble_deep_field", "camera", "retina", "ihc"),
)


@dataclass(frozen=True)
class Cutout:
    """An object's pixels [h, w, 3] uint8, its mask [h, w], and the photograph it is from."""

    source: str
    pixels: np.ndarray
    mask: np.ndarray


def photograph(name: str) -> np.ndarray:
    """A photograph that scikit-image installs with itself, RGB."""
    import skimage.data
    from cortado.layers._data.images import read_image

    folder = Path(skimage.data.__file__).parent
    return read_image(next(folder.glob(f"{name}.*[gG]")))


def _inside(ellipses: tuple[Ellipse, ...], shape: tuple[int, ...]) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    y, x = y / shape[0], x / shape[1]
    return np.any([((x - a) / r) ** 2 + ((y - b) / s) ** 2 < 1 for a, b, r, s in ellipses], 0)


def marked(name: str) -> Cutout:
    """An object of ``MARKS``: a watershed of the colour gradient between its marks."""
    from skimage.color import rgb2lab
    from skimage.filters import gaussian, sobel
    from skimage.segmentation import watershed

    source, surely, around = MARKS[name]
    pixels = photograph(source)
    gradient = sobel(gaussian(rgb2lab(pixels), 1, channel_axis=2), axis=(0, 1)).max(2)
    markers = _inside(surely, pixels.shape) + 2 * ~_inside(around, pixels.shape)
    return _cropped(source, pixels, watershed(gradient, markers) == 1)


def coins() -> list[Cutout]:
    """The coins of their photograph, above its threshold."""
    from scipy.ndimage import binary_fill_holes, label
    from skimage.filters import gaussian, threshold_local

    pixels = photograph("coins")
    grey = gaussian(pixels[..., 0].astype(float), 1)
    labels, n = label(binary_fill_holes(grey > threshold_local(grey, 151)))
    found = [_cropped("coins", pixels, labels == i) for i in range(1, n + 1)]
    return [coin for coin in found if coin.mask.sum() > 800 and max(coin.mask.shape) < 70]


def _cropped(source: str, pixels: np.ndarray, mask: np.ndarray) -> Cutout:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return Cutout(source, pixels[window], mask[window])


def cutouts() -> list[Cutout]:
    """Every object, coins a third of them."""
    return [marked(name) for name in MARKS] + coins()[::8]


@dataclass(frozen=True)
class Scene:
    """An image [375, 500, 3] and the boxes [B, 4] of what was pasted on it."""

    image: np.ndarray
    boxes: torch.Tensor


def scenes(count: int, seed: int = 0) -> Iterator[Scene]:
    """Photographs with three objects pasted apart from each other, sides of 50 to 300 pixels."""
    objects, rng = cutouts(), np.random.default_rng(seed)
    backgrounds = {name: _background(photograph(name)) for name in BACKGROUNDS}
    for i in range(count):
        name = BACKGROUNDS[i % len(BACKGROUNDS)]
        image, taken, boxes = backgrounds[name].copy(), np.zeros(SIZE, bool), []
        others = [thing for thing in objects if thing.source != name]
        while len(boxes) < 3:
            box = _paste(image, taken, others[rng.integers(len(others))], rng)
            boxes += [box] if box else []
        yield Scene(image, torch.tensor(boxes, dtype=torch.float32))


def _background(pixels: np.ndarray) -> np.ndarray:
    """The middle of a photograph, scaled to ``SIZE``."""
    scale = max(want / have for want, have in zip(SIZE, pixels.shape[:2], strict=True))
    scaled = _scaled(pixels, scale)
    top, left = ((have - want) // 2 for want, have in zip(SIZE, scaled.shape[:2], strict=True))
    return scaled[top : top + SIZE[0], left : left + SIZE[1]]


def _scaled(pixels: np.ndarray, scale: float) -> np.ndarray:
    from skimage.transform import resize

    shape = [int(np.ceil(scale * side)) for side in pixels.shape[:2]]
    made = resize(pixels.astype(float), shape, anti_aliasing=scale < 1, order=1)
    return np.clip(np.rint(made), 0, 255).astype(np.uint8)


def _paste(
    image: np.ndarray, taken: np.ndarray, thing: Cutout, rng: np.random.Generator
) -> tuple[int, ...] | None:
    """Paste an object at random, mirrored or not; its box, or None where another one is near."""
    scale = np.exp(rng.uniform(np.log(50), np.log(300))) / max(thing.mask.shape)
    pixels, mask = _scaled(thing.pixels, scale), _scaled(255 * thing.mask, scale) > 127
    if rng.random() < 0.5:
        pixels, mask = pixels[:, ::-1], mask[:, ::-1]
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    room = [whole - side for whole, side in zip(SIZE, mask.shape, strict=True)]
    if min(room) < 0:
        return None
    y, x = (int(rng.integers(space + 1)) for space in room)
    window = slice(y, y + mask.shape[0]), slice(x, x + mask.shape[1])
    if taken[window].any():
        return None
    taken[window] = True
    image[window][mask] = pixels[mask]
    return x + columns[0], y + rows[0], x + columns[-1], y + rows[-1]


METHODS: dict[str, Callable[[np.ndarray], torch.Tensor]] = {
    "randomized Prim": lambda image: proposals.randomized_prim(image, max(COUNTS)),
    "selective search": lambda image: proposals.selective_search(image, max(COUNTS)),
    "sliding window": lambda image: proposals.sliding_window(image.shape[:2], max(COUNTS)),
    "random uniform": lambda image: proposals.random_uniform(image.shape[:2], max(COUNTS)),
}


def first(name: str, image: np.ndarray, boxes: torch.Tensor, count: int) -> torch.Tensor:
    """The ``count`` boxes a method would be asked for; a grid is made anew for each count."""
    if name == "sliding window":
        return proposals.sliding_window(image.shape[:2], count)
    return boxes[:count]


@dataclass
class Score:
    """Best IoU of each object for each count, and seconds of each image."""

    best: dict[int, list[float]]
    seconds: list[float]

    def __str__(self) -> str:
        recall = [np.mean(np.array(self.best[count]) >= 0.5) for count in COUNTS]
        overlap = np.mean(self.best[max(COUNTS)])
        numbers = " | ".join(f"{value:.3f}" for value in (*recall, overlap))
        return f"{numbers} | {np.median(self.seconds):.2f} | {max(self.seconds):.2f}"


def measure(count: int, seed: int = 0) -> dict[str, Score]:
    """The score of each method over ``count`` scenes."""
    scores = {name: Score({k: [] for k in COUNTS}, []) for name in METHODS}
    for scene in scenes(count, seed):
        for name, method in METHODS.items():
            start = time.process_time()
            boxes = method(scene.image)
            scores[name].seconds.append(time.process_time() - start)
            for k in COUNTS:
                overlap = iou_matrix(scene.boxes, first(name, scene.image, boxes, k))
                scores[name].best[k] += overlap.amax(1).tolist()
    return scores


def main() -> None:
    """Print, and write if asked, the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"to results/{RESULTS.name}")
    parser.add_argument("--scenes", type=int, default=36)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    scores = measure(arguments.scenes, arguments.seed)
    lines = [
        "# Objects found by the proposals",
        "",
        f"{arguments.scenes} images of 500 x 375 pixels, three pasted objects each: recall at IoU 0.5",
        "of the first boxes, mean best IoU of 1,000, and processor seconds an image for 1,000 boxes.",
        "",
        "| method | 100 | 300 | 1,000 | mean best IoU | median s | most s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(f"| {name} | {score} |" for name, score in scores.items()),
    ]
    print(*lines, sep="\n")
    if arguments.write:
        RESULTS.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
