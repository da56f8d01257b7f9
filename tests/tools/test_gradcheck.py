"""The checker of gradients, itself checked: with true gradients, and with spoiled ones."""

from __future__ import annotations

import json

import pytest
import torch
from cortado.layers._engine import registry
from cortado.layers.standard.inner_product import InnerProduct
from cortado.prototxt_like import loads
from cortado.tools.cli import main
from cortado.tools.differences import Verdict
from cortado.tools.gradcheck import (
    METHODS,
    GradientError,
    caffe_check,
    cases,
    check_function,
    check_layer,
    check_net,
    directional,
    paper_layers,
)


class Cube(torch.autograd.Function):
    """x^3 with a gradient of ``factor`` times the true one."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.save_for_backward(x)
        ctx.factor = factor
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return ctx.factor * 3 * x**2 * gradient, None


X = torch.linspace(-1, 2, 12, dtype=torch.float64).reshape(3, 4)
SCALES = (1.0, 1e-6, 1e6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", SCALES)
def test_a_true_gradient_passes_at_any_scale(method, scale):
    report = check_function(lambda x: scale * Cube.apply(x, 1.0), [X], method=method)
    assert report.ok
    (finding,) = report.check().findings
    assert finding.verdict is Verdict.OK
    assert finding.checked == (2 if method == "directional" else 12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("factor", [0.0, 0.9, -1.0, 1.01, float("nan")])
def test_a_false_gradient_is_caught_at_any_scale(method, scale, factor):
    report = check_function(lambda x: scale * Cube.apply(x, factor), [X], method=method)
    assert not report.ok
    with pytest.raises(GradientError, match="input 0: wrong, error"):
        report.check()


def test_the_worst_element_is_named():
    def spoiled(x):
        wrong = torch.zeros_like(x)
        wrong[2, 1] = 0.5
        return Cube.apply(x, 1.0 + wrong)

    (finding,) = check_function(spoiled, [X]).findings
    assert finding.index == (2, 1)
    assert finding.numeric == pytest.approx(3 * float(X[2, 1]) ** 2)
    assert finding.analytic == pytest.approx(1.5 * finding.numeric)
    assert finding.step == 1e-4
    assert (
        str(check_function(spoiled, [X]))
        .splitlines()[1]
        .startswith(f"  input 0: wrong, error {finding.error:.3g} at [2, 1]: gradient ")
    )


def test_one_wrong_element_among_many_is_caught_by_a_direction():
    def spoiled(x):
        wrong = torch.zeros_like(x)
        wrong[500] = 1
        return Cube.apply(x, 1.0 + 0.5 * wrong)

    x = torch.linspace(1, 2, 1000, dtype=torch.float64)
    assert not check_function(spoiled, [x], method="directional").ok


def test_each_input_is_judged_by_itself():
    def function(a, b):
        return 1e6 * a**2 + Cube.apply(b, 0.9)

    for method in METHODS:
        report = check_function(function, [X, X], method=method)
        assert [f.verdict for f in report.findings] == [Verdict.OK, Verdict.WRONG]
    assert check_function(function, [X, X], wrt=[0]).ok


def test_only_the_chosen_tops_count():
    def function(x):
        return x**2, Cube.apply(x, 0.0)

    for method in METHODS:
        assert check_function(function, [X], tops=[0], method=method).ok
        assert not check_function(function, [X], tops=[1], method=method).ok
        assert not check_function(function, [X], method=method).ok


@pytest.mark.parametrize("method", METHODS)
def test_a_check_that_could_not_fail_says_so(method):
    report = check_function(lambda x: torch.zeros_like(x) * x, [X], method=method)
    assert [f.verdict for f in report.findings] == [Verdict.BLIND]
    with pytest.raises(GradientError, match="could not fail: its gradient is zero, or too small"):
        report.check()
    small = check_function(lambda x: 1e-6 * Cube.apply(x, 0.0), [X], method=method, floor=1.0)
    assert [f.verdict for f in small.findings] == [Verdict.BLIND]
    assert not check_function(lambda x: 1e-5 * Cube.apply(x, 0.0), [X], method=method).ok


def test_a_gradient_where_there_is_none_is_wrong():
    report = check_function(lambda x: x - x.detach(), [X], method="exhaustive")
    assert [f.verdict for f in report.findings] == [Verdict.WRONG]


@pytest.mark.parametrize("method", METHODS)
def test_kinks_and_jumps_are_neither_right_nor_wrong(method):
    zero = torch.zeros(3, dtype=torch.float64)
    for function in (torch.relu, torch.abs, lambda x: x + torch.floor(x)):
        (finding,) = check_function(function, [zero], method=method).findings
        assert finding.verdict is Verdict.KINK
        assert finding.kinks == (2 if method == "directional" else 3)


def test_a_kink_beside_the_point_does_not_hide_a_mistake():
    near = torch.tensor([3e-5, -3e-5, 1.0], dtype=torch.float64)
    (finding,) = check_function(torch.relu, [near]).findings
    assert (finding.verdict, finding.checked, finding.kinks) == (Verdict.OK, 3, 0)
    (finding,) = check_function(lambda x: Cube.apply(x, 0.9).relu(), [near]).findings
    assert finding.verdict is Verdict.WRONG


def test_elements_around_a_kink_are_left_out_as_caffe_does():
    x = torch.tensor([-2.0, -1.0, 0.5, 1.0, 2.0], dtype=torch.float64)

    def hinge(x):
        return torch.relu(x.abs() - 1)

    (finding,) = check_function(hinge, [x]).findings
    assert (finding.checked, finding.kinks) == (3, 2)
    (finding,) = check_function(hinge, [x], kink=1.0, kink_range=0.1).findings
    assert (finding.checked, finding.kinks) == (3, 0)


def test_curvature_is_no_kink():
    x = torch.tensor([0.0, 1e-6, 2.0], dtype=torch.float64)
    for step in (1e-2, 1e-4):
        (finding,) = check_function(lambda x: x**2 + x**3, [x], step=step).findings
        assert (finding.verdict, finding.kinks) == (Verdict.OK, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_lower_precision_against_float64(dtype):
    options = {"method": "directional", "dtype": dtype}
    x = torch.linspace(0.5, 2, 200, dtype=torch.float64)
    assert check_function(lambda x: Cube.apply(x, 1.0), [x], **options).ok
    assert not check_function(lambda x: Cube.apply(x, 0.8), [x], **options).ok
    seen = set()
    check_function(lambda x: seen.add(x.dtype) or x**2, [x], **options)
    assert seen == {dtype, torch.float64}
    assert check_function(torch.sin, [x], dtype=dtype).method == "directional"
    with pytest.raises(ValueError, match="compares float64 gradients"):
        check_function(torch.sin, [x], dtype=dtype, method="exhaustive")


def test_random_numbers_are_the_same_in_every_call():
    x = torch.linspace(1, 2, 20, dtype=torch.float64)
    state = torch.get_rng_state()
    for method in METHODS:
        assert check_function(lambda x: torch.dropout(x**2, 0.5, True), [x], method=method).ok
    assert torch.equal(torch.get_rng_state(), state)


def test_of_many_elements_some():
    (finding,) = check_function(lambda x: Cube.apply(x, 1.0), [X], elements=5).findings
    assert finding.checked == 5


def test_what_only_torch_finds():
    class Restless(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            Restless.calls += 1
            return gradient * 2 + 1e-9 * Restless.calls

        calls = 0

    assert check_function(Restless.apply, [X]).ok
    report = check_function(Restless.apply, [X], method="torch")
    assert not report.ok
    assert "not reentrant" in str(report)


def test_inputs_are_left_as_they_were():
    x = X.clone()
    for method in METHODS:
        check_function(lambda x: x**2, [x], method=method)
    assert torch.equal(x, X)
    assert not x.requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_functions_of_every_kind(method):
    index = torch.tensor([2, 0])

    def function(x, index, scalar):
        x.mul_(scalar)  # in place
        return {"a": [x[index]][0] ** 2, "b": index + 1, "c": None, "d": x.detach() ** 2}

    scalar = torch.tensor(1.5)
    report = check_function(function, [X, index, scalar], method=method)
    assert report.ok
    assert [f.blob for f in report.findings] == ["input 0", "input 2"]
    assert report.findings[1].index == ()
    assert check_function(lambda x: [x**2, (x**3)[:0]], [X], method=method).ok
    assert scalar == 1.5


@pytest.mark.parametrize("method", ["exhaustive", "directional"])
def test_a_top_without_its_gradient_is_wrong(method):
    def function(x):
        return x**2, (x**3).detach()

    assert check_function(function, [X], method=method).ok
    assert not check_function(function, [X], method=method, tops=[0, 1]).ok


@pytest.mark.parametrize("method", METHODS)
def test_without_elements_there_is_nothing_to_compare(method):
    report = check_function(lambda x, y: (x.sum() + y).sin(), [X[:0], X], method=method)
    assert report.ok
    assert [f.verdict for f in report.findings] == [Verdict.BLIND, Verdict.OK]
    assert "input 0: could not fail; 0 compared" in str(report) or method == "directional"
    assert not check_function(lambda x: x**2, [X[:0]], method=method).ok


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (torch.sin, {"wrt": [1]}, "number 1 is not there, only input 0"),
        (torch.sin, {"tops": [-1]}, "number -1 is not there, only output 0"),
        (lambda x: (x, x > 0), {"tops": [1]}, "output 1 has no gradient: torch.bool"),
        (lambda x: (x, None), {"tops": [1]}, "output 1 has no gradient: None"),
        (lambda x: x.detach(), {}, "no output has a gradient"),
        (torch.sin, {"wrt": []}, "no output has a gradient"),
        (lambda x: 3, {}, "expected a tensor, or a tuple, list or dict of them, got <class 'int'>"),
        (torch.sin, {"dtype": torch.int32}, "dtype: expected one of float64, float32"),
        (torch.sin, {"method": "numeric"}, "method: expected one of exhaustive, torch, directional"),
    ],
)
def test_mistakes_of_a_check(function, options, message):
    with pytest.raises(ValueError, match=message):
        check_function(function, [X], **options)
    with pytest.raises(ValueError, match=r"input 0 has no gradient: torch\.int64"):
        check_function(torch.sin, [torch.arange(3)], wrt=[0])


def test_shorthands_give_errors_or_raise():
    for check in (directional, caffe_check):
        assert check(lambda x: Cube.apply(x, 1.0), [X])[0] < 1e-3
        with pytest.raises(GradientError):
            check(lambda x: Cube.apply(x, 0.9), [X])


# ------------------------------------------------------------------------------------ layers and nets


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_by_its_own_samples(method):
    reports = check_layer("RectifiedCosine", method=method)
    assert len(reports) > 1
    assert all(report.ok for report in reports)
    assert all(report.subject.startswith("RectifiedCosine (") for report in reports)


def test_a_layer_with_parameters_on_given_bottoms():
    (report,) = check_layer("InnerProduct", {"num_output": 3}, [torch.randn(2, 4)])
    assert [f.blob for f in report.findings] == [
        'bottom "bottom"',
        'parameter "weight"',
        'parameter "bias"',
    ]
    assert report.ok
    (report,) = check_layer("InnerProduct", {"num_output": 3}, [torch.randn(2, 4)], parameters=False)
    assert len(report.findings) == 1


@pytest.mark.parametrize("kind", ["Embed", "Parameter"])
def test_a_layer_with_parameters_alone(kind):
    for report in check_layer(kind):
        assert report.ok
        assert report.findings[0].blob.startswith('parameter "')


def test_a_layer_that_is_already_made_is_left_as_it_was():
    layer = InnerProduct(InnerProduct.Params(2), ((3, 4),))
    (report,) = check_layer(layer, bottoms=[torch.randn(3, 4)])
    assert layer.weight.dtype == torch.float32
    # Its weights are Caffe's zeros, so that the bottom has no gradient.
    assert [f.verdict for f in report.findings] == [Verdict.BLIND, Verdict.OK, Verdict.OK]


def test_mistakes_of_a_layer_check():
    with pytest.raises(LookupError, match='no layer type "InerProduct": did you mean "InnerProduct"'):
        check_layer("InerProduct")
    with pytest.raises(ValueError, match="Input: none of its samples has a gradient: give bottoms"):
        check_layer("Input")


NET = """
name: tiny
layer:
- {name: x, type: Input, top: x, input_param: {shape: {dim: [2, 3, 6, 6]}}}
- {name: t, type: Input, top: t, input_param: {shape: {dim: [2, 5]}}}
- {name: conv, type: Convolution, bottom: x, top: c, param: [{}, {lr_mult: 0}], convolution_param: {
    num_output: 4, kernel_size: 3, weight_filler: {type: xavier}}}
- {name: norm, type: TYPE, bottom: c, top: n}
- {name: ip, type: InnerProduct, bottom: n, top: y, inner_product_param: {
    num_output: 5, weight_filler: {type: xavier}}}
- {name: loss, type: EuclideanLoss, bottom: [y, t], top: loss}
"""


class Spoiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 1.9


@pytest.fixture
def spoiled_type(monkeypatch):
    """A registered layer whose backward is wrong."""

    class Layer(registry.find("TanH").layer):
        def forward(self, bottom):
            return Spoiled.apply(bottom)

    registry.scan()
    entries = dict(registry._entries)
    monkeypatch.setattr(registry, "_entries", entries)
    registry.register("Spoiled")(Layer)
    return "Spoiled"


@pytest.mark.parametrize("method", METHODS)
def test_a_net(method, spoiled_type):
    report = check_net(loads(NET.replace("TYPE", "ChannelL2Norm")), method=method)
    assert report.ok
    assert [f.blob for f in report.findings] == [
        "x",
        "t",
        'layer "conv", parameter 0',
        'layer "ip", parameter 0',
        'layer "ip", parameter 1',
    ]
    report = check_net(loads(NET.replace("TYPE", spoiled_type)), method=method)
    verdicts = [f.verdict for f in report.findings]
    assert verdicts == [Verdict.WRONG, Verdict.OK, Verdict.WRONG, Verdict.OK, Verdict.OK]


DATA = """
layer:
- name: data
  type: CorrespondencePairs
  top: [image1, image2, pairs, num_pairs]
  transform_param: {crop_size: 16, mean_value: 115, scale: 0.0157}
  correspondence_pairs_param: {source: "skimage:camera", num_points: 5}
- {name: quiet, type: Silence, bottom: [image2, num_pairs]}
- {name: conv, type: Convolution, bottom: image1, top: c, convolution_param: {
    num_output: 4, kernel_size: 3, stride: 4, weight_filler: {type: xavier}}}
- {name: drop, type: Dropout, bottom: c, top: c}
- {name: e, type: ExtractFeature, bottom: [c, pairs], top: e}
"""


def test_a_net_with_data_layers_in_single_precision():
    report = check_net(loads(DATA), dtype=torch.float32)
    assert report.ok, str(report)
    assert [f.blob for f in report.findings] == [f'layer "conv", parameter {i}' for i in (0, 1)]


def test_paper_layers():
    assert {"ChannelL2Norm", "HoughVoting", "KNN", "ROIPooling"} <= set(paper_layers())
    assert "Convolution" not in paper_layers()


# ------------------------------------------------------------------------------ the command, and pytest


def run(capfd, *args):
    with pytest.raises(SystemExit) as end:
        main(["gradcheck", *args])
    return end.value.code, *capfd.readouterr()


def test_the_command(capfd, tmp_path, spoiled_type):
    (tmp_path / "good.yaml").write_text(NET.replace("TYPE", "TanH"))
    (tmp_path / "bad.yaml").write_text(NET.replace("TYPE", spoiled_type))
    code, out, _ = run(capfd, "EuclideanLoss", str(tmp_path / "good.yaml"))
    assert (code, out.splitlines()[-1]) == (0, "2 checks passed")
    code, out, _ = run(capfd, str(tmp_path / "bad.yaml"), "--json")
    (report,) = json.loads(out)
    assert (code, report["ok"], report["findings"][0]["verdict"]) == (1, False, "wrong")
    for wrong, message in (
        (["NoSuch"], 'no layer type "NoSuch"'),
        ([], "name a layer type or a net's spec"),
        (["nosuch.yaml"], "nosuch.yaml"),
        ([str(tmp_path / "good.yaml"), "--top", "0"], "--top is a layer's"),
        (["EuclideanLoss", "--top", "3"], "number 3 is not there, only output 0"),
        (["EuclideanLoss", "--bottom", "2"], "number 2 is not there, only"),
        (["EuclideanLoss", "--step", "0"], "--step"),
        (["HDF5Data"], "HDF5Data has no samples of its own"),
        (["Silence"], "none of its samples has a gradient"),
    ):
        code, _, err = run(capfd, *wrong)
        assert (code, message in err) == (2, True)


def test_in_a_suite_of_the_users_own(pytester, monkeypatch):
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makefile(".yaml", net=NET.replace("TYPE", "TanH"))
    pytester.makepyfile(
        """
        from cortado.tools.gradcheck import cases

        @cases("EuclideanLoss", "net.yaml")
        def test_gradients(case):
            case()

        def test_by_fixture(gradcheck):
            gradcheck("net.yaml", method="exhaustive")
        """
    )
    result = pytester.runpytest_inprocess("--cortado-gradcheck", "net.yaml", "-p", "no:xdist", "-q")
    result.assert_outcomes(passed=4)
    result = pytester.runpytest_inprocess("--cortado-gradcheck", "Nothing", "-q")
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(['*no layer type "Nothing"*'])


@cases("EuclideanLoss")
def test_cases(case):
    (report,) = case()
    assert report.ok
