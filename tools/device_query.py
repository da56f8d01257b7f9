"""List the CUDA devices that torch finds."""

from __future__ import annotations

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@click.option("--gpu", default="all", show_default=True, help="A device's number.")
def command(as_json: bool, gpu: str) -> None:
    """Show each CUDA device's name, memory, compute capability and driver, or that there is none.

    \b
    cortado device_query --json
    """
    import json

    import torch

    count = torch.cuda.device_count()
    if gpu != "all" and not (gpu.isdecimal() and int(gpu) < count):
        raise click.UsageError(f"no GPU {gpu}: torch finds {count} CUDA devices")
    devices = [_facts(i) for i in range(count) if gpu in ("all", str(i))]
    if as_json:
        click.echo(json.dumps(devices))
        return
    click.echo(f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}, CuPy {_cupy()}")
    if not devices:
        click.echo("no CUDA device: everything runs on the CPU")
    for device in devices:
        for name, value in device.items():
            click.echo(f"{name}: {value}")


def _cupy() -> str:
    """The version of the CuPy that is installed, whatever its package is called."""
    from importlib import metadata

    found = (d for d in metadata.distributions() if d.metadata["Name"].startswith("cupy"))
    return next((distribution.version for distribution in found), "none")


def _facts(index: int) -> dict[str, object]:
    import torch

    found = torch.cuda.get_device_properties(index)
    return {
        "device": f"cuda:{index}",
        "name": found.name,
        "compute capability": f"{found.major}.{found.minor}",
        "memory in MiB": found.total_memory // 2**20,
        "multiprocessors": found.multi_processor_count,
    }
