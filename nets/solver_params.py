"""A solver's spec: its fields as in Caffe, and the nets it names or holds."""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from cortado.prototxt_like.bind import bind
from cortado.prototxt_like.message import Message
from cortado.prototxt_like.source import Errors, SpecError, did_you_mean

from .graph import StateFields
from .updates import POLICIES, REGULARIZATIONS, RULES


class Mode(enum.Enum):
    """Caffe's ``solver_mode``."""

    CPU = 0
    GPU = 1


class SnapshotFormat(enum.Enum):
    """The files of a snapshot: weights and state."""

    HDF5 = 0
    BINARYPROTO = 1
    SAFETENSORS = 2

    @property
    def suffixes(self) -> tuple[str, str]:
        return {
            "HDF5": (".caffemodel.h5", ".solverstate.h5"),
            "BINARYPROTO": (".caffemodel", ".solverstate"),
            "SAFETENSORS": (".safetensors", ".solverstate"),
        }[self.name]

    @property
    def words(self) -> tuple[str, str]:
        """What Caffe's log calls the two."""
        kinds = {"HDF5": "HDF5", "BINARYPROTO": "binary proto", "SAFETENSORS": "safetensors"}
        return kinds[self.name], "HDF5" if self is SnapshotFormat.HDF5 else "binary proto"


def _field(default: Any, **metadata: Any) -> Any:
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class SolverParams:
    """A solver spec's fields, named as in Caffe, with Caffe's defaults.

    The nets themselves may stand in the spec: ``net_param``, ``train_net_param`` and
    ``test_net_param`` are blocks of a net's fields.
    """

    net: str = ""
    train_net: str = ""
    test_net: tuple[str, ...] = ()
    type: str = "SGD"
    base_lr: float = 0.0
    lr_policy: str = ""
    """Must be given."""
    gamma: float = 0.0
    power: float = 0.0
    stepsize: int = 0
    stepvalue: tuple[int, ...] = ()
    momentum: float = 0.0
    momentum2: float = 0.999
    rms_decay: float = 0.99
    delta: float = 1e-8
    weight_decay: float = 0.0
    regularization_type: str = "L2"
    clip_gradients: float = _field(-1.0, infinite=True)
    iter_size: int = _field(1, low=1)
    """At least 1: Caffe divides by it."""
    max_iter: int = 0
    display: int = 0
    average_loss: int = _field(1, low=1)
    test_iter: tuple[int, ...] = ()
    """Passes of each test; 0 is a test that says nothing."""
    test_interval: int = 0
    test_initialization: bool = True
    test_compute_loss: bool = False
    snapshot: int = 0
    snapshot_prefix: str = ""
    snapshot_format: SnapshotFormat = SnapshotFormat.BINARYPROTO
    snapshot_after_train: bool = True
    weights: tuple[str, ...] = ()
    """Files to start from, of which the last wins; a name may hold several, separated by commas."""
    random_seed: int = _field(-1, wide=True)
    train_state: StateFields = StateFields()
    test_state: tuple[StateFields, ...] = ()
    solver_mode: Mode | None = None
    """Where ``cortado train`` runs without ``--device``. A Solver is where its ``device`` says."""
    device_id: int = 0
    debug_info: bool = False
    """Read and ignored, as the two below."""
    snapshot_diff: bool = False
    layer_wise_reduce: bool = True


Complain = Callable[..., None]  # of a field, with a text
NETS = ("net_param", "train_net_param", "test_net_param")
TRAINED = ("train_net_param", "train_net", "net_param", "net")


def read_params(message: Message) -> SolverParams:
    """Bind a solver spec; raises SpecError with all its mistakes."""
    if "layer" in message:
        hint = 'a solver names its net: net: "my_net.prototxt"'
        raise SpecError("this is a net's spec, not a solver's", message.span, hint)
    errors = Errors()
    params: SolverParams | None = errors.attempt(
        bind, SolverParams, message, what="a solver", ignore=NETS.__contains__
    )
    if params is not None:
        _check(params, message, errors)
    errors.check()
    assert params is not None
    return params


def _check(params: SolverParams, message: Message, errors: Errors) -> None:
    def complain(name: str, text: str, hint: str = "") -> None:
        given = message.get(name)
        errors.add(text, given.value.span if given else message.span, hint)

    known: dict[str, Collection[str]] = {"type": RULES, "lr_policy": POLICIES}
    if params.weight_decay:
        known["regularization_type"] = REGULARIZATIONS
    if "lr_policy" not in message:
        listing = ", ".join(sorted(known.pop("lr_policy")))
        complain("lr_policy", 'a solver needs "lr_policy"', f"lr_policy: one of {listing}")
    for name, choices in known.items():
        value = getattr(params, name)
        if value not in choices:
            complain(name, f'unknown {name} "{value}"', did_you_mean(value, choices, "known"))
    _check_rule(params, complain)
    _check_policy(params, message, complain)
    for name in ("net_param", "train_net_param"):
        nets = message.all(name)
        if len(nets) > 1:
            text = f'"{name}" takes one value, already given at {nets[0].value.span}'
            errors.add(text, nets[1].value.span)
    given = [name for name in TRAINED if name in message]
    if not given:
        complain("net", 'a solver needs "net"')
    if len(given) > 1:
        complain(given[1], f"a solver trains one net, given by {' and '.join(given)}")
    _check_tests(params, message, complain)


def _check_rule(params: SolverParams, complain: Complain) -> None:
    """What the update rule does not take; Adam divides by 1 - momentum^t."""
    p = params
    if p.type in RULES and p.momentum and not RULES[p.type].momentum:
        complain("momentum", f"{p.type} has no momentum, got {p.momentum:g}")
    if p.type == "RMSProp" and not 0 <= p.rms_decay < 1:
        text = f"RMSProp's rms_decay must be at least 0 and below 1, got {p.rms_decay:g}"
        complain("rms_decay", text)
    if p.type == "Adam" and abs(p.momentum) == 1:
        complain("momentum", f"Adam has no bias correction for a momentum of {p.momentum:g}")
    if p.type == "Adam" and abs(p.momentum2) > 1:
        complain("momentum2", f"Adam's momentum2 must be in -1..1, got {p.momentum2:g}")


def _check_policy(params: SolverParams, message: Message, complain: Complain) -> None:
    if params.lr_policy not in POLICIES:
        return
    policy, needs = POLICIES[params.lr_policy], f'lr_policy "{params.lr_policy}" needs'
    for name in policy.needs:
        value = getattr(params, name)
        if name not in message:
            complain("lr_policy", f"{needs} {name}")
        elif value <= 0:
            complain(name, f"{needs} {name} above 0, got {value}")
    if policy.gamma and params.gamma < 0:
        complain("gamma", f"{needs} gamma of at least 0, got {params.gamma:g}")


def _check_tests(params: SolverParams, message: Message, complain: Complain) -> None:
    if params.test_iter and params.test_interval <= 0:
        given = f" above 0, got {params.test_interval}" if "test_interval" in message else ""
        complain("test_interval" if given else "test_iter", f"test_iter needs test_interval{given}")
    named = len(params.test_net) + len(message.all("test_net_param"))
    generic = "net" in message or "net_param" in message
    tests = len(params.test_iter)
    if tests < named or (tests > named and not generic):
        nets = f"{named} test nets" + (" or more" if generic else "")
        complain("test_iter", f"test_iter is given once for each test net: {nets}, got {tests}")
    if params.test_state and len(params.test_state) != tests:
        states = len(params.test_state)
        complain("test_state", f"test_state is given once for each of {tests} test nets, got {states}")


@dataclass(frozen=True)
class Source:
    """A net that a solver spec names or holds, and where."""

    net: str | Message
    place: Any


def sources(message: Message, tests: int) -> tuple[Source, list[Source]]:
    """The net to train, and as many to test: those given for it, then the one that is trained."""

    def given(*names: str) -> Iterator[Source]:
        for name in names:
            for entry in message.all(name):
                value = entry.value
                yield Source(value if isinstance(value, Message) else value.text, value.span)

    train = next(given(*TRAINED))
    tested = list(given("test_net_param", "test_net"))
    return train, tested + [train] * (tests - len(tested))
