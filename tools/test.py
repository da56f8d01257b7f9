"""Score a net: the means of its outputs over some batches."""

from __future__ import annotations

from typing import Any

import click

from .options import device_options, glog, named_once, plugins, python_layers, state_options, the_device
from .records import Records


@click.command()
@click.argument("spec", type=click.Path(), required=False)
@click.option("--model", type=click.Path(), help="The same as SPEC.")
@click.option("--weights", type=click.Path(exists=True, dir_okay=False), help="Its weights.")
@click.option("--iterations", type=click.IntRange(1), default=50, show_default=True, help="Batches.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@state_options
@device_options
@glog
@python_layers
@plugins
def command(
    spec: str | None,
    model: str | None,
    weights: str | None,
    iterations: int,
    as_json: bool,
    phase: str,
    level: int,
    stages: tuple[str, ...],
    allow_python_layers: bool,
    **options: Any,
) -> None:
    """Run the TEST net of SPEC on batches of its own data layers and show what its outputs average.

    \b
    cortado test my_net.yaml --weights my_net.caffemodel --iterations 100
    """
    import json

    import torch
    from cortado.nets.net import Net

    net = Net(
        named_once(spec, model, "net's spec"),
        phase.upper(),
        level=level,
        stages=stages,
        weights=weights,
        allow_python_layers=allow_python_layers,
    )
    if net.inputs:
        listing = ", ".join(net.inputs)
        raise click.UsageError(f"the net is fed by its user ({listing}): it has no data to test on")
    if net.params and not weights:
        raise click.UsageError("name the net's --weights: a new net's are random")
    if net.report and net.report.missing:
        click.echo(f"note: {net.report}", err=True)
    net.to(the_device(options))
    log = Records(None, None, None, options["glog"]).log
    sums: dict[str, torch.Tensor] = {}
    loss = 0.0
    with torch.no_grad():
        for i in range(iterations):
            blobs = net()
            loss += float(blobs.loss) / iterations
            for name in net.outputs:
                value = blobs[name].double().cpu()
                sums[name] = sums.get(name, torch.zeros(())) + value / iterations
                if not as_json and value.numel() == 1:
                    log(f"Batch {i}, {name} = {value.item():.6g}")
    if as_json:
        outputs = {name: value.tolist() for name, value in sums.items()}
        click.echo(json.dumps({"iterations": iterations, "loss": loss, "outputs": outputs}))
        return
    log(f"Loss: {loss:.6g}")
    for name, mean in sums.items():
        for value in mean.flatten().tolist():
            log(f"{name} = {value:.6g}")
