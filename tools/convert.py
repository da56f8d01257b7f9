"""Convert a net, a solver or weights to another notation."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import Any

import click

from .options import plugins, python_layers, state_options

SPECS = (".prototxt", ".yaml", ".yml")
CAFFES = (".caffemodel", ".h5")
WEIGHTS = (*CAFFES, ".safetensors", ".pth", ".pt")


@click.command()
@click.argument("source", type=click.Path(dir_okay=False))
@click.argument("target", type=click.Path(dir_okay=False))
@click.option("--net", type=click.Path(), help="For weights: the net they belong to.")
@click.option("--half", is_flag=True, help="For weights: in float16, of half the size.")
@state_options
@python_layers
@plugins
def command(source: str, target: str, net: str | None, half: bool, **options: Any) -> None:
    """Write SOURCE as TARGET, in the notation of TARGET's suffix.

    \b
    cortado convert net.prototxt net.yaml
    cortado convert old.prototxt new.prototxt       (today's layers for the old ones)
    cortado convert ucn_demo_hn my_net.yaml         (a spec that comes with cortado, to begin with)
    cortado convert --net deploy.prototxt net.caffemodel net.safetensors
    cortado convert --net ucn_hn --stage deploy trained.caffemodel ucn_hn.safetensors --half

    Specs are .prototxt or .yaml. Files that the source includes are written out in their places, so
    that TARGET stands alone; Siamese trunks stay as they are. Of the comments, only those at the head
    of the file are kept. Nothing is imported or run.

    Weights are .caffemodel, .h5, .safetensors or .pth (read besides: MatConvNet's .mat, torchvision's
    .pth, and .npz of arrays "<layer>|<blob index>"). They go through the --net that they belong to, of
    which the source must hold every parameter. --half is for .safetensors and .pth; what reads them
    computes in float32 all the same. Of numbers below 6e-5 float16 keeps fewer digits, those below 3e-8
    become 0.
    """
    suffix = Path(target).suffix.lower()
    if suffix in SPECS:
        if half:
            raise click.UsageError(f"--half is for weights: {suffix} is a spec")
        write_spec(source, target)
    elif suffix in WEIGHTS:
        if net is None:
            raise click.UsageError("weights are converted with --net, the net they belong to")
        if half and suffix in CAFFES:
            raise click.UsageError(f"--half: {suffix} holds float32")
        write_weights(source, target, net, half=half, **options)
    else:
        raise click.UsageError(f"{target}: expected one of {', '.join((*SPECS, *WEIGHTS))}")


def write_spec(source: str | Path, target: str | Path) -> None:
    """Write the spec of a net or a solver in the notation of the target's suffix.

    Raises :class:`~cortado.prototxt_like.source.SpecError` for mistakes in the source.
    """
    from cortado.nets.specs import load
    from cortado.prototxt_like.files import replace_text

    message = load(source)
    if Path(target).suffix.lower() == ".prototxt":
        from cortado.prototxt_like import prototxt, quotes

        body = prototxt.dump(quotes.for_prototxt(message))
    else:
        from cortado.prototxt_like import quotes, yaml_spec

        body = yaml_spec.dump(quotes.for_yaml(message))
    text = head(message.span.source.text) + body
    replace_text(target, text)


def head(text: str) -> str:
    """The comment that a file begins with."""
    lines = takewhile(lambda line: line.startswith("#"), text.split("\n"))
    return "".join(f"{line}\n" for line in lines)


def write_weights(
    source: str | Path,
    target: str | Path,
    net: str | Path,
    *,
    phase: str = "TEST",
    level: int = 0,
    stages: tuple[str, ...] = (),
    allow_python_layers: bool = False,
    half: bool = False,
) -> None:
    """Write a net's weights from one file to another, in the format of the target's suffix; ``half``:
    rounded to float16.

    Raises ValueError where the source lacks parameters of the net or has one beyond float16's range,
    and what loading raises.
    """
    from cortado.nets.net import Net
    from cortado.nets.weights import listed, load, save

    made = Net(net, phase, level=level, stages=stages, seed=0, allow_python_layers=allow_python_layers)
    report = load(made, source)
    if report.missing:
        raise ValueError(f"{source} lacks layers of {net}: {listed(report.missing)}")
    if half:
        for name, blobs in made.params.items():
            if any(blob.half().isinf().any() for blob in blobs):
                raise ValueError(f'{source}: layer "{name}" has numbers beyond the range of float16')
        made.half()
    save(made, target)
    click.echo(f"{report}; saved in {target}")
