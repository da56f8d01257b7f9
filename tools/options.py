"""Options that several commands share, and Caffe's spelling of them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    import torch

F = TypeVar("F", bound=Callable[..., Any])

TESTING = timedelta(days=1)  # how long processes wait for the first one, which tests alone
EFFECTS = ("stop", "snapshot", "none")
DESCRIPTORS = ("daisy", "sift", "sift-oriented", "beblid", "beblid-oriented")


def device_options(command: F) -> F:
    """``--device`` and Caffe's ``--gpu``; :func:`the_device` reads them."""
    command = click.option("--gpu", help="Caffe's: a GPU's number, or all.")(command)
    return click.option("--device", help="cpu, cuda, cuda:1 ... [default: cpu]")(command)


def state_options(command: F, phase: str = "TEST") -> F:
    """``--phase``, which is ``phase`` by default, ``--level`` and ``--stage``."""
    phases = click.Choice(["TRAIN", "TEST"], case_sensitive=False)
    command = level_and_stages(command)
    return click.option("--phase", type=phases, default=phase, show_default=True)(command)


def level_and_stages(command: F) -> F:
    def split(ctx: click.Context, option: click.Parameter, given: Sequence[str]) -> tuple[str, ...]:
        return tuple(name for names in given for name in names.split(",") if name)

    text = "Several, separated by commas or given one after the other."
    command = click.option("--stage", "stages", multiple=True, callback=split, help=text)(command)
    return click.option("--level", type=int, default=0, show_default=True)(command)


def python_layers(command: F) -> F:
    """``--allow-python-layers``; a module that says ``import caffe`` gets cortado's."""

    def allow(_: click.Context, __: click.Parameter, value: bool) -> bool:
        if value:
            from cortado.pycaffe.alias import install_where_missing

            install_where_missing()
        return value

    return click.option(
        "--allow-python-layers",
        is_flag=True,
        callback=allow,
        help='Import the modules of "Python" layers.',
    )(command)


def glog(command: F) -> F:
    """``--glog``, which GLOG_logtostderr sets as well."""
    return click.option(
        "--glog",
        is_flag=True,
        envvar="GLOG_logtostderr",
        help="Log to the standard error, each line with glog's prefix, for scripts that read Caffe's.",
    )(command)


def plugins(command: F) -> F:
    """``--plugin``, as often as there are files of layers of one's own."""

    def load(_: click.Context, __: click.Parameter, paths: Sequence[str]) -> None:
        if paths:
            from cortado.layers._engine import registry

            for path in paths:
                registry.load_plugin(path)

    return click.option(
        "--plugin",
        multiple=True,
        type=click.Path(exists=True, dir_okay=False),
        expose_value=False,
        callback=load,
        help="A file of layers of your own.",
    )(command)


def layer_ids(command: F) -> F:
    """``--layers``, the blocks that hyperpixels are made of."""

    def read(_: click.Context, __: click.Parameter, given: str | None) -> tuple[int, ...] | None:
        try:
            return None if given is None else tuple(int(text) for text in given.split(","))
        except ValueError:
            raise click.BadParameter(f"expected numbers such as 2,7,11,12,13, got {given}") from None

    text = "Of a hyperpixel net: the blocks to be read, such as 2,7,11,12,13 [default: the spec's]."
    return click.option("--layers", callback=read, metavar="IDS", help=text)(command)


def named_once(first: str | None, second: str | None, what: str) -> str:
    """The one that was given of an argument and Caffe's flag for it; UsageError for none or both."""
    if bool(first) == bool(second):
        raise click.UsageError(f"name the {what}, once")
    return first or second or ""


def expect_folder(path: str, option: str) -> None:
    """Raises UsageError if a file could not be written there: before the work, not after it. What
    killed runs left there is removed. For a device, such as /dev/stdout, its folder is not asked."""
    from cortado.prototxt_like.files import clean, is_device

    try:
        if is_device(path):
            return
    except OSError as error:  # a name that is too long, a link to itself
        raise click.UsageError(f"{option}: {path}: {error.strerror}") from None
    clean(Path(path).parent)
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise click.UsageError(f"{option}: no folder {Path(path).parent} to write to")
    if not os.access(folder, os.W_OK):
        raise click.UsageError(f"{option}: the folder {Path(path).parent} cannot be written to")


def expect_distinct(**files: str | None) -> None:
    """Raises UsageError where an output is a file that another option names, too: ``out="a.csv"``."""
    seen: dict[str, str] = {}
    for option, path in files.items():
        place = os.path.realpath(path) if path else ""
        if place and (os.path.isfile(place) or not os.path.exists(place)):
            if place in seen:
                raise click.UsageError(f"--{option} and {seen[place]} are one file: {path}")
            seen[place] = f"--{option}"


def the_device(options: dict[str, Any]) -> torch.device:
    """The device that --device or --gpu asks for; raises UsageError where it is not there."""
    import torch

    name, gpu = options["device"], options["gpu"]
    if name and gpu:
        raise click.UsageError("give --device or --gpu, not both")
    if gpu == "all" and ("LOCAL_RANK" in os.environ or torch.cuda.device_count() < 2):
        gpu = os.environ.get("LOCAL_RANK", "0")
    if gpu and not gpu.isdecimal():
        hint = "several GPUs: torchrun --nproc-per-node 2 -m cortado train ..."
        raise click.UsageError(f"--gpu takes one GPU's number, got {gpu}; {hint}")
    try:
        device = torch.device(name or (f"cuda:{gpu}" if gpu else "cpu"))
    except RuntimeError:
        raise click.UsageError(f'no device "{name}": cpu, cuda, cuda:1 ...') from None
    if device.type not in ("cpu", "cuda"):
        raise click.UsageError(f'no device "{name}": cpu, cuda, cuda:1 ...')
    _expect_cuda(device)
    return device


def _expect_cuda(device: torch.device) -> None:
    import torch

    if device.type == "cuda" and not (device.index or 0) < torch.cuda.device_count():
        raise click.UsageError(f"{device}: torch finds {torch.cuda.device_count()} CUDA devices")


@contextmanager
def processes(device: torch.device) -> Iterator[tuple[bool, torch.device]]:
    """Join the other processes that torchrun started, if it did: whether there are others, and
    this one's device (its own GPU where ``device`` is CUDA)."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield False, device
        return
    import torch
    from torch import distributed as dist

    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        _expect_cuda(device)
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=TESTING)
    try:
        yield True, device
        dist.all_reduce(torch.zeros((), device=device))  # the first one may have more to do
    finally:
        dist.destroy_process_group()


def modern(args: list[str]) -> list[str]:
    """Caffe's flags, ``-sigint_effect=stop`` or ``-gpu 0``, as ours: ``--sigint-effect=stop``."""

    def one(argument: str) -> str:
        flag = re.fullmatch(r"--?([a-z][a-z_]+)(=.*)?", argument, re.DOTALL)
        return f"--{flag[1].replace('_', '-')}{flag[2] or ''}" if flag else argument

    end = args.index("--") if "--" in args else len(args)
    return [*map(one, args[:end]), *args[end:]]
