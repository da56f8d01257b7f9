"""Progress of long work, quiet when the output is not a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cortado.nets.solver import Solver


def training(solver: Solver, iterations: int, label: str) -> list[float]:
    """Run a solver for some iterations behind a bar with loss and time left; gives the losses."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeRemainingColumn(),
    )
    losses: list[float] = []
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=iterations, loss=float("nan"))
        for _ in range(iterations):
            losses.append(solver.step(1))
            recent = losses[-20:]
            progress.update(task, advance=1, loss=sum(recent) / len(recent))
    if not console.is_terminal:
        console.print(
            f"{label}: {iterations} iterations, loss {sum(losses[-20:]) / len(losses[-20:]):.4f}"
        )
    return losses
