"""A page for each registered layer type: its file's text, parameters, an example, and figures."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from cortado import functional
from cortado.layers._engine.registry import Entry, entries, find, snake_case
from cortado.layers._engine.registry import types as type_names
from cortado.layers._engine.samples import Sample
from cortado.nets import specs
from cortado.prototxt_like import Message, dump, load, loads
from cortado.prototxt_like.bind import unbind
from rst import Table, block, code, equations, heading, literal, table

ROOT = Path(__file__).resolve().parent.parent
KINDS = {int: "integer", float: "number", bool: "true or false", str: "string"}
GROUPS = {
    "correspondence": "Correspondence",
    "metrics": "Metrics",
    "data": "Data",
    "standard": "Caffe's own layers and its forks'",
}
EXAMPLES = {  # of layers without samples that no shipped spec has
    "Data": "source: train_lmdb, backend: LMDB, batch_size: 64",
    "DummyData": "shape: {dim: [8, 3, 32, 32]}, data_filler: {type: gaussian, std: 1}",
    "FlowPCK": "threshold: [0.05, 0.1]",
    "HDF5Data": "source: train_files.txt, batch_size: 64",
    "HDF5Output": "file_name: features.h5",
    "ImageData": "source: train_images.txt, batch_size: 64",
    "KeypointPairs": "source: 'pf-willow:DIR', longer_side: 300",
    "MemoryData": "batch_size: 8, channels: 3, height: 32, width: 32",
    "MIoU": "largest_k: 100",
    "PCK": "threshold: [5, 10]",
    "PCR": "steps: 20",
    "Python": "module: my_layers, layer: MyLayer, param_str: '2.5'",
}
GRADIENTS = """\
Every element by central differences in float64, on the layer's own small samples: what
``cortado gradcheck {name}`` prints. Errors are relative to the gradient's own scale; the threshold is
{threshold:g}. Where one-sided differences disagree the function is not smooth, and the element is
counted apart.
"""


def own_entries() -> list[Entry]:
    """cortado's own layers, whatever a user's file has registered besides."""
    return [entry for entry in entries() if entry.layer.__module__.startswith("cortado.layers.")]


@dataclass(frozen=True)
class Figures:
    """What is known of the layers by measurement: gradient checks by type, the benchmarks' tables."""

    gradients: Mapping[str, Sequence[Mapping[str, Any]]]
    benchmarks: Sequence[Table]
    faithfulness: Table


def index() -> str:
    """The page that leads to the layers', group by group."""
    parts = [heading("Layers", "="), "One page for each type that a spec may name.\n"]
    for folder, title in GROUPS.items():
        names = [entry.type_name for entry in own_entries() if entry.family == folder]
        parts += [heading(title), ".. toctree::\n   :maxdepth: 1\n", block("\n".join(names)), ""]
    return "\n".join(parts)


def page(entry: Entry, figures: Figures) -> str:
    """The layer's page. Its equation, bottoms, tops and backward are its file's docstring."""
    return "\n".join(
        [
            heading(entry.type_name, "="),
            _facts(entry),
            _text(entry),
            _parameters(entry),
            _functional(entry),
            heading("In a spec"),
            code(example(entry), "yaml"),
            *_faithfulness(entry, figures.faithfulness),
            *_gradients(entry, figures.gradients),
            *_benchmarks(entry, figures.benchmarks),
        ]
    )


def _facts(entry: Entry) -> str:
    aliases = [n for n in type_names() if find(n) is entry and n != entry.type_name]
    facts = [
        f":Bottoms: {_count(entry.bottoms)}{_names([x.name for x in entry.layer.BOTTOMS])}",
        f":Tops: {_count(entry.tops)}",
        f":File: {literal(str(_file(entry).relative_to(ROOT)))}",
    ]
    if aliases:
        facts.append(f":Also called: {', '.join(map(literal, aliases))}")
    return "\n".join(facts) + "\n"


def _file(entry: Entry) -> Path:
    return Path(inspect.getfile(entry.layer)).resolve()


def _count(count: tuple[int, int | None]) -> str:
    low, high = count
    if high is None:
        return f"{low} or more"
    return str(low) if low == high else f"{low} to {high}"


def _names(names: Sequence[str]) -> str:
    return f" ({', '.join(map(literal, names))})" if names else ""


def _text(entry: Entry) -> str:
    """The file's text, after the type's own line where the file has several."""
    module = inspect.getmodule(entry.layer)
    text = equations(inspect.getdoc(module) or "") + "\n"
    own = inspect.cleandoc(vars(entry.layer).get("__doc__") or "")
    if not own or re.search(r"the module", own):
        return text
    others = heading(f"With the others of {literal(_file(entry).name)}")
    return f"{equations(own)}\n\n{others}\n{text}"


def _parameters(entry: Entry) -> str:
    title = heading("Parameters")
    if not dataclasses.fields(entry.layer.Params):
        return f"{title}\nNone.\n"
    tables = [f"{place}\n\n{_table(cls)}" for cls, place in blocks(entry)]
    return f"{title}\n" + "\n".join(tables)


def blocks(entry: Entry) -> Iterator[tuple[type, str]]:
    """The dataclasses of a layer's parameters, each with the line that says where it stands."""
    pending: list[tuple[type, list[str]]] = [(entry.layer.Params, [entry.layer.block])]
    seen = set()
    while pending:
        cls, names = pending.pop(0)
        if cls in seen:
            continue
        seen.add(cls)
        yield cls, f"Of the block{'s' if len(names) > 1 else ''} {', '.join(map(literal, names))}:"
        inner: dict[type, list[str]] = {}
        for field, hint in _fields(cls):
            if dataclasses.is_dataclass(_element(hint)):
                inner.setdefault(_element(hint), []).append(field.name)
        pending += inner.items()


def _fields(cls: type) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    hints = typing.get_type_hints(cls)
    return ((f, hints[f.name]) for f in dataclasses.fields(cls) if f.init)


def _element(hint: Any) -> Any:
    """The type of one value: of ``X | None`` and ``tuple[X, ...]`` X."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (arm for arm in typing.get_args(hint) if arm is not types.NoneType)
    return typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else hint


def _table(cls: type) -> str:
    head = ("parameter", "type", "default", "range", "unit", "meaning")
    rows = []
    for field, hint in _fields(cls):
        meta = field.metadata
        names = " or ".join(map(literal, (field.name, *meta.get("aliases", ()))))
        unit, meaning = meta.get("unit", ""), meta.get("doc", "")
        rows.append((names, _kind(hint), _default(field), _range(meta), unit, meaning))
    return table(head, rows)


def _kind(hint: Any) -> str:
    element = _element(hint)
    if dataclasses.is_dataclass(element):
        name = "block"
    elif issubclass(element, Enum):
        name = ", ".join(map(literal, element.__members__))
    else:
        name = KINDS[element]
    return f"{name}, repeated" if "tuple" in str(hint) else name


def _default(field: dataclasses.Field[Any]) -> str:
    made = field.default_factory
    value = field.default if made is dataclasses.MISSING else made()
    if value is dataclasses.MISSING:
        return "must be given"
    if dataclasses.is_dataclass(value):
        return "its defaults"
    if value is None or value == ():
        return "not given"
    if isinstance(value, tuple):
        return literal(", ".join(map(_written, value)))
    return literal(_written(value)) if value != "" else "empty"


def _written(value: Any) -> str:
    if isinstance(value, Enum):
        return value.name
    return str(value).lower() if isinstance(value, bool) else f"{value}"


def _range(meta: Mapping[str, Any]) -> str:
    signs = (("low", "≥"), ("above", ">"), ("high", "≤"))
    return ", ".join(f"{sign} {meta[key]:g}" for key, sign in signs if meta.get(key) is not None)


def _functional(entry: Entry) -> str:
    name = snake_case(entry.type_name)
    if name not in functional.__all__:
        return ""
    function = getattr(functional, name)
    signature = re.sub(r"(?<=[(,]) ?(?=[\w*])(?![^\[]*\])", "\n    ", str(inspect.signature(function)))
    signature = f"{name}{signature}".replace("'", "").replace(") ->", "\n) ->")
    signature = re.sub(r"<\w+\.(\w+): [^>]+>", r'"\1"', signature)
    return "\n".join(
        [
            heading("Without a spec"),
            f"``cortado.functional.{name}``\n",
            code(signature, "python"),
            equations(inspect.getdoc(function) or "") + "\n",
        ]
    )


def small_samples(entry: Entry) -> list[Sample]:
    """The layer's samples, none where it has no inputs to sample."""
    if not hasattr(entry.layer, "samples"):
        return []
    return list(entry.layer.samples("small", np.random.default_rng(0)))


def example(entry: Entry) -> str:
    """A layer entry with the parameters of the first sample that has some, or of a shipped spec."""
    given = [unbind(sample.params) for sample in small_samples(entry)]
    if given:
        return _entry(entry, next((params for params in given if params.fields), given[0]))
    if found := _shipped(entry.type_name):
        return found
    return _entry(entry, loads(f"{{{EXAMPLES.get(entry.type_name, '')}}}"))


def _entry(entry: Entry, params: Message) -> str:
    """A spec's ``layer`` list of this one layer; blocks beside its own stand beside it."""
    low = entry.bottoms[0]
    known = tuple(x.name for x in entry.layer.BOTTOMS)
    bottoms = known[:low] if len(known) >= low else _numbered("bottom", low)
    name = entry.layer.block.removesuffix("_param")
    if name.replace("_", "") != entry.type_name.lower():  # the block is another type's, too
        name = snake_case(entry.type_name)
    tops = _numbered(name, entry.tops[0] if entry.tops[1] == 0 else max(entry.tops[0], 1))
    names = "".join(f", {key}: [{', '.join(b)}]" for key, b in (("bottom", bottoms), ("top", tops)))
    layer = loads(f"{{name: {name}, type: {entry.type_name}{names}}}")
    beside = [field for field in params if field.name.endswith("_param")]
    own = Message(params.span, [field for field in params if field not in beside])
    if own.fields:
        layer.add(entry.layer.block, own)
    layer.fields += beside
    return in_a_list(layer)


def _numbered(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name}{i + 1}" for i in range(count)]


def _shipped(type_name: str) -> str:
    """The first layer of this type in the specs that come with cortado, or nothing."""
    for path in sorted(specs.FOLDER.glob("*.yaml")):
        message = load(path)
        for field in message.all("layer"):
            if isinstance(field.value, Message) and field.value.text("type") == type_name:
                return in_a_list(field.value)
    return ""


def in_a_list(layer: Message) -> str:
    """The layer as an entry of a spec's list."""
    return "- " + textwrap.indent(dump(layer), "  ").lstrip()


def names_it(entry: Entry, cell: str) -> bool:
    """Whether a table's first cell speaks of the layer."""
    return bool(re.search(rf"\b{entry.type_name}\b", cell))


def _faithfulness(entry: Entry, rows: Table) -> list[str]:
    own = [row[1:] for row in rows.rows if names_it(entry, row[0])]
    return [heading("Paper, released code and this layer"), table(rows.head[1:], own)] if own else []


def _gradients(entry: Entry, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    if entry.type_name not in found:
        return []
    reports = found[entry.type_name]
    title = heading("Gradient checks")
    if not reports:
        return [title, "No bottom of its samples has a gradient.\n"]
    head = ("sample", "of", "result", "largest error", "compared", "not smooth")
    rows = [
        (
            _sample(report["subject"]),
            finding["blob"],
            finding["verdict"],
            f"{finding['error']:.2g}" if finding["verdict"] in ("ok", "wrong") else "",
            str(finding["checked"]),
            str(finding["kinks"]),
        )
        for report in reports
        for finding in report["findings"]
    ]
    text = GRADIENTS.format(name=entry.type_name, threshold=reports[0]["threshold"])
    return [title, text, table(head, rows)]


def _sample(subject: str) -> str:
    """``KNN (k = 2)`` -> ``k = 2``."""
    named = re.search(r" \((.*)\)$", subject)
    return literal(named[1]) if named else ""


def _benchmarks(entry: Entry, tables: Sequence[Table]) -> list[str]:
    parts = []
    for measured in tables:
        rows = [row for row in measured.rows if names_it(entry, row[0])]
        if rows:
            parts += [f"**{measured.heading}.** {measured.text}\n", table(measured.head, rows)]
    return [heading("Benchmarks"), *parts] if parts else []
