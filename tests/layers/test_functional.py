"""What functional forms and layers make of what is no tensor, and of tensors without values."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cortado.functional as CF
import numpy as np
import pytest
import torch
from cortado.layers._engine import parallel, registry
from cortado.layers._engine.dispatch import impl
from cortado.layers._engine.layer import Layer
from cortado.layers.data.hdf5_output import HDF5Output
from cortado.layers.data.hdf5_output import Params as OutputParams
from cortado.layers.metrics import flow_pck, miou, pck, pcr
from cortado.layers.standard import batch_reindex, filter, input, python, rnn
from cortado.nets.net import Net
from cortado.prototxt_like import loads
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

torch.manual_seed(0)
MAP, TABLE, SCORES = torch.rand(2, 3, 4, 5), torch.ones(2, 6, 5), torch.rand(2, 3)
BOXES_A, BOXES_B = torch.tensor([[0.0, 0, 4, 4], [1, 1, 6, 5]]), torch.tensor([[0.0, 0, 4, 4]] * 3)
ROIS = torch.tensor([[0.0, 0, 0, 4, 4], [1, 1, 1, 6, 5]])
COUNTS = torch.tensor([[2], [3]])
CONFIDENCE = torch.rand(2, 3, 4, 2, 3)

# Of each form what it needs, and all of its tensors that may be left out.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "channel_l2_norm": {"bottom": MAP},
    "convolutional_spatial_transformer": {"u": MAP, "theta": torch.rand(2, 4, 4, 5)},
    "correspondence_contrastive_loss": {"feature1": MAP, "feature2": 1 - MAP, "pairs": TABLE},
    "extract_feature": {"feature": MAP, "pairs": TABLE},
    "hard_negative_mining": {
        "pairs": TABLE,
        "index": torch.zeros(2, 1, 6, dtype=torch.int64),
        "reference": MAP,
        "num_coords": COUNTS,
    },
    "hough_voting": {
        "scores": SCORES,
        "rois_a": BOXES_A,
        "rois_b": BOXES_B,
        "size_a": (9, 8),
        "size_b": (7, 8),
        "votes": 1 - SCORES,
    },
    "hyperpixel_correlation": {
        "maps_a": [MAP, MAP[:, :2, :2]],
        "maps_b": [1 - MAP, MAP[:, :2, 1:3]],
        "margin": 2.0,
        "size_a": (16, 20),
        "size_b": (16, 20),
    },
    "hyperpixel_flow": {"confidence": CONFIDENCE, "size_a": (9, 12), "size_b": (5, 9)},
    "keypoint_transfer": {
        "confidence": CONFIDENCE,
        "points": TABLE,
        "size_a": (9, 12),
        "size_b": (5, 9),
    },
    "knn": {
        "query": torch.rand(2, 3, 6),
        "reference": MAP,
        "k": 2,
        "num_query": COUNTS,
        "num_reference": COUNTS,
    },
    "rectified_cosine": {"a": SCORES, "b": 1 - SCORES},
    "region_flow": {
        "scores": SCORES,
        "rois_a": BOXES_A,
        "rois_b": BOXES_B,
        "size_a": (9, 8),
        "size_b": (7, 8),
    },
    "region_hinge_loss": {"scores": SCORES, "label": torch.ones(2, 3)},
    "region_pair_sampling": {"scores": SCORES, "rois_b": BOXES_B, "truth": BOXES_A},
    "regularized_hough_matching": {"similarity": CONFIDENCE, "size_a": (9, 12), "size_b": (5, 9)},
    "roi_pooling": {"data": MAP, "rois": ROIS, "pooled_h": 2, "pooled_w": 3},
}
SIZES = ("size_a", "size_b")


def parameters(form: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(getattr(CF, form)).parameters


def tensors() -> Iterator[tuple[str, str]]:
    """Each form with each of its tensors."""
    for form in CF.__all__:
        for name, parameter in parameters(form).items():
            if parameter.annotation in ("Tensor", "Tensor | None"):
                yield form, name


def others() -> Iterator[tuple[str, str, str]]:
    """Each form with each of its other arguments, and what the argument is declared to be."""
    for form in CF.__all__:
        for name, parameter in parameters(form).items():
            scalar = "Tensor" not in parameter.annotation and name not in SIZES
            if scalar and parameter.kind is not parameter.VAR_KEYWORD:
                yield form, name, parameter.annotation
    fields = importlib.import_module("cortado.layers.hough_voting").Params
    binning = ("cells", "least_cell", "bins_per_cell", "scale_bins", "scale_range")
    yield from (
        ("hough_voting", f.name, f.type) for f in dataclasses.fields(fields) if f.name in binning
    )


def call(form: str, /, **changed: Any) -> Any:
    return getattr(CF, form)(**ARGUMENTS[form] | changed)


def tops(found: Any) -> tuple[Tensor, ...]:
    return (found,) if isinstance(found, Tensor) else tuple(found)


def facts(found: Any) -> list[tuple[Any, ...]]:
    """Shapes and dtypes of a tensor, or of several."""
    return [(tuple(x.shape), x.dtype, x.requires_grad) for x in tops(found)]


# Dynamo makes an instance of a Function, for its context
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
class TestCompiled:
    """Whole graphs, of which the bits are those of eager calls."""

    @pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
    @pytest.mark.parametrize("form", CF.__all__)
    def test_form(self, form: str, dynamic: bool) -> None:
        torch._dynamo.reset()
        run = torch.compile(getattr(CF, form), fullgraph=True, dynamic=dynamic, backend="aot_eager")
        seed = {"seed": 3} if form == "hard_negative_mining" else {}
        wanted = tops(call(form, **seed))
        found = tops(run(**ARGUMENTS[form] | numbers(form) | seed))
        for a, b in zip(found, wanted, strict=True):
            assert torch.equal(a.nan_to_num(), b.nan_to_num())

    def test_a_wrong_number_is_said_in_the_same_words(self) -> None:
        run = torch.compile(CF.channel_l2_norm, fullgraph=True, backend="aot_eager")
        with pytest.raises(Exception, match=r"eps: expected at least 0, got -1"):
            run(MAP, eps=-1.0)


def numbers(form: str) -> dict[str, float]:
    """The form's float arguments that are not among ARGUMENTS, at their defaults."""
    found = {name: x.default for name, x in parameters(form).items() if isinstance(x.default, float)}
    return {name: x for name, x in found.items() if name not in ARGUMENTS[form]}


class TestNoTensor:
    @pytest.mark.parametrize(("form", "name"), [*tensors()])
    def test_what_is_no_tensor(self, form: str, name: str) -> None:
        assert name in ARGUMENTS[form], "not tried"
        given: list[tuple[Any, str]] = [
            (np.zeros((2, 3)), "numpy.ndarray (torch.from_numpy makes one of it)"),
            ([[1.0, 2.0]], "list (torch.tensor makes one of it)"),
            (1.5, "float (torch.tensor makes one of it)"),
            ("x", "str"),
        ]
        if parameters(form)[name].default is not None:
            given.append((None, "None"))
        for value, got in given:
            with pytest.raises(TypeError) as caught:
                call(form, **{name: value})
            assert str(caught.value) == f"{form}: expected {name} to be a torch.Tensor, got {got}"

    @pytest.mark.parametrize("form", CF.__all__)
    def test_optional_tensors_may_be_none(self, form: str) -> None:
        optional = [name for name, p in parameters(form).items() if p.annotation == "Tensor | None"]
        call(form, **dict.fromkeys(optional))
        assert facts(call(form, **dict.fromkeys(optional))) == facts(call(form))

    @pytest.mark.parametrize(("form", "name", "declared"), [*others()])
    def test_wrong_scalars(self, form: str, name: str, declared: str) -> None:
        wrong: list[Any] = ["3", [3], torch.tensor(3), torch.tensor(0.5)]
        if "None" not in declared:
            wrong.append(None)
        if declared == "int":
            wrong += [1.5, True]
        if declared == "bool":
            wrong += [2, 0.0]
        if declared.startswith("tuple"):
            wrong += [3, ("a", "b"), (None, 1), np.zeros((2, 2))]
        for value in wrong:
            with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b.*(expected|got) "):
                call(form, **{name: value})

    @pytest.mark.parametrize("form", [form for form in CF.__all__ if "size_a" in parameters(form)])
    @pytest.mark.parametrize("name", SIZES)
    def test_wrong_sizes(self, form: str, name: str) -> None:
        for value in (None, "ab", 3, ("4", "5"), np.zeros((1, 3, 4, 5))):
            with pytest.raises(TypeError, match=rf"^{form}: expected {name} to be .*height and"):
                call(form, **{name: value})

    @pytest.mark.parametrize("form", CF.__all__)
    def test_numbers_of_numpy(self, form: str) -> None:
        """Each number, and each size, as one of NumPy's, of the type that NumPy would make of it."""
        given = {name: p.default for name, p in parameters(form).items()} | ARGUMENTS[form]
        given = {name: x for name, x in given.items() if isinstance(x, (bool, int, float, tuple))}
        as_numpy = {
            name: tuple(map(np.asarray(x).dtype.type, x)) if isinstance(x, tuple) else np.asarray(x)[()]
            for name, x in given.items()
        }
        found, wanted = tops(call(form, **as_numpy)), tops(call(form))
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)

    def test_a_number_of_numpy_that_is_none(self) -> None:
        with pytest.raises(ValueError, match=r"^margin: expected a finite number, got nan$"):
            call("correspondence_contrastive_loss", margin=np.float32("nan"))

    @pytest.mark.parametrize("form", ["region_hinge_loss", "region_pair_sampling"])
    def test_ranges(self, form: str) -> None:
        name = {"region_hinge_loss": "margin", "region_pair_sampling": "positive_iou"}[form]
        with pytest.raises(ValueError, match=rf"^{name}: expected (above|at least) 0, got -1$"):
            call(form, **{name: -1})


class Without:
    """Tensors without values: on the meta device, or of FakeTensorMode."""

    def __init__(self, fake: bool) -> None:
        self.mode: Any = FakeTensorMode() if fake else nullcontext()
        self.device = torch.device("cpu" if fake else "meta")

    def __call__(self, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if self.device.type == "meta":
            return x.detach().to("meta").requires_grad_(x.requires_grad)
        return self.mode.from_tensor(x)

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        with self.mode:
            return function(*arguments)


def each(change: Callable[[Any], Any], x: Any) -> Any:
    """A change of an argument, or of each tensor of a list."""
    return [change(part) for part in x] if isinstance(x, list) else change(x)


def learning(x: Any) -> Any:
    return x.clone().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x


def outcome(
    layer: Layer, state: dict[str, Tensor], bottoms: list[Tensor], chosen: tuple[int, ...]
) -> tuple[list[Any], set[torch.device]]:
    """Facts of a layer's tops and of all gradients, and where they are."""
    found = tops(torch.func.functional_call(layer, state, tuple(bottoms)))
    leaves = [x for x in (*bottoms, *state.values()) if x.requires_grad]
    roots = [found[i] for i in chosen if found[i].requires_grad]
    if leaves and roots:
        given = [torch.ones_like(root) for root in roots]
        gradients = torch.autograd.grad(roots, leaves, given, allow_unused=True)
        found = (*found, *(x for x in gradients if x is not None))
    return facts(found), {x.device for x in found}


SAMPLED = [
    pytest.param(entry.layer, id=entry.type_name)
    for entry in registry.entries()
    if hasattr(entry.layer, "samples") and entry.layer not in (filter.Filter, input.Input)
]
kinds = pytest.mark.parametrize("fake", [False, True], ids=["meta", "fake"])


@kinds
class TestNoValues:
    @pytest.mark.parametrize("form", CF.__all__)
    def test_forms(self, form: str, fake: bool) -> None:
        """Every form on its own, all of its floating tensors with a gradient."""
        without = Without(fake)
        arguments = ARGUMENTS[form]
        arguments = {name: each(learning, x) for name, x in arguments.items()}
        wanted = call(form, **arguments)
        with without.mode:
            found = call(form, **{name: each(without, x) for name, x in arguments.items()})
        assert facts(found) == facts(wanted)
        assert {x.device for x in tops(found)} == {without.device}

    @pytest.mark.parametrize("kind", SAMPLED)
    def test_layers(self, kind: type[Layer], fake: bool) -> None:
        """Tops and gradients as on the CPU; of Caffe's layers, some of which differ, in both phases."""
        without = Without(fake)
        for sample in kind.samples("small", np.random.default_rng(7)):
            shapes = tuple(tuple(x.shape) for x in sample.bottoms)
            layer = kind(sample.params, shapes, torch.Generator().manual_seed(1)).double()
            state = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
            bottoms = [
                x.detach().requires_grad_(i in sample.differentiable)
                for i, x in enumerate(sample.bottoms)
            ]
            for training in (True, False) if "standard" in kind.__module__ else (True,):
                layer.train(training)
                copies = {name: x.detach().requires_grad_(x.requires_grad) for name, x in state.items()}
                wanted, _ = outcome(layer, copies, bottoms, sample.tops)
                held = {name: without(x) for name, x in state.items()}
                given = [without(x) for x in bottoms]
                found, devices = without.run(outcome, layer, held, given, sample.tops)
                assert found == wanted, f"{sample.name}, training: {training}"
                assert devices <= {without.device}

    @pytest.mark.parametrize("which", ["pcr", "miou", "miou, all count", "flow_pck", "pck"])
    def test_metrics(self, which: str, fake: bool) -> None:
        truth = torch.tensor([[0.0, 0, 5, 5, 1], [1, 1, 2, 2, -1]])
        pairs, image = torch.rand(2, 4, 5), torch.rand(2, 3, 8, 8)
        regions = (SCORES, BOXES_B, truth)
        layer, bottoms = {
            "pcr": (pcr.PCR(), regions),
            "miou": (miou.MIoU(), regions),
            "miou, all count": (miou.MIoU(miou.Params(1)), (SCORES, BOXES_B, truth[:, :4])),
            "flow_pck": (flow_pck.FlowPCK(), (torch.rand(2, 2, 8, 8), pairs, image)),
            "pck": (pck.PCK(), (pairs, torch.zeros(2, 1, 4, dtype=torch.int64), image)),
        }[which]
        without = Without(fake)
        assert facts(without.run(layer, *map(without, bottoms))) == facts(layer(*bottoms))

    def test_shapes_that_depend_on_values(self, fake: bool) -> None:
        without = Without(fake)
        message = "the tops' shapes depend on the selector's values, which a meta tensor does not have"
        with pytest.raises(TypeError) as caught:
            without.run(filter.Filter(), *map(without, (MAP, torch.ones(2))))
        assert str(caught.value) == message

    def test_who_needs_values(self, fake: bool, tmp_path: Path) -> None:
        without = Without(fake)
        bottoms = [without(MAP), without(torch.ones(2))]
        with pytest.raises(TypeError, match="^HDF5Output writes values, which a meta tensor does not"):
            without.run(HDF5Output(OutputParams(str(tmp_path / "x.h5"))), *bottoms)
        assert not list(tmp_path.iterdir())
        layer = python.Python(python.Params(__name__, "Doubled"))
        with pytest.raises(TypeError, match="^a Python layer's code reads values, which a meta tensor"):
            without.run(layer.load, tuple(bottoms), ())

    def test_values_are_not_looked_at(self, fake: bool) -> None:
        """Wrong ones, which FakeTensorMode was given, and those of a shape that never had any."""
        without, index = Without(fake), torch.tensor([5.0, -1])
        with pytest.raises(ValueError, match="is no item of"):
            batch_reindex.BatchReindex()(MAP, index)
        found = without.run(batch_reindex.BatchReindex(), without(MAP), without(index))
        assert found.shape == (2, 3, 4, 5)

    def test_sizes_by_value(self, fake: bool) -> None:
        """Of HoughVoting's two forms of a size the values are not there; the top does without."""
        without = Without(fake)
        sizes = {name: without(torch.tensor([9.0, 8])) for name in SIZES}
        tables = {
            name: without(ARGUMENTS["hough_voting"][name]) for name in ("scores", "rois_a", "rois_b")
        }
        with without.mode:
            assert facts(call("hough_voting", votes=None, **tables, **sizes)) == facts(SCORES)

    def test_nothing_is_drawn(self, fake: bool) -> None:
        """A seeded layer goes on after a dry run as if there had been none."""
        without, generator = Without(fake), torch.Generator().manual_seed(3)
        before = generator.get_state()
        names = ("pairs", "index", "reference")
        tables = {name: without(ARGUMENTS["hard_negative_mining"][name]) for name in names}
        with without.mode:
            call("hard_negative_mining", num_coords=None, generator=generator, **tables)
        assert torch.equal(generator.get_state(), before)

    def test_a_state_stays(self, fake: bool) -> None:
        """A recurrent layer, whose statistics are logged, goes on from what it read last."""
        without, bottoms = Without(fake), (torch.rand(3, 2, 4), torch.ones(3, 2))
        shapes = tuple(tuple(x.shape) for x in bottoms)
        layer = rnn.RNN(rnn.RecurrentParams(5, debug_info=True), shapes)
        layer(*bottoms)
        state = layer.carried
        held = {name: without(x) for name, x in layer.named_parameters()}
        given = tuple(map(without, bottoms))
        found = without.run(torch.func.functional_call, layer, held, given)
        assert facts(found)[0][0] == (3, 2, 5)
        assert state is not None
        assert layer.carried is state

    def test_neither_path_is_forced(self, fake: bool) -> None:
        """What computes says nothing of the shapes; forced kernels want no device for them."""
        without = Without(fake)
        with impl("cuda"), without.mode:
            assert facts(CF.channel_l2_norm(without(MAP))) == facts(MAP)
        with impl("cuda"), pytest.raises(RuntimeError, match="needs CUDA tensors, got cpu"):
            CF.channel_l2_norm(MAP)

    def test_a_batch_of_several_processes(self, fake: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """No process waits for the counts of the others, which are not there either."""
        monkeypatch.setattr(parallel, "rank_and_size", lambda: (0, 2))
        without = Without(fake)
        assert facts(without.run(parallel.balanced, *map(without, (torch.ones(()), COUNTS.sum())))) == (
            facts(torch.ones(()))
        )


NET = """
layer:
  - {name: in, type: Input, top: [data, label], input_param: {shape: [{dim: [2, 3, 8, 8]}, {dim: 2}]}}
  - name: conv
    type: Convolution
    bottom: data
    top: conv
    convolution_param: {num_output: 4, kernel_size: 3, weight_filler: {type: xavier}}
  - {name: norm, type: BatchNorm, bottom: conv, top: conv}
  - {name: relu, type: ReLU, bottom: conv, top: conv}
  - {name: pool, type: Pooling, bottom: conv, top: pool, pooling_param: {kernel_size: 2, stride: 2}}
  - {name: fc, type: InnerProduct, bottom: pool, top: fc, inner_product_param: {num_output: 5}}
  - {name: loss, type: SoftmaxWithLoss, bottom: [fc, label], top: loss}
  - {name: accuracy, type: Accuracy, bottom: [fc, label], top: accuracy}
"""


@pytest.mark.parametrize("labels", [torch.float32, torch.int64])
@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_a_net(phase: str, labels: torch.dtype) -> None:
    """Blobs and gradients of shapes alone, with labels of either kind."""
    net = Net(loads(NET), phase, seed=1).to("meta")
    data = torch.empty(2, 3, 8, 8, device="meta")
    blobs = net(data=data, label=torch.empty(2, device="meta", dtype=labels), keep=True)
    assert {name: tuple(x.shape) for name, x in blobs.items()} == net.blob_shapes
    assert all(x.is_meta for x in (*blobs.values(), blobs.loss))
    blobs.loss.backward()
    learned = [p for p in net.parameters() if p.requires_grad]
    assert learned
    for parameter in learned:
        assert parameter.grad is not None
        assert parameter.grad.is_meta
        assert parameter.grad.shape == parameter.shape


class Doubled:
    """A class of the user's own, whose code is not called."""

    def setup(self, bottom: Any, top: Any) -> None: ...
    def reshape(self, bottom: Any, top: Any) -> None: ...
    def forward(self, bottom: Any, top: Any) -> None: ...
    def backward(self, top: Any, down: Any, bottom: Any) -> None: ...
