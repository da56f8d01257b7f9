"""cortado bench: what is measured, what is said where there is nothing, and two runs compared."""

from __future__ import annotations

import csv
import importlib.machinery
import importlib.util
import io
import json
import math
import sys
import types
from itertools import count

import numpy as np
import pytest
import torch
from cortado.layers._engine.layer import Layer
from cortado.layers._engine.registry import find
from cortado.layers._engine.samples import Sample, normal
from cortado.tools import alternatives, bench, results
from cortado.tools.cli import main
from cortado.tools.comparison import compared, differences
from cortado.tools.layer_bench import Case, Settings, bench_layer, names
from cortado.tools.measuring import Meter, product
from cortado.tools.results import (
    BACKWARD,
    COMPILED,
    FORWARD,
    NO_GRADIENT,
    NO_SAMPLES,
    OURS,
    PLAIN,
    TORCHVISION,
    Result,
)


def clock():
    """A millisecond passes at each look."""
    ticks = count()
    return lambda: next(ticks) / 1e3


def settings(*against, iterations=3, **fields):
    fields = {"size": "small", "dtype": torch.float32, "meter": Meter(clock()), **fields}
    return Settings(device=torch.device("cpu"), against=against, iterations=iterations, **fields)


class Double(Layer):
    """Twice its bottom, times a weight."""

    type_name = "Double"

    def __init__(self, params=None, bottom_shapes=(), generator=None):
        super().__init__(params, bottom_shapes, generator)
        self.weight = torch.nn.Parameter(torch.zeros(5))
        self.blob_names = ("weight",)

    def forward(self, x):
        return 2 * x * self.weight

    @staticmethod
    def samples(size, rng):
        return [Sample(None, (normal(rng, (3, 5)),)), Sample(None, (normal(rng, (3, 5)),))]


class View(Double):
    type_name = "View"

    def forward(self, x):
        return x.view(-1)


class Product(Double):
    type_name = "Product"

    @classmethod
    def multiply_adds(cls, params, bottoms, tops, blobs):
        return math.prod(bottoms[0]) * math.prod(blobs[0])


class Broken(Double):
    type_name = "Broken"

    def forward(self, x):
        raise ValueError("no such thing\nand more")


class Bare(Layer):
    type_name = "Bare"


def case(kind, number=0, **fields):
    kind = find(kind).layer if isinstance(kind, str) else kind
    sample = kind.samples("small", np.random.default_rng(0))[number]
    return Case(kind, sample, settings(**fields))


class TestMeasuring:
    def test_groups_take_turns(self):
        order = []
        calls = [[lambda: order.append("a")], [lambda: order.append("b")] * 2]
        times = Meter(clock()).together(calls, 0.0, iterations=3)
        assert "".join(order) == "abb" * 5
        np.testing.assert_allclose(times, [[1.0] * 3, [0.5] * 3])

    def test_rounds_fill_the_time(self):
        # Five rounds of 2 ms, two looks each, then some of 3 ms: another look whether there is time.
        assert len(Meter(clock()).together([[int]], 0.030)[0]) == 5 + 7
        assert len(Meter(clock()).together([[int]], 0.0)[0]) == 5
        assert len(Meter(clock()).together([[int]], 9.0)[0]) == 60


class TestRows:
    def test_every_sample_in_both_directions(self):
        rows = list(bench_layer(Double, settings()))
        sizes = ["small, 3 x 5", "small, 3 x 5 #2"]
        assert [row.what for row in rows] == [
            ("Double", size, direction) for size in sizes for direction in (FORWARD, BACKWARD)
        ]
        for row in rows:
            assert (row.p20_ms, row.p50_ms, row.p80_ms) == pytest.approx((1, 1, 1))
            assert row.floor_ms == pytest.approx(1)
            assert row.note == ""
            assert not bench.failed(row)

    def test_memory_is_that_of_the_tops(self):
        forward, backward = list(bench_layer(Double, settings()))[:2]
        assert forward.peak_extra_mib == pytest.approx(2 * 60 / 2**20)
        assert backward.peak_extra_mib > forward.peak_extra_mib

    def test_what_there_is_nothing_of(self):
        (row,) = bench_layer(Bare, settings(PLAIN))
        assert (row.layer, row.p50_ms, row.note) == ("Bare", None, NO_SAMPLES)
        forward, backward = list(bench_layer(find("ArgMax").layer, settings()))[:2]
        assert forward.p50_ms == pytest.approx(1)
        assert (backward.p50_ms, backward.note) == (None, NO_GRADIENT)
        assert not bench.failed(row)
        assert not bench.failed(backward)

    def test_a_layer_that_fails(self):
        rows = list(bench_layer(Broken, settings()))
        assert {row.note for row in rows} == {"ValueError: no such thing"}
        assert all(bench.failed(row) for row in rows)

    def test_a_layer_that_cannot_be_made(self):
        class Unmade(Double):
            def __init__(self, *_):
                raise ValueError("no")

        rows = list(bench_layer(Unmade, settings()))
        assert [row.note for row in rows] == ["ValueError: no"] * 2

    def test_precision_is_not_that_of_tables(self):
        made = case("ExtractFeature", dtype=torch.float16)
        assert [x.dtype for x in made.leaves] == [torch.float16, torch.float32]

    def test_names(self):
        bottom = torch.zeros(2, 3)
        samples = [Sample(None, (bottom,), name=name) for name in ("a", "a", "b", "a")]
        found = names("large", [*samples, Sample(None, ())])
        first = "large, a, 2 x 3"
        assert found == [first, f"{first} #2", "large, b, 2 x 3", f"{first} #3", "large"]


class TestFloor:
    def test_bottoms_parameters_and_tops(self):
        made = case(Double)
        assert made.moved(FORWARD) == 4 * (15 + 5 + 15)
        assert made.moved(BACKWARD) == 4 * (15 + 15 + 5)

    def test_a_view_moves_nothing(self):
        made = case(View)
        assert (made.moved(FORWARD), made.moved(BACKWARD)) == (0, 0)
        assert {row.floor_ms for row in bench_layer(View, settings())} == {None}

    def test_cells_that_are_read(self):
        feature, pairs = torch.zeros(1, 2, 4, 5), torch.tensor([[[0.0, 0, 9, 9, 1], [6, 4, 9, 9, 1]]])
        kind = find("ExtractFeature").layer
        made = Case(kind, Sample(kind.Params(), (feature.double(), pairs.double())), settings())
        cells = 2 * (1 + 2)  # a point on a cell and one between two, of two channels
        assert made.moved(FORWARD) == 4 * (cells + 10 + 2 * 2)
        assert made.moved(BACKWARD) == 4 * (2 * 2 + 40)

    def test_a_reference_for_its_shape_alone(self):
        made = case("Crop")
        top = made.tops[0]
        assert made.moved(BACKWARD) == 4 * (top.numel() + made.leaves[0].numel())

    def test_products_may_take_longer(self, monkeypatch):
        monkeypatch.setattr("cortado.tools.layer_bench.SIDES", {"cpu": (1, 3)})
        forward, backward = list(bench_layer(Product, settings()))[:2]
        assert forward.floor_ms == pytest.approx(15 * 5 / 3**3)  # as many products of 1 ms each
        assert backward.floor_ms == pytest.approx(1)

    def test_a_product_of_as_many_multiply_adds(self):
        for work, side, times in ((1000, 10, 1), (8, 4, 1 / 8), (16**3, 12, (16 / 12) ** 3)):
            call, found = product(work, torch.float32, "cpu", (4, 12))
            assert call().shape == (side, side)
            assert found == pytest.approx(times)


WRITTEN = (
    "ChannelL2Norm",
    "CorrespondenceContrastiveLoss",
    "ExtractFeature",
    "HoughVoting",
    "LRN",
    "RectifiedCosine",
)


class TestAlternatives:
    def test_each_is_there_or_says_why_not(self):
        kinds = [find(name).layer for name in ("ChannelL2Norm", "ReLU")]
        rows = [r for kind in kinds for r in bench_layer(kind, settings(PLAIN, TORCHVISION))]
        found = {(row.layer, row.implementation, row.note) for row in rows if row.direction == FORWARD}
        own = "the layer itself computes in torch's operations"
        none = "torchvision has no such operation"
        assert {
            ("ChannelL2Norm", PLAIN, ""),
            ("ReLU", PLAIN, own),
            ("ReLU", TORCHVISION, none),
        } <= found
        for row in rows:
            assert (row.p50_ms is None) == (row.note in (own, none))
            assert (row.floor_ms is None) == (row.implementation != OURS)

    @pytest.mark.parametrize("kind", WRITTEN)
    def test_what_is_written_agrees(self, kind):
        notes, written = set(), 0
        for number in range(len(find(kind).layer.samples("small", np.random.default_rng(0)))):
            made = case(kind, number, dtype=torch.float64)
            try:
                function = alternatives.implementation(made.layer, PLAIN, torch.device("cpu"))
            except alternatives.Unavailable:
                continue
            written += 1
            notes.add(alternatives.difference(made.layer, PLAIN, function, made.leaves))
        assert written
        assert notes == {""}

    def test_what_differs_is_said(self):
        made = case(Double)
        made.leaves[0].fill_(1).mul_(torch.tensor([[1.0], [0.5], [0.5]]))
        made.layer.weight.data.fill_(1)

        def first_row_tripled(x):
            return 2 * x * made.layer.weight * torch.tensor([[3], [1], [1]])

        for function, said in (
            (first_row_tripled, "33.3% differs, by up to 2 of the largest"),
            (lambda x: (2 * x * made.layer.weight)[:2], "gives [2, 5], not [3, 5]"),
            (lambda x: float("nan") * x, "100% differs, by up to nan of the largest"),
            (lambda x: 2.001 * x * made.layer.weight, ""),
        ):
            assert alternatives.difference(made.layer, PLAIN, function, made.leaves) == said

    def test_what_is_random_is_not_compared(self):
        made = case("Dropout")
        assert alternatives.difference(made.layer, PLAIN, lambda x: 0 * x, made.leaves) == ""

    def test_an_alternative_that_fails(self, monkeypatch):
        def fails(function, **options):
            def call(*inputs):
                raise RuntimeError("no compiler\nwas found")

            return call

        monkeypatch.setattr(torch, "compile", fails)
        ours, theirs = list(bench_layer(Double, settings(COMPILED)))[:2]
        assert (ours.p50_ms, ours.note) == (pytest.approx(1), "")
        assert (theirs.p50_ms, theirs.peak_extra_mib) == (None, None)
        assert theirs.note == "RuntimeError: no compiler"
        assert not bench.failed(theirs)

    def test_what_is_compiled(self, monkeypatch):
        given = []
        monkeypatch.setattr(torch, "compile", lambda function, **_: given.append(function) or function)
        rows = list(bench_layer(find("ReLU").layer, settings(COMPILED)))
        assert all(isinstance(function, Layer) for function in given)
        assert {row.note for row in rows} == {""}
        given.clear()
        alternatives.implementation(case("ChannelL2Norm").layer, COMPILED, torch.device("cpu"))
        assert not isinstance(given[0], Layer)

    def test_torchvision(self, monkeypatch):
        made = case("ROIPooling")
        device = torch.device("cpu")
        if not importlib.util.find_spec("torchvision"):
            with pytest.raises(alternatives.Unavailable, match="torchvision is not installed"):
                alternatives.implementation(made.layer, TORCHVISION, device)
            for name in ("torchvision", "torchvision.ops"):
                module = types.ModuleType(name)
                module.__spec__ = importlib.machinery.ModuleSpec(name, None)
                module.roi_pool = roi_pool
                monkeypatch.setitem(sys.modules, name, module)
        function = alternatives.implementation(made.layer, TORCHVISION, device)
        assert alternatives.difference(made.layer, TORCHVISION, function, made.leaves) == ""


def roi_pool(data, rois, size, spatial_scale):
    """As torchvision documents it."""
    tops = []
    for image, *corners in rois.tolist():
        left, top, right, bottom = (math.floor(x * spatial_scale + 0.5) for x in corners)
        rows, columns = (max(b - a + 1, 1) for a, b in ((top, bottom), (left, right)))
        out = torch.zeros(data.shape[1], *size)
        for i, j in np.ndindex(*size):
            y = [top + math.floor(i * rows / size[0]), top + math.ceil((i + 1) * rows / size[0])]
            x = [
                left + math.floor(j * columns / size[1]),
                left + math.ceil((j + 1) * columns / size[1]),
            ]
            (y0, y1), (x0, x1) = np.clip(y, 0, data.shape[2]), np.clip(x, 0, data.shape[3])
            if y1 > y0 and x1 > x0:
                out[:, i, j] = data[int(image), :, y0:y1, x0:x1].amax((1, 2))
        tops.append(out)
    return torch.stack(tops)


def row(layer="A", ms=1.0, mib=8.0, by=OURS, **fields):
    times = {} if ms is None else {"p20_ms": ms, "p50_ms": ms, "p80_ms": ms}
    about = {"device": "Toy", "threads": "1", "versions": "cortado 1, torch 9.1+cpu", "date": "today"}
    fields = {"peak_extra_mib": mib, "commit": "abc", **about, **times, **fields}
    return Result(layer, "small, 2 x 3", "float32", FORWARD, by, **fields)


ROWS = [row(floor_ms=0.25), row("B", None, None, note='an "error", with,\na comma'), row(by=PLAIN)]


class TestFiles:
    def test_json(self, tmp_path):
        data = results.data(ROWS)
        assert data["about"]["versions"] == {"cortado": "1", "torch": "9.1+cpu"}
        assert "versions" not in data["results"][0]
        (tmp_path / "a").write_text(json.dumps(data))
        assert results.read(tmp_path / "a") == ROWS

    def test_csv(self, tmp_path):
        with (tmp_path / "a").open("w", newline="") as file:
            results.write_csv(file, ROWS)
        assert results.read(tmp_path / "a") == ROWS

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "no column direction"),
            ("{", "not the results of cortado bench: Expecting"),
            ('{"about": {}}', "not the results of cortado bench: 'versions'"),
            ("a,b\n1,2\n", "no column direction, dtype, implementation, layer, size"),
            ("layer,size,dtype,direction,implementation\n", "no results"),
            ("layer,size,dtype,direction,implementation,p50_ms\nA,a,b,c,d,fast\n", "could not convert"),
            ("layer,size,dtype,direction,implementation,more\nA,a,b,c,d,e\n", "unexpected keyword"),
        ],
    )
    def test_what_is_no_result(self, tmp_path, text, message):
        (tmp_path / "a").write_text(text)
        with pytest.raises(ValueError, match=message) as error:
            results.read(tmp_path / "a")
        assert str(tmp_path / "a") in str(error.value)

    def test_the_commit_of_somebody_else_is_not_ours(self, tmp_path, monkeypatch):
        monkeypatch.setattr(results, "ROOT", tmp_path)
        assert results.commit() == ""


class TestCompare:
    def verdicts(self, old, new, above=0.1):
        return [(change.verdict, change.regression) for change in compared(old, new, above)]

    def test_slower(self):
        old = [row(), row("B"), row("C"), row("D", by=PLAIN)]
        new = [row(ms=1.09), row("B", 1.11), row("C", 0.8), row("D", 2.0, by=PLAIN)]
        found = self.verdicts(old, new)
        assert found == [("", False), ("slower", True), ("faster", False), ("slower", False)]
        assert self.verdicts(old, new, 0.2)[1] == ("", False)
        assert compared(old, new, 0.1)[1].change == pytest.approx(0.11)

    def test_more_memory(self):
        old, new = [row(), row("B", mib=0.5)], [row(mib=9.0), row("B", mib=0.6)]
        assert self.verdicts(old, new) == [("more memory", True), ("", False)]

    def test_lost(self):
        assert self.verdicts([row()], [row(ms=None, note="out of memory")]) == [
            ("lost: out of memory", True)
        ]
        assert self.verdicts([row(ms=None, note="out of memory")], [row()]) == [("", False)]
        assert compared([row(ms=None, note=NO_GRADIENT)], [row(ms=None, note=NO_GRADIENT)], 0) == []

    def test_what_else_may_explain_it(self):
        old, new = [row(), row("B")], [row(device="Other", commit=""), row("C", commit="")]
        assert differences(old, new) == [
            "device: Toy then, Other now",
            "commit: abc then, unknown now",
            "1 rows only in the first file: B",
            "1 rows only in the second file: C",
        ]


def run(capfd, *args):
    with pytest.raises(SystemExit) as end:
        main(list(args))
    out, err = capfd.readouterr()
    return end.value.code or 0, out, err


class TestCommand:
    SMALL = ("--size", "small", "--iterations", "1")

    def test_json(self, capfd):
        code, out, err = run(capfd, "bench", "ReLU", "PCK", *self.SMALL, "--against", "torch", "--json")
        assert code == 0
        assert "profiler" not in err
        found = json.loads(out)
        about = found["about"]
        assert about["versions"]["torch"] == torch.__version__
        assert about["device"]
        assert about["threads"] == str(torch.get_num_threads())
        rows = [Result(**row) for row in found["results"]]
        assert [(x.layer, x.direction, x.implementation) for x in rows if x.layer == "ReLU"] == [
            ("ReLU", direction, by) for direction in (FORWARD, BACKWARD) for by in (OURS, PLAIN)
        ]
        assert all(x.p50_ms > 0 and x.floor_ms > 0 for x in rows if x.implementation == OURS and x.size)
        assert [x.note for x in rows if x.layer == "PCK" and not x.size] == [NO_SAMPLES]

    def test_csv_and_a_comparison(self, capfd, tmp_path):
        code, out, _ = run(capfd, "bench", "ReLU", *self.SMALL, "--csv")
        assert code == 0
        assert [line["direction"] for line in csv.DictReader(io.StringIO(out))] == [FORWARD, BACKWARD]
        (tmp_path / "old.csv").write_text(out)
        slow = [x.but(p50_ms=2 * x.p50_ms) for x in results.read(tmp_path / "old.csv")]
        (tmp_path / "new.json").write_text(json.dumps(results.data(slow)))
        files = (str(tmp_path / "old.csv"), str(tmp_path / "new.json"))
        code, out, _ = run(capfd, "bench", "compare", *files)
        assert code == 1
        assert "+100.0%" in out
        assert "2 rows compared, 2 worse" in out
        code, out, _ = run(capfd, "bench", "compare", *files, "--fail-above", "100.5%", "--json")
        assert code == 0
        assert [change["regression"] for change in json.loads(out)["changes"]] == [False, False]
        assert run(capfd, "bench", "compare", files[0], files[0])[0] == 0

    def test_table(self, capfd):
        code, out, _ = run(
            capfd, "bench", "ChannelL2Norm", "Accuracy", *self.SMALL, "--against", "torch,torchvision"
        )
        assert code == 0
        assert "torchvision ms" in out
        assert "cortado: no gradient: Accuracy" in out
        assert "torchvision: torchvision has no such operation: ChannelL2Norm, Accuracy" in out
        assert f"torch {torch.__version__}" in out

    def test_a_plugin_that_fails(self, capfd, tmp_path):
        (tmp_path / "mine.py").write_text(
            "from cortado.layers._engine.layer import Layer\n"
            "from cortado.layers._engine.registry import register\n"
            "from cortado.layers._engine.samples import Sample, normal\n"
            "@register('BenchBroken')\n"
            "class Broken(Layer):\n"
            "    def forward(self, x):\n"
            "        raise ValueError('no such thing')\n"
            "    @staticmethod\n"
            "    def samples(size, rng):\n"
            "        return [Sample(None, (normal(rng, (2, 3)),))]\n"
        )
        code, out, _ = run(
            capfd, "bench", "BenchBroken", "--plugin", str(tmp_path / "mine.py"), *self.SMALL
        )
        assert code == 1
        assert "cortado: ValueError: no such thing: BenchBroken" in out

    def test_mistakes(self, capfd, tmp_path):
        code, _, err = run(capfd, "bench", "ChanelL2Norm")
        assert code == 2
        assert 'no layer type "ChanelL2Norm": did you mean "ChannelL2Norm"?' in err
        code, _, err = run(capfd, "bench", "ReLU", "--against", "torch,tf")
        assert code == 2
        assert '"tf" is none of torch, compile, torchvision' in err
        assert run(capfd, "bench", "ReLU", "--json", "--csv")[0] == 2
        assert run(capfd, "bench", "compare", "none.json", "none.json")[0] == 2
        for name, layer in (("a", "A"), ("b", "B")):
            (tmp_path / name).write_text(json.dumps(results.data([row(layer)])))
        files = (str(tmp_path / "a"), str(tmp_path / "b"))
        code, _, err = run(capfd, "bench", "compare", *files)
        assert code == 2
        assert "no row in common" in err
        for text in ("ten", "-3", "nan"):
            assert run(capfd, "bench", "compare", *files, f"--fail-above={text}")[0] == 2

    def test_help_of_the_comparison(self, capfd):
        code, out, _ = run(capfd, "bench", "compare", "--help")
        assert code == 0
        assert "cortado bench compare [OPTIONS] OLD NEW" in out


def test_numbers_of_a_table():
    shown = [results.number(x) for x in (None, 0.0, 0.01234, 0.1, 99.96, 999.4, 999.6, 12345.6)]
    assert shown == ["", "0.0000", "0.0123", "0.1", "100", "999", "1,000", "12,346"]
