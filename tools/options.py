"""Options that several commands share, and Caffe's spelling of them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    import torch

F = TypeVar("F", bound=Callable[..., Any])

EFFECTS = ("stop", "snapshot", "none")


def device_options(command: F) -> F:
    """``--device`` and Caffe's ``--gpu``; :func:`the_device` reads them."""
    command = click.option("--gpu", help="Caffe's: a GPU's number, the same as --device cuda:N.")(
        command
    )
    return click.option("--device", help="cpu, cuda, cuda:1 ... [default: cpu]")(command)


def state_options(command: F) -> F:
    """``--phase``, ``--level`` and ``--stage``."""
    command = click.option("--stage", "stages", multiple=True, help="May be given more than once.")(
        command
    )
    command = click.option("--level", type=int, default=0, show_default=True)(command)
    phases = click.Choice(["TRAIN", "TEST"], case_sensitive=False)
    return click.option("--phase", type=phases, default="TEST", show_default=True)(command)


def python_layers(command: F) -> F:
    return click.option(
        "--allow-python-layers", is_flag=True, help='Import the modules of "Python" layers.'
    )(command)


def the_device(options: dict[str, Any]) -> torch.device:
    """The device that --device or --gpu asks for; raises UsageError where it is not there."""
    import torch

    name, gpu = options["device"], options["gpu"]
    if name and gpu:
        raise click.UsageError("give --device or --gpu, not both")
    if gpu and not gpu.isdecimal():
        hint = "several GPUs: torchrun --nproc-per-node 2 -m cortado train ..."
        raise click.UsageError(f"--gpu takes one GPU's number, got {gpu}; {hint}")
    try:
        device = torch.device(name or (f"cuda:{gpu}" if gpu else "cpu"))
    except RuntimeError:
        raise click.UsageError(f'no device "{name}": cpu, cuda, cuda:1 ...') from None
    if device.type == "cuda" and not (device.index or 0) < torch.cuda.device_count():
        raise click.UsageError(f"{device}: torch finds {torch.cuda.device_count()} CUDA devices")
    return device


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
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield True, device
    finally:
        dist.destroy_process_group()


def modern(args: list[str]) -> list[str]:
    """Caffe's flags, ``-sigint_effect=stop`` or ``-gpu 0``, as ours: ``--sigint-effect=stop``."""

    def one(argument: str) -> str:
        flag = re.fullmatch(r"--?([a-z][a-z_]+)(=.*)?", argument, re.DOTALL)
        return f"--{flag[1].replace('_', '-')}{flag[2] or ''}" if flag else argument

    end = args.index("--") if "--" in args else len(args)
    return [*map(one, args[:end]), *args[end:]]
