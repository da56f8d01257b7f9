"""Proposals: their graphs and trees against loops, their promises, and what they find."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
import skimage.data
import torch
from cortado.layers._data import proposals
from cortado.layers._data.proposals import (
    Regions,
    grow,
    merge,
    random_uniform,
    randomized_prim,
    selective_search,
    sliding_window,
)
from cortado.layers._geometry.boxes import iou_matrix
from scipy.sparse import csgraph
from scipy.sparse.csgraph import dijkstra

METHODS = {
    "prim": randomized_prim,
    "search": selective_search,
    "window": lambda image, count, seed: sliding_window(image.shape[:2], count),
    "uniform": lambda image, count, seed: random_uniform(image.shape[:2], count, seed),
}


@pytest.fixture(scope="module")
def image():
    return skimage.data.coffee()[60:260:2, 150:450:2]


@pytest.fixture(scope="module")
def labels():
    """Twelve regions of 10 x 14 pixels, each of one piece."""
    rng = np.random.default_rng(3)
    seeds = rng.permutation(140)[:12]
    y, x = np.divmod(np.arange(140), 14)
    near = np.abs(y[:, None] - y[seeds]) + np.abs(x[:, None] - x[seeds]) * 1.001
    return near.argmin(1).reshape(10, 14)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_promises(method, image):
    boxes = method(image, 150, 1)
    assert boxes.dtype == torch.float32
    assert boxes.shape == (150, 4)
    assert len({tuple(row) for row in boxes.tolist()}) == 150
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor([149, 99, 149, 99])).all()
    assert (boxes[:, :2] <= boxes[:, 2:]).all()
    assert torch.equal(boxes, boxes.round())
    assert torch.equal(boxes, method(image, 150, 1))
    if method is not METHODS["window"]:
        assert not torch.equal(boxes, method(image, 150, 2))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (40, 3)])
def test_images_of_one_colour_and_tiny_ones(method, shape):
    boxes = method(np.full((*shape, 3), 77, np.uint8), 20, 0)
    assert 1 <= len(boxes) <= 20
    assert (boxes <= torch.tensor([shape[1] - 1, shape[0] - 1] * 2)).all()
    assert len(boxes.unique(dim=0)) == len(boxes)
    if method in (randomized_prim, selective_search):
        assert boxes.tolist() == [[0, 0, shape[1] - 1, shape[0] - 1]]


@pytest.mark.parametrize("method", [randomized_prim, selective_search])
def test_any_kind_of_image(method, image):
    assert torch.equal(method(image, 50), method(image / 255, 50))
    grey = image[..., 0]
    assert torch.equal(method(grey, 50), method(np.stack([grey] * 3, 2), 50))
    assert method(image, 1).shape == (1, 4)


def test_windows_are_spread_and_the_largest_first():
    boxes = sliding_window((100, 150), 500)
    assert boxes[0].tolist() == [0, 0, 149, 99]
    area = (boxes[:, 2:] - boxes[:, :2] + 1).prod(1)
    assert area[:50].min() > area[-50:].max()
    centre = boxes.view(-1, 2, 2).mean(1)
    assert centre.mean(0).tolist() == pytest.approx([74.5, 49.5], abs=1)
    assert torch.equal(boxes.flip(0).unique(dim=0), boxes.unique(dim=0))


def test_errors_are_exact(image):
    for call, message in (
        (lambda: randomized_prim(image, 0), "expected count to be at least 1, got 0"),
        (lambda: selective_search(image, -1), "expected count to be at least 1, got -1"),
        (lambda: sliding_window((5, 5), 0), "expected count to be at least 1, got 0"),
        (
            lambda: random_uniform((0, 5)),
            "expected size to be (height, width), at least 1 each, got (0, 5)",
        ),
        (
            lambda: sliding_window((5, 5, 3)),
            "expected size to be (height, width), at least 1 each, got (5, 5, 3)",
        ),
        (
            lambda: randomized_prim(image[..., :2]),
            "expected an image [H, W] or [H, W, 1|3|4], got [100, 150, 2]",
        ),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert str(caught.value) == message


def described(labels, space):
    return proposals._regions(labels, space, with_texture=True)


def test_regions_against_loops(labels):
    space = np.random.default_rng(0).random((10, 14, 3))
    found = described(labels, space)
    border, perimeter = Counter(), Counter()
    for y, x in np.ndindex(10, 14):
        for v, u in ((y + 1, x), (y, x + 1), (y - 1, x), (y, x - 1)):
            inside = 0 <= v < 10 and 0 <= u < 14
            if not inside or labels[y, x] != labels[v, u]:
                perimeter[labels[y, x]] += 1
            if inside and labels[y, x] < labels[v, u]:
                border[labels[y, x], labels[v, u]] += 1
    assert {tuple(e): n for e, n in zip(found.edges.tolist(), found.border, strict=True)} == border
    assert found.perimeter.tolist() == [perimeter[i] for i in range(12)]
    for i in range(12):
        y, x = np.nonzero(labels == i)
        assert found.area[i] == len(y)
        assert found.box[i].tolist() == [x.min(), y.min(), x.max(), y.max()]
        wanted = np.concatenate(
            [np.histogram(space[y, x, c], proposals.BINS, (0, 1))[0] for c in range(3)]
        )
        assert found.color[i] == pytest.approx(wanted / (3 * len(y)))
    assert found.texture.sum(1) == pytest.approx(1)


def graph(rho):
    """A square with a tail, and rho of its edges: regions side by side on a line."""
    edges = np.array([[0, 1], [0, 2], [1, 3], [2, 3], [3, 4]])
    box = np.array([[i, 0, i, 0] for i in range(5)])
    size = np.ones(5)
    return Regions(box, size, size, edges, size, size, size), np.array(rho)


def test_trees_grow_in_proportion_to_rho():
    """How often each order of joining comes, against the product of its steps' shares."""
    regions, rho = graph([0.9, 0.2, 0.5, 0.7, 0.4])
    weight = {frozenset(e): r for e, r in zip(regions.edges.tolist(), rho, strict=True)}
    trees = 40_000
    order, chosen = proposals._growth(5, regions.edges, rho, trees, np.random.default_rng(0))
    counted = Counter(map(tuple, order.tolist()))
    for joined in permutations(range(5)):
        likely = 1 / 5
        for k in range(1, 5):
            leaving = {e: w for e, w in weight.items() if len(e & set(joined[:k])) == 1}
            likely *= sum(w for e, w in leaving.items() if joined[k] in e) / sum(leaving.values())
        spread = 5 * np.sqrt(likely * (1 - likely) / trees)
        assert abs(counted[joined] / trees - likely) <= spread
    assert (chosen[:, 0] == 1).all()
    for row, edges in zip(order[:200], chosen[:200], strict=True):
        for k in range(1, 5):
            assert edges[k] in [weight.get(frozenset((row[k], before))) for before in row[:k]]


def test_the_graph_has_the_indices_that_every_scipy_takes(monkeypatch):
    given = []

    def noted(graph, **options):
        given.extend((graph.indices.dtype, graph.indptr.dtype))
        return dijkstra(graph, **options)

    monkeypatch.setattr(csgraph, "dijkstra", noted)
    grow(*graph([0.9, 0.2, 0.5, 0.7, 0.4]), 3, np.random.default_rng(0))
    assert given == [np.int32, np.int32]


def loop_tree(regions, rho, rng):
    """One tree by a list of the edges that leave it."""
    inside, threshold = {int(rng.integers(len(regions.area)))}, rng.uniform(0, 2)
    while True:
        leaving = [m for m, e in enumerate(regions.edges) if len(inside & set(e.tolist())) == 1]
        if not leaving:
            break
        taken = rng.choice(leaving, p=rho[leaving] / rho[leaving].sum())
        share = regions.area[list(inside)].sum() / regions.area.sum()
        if np.sqrt(share) + 1 - rho[taken] > threshold:
            break
        inside |= set(regions.edges[taken].tolist())
    box = regions.box[list(inside)]
    return (*box[:, :2].min(0).tolist(), *box[:, 2:].max(0).tolist())


def test_trees_stop_as_often_as_in_a_loop():
    regions, rho = graph([0.9, 0.2, 0.5, 0.7, 0.4])
    rng = np.random.default_rng(1)
    found = Counter(map(tuple, grow(regions, rho, 20_000, rng).tolist()))
    wanted = Counter(loop_tree(regions, rho, rng) for _ in range(5_000))
    assert set(wanted) <= set(found)
    for box in found:
        assert found[box] / 20_000 == pytest.approx(wanted[box] / 5_000, abs=0.03)


@pytest.mark.parametrize("with_color", [False, True])
def test_merging_against_pixels(labels, with_color):
    """The hierarchy, where every similarity is computed anew from the pixels' histograms."""
    regions = described(labels, np.random.default_rng(1).random((10, 14, 3)))
    parts = {i: {i} for i in range(12)}
    touch = {frozenset(e) for e in regions.edges.tolist()}
    boxes = regions.box.tolist()

    def bounds(members):
        box = regions.box[sorted(members)]
        return [*box[:, :2].min(0), *box[:, 2:].max(0)]

    def likeness(a, b):
        areas = [regions.area[sorted(m)].sum() for m in (a, b)]
        total = 0.0
        for table in (regions.texture, *([regions.color] if with_color else [])):
            mean = [
                (table * regions.area[:, None])[sorted(m)].sum(0) / regions.area[sorted(m)].sum()
                for m in (a, b)
            ]
            total += np.minimum(*mean).sum()
        x1, y1, x2, y2 = bounds(a | b)
        around = (x2 - x1 + 1) * (y2 - y1 + 1)
        return total + 1 - sum(areas) / 140 + 1 - (around - sum(areas)) / 140

    for new in range(12, 23):
        pairs = [
            (likeness(parts[i], parts[j]), i, j)
            for i in parts
            for j in parts
            if i < j and any(frozenset((a, b)) in touch for a in parts[i] for b in parts[j])
        ]
        _, i, j = max(pairs)
        parts[new] = parts.pop(i) | parts.pop(j)
        boxes.append(bounds(parts[new]))
    assert merge(regions, with_color).tolist() == boxes


def test_the_published_weights():
    """rho by hand: c = 0.5, l = 4 / 10, s = 1 - 30 / 100."""
    two = np.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]])
    regions = Regions(
        np.zeros((3, 4)),
        np.array([10, 20, 70]),
        np.array([10, 16, 40]),
        np.array([[0, 1]]),
        np.array([4]),
        two,
        two,
    )
    exponent = 3.0017 - 2.6864 * 0.5 - 1.0029 * 0.4 - 2.3655 * 0.7
    assert proposals._togetherness(regions) == pytest.approx(1 / (1 + np.exp(exponent)))


def test_coins_are_found():
    """More of the coins of a photograph than sliding windows do, of as many boxes."""
    from scipy.ndimage import find_objects, label
    from skimage.filters import gaussian, threshold_local

    photograph = skimage.data.coins()
    grey = gaussian(photograph.astype(float), 1)
    coins = [
        (x.start, y.start, x.stop - 1, y.stop - 1)
        for y, x in find_objects(label(grey > threshold_local(grey, 151))[0])
        if min(x.stop - x.start, y.stop - y.start) > 25 and x.stop - x.start < 70
    ]
    assert len(coins) >= 18
    truth = torch.tensor(coins).float()

    def recall(boxes):
        return float((iou_matrix(truth, boxes).amax(1) >= 0.5).float().mean())

    window = recall(sliding_window(photograph.shape, 400))
    assert recall(randomized_prim(photograph, 400)) > window
    assert recall(selective_search(photograph, 400)) > window
