"""The documentation's sources: the pages of this folder, and those made from the code.

    python docs/generate.py build/docs

writes them to ``build/docs/source``. The layers' gradients are checked, which takes a minute; the
figures are kept in ``build/docs/gradients.json`` until a layer's file, or the checker, changes.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import command_page
import layer_pages
from cortado.layers._data.keypoint_pairs import readers, sources
from cortado.layers._engine.registry import Entry
from cortado.tools.gradcheck import check_layer
from rst import Table, heading, table, tables

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
DATA_SETS = """\
Data sets of corresponding points, by the names that the layers CorrespondenceFiles and KeypointPairs
and the commands take, each in the layout that its authors publish. In Python,
``cortado.open_pairs("middlebury:DIR")`` is the sequence of their pairs, each read when it is asked for.
"""
CHECKER = ["tools/gradcheck.py", "tools/differences.py", "tools/subjects.py"]


def generate(target: Path) -> None:
    """Write all sources to ``target / "source"``; files that have not changed keep their times."""
    source = target / "source"
    source.mkdir(parents=True, exist_ok=True)
    for path in DOCS.glob("*.rst"):
        shutil.copy2(path, source)
    shutil.copytree(DOCS / "images", source / "images", dirs_exist_ok=True)
    wanted = pages(figures(gradients(target / "gradients.json")))
    for name, text in wanted.items():
        _write(source / name, text)
    for path in (source / "layers").glob("*.rst"):
        if f"layers/{path.name}" not in wanted:
            path.unlink()


def pages(known: layer_pages.Figures) -> dict[str, str]:
    """The generated pages by file name."""
    made = {f"layers/{e.type_name}.rst": layer_pages.page(e, known) for e in layer_pages.own_entries()}
    return made | {
        "layers/index.rst": layer_pages.index(),
        "commands.rst": command_page.page(),
        "data_sets.rst": data_sets(),
        "faithfulness.rst": faithfulness(known.faithfulness),
    }


def data_sets() -> str:
    """What the readers of the data sets read: their files' docstrings."""
    parts = [heading("Data sets", "="), DATA_SETS]
    of: dict[ModuleType, list[str]] = {}
    asked = sources()
    for name, opened in readers().items():
        of.setdefault(sys.modules[opened.__module__], []).append(asked[name])
    for module, names in of.items():
        parts += [heading(", ".join(names)), inspect.getdoc(module) or "", ""]
    return "\n".join(parts)


def faithfulness(rows: Table) -> str:
    return "\n".join([heading(rows.heading, "="), rows.text, "", table(rows.head, rows.rows)])


def figures(checked: dict[str, list[dict[str, Any]]]) -> layer_pages.Figures:
    """The gradient checks given, and the repository's tables of figures and differences."""
    results = sorted((ROOT / "benchmarks" / "results").glob("*.md"))
    measured = [found for path in results for found in tables(path.read_text("utf-8"))]
    (differences,) = tables((DOCS / "faithfulness.md").read_text("utf-8"))
    return layer_pages.Figures(checked, measured, differences)


def gradients(cache: Path) -> dict[str, list[dict[str, Any]]]:
    """The reports of every layer's gradient check, by type; none for a layer without gradients."""
    known = json.loads(cache.read_text("utf-8")) if cache.exists() else {}
    found = {}
    for entry in layer_pages.own_entries():
        digest = _digest(entry)
        if known.get(entry.type_name, {}).get("digest") != digest:
            known[entry.type_name] = {"digest": digest, "reports": check(entry)}
            cache.write_text(json.dumps(known), "utf-8")
        found[entry.type_name] = known[entry.type_name]["reports"]
    return found


def check(entry: Entry) -> list[dict[str, Any]]:
    """The layer's gradient check on its own samples, as plain data."""
    samples = layer_pages.small_samples(entry)
    if not any(s.bottoms and s.differentiable and s.check_gradient for s in samples):
        return []
    return [report.data() for report in check_layer(entry.layer)]


def _digest(entry: Entry) -> str:
    files = [Path(inspect.getfile(entry.layer)), *sorted((ROOT / "layers").glob("_*/*.py"))]
    files += [ROOT / name for name in CHECKER]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text("utf-8") != text:
        path.write_text(text, "utf-8")


if __name__ == "__main__":
    generate(Path(sys.argv[1]))
