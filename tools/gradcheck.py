"""Check gradients: of a layer, an autograd Function, or a whole net, by three methods.

===========  ====================================================================================
method       what is compared
===========  ====================================================================================
exhaustive   every element of every input with every element of the tops, as Caffe's
             ``GradientChecker`` does, with its ``step``, ``kink`` and ``kink_range``
torch        the same by ``torch.autograd.gradcheck``
directional  random directions: cheap at any size, and the only one for half and single precision
===========  ====================================================================================

Errors are relative to each gradient's own scale (Caffe's are never measured against less than 1,
so that small gradients pass whatever they are; ``floor=1`` gives that). Differences are taken in
float64, whatever precision is checked. Where one-sided differences disagree at any step, the function
is not smooth: such elements are reported and neither pass nor fail.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import subjects
from .options import device_options, plugins, python_layers, state_options, the_device

if TYPE_CHECKING:
    import torch
    from cortado.layers._engine.layer import Layer
    from torch import Tensor

    from .differences import Finding

METHODS = ("exhaustive", "torch", "directional")
NET_STEP = 1e-8  # so small that few of a net's rectifiers switch, and float64's rounding is smaller
STEPS = {"exhaustive": 1e-4, "torch": 1e-6, "directional": 1e-5}
THRESHOLDS = {"float64": 1e-4, "float32": 1e-3, "float16": 3e-2, "bfloat16": 1e-1}
POSITIVE = click.FloatRange(min=0, min_open=True)
DEFAULT_METHOD = "[default: exhaustive; in lower precision, and for a net, directional]"
ELEMENTS = 50  # random elements of each blob of a net


class GradientError(AssertionError):
    """A gradient that differs from the finite differences by more than the threshold, or a check
    that could not have found one that does."""


@dataclass(frozen=True)
class Report:
    """What a check found, blob by blob."""

    subject: str
    method: str
    dtype: str
    threshold: float
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """No gradient is wrong, and at least one could have been found wrong."""
        from .differences import Verdict

        verdicts = {finding.verdict for finding in self.findings}
        return Verdict.WRONG not in verdicts and Verdict.OK in verdicts

    def check(self) -> Report:
        """This report; raises :class:`GradientError` with it where it is not ``ok``."""
        if not self.ok:
            raise GradientError(str(self))
        return self

    def __str__(self) -> str:
        head = f"{self.subject}, {self.method}, {self.dtype}, threshold {self.threshold:g}"
        return "\n".join([head, *(f"  {_line(finding)}" for finding in self.findings)])

    def data(self) -> dict[str, Any]:
        """The report as plain data."""
        findings = [asdict(f) | {"verdict": f.verdict.value} for f in self.findings]
        return {**vars(self), "ok": self.ok, "findings": findings}


def _line(finding: Finding) -> str:
    from .differences import Verdict

    f = finding
    if f.note:
        return f"{f.blob}: {f.note}"
    text = f"{f.blob}: {f.verdict.value}"
    if f.verdict in (Verdict.OK, Verdict.WRONG):
        where = f" at {list(f.index)}" if f.index else ""
        text += f", error {f.error:.3g}{where}: gradient {f.analytic:.6g}, difference {f.numeric:.6g}"
        text += f" (step {f.step:.3g})"
    elif f.verdict is Verdict.BLIND and f.checked:
        text += ": its gradient is zero, or too small for the threshold"
    return f"{text}; {f.checked} compared" + (f", {f.kinks} not smooth" if f.kinks else "")


def check_function(
    function: Callable[..., Any],
    inputs: Sequence[Tensor],
    *,
    wrt: Sequence[int] | None = None,
    tops: Sequence[int] | None = None,
    names: Sequence[str] = (),
    subject: str = "function",
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    **options: Any,
) -> Report:
    """Check the gradients of any function of tensors, such as ``MyFunction.apply``.

    The function gives a tensor, or several in a tuple, list or dict. ``wrt``: the inputs to check
    (default: all floating ones); ``tops``: the outputs that count, by number (default: all floating
    ones that require a gradient). ``names`` are the inputs' in the report.
    ``dtype`` (default float64) is that of the gradients; the differences are taken in float64, of
    the inputs rounded to ``dtype``. ``device``: where they are moved to (default: they stay where they
    are). Random numbers that the function draws from torch's generators are the same in every call.
    ``options``:

    - ``method``: one of the module's, default "exhaustive" in float64, else "directional";
    - ``step``, ``threshold``: default ``STEPS`` and ``THRESHOLDS``;
    - ``floor`` (0): the least that an error is measured against, 1 in Caffe;
    - ``kink``, ``kink_range``: elements within ``kink_range`` of +-``kink`` are left out;
    - ``elements``: of an input with more, so many random ones are looked at;
    - ``directions`` (2) of the method "directional".

    Gives a :class:`Report`; ``report.check()`` raises. ValueError for an unknown method, one that
    cannot be used with the ``dtype``, and for inputs and outputs that have no gradient.
    """
    import torch

    dtype = dtype or torch.float64
    dtypes = [dtype if x.is_floating_point() else x.dtype for x in inputs]
    wrt = [i for i, x in enumerate(inputs) if x.is_floating_point()] if wrt is None else list(wrt)
    labels = [names[i] if i < len(names) else f"input {i}" for i in range(len(inputs))]
    call = _Call(function, dtypes, dtype, seed)
    return _compared(call, list(inputs), wrt, tops, labels, subject, device, **options)


def _compared(
    call: _Call,
    inputs: list[Tensor],
    wrt: list[int],
    tops: Sequence[int] | None,
    names: Sequence[str],
    subject: str,
    device: str | torch.device | None,
    *,
    method: str | None = None,
    step: float | None = None,
    threshold: float | None = None,
    kink: float = 0.0,
    kink_range: float = -1.0,
    floor: float = 0.0,
    elements: int | None = None,
    directions: int = 2,
) -> Report:
    import torch

    from . import differences

    kind = str(call.dtype).removeprefix("torch.")
    if kind not in THRESHOLDS:
        raise ValueError(f"dtype: expected one of {', '.join(THRESHOLDS)}, got {kind}")
    method = method or ("exhaustive" if call.dtype == torch.float64 else "directional")
    if method not in METHODS:
        raise ValueError(f'method: expected one of {", ".join(METHODS)}, got "{method}"')
    if method != "directional" and call.dtype != torch.float64:
        raise ValueError(f"{method} compares float64 gradients; {kind} needs the method directional")
    threshold = THRESHOLDS[kind] if threshold is None else threshold
    placed = inputs if device is None else [x.to(device) for x in inputs]
    exact = [_rounded(x, d) for x, d in zip(placed, call.dtypes, strict=True)]
    _expect_floating(wrt, inputs, names)
    call.choose(exact, wrt, tops)
    options: dict[str, Any] = {"step": step or STEPS[method], "threshold": threshold, "floor": floor}
    options["generator"] = torch.Generator().manual_seed(call.seed)
    if method == "directional":
        compare: Callable[..., list[Finding]] = differences.directional
        options |= {"directions": directions}
    else:
        compare = differences.exhaustive if method == "exhaustive" else differences.by_torch
        options |= {"kink": kink, "kink_range": kink_range, "elements": elements}
    found = compare(call.exact, exact, call.rounded, wrt, [names[i] for i in wrt], **options)
    return Report(subject, method, kind, threshold, found)


def _expect_floating(chosen: Sequence[int], blobs: Sequence[Any], names: Sequence[str]) -> None:
    """Raises ValueError unless all that are chosen are there, and floating-point tensors."""
    import torch

    for i in chosen:
        if not 0 <= i < len(blobs):
            raise ValueError(f"number {i} is not there, only {', '.join(names)}")
        if not (isinstance(blobs[i], torch.Tensor) and blobs[i].is_floating_point()):
            raise ValueError(f"{names[i]} has no gradient: {getattr(blobs[i], 'dtype', blobs[i])}")


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The values that ``dtype`` can hold, in float64; integers as they are."""
    return x.to(dtype).double() if x.is_floating_point() else x


class _Call:
    """A function whose tops are those that count, with the same random numbers in every call."""

    def __init__(
        self, function: Callable[..., Any], dtypes: Sequence[torch.dtype], dtype: torch.dtype, seed: int
    ) -> None:
        import torch

        self.function, self.dtypes, self.dtype, self.seed = function, dtypes, dtype, seed
        self.tops: list[int] = []
        self.now = torch.float64  # the precision of the current call

    def choose(self, inputs: list[Tensor], wrt: list[int], tops: Sequence[int] | None) -> None:
        """Settle which tops count: those asked for, or all that can have a gradient."""
        import torch

        leaves = [x.detach().requires_grad_(i in wrt) for i, x in enumerate(inputs)]
        found = self._all(leaves)
        if tops is not None:
            self.tops = list(tops)
        else:
            asked = [isinstance(top, torch.Tensor) and top.requires_grad for top in found]
            self.tops = [i for i, counts in enumerate(asked) if counts]
        _expect_floating(self.tops, found, [f"output {i}" for i in range(len(found))])
        if not self.tops or not wrt:
            raise ValueError("no output has a gradient: nothing to check")

    def exact(self, *inputs: Tensor) -> list[Tensor]:
        """The tops of float64 inputs."""
        tops = self._all(inputs)
        return [tops[i] for i in self.tops]

    def rounded(self, *inputs: Tensor) -> list[Tensor]:
        """The tops as the precision that is checked has them."""
        import torch

        self.now = self.dtype
        try:
            return self.exact(*(x.to(d) for x, d in zip(inputs, self.dtypes, strict=True)))
        finally:
            self.now = torch.float64

    def _all(self, inputs: Sequence[Tensor]) -> tuple[Any, ...]:
        import torch

        devices = {x.device for x in inputs if x.is_cuda}
        with torch.random.fork_rng(devices=list(devices)):
            torch.default_generator.manual_seed(self.seed)
            for device in devices:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(self.seed)
            tops = self.function(*(x.clone() for x in inputs))  # which it may write in place
        if isinstance(tops, torch.Tensor):
            return (tops,)
        if not isinstance(tops, (tuple, list, Mapping)):
            raise ValueError(f"expected a tensor, or a tuple, list or dict of them, got {type(tops)}")
        return tuple(tops.values() if isinstance(tops, Mapping) else tops)


def directional(
    function: Callable[..., Any],
    inputs: Sequence[Tensor],
    wrt: Sequence[int] = (0,),
    tops: Sequence[int] = (0,),
    **options: Any,
) -> list[float]:
    """:func:`check_function` along directions, threshold 1e-5: the inputs' errors, or GradientError."""
    options = {"threshold": 1e-5, **options}
    report = check_function(function, inputs, wrt=wrt, tops=tops, method="directional", **options)
    return [finding.error for finding in report.check().findings]


def caffe_check(
    function: Callable[..., Any],
    inputs: Sequence[Tensor],
    wrt: Sequence[int] = (0,),
    tops: Sequence[int] = (0,),
    **options: Any,
) -> list[float]:
    """:func:`check_function` of every element, with Caffe's step of 1e-2 and threshold of 1e-3."""
    options = {"step": 1e-2, "threshold": 1e-3, **options}
    report = check_function(function, inputs, wrt=wrt, tops=tops, method="exhaustive", **options)
    return [finding.error for finding in report.check().findings]


def check_layer(
    layer: str | type[Layer] | Layer,
    params: Any = None,
    bottoms: Sequence[Any] | None = None,
    *,
    wrt: Sequence[int] | None = None,
    tops: Sequence[int] | None = None,
    parameters: bool = True,
    training: bool = True,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    **options: Any,
) -> list[Report]:
    """Check a layer: a report for each of its own samples, or one for the ``bottoms`` given.

    ``layer`` is a registered type's name, a :class:`Layer` class or one already made; ``params`` its
    ``Params`` or a mapping as a spec has it. ``wrt`` are bottoms (default: all floating ones, or
    the sample's), ``tops`` those that count; ``parameters``: the learnable blobs too, filled with
    normal numbers. ``options`` are those of :func:`check_function` from ``method`` on.
    """
    import torch
    from cortado.layers._engine.layer import Layer as Base

    dtype = dtype or torch.float64
    made = layer if isinstance(layer, Base) else None
    kind = type(made) if made else subjects.layer_class(layer)
    reports = []
    for sample in subjects.samples_of(kind, made, params, bottoms, wrt, tops, seed):
        module = copy.deepcopy(made) or subjects.filled(kind, sample.params, sample.bottoms, seed)
        module = module.double().to(device).train(training)
        blobs = {n: p for n, p in module.named_parameters() if p.requires_grad} if parameters else {}
        inputs = [*sample.bottoms, *(p.detach() for p in blobs.values())]
        tables = [subjects.is_table(kind, i, len(sample.bottoms)) for i in range(len(inputs))]
        dtypes = [subjects.kept_dtype(t, x, dtype) for t, x in zip(tables, inputs, strict=True)]
        call = _Call(
            subjects.module_function(module, list(blobs), len(sample.bottoms)), dtypes, dtype, seed
        )
        checked = [*sample.differentiable, *range(len(sample.bottoms), len(inputs))]
        if not checked:
            continue
        names = [subjects.bottom_name(kind, i) for i in range(len(sample.bottoms))]
        names += [f'parameter "{name}"' for name in blobs]
        subject = kind.type_name or kind.__name__
        subject += f" ({sample.name})" if sample.name else ""
        chosen = sample.tops if tops is None and bottoms is None else tops
        reports.append(_compared(call, inputs, checked, chosen, names, subject, device, **options))
    if not reports:
        raise ValueError(f"{kind.__name__}: none of its samples has a gradient: give bottoms")
    return reports


def check_net(
    spec: Any,
    inputs: Mapping[str, Any] | None = None,
    *,
    phase: str = "TRAIN",
    level: int = 0,
    stages: Sequence[str] = (),
    weights: str | Path | None = None,
    allow_python_layers: bool = False,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    method: str = "directional",
    step: float = NET_STEP,
    elements: int | None = ELEMENTS,
    **options: Any,
) -> Report:
    """Check the gradients of a net's loss by each learnable parameter, and by its inputs.

    ``spec`` is a path or a message; without a loss the outputs count. ``inputs`` are those of its
    Input layers, by name (default: random; labels and coordinates zero); data layers give one batch
    for all of the check. ``elements``: how many of each blob the element-wise methods look at.
    ``options`` are those of :func:`check_function`.
    """
    import torch
    from cortado.nets.net import Net

    from .time import random_inputs

    dtype = dtype or torch.float64
    net = Net(
        spec,
        phase,
        level=level,
        stages=tuple(stages),
        seed=seed,
        weights=weights,
        allow_python_layers=allow_python_layers,
    )
    given = random_inputs(net) | {n: torch.as_tensor(x) for n, x in (inputs or {}).items()}
    net.double().to(device)
    keys = {id(p): name for name, p in net.named_parameters()}
    learnt = [blob for blob in net.learnable if blob.parameter.requires_grad]
    tensors = [*given.values(), *(blob.parameter.detach() for blob in learnt)]
    names = [*given, *(f'layer "{b.layer}", parameter {b.index}' for b in learnt)]
    blind = subjects.uncheckable(net)
    wrt = [i for i, name in enumerate(names) if i >= len(given) or name not in blind]
    wrt = [i for i in wrt if tensors[i].is_floating_point()]
    dtypes = [
        subjects.kept_dtype(name in blind, x, dtype) for name, x in zip(names, tensors, strict=True)
    ]
    parameters = [keys[id(blob.parameter)] for blob in learnt]
    call = _Call(subjects.net_function(net, list(given), parameters), dtypes, dtype, seed)
    subject = net.graph.name or (str(spec) if isinstance(spec, (str, Path)) else "net")
    with subjects.one_batch(net, lambda: call.now):
        return _compared(
            *(call, tensors, wrt, None, names, subject, device),
            method=method,
            step=step,
            elements=None if method == "directional" else elements,
            **options,
        )


@click.command()
@click.argument("names", metavar="[SPEC | LAYER_TYPE]...", nargs=-1)
@click.option("--paper", is_flag=True, help="Every layer of the papers.")
@click.option("--method", type=click.Choice(METHODS), help=DEFAULT_METHOD)
@click.option("--dtype", type=click.Choice(list(THRESHOLDS)), default="float64", show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--step", type=POSITIVE, help="Of the differences.")
@click.option("--threshold", type=POSITIVE, help="Of the error relative to the gradient's scale.")
@click.option("--kink", default=0.0, help="Elements near +-kink are left out ...")
@click.option("--kink-range", default=-1.0, help="... if they are this near.")
@click.option("--bottom", "wrt", type=int, multiple=True, help="A layer's bottom, by number.")
@click.option("--top", "tops", type=int, multiple=True, help="A top that counts, by number.")
@partial(state_options, phase="TRAIN")
@click.option("--weights", type=click.Path(exists=True, dir_okay=False), help="Of a net.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of reports.")
@plugins
@device_options
@python_layers
def command(names: tuple[str, ...], paper: bool, as_json: bool, **options: Any) -> None:
    """Check the gradients of layers, on their own samples, and of nets; exit code 1 if one is wrong.

    \b
    cortado gradcheck HoughVoting ChannelL2Norm
    cortado gradcheck ucn_hn --dtype float32
    """
    names += tuple(paper_layers()) if paper else ()
    if not names:
        raise click.UsageError("name a layer type or a net's spec")
    options["device"] = the_device(options)
    options.pop("gpu")
    reports = [report for name in names for report in check(name, **options)]
    if as_json:
        click.echo(json.dumps([report.data() for report in reports]))
    else:
        for report in reports:
            click.echo(str(report))
        bad = sum(not report.ok for report in reports)
        click.echo(f"{len(reports)} checks, {bad} failed" if bad else f"{len(reports)} checks passed")
    if not all(report.ok for report in reports):
        raise SystemExit(1)


def check(subject: str, **options: Any) -> list[Report]:
    """Check a layer type or a spec, whichever the name is; options None mean the default."""
    import torch

    given = {name: value for name, value in options.items() if value not in (None, ())}
    given["dtype"] = getattr(torch, given.get("dtype", "float64"))
    if is_spec(subject):
        for name in ("wrt", "tops"):
            if name in given:
                raise ValueError(f"--{'bottom' if name == 'wrt' else 'top'} is a layer's, not a net's")
        return [check_net(subject, **given)]
    training = given.pop("phase", "TRAIN") == "TRAIN"
    for name in ("level", "stages", "weights", "allow_python_layers"):
        given.pop(name, None)
    return check_layer(subject, training=training, **given)


def is_spec(subject: str) -> bool:
    from cortado.nets import specs

    path = Path(subject)
    known = subject in specs.names() or (path.exists() and not path.is_dir())
    return known or path.suffix.lower() in (".yaml", ".yml", ".prototxt")


def paper_layers() -> list[str]:
    """The types of the papers' own layers, in ``layers/`` itself, that have gradients to check."""
    import numpy as np
    from cortado.layers._engine import registry

    found = []
    for entry in registry.entries():
        kind: Any = entry.layer
        if entry.family == "correspondence" and hasattr(kind, "samples"):
            samples = kind.samples("small", np.random.default_rng(0))
            if any(sample.differentiable for sample in samples):
                found.append(entry.type_name)
    return found


def cases(*subjects: str, **options: Any) -> Any:
    """A mark that runs a test once for each layer type or spec: ``case()`` checks it, or raises.

    ::

        @cases("HoughVoting", "my_net.yaml")
        def test_gradients(case):
            case()
    """
    import pytest

    def one(subject: str) -> Callable[[], list[Report]]:
        return lambda: [report.check() for report in check(subject, **options)]

    return pytest.mark.parametrize("case", [one(subject) for subject in subjects], ids=list(subjects))
