"""Progress of long work, quiet when the output is not a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from cortado.nets.solver import Solver

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Items(Protocol[T_co]):
    """What can be counted and gone through."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[T_co]: ...


def training(solver: Solver, iterations: int, label: str, quiet: bool = False) -> list[float]:
    """Run a solver for some iterations, or until it is asked to stop; gives the losses.

    Unless ``quiet`` in a terminal behind a bar with loss, learning rate, iterations a second and time
    left, above which the solver's lines go. Of several processes the first one shows it.
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

    console = Console(quiet=quiet or not solver.is_root)
    shown = console.is_terminal and not console.quiet
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}, lr {task.fields[rate]:.3g},"),
        TaskProgressColumn(show_speed=True),
        TimeRemainingColumn(),
    )
    losses: list[float] = []
    with Progress(*columns, console=console, disable=not shown) as progress:
        task = progress.add_task(label, total=iterations, loss=float("nan"), rate=solver.rate)
        end = solver.iter + iterations
        while solver.iter < end:
            before, loss = solver.iter, solver.step(1)
            if solver.iter > before:  # not if it was stopped while it tested
                losses.append(loss)
                recent = losses[-20:]
                mean = sum(recent) / len(recent)
                progress.update(task, advance=1, loss=mean, rate=solver.last_rate)
            if solver.stopped:
                break
    if not console.is_terminal and losses:
        mean = sum(losses[-20:]) / len(losses[-20:])
        console.print(f"{label}: {len(losses)} iterations, loss {mean:.4f}")
    return losses


def through(items: Items[T], name: Callable[[T], str]) -> Iterator[T]:
    """The items in turn, in a terminal behind a bar that names the one at hand.

    The bar goes to the standard error, so that the output can go to a file.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=len(items))
        for item in items:
            bar.update(task, description=name(item))
            yield item
            bar.advance(task)
