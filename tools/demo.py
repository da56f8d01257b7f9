"""Match a stereo pair by the nets that come with cortado, and by descriptors beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from .matching import Finder


@click.command()
@click.option("--out", default="demo_out", show_default=True, type=click.Path(file_okay=False))
def command(out: str) -> None:
    """Match the Middlebury Motorcycle pair, as it is and turned by 15 and 40 degrees, by the trained
    nets that come with cortado and by descriptors.

    None of the nets was trained on it. Shows the share of 4,000 points that are matched within 3, 5 and
    10 pixels of the measured truth; writes report.json and pictures to --out. Under a minute on two
    cores.

    \b
    cortado demo --out demo_out
    """
    from cortado.nets.models import BEST
    from cortado.prototxt_like.files import replace_text
    from rich.console import Console

    from . import demo_pair

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    tests = demo_pair.measure(methods(), demo_pair.make_tests(), folder, [BEST])
    replace_text(folder / "report.json", json.dumps({"tests": tests}, indent=1) + "\n")
    demo_pair.show(tests, Console())
    click.echo(f"matches of {BEST}: " + ", ".join(str(folder / f"{test}_{BEST}.png") for test in tests))
    click.echo("your own: cortado match A.png B.png")


def methods() -> dict[str, Finder]:
    """Every method by its name in the report: the nets, the best one first, and descriptors, OpenCV's
    where it is there."""
    from cortado.nets import models

    from .demo_pair import BASELINES, descriptors
    from .matching import STEP
    from .opencv import NoOpenCV, opencv

    baselines = BASELINES
    try:
        opencv("BEBLID", extra_modules=True)
        baselines += ("beblid-oriented",)
    except NoOpenCV as missing:
        click.echo(f"left out: {missing}")
    names = dict.fromkeys((models.BEST, *models.names()))
    return {name: models.pretrained(name, step=STEP) for name in names} | descriptors(baselines)
