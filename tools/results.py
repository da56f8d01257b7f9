"""Measurements as rows of CSV and JSON files: what ``cortado bench`` writes and compares."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import io
import json
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import torch
    from rich.console import Console

OURS, PLAIN, COMPILED, TORCHVISION = "cortado", "torch", "torch.compile", "torchvision"
FORWARD, BACKWARD = "forward", "backward"
NO_SAMPLES, NO_GRADIENT = "no samples", "no gradient"
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Result:
    """One measurement; times in milliseconds, memory in MiB, None where there is none: ``note``
    then says why. The last fields tell of the machine and the code."""

    layer: str
    size: str
    dtype: str
    direction: str
    implementation: str
    p20_ms: float | None = None
    p50_ms: float | None = None
    p80_ms: float | None = None
    peak_extra_mib: float | None = None
    floor_ms: float | None = None
    note: str = ""
    device: str = ""
    threads: str = ""
    versions: str = ""
    commit: str = ""
    date: str = ""

    @property
    def what(self) -> tuple[str, str, str]:
        return self.layer, self.size, self.direction

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """What the same row of another run has too."""
        return *self.what, self.dtype, self.implementation

    def but(self, **fields: Any) -> Result:
        """The row with other fields."""
        return dataclasses.replace(self, **fields)


FIELDS = tuple(field.name for field in dataclasses.fields(Result))
NUMBERS = tuple(name for name in FIELDS if name.endswith(("_ms", "_mib")))
ABOUT = ("device", "threads", "versions", "commit", "date")

# ----------------------------------------------------------------------------------------- about


def about(device: torch.device) -> dict[str, str]:
    """What every row says of the machine and the code."""
    import torch

    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "threads": str(torch.get_num_threads()),
        "versions": versions(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (x.split(":")[1].strip() for x in lines if x.startswith("model name"))
    return next(names, platform.machine())


def versions() -> str:
    import cortado
    import torch

    found = [f"cortado {cortado.__version__}", f"Python {platform.python_version()}"]
    found.append(f"torch {torch.__version__}")
    for name in ("cupy", "triton", "torchvision"):
        found += [f"{name} {version}"] if (version := _version(name)) else []
    return ", ".join(found)


def _version(name: str) -> str:
    from importlib import metadata

    names = metadata.packages_distributions().get(name, ())
    return metadata.version(names[0]) if names else ""


def commit() -> str:
    """The commit measured, with a plus where files differ from it; empty if there is none."""
    if not (ROOT / "setup.cfg").is_file():
        return ""  # installed, maybe within somebody else's repository

    def git(*words: str) -> str:
        try:
            done = subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True)
        except OSError:
            return ""
        return done.stdout.strip() if not done.returncode else ""

    head = git("rev-parse", "--short", "HEAD")
    return f"{head}{'+' if git('status', '--porcelain', '-uno') else ''}" if head else ""


# ----------------------------------------------------------------------------------------- files


def write_csv(file: TextIO, results: Iterable[Result], head: bool = True) -> None:
    writer = csv.writer(file, lineterminator="\n")
    if head:
        writer.writerow(FIELDS)
    writer.writerows(_cells(result) for result in results)


def append(path: Path, results: Iterable[Result]) -> None:
    """Add rows to the CSV file, which is begun if need be."""
    begun = path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        write_csv(file, results, head=not begun)


def _cells(result: Result) -> list[str]:
    values = dataclasses.asdict(result)
    shown = {name: f"{values[name]:.6g}" for name in NUMBERS if values[name] is not None}
    return ["" if values[name] is None else shown.get(name, values[name]) for name in FIELDS]


def data(results: Sequence[Result]) -> dict[str, Any]:
    """One run as plain data: what is ``about`` all of it, and the rest row by row."""
    rows = [dataclasses.asdict(result) for result in results]
    known: dict[str, Any] = {name: rows[0][name] if rows else "" for name in ABOUT}
    parts = known["versions"].split(", ") if known["versions"] else []
    known["versions"] = dict(part.rsplit(" ", 1) for part in parts)
    kept = [{name: row[name] for name in FIELDS if name not in ABOUT} for row in rows]
    return {"about": known, "results": kept}


def read(path: str | Path) -> list[Result]:
    """The last run of a CSV or JSON file; raises ValueError for a file that holds none."""
    text = Path(path).read_text(encoding="utf-8")
    try:
        results = _from_json(text) if text.lstrip().startswith("{") else _from_csv(text)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: not the results of cortado bench: {error}") from None
    if not results:
        raise ValueError(f"{path}: no results")
    return last_run(results)


def _from_json(text: str) -> list[Result]:
    found = json.loads(text)
    known = dict(found["about"])
    known["versions"] = ", ".join(f"{name} {version}" for name, version in known["versions"].items())
    return [Result(**row, **known) for row in found["results"]]


def _from_csv(text: str) -> list[Result]:
    rows = csv.DictReader(io.StringIO(text, newline=""))
    missing = set(FIELDS[:5]) - set(rows.fieldnames or ())
    if missing:
        raise ValueError(f"no column {', '.join(sorted(missing))}")
    return [Result(**{name: _value(name, value) for name, value in row.items()}) for row in rows]


def _value(name: str, text: str) -> Any:
    if name not in NUMBERS:
        return text
    return float(text) if text else None


def last_run(results: Sequence[Result]) -> list[Result]:
    return [result for result in results if result.date == results[-1].date] if results else []


# ------------------------------------------------------------------------------------- for a person


def number(value: float | None) -> str:
    """Four decimals below 0.1, then three digits or the whole number; empty for None."""
    if value is None:
        return ""
    return f"{value:.4f}" if value < 0.1 else f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def shown(columns: Sequence[str], numbers: Sequence[str], rows: Iterable[Sequence[str]]) -> Console:
    """Print a table of columns of text, then of numbers; gives the console it is on."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console()
    if not console.is_terminal:
        console.width = 200
    console.print(table)
    return console
