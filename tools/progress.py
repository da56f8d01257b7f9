"""Progress of long work, quiet when the output is not a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cortado.nets.solver import Solver


def training(solver: Solver, iterations: int, label: str) -> list[float]:
    """Run a solver for some iterations, or until it is asked to stop; gives the losses.

    In a terminal behind a bar with loss, learning rate, iterations a second and time left, above
    which the solver's lines go.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}, lr {task.fields[rate]:.3g},"),
        TaskProgressColumn(show_speed=True),
        TimeRemainingColumn(),
    )
    losses: list[float] = []
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=iterations, loss=float("nan"), rate=solver.rate)
        for _ in range(iterations):
            losses.append(solver.step(1))
            recent = losses[-20:]
            progress.update(task, advance=1, loss=sum(recent) / len(recent), rate=solver.rate)
            if solver.stopped:
                break
    if not console.is_terminal and losses:
        mean = sum(losses[-20:]) / len(losses[-20:])
        console.print(f"{label}: {len(losses)} iterations, loss {mean:.4f}")
    return losses
