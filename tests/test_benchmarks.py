"""The benchmarks' own parts, on the CPU: what they draw, measure, survive, write and print."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys
import types
from pathlib import Path

import benchmark_toys
import numpy as np
import pytest
import torch
from cortado.tools import plain, results
from cortado.tools.measuring import Meter, percentile, sets_past
from cortado.tools.results import BACKWARD, COMPILED, FORWARD, OURS, PLAIN, TORCHVISION, Result

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import gpu, gpu_cases, table
from benchmarks.gpu_cases import Task
from benchmarks.training import Training

RATES = dict.fromkeys(("float32", "float16", "bfloat16", "tf32"), 1e9)
FOUND = (1e9, RATES)


def row(implementation: str, ms: float | None, **more) -> Result:
    times = {} if ms is None else {"p20_ms": ms - 0.25, "p50_ms": ms, "p80_ms": ms + 0.5}
    about = {"device": "Toy 1", "versions": "torch 9", "commit": "abc", "date": "2026-01-01 00:00 UTC"}
    fields = {"direction": "forward", "dtype": "float32"} | times | about | more
    return Result("A", "2 x 3, four", implementation=implementation, **fields)


ROWS = [
    Result(table.DEVICE, "copy", "", "", PLAIN, note="3000 GB/s", date="2026-01-01 00:00 UTC"),
    row(OURS, 1.0, floor_ms=0.5, peak_extra_mib=12.25),
    row(OURS, 0.75, dtype="float16", floor_ms=0.25, note='differs by "a, b"'),
    row(PLAIN, 4.0, peak_extra_mib=100.0),
    row(COMPILED, 2.5, peak_extra_mib=50.0),
    row("other", None, note="out of memory"),
]


class TestTable:
    def test_rows_come_back(self, tmp_path):
        path = tmp_path / "toy.csv"
        results.append(path, ROWS[:3])
        results.append(path, ROWS[3:])
        assert results.read(path) == ROWS
        head = path.read_text().splitlines()[0]
        assert head.startswith(
            "layer,size,dtype,direction,implementation,p20_ms,p50_ms,p80_ms,peak_extra"
        )

    def test_the_last_run_is_what_is_rendered(self):
        later = [dataclasses.replace(x, date="2026-01-02 00:00 UTC") for x in ROWS[:2]]
        assert results.last_run([*ROWS, *later]) == later
        assert results.last_run([]) == []

    def test_the_best_alternative_is_named(self):
        lines = table.render(ROWS).splitlines()
        shown = [line for line in lines if line.startswith("| A | 2 x 3, four | forward | float")]
        assert shown[0] == (
            "| A | 2 x 3, four | forward | float32 | 1 (0.75 to 1.5) | 2.5 torch.compile | 2.50 "
            "| 12.2 | 50.0 | 0.5 | 2.00 |"
        )
        assert 'differs by "a, b"' in shown[1]
        assert "- copy: 3000 GB/s" in lines
        assert "| A | 2 x 3, four | forward | other | out of memory |  |  |" in lines

    def test_an_alternative_without_memory_is_the_best_there_is(self):
        text = table.render([ROWS[1], ROWS[5]])
        assert "| out of memory other |" in text
        assert "| 12.2 |  | 0.5 | 2.00 |" in text

    def test_ours_may_fail_too(self):
        text = table.render([row(OURS, None, note="took more than 25 s"), ROWS[3]])
        assert "| float32 | took more than 25 s | 4 torch |" in text
        assert table.render([]) == "# Nothing was measured\n"


class TestMeasure:
    def test_percentiles(self):
        values = [5.0, 1.0, 3.0, 2.0, 4.0]
        assert [percentile(values, p) for p in (0, 20, 50, 80, 100)] == pytest.approx(
            [1, 1.8, 3, 4.2, 5]
        )
        assert percentile([7.0], 80) == 7

    def test_sets_pass_the_cache(self):
        assert sets_past(50e6, 10e6) == 15
        assert sets_past(50e6, 1e9) == 2
        assert sets_past(50e6, 1) == 24
        assert sets_past(50e6, 0) == 24

    def test_a_round_calls_each_and_keeps_what_it_gives(self):
        alive, most = [], []

        class Top:
            def __init__(self):
                alive.append(self)
                most.append(len(alive))

        def call():
            Top()
            return alive

        meter = Meter()
        assert meter.round([call, call, call]) >= 0
        assert most == [1, 2, 3]
        times = meter.rounds([lambda: None], 0.0)
        assert len(times) == 5

    def test_every_set_is_drawn_anew(self):
        case = toy(lambda x: x)
        first, second = (case.leaves("cpu", torch.float32, seed)[0] for seed in (0, 1))
        assert not torch.equal(first, second)
        assert torch.equal(first, case.leaves("cpu", torch.float32, 0)[0])


def toy(ours, theirs=lambda x: x.clone(), **more) -> gpu_cases.GpuCase:
    return gpu_cases.GpuCase(
        "Toy",
        "4",
        lambda draw: (draw.normal(4),),
        {OURS: ours, PLAIN: theirs},
        lambda leaves, top: (32.0, 48.0),
        **more,
    )


def ask(case, implementation=OURS, direction=FORWARD):
    task = Task(0, torch.float32, direction, implementation)
    return gpu.answer((task, FOUND), [case], Meter(), "cpu", True)


class TestAnswers:
    def test_numbers(self):
        for direction, floor in ((FORWARD, 32e-6), (BACKWARD, 48e-6)):
            found = ask(toy(lambda x: 1 * x), direction=direction)
            assert found["p20_ms"] <= found["p50_ms"] <= found["p80_ms"]
            assert found["floor_ms"] == pytest.approx(floor)
            assert found["note"] == ""
        assert ask(toy(lambda x: 1 * x), PLAIN)["floor_ms"] is None

    def test_flops_may_be_the_floor(self):
        assert ask(toy(lambda x: 1 * x, flops=1e3))["floor_ms"] == pytest.approx(1e-3)

    def test_what_differs_is_said(self):
        assert ask(toy(lambda x: 1.5 * x))["note"].startswith("differs from torch by 0.5")
        assert ask(toy(lambda x: 1.5 * x, tolerance=None))["note"] == ""

    def test_out_of_memory(self):
        def greedy(x):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

        assert ask(toy(lambda x: x, greedy), PLAIN) == "out of memory"

    def test_fewer_sets_where_memory_ends(self):
        calls = []

        class Cramped(Meter):
            def rounds(self, of, seconds):
                calls.append(len(of))
                if len(of) > 1:
                    raise torch.OutOfMemoryError
                return [1.0]

        task = Task(0, torch.float32, FORWARD, OURS)
        case = toy(lambda x: 1 * x, sets=4)
        found = gpu.answer((task, FOUND), [case], Cramped(), "cpu", True)
        assert (found["p50_ms"], calls) == (1.0, [4, 2, 1])

    def test_errors_are_notes(self):
        def wrong(x):
            raise ValueError("no such thing\nand more")

        assert ask(toy(wrong)) == "ValueError: no such thing"
        row = gpu.result(toy(wrong), Task(0, torch.float16, FORWARD, OURS), "ValueError: no such thing")
        assert (row.dtype, row.p50_ms, row.note) == ("float16", None, "ValueError: no such thing")


def test_a_server_is_replaced_when_it_fails(monkeypatch):
    monkeypatch.setattr(gpu, "START", 20.0)
    with gpu.Server(True, benchmark_toys.serve) as server:
        assert [server.ask(word, 20) for word in "ab"] == [("a", 1), ("b", 2)]
        assert server.ask("crash", 20) == "the process ended with status 3"
        assert server.ask("c", 20) == ("c", 1)
        assert server.ask("hang", 0.2) == "took more than 0 s"
        assert server.ask("poison", 20) == ("poison", 1)
        assert server.ask("d", 20) == ("d", 1)


CASES = gpu.everything(small=True)[:-1]  # without the training


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.layer}, {case.size}")
def test_implementations_agree(case):
    """Ours and every alternative that is installed, forward and backward."""
    for task in case.tasks(0):
        if task.implementation in (COMPILED, TORCHVISION) or task.direction == BACKWARD:
            continue
        leaves = case.leaves("cpu", task.dtype, 0)
        assert case.disagrees(task, leaves) == ""
    leaves = case.leaves("cpu", torch.float32, 0)
    if case.differentiable and case.tolerance:
        ours, theirs = (
            case.call(case.implementations[name], leaves, BACKWARD)() for name in (OURS, PLAIN)
        )
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-2 * float(b.abs().max()))
    for direction in case.directions:
        assert case.floor(direction, leaves, *FOUND) > 0


def deform_conv2d(u, offset, weight, padding):
    """As torchvision documents it: an offset (y, x) for each tap, in row-major order."""
    n, _, height, width = u.shape
    k = weight.shape[2]
    columns = []
    for row, column in np.ndindex(k, k):
        dy, dx = offset.view(n, k, k, 2, height, width)[:, row, column].unbind(1)
        y = torch.arange(height)[:, None] - padding + row + dy
        x = torch.arange(width) - padding + column + dx
        grid = torch.stack((2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1), -1)
        columns.append(torch.nn.functional.grid_sample(u, grid, align_corners=True))
    return torch.einsum("knchw,ock->nohw", torch.stack(columns), weight.flatten(2))


def roi_pool(data, rois, output_size, spatial_scale):
    """As torchvision computes it: edges are products in float32."""
    top = data.new_zeros(len(rois), data.shape[1], *output_size)
    for r, (image, *corners) in enumerate(rois.tolist()):
        x, y, *end = (int(corner * spatial_scale + 0.5) for corner in corners)
        steps = [
            torch.tensor(float(last - first + 1)) / n
            for first, last, n in zip((y, x), end[::-1], output_size, strict=True)
        ]
        for i, j in np.ndindex(*output_size):
            (top_row, left), (bottom, right) = (
                [int(edge(k * step)) for k, step in zip(at, steps, strict=True)]
                for edge, at in ((torch.floor, (i, j)), (torch.ceil, (i + 1, j + 1)))
            )
            cells = data[int(image), :, y + top_row : y + bottom, x + left : x + right]
            top[r, :, i, j] = cells.amax((1, 2))
    return top


def test_what_torchvision_computes_is_ours(monkeypatch):
    if not importlib.util.find_spec("torchvision"):
        module = types.ModuleType("torchvision.ops")
        module.deform_conv2d, module.roi_pool = deform_conv2d, roi_pool
        monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
        monkeypatch.setitem(sys.modules, "torchvision.ops", module)
    measured = [case for case in CASES if TORCHVISION in case.implementations]
    assert {case.layer.split(" ")[0] for case in measured} == {
        "ConvolutionalSpatialTransformer",
        "ROIPooling",
    }
    for case in measured:
        task = Task(0, torch.float32, FORWARD, TORCHVISION)
        assert case.disagrees(task, case.leaves("cpu", torch.float32, 0)) == ""


def test_compiled_alternatives_come_last():
    tasks = gpu.chosen([*CASES, Training(True)], "")
    names = [task.implementation for task in tasks]
    assert names.index(COMPILED) == len(names) - names.count(COMPILED)
    assert {task.dtype for task in tasks if task.implementation == PLAIN} == {torch.float32}
    assert [CASES[task.case].layer for task in gpu.chosen(CASES, "LRN, 192")] == ["LRN"] * len(
        gpu.chosen(CASES, "LRN, 192")
    )


def test_the_net_in_plain_operations_trains_alike():
    torch.manual_seed(0)
    case, losses = Training(small=True), []
    leaves = case.leaves("cpu", torch.float32, 0)
    for name in (OURS, PLAIN):
        solver = case.function(Task(0, torch.float32, "training step", name))(*leaves)
        losses.append(solver.step())
    assert losses[0] == pytest.approx(losses[1], rel=0.2)  # the random negatives differ


def test_a_run_writes_its_results(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "SECONDS", 0.0)
    arguments = argparse.Namespace(
        rehearse=True, seconds=300, only="LRN, 64", write=True, results=tmp_path
    )
    every = gpu.chosen
    monkeypatch.setattr(
        gpu, "chosen", lambda *of: [task for task in every(*of) if task.implementation != COMPILED]
    )
    assert gpu.run(arguments) == 0
    rows = results.read(tmp_path / "rehearsal_on_the_cpu.csv")
    measured = [x for x in rows if x.layer == "LRN"]
    assert len(measured) == 8
    assert all(x.p50_ms and x.versions and x.date for x in measured)
    assert (
        "| LRN | 64 x 8 x 12 | backward | float32 |"
        in (tmp_path / "rehearsal_on_the_cpu.md").read_text()
    )
    assert "LRN, 64 x 8 x 12, forward, float32, torch" in capsys.readouterr().out


def test_without_a_device_nothing_is_measured(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    arguments = argparse.Namespace(rehearse=False, seconds=1, only="", write=False, results="")
    assert gpu.run(arguments) == 1
    assert "no CUDA device" in capsys.readouterr().err


def test_plain_replacements_cover_the_nets_layers():
    from cortado.nets import specs
    from cortado.nets.net import Net

    for name in ("ucn_hn", "ucn_hn_st"):
        net = Net(specs.path(name), "TRAIN", seed=0)
        found = {x.type_name for x in net.layers.children() if plain.replacements(x)}
        assert {"ChannelL2Norm", "LRN", "ExtractFeature", "KNN", "HardNegativeMining"} <= found
