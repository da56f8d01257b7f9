import copy
import math
import pickle

import numpy as np
import pytest
import torch
from cortado.layers._engine.checks import BlobError
from cortado.layers.hard_negative_mining import (
    HardNegativeMining,
    Mode,
    Params,
    definition,
    hard_negative_mining,
    infer,
)
from suite import LayerSuite

PAIRS, INDEX, MAP = (
    torch.zeros(2, 6, 5),
    torch.zeros(2, 1, 6, dtype=torch.long),
    torch.zeros(2, 3, 4, 5),
)
RANDOM = Mode.HARD_NEG_AND_RAND_NEG_AND_POS


class TestHardNegativeMining(LayerSuite):
    layer = HardNegativeMining
    wrong = (
        ((PAIRS[0], INDEX, MAP), "expected pairs [6, 5] to be [N, P, 5]"),
        ((PAIRS[..., :4], INDEX, MAP), "expected pairs [2, 6, 4] to have 5 columns"),
        ((PAIRS, INDEX[0, 0], MAP), "expected index [6] to be [N, k, P] or [N, P]"),
        ((PAIRS, INDEX[:, :0], MAP), "expected index [2, 0, 6] to be [N, k, P] or [N, P]"),
        ((PAIRS, INDEX[..., :5], MAP), "bottoms disagree on N or P: pairs [2, 6, 5], index [2, 1, 5]"),
        ((PAIRS, INDEX, MAP[0]), "expected reference [3, 4, 5] to be [N, C, H, W]"),
        ((PAIRS, INDEX, MAP[:1]), "batch sizes differ: pairs [2, 6, 5], reference [1, 3, 4, 5]"),
        ((PAIRS, INDEX, MAP, torch.zeros(2, 2)), "expected num_coords [2, 2] to be [2, 1]"),
        ((PAIRS.long(), INDEX, MAP), "expected pairs to be floating point, got torch.int64"),
        ((PAIRS, INDEX.float(), MAP), "expected index to be of integers, got torch.float32"),
        ((PAIRS, INDEX + 20, MAP), "index: a cell past the map of 4 x 5 cells"),
        (
            (PAIRS + math.nan, INDEX, MAP),
            "pairs [2, 6, 5]: row 0 of image 0 has coordinates that are not finite: nan, nan, nan, nan",
        ),
    )

    def oracle(self, params, pairs, index, reference, counts):
        n, p, _ = pairs.shape
        f, offset, width = params.downsampling_factor, params.coordinate_offset, reference.shape[3]
        least = params.random_negative_distance
        least = params.pixel_threshold if least is None else least
        keys = torch.rand(n, p, generator=torch.Generator().manual_seed(params.seed)).numpy()
        table, positives, trues, hards, near = [], [], 0, 0, np.zeros(len(params.pck_radii))
        for m in range(n):
            first, second = [], []
            rows = [list(row) for row in pairs[m]]
            for i in range(int(counts[m, 0]), p):
                rows[i][4] = -1
            true = [i for i in range(p) if rows[i][4] == 1]
            trues += len(true)
            cycle = sorted(true, key=lambda i: keys[m, i])
            successor = dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))
            for i, (x1, y1, x2, y2, s) in enumerate(rows):
                cell = index[m, 0, i] - params.index_base
                match = (cell % width * f + offset, cell // width * f + offset)
                away = math.dist(match, (x2, y2)) if cell >= 0 else math.inf
                hard = s == 1 and cell >= 0 and away > params.pixel_threshold
                hards += hard
                if s == 1:
                    near += [away < radius for radius in params.pck_radii]
                positives.append([x1, y1, x2, y2, 1 if s == 1 else -1])
                if params.mode is Mode.HARD_NEG_TRIPLET:
                    first.append([x1, y1, x2, y2, *(match if hard else (x2, y2)), int(hard)])
                elif params.mode is Mode.HARD_NEG_AND_POS:
                    first.append([x1, y1, *match, 0] if hard else [x1, y1, x2, y2, s])
                else:
                    first.append([x1, y1, x2, y2, s])
                if params.mode is Mode.HARD_NEG_RETAIN_POS:
                    second.append([x1, y1, *match, 0] if hard else [x1, y1, x2, y2, -1])
                elif params.mode is RANDOM:
                    other = rows[successor[i]][2:4] if s == 1 else rows[cycle[0] if cycle else 0][2:4]
                    apart = math.dist(other, (x2, y2))
                    kept = s == 1 and apart >= least and apart > 0
                    second.append([x1, y1, *match, 0] if hard else [x1, y1, *other, 0 if kept else -1])
            table.append(first + second)
        if params.mode is Mode.NO_PROCESSING:
            hards = 0
        left = trues - (hards if params.mode is Mode.HARD_NEG_AND_POS else 0)
        columns = 7 if params.mode is Mode.HARD_NEG_TRIPLET else 5
        return (
            np.array(table).reshape(n, -1, columns),
            near / max(trues, 1),
            np.array(left),
            np.array(hards),
            np.array(positives).reshape(n, p, 5),
        )


def table(*rows):
    return torch.tensor([rows], dtype=torch.float64)


# A map of 3 x 10 cells at every 4th pixel: cell 9 lies at (36, 0), cell 21 at (4, 8).
TABLE = table((0, 0, 4, 8, 1), (1, 1, 36, 0, 1), (2, 2, 0, 0, 0), (3, 3, 9, 9, 1), (4, 4, 9, 9, 1))
NEIGHBOUR = torch.tensor([[9, 9, 29, -1, 21]])
CELLS = torch.zeros(1, 1, 3, 10)


def mine(mode, **options):
    return hard_negative_mining(TABLE, NEIGHBOUR, CELLS, torch.tensor([[4]]), mode, **options)


def test_hard_negatives_take_the_place_of_their_matches():
    tops = mine("HARD_NEG_AND_POS")
    assert tops.pairs[0].tolist() == [
        [0, 0, 36, 0, 0],
        [1, 1, 36, 0, 1],
        [2, 2, 0, 0, 0],
        [3, 3, 9, 9, 1],
        [4, 4, 9, 9, -1],
    ]
    assert (int(tops.num_positives), int(tops.num_hard_negatives)) == (2, 1)
    assert tops.pck.tolist() == pytest.approx([1 / 3])
    assert tops.positives[0, :, 4].tolist() == [1, 1, -1, 1, -1]


def test_hard_negatives_beside_their_matches():
    tops = mine("HARD_NEG_RETAIN_POS")
    assert tops.pairs[0, :5, 4].tolist() == [1, 1, 0, 1, -1]
    assert tops.pairs[0, 5].tolist() == [0, 0, 36, 0, 0]
    assert tops.pairs[0, 6:, 4].tolist() == [-1] * 4
    assert (int(tops.num_positives), int(tops.num_hard_negatives)) == (3, 1)


def test_triplets():
    tops = mine("HARD_NEG_TRIPLET")
    assert tops.pairs[0, 0].tolist() == [0, 0, 4, 8, 36, 0, 1]
    assert tops.pairs[0, 1].tolist() == [1, 1, 36, 0, 36, 0, 0]
    assert tops.pairs[0, 2:, 6].tolist() == [0, 0, 0]


def test_no_processing_only_measures():
    tops = mine("NO_PROCESSING", pck_radii=(1.0, 32.9, 33.0))
    assert torch.equal(tops.pairs[0, :4], TABLE[0, :4])
    assert tops.pairs[0, 4].tolist() == [4, 4, 9, 9, -1]
    assert tops.pck.tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    assert (int(tops.num_positives), int(tops.num_hard_negatives)) == (3, 0)


def test_infinite_distances():
    options = {"pixel_threshold": math.inf, "pck_radii": (math.inf,)}
    tops = mine(RANDOM, **options)
    assert torch.equal(tops.pairs[0, :4], TABLE[0, :4])
    assert tops.pairs[0, 5:, 4].tolist() == [-1] * 5  # nothing is far enough for a negative
    assert tops.pck.tolist() == pytest.approx([2 / 3])  # of the true rows two have a neighbour
    some = mine(RANDOM, **options, random_negative_distance=0.0)
    assert 0 in some.pairs[0, 5:, 4]


def test_one_based_indices_and_offset():
    pairs, reference = table((0, 0, 8, 4, 1)), torch.zeros(1, 1, 2, 3)
    for base in (0, 1):
        index = torch.tensor([[1 + base]])
        tops = hard_negative_mining(
            pairs,
            index,
            reference,
            mode="HARD_NEG_AND_POS",
            coordinate_offset=4,
            index_base=base,
            pck_radii=(1e-9,),
        )
        assert tops.pck.tolist() == [1]
    missing = hard_negative_mining(pairs, torch.tensor([[0]]), reference, index_base=1)
    assert (int(missing.num_hard_negatives), missing.pck.tolist()) == (0, [0])


def test_the_threshold_itself_is_no_hard_negative():
    pairs, reference = table((0, 0, 0, 0, 1)), torch.zeros(1, 1, 1, 9)
    for cell, hard in ((4, 0), (5, 1)):
        tops = hard_negative_mining(pairs, torch.tensor([[cell]]), reference, mode="HARD_NEG_AND_POS")
        assert int(tops.num_hard_negatives) == hard


def test_the_first_of_k_neighbours_counts():
    pairs, reference = table((0, 0, 0, 0, 1)), torch.zeros(1, 1, 1, 9)
    tops = hard_negative_mining(pairs, torch.tensor([[[0], [8]]]), reference)
    assert (int(tops.num_hard_negatives), tops.pck.tolist()) == (0, [1])


def spaced(p, n=1):
    """Rows whose targets are 100 pixels apart, with the right neighbour."""
    x = 100.0 * torch.arange(p)
    pairs = torch.stack((x, 0 * x, x, 0 * x, 0 * x + 1), dim=-1)
    return pairs.repeat(n, 1, 1), 25 * torch.arange(p).repeat(n, 1), torch.zeros(n, 1, 1, 25 * p)


@pytest.mark.parametrize("p", [2, 3, 50])
def test_random_negatives_are_one_cycle(p):
    for seed in range(5):
        tops = hard_negative_mining(*spaced(p, 2), generator=torch.Generator().manual_seed(seed))
        assert torch.equal(tops.pairs[:, :p], spaced(p, 2)[0])
        assert not tops.pairs[:, p:, 4].any()
        for image in tops.pairs:
            row, seen = 0, []
            for _ in range(p):
                seen.append(row)
                row = int(image[p + row, 2]) // 100
            assert row == 0
            assert sorted(seen) == list(range(p))


def test_every_cycle_is_as_likely():
    counts = {}
    pairs, index, reference = spaced(4, 6000)
    tops = hard_negative_mining(pairs, index, reference, generator=torch.Generator().manual_seed(0))
    for image in (tops.pairs[:, 4:, 2] / 100).int().tolist():
        counts[tuple(image)] = counts.get(tuple(image), 0) + 1
    assert len(counts) == 6
    assert max(abs(count - 1000) for count in counts.values()) < 150


def test_a_single_match_has_no_random_negative():
    tops = hard_negative_mining(*spaced(1))
    assert tops.pairs[0, :, 4].tolist() == [1, -1]


def test_near_and_same_targets_are_ignored():
    pairs = table((0, 0, 0, 0, 1), (1, 1, 15.9, 0, 1))
    index, reference = torch.tensor([[0, 4]]), torch.zeros(1, 1, 1, 9)
    for least, label in ((None, -1), (15.9, 0), (16.0, -1), (0.0, 0)):
        tops = hard_negative_mining(pairs, index, reference, random_negative_distance=least)
        assert tops.pairs[0, 2:, 4].tolist() == [label] * 2
    pairs[0, 1, 2] = 0
    tops = hard_negative_mining(pairs, index, reference, random_negative_distance=0)
    assert tops.pairs[0, 2:, 4].tolist() == [-1, -1]


def test_a_hard_negative_overwrites_the_random_one():
    pairs, index, reference = spaced(5)
    index[0, 2] = 0
    tops = hard_negative_mining(pairs, index, reference)
    assert tops.pairs[0, 7].tolist() == [200, 0, 0, 0, 0]
    assert int(tops.num_hard_negatives) == 1


def test_padding_and_false_matches_take_no_part():
    pairs, index, reference = spaced(6)
    pairs[0, 1, 4], pairs[0, 3, 4] = 0, -1
    for _ in range(5):
        tops = hard_negative_mining(pairs, index, reference, torch.tensor([[5]]))
        assert tops.pairs[0, :6, 4].tolist() == [1, 0, 1, -1, 1, -1]
        assert tops.pairs[0, 6:, 4].tolist() == [0, -1, 0, -1, 0, -1]
        taken = sorted(tops.pairs[0, 6:, 2][tops.pairs[0, 6:, 4] == 0].tolist())
        assert taken == [0, 200, 400]


@pytest.mark.parametrize("mode", Mode)
def test_ignored_and_empty_tables(mode):
    pairs, index, reference = spaced(3, 2)
    pairs[..., 4] = -1
    tops = hard_negative_mining(pairs, index, reference, mode=mode)
    label = 0 if mode is Mode.HARD_NEG_TRIPLET else -1
    assert (tops.pairs[..., -1] == label).all()
    assert [float(top) for top in tops[1:4]] == [0, 0, 0]
    for n, p in ((0, 3), (2, 0)):
        tops = hard_negative_mining(pairs[:n, :p], index[:n, :p], reference[:n], mode=mode)
        shapes = HardNegativeMining.infer(Params(mode), (n, p, 5), (n, p), (n, 1, 1, 75))
        assert [tuple(top.shape) for top in tops] == list(shapes)


def test_the_seed_decides_the_sequence():
    bottoms = spaced(20)
    layers = [HardNegativeMining(Params(seed=seed)) for seed in (3, 3, 4)]
    first, same, other = ([layer(*bottoms).pairs for _ in range(2)] for layer in layers)
    assert all(map(torch.equal, first, same))
    assert not torch.equal(*first)
    assert not torch.equal(first[0], other[0])
    torch.manual_seed(5)
    drawn = hard_negative_mining(*bottoms).pairs
    torch.manual_seed(5)
    assert torch.equal(hard_negative_mining(*bottoms).pairs, drawn)


def test_nothing_has_a_gradient():
    pairs, index, reference = spaced(3)
    tops = hard_negative_mining(pairs.requires_grad_(), index, reference.requires_grad_())
    assert not any(top.requires_grad for top in tops)


@pytest.mark.parametrize("mode", Mode)
def test_no_shape_depends_on_values(mode):
    params = Params(mode, pck_radii=(5.0, 10.0))
    pairs, index = torch.empty(2, 6, 5, device="meta"), torch.empty(2, 6, device="meta").long()
    reference = torch.empty(2, 3, 4, 5, device="meta")
    tops = definition(params, pairs, index, reference, torch.tensor([[3], [6]]))
    wanted = infer(params, tuple(pairs.shape), tuple(index.shape), (2, 3, 4, 5))
    assert tuple(tuple(top.shape) for top in tops) == wanted


def test_a_seed_decides_what_is_drawn():
    bottoms = spaced(20)
    first = HardNegativeMining(Params(seed=3))(*bottoms).pairs
    assert torch.equal(hard_negative_mining(*bottoms, seed=3).pairs, first)
    seed = torch.tensor([3])
    for _ in range(2):  # the seed of a call, not the state of a sequence
        assert torch.equal(hard_negative_mining(*bottoms, seed=seed).pairs, first)
    assert torch.equal(hard_negative_mining(*bottoms, seed=np.int64(3)).pairs, first)
    assert not torch.equal(hard_negative_mining(*bottoms, seed=4).pairs, first)


def test_a_generator_gives_the_seed():
    bottoms = spaced(20)
    drawn = torch.randint(2**63 - 1, (1,), generator=torch.Generator().manual_seed(5))
    found = hard_negative_mining(*bottoms, generator=torch.Generator().manual_seed(5)).pairs
    assert torch.equal(found, hard_negative_mining(*bottoms, seed=drawn).pairs)
    generator = torch.Generator().manual_seed(5)
    found = [hard_negative_mining(*bottoms, generator=generator).pairs for _ in range(2)]
    assert not torch.equal(*found)


def test_wrong_seeds():
    bottoms = spaced(2)
    with pytest.raises(ValueError, match="^give generator or seed, not both$"):
        hard_negative_mining(*bottoms, generator=torch.Generator(), seed=3)
    for seed in (1.5, "3", True, [3]):
        with pytest.raises(TypeError, match="^seed: expected an integer or a tensor, got "):
            hard_negative_mining(*bottoms, seed=seed)
    for seed in (torch.tensor([3.0]), torch.tensor([3, 4]), torch.tensor([3], dtype=torch.int32)):
        with pytest.raises(TypeError, match=r"^seed: expected a tensor int64 \[1\] on the CPU, got "):
            hard_negative_mining(*bottoms, seed=seed)
    for seed in (-1, 2**63):
        with pytest.raises(ValueError, match=f"^seed: .* got {seed}$"):
            hard_negative_mining(*bottoms, seed=seed)


def test_the_sequence_of_seeds():
    """Each is the last times one number plus another, in 64 bits."""
    bottoms, state = spaced(20), 2**63 - 1
    layer = HardNegativeMining(Params(seed=state))
    for _ in range(5):
        state = torch.tensor([state])
        assert torch.equal(layer(*bottoms).pairs, hard_negative_mining(*bottoms, seed=state).pairs)
        after = (int(state) * 6364136223846793005 + 1442695040888963407) % 2**64
        state = after - 2**64 if after >= 2**63 else after


def test_the_sequence_goes_on_in_a_copy():
    bottoms, layer = spaced(20), HardNegativeMining(Params(seed=3))
    layer(*bottoms)
    copies = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
    wanted = [layer(*bottoms).pairs for _ in range(2)]
    for other in copies:
        assert all(map(torch.equal, [other(*bottoms).pairs for _ in range(2)], wanted))
    assert not layer.state_dict()


def test_the_sequence_goes_on_where_tensors_are_for_inference():
    bottoms = spaced(20)
    with torch.inference_mode():
        layer = HardNegativeMining(Params(seed=3))
        found = [layer(*bottoms).pairs]
    found.append(layer(*bottoms).pairs)
    layer = HardNegativeMining(Params(seed=3))
    assert all(map(torch.equal, found, [layer(*bottoms).pairs for _ in range(2)]))


@pytest.mark.parametrize("seed", [None, 3])
def test_nothing_is_drawn_in_vain(seed):
    """By calls that are refused, by modes that need nothing, for bottoms without values."""
    pairs, index, reference = spaced(20)
    layer = HardNegativeMining(Params(seed=seed))
    torch.manual_seed(5)
    with pytest.raises(BlobError):
        layer(pairs[0], index, reference)
    with pytest.raises(TypeError):
        layer(pairs, index.float(), reference)
    layer(pairs.to("meta"), index.to("meta"), reference.to("meta"))
    for mode in Mode:
        if mode is not RANDOM:
            HardNegativeMining(Params(mode, seed=seed))(pairs, index, reference)
    found = layer(pairs, index, reference).pairs
    torch.manual_seed(5)
    wanted = HardNegativeMining(Params(seed=seed))(pairs, index, reference).pairs
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("seed", [None, 3])
def test_compiled_draws_are_the_same(seed):
    bottoms, params = spaced(20), Params(seed=seed)
    layer, torch_seed = HardNegativeMining(params), 5
    compiled = torch.compile(HardNegativeMining(params), fullgraph=True, backend="aot_eager")
    drawn = []
    for each in (layer, compiled):
        torch.manual_seed(torch_seed)
        drawn.append([each(*bottoms).pairs for _ in range(3)])
    assert all(map(torch.equal, *drawn))
    assert not torch.equal(*drawn[0][:2])


@pytest.mark.parametrize("strict", [False, True])
def test_an_export_leaves_the_layer_as_it_is(strict):
    bottoms, layer = spaced(20), HardNegativeMining(Params(seed=3))
    made = torch.export.export(layer, tuple(bottoms), strict=strict).module()
    assert layer.state.tolist() == [3]
    assert torch.equal(made(*bottoms).pairs, hard_negative_mining(*bottoms, seed=3).pairs)


def test_the_reference_may_be_of_any_type():
    pairs, index, reference = spaced(5)
    wanted = hard_negative_mining(pairs, index, reference, seed=3)
    for dtype in (torch.uint8, torch.bool, torch.float16, torch.complex64):
        found = hard_negative_mining(pairs, index, reference.to(dtype), seed=3)
        assert all(map(torch.equal, found, wanted))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("seed", [None, 3])
def test_never_waits_for_the_device(mode, seed):
    layer = HardNegativeMining(Params(mode, seed=seed))
    bottoms = [bottom.cuda() for bottom in spaced(20)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(*bottoms)
    finally:
        torch.cuda.set_sync_debug_mode("default")
